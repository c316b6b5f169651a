"""Writes, gets and lists that outlast an election."""

import asyncio
import logging
import secrets
import time
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

import grpc

from ._proto import cluster_pb2, cluster_pb2_grpc, routes_pb2, routes_pb2_grpc
from .backoff import backoff
from .endpoints import Endpoints
from .errors import BrokenAnswer, Failure, Rejected, Unavailable, trailers_of

# One attempt at one endpoint. Short, so that an endpoint that swallows calls leaves time for the others; long enough
# for a replica to sit out an election on the caller's behalf.
ATTEMPT_SECONDS = 4.0

# Failures that are over sooner are not worth a line in the hub's log: elections are, and so is the start of a process.
WARN_AFTER_SECONDS = 2.0

# Endpoints and leaders' addresses that one event loop keeps connections to.
CHANNELS_MAX = 64

# A page of a list is bounded by the replica; this is the bound on what is believed of it.
ANSWER_BYTES_MAX = 64 * 1024 * 1024

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    # gRPC's own waits before it connects again grow to two minutes; a replica restarts in one second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A machine that vanishes closes no connection.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    # Retries are made here, where sequence numbers are known.
    ("grpc.enable_retries", 0),
    # Connections of other gRPC users in this process are not ours to share, nor are their waits.
    ("grpc.use_local_subchannel_pool", 1),
    # http_proxy in the hub's environment is for the way out, not for the way to its own replicas.
    ("grpc.enable_http_proxy", 0),
]


class RouteClient:
    """The routes of one namespace in one cluster.

    Every call tries all endpoints for up to `timeout` seconds before it raises; the time runs from when the call is let
    through, not while it queues behind `concurrency` others. A retry of a write carries the first attempt's session and
    sequence, so the cluster applies it once.

    Calls raise `Rejected` when the cluster refused them, and `Unavailable` when no replica answered in time. A
    cancelled write may have been applied, or may yet be.

    `hub` is 16 random bytes that name this hub's process. With it, the first write takes the namespace over: whatever
    an earlier hub still has under way is refused from then on, and a later hub's take-over ends this one's writes with
    `Rejected`, reason "fenced".

    Usable from several event loops, each of which has connections of its own.
    """

    def __init__(
        self, endpoints, *, namespace="default", timeout=30.0, concurrency=32, auth_token="", hub=None, log=None
    ):
        self.endpoints = Endpoints(endpoints)
        self.namespace = namespace
        self.timeout = timeout
        self.auth_token = auth_token
        self.log = log or logging.getLogger(__name__)
        self._hub = hub
        self._hub_epoch = None
        self._concurrency = concurrency
        self._loops = WeakKeyDictionary()

    async def put(self, routespec, target, data, wait_for_proxies=0.0):
        """Adds or replaces one route; `data` is the text of a JSON object. Returns the `WriteResponse`.

        Waits up to `wait_for_proxies` seconds for the live proxies to serve the change; the response says which did
        not.
        """
        route = routes_pb2.Route(routespec=routespec, target=target, data=data, namespace=self.namespace)
        return await self._write(f"put {routespec}", routes_pb2.Change(put=route), wait_for_proxies)

    async def delete(self, routespec, wait_for_proxies=0.0):
        """Removes one route, or finds it absent, which is a success too. Returns the `WriteResponse`."""
        return await self._write(f"delete {routespec}", routes_pb2.Change(delete=routespec), wait_for_proxies)

    async def get(self, routespec, timeout=None):
        """The `Route` as of now, or None if there is none in this namespace. Linearizable."""
        request = routes_pb2.GetRequest(routespec=routespec)

        async def attempt(channel, seconds, _left):
            return await self._unary(routes_pb2_grpc.RoutesStub(channel).Get, request, seconds)

        async with self._here().reads:
            response = await self._retry(f"get {routespec}", attempt, timeout=timeout)
        route = response.route if response.HasField("route") else None
        return route if route is not None and route.namespace == self.namespace else None

    async def list(self, prefix=""):
        """Every `Route` of this namespace as of one revision. Linearizable, and whole or an error."""
        request = routes_pb2.ListRequest(namespace=self.namespace, prefix=prefix)

        async def attempt(channel, seconds, left):
            # The list may take all the time there is, but each page has to come within one attempt's.
            call = routes_pb2_grpc.RoutesStub(channel).List(request, timeout=left, metadata=self._metadata())
            try:
                routes = await _read_pages(call, seconds)
                self._heard(await call.trailing_metadata())
                return routes
            finally:
                call.cancel()

        async with self._here().reads:
            return await self._retry("list routes", attempt)

    async def status(self, timeout=None):
        """What some replica knows of itself and of the cluster, as a `StatusResponse`."""

        async def attempt(channel, seconds, _left):
            status = cluster_pb2_grpc.ClusterStub(channel).Status
            return await self._unary(status, cluster_pb2.StatusRequest(), seconds)

        return await self._retry("status", attempt, timeout=timeout)

    async def close(self):
        """Closes this event loop's connections. Calls that are under way are cancelled; later calls connect again."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()

    async def _write(self, what, change, wait_for_proxies):
        request = routes_pb2.WriteRequest(
            changes=[change],
            namespace=self.namespace,
            wait_for_proxies_ms=round(wait_for_proxies * 1000),
        )
        async with self._here().session() as session:

            async def attempt(channel, seconds, _left):
                if self._hub is not None and self._hub_epoch is None:
                    await self._open_hub(channel, seconds)
                # The same sequence again: an earlier copy may be under way still.
                request.retry = request.sequence == session.sequence
                request.session, request.sequence = session.id, session.sequence
                request.hub_epoch = self._hub_epoch or 0
                write = routes_pb2_grpc.RoutesStub(channel).Write
                return await self._unary(write, request, seconds + wait_for_proxies)

            def repair(failure):
                if failure.session_lost:
                    session.renew()
                    # Another session at the same number is no retry.
                    request.sequence = 0
                elif failure.hub_unknown:
                    self._hub_epoch = None
                    session.renew()
                    request.sequence = 0
                return failure.session_lost or failure.hub_unknown

            return await self._retry(what, attempt, repair=repair)

    async def _open_hub(self, channel, seconds):
        request = routes_pb2.OpenHubRequest(namespace=self.namespace, hub=self._hub)
        opened = await self._unary(routes_pb2_grpc.RoutesStub(channel).OpenHub, request, seconds)
        if self._hub_epoch is None:
            self.log.info("this hub writes the routes of namespace %s from now on", self.namespace)
        self._hub_epoch = opened.hub_epoch

    async def _retry(self, what, attempt, *, timeout=None, repair=lambda failure: False):
        """Tries `attempt(channel, seconds, seconds_left_in_all)` at one endpoint after the other until it succeeds.

        `repair` may remove the cause of a failure; then the next try follows at once, but not for ever.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        waits = backoff()
        tried, failures, repairs = set(), {}, 0
        warned = False
        while (left := deadline - time.monotonic()) > 0:
            address = self.endpoints.next(tried)
            if address is None:
                if not warned and timeout - left >= WARN_AFTER_SECONDS:
                    warned = True
                    self.log.warning("%s: %s; retrying for %.0f s", what, _summary(failures), left)
                await asyncio.sleep(min(next(waits), left))
                tried.clear()
                continue
            try:
                answer = await attempt(self._here().channel(address), min(ATTEMPT_SECONDS, left), left)
            except Failure.EXCEPTIONS as error:
                failure = Failure.of(error)
            else:
                self.endpoints.answered(address)
                return answer

            self.log.debug("%s: %s: %s", what, address, failure)
            failures[address] = failure
            if repair(failure) and repairs < 2:
                repairs += 1
                continue
            if not failure.transient and not failure.session_lost and not failure.hub_unknown:
                self.endpoints.answered(address)
                raise Rejected(what, failure)
            tried.add(address)
            self.endpoints.failed(address)
            if failure.leader:
                self.endpoints.heard_of_leader(failure.leader)
            if failure.overloaded:
                await asyncio.sleep(min(next(waits), max(0.0, deadline - time.monotonic())))
        raise Unavailable(what, timeout, failures)

    async def _unary(self, method, request, seconds):
        call = method(request, timeout=seconds, metadata=self._metadata())
        answer = await call
        self._heard(await call.trailing_metadata())
        return answer

    def _heard(self, trailing_metadata):
        leader = trailers_of(trailing_metadata).get("holdfast-leader")
        if leader:
            self.endpoints.heard_of_leader(leader)

    def _metadata(self):
        return (("authorization", f"Bearer {self.auth_token}"),) if self.auth_token else ()

    def _here(self):
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = _LoopState(self._concurrency)
        return here


