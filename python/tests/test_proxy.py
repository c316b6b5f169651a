"""HoldfastProxy's contract with the hub, against a real cluster."""

import asyncio
import os
import signal
import time

import pytest
from hub import fetch
from ports import free_port
from traitlets import TraitError
from traitlets.config import Config

from jupyterhub_holdfast import HoldfastProxy, Rejected, RouteClient, Unavailable

TARGET = "http://127.0.0.1:18888"


@pytest.fixture
async def make_proxy(cluster):
    """Proxies as a hub would make them, each with a namespace of its own by default."""
    made = []

    def make_proxy(namespace=None, **traits):
        traits.setdefault("endpoints", cluster.endpoints)
        traits.setdefault("should_start", False)
        host_routing = traits.pop("host_routing", False)
        config = Config(HoldfastProxy=traits | {"namespace": namespace or f"test-{os.urandom(6).hex()}"})
        made.append(HoldfastProxy(config=config, host_routing=host_routing))
        return made[-1]

    yield make_proxy
    for proxy in made:
        for routespec in await proxy.get_all_routes():
            await proxy.delete_route(routespec)
        await proxy.client.close()


# As the hub spells them: quote(name, safe="@~"). And some that it never would, but that are well-formed.
ROUTESPECS = [
    "/user/alice/",
    "/user/a@b.org/",
    "/user/~tilde/",
    "/user/per%25cent/",
    "/user/pl%2Bus+/",
    "/user/two%20words/",
    "/user/z%C3%BCrich/",
    "/user/%E6%BC%A2%E5%AD%97/",
    "/user/slash%2Fin%2Fname/",
    "/user/lower%2fcase/",
    "/user/back%60tick/",
    "/user/alice/named%20server/",
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
    assert await proxy.get_all_routes() == {routespec: expected}
    assert await proxy.get_route(routespec) == expected
    assert (await proxy.get_route(routespec))["data"]["yes"] is True
    await proxy.delete_route(routespec)
    assert await proxy.get_all_routes() == {}
    assert await proxy.get_route(routespec) is None


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
    assert (await proxy.get_route("/a/"))["data"] == {}


async def test_adding_again_replaces_the_whole_route(make_proxy):
    proxy = make_proxy()
    await proxy.add_route("/a/", TARGET, {"old": 1})
    await proxy.add_route("/a/", "http://127.0.0.1:2", {"new": 2})
    assert await proxy.get_route("/a/") == {"routespec": "/a/", "target": "http://127.0.0.1:2", "data": {"new": 2}}


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


@pytest.mark.parametrize(
    ("routespec", "target", "data", "field"),
    [
        ("/a/../b/", TARGET, {}, "routespec"),
        ("/a/%2e%2e/b/", TARGET, {}, "routespec"),
        ("/a/%zz/", TARGET, {}, "routespec"),
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
    try:
        await a.delete_route("/b/")
    except Rejected as e:
        assert e.reason == "namespace"  # noqa: PT017
    assert (await b.get_route("/b/"))["target"] == "http://127.0.0.1:2"


async def test_a_thousand_writes_at_once_all_arrive(make_proxy):
    proxy = make_proxy()
    specs = [f"/user/u{i}/" for i in range(1000)]
    await asyncio.gather(*(proxy.add_route(spec, TARGET, {"user": spec}) for spec in specs))
    assert set(await proxy.get_all_routes()) == set(specs)
    await asyncio.gather(*(proxy.delete_route(spec) for spec in specs))
    assert await proxy.get_all_routes() == {}


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
        async with within(60):
            # The next one dies when this one is back: two of three are needed.
            while cluster.child_pid(name) in (None, pid) or len(written) < before + 20:
                assert not any(writer.done() for writer in writers), [w.exception() for w in writers if w.done()]
                await asyncio.sleep(0.05)
            await all_ready(cluster)
    stop.set()
    await asyncio.gather(*writers)
    assert set(await proxy.get_all_routes()) == set(written)


async def test_a_leader_that_hangs_delays_a_write_and_fails_none(make_proxy, cluster):
    proxy = make_proxy()
    await proxy.add_route("/before/", TARGET, {})
    leader = await leader_of(cluster)
    pid = cluster.child_pid(leader)
    os.kill(pid, signal.SIGSTOP)
    try:
        await proxy.add_route("/while/", TARGET, {})
        assert set(await proxy.get_all_routes()) == {"/before/", "/while/"}
    finally:
        os.kill(pid, signal.SIGCONT)
    await all_ready(cluster)


async def test_a_proxy_that_hangs_delays_a_write_by_the_wait_and_is_named(make_proxy, cluster, caplog):
    proxy = make_proxy()
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


def test_the_hub_finds_the_class_by_its_short_name():
    from importlib.metadata import entry_points

    [entry] = entry_points(group="jupyterhub.proxies", name="holdfast")
    assert entry.load() is HoldfastProxy


@pytest.mark.parametrize(
    "traits",
    [
        {"endpoints": []},
        {"endpoints": ["no-port"]},
        {"api_url": "https://replica:1"},
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


async def all_ready(cluster):
    """Every replica says that it has caught up."""
    for endpoint in cluster.endpoints:
        replica = RouteClient([endpoint])
        while not (await replica.status()).ready:
            await asyncio.sleep(0.05)
        await replica.close()


async def leader_of(cluster):
    """The leader's name. The first answer of some replica decides."""
    replica = RouteClient(cluster.endpoints)
    async with within(30):
        while not (status := await replica.status()).leader_id:
            await asyncio.sleep(0.05)
    await replica.close()
    return next(member.name for member in status.members if member.node_id == status.leader_id)


class within:
    """`asyncio.timeout`, which Python 3.10 does not have."""

    def __init__(self, seconds):
        self._seconds = seconds

    async def __aenter__(self):
        task = asyncio.current_task()
        self._handle = asyncio.get_running_loop().call_later(self._seconds, task.cancel)

    async def __aexit__(self, *_):
        self._handle.cancel()
