"""A real JupyterHub with real servers behind real proxies. Nothing here is a stand-in."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jupyterhub
import pytest
from holdfast_up import HoldfastUp, find_holdfast
from hub import STUB_SERVERS, Hub, as_written, by_socket, fetch, until
from jupyterhub.utils import url_escape_path
from ports import free_ports
from processes import is_alive
from users import answered_by_hub, owner, type_in_terminal

from jupyterhub_holdfast import Credentials, HoldfastProxy, LockedOut, RouteClient

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="class")
def up(tmp_path_factory):
    with HoldfastUp(tmp_path_factory.mktemp("up") / "data", replicas=3, proxies=2) as up:
        yield up


@pytest.fixture(scope="class")
def hub(up, tmp_path_factory):
    settings = [
        *up.settings,
        # So that a restart of the hub is a restart of the hub alone.
        "c.JupyterHub.cleanup_servers = False",
    ]
    with Hub(tmp_path_factory.mktemp("hub"), up.public_port, settings) as hub:
        hub.start()
        for user in ("alice", "bob"):
            hub.start_server(user)
        hub.start_server("alice", "second")
        yield hub
        for user, name in (("alice", "second"), ("alice", ""), ("bob", "")):
            hub.stop_server(user, name)
        hub.stop()


class TestWithACluster:
    """Three replicas and two proxies that run by themselves; the hub only writes routes."""

    def test_each_proxy_leads_each_user_to_their_own_server(self, up, hub):
        for url in up.public_urls:
            assert owner(url, "alice") == "alice"
            assert owner(url, "bob") == "bob"
            assert owner(url, "alice", "second") == "alice"

    def test_the_hub_itself_is_behind_every_proxy(self, up, hub):
        for url in up.public_urls:
            assert fetch(f"{url}/hub/login").status == 200
            assert json.loads(fetch(f"{url}/hub/api/").body) == hub.api("GET", "/")

    def test_websockets_pass_every_proxy(self, up, hub):
        for number, url in enumerate(up.public_urls):
            assert f"answer{number}-42" in type_in_terminal(url, "alice", f"answer{number}")

    def test_the_hub_reads_back_what_it_wrote(self, hub):
        routes = as_written(hub.routes())
        assert set(routes) == {"/", "/user/alice/", "/user/alice/second/", "/user/bob/"}
        assert routes["/"]["data"] == {"hub": True}
        assert routes["/"]["target"] == hub.url
        assert routes["/user/alice/second/"]["routespec"] == "/user/alice/second/"
        assert routes["/user/alice/second/"]["data"] == {"user": "alice", "server_name": "second"}

    def test_the_hub_shows_when_a_route_was_last_active_as_configurable_http_proxy_spells_it(self, up, hub):
        def last_activity():
            return hub.routes_and_activity()["/user/bob/"]["data"].get("last_activity")

        until(last_activity, 30, "bob's route is active, for it was written", hub)
        before = datetime.now(timezone.utc)

        def later():
            for url in up.public_urls:
                assert owner(url, "bob") == "bob"
            moment = last_activity()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
            return before < datetime.fromisoformat(moment.replace("Z", "+00:00")) <= datetime.now(timezone.utc)

        until(later, 30, "what bob does is seen", hub)

    def test_a_stopped_server_leaves_every_proxy_and_a_started_one_comes_back(self, up, hub):
        for _ in range(2):
            hub.stop_server("bob")
            assert "/user/bob/" not in hub.routes()
            for url in up.public_urls:
                assert answered_by_hub(url, "/user/bob/api/status")
                assert owner(url, "alice") == "alice"
            hub.start_server("bob")
            # No waiting: the hub sends the browser there as soon as the route is added.
            for url in up.public_urls:
                assert owner(url, "bob") == "bob"

    def test_servers_stay_reachable_while_the_hub_is_away_and_nothing_changes_when_it_comes_back(self, up, hub):
        before = hub.routes()
        hub.stop()
        for url in up.public_urls:
            assert owner(url, "alice") == "alice"
            assert owner(url, "bob") == "bob"
        hub.start()
        assert hub.routes() == before
        assert "missing route" not in hub.log_since_start()
        assert "Deleting stale route" not in hub.log_since_start()
        for url in up.public_urls:
            assert owner(url, "alice") == "alice"
            assert owner(url, "bob") == "bob"

    def test_routes_of_servers_that_died_while_the_hub_was_away_go_when_it_is_back(self, up, hub):
        hub.start_server("carol")
        pid = hub.api("GET", "/users/carol?include_stopped_servers")["servers"][""]["state"]["pid"]
        hub.stop()
        os.kill(pid, signal.SIGKILL)
        hub.start()
        until(lambda: "/user/carol/" not in hub.routes(), 30, "carol's route is removed", hub)
        assert all(answered_by_hub(url, "/user/carol/") for url in up.public_urls)
        assert owner(up.public_urls[0], "alice") == "alice"

    def test_the_hub_rides_out_the_loss_of_a_replica_and_of_a_proxy(self, up, hub):
        for name in ("r0", "r1", "r2", "p1"):
            pid = up.child_pid(name)
            os.kill(pid, signal.SIGKILL)
            hub.stop_server("bob")
            hub.start_server("bob")
            assert owner(up.public_urls[0], "bob") == "bob"
            until(lambda: owner(up.public_urls[1], "bob") == "bob", 30, "the other proxy has the route", hub)
            until(lambda: up.child_pid(name) not in (None, pid), 30, f"{name} is started again")  # noqa: B023

    def test_a_name_may_hold_anything_that_the_hub_allows(self, up, hub):
        # Jupyter Server itself does not find itself behind a quote, and JupyterHub 6 wants plain names for named servers.
        user, name = 'zoë+50% `漢`@b.org~"', "second"
        hub.start_server(user)
        hub.start_server(user, name)
        prefix = f"/user/{url_escape_path(user)}/"
        specs = {prefix, f"{prefix}{url_escape_path(name)}/"}
        routes = as_written(hub.routes())
        assert {spec for spec in routes if spec.startswith("/user/zo")} == specs
        assert routes[prefix]["data"] == {"user": user, "server_name": ""}
        for url in up.public_urls:
            assert owner(url, user) == user
            assert owner(url, user, name) == user
        # A check finds them as they are.
        hub.api("POST", "/proxy")
        assert hub.routes() == routes
        hub.stop_server(user, name)
        hub.stop_server(user)
        assert not specs & set(hub.routes())

    def test_check_routes_on_demand_finds_nothing_to_do(self, hub):
        before = hub.routes()
        hub.api("POST", "/proxy")
        assert hub.routes() == before

    def test_the_hub_moves_to_other_endpoints_on_demand(self, up, hub):
        moved = {"api_url": f"http://{up.endpoints[2]},{up.endpoints[1]}", "auth_token": "another"}
        hub.api("PATCH", "/proxy", moved)
        # It has a file.
        assert f"auth_token_file wins: write it into the first line of {up.token_file}" in hub.log()
        assert set(hub.routes()) == {"/", "/user/alice/", "/user/alice/second/", "/user/bob/"}
        assert hub.get("/proxy", method="PATCH", body={"api_url": "grpc://elsewhere:1"}).status >= 400
        assert set(hub.routes()) == {"/", "/user/alice/", "/user/alice/second/", "/user/bob/"}

    def test_the_hub_counts_how_long_polls_take(self, hub):
        metrics = fetch(f"{hub.url}/hub/metrics")
        polls = next(line for line in metrics.body.decode().splitlines() if "proxy_poll_duration_seconds_count" in line)
        assert float(polls.split()[-1]) > 0


# Every server is one and the same, so that there may be hundreds.
SHARED_SERVER = """
from jupyterhub.spawner import Spawner
class OneServerForAll(Spawner):
    async def start(self):
        return "{target}"
    async def stop(self, now=False):
        pass
    async def poll(self):
        return None
