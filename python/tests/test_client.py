"""RouteClient against replicas that fail in chosen ways: real gRPC, real sockets, real time."""

import asyncio
import json
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from ports import free_port
from scripted_replica import (
    FENCED,
    HUB_UNKNOWN,
    NO_LEADER,
    NO_SERVICE,
    OVERLOADED,
    SEQUENCE,
    SESSION_EXPIRED,
    SILENCE,
    UNKNOWN,
    Refusal,
    ScriptedReplica,
)

from jupyterhub_holdfast import Credentials, Rejected, RouteClient, Unavailable, changes, client
from jupyterhub_holdfast._proto import routes_pb2
from jupyterhub_holdfast.changes import Delete, Put


@pytest.fixture
async def start():
    """Starts scripted replicas, and a client that knows them in this order."""
    async with AsyncExitStack() as stack:

        async def start(*scripts, leader=None, **options):
            replicas = [await stack.enter_async_context(ScriptedReplica(script, leader)) for script in scripts]
            options.setdefault("timeout", 10.0)
            routes = RouteClient([replica.address for replica in replicas], **options)
            stack.push_async_callback(routes.close)
            return (routes, *replicas)

        yield start


def put(routes, spec="/user/alice/"):
    return routes.put(spec, "http://10.0.0.1:8888", "{}")


def identity(request):
    return request.session, request.sequence


async def test_writes_of_one_session_count_up_one_at_a_time(start):
    routes, replica = await start([])
    for _ in range(3):
        await put(routes)
    sessions, sequences = zip(*map(identity, replica.calls), strict=True)
    assert len(set(sessions)) == 1
    assert len(sessions[0]) == 16
    assert sequences == (1, 2, 3)


async def test_concurrent_writes_use_a_session_each_and_no_more_than_allowed(start):
    routes, replica = await start([], concurrency=4)
    replica.gate.clear()
    writes = [asyncio.ensure_future(put(routes, f"/user/u{i}/")) for i in range(12)]
    await until(lambda: replica.under_way == 4)
    assert len({request.session for request in replica.calls}) == 4
    replica.gate.set()
    await asyncio.gather(*writes)
    assert replica.most_under_way == 4
    assert len(set(map(identity, replica.calls))) == 12
    # Which session takes which write is a matter of who finishes first; that none skips or repeats a number is not.
    for session in {request.session for request in replica.calls}:
        sequences = [request.sequence for request in replica.calls if request.session == session]
        assert sequences == list(range(1, len(sequences) + 1))


async def test_a_hub_opens_its_namespace_once_and_its_writes_carry_the_epoch(start):
    routes, replica = await start([routes_pb2.OpenHubResponse(hub_epoch=5)], hub=b"h" * 16)
    await put(routes)
    await put(routes, "/user/bob/")
    opened, *writes = replica.calls
    assert (opened.hub, opened.namespace) == (b"h" * 16, "default")
    assert [write.hub_epoch for write in writes] == [5, 5]
    assert not any(write.retry for write in writes)


async def test_a_hub_may_open_its_namespace_without_a_write(start):
    routes, replica = await start([NO_LEADER, routes_pb2.OpenHubResponse(hub_epoch=5)], hub=b"h" * 16)
    await routes.open()
    await routes.open()
    await put(routes)
    assert [type(call).__name__ for call in replica.calls] == ["OpenHubRequest", "OpenHubRequest", "WriteRequest"]
    assert replica.calls[2].hub_epoch == 5


async def test_who_is_no_hub_opens_nothing(start):
    routes, replica = await start([])
    await routes.open()
    assert not replica.calls


async def test_a_fenced_hub_does_not_try_again(start):
    routes, replica = await start([routes_pb2.OpenHubResponse(hub_epoch=5), FENCED], hub=b"h" * 16)
    with pytest.raises(Rejected) as raised:
        await put(routes)
    assert raised.value.reason == "fenced"
    assert len(replica.calls) == 2


