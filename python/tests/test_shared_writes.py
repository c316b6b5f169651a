"""Changes of several callers go together, and one caller's trouble stays its own: real gRPC, real sockets."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from scripted_replica import FENCED, Refusal, ScriptedReplica
from waiting import eventually

from jupyterhub_holdfast import Rejected, RouteClient
from jupyterhub_holdfast.changes import Delete, Put
from jupyterhub_holdfast.shared_writes import UNDER_WAY_MAX, SharedWrites


@pytest.fixture
async def start():
    """Starts a scripted replica, and writers that share a client of it."""
    async with AsyncExitStack() as stack:

        async def start(script=(), **options):
            replica = await stack.enter_async_context(ScriptedReplica(script, **options))
            client = RouteClient([replica.address], timeout=10.0)
            stack.push_async_callback(client.close)
            return SharedWrites(client), replica

        yield start


def put(name):
    return Put(f"/user/{name}/", "http://10.0.0.1:8888")


def written(replica):
    """The routespecs of each batch that the replica was asked for."""
    return [[change.put.routespec or change.delete for change in call.changes] for call in replica.calls]


async def all_of(writes, changes):
    return await asyncio.gather(*(writes.write(change, 1.0) for change in changes), return_exceptions=True)


async def test_what_is_asked_for_at_once_is_one_batch(start):
    writes, replica = await start()
    changes = [put("a"), Delete("/user/b/"), put("c")]
    answers = await all_of(writes, changes)
    assert [answer.revision for answer in answers] == [1, 1, 1]
    assert written(replica) == [["/user/a/", "/user/b/", "/user/c/"]]
    assert (replica.calls[0].wait_for_proxies_ms, replica.calls[0].deletes_expected) == (1000, 1)


async def test_what_is_asked_for_while_batches_are_under_way_goes_together(start):
    writes, replica = await start()
    replica.gate.clear()
    tasks = []
    for i in range(UNDER_WAY_MAX):
        tasks.append(asyncio.ensure_future(writes.write(put(i), 0)))
        await eventually(lambda i=i: replica.under_way == i + 1, "another batch under way")
    for name in "xyz":
        tasks.append(asyncio.ensure_future(writes.write(put(name), 0)))
        await asyncio.sleep(0)
    replica.gate.set()
    await asyncio.gather(*tasks)
    assert replica.most_under_way == UNDER_WAY_MAX
    assert written(replica)[UNDER_WAY_MAX:] == [["/user/x/", "/user/y/", "/user/z/"]]


async def test_a_route_is_changed_once_in_a_batch_and_in_the_order_asked_for(start):
    writes, replica = await start()
    await all_of(writes, [put("a"), put("b"), Delete("/user/a/"), put("c")])
    assert written(replica) == [["/user/a/", "/user/b/"], ["/user/a/", "/user/c/"]]


@pytest.mark.parametrize("reason", ["invalid", "namespace", "precondition"])
async def test_a_refused_change_fails_its_own_caller_alone(start, reason):
    def judge(request):
        if any(change.put.routespec == "/user/3/" for change in request.changes):
            return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "not this one", reason)
        return None

    writes, _ = await start(judge=judge)
    answers = await all_of(writes, [put(i) for i in range(8)])
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Rejected)] == [3]
    assert "not this one" in str(answers[3])


async def test_callers_who_go_on_as_soon_as_they_are_answered_are_all_answered(start):
    writes, replica = await start()

    async def one_after_the_other(caller):
        for i in range(50):
            await writes.write(put(f"{caller}-{i}"), 0)

    await asyncio.wait_for(asyncio.gather(*(one_after_the_other(caller) for caller in range(10))), 30)
    assert sum(len(batch) for batch in written(replica)) == 500
    # They were answered together, so they ask together.
    assert len(replica.calls) < 100


async def test_a_refusal_that_is_about_all_is_told_to_all(start):
    writes, _ = await start([FENCED])
    answers = await all_of(writes, [put("a"), put("b")])
    assert [answer.reason for answer in answers] == ["fenced", "fenced"]
    # The next one finds nothing left of it.
    assert (await writes.write(put("a"), 0)).revision == 1


async def test_a_cancelled_call_takes_nobody_along(start):
    writes, replica = await start()
    replica.gate.clear()
    first, second = (asyncio.ensure_future(writes.write(put(name), 0)) for name in "ab")
    await eventually(lambda: replica.under_way == 1, "the batch is under way")
    first.cancel()
    replica.gate.set()
    assert (await second).revision == 1
    assert first.cancelled()
    assert written(replica) == [["/user/a/", "/user/b/"]]


async def test_a_call_that_is_cancelled_before_its_batch_begins_writes_nothing(start):
    writes, replica = await start()
    first, second = (asyncio.ensure_future(writes.write(put(name), 0)) for name in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).revision == 1
    assert written(replica) == [["/user/b/"]]


def test_each_event_loop_has_writes_of_its_own():
    async def main():
        async with ScriptedReplica() as replica:
            writes._client.move([replica.address])
            await all_of(writes, [put("a"), put("b")])
            await writes._client.close()
            return written(replica)

    writes = SharedWrites(RouteClient(["127.0.0.1:1"]))
    assert asyncio.run(main()) == asyncio.run(main()) == [["/user/a/", "/user/b/"]]
