"""An unmodified hub with JupyterHub's own ConfigurableHTTPProxy class: its api_url leads to a replica."""

import asyncio
import json
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from holdfast_up import find_holdfast, leader_of
from hub import Hub, fetch, until
from many_servers import address_of, serve_many
from ports import free_ports

from jupyterhub_holdfast import RouteClient

pytestmark = pytest.mark.timeout(300)

TOKEN = "the-hub-and-the-replica-know-it"


class Processes:
    """Replicas with the API, and one proxy."""

    def __init__(self, directory, replicas=1):
        self.directory = directory
        ports = iter(range(first := free_ports(4 * replicas + 2), first + 4 * replicas + 2))
        clients, peers, admins, apis = ([next(ports) for _ in range(replicas)] for _ in range(4))
        self.public_port, proxy_admin = ports
        self.endpoints = [f"127.0.0.1:{port}" for port in clients]
        self.api_urls = [f"http://127.0.0.1:{port}" for port in apis]
        self.admin_url = f"http://127.0.0.1:{proxy_admin}"
        tokens = directory / "tokens"
        tokens.write_text(TOKEN + "\n")
        self.settings = {
            f"r{number}": {
                "peers": ",".join(f"r{other}=127.0.0.1:{port}" for other, port in enumerate(peers)),
                "listen-client": endpoint,
                "listen-peer": f"127.0.0.1:{peers[number]}",
                "listen-admin": f"127.0.0.1:{admins[number]}",
                "listen-chp-api": f"127.0.0.1:{apis[number]}",
                "chp-api-token-file": tokens,
            }
            for number, endpoint in enumerate(self.endpoints)
        }
        self.settings["p0"] = {
            "endpoints": ",".join(self.endpoints),
            "ip": "127.0.0.1",
            "port": self.public_port,
            "listen-admin": f"127.0.0.1:{proxy_admin}",
            "drain-delay": "0s",
        }
        self.running = {}

    def start(self, name):
        settings = {"name": name, "data-dir": self.directory / name} | self.settings[name]
        flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        command = [find_holdfast(), "proxy" if name == "p0" else "replica", *flags]
        with (self.directory / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, name):
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def kill_as_leader(self, name):
        """Kills it while it leads."""
        if asyncio.run(leader_of(RouteClient(self.endpoints))) != name:
            command = [find_holdfast(), "leader", "move", "--to", name, "--endpoints", ",".join(self.endpoints)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.kill(name)

    def __enter__(self):
        for name in self.settings:
            self.start(name)
        until(self._is_ready, 30, "the proxy is ready")
        return self

    def _is_ready(self):
        for name, process in self.running.items():
            assert process.poll() is None, (self.directory / f"{name}.log").read_text()
        return fetch(f"{self.admin_url}/readyz").status == 200

    def __exit__(self, *_):
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            process.wait(30)


def settings(api_url):
    """Of a hub that knows nothing of Holdfast."""
    return [
        'c.JupyterHub.proxy_class = "jupyterhub.proxy.ConfigurableHTTPProxy"',
        "c.ConfigurableHTTPProxy.should_start = False",
        f"c.ConfigurableHTTPProxy.api_url = {api_url!r}",
        f"c.ConfigurableHTTPProxy.auth_token = {TOKEN!r}",
        "c.JupyterHub.cleanup_servers = False",
    ]


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory):
    with Processes(tmp_path_factory.mktemp("chp-api")) as processes:
        yield processes


@pytest.fixture(scope="module")
def hub(holdfast, tmp_path_factory):
    [api_url] = holdfast.api_urls
    with Hub(tmp_path_factory.mktemp("hub"), holdfast.public_port, settings(api_url)) as hub:
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
    url = f"{holdfast.api_urls[0]}/api/routes/docs"
    request = urllib.request.Request(url, method="POST", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 201
    hub.api("POST", "/proxy")
    assert "/docs/" not in hub.routes()
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        read = json.loads(answer.read())
        assert read | body == read


def test_its_users_notice_nothing_of_a_leader_that_dies(tmp_path):
    """The class knows one URL. As a follower, the replica there has done by the leader, whichever it is, what it is asked for."""
    users = [f"user-{n}" for n in range(60)]
    specs = {f"/user/{user}/" for user in users}
    with (
        Processes(tmp_path, replicas=3) as holdfast,
        serve_many() as spawner,
        Hub(tmp_path / "hub", holdfast.public_port, settings(holdfast.api_urls[0]) + spawner) as hub,
    ):
        hub.start()
        hub.api("POST", "/users", {"usernames": users})

        def all_are_right():
            assert set(hub.routes()) == {"/", *specs}
            for number, user in enumerate(users):
                assert fetch(f"{hub.public_url}/user/{user}/").body.decode() == address_of(number)

        with ThreadPoolExecutor(20) as pool:

            def all_while_it_dies(leader, method, halfway):
                calls = [pool.submit(hub.get, f"/users/{user}/server", method) for user in users]
                until(halfway, 60, "half of the servers", hub)
                holdfast.kill_as_leader(leader)
                assert {call.result().status for call in calls} <= {201, 204}

            all_while_it_dies("r1", "POST", lambda: len(hub.routes()) > len(users) // 2)
            all_are_right()
            holdfast.start("r1")

            # It may lead itself. When it dies, the hub is told of another one, which has every route.
            holdfast.kill_as_leader("r0")
            hub.api("PATCH", "/proxy", {"api_url": holdfast.api_urls[2]})
            all_are_right()
            assert "missing route" not in hub.log()
            assert "stale route" not in hub.log()
            holdfast.start("r0")

            all_while_it_dies("r1", "DELETE", lambda: len(hub.routes()) < len(users) // 2)
            assert set(hub.routes()) == {"/"}
        hub.stop()
