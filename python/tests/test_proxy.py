"""HoldfastProxy's contract with the hub, against a real cluster."""

import asyncio
import json
import os
import signal
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from holdfast_up import HoldfastUp, find_holdfast
from hub import as_written, fetch
from hub_stand_in import Hub
from jupyterhub.utils import subdomain_hook_idna, subdomain_hook_legacy, url_escape_path
from ports import free_port, free_ports
from prometheus_client import REGISTRY
from scripted_replica import ScriptedReplica
from traitlets import TraitError
from traitlets.config import Config
from waiting import eventually

from jupyterhub_holdfast import HoldfastProxy, Rejected, Unavailable
from jupyterhub_holdfast._proto import routes_pb2
from jupyterhub_holdfast.changes import Delete

TARGET = "http://127.0.0.1:18888"


@pytest.fixture
async def make_proxy(cluster):
    """Proxies as a hub would make them, each with a namespace of its own by default."""
    made = []

    def make_proxy(namespace=None, **traits):
        traits.setdefault("endpoints", cluster.endpoints)
        traits.setdefault("auth_token_file", cluster.token_file)
        traits.setdefault("should_start", False)
        host_routing = traits.pop("host_routing", False)
        hub = traits.pop("hub", None) or Hub()
        config = Config(HoldfastProxy=traits | {"namespace": namespace or f"test-{os.urandom(6).hex()}"})
        made.append(HoldfastProxy(config=config, host_routing=host_routing, app=hub, hub=hub))
        return made[-1]

    yield make_proxy
    for proxy in made:
        await proxy.client.close()
    for namespace in {proxy.namespace for proxy in made}:
        # No hub, so none that has been fenced.
        client = cluster.client(namespace=namespace)
        await client.write_each([Delete(route.routespec) for route in await client.list()])
        await client.close()


async def route_as_written(proxy, routespec):
    return as_written({routespec: await proxy.get_route(routespec)})[routespec]


NAMES = [
    "alice",
    "a@b.org",
    "~tilde",
    "50%",
    "a+b",
    "two words",
    "zürich",
    "漢字",
    "a/b",
    "a%2Fb",
    "back`tick",
    "`back` `tick`",
    "o'brien",
    "'single'",
    '"double"',
    "\"'<&>",
    "$(x) ${x} {x} {{x}}",
    "a;b,c=d:e|f!*()[]",
    "-dash",
    "\u202etfel",
    "a" * 200,
]


# As the hub spells them. And some that it never would, but that are well-formed.
ROUTESPECS = [
    *(f"/user/{url_escape_path(name)}/" for name in NAMES),
    f"/user/alice/{url_escape_path('named `server` ü/漢')}/",
    "/user/pl%2Bus+/",
    "/user/lower%2fcase/",
    "/user/raw/zürich/",
    "/jupyter/user/alice/",
    "/services/a-b_c.d/",
]


@pytest.mark.parametrize("routespec", ROUTESPECS)
async def test_routespec_target_and_data_come_back_as_they_were(make_proxy, routespec):
    proxy = make_proxy()
    data = {
        "user": "zürich 漢字 \U0001f40d",
        "n": 3,
        "f": 1.5,
        "yes": True,
        "none": None,
        "list": [1, {"a": []}],
        "": "",
    }
    target = "http://[::1]:8888/x?y=%20z"
    await proxy.add_route(routespec, target, dict(data))
    expected = {"routespec": routespec, "target": target, "data": data}
    assert as_written(await proxy.get_all_routes()) == {routespec: expected}
    assert await route_as_written(proxy, routespec) == expected
    assert (await proxy.get_route(routespec))["data"]["yes"] is True
    await proxy.delete_route(routespec)
    assert await proxy.get_all_routes() == {}
    assert await proxy.get_route(routespec) is None


@pytest.mark.parametrize("data", ['{"half": "\\ud800"}', '{"much": 1e999}', f'{{"long": {10**40}}}'])
async def test_data_that_only_python_reads_keep_no_other_route_from_the_hub(make_proxy, data):
    proxy = make_proxy()
    await proxy.add_route("/user/alice/", TARGET, {"user": "alice"})
    await proxy.client.put("/odd/", TARGET, data)
    routes = as_written(await proxy.get_all_routes())
    assert {spec: route["data"] for spec, route in routes.items()} == {
        "/user/alice/": {"user": "alice"},
        "/odd/": json.loads(data),
    }


