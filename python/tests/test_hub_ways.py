"""The ways by which users, proxies and a real JupyterHub find each other, with replicas and proxies that run by themselves."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import jupyterhub
import pytest
from holdfast_up import HoldfastUp
from hub import STUB_SERVERS, Hub, by_socket, fetch
from jupyterhub.utils import subdomain_hook_idna, subdomain_hook_legacy, url_escape_path
from users import owner, type_in_terminal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """What a hub with `internal_ssl` makes for its proxies, before there are any."""
    directory = tmp_path_factory.mktemp("internal-ssl")
    location = f"--JupyterHub.internal_certs_location={directory}"
    command = [sys.executable, "-m", "jupyterhub", "--generate-certs", "--JupyterHub.internal_ssl=True", location]
    subprocess.run(command, check=True, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def up(certificates, tmp_path_factory):
    files = {
        "key": "proxy-client/proxy-client.key",
        "cert": "proxy-client/proxy-client.crt",
        "ca": "proxy-client-ca_trust.crt",
    }
    flags = [text for name, file in files.items() for text in (f"--client-ssl-{name}", certificates / file)]
    with HoldfastUp(tmp_path_factory.mktemp("up") / "data", flags=flags) as up:
        yield up


@contextmanager
def leader_lost(up):
    """What is done within finds the leader killed."""
    name = asyncio.run(up.leader())
    pid = up.child_pid(name)
    os.kill(pid, signal.SIGKILL)
    yield
    asyncio.run(up.restarted(name, pid))


# By name JupyterHub takes only the one that is not its default.
@pytest.mark.parametrize(
    ("hook", "setting"),
    [(subdomain_hook_idna, []), (subdomain_hook_legacy, ["c.JupyterHub.subdomain_hook = 'legacy'"])],
    ids=["idna", "legacy"],
)
def test_each_user_at_a_host_of_their_own(up, tmp_path, hook, setting):
    users = ["alice", "zoë", "o'brien", '"back`tick" & <b>@c.org']
    domain = f"hub.test:{up.public_port}"
    settings = [
        *up.settings,
        f"c.JupyterHub.subdomain_host = 'http://{domain}'",
        "c.JupyterHub.cleanup_servers = False",
        STUB_SERVERS,
        *setting,
    ]
    hosts = {user: hook(user, "hub.test", "user") for user in users}
    specs = {f"{hosts[user]}/user/{url_escape_path(user)}/" for user in users}

    def who_answers(url, host, user):
        answer = fetch(f"{url}/user/{url_escape_path(user)}/x", host=f"{host}:{up.public_port}")
        return answer.body.decode() if answer.status == 200 else None

    def each_at_their_own(users):
        for url in up.public_urls:
            for user in users:
                assert who_answers(url, hosts[user], user) == user

    with Hub(tmp_path / "hub", up.public_port, settings) as hub:
        hub.start()
        for user in users:
            hub.start_server(user)
        assert set(hub.routes()) == {"/", *specs}
        each_at_their_own(users)
        # Nobody is at another's host, nor at the hub's.
        for host in (hosts["zoë"], "hub.test"):
            assert who_answers(up.public_urls[0], host, "alice") is None

        before = hub.routes()
        hub.stop()
        hub.start()
        assert hub.routes() == before
        assert "missing route" not in hub.log_since_start()
        assert "stale route" not in hub.log_since_start()

        with leader_lost(up):
            hub.stop_server("o'brien")
            assert who_answers(up.public_urls[0], hosts["o'brien"], "o'brien") is None
            hub.start_server("o'brien")
            each_at_their_own(["o'brien"])
        for user in users:
            hub.stop_server(user)
        assert set(hub.routes()) == {"/"}
        hub.stop()


def test_every_part_speaks_tls_with_every_other(up, certificates, tmp_path):
    settings = [
        *up.settings,
        "c.JupyterHub.internal_ssl = True",
        f"c.JupyterHub.internal_certs_location = {str(certificates)!r}",
    ]
    with Hub(tmp_path / "hub", up.public_port, settings) as hub:
        # Its own port wants a certificate of its own authorities. It is the proxies that show one.
        hub.url = hub.public_url
        hub.start()
        hub.start_server("alice")
        assert all(owner(url, "alice") == "alice" for url in up.public_urls)
        assert "typed-42" in type_in_terminal(up.public_urls[1], "alice", "typed")
        with leader_lost(up):
            hub.start_server("bob")
            assert all(owner(url, "bob") == "bob" for url in up.public_urls)
            hub.stop_server("alice")
        routes = hub.routes()
        assert set(routes) == {"/", "/user/bob/"}
        assert all(route["target"].startswith("https://") for route in routes.values())
        hub.stop_server("bob")
        hub.stop()


def test_users_and_the_hub_are_at_unix_sockets():
    # Until JupyterHub 6 the scheme was spelt so.
    scheme = "http+unix" if jupyterhub.version_info >= (6,) else "unix+http"
    # A longer path than about a hundred bytes is none for a socket.
    with tempfile.TemporaryDirectory(prefix="hub-") as directory:
        directory = Path(directory)
        hubs = by_socket(directory / "hub.sock").replace("http+unix", scheme)
        with HoldfastUp(directory / "data", socket=directory / "users.sock") as up:
            settings = [
                *up.settings,
                f"c.JupyterHub.hub_bind_url = {hubs!r}",
                f"c.JupyterHub.hub_connect_url = {hubs!r}",
                STUB_SERVERS,
            ]
            doors = [by_socket(directory / name) for name in ("users.sock", "users.sock.1")]
            with Hub(directory / "hub", up.public_port, settings) as hub:
                hub.url = doors[0]
                hub.start()
                hub.start_server("alice")
                assert hub.routes()["/"]["target"] == hubs
                assert [fetch(f"{door}/user/alice/x").body for door in doors] == [b"alice"] * 2
                with leader_lost(up):
                    hub.stop_server("alice")
                    assert set(hub.routes()) == {"/"}
                    hub.start_server("alice")
                    assert [fetch(f"{door}/user/alice/x").body for door in doors] == [b"alice"] * 2
                hub.stop_server("alice")
                hub.stop()
