"""JupyterHub's own ConfigurableHTTPProxy class with `holdfast chp` as its command, where it is used to Node's."""

import json
import os
import signal
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from holdfast_up import find_holdfast
from hub import Hub, fetch, until
from ports import free_ports
from processes import is_alive

pytestmark = pytest.mark.timeout(300)

TOKEN = "the-hub-and-the-proxy-know-it"
SPECS = {"alice": "/user/alice/", "zoë+x": "/user/zo%C3%AB%2Bx/"}


def settings(public_port, api_port, scheme="http", *more):
    return [
        'c.JupyterHub.proxy_class = "jupyterhub.proxy.ConfigurableHTTPProxy"',
        f"c.ConfigurableHTTPProxy.api_url = '{scheme}://127.0.0.1:{api_port}'",
        f"c.ConfigurableHTTPProxy.auth_token = {TOKEN!r}",
        "c.ConfigurableHTTPProxy.check_running_interval = 1",
        "c.JupyterHub.cleanup_servers = False",
        *more,
    ]


def starts_it(*arguments):
    return f"c.ConfigurableHTTPProxy.command = {[find_holdfast(), 'chp', *arguments]!r}"


def owner(hub, user, url=None):
    answer = fetch(f"{url or hub.public_url}{SPECS[user]}api/contents/owner.txt?content=1")
    assert answer.status == 200, answer
    return json.loads(answer.body)["content"]


def is_reached(hub, user):
    """Whether the user's server answers what it answers to everybody: without a hub it cannot tell who asks."""
    with urllib.request.urlopen(f"{hub.public_url}{SPECS[user]}api", timeout=30) as answer:
        return "version" in json.loads(answer.read())


def proxy_pid(hub):
    return int((hub.directory / "jupyterhub-proxy.pid").read_text())


@contextmanager
def a_hub(directory, *more, scheme="http"):
    public, api = range(first := free_ports(2), first + 2)
    with Hub(directory, public, settings(public, api, scheme, *more)) as hub:
        try:
            yield hub
        finally:
            if hub.process.poll() is None:
                hub.stop()
            pid_file = hub.directory / "jupyterhub-proxy.pid"
            if pid_file.exists() and is_alive(proxy_pid(hub)):
                os.kill(proxy_pid(hub), signal.SIGKILL)


def test_a_hub_starts_it_uses_it_and_stops_it(tmp_path):
    with a_hub(tmp_path / "hub", starts_it()) as hub:
        hub.start()
        first = proxy_pid(hub)
        for user in SPECS:
            hub.start_server(user)
        assert {user: owner(hub, user) for user in SPECS} == {user: user for user in SPECS}
        assert set(hub.routes()) == {"/", *SPECS.values()}
        hub.stop_server("alice")
        assert set(hub.routes()) == {"/", SPECS["zoë+x"]}
        assert f"Route added {SPECS['zoë+x']}".rstrip("/") not in hub.log(), "decoded, as the other program says it"
        assert "[ConfigProxy] info: Route added /user/zoë+x -> http://" in hub.log()

        # The hub does not wait for its proxy's end, and the next hub starts its own on the same ports.
        hub.stop()
        hub.start()
        assert proxy_pid(hub) != first
        until(lambda: not is_alive(first), 30, "the first proxy has ended", hub)
        assert owner(hub, "zoë+x") == "zoë+x", "restored by the hub"

        # A proxy that dies is started again by the hub, and gets its routes.
        second = proxy_pid(hub)
        os.kill(second, signal.SIGKILL)
        until(lambda: "Proxy stopped with exit code" in hub.log_since_start(), 30, "the hub has noticed", hub)
        until(lambda: fetch(f"{hub.public_url}{SPECS['zoë+x']}api/status").status == 200, 30, "it is back", hub)
        assert proxy_pid(hub) != second
        hub.stop_server("zoë+x")


def test_a_proxy_that_was_left_running_is_replaced(tmp_path):
    with a_hub(tmp_path / "hub", starts_it(), "c.JupyterHub.cleanup_proxy = False") as hub:
        hub.start()
        hub.start_server("alice")
        first = proxy_pid(hub)
        hub.stop(signal.SIGKILL)
        assert is_alive(first)
        assert is_reached(hub, "alice"), "no hub is needed for that"
        hub.start()
        assert f"Proxy still running at pid={first}" in hub.log_since_start()
        assert not is_alive(first)
        assert owner(hub, "alice") == "alice"
        hub.stop_server("alice")


def test_routes_on_disk_are_there_before_the_hub_is(tmp_path):
    public, api = range(first := free_ports(2), first + 2)
    flags = ["--ip=127.0.0.1", f"--port={public}", "--api-ip=127.0.0.1", f"--api-port={api}"]
    command = [find_holdfast(), "chp", *flags, f"--data-dir={tmp_path / 'data'}"]

    def start():
        with (tmp_path / "chp.log").open("a") as log:
            environment = os.environ | {"CONFIGPROXY_AUTH_TOKEN": TOKEN}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        until(lambda: fetch(f"http://127.0.0.1:{public}/_chp_healthz").status == 200, 30, "the proxy answers")
        return process

    proxy = start()
    try:
        its = settings(public, api, "http", "c.ConfigurableHTTPProxy.should_start = False")
        with Hub(tmp_path / "hub", public, its) as hub:
            hub.start()
            hub.start_server("alice")
            before = hub.routes()
            hub.stop()
            assert is_reached(hub, "alice")
            proxy.kill()
            proxy.wait()
            proxy = start()
            assert is_reached(hub, "alice"), "with nobody to add the route again"
            hub.start()
            assert "missing route" not in hub.log_since_start()
            assert hub.routes() == before
            hub.stop_server("alice")
            assert set(hub.routes()) == {"/"}
            hub.stop()
    finally:
        proxy.terminate()
        assert proxy.wait(30) == 0, (tmp_path / "chp.log").read_text()


def test_everything_speaks_tls_within_a_hub_that_wants_it(tmp_path):
    internal = [
        "c.JupyterHub.internal_ssl = True",
        f"c.JupyterHub.internal_certs_location = {str(tmp_path / 'certs')!r}",
    ]
    with a_hub(tmp_path / "hub", starts_it(), *internal, scheme="https") as hub:
        # Its own port asks for certificates, so it is asked by the proxy, which shows one.
        hub.url = hub.public_url
        hub.start()
        hub.start_server("alice")
        assert owner(hub, "alice") == "alice"
        (route,) = [route for spec, route in hub.routes().items() if spec == SPECS["alice"]]
        assert route["target"].startswith("https://")
        line = Path(f"/proc/{proxy_pid(hub)}/cmdline").read_text().split("\0")
        assert {"--api-ssl-reject-unauthorized", "--client-ssl-ca"} <= set(line)
        hub.stop_server("alice")
        assert set(hub.routes()) == {"/"}