async def test_a_hub_that_a_restored_cluster_does_not_know_opens_again(start):
    first, second = routes_pb2.OpenHubResponse(hub_epoch=5), routes_pb2.OpenHubResponse(hub_epoch=2)
    routes, replica = await start([first, HUB_UNKNOWN, second], hub=b"h" * 16)
    await put(routes)
    _, refused, _, written = replica.calls
    assert (refused.hub_epoch, written.hub_epoch) == (5, 2)
    assert identity(refused) != identity(written)


async def test_only_a_repeated_write_says_that_it_is_one(start):
    routes, replica = await start([UNKNOWN, SESSION_EXPIRED])
    await put(routes)
    await put(routes, "/user/bob/")
    assert [call.retry for call in replica.calls] == [False, True, False, False]


@pytest.mark.parametrize(
    "failure",
    [
        NO_LEADER,
        UNKNOWN,
        OVERLOADED,
        Refusal(grpc.StatusCode.DEADLINE_EXCEEDED),
        Refusal(grpc.StatusCode.CANCELLED),
        Refusal(grpc.StatusCode.UNKNOWN, "Stream removed"),
        Refusal(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        # An endpoint that is something else, or something in between. What it says is not the cluster's word.
        NO_SERVICE,
        Refusal(grpc.StatusCode.UNAUTHENTICATED, "who are you"),
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad header"),
    ],
    ids=lambda failure: failure.code.name,
)
async def test_a_retry_repeats_session_and_sequence_at_the_next_replica(start, failure):
    routes, first, second = await start([failure], [failure])
    await put(routes)
    assert len(first.calls + second.calls) == 3
    assert len(set(map(identity, first.calls + second.calls))) == 1


async def test_the_write_after_a_retried_one_goes_on_in_the_same_session(start):
    routes, replica = await start([NO_LEADER])
    await put(routes)
    await put(routes)
    assert [r.sequence for r in replica.calls] == [1, 1, 2]
    assert len({r.session for r in replica.calls}) == 1


@pytest.mark.parametrize("lost", [SESSION_EXPIRED, SEQUENCE], ids=["session-expired", "sequence"])
async def test_a_lost_session_is_replaced_and_the_write_sent_again(start, lost):
    routes, replica = await start([UNKNOWN, lost])
    await put(routes)
    first, retried, again = map(identity, replica.calls)
    assert first == retried
    assert again[0] != first[0]
    assert again[1] == 1


async def test_a_replica_that_never_knows_a_session_does_not_make_a_busy_loop(start):
    routes, replica = await start([SESSION_EXPIRED] * 1000, timeout=1.0)
    with pytest.raises(Unavailable, match="no such session"):
        await put(routes)
    assert len(replica.calls) < 20


async def test_a_refused_write_is_raised_at_once_with_the_servers_words(start):
    routes, first, second = await start(
        [Refusal(grpc.StatusCode.INVALID_ARGUMENT, "target: 'ftp://x' is not an http(s) or unix URL", "invalid")], []
    )
    with pytest.raises(Rejected, match=r"put /user/alice/: target: 'ftp://x' is not") as caught:
        await put(routes)
    assert caught.value.reason == "invalid"
    assert len(first.calls) == 1
    assert not second.calls


async def test_a_failed_precondition_other_than_a_lost_session_is_raised(start):
    routes, replica = await start([Refusal(grpc.StatusCode.FAILED_PRECONDITION, "belongs to 'ops'", "namespace")])
    with pytest.raises(Rejected) as caught:
        await put(routes)
    assert caught.value.reason == "namespace"
    assert len(replica.calls) == 1


async def test_a_session_is_not_used_again_after_a_write_that_failed(start):
    routes, replica = await start([Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad", "invalid")])
    with pytest.raises(Rejected):
        await put(routes)
    await put(routes)
    failed, next_one = map(identity, replica.calls)
    assert failed[0] != next_one[0]
    assert next_one[1] == 1


@pytest.mark.parametrize("reason", ["namespace", "precondition"])
async def test_a_session_goes_on_after_a_refusal_that_became_a_part_of_it(start, reason):
    routes, replica = await start([Refusal(grpc.StatusCode.FAILED_PRECONDITION, "no", reason)])
    with pytest.raises(Rejected):
        await put(routes)
    await put(routes)
    refused, next_one = map(identity, replica.calls)
    assert refused[0] == next_one[0]
    assert (refused[1], next_one[1]) == (1, 2)


async def test_a_session_is_not_used_again_after_a_cancelled_write(start):
    routes, replica = await start([SILENCE])
    write = asyncio.ensure_future(put(routes))
    await until(lambda: replica.calls)
    write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    await put(routes)
    assert replica.calls[0].session != replica.calls[1].session


async def test_a_replica_that_swallows_calls_costs_one_attempt(start, monkeypatch):
    monkeypatch.setattr(client, "ATTEMPT_SECONDS", 0.5)
    routes, silent, healthy = await start([SILENCE], [])
    began = time.monotonic()
    await put(routes)
    assert 0.4 < time.monotonic() - began < 2.0
    assert identity(silent.calls[0]) == identity(healthy.calls[0])
    # And it is asked last from now on.
    await put(routes)
    assert len(silent.calls) == 1


async def test_endpoints_where_nobody_listens_cost_next_to_nothing(start):
    routes, replica = await start([])
    routes.move([f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", replica.address])
    began = time.monotonic()
    await put(routes)
    assert time.monotonic() - began < 1.0


async def test_an_outage_is_sat_out_and_the_error_names_every_endpoint(start):
    dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    routes = RouteClient(dead, timeout=1.5)
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await put(routes)
    assert 1.4 < time.monotonic() - began < 3.0
    assert isinstance(caught.value, TimeoutError)
    for address in dead:
        assert address in str(caught.value)
    await routes.close()


async def test_an_error_tells_what_was_heard_and_not_that_the_time_was_over(start):
    routes, replica = await start([NO_LEADER, SILENCE], timeout=1.0)
    with pytest.raises(Unavailable, match="no leader"):
        await put(routes)
    assert len(replica.calls) == 2


async def test_a_cluster_that_comes_back_within_the_time_is_found(start):
    port = free_port()
    routes = RouteClient([f"127.0.0.1:{port}"], timeout=20.0)
    write = asyncio.ensure_future(put(routes))
    await asyncio.wait([write], timeout=2.0)
    assert not write.done()

    class Late(ScriptedReplica):
        async def __aenter__(self):
            self._server = grpc.aio.server()
            client.routes_pb2_grpc.add_RoutesServicer_to_server(self, self._server)
            self._server.add_insecure_port(f"127.0.0.1:{port}")
            await self._server.start()
            return self

    async with Late() as late:
        began = time.monotonic()
        await write
        # gRPC's own waits between connections would grow to two minutes.
        assert time.monotonic() - began < 5.0
        assert len(late.calls) == 1
        await routes.close()


async def test_time_in_the_queue_does_not_count(start):
    routes, replica = await start([SILENCE, NO_LEADER], concurrency=1, timeout=1.0)
    first = asyncio.ensure_future(put(routes, "/user/a/"))
    await until(lambda: replica.under_way == 1)
    # It waits for the whole of its own timeout before its turn comes, and then needs a retry.
    second = asyncio.ensure_future(put(routes, "/user/b/"))
    with pytest.raises(Unavailable):
        await first
    await second
    assert len(replica.calls) == 3


async def test_the_leader_is_asked_first_once_it_is_known(start):
    routes, follower, leader = await start([], [])
    follower.leader = leader.leader = leader.address
    for _ in range(3):
        await put(routes)
    assert len(follower.calls) == 1
    assert len(leader.calls) == 2


async def test_a_hint_on_an_error_is_followed_before_other_endpoints(start):
    routes, first, other, leader = await start([NO_LEADER], [], [])
    first.script = [Refusal(grpc.StatusCode.UNAVAILABLE, "not me", "unknown", leader=leader.address)]
    await put(routes)
    assert not other.calls
    assert identity(first.calls[0]) == identity(leader.calls[0])


async def test_replicas_that_point_at_each_other_do_not_make_a_busy_loop(start):
    routes, a, b = await start([], [], timeout=1.0)
    a.script = [Refusal(grpc.StatusCode.UNAVAILABLE, "not me", "no-leader", leader=b.address)] * 1000
    b.script = [Refusal(grpc.StatusCode.UNAVAILABLE, "not me", "no-leader", leader=a.address)] * 1000
    with pytest.raises(Unavailable):
        await put(routes)
    assert len(a.calls) + len(b.calls) < 40


async def test_a_leader_address_that_cannot_be_reached_is_tried_once(start):
    unreachable = f"127.0.0.1:{free_port()}"
    routes, replica = await start([], leader=unreachable)
    for _ in range(3):
        await put(routes)
    assert len(replica.calls) == 3
    assert routes.endpoints.next(set()) == replica.address


async def test_a_leader_that_is_no_configured_endpoint_is_used(start):
    routes, replica, elsewhere = await start([], [])
    routes.move([replica.address])
    replica.leader = elsewhere.address
    await put(routes)
    await put(routes)
    assert len(elsewhere.calls) == 1


def written_specs(replica):
    """What the applied writes changed, in their order."""
    return [
        [change.put.routespec or change.delete for change in request.changes]
        for request in replica.calls
        if isinstance(request, routes_pb2.WriteRequest) and replica.judge(request) is None
    ]


def refuse(*routespecs, reason="namespace"):
    """Refuses every batch with one of these, as the cluster does."""

    def judge(request):
        for change in getattr(request, "changes", ()):
            spec = change.put.routespec or change.delete
            if spec in routespecs:
                return Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"not {spec}", reason)
        return None

    return judge


async def test_changes_are_written_as_one_batch(start):
    routes, replica = await start([])
    written = await routes.write_each([Put("/a/", "http://x"), Delete("/b/", 7), Delete("/c/")], 0.5)
    [request] = replica.calls
    assert [change.WhichOneof("change") for change in request.changes] == ["put", "delete", "delete"]
    [unchanged] = request.preconditions
    assert (unchanged.route_revision.routespec, unchanged.route_revision.mod_revision) == ("/b/", 7)
    assert request.wait_for_proxies_ms == 500
    assert (len(written.applied), written.refused) == (1, [])


async def test_deletes_are_said_to_be_meant_or_not(start):
    routes, replica = await start([])
    await routes.delete("/a/")
    await routes.write([Put("/b/", "http://x"), Delete("/c/"), Delete("/d/")], deletes_meant=True)
    await routes.write_each([Delete("/e/")])
    await routes.write_each([Delete("/f/"), Delete("/g/")], deletes_meant=True)
    assert [request.deletes_expected for request in replica.calls] == [1, 2, 0, 2]


async def test_of_several_batches_each_says_how_many_deletes_follow(start, monkeypatch):
    monkeypatch.setattr(changes, "CHANGES_MAX", 4)
    routes, replica = await start([])
    replica.judge = refuse("/u5/", reason="precondition")
    await routes.write_each([Put("/a/", "http://x"), *(Delete(f"/u{n}/") for n in range(9))])
    said = [(len(request.changes), request.deletes_to_come) for request in replica.calls]
    # The second is refused for one of its four, and made by halves.
    assert said == [(4, 6), (4, 2), (2, 4), (2, 2), (1, 3), (1, 2), (2, 0)]


async def test_no_changes_are_no_write(start):
    routes, replica = await start([])
    written = await routes.write_each([])
    assert (written.applied, written.refused, replica.calls) == ([], [], [])


async def test_more_changes_than_one_batch_takes_are_several_in_order(start, monkeypatch):
    monkeypatch.setattr(changes, "CHANGES_MAX", 10)
    routes, replica = await start([])
    specs = [f"/u{n}/" for n in range(25)]
    await routes.write_each([Put(spec, "http://x") for spec in specs])
    assert written_specs(replica) == [specs[:10], specs[10:20], specs[20:]]


@pytest.mark.parametrize("reason", ["invalid", "namespace", "precondition"])
async def test_a_refused_change_keeps_no_other_from_being_made(start, reason):
    routes, replica = await start([])
    replica.judge = refuse("/u13/", "/u77/", reason=reason)
    specs = [f"/u{n}/" for n in range(100)]
    written = await routes.write_each([Put(spec, "http://x") for spec in specs])
    assert [(change.routespec, refusal.reason) for change, refusal in written.refused] == [
        ("/u13/", reason),
        ("/u77/", reason),
    ]
    made = [spec for batch in written_specs(replica) for spec in batch]
    assert made == [spec for spec in specs if spec not in ("/u13/", "/u77/")]
    assert len(written.applied) == len(written_specs(replica))
    # Two of a hundred are found by halves, not one by one.
    assert len(replica.calls) < 32


async def test_a_refusal_that_is_about_all_changes_is_raised_at_once(start):
    routes, replica = await start([routes_pb2.OpenHubResponse(hub_epoch=5), FENCED], hub=b"h" * 16)
    with pytest.raises(Rejected) as caught:
        await routes.write_each([Put(f"/u{n}/", "http://x") for n in range(10)])
    assert caught.value.reason == "fenced"
    assert len(replica.calls) == 2


async def test_an_outage_in_the_middle_of_several_batches_is_raised(start, monkeypatch):
    monkeypatch.setattr(changes, "CHANGES_MAX", 1)
    routes, replica = await start([routes_pb2.WriteResponse(revision=1)] + [NO_LEADER] * 1000, timeout=1.0)
    with pytest.raises(Unavailable, match="put /b/"):
        await routes.write_each([Put("/a/", "http://x"), Put("/b/", "http://x"), Put("/c/", "http://x")])
    assert {spec for [spec] in written_specs(replica)} == {"/a/", "/b/"}


async def test_another_cluster_is_told_of_the_hub_anew(start):
    """There the number that the old one gave is somebody else's, and fenced."""
    old, new = routes_pb2.OpenHubResponse(hub_epoch=5), routes_pb2.OpenHubResponse(hub_epoch=9)
    routes, here, there = await start([old], [new], hub=b"h" * 16)
    await put(routes)
    routes.move([there.address])
    await put(routes)
    assert [type(call).__name__ for call in there.calls] == ["OpenHubRequest", "WriteRequest"]
    assert there.calls[1].hub_epoch == 9
    assert len(here.calls) == 2


async def test_an_answer_of_the_old_cluster_that_comes_late_is_not_used_in_the_new_one(start):
    old, new = routes_pb2.OpenHubResponse(hub_epoch=5), routes_pb2.OpenHubResponse(hub_epoch=9)
    routes, here, there = await start([old], [new], hub=b"h" * 16)
    here.gate.clear()
    late = asyncio.ensure_future(put(routes))
    await until(lambda: here.under_way == 1)
    routes.move([there.address])
    await put(routes)
    here.gate.set()
    await late
    await put(routes)
    assert [call.hub_epoch for call in there.calls[1:]] == [9, 9]
    assert here.calls[-1].hub_epoch == 5


async def test_a_call_that_is_under_way_moves_along(start):
    routes, replica = await start([], timeout=20.0)
    routes.move([f"127.0.0.1:{free_port()}"])
    write = asyncio.ensure_future(put(routes))
    await asyncio.wait([write], timeout=0.5)
    assert not write.done()
    routes.move([replica.address])
    await asyncio.wait_for(write, 5)


async def test_an_absent_route_is_none(start):
    routes, _ = await start([])
    assert await routes.get("/user/nobody/") is None


async def test_a_route_of_another_namespace_is_none(start):
    other = routes_pb2.Route(routespec="/ops/", target="http://x", namespace="ops")
    routes, _ = await start([routes_pb2.GetResponse(route=other)])
    assert await routes.get("/ops/") is None


def page(*specs, revision=5, total=None):
    routes = [routes_pb2.Route(routespec=s, target="http://x", data="{}", namespace="default") for s in specs]
    return routes_pb2.ListResponse(revision=revision, epoch=1, routes=routes, total=total or 0)


async def test_a_list_is_all_its_pages(start):
    routes, replica = await start([[page("/a/", "/b/", total=3), page("/c/", total=3)]], namespace="hub-a")
    assert [route.routespec for route in await routes.list()] == ["/a/", "/b/", "/c/"]
    assert replica.calls[0].namespace == "hub-a"


async def test_an_empty_table_is_an_empty_list(start):
    routes, _ = await start([[page()]])
    assert await routes.list() == []


async def test_a_list_as_json_is_all_its_pages(start):
    pages = [routes_pb2.ListResponse(revision=1, total=3, json=text) for text in ('[["/a/"], ["/b/"]]', '[["/c/"]]')]
    routes, replica = await start([pages], namespace="hub-a")
    assert await routes.list_json(json.loads) == [[["/a/"], ["/b/"]], [["/c/"]]]
    assert (replica.calls[0].namespace, replica.calls[0].as_json) == ("hub-a", True)


async def test_a_replica_that_knows_no_json_lists_nothing_rather_than_an_empty_table(start):
    routes, _, second = await start([[page("/a/", total=1)]], [[routes_pb2.ListResponse(total=1, json='[["/a/"]]')]])
    assert await routes.list_json(json.loads) == [[["/a/"]]]
    assert len(second.calls) == 1


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [page("/a/", total=2)],
        [page("/a/", total=2), page("/b/", total=2, revision=6)],
        [page("/a/", total=2), Refusal(grpc.StatusCode.UNAVAILABLE, "going down")],
    ],
    ids=["no page", "a page short", "two revisions", "breaks off"],
)
async def test_a_list_that_is_not_whole_is_asked_for_again(start, broken):
    routes, first, second = await start([broken], [[page("/a/", "/b/", total=2)]])
    assert len(await routes.list()) == 2
    assert len(first.calls) == len(second.calls) == 1


async def test_a_list_that_stops_in_the_middle_costs_one_attempt(start, monkeypatch):
    monkeypatch.setattr(client, "ATTEMPT_SECONDS", 0.5)
    routes, _, _ = await start([[page("/a/", total=2), SILENCE]], [[page("/a/", "/b/", total=2)]])
    began = time.monotonic()
    assert len(await routes.list()) == 2
    assert time.monotonic() - began < 3.0


async def test_a_list_that_never_comes_whole_is_an_error_and_never_empty(start):
    routes, _ = await start([[]] * 1000, timeout=1.0)
    with pytest.raises(Unavailable, match="ended before its first page"):
        await routes.list()


async def test_the_token_goes_with_every_call(start):
    routes, replica = await start([], credentials=Credentials(auth_token="secret"))
    await put(routes)
    await routes.get("/")
    await routes.list()
    assert [metadata["authorization"] for metadata in replica.metadata] == ["Bearer secret"] * 3


async def test_an_http_proxy_in_the_environment_is_not_asked(start, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    routes, replica = await start([])
    await put(routes)
    assert len(replica.calls) == 1


def test_one_client_serves_several_event_loops():
    routes = None

    async def use():
        nonlocal routes
        async with ScriptedReplica() as replica:
            routes = routes or RouteClient([replica.address], timeout=5.0)
            routes.move([replica.address])
            await put(routes)
            await routes.close()
            return len(replica.calls)

    assert [asyncio.run(use()) for _ in range(3)] == [1, 1, 1]


async def until(condition):
    async def poll():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), 10)