class _LoopState:
    """What belongs to one event loop: its channels and its sessions."""

    def __init__(self, concurrency):
        self.reads = asyncio.Semaphore(concurrency)
        self._writes = asyncio.Semaphore(concurrency)
        self._sessions = []
        self._channels = {}
        self._closing = set()

    def channel(self, address):
        channel = self._channels.get(address)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                oldest = self._channels.pop(next(iter(self._channels)))
                closing = asyncio.ensure_future(oldest.close(grace=2 * ATTEMPT_SECONDS))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return channel

    @asynccontextmanager
    async def session(self):
        """A session with its next sequence, for one write: the cluster allows one write at a time in each."""
        async with self._writes:
            # The last one put back is taken first, so that a quiet hub uses one session and not all of them.
            session = self._sessions.pop() if self._sessions else _Session()
            session.sequence += 1
            yield session
            # Not reached after a failure: perhaps written, perhaps later, perhaps never, so the session's next sequence
            # is not known any more and nobody uses it again.
            self._sessions.append(session)

    async def close(self):
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()), *self._closing)


class _Session:
    """A name for a row of writes, so that the cluster knows a repeated one."""

    def __init__(self):
        self.id = secrets.token_bytes(16)
        self.sequence = 0

    def renew(self):
        """Another session, at its first write."""
        self.id = secrets.token_bytes(16)
        self.sequence = 1


async def _read_pages(call, seconds):
    """All routes of a `List` stream.

    Raises `BrokenAnswer` unless the pages are of one revision and hold as many routes as they say: the hub deletes what
    it does not recognise and adds what it does not see, so half a list is worse than none.
    """
    routes, position, total = [], None, 0
    while (page := await asyncio.wait_for(call.read(), seconds)) is not grpc.aio.EOF:
        position = position or (page.epoch, page.revision)
        if (page.epoch, page.revision) != position:
            raise BrokenAnswer(f"a list at (epoch, revision) {position} went on at {(page.epoch, page.revision)}")
        total = max(total, page.total)
        routes.extend(page.routes)
    if position is None:
        raise BrokenAnswer("a list ended before its first page")
    if len(routes) != total:
        raise BrokenAnswer(f"a list of {total} routes ended after {len(routes)}")
    return routes


def _summary(failures):
    return "; ".join(f"{address}: {failure}" for address, failure in failures.items())