@pytest.mark.parametrize(
    "data", [{}, {"a": {"b": [{}, [], ""]}}, {"zero": 0, "no": False, "none": None}, {"": ""}], ids=str
)
async def test_data_of_any_shape_keeps_its_types(make_proxy, data):
    proxy = make_proxy()
    await proxy.add_route("/a/", TARGET, data)
    returned = (await route_as_written(proxy, "/a/"))["data"]
    # Not only equal: 0 == False.
    assert json.dumps(returned, sort_keys=True) == json.dumps(data, sort_keys=True)


async def test_what_users_do_is_seen_as_last_activity(make_proxy, cluster):
    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/seen/good" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    proxy = make_proxy()

    async def active():
        moment = (await proxy.get_all_routes())["/seen/"]["data"].get("last_activity")
        return moment and datetime.fromisoformat(moment.replace("Z", "+00:00"))

    async def ask(path):
        return [(await asyncio.to_thread(fetch, f"{url}{path}")).status for url in cluster.public_urls]

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            start = datetime.now(timezone.utc)
            await proxy.add_route("/seen/", f"http://127.0.0.1:{server.server_port}", {"user": "seen"})
            written = await eventually(active, "the route is active, for it was written")
            assert abs(written - start) < timedelta(seconds=10)
            # What fails is no activity, or the time until here would be told from what follows by nobody.
            later = written + timedelta(seconds=5)

            async def failed_for_a_while():
                assert await ask("/seen/bad") == [404, 404]
                return datetime.now(timezone.utc) > later + timedelta(seconds=5)

            await eventually(failed_for_a_while, "the time is over")
            assert await active() < later
            assert await ask("/seen/good") == [200, 200]

            async def seen():
                return await active() > later

            await eventually(seen, "what users did is seen")
        finally:
            server.shutdown()


@pytest.mark.parametrize("hook", [subdomain_hook_idna, subdomain_hook_legacy])
async def test_names_are_hosts_and_servers_too(make_proxy, hook):
    proxy = make_proxy(host_routing=True)
    specs = [f"{hook(name, 'hub.example.org', 'user')}/user/{url_escape_path(name)}/" for name in NAMES]
    for spec in specs:
        await proxy.add_route(spec, TARGET, {"user": spec})
    assert {spec: route["data"]["user"] for spec, route in (await proxy.get_all_routes()).items()} == {
        spec: spec for spec in specs
    }


async def test_a_slash_at_the_end_is_another_target(make_proxy):
    proxy = make_proxy()
    for target in (TARGET, f"{TARGET}/", TARGET):
        await proxy.add_route("/a/", target, {})
        assert (await proxy.get_route("/a/"))["target"] == target