c.JupyterHub.spawner_class = OneServerForAll
c.JupyterHub.services += [
    {{"name": "elsewhere", "url": "{target}", "api_token": "another-token-for-the-tests"}},
]
"""


class TestManyServers:
    """A hub with hundreds of servers and a service, on a cluster that loses replicas."""

    @pytest.fixture
    def target(self):
        class EchoPath(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                body = self.path.encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            # A hub that starts looks at all of its servers at once.
            request_queue_size = 256

        with Server(("127.0.0.1", 0), EchoPath) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    @pytest.fixture
    def hub(self, up, target, tmp_path):
        settings = [
            *up.settings,
            "c.HoldfastProxy.extra_routes = {'/extra': 'http://127.0.0.1:1'}",
            "c.JupyterHub.cleanup_servers = False",
            "c.JupyterHub.log_level = 'INFO'",
            # Until a server has been looked at, the hub refuses to stop it.
            "c.JupyterHub.init_spawners_timeout = 60",
            SHARED_SERVER.format(target=target),
        ]
        with Hub(tmp_path / "hub", up.public_port, settings) as hub:
            yield hub
            hub.stop()

    def test_no_server_is_stopped_and_none_wedged_while_leaders_die(self, up, hub, target):
        hub.start()
        users = [f"user-{n}" for n in range(200)]
        own = {"/", "/extra/", "/services/elsewhere/"}
        assert set(hub.routes()) == own
        hub.api("POST", "/users", {"usernames": users})
        with ThreadPoolExecutor(20) as pool:

            def ask(method, user):
                answer = hub.get(f"/users/{user}/server", method)
                if answer.status == 201:
                    # A browser goes there now. At a proxy that lags it is sent to the hub and back, but not round and round.
                    for url in up.public_urls:
                        own = f"/user/{user}/x"
                        until(
                            lambda page=url + own, own=own: fetch(page).body == own.encode(), 5, f"{own} at {url}", hub
                        )
                return answer

            def all_while_the_leader_dies(method, halfway):
                calls = [pool.submit(ask, method, user) for user in users]
                until(halfway, 60, "half of the servers", hub)
                leader = asyncio.run(up.leader())
                pid = up.child_pid(leader)
                os.kill(pid, signal.SIGKILL)
                assert {call.result().status for call in calls} <= {201, 204}
                until(lambda: up.child_pid(leader) not in (None, pid), 30, f"{leader} is started again")

            def routes():
                return len(hub.routes()) - len(own)

            all_while_the_leader_dies("POST", lambda: routes() > len(users) // 2)
            # A page of the hub's API has 200.
            pages = hub.api("GET", "/users?state=ready") + hub.api("GET", "/users?state=ready&offset=200")
            assert {user["name"] for user in pages} == set(users)
            assert set(hub.routes()) == own | {f"/user/{user}/" for user in users}
            for url in up.public_urls:
                for user in users:
                    assert fetch(f"{url}/user/{user}/x").body == f"/user/{user}/x".encode()

            # A hub that comes back finds everything as it was.
            hub.stop()
            hub.start()
            assert set(hub.routes()) == own | {f"/user/{user}/" for user in users}
            assert "missing route" not in hub.log_since_start()
            assert "stale route" not in hub.log_since_start()

            all_while_the_leader_dies("DELETE", lambda: routes() < len(users) // 2)
            assert set(hub.routes()) == own
        assert "Traceback" not in hub.log()

    def test_a_service_whose_prefix_changed_keeps_a_route(self, up, hub, target):
        hub.start()
        assert fetch(f"{up.public_urls[0]}/services/elsewhere/x").body == b"/services/elsewhere/x"
        hub.stop()
        hub.move("/jupyter/")
        hub.start()
        assert set(hub.routes()) == {"/jupyter/", "/extra/", "/jupyter/services/elsewhere/"}
        assert fetch(f"{up.public_urls[1]}/jupyter/services/elsewhere/x").body == b"/jupyter/services/elsewhere/x"


class TestWithoutACluster:
    @pytest.fixture
    def up(self, tmp_path):
        """Not started yet."""
        return HoldfastUp(tmp_path / "data", replicas=1, proxies=1)

    @pytest.fixture
    def hub(self, up, tmp_path):
        with Hub(tmp_path / "hub", up.public_port, up.settings) as hub:
            yield hub

    def test_a_hub_may_be_started_before_its_cluster(self, up, hub):
        hub.launch()
        until(lambda: "list routes" in hub.log() and "retrying for" in hub.log(), 60, "the hub waits", hub)
        with up:
            hub.wait()
            assert set(hub.routes()) == {"/"}
            assert fetch(f"{up.public_urls[0]}/hub/login").status == 200
            hub.stop()
        assert "Traceback" not in hub.log()

    def test_a_hub_that_finds_no_cluster_ends_and_says_where_it_looked(self, up, hub):
        with hub.config_path.open("a") as config:
            config.write("c.HoldfastProxy.timeout = 3\n")
        with pytest.raises(RuntimeError, match=rf"no answer from the cluster within 3 s \({up.endpoints[0]}"):
            hub.start()


def test_the_hub_shows_every_setting_with_its_meaning(tmp_path):
    config = tmp_path / "jupyterhub_config.py"
    subprocess.run([sys.executable, "-m", "jupyterhub", "--generate-config", "-f", config], check=True, cwd=tmp_path)
    text = config.read_text()
    for name, trait in HoldfastProxy.class_own_traits(config=True).items():
        line = f"# c.HoldfastProxy.{name} = "
        assert line in text, name
        # The help comes before it, as a comment.
        first_words = " ".join(trait.help.split()[:4])
        assert first_words in " ".join(text[: text.index(line)].replace("#", " ").split()), name


class TestStartedByTheHub:
    """`c.JupyterHub.proxy_class = "holdfast"` and nothing else but ports that do not collide."""

    @pytest.fixture
    def ports(self):
        return free_ports(16)

    @pytest.fixture
    def settings(self, ports):
        return [
            f"c.HoldfastProxy.command = [{find_holdfast()!r}]",
            f"c.HoldfastProxy.base_port = {ports}",
            f"c.HoldfastProxy.proxy_admin_base = {ports + 12}",
            "c.HoldfastProxy.check_running_interval = 0.5",
        ]

    @pytest.fixture
    def make_hub(self, ports, settings, tmp_path):
        made = []

        def make_hub(*more_settings, **options):
            made.append(Hub(tmp_path / "hub", ports + 10, [*settings, *more_settings], **options))
            return made[-1]

        yield make_hub
        for hub in made:
            hub.__exit__()
            end_left_over(hub)

    @pytest.fixture
    def hub(self, make_hub):
        return make_hub()

    def test_a_hub_on_one_machine_needs_only_the_class(self, hub):
        hub.start()
        up = up_file(hub)
        hub.start_server("alice")
        assert owner(hub.public_url, "alice") == "alice"
        assert fetch(f"{hub.public_url}/_chp_healthz").status == 200

        # It is started again when it dies, with its routes.
        os.kill(up["pid"], signal.SIGKILL)
        until(lambda: up_file(hub)["pid"] not in (None, up["pid"]), 60, "Holdfast is started again", hub)
        until(lambda: owner(hub.public_url, "alice") == "alice", 60, "alice's route is back", hub)
        until(lambda: "Holdfast is back" in hub.log(), 60, "the hub knows that Holdfast is back", hub)
        assert "missing route" not in hub.log_since_start()

        # It ends with the hub, and its data does not.
        pid = up_file(hub)["pid"]
        hub.stop()
        assert not is_alive(pid)
        assert (hub.directory / "holdfast-data").is_dir()

        # The hub stopped alice's server too, and her route went with it.
        hub.start()
        assert set(hub.routes()) == {"/"}
        assert answered_by_hub(hub.public_url, "/user/alice/")
        hub.stop()

    def test_three_replicas_go_on_when_one_dies_and_come_back_with_their_routes(self, make_hub):
        base = free_ports(30)
        hub = make_hub(STUB_SERVERS, "c.HoldfastProxy.replicas = 3", f"c.HoldfastProxy.base_port = {base}")

        def answers(user):
            return fetch(f"{hub.public_url}/user/{user}/x").body == user.encode()

        hub.start()
        pid = up_file(hub)["pid"]
        # One of them leads.
        for name in ("r0", "r1", "r2"):
            replica = up_file(hub)["children"][name]
            os.kill(replica, signal.SIGKILL)
            hub.start_server(f"user-of-{name}")
            assert answers(f"user-of-{name}")
            until(lambda: up_file(hub)["children"].get(name) not in (None, replica), 30, f"{name} is back", hub)  # noqa: B023
        routes = hub.routes()
        assert set(routes) == {"/", *(f"/user/user-of-{name}/" for name in ("r0", "r1", "r2"))}
        assert up_file(hub)["pid"] == pid

        # All at once.
        os.killpg(pid, signal.SIGKILL)
        until(lambda: "Holdfast is back" in hub.log(), 60, "Holdfast is started again", hub)
        assert "missing route" not in hub.log()
        assert hub.routes() == routes
        assert answers("user-of-r1")
        hub.stop()

    def test_a_holdfast_that_cannot_be_started_again_is_tried_until_it_can(self, make_hub, tmp_path):
        command, out_of_order = tmp_path / "holdfast", tmp_path / "out-of-order"
        command.write_text(f'#!/bin/sh\n[ -e {out_of_order} ] && exit 3\nexec {find_holdfast()} "$@"\n')
        command.chmod(0o755)
        hub = make_hub(f"c.HoldfastProxy.command = [{str(command)!r}]")
        hub.start()
        out_of_order.touch()
        os.kill(up_file(hub)["pid"], signal.SIGKILL)
        until(lambda: hub.log().count("Holdfast is not back yet") > 1, 60, "it is tried again", hub)
        assert "ended during its start with exit code 3" in hub.log()
        out_of_order.unlink()
        until(lambda: "Holdfast is back" in hub.log(), 60, "the hub knows that Holdfast is back", hub)
        assert set(hub.routes()) == {"/"}
        assert fetch(f"{hub.public_url}/hub/login").status == 200
        hub.stop()

    def test_a_holdfast_that_hangs_is_started_again(self, make_hub):
        hub = make_hub("c.HoldfastProxy.hung_checks = 3")
        hub.start()
        hub.start_server("alice")
        pid = up_file(hub)["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: "has not answered 3 times, ending it" in hub.log(), 60, "it is found to hang", hub)
        until(lambda: "Holdfast is back" in hub.log(), 60, "Holdfast is back", hub)
        assert not is_alive(pid)
        assert owner(hub.public_url, "alice") == "alice"
        assert "missing route" not in hub.log_since_start()
        # From here on it answers, and stays.
        pid = up_file(hub)["pid"]
        hub.stop_server("alice")
        assert up_file(hub)["pid"] == pid
        hub.stop()

    def test_a_hub_below_a_path_of_its_own(self, make_hub):
        hub = make_hub(base_url="/jupyter/")
        hub.start()
        hub.start_server("zoë@b")
        assert set(hub.routes()) == {"/jupyter/", "/jupyter/user/zo%C3%AB@b/"}
        assert fetch(f"{hub.public_url}/jupyter/user/zo%C3%AB@b/api/status").status == 200
        assert fetch(f"{hub.public_url}/jupyter/hub/login").status == 200
        # Nobody owns the rest of the site.
        assert fetch(f"{hub.public_url}/other/").status == 404
        hub.stop()

    @pytest.mark.skipif(jupyterhub.version_info < (6,), reason="JupyterHub 5 takes no socket for bind_url")
    def test_users_and_proxies_come_by_unix_sockets(self, make_hub):
        # A longer path than about a hundred bytes is none for a socket.
        with tempfile.TemporaryDirectory(prefix="hub-") as directory:
            users, hubs = by_socket(f"{directory}/Users.sock"), by_socket(f"{directory}/hub.sock")
            hub = make_hub(
                f"c.JupyterHub.bind_url = {users!r}",
                f"c.JupyterHub.hub_bind_url = {hubs!r}",
                f"c.JupyterHub.hub_connect_url = {hubs!r}",
                "c.HoldfastProxy.proxies = 2",
            )
            hub.launch()
            until(lambda: "JupyterHub is now running" in hub.log(), 90, "the hub runs", hub)
            assert fetch(f"{users}/hub/login").status == 200
            assert fetch(f"{users}.1/hub/login").status == 200
            assert json.loads(fetch(f"{users}/hub/api/proxy").body)["/"]["target"] == hubs
            hub.stop()
            assert not [name for name in os.listdir(directory) if name.startswith("Users")]

    def test_a_hub_with_a_host_for_each_user(self, make_hub, ports):
        hub = make_hub(f"c.JupyterHub.subdomain_host = 'http://hub.test:{ports + 10}'")
        hub.start()
        # One that no host can be called; JupyterHub finds another host for it.
        special = "zoë_@b"
        hub.start_server(special)
        (spec,) = set(hub.routes()) - {"/"}
        host, _, path = spec.partition("/")
        assert host.endswith(".hub.test")
        assert path == "user/zo%C3%AB_@b/"
        answer = fetch(f"{hub.public_url}/{path}api/contents/owner.txt?content=1", host=f"{host}:{ports + 10}")
        assert json.loads(answer.body)["content"] == special
        hub.stop_server(special)
        hub.start_server("alice")
        assert set(hub.routes()) == {"/", "alice.hub.test/user/alice/"}
        url = f"{hub.public_url}/user/alice/api/contents/owner.txt?content=1"
        assert json.loads(fetch(url, host=f"alice.hub.test:{ports + 10}").body)["content"] == "alice"
        for host in (f"bob.hub.test:{ports + 10}", f"hub.test:{ports + 10}"):
            answer = fetch(url, host=host)
            assert answer.status == 302
            assert answer.headers["Location"].startswith(f"http://hub.test:{ports + 10}/hub/")
        hub.stop()

    def test_a_hub_that_left_holdfast_running_goes_on_with_it(self, hub):
        with hub.config_path.open("a") as config:
            config.write("c.JupyterHub.cleanup_servers = False\nc.JupyterHub.cleanup_proxy = False\n")
        hub.start()
        hub.start_server("alice")
        # From here on the server knows our token without asking the hub.
        assert owner(hub.public_url, "alice") == "alice"
        pid = up_file(hub)["pid"]
        for how in (signal.SIGTERM, signal.SIGKILL):
            hub.stop(how)
            assert owner(hub.public_url, "alice") == "alice"
            hub.start()
            assert up_file(hub)["pid"] == pid
            assert owner(hub.public_url, "alice") == "alice"
            assert f"Holdfast is still running at pid {pid}, going on with it" in hub.log_since_start()

        # With other settings it is replaced, and keeps the routes.
        with hub.config_path.open("a") as config:
            config.write("c.HoldfastProxy.proxies = 2\n")
        hub.stop()
        hub.start()
        assert up_file(hub)["pid"] != pid
        assert not is_alive(pid)
        assert owner(hub.public_url, "alice") == "alice"
        hub.stop_server("alice")

        # An adopted process ends with the hub just as one of its own.
        with hub.config_path.open("a") as config:
            config.write("c.JupyterHub.cleanup_proxy = True\n")
        pid = up_file(hub)["pid"]
        hub.stop()
        hub.start()
        assert up_file(hub)["pid"] == pid
        hub.stop()
        assert not is_alive(pid)

    def test_other_accounts_of_the_machine_write_no_routes(self, hub, ports):
        hub.start()
        hub.start_server("alice")
        with pytest.raises(LockedOut, match="wants a token"):
            asyncio.run(write_a_route(ports))
        with pytest.raises(LockedOut, match="none of this replica's"):
            asyncio.run(write_a_route(ports, auth_token="guessed"))
        # By the peers' port they could do without.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports + 1))
        file = hub.directory / "holdfast-data" / "api-token"
        assert file.stat().st_mode & 0o777 == 0o600
        asyncio.run(write_a_route(ports, auth_token_file=str(file)))
        token = file.read_text().strip()
        assert len(token) == 64
        assert token not in hub.log()
        assert token.encode() not in command_line(up_file(hub)["pid"])

        hub.stop()
        hub.start()
        assert file.read_text().strip() == token
        hub.start_server("alice")
        assert owner(hub.public_url, "alice") == "alice"
        hub.stop()

    def test_the_token_changes_while_holdfast_goes_on_running(self, hub, ports, tmp_path):
        def configure(line):
            with hub.config_path.open("a") as config:
                config.write(f"{line}\n")

        def is_locked_out(token):
            with pytest.raises(LockedOut, match="none of this replica's"):
                asyncio.run(write_a_route(ports, auth_token=token))

        configure("c.JupyterHub.cleanup_servers = False\nc.JupyterHub.cleanup_proxy = False")
        configure("c.HoldfastProxy.auth_token = 'first'")
        hub.start()
        hub.start_server("alice")
        asyncio.run(write_a_route(ports, auth_token="first"))
        pid = up_file(hub)["pid"]

        # For another hub.
        configure("c.HoldfastProxy.auth_token = 'second'")
        hub.stop()
        hub.start()
        assert up_file(hub)["pid"] == pid
        is_locked_out("first")
        asyncio.run(write_a_route(ports, auth_token="second"))
        assert owner(hub.public_url, "alice") == "alice"

        # For a hub that runs.
        hub.api("PATCH", "/proxy", {"auth_token": "third"})
        is_locked_out("second")
        asyncio.run(write_a_route(ports, auth_token="third"))
        assert up_file(hub)["pid"] == pid
        hub.stop_server("alice")
        hub.start_server("alice")

        # From a file.
        tokens = tmp_path / "tokens"
        tokens.write_text("fourth\nfor-an-operator\n")
        configure(f"c.HoldfastProxy.auth_token_file = {str(tokens)!r}")
        hub.stop()
        hub.start()
        assert not is_alive(pid)
        is_locked_out("third")
        asyncio.run(write_a_route(ports, auth_token="for-an-operator"))
        assert owner(hub.public_url, "alice") == "alice"
        configure("c.JupyterHub.cleanup_proxy = True\nc.JupyterHub.cleanup_servers = True")
        hub.stop()
        hub.start()
        hub.stop()

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("c.JupyterHub.ssl_key = 'k'; c.JupyterHub.ssl_cert = 'c'", '--ssl-cert "c": cannot be read'),
            ("c.HoldfastProxy.endpoints = ['elsewhere:7011']", "should_start = False"),
            ("c.HoldfastProxy.command = ['no-such-command']", "no command 'no-such-command'"),
            ("c.HoldfastProxy.replicas = 2", "1 or 3, not 2"),
        ],
        ids=["tls", "endpoints", "command", "replicas"],
    )
    def test_a_setting_that_cannot_work_ends_the_start_with_its_reason(self, hub, line, words):
        with hub.config_path.open("a") as config:
            config.write(line + "\n")
        with pytest.raises(RuntimeError, match=words):
            hub.start()
        assert not (hub.directory / "holdfast-data" / "up.json").exists()


async def write_a_route(port, **credentials):
    """As another program on this machine would, and in its own namespace."""
    client = RouteClient(
        [f"127.0.0.1:{port}"], namespace="elsewhere", timeout=5.0, credentials=Credentials(**credentials)
    )
    try:
        await client.put("/elsewhere/", "http://127.0.0.1:9", "{}")
    finally:
        await client.close()


def command_line(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def up_file(hub):
    """What `holdfast up` says about itself; no pid while it does not run."""
    try:
        return json.loads((hub.directory / "holdfast-data" / "up.json").read_text())
    except FileNotFoundError:
        return {"pid": None}


def end_left_over(hub):
    """Ends what a failed test left running: processes that name the hub's directory, and no others."""
    for entry in os.scandir("/proc") if sys.platform == "linux" else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = command_line(entry.name)
                with open(f"/proc/{entry.name}/environ", "rb") as file:
                    environment = file.read()
                if str(hub.directory).encode() in arguments or str(hub.homes).encode() in environment:
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
