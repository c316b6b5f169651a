"""Stuck users, made on purpose, found and repaired by `holdfast reconcile` with a real hub."""

import json
import os
import signal
import subprocess
from urllib.parse import urlsplit

import pytest
from holdfast_up import HoldfastUp, find_holdfast
from hub import API_TOKEN, Hub, fetch, until
from ports import free_port, is_free

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def up(tmp_path):
    with HoldfastUp(tmp_path / "up", replicas=3, proxies=2) as up:
        yield up


@pytest.fixture
def hub(up, tmp_path):
    settings = [
        *up.settings,
        # Nothing mends itself while we look.
        "c.JupyterHub.last_activity_interval = 3600",
        "c.Spawner.poll_interval = 3600",
        'c.JupyterHub.load_roles[0]["scopes"] += ["list:services", "read:services"]',
        'c.JupyterHub.services += [{"name": "elsewhere", "url": "http://127.0.0.1:9", "api_token": "another-token-for-the-tests"}]',
        # Several pages for a few users.
        "c.JupyterHub.api_page_max_limit = 2",
    ]
    with Hub(tmp_path / "hub", up.public_port, settings) as hub:
        yield hub.start()
        hub.stop()


@pytest.fixture
def holdfast(up):
    def holdfast(*arguments):
        command = [find_holdfast(), *arguments, *up.flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return holdfast


@pytest.fixture
def reconcile(up, hub, holdfast, tmp_path):
    token = tmp_path / "token"
    token.write_text(API_TOKEN)
    admins = ",".join(f"127.0.0.1:{up.admin_port + proxy}" for proxy in range(up.proxies))

    def reconcile(*arguments, url=hub.url):
        """Every disagreement by what it is about, and the exit code."""
        where = ["--hub-url", url, "--token-file", str(token), "--proxy-admin", admins]
        done = holdfast("reconcile", *where, "-o", "json", *arguments)
        assert done.returncode in (0, 1), done
        report = json.loads(done.stdout)
        assert report["proxies"] == up.proxies
        return {found["about"]: found for found in report["disagreements"]}, done.returncode

    return reconcile


def test_stuck_users_are_found_and_those_that_can_be_are_repaired(up, hub, holdfast, reconcile):
    users = ["alice", "bob", "zoë+x"]
    for user in users:
        hub.start_server(user)
    hub.start_server("alice", "second")
    elsewhere = "/services/elsewhere/"
    # Nobody is at the service's address, and the hub wants it all the same.
    found, code = reconcile()
    assert {about: one["kind"] for about, one in found.items()} == {elsewhere: "dead-target"}
    assert code == 1

    # A route is deleted behind the hub's back, a server dies, and a route is left of a server that is no more.
    assert holdfast("routes", "delete", "/user/zo%C3%AB%2Bx/").returncode == 0
    assert holdfast("routes", "delete", "/user/alice/second/").returncode == 0
    pid = hub.api("GET", "/users/bob?include_stopped_servers")["servers"][""]["state"]["pid"]
    port = urlsplit(hub.routes()["/user/bob/"]["target"]).port
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_free(port), 10, "the killed server's port is free")
    data = json.dumps({"user": "carol", "server_name": ""})
    gone = f"http://127.0.0.1:{free_port()}"
    assert holdfast("routes", "put", "/user/carol/", gone, "--data", data).returncode == 0
    stuck = {
        "/user/zo%C3%AB%2Bx/": "server-without-route",
        "/user/alice/second/": "server-without-route",
        "/user/bob/": "dead-target",
        "/user/carol/": "route-without-server",
        elsewhere: "dead-target",
    }
    before = hub.routes()
    found, code = reconcile()
    assert {about: one["kind"] for about, one in found.items()} == stuck
    assert code == 1
    assert hub.routes() == before

    found, code = reconcile("--repair")
    assert {about: one["kind"] for about, one in found.items()} == stuck
    assert {about for about, one in found.items() if one["repaired"]} == stuck.keys() - {"/user/bob/", elsewhere}
    assert "bob" in found["/user/bob/"]["repair"]
    assert code == 1
    for url in up.public_urls:
        for path in ("/user/alice/", "/user/alice/second/", "/user/zo%C3%AB%2Bx/"):
            assert fetch(f"{url}{path}api/status").status == 200
    assert "/user/carol/" not in hub.routes()

    # The hub's API is found below any path of the hub's, and by itself.
    hub.stop_server("bob")
    for url in (hub.url, f"{hub.url}/hub/api"):
        found, _ = reconcile(url=url)
        assert set(found) == {elsewhere}


def test_a_token_that_does_not_show_everything_is_refused(hub, holdfast, tmp_path):
    token = tmp_path / "less"
    for text, words in ((API_TOKEN[::-1], "refuses the token"), ("another-token-for-the-tests", "lacks list:users")):
        token.write_text(text)
        done = holdfast("reconcile", "--hub-url", hub.url, "--token-file", str(token), "--repair")
        assert done.returncode == 2, done
        assert words in done.stderr
        assert done.stdout == ""