async def test_one_route_is_found_under_the_spelling_of_the_list_of_all(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/user/a@b/", TARGET, {})
    assert await proxy.get_route("/user/a%40b/") is None
    assert await route_as_written(proxy, "/user/a@b/") == as_written(await proxy.get_all_routes())["/user/a@b/"]


async def test_spellings_of_one_path_do_not_both_become_routes_unnoticed(make_proxy):
    """`%40` and `@` are one path: two routes for it would make the answer a matter of chance."""
    proxy = make_proxy()
    await proxy.add_route("/user/a@b/", TARGET, {"first": True})
    try:
        await proxy.add_route("/user/a%40b/", TARGET, {"second": True})
    except Rejected:
        assert list(await proxy.get_all_routes()) == ["/user/a@b/"]
    else:
        # The last spelling stands for both: what the hub reads back is what it wrote last.
        assert list(await proxy.get_all_routes()) == ["/user/a%40b/"]


async def test_the_callers_data_is_not_touched(make_proxy):
    proxy = make_proxy()
    data = {"user": "alice"}
    await proxy.add_route("/user/alice/", TARGET, data)
    assert data == {"user": "alice"}


async def test_no_data_is_an_empty_object(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/a/", TARGET, None)
    assert (await route_as_written(proxy, "/a/"))["data"] == {}


async def test_adding_again_replaces_the_whole_route(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/a/", TARGET, {"old": 1})
    await proxy.add_route("/a/", "http://127.0.0.1:2", {"new": 2})
    expected = {"routespec": "/a/", "target": "http://127.0.0.1:2", "data": {"new": 2}}
    assert await route_as_written(proxy, "/a/") == expected


async def test_adding_the_same_route_again_changes_nothing(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/a/", TARGET, {"b": 1, "a": 2})
    written = (await proxy.client.get("/a/")).mod_revision
    for _ in range(3):
        await proxy.add_route("/a/", TARGET, {"a": 2, "b": 1})
    assert (await proxy.client.get("/a/")).mod_revision == written


async def test_deleting_what_is_not_there_is_a_success(make_proxy):
    proxy = make_proxy()
    await proxy.delete_route("/user/nobody/")


async def test_a_missing_trailing_slash_is_added(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/user/alice", TARGET, {})
    assert list(await proxy.get_all_routes()) == ["/user/alice/"]
    assert (await proxy.get_route("/user/alice"))["routespec"] == "/user/alice/"
    await proxy.delete_route("/user/alice")
    assert await proxy.get_all_routes() == {}


async def test_path_routing_refuses_hosts_and_host_routing_refuses_paths(make_proxy):
    by_path, by_host = make_proxy(), make_proxy(host_routing=True)
    for call in (by_path.add_route("host.org/a/", TARGET, {}), by_path.delete_route("host.org/a/")):
        with pytest.raises(ValueError, match="not using host-routing"):
            await call
    with pytest.raises(ValueError, match="using host-routing"):
        await by_host.add_route("/a/", TARGET, {})
    await by_host.add_route("alice.hub.org/user/alice/", TARGET, {})
    await by_host.add_route("/", TARGET, {"hub": True})
    assert set(await by_host.get_all_routes()) == {"alice.hub.org/user/alice/", "/"}


async def test_mixed_routespecs_may_have_a_host_or_none(make_proxy):
    proxy = make_proxy(mixed_routespecs=True, extra_routes={"docs.example.org/": TARGET, "/docs": TARGET})
    assert proxy.extra_routes == {"docs.example.org/": TARGET, "/docs/": TARGET}
    for spec in ("host.org/a/", "/a", "/"):
        await proxy.add_route(spec, TARGET, {})
    assert set(await proxy.get_all_routes()) == {"host.org/a/", "/a/", "/"}
    await proxy.check_routes({}, {})
    assert set(await proxy.get_all_routes()) == {"/", "docs.example.org/", "/docs/"}
    # A forgotten slash is no host.
    with pytest.raises(Rejected, match="routespec"):
        await proxy.add_route("user/alice/", TARGET, {})
    with pytest.raises(TraitError, match="extra_routes"):
        proxy.extra_routes = {"/a/": "ftp://10.0.0.1/"}


def test_extra_routes_have_a_host_where_the_hub_has_one(make_proxy):
    with pytest.raises(ValueError, match="missing leading '/'"):
        make_proxy(extra_routes={"docs.example.org/": TARGET})
    with pytest.raises(ValueError, match="missing host component"):
        make_proxy(extra_routes={"/docs/": TARGET}, hub=Hub(subdomain_host="http://hub.example.org"))


@pytest.mark.parametrize(
    ("routespec", "target", "data", "field"),
    [
        ("/a/../b/", TARGET, {}, "routespec"),
        ("/a/%2e%2e/b/", TARGET, {}, "routespec"),
        ("/a/%zz/", TARGET, {}, "routespec"),
        # A name may have one, and proxies take it for a slash or not, each in its own way.
        ("/user/corp%5Calice/", TARGET, {}, "routespec"),
        ("/a/\x00/", TARGET, {}, "routespec"),
        ("/" + "a" * 9000 + "/", TARGET, {}, "routespec"),
        ("/a/", "ftp://127.0.0.1/", {}, "target"),
        ("/a/", "127.0.0.1:80", {}, "target"),
        ("/a/", TARGET, {"big": "x" * 70000}, "data"),
        ("/a/", TARGET, ["not", "an", "object"], "data"),
    ],
)
async def test_bad_input_is_refused_at_once_by_field_and_changes_nothing(make_proxy, routespec, target, data, field):
    proxy = make_proxy()
    with pytest.raises(Rejected, match=field) as caught:
        await asyncio.wait_for(proxy.add_route(routespec, target, data), 5)
    assert caught.value.reason == "invalid"
    assert await proxy.get_all_routes() == {}


async def test_data_that_is_not_json_is_refused(make_proxy):
    proxy = make_proxy()
    for data in ({"nan": float("nan")}, {"object": object()}):
        with pytest.raises((ValueError, TypeError)):
            await proxy.add_route("/a/", TARGET, data)


async def test_hubs_see_and_touch_only_their_own_routes(make_proxy):
    a, b = make_proxy(), make_proxy()
    await a.add_route("/a/", "http://127.0.0.1:1", {})
    await b.add_route("/b/", "http://127.0.0.1:2", {})
    assert list(await a.get_all_routes()) == ["/a/"]
    assert list(await b.get_all_routes()) == ["/b/"]
    assert await a.get_route("/b/") is None
    with pytest.raises(Rejected) as caught:
        await a.add_route("/b/", "http://127.0.0.1:3", {})
    assert caught.value.reason == "namespace"
    # For hub a there is no such route, and so nothing to delete.
    await a.delete_route("/b/")
    assert (await b.get_route("/b/"))["target"] == "http://127.0.0.1:2"


class TestChecks:
    """check_routes against a real cluster. The rules themselves are in test_check.py."""

    @pytest.fixture
    def hub(self):
        return Hub()

    @pytest.fixture
    def proxy(self, make_proxy, hub):
        return make_proxy(hub=hub)

    async def check(self, proxy, routes=None):
        await proxy.check_routes(proxy.hub.users, proxy.hub.services, routes)

    async def test_one_batch_makes_the_table_what_the_hub_wants(self, proxy, hub):
        await proxy.add_route("/user/gone/", TARGET, {"user": "gone", "server_name": ""})
        await proxy.add_route("/user/moved/", TARGET, {"user": "moved", "server_name": ""})
        hub.server("moved", f"{TARGET}/")
        for name in NAMES:
            hub.server("many", f"http://[::1]:1/{len(name)}", name)
        hub.service("s", TARGET)
        before = await revision(proxy)
        await self.check(proxy)
        assert await revision(proxy) == before + 1
        routes = as_written(await proxy.get_all_routes())
        assert set(routes) == {
            "/",
            "/user/moved/",
            "/services/s/",
            *(f"/user/many/{url_escape_path(name)}/" for name in NAMES),
        }
        assert routes["/"] == {"routespec": "/", "target": hub.host, "data": {"hub": True}}
        assert routes["/user/moved/"]["target"] == f"{TARGET}/"
        for name in NAMES:
            assert routes[f"/user/many/{url_escape_path(name)}/"]["data"] == {"user": "many", "server_name": name}

    async def test_a_second_check_takes_no_log_entry(self, make_proxy, hub):
        proxy = make_proxy(hub=hub, extra_routes={"/extra/": TARGET})
        hub.server("alice", TARGET)
        await self.check(proxy)
        before = (await proxy.client.status()).last_log_index
        for _ in range(3):
            await self.check(proxy, await proxy.get_all_routes())
        assert (await proxy.client.status()).last_log_index == before

    async def test_a_check_with_the_list_of_an_earlier_moment_deletes_nothing_newer(self, proxy, hub, caplog):
        await proxy.add_route("/user/alice/", "http://127.0.0.1:1", {"user": "alice", "server_name": ""})
        await proxy.add_route("/user/stale/", TARGET, {"user": "stale", "server_name": ""})
        seen = await proxy.get_all_routes()
        await proxy.add_route("/user/alice/", "http://127.0.0.1:2", {"user": "alice", "server_name": ""})
        hub.server("bob", TARGET)
        with caplog.at_level("INFO"):
            await self.check(proxy, seen)
        # The batch had three more changes, and they were made.
        routes = await proxy.get_all_routes()
        assert {spec: route["target"] for spec, route in routes.items()} == {
            "/": hub.host,
            "/user/alice/": "http://127.0.0.1:2",
            "/user/bob/": TARGET,
        }
        assert "Route /user/alice/ has changed since it was found stale, it stays" in caplog.text

    async def test_what_the_hub_decides_during_a_check_comes_after_it(self, proxy, hub, monkeypatch):
        """During an outage a batch may come long after what it was computed from."""
        await proxy.add_route("/user/alice/", TARGET, {"user": "alice", "server_name": ""})
        hub.server("bob", TARGET)
        hold, write_each = asyncio.Event(), proxy.client.write_each

        async def held(*arguments, deletes_meant=False):
            if not deletes_meant:  # the check's
                await hold.wait()
            return await write_each(*arguments, deletes_meant=deletes_meant)

        monkeypatch.setattr(proxy.client, "write_each", held)
        check = asyncio.ensure_future(self.check(proxy))
        await eventually(lambda: proxy._under_check, "the check has begun to write", 10)
        # The same route again: its revision stays what the check has seen.
        alice = asyncio.ensure_future(proxy.add_route("/user/alice/", TARGET, {"user": "alice", "server_name": ""}))
        bob = asyncio.ensure_future(proxy.delete_route("/user/bob/"))
        # Others need not wait.
        await proxy.add_route("/user/carol/", TARGET, {"user": "carol", "server_name": ""})
        assert not alice.done()
        assert not bob.done()
        hold.set()
        await asyncio.gather(check, alice, bob)
        assert set(await proxy.get_all_routes()) == {"/", "/user/alice/", "/user/carol/"}

    async def test_a_route_of_another_hub_keeps_no_other_from_being_mended(self, proxy, make_proxy, hub, caplog):
        other = make_proxy()
        await other.add_route("/user/taken/", "http://127.0.0.1:1", {})
        for name in ("alice", "taken", "zoe"):
            hub.server(name, TARGET)
        await self.check(proxy)
        assert set(await proxy.get_all_routes()) == {"/", "/user/alice/", "/user/zoe/"}
        assert "Route /user/taken/ cannot be mended" in caplog.text
        assert f"belongs to namespace {other.namespace}" in caplog.text
        assert (await other.get_route("/user/taken/"))["target"] == "http://127.0.0.1:1"

    async def test_a_hub_in_the_wrong_namespace_is_told_so(self, proxy, make_proxy, hub):
        other = make_proxy()
        await other.add_route("/", "http://127.0.0.1:1", {"hub": True})
        hub.server("alice", TARGET)
        with pytest.raises(Rejected, match=f"belongs to namespace {other.namespace}"):
            await self.check(proxy)
        assert (await other.get_all_routes())["/"]["target"] == "http://127.0.0.1:1"

    async def test_a_hub_that_finds_nothing_to_do_keeps_its_predecessor_out(self, proxy, make_proxy, hub):
        hub.server("alice", TARGET)
        await self.check(proxy)
        successor = make_proxy(proxy.namespace, hub=hub)
        before = as_written(await successor.get_all_routes())
        await self.check(successor)
        for write in (proxy.delete_route("/user/alice/"), proxy.add_route("/late/", TARGET, {})):
            with pytest.raises(Rejected, match="a newer hub has taken over"):
                await write
        assert as_written(await successor.get_all_routes()) == before

    async def test_a_route_in_another_spelling_is_replaced_and_not_deleted(self, proxy, hub):
        await proxy.add_route("/user/a%40b/", TARGET, {"user": "a@b", "server_name": ""})
        hub.server("a@b", TARGET)
        hub.server("alice", TARGET)
        await self.check(proxy)
        assert set(await proxy.get_all_routes()) == {"/", "/user/a@b/", "/user/alice/"}

    async def test_the_durations_of_checks_and_polls_are_observed(self, proxy):
        before = sample("jupyterhub_check_routes_duration_seconds"), sample("jupyterhub_proxy_poll_duration_seconds")
        await self.check(proxy)
        await self.check(proxy, await proxy.get_all_routes())
        after = sample("jupyterhub_check_routes_duration_seconds"), sample("jupyterhub_proxy_poll_duration_seconds")
        assert (after[0] - before[0], after[1] - before[1]) == (2, 2)

    async def test_without_a_cluster_a_check_raises_and_the_next_one_works(self, proxy, hub, cluster):
        hub.server("alice", TARGET)
        seen = await proxy.get_all_routes()
        proxy.client.timeout, proxy.api_url = 0.5, f"127.0.0.1:{free_port()}"
        for routes in (None, seen):
            with pytest.raises(Unavailable):
                await self.check(proxy, routes)
        proxy.client.timeout, proxy.endpoints = 30, cluster.endpoints
        await self.check(proxy)
        assert set(await proxy.get_all_routes()) == {"/", "/user/alice/"}

    async def test_checks_ride_out_the_loss_of_the_leader(self, proxy, hub, cluster):
        for round_number in range(2):
            for n in range(200):
                hub.server(f"u{n}", f"http://127.0.0.1:{1 + round_number}")
            leader = await cluster.leader()
            pid = cluster.child_pid(leader)
            os.kill(pid, signal.SIGKILL)
            before = await revision(proxy)
            await self.check(proxy)
            assert await revision(proxy) == before + 1
            assert len(await proxy.get_all_routes()) == 201
            await cluster.restarted(leader, pid)
            await cluster.all_ready()

    async def test_ten_thousand_users(self, proxy, hub, capsys, caplog):
        for n in range(10_000):
            hub.server(f"user-{n}", f"http://10.{n // 65536}.{n // 256 % 256}.{n % 256}:8888")
        lines = []

        async def timed(what, call):
            began = time.perf_counter()
            answer = await call
            lines.append(f"{what}: {time.perf_counter() - began:.2f} s")
            return answer

        before = await revision(proxy)
        await timed("check of 10,000 users, the table lost", self.check(proxy))
        assert await revision(proxy) == before + 1
        routes = await timed("list of 10,000 routes", proxy.get_all_routes())
        assert len(routes) == 10_001
        await timed("check of 10,000 users, nothing to do", self.check(proxy))
        assert await revision(proxy) == before + 1
        hub.users.clear()
        await timed("check that deletes 10,000 routes", self.check(proxy, routes))
        assert await revision(proxy) == before + 2
        assert set(await proxy.get_all_routes()) == {"/"}
        # Nobody said that it was meant; so the cluster serves them on.
        assert "10000 routes that this hub does not know are served on" in caplog.text
        await self.check(proxy)
        assert await revision(proxy) == before + 2
        with capsys.disabled():
            print(*("", *lines), sep="\n")


async def test_ten_thousand_writes_at_once_all_arrive(make_proxy):
    proxy = make_proxy()
    specs = [f"/user/u{i}/" for i in range(10_000)]
    writes = asyncio.gather(*(proxy.add_route(spec, TARGET, {"user": spec}) for spec in specs))
    # Reads do not queue behind them. Each sees what there is, and never less than the one before.
    counts = []
    while not writes.done():
        counts.append(len(await proxy.get_all_routes()))
    await writes
    assert len(counts) > 1
    assert counts == sorted(counts)
    assert set(await proxy.get_all_routes()) == set(specs)
    gone, there = specs[:1000], specs[1000:]
    await asyncio.gather(*(proxy.delete_route(spec) for spec in gone))
    assert set(await proxy.get_all_routes()) == set(there)


async def test_a_route_works_on_every_proxy_when_add_route_returns(make_proxy, cluster):
    async def greet(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    proxy = make_proxy()
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for i in range(20):
            await proxy.add_route(f"/ready/{i}/", f"http://127.0.0.1:{port}", {})
            for url in cluster.public_urls:
                answer = await asyncio.to_thread(fetch, f"{url}/ready/{i}/")
                assert (answer.status, answer.body) == (200, b"hello")
            await proxy.delete_route(f"/ready/{i}/")
            for url in cluster.public_urls:
                assert (await asyncio.to_thread(fetch, f"{url}/ready/{i}/")).body != b"hello"


async def test_no_write_fails_while_replicas_are_killed_one_after_the_other(make_proxy, cluster):
    proxy = make_proxy()
    stop = asyncio.Event()
    written = []

    async def write(writer):
        i = 0
        while not stop.is_set():
            spec = f"/w{writer}/u{i}/"
            await proxy.add_route(spec, TARGET, {"i": i})
            written.append(spec)
            i += 1

    writers = [asyncio.ensure_future(write(number)) for number in range(4)]
    for name in ("r0", "r1", "r2"):
        before = len(written)
        pid = cluster.child_pid(name)
        os.kill(pid, signal.SIGKILL)

        def goes_on(enough=before + 20):
            assert not any(writer.done() for writer in writers), [w.exception() for w in writers if w.done()]
            return len(written) >= enough

        # The next one dies when this one is back: two of three are needed.
        await eventually(goes_on, "20 more routes are written")
        await cluster.restarted(name, pid)
        await cluster.all_ready()
    stop.set()
    await asyncio.gather(*writers)
    assert set(await proxy.get_all_routes()) == set(written)


async def test_no_call_fails_and_no_table_is_empty_while_every_replica_is_dead(make_proxy, cluster):
    proxy = make_proxy()
    await proxy.add_route("/before/", TARGET, {})
    pids = {name: cluster.child_pid(name) for name in ("r0", "r1", "r2")}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    calls = (
        proxy.get_all_routes(),
        proxy.get_route("/before/"),
        proxy.add_route("/after/", TARGET, {}),
        proxy.delete_route("/no-such-route/"),
    )
    routes, route, _, _ = await asyncio.gather(*calls)
    assert "/before/" in routes
    assert route["target"] == TARGET
    assert set(await proxy.get_all_routes()) == {"/before/", "/after/"}
    for name, pid in pids.items():
        await cluster.restarted(name, pid)
    await cluster.all_ready()


async def test_a_leader_that_hangs_delays_a_write_and_fails_none(make_proxy, cluster):
    proxy = make_proxy()
    await proxy.add_route("/before/", TARGET, {})
    leader = await cluster.leader()
    pid = cluster.child_pid(leader)
    os.kill(pid, signal.SIGSTOP)
    try:
        await proxy.add_route("/while/", TARGET, {})
        assert set(await proxy.get_all_routes()) == {"/before/", "/while/"}
    finally:
        os.kill(pid, signal.SIGCONT)
    await cluster.all_ready()


async def test_a_proxy_that_hangs_delays_a_write_by_the_wait_and_is_named(make_proxy, cluster, caplog):
    proxy = make_proxy()

    async def both_are_followed():
        return (await proxy.client.put("/before/", TARGET, "{}", 1.0)).proxies_live == 2

    await eventually(both_are_followed, "both proxies follow the table")
    pid = cluster.child_pid("p1")
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        await proxy.add_route("/a/", TARGET, {})
        assert 0.9 < time.monotonic() - began < 3.0
        assert "1 of 2 proxies do not serve that yet: p1" in caplog.text
        assert (await asyncio.to_thread(fetch, f"{cluster.public_urls[0]}/a/")).status == 503
        proxy.wait_for_proxies = 0
        began = time.monotonic()
        await proxy.add_route("/b/", TARGET, {})
        assert time.monotonic() - began < 0.9
    finally:
        os.kill(pid, signal.SIGCONT)
    # Nothing was lost for it.
    proxy.wait_for_proxies = 10
    caplog.clear()
    await proxy.add_route("/c/", TARGET, {})
    assert "do not serve" not in caplog.text
    for spec in ("/a/", "/b/", "/c/"):
        assert (await asyncio.to_thread(fetch, f"{cluster.public_urls[1]}{spec}")).status == 503


async def test_proxies_that_are_named_are_reported_also_if_they_are_not_counted(caplog):
    answer = routes_pb2.WriteResponse(revision=7, changed=True, proxies_live=1, proxies_synced=1)
    answer.proxies_lagging.append("the proxies of replica r2")
    async with ScriptedReplica(judge=lambda request: answer if hasattr(request, "changes") else None) as replica:
        hub, config = Hub(), Config(HoldfastProxy={"endpoints": [replica.address], "should_start": False})
        proxy = HoldfastProxy(config=config, app=hub, hub=hub)
        await proxy.add_route("/a/", TARGET, {})
        await proxy.client.close()
    assert "revision 7; 1 of 2 proxies do not serve that yet: the proxies of replica r2" in caplog.text


async def test_a_hub_may_stop_holdfast_in_another_loop_than_it_started_it_in(tmp_path):
    ports = free_ports(5)
    traits = {"command": [find_holdfast()], "data_dir": str(tmp_path / "data"), "base_port": ports}
    traits |= {"proxy_admin_base": ports + 3, "check_running_interval": 0.1}
    hub = Hub()
    proxy = HoldfastProxy(
        config=Config(HoldfastProxy=traits), public_url=f"http://127.0.0.1:{ports + 4}/", app=hub, hub=hub
    )
    await proxy.start()
    process, watch = proxy._process, proxy._watch
    stop = threading.Thread(target=lambda: asyncio.run(proxy.stop()), daemon=True)
    stop.start()
    # Our loop stands still meanwhile, as a hub's does that waits for the other one.
    stop.join(30)
    assert not stop.is_alive()
    assert process.ended() == "exit code 0"
    # And nobody starts it again.
    await asyncio.wait([watch])
    assert watch.cancelled()
    assert process.ended() == "exit code 0"


async def test_without_a_cluster_reads_and_writes_raise(make_proxy, cluster):
    proxy = make_proxy(timeout=1.0, endpoints=[f"127.0.0.1:{free_port()}"])
    for call in (proxy.get_all_routes, lambda: proxy.get_route("/"), lambda: proxy.delete_route("/a/")):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(Unavailable):
        await proxy.add_route("/a/", TARGET, {})
    # As PATCH /hub/api/proxy does.
    proxy.api_url = ",".join(cluster.endpoints)
    assert await proxy.get_all_routes() == {}


async def test_a_hub_moves_to_another_cluster_and_back(make_proxy, cluster, tmp_path):
    """As PATCH /hub/api/proxy does. Each cluster has its own count of the hubs that it has seen."""
    namespace = f"test-{os.urandom(6).hex()}"
    with HoldfastUp(tmp_path / "data", replicas=1, proxies=1, token="another") as elsewhere:
        for _ in range(3):
            before = make_proxy(namespace, endpoints=elsewhere.endpoints, auth_token_file=elsewhere.token_file)
            await before.add_route("/before/", TARGET, {})
        proxy = make_proxy(namespace, auth_token_file="", auth_token=cluster.token)
        await proxy.add_route("/here/", TARGET, {})
        proxy.api_url, proxy.auth_token = f"http://{elsewhere.endpoints[0]}", "another"
        await proxy.add_route("/there/", TARGET, {})
        assert set(await proxy.get_all_routes()) == {"/before/", "/there/"}
        with pytest.raises(Rejected, match="newer hub"):
            await before.add_route("/late/", TARGET, {})
        proxy.api_url, proxy.auth_token = ",".join(cluster.endpoints), cluster.token
        await proxy.add_route("/back/", TARGET, {})
        assert set(await proxy.get_all_routes()) == {"/here/", "/back/"}


def test_the_hub_finds_the_class_by_its_short_name():
    from importlib.metadata import entry_points

    [entry] = entry_points(group="jupyterhub.proxies", name="holdfast")
    assert entry.load() is HoldfastProxy


@pytest.mark.parametrize(
    "traits",
    [
        {"endpoints": []},
        {"endpoints": ["no-port"]},
        {"api_url": "grpc://replica:1"},
        {"namespace": "*"},
        {"namespace": ""},
        {"replicas": 2},
        {"concurrency": 0},
        {"wait_for_proxies": 11},
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_by_name(traits):
    with pytest.raises(TraitError, match=next(iter(traits))):
        HoldfastProxy(config=Config(HoldfastProxy=traits))


def test_every_setting_says_what_it_is_for():
    for name, trait in HoldfastProxy.class_own_traits(config=True).items():
        assert trait.help.strip(), name


async def revision(proxy):
    """The table's present revision: of a write that changes nothing."""
    return (await proxy.client.write([Delete("/no-such-route/")])).revision


def sample(name):
    return REGISTRY.get_sample_value(f"{name}_count")
