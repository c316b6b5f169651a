"""An unmodified hub with JupyterHub's own ConfigurableHTTPProxy class: its api_url leads to a replica."""

import json
import subprocess
import urllib.request

import pytest
from holdfast_up import find_holdfast
from hub import Hub, fetch, until
from ports import free_ports

pytestmark = pytest.mark.timeout(300)

TOKEN = "the-hub-and-the-replica-know-it"


class Processes:
    """One replica with the API, and one proxy."""

    def __init__(self, directory):
        self.directory = directory
        client, peer, admin, api, self.public_port, proxy_admin = range(first := free_ports(6), first + 6)
        self.api_url = f"http://127.0.0.1:{api}"
        self.admin_url = f"http://127.0.0.1:{proxy_admin}"
        tokens = directory / "tokens"
        tokens.write_text(TOKEN + "\n")
        replica = {
            "name": "r0",
            "data-dir": directory / "r0",
            "peers": f"r0=127.0.0.1:{peer}",
            "listen-client": f"127.0.0.1:{client}",
            "listen-peer": f"127.0.0.1:{peer}",
            "listen-admin": f"127.0.0.1:{admin}",
            "listen-chp-api": f"127.0.0.1:{api}",
            "chp-api-token-file": tokens,
        }
        proxy = {
            "name": "p0",
            "data-dir": directory / "p0",
            "endpoints": f"127.0.0.1:{client}",
            "ip": "127.0.0.1",
            "port": self.public_port,
            "listen-admin": f"127.0.0.1:{proxy_admin}",
        }
        self.settings = {"replica": replica, "proxy": proxy}
        self.running = []

    def __enter__(self):
        for role, settings in self.settings.items():
            flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
            with (self.directory / f"{role}.log").open("w") as log:
                self.running.append(subprocess.Popen([find_holdfast(), role, *flags], stdout=log, stderr=log))
        until(self._is_ready, 30, "the proxy is ready")
        return self

    def _is_ready(self):
        for role, process in zip(self.settings, self.running, strict=True):
            assert process.poll() is None, (self.directory / f"{role}.log").read_text()
        return fetch(f"{self.admin_url}/readyz").status == 200

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(30)


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory):
    with Processes(tmp_path_factory.mktemp("chp-api")) as processes:
        yield processes


@pytest.fixture(scope="module")
def hub(holdfast, tmp_path_factory):
    settings = [
        'c.JupyterHub.proxy_class = "jupyterhub.proxy.ConfigurableHTTPProxy"',
        "c.ConfigurableHTTPProxy.should_start = False",
        f"c.ConfigurableHTTPProxy.api_url = {holdfast.api_url!r}",
        f"c.ConfigurableHTTPProxy.auth_token = {TOKEN!r}",
        "c.JupyterHub.cleanup_servers = False",
    ]
    with Hub(tmp_path_factory.mktemp("hub"), holdfast.public_port, settings) as hub:
        hub.start()
        yield hub
        hub.stop()


def test_its_users_reach_their_servers_and_nobody_else_does(holdfast, hub):
    users = ["alice", "zoë+x", "a@b~c"]
    for user in users:
        hub.start_server(user)
    specs = {"alice": "/user/alice/", "zoë+x": "/user/zo%C3%AB%2Bx/", "a@b~c": "/user/a@b~c/"}
    for user in users:
        path = specs[user]
        answer = fetch(f"{hub.public_url}{path}api/contents/owner.txt?content=1")
        assert answer.status == 200, answer
        assert json.loads(answer.body)["content"] == user
    assert set(hub.routes()) == {"/", *specs.values()}

    before = hub.routes()
    hub.stop()
    hub.start()
    assert hub.routes() == before
    assert "Deleting stale route" not in hub.log_since_start()
    assert "missing route" not in hub.log_since_start()

    for user in users:
        hub.stop_server(user)
    assert set(hub.routes()) == {"/"}


def test_a_route_of_somebody_else_is_left_alone(holdfast, hub):
    body = {"target": "http://127.0.0.1:9", "who": "an operator"}
    headers = {"Authorization": f"token {TOKEN}"}
    url = f"{holdfast.api_url}/api/routes/docs"
    request = urllib.request.Request(url, method="POST", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 201
    hub.api("POST", "/proxy")
    assert "/docs/" not in hub.routes()
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        read = json.loads(answer.read())
        assert read | body == read
