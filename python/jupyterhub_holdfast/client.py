"""Writes, gets and lists that outlast an election."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import grpc

from ._proto import cluster_pb2, cluster_pb2_grpc, routes_pb2, routes_pb2_grpc
from .backoff import backoff
from .changes import Change, Delete, Put, batches, deletes_in
from .credentials import Credentials
from .endpoints import Endpoints
from .errors import BrokenAnswer, Failure, LockedOut, NoChannel, Rejected, Unavailable, trailers_of

# One attempt at one endpoint. Short, so that an endpoint that swallows calls leaves time for the others; long enough
# for a replica to sit out an election on the caller's behalf.
ATTEMPT_SECONDS = 4.0

# What each further change of a batch may add to that.
CHANGE_SECONDS = 0.001

# How long a connection that is no more wanted may go on with the calls on it: longer than any of them.
RETIRE_SECONDS = 120.0

# Failures that are over sooner are not worth a line in the hub's log: elections are, and so is the start of a process.
WARN_AFTER_SECONDS = 2.0

# Endpoints and leaders' addresses that one event loop keeps connections to.
CHANNELS_MAX = 64

# A page of a list is bounded by the replica; this is the bound on what is believed of it.
ANSWER_BYTES_MAX = 64 * 1024 * 1024

# Refusals that are about one change of a batch and say nothing about the others.
ABOUT_ONE_CHANGE = frozenset({"invalid", "namespace", "precondition"})

# Refusals that have become a part of their session, as an applied write does.
DECIDED = frozenset({"namespace", "precondition"})

CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
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

T = TypeVar("T")
S = TypeVar("S", bound=Sized)

# Called with a channel, the seconds that this attempt may take, and those that are left for all attempts.
Attempt = Callable[[grpc.aio.Channel, float, float], Awaitable[T]]


@dataclass
class Written:
    """What became of changes that were written one by one or in batches."""

    # The batches that were applied, each with its answer.
    applied: list[tuple[list[Change], routes_pb2.WriteResponse]] = field(default_factory=list)
    # The changes that were not made, each with the reason.
    refused: list[tuple[Change, Rejected]] = field(default_factory=list)


class RouteClient:
    """The routes of one namespace in one cluster.

    Every call tries all endpoints for up to `timeout` seconds before it raises; the time runs from when the call is let
    through, not while it queues behind `concurrency` others. A retry of a write carries the first attempt's session and
    sequence, so the cluster applies it once.

    Calls raise `Rejected` when the cluster refused them, and `Unavailable` when no replica answered in time; `LockedOut` when
    no replica has ever taken the credentials, and none does. A cancelled write may have been applied, or may yet be.

    `hub` is 16 random bytes that name this hub's process. With it, `open` or the first write takes the namespace over:
    whatever an earlier hub still has under way is refused from then on, and a later hub's take-over ends this one's
    writes with `Rejected`, reason "fenced".

    Usable from several event loops, each of which has connections of its own.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        *,
        namespace: str = "default",
        timeout: float = 30.0,
        concurrency: int = 32,
        credentials: Credentials | None = None,
        hub: bytes | None = None,
        log: logging.Logger | logging.LoggerAdapter[Any] | None = None,
    ):
        self.endpoints = Endpoints(endpoints)
        self.namespace = namespace
        self.timeout = timeout
        self.credentials = credentials or Credentials()
        self.log = log or logging.getLogger(__name__)
        # Whether some replica has ever taken a call of ours, with these credentials.
        self._admitted = False
        self._hub = hub
        self._hub_epoch: int | None = None
        self._concurrency = concurrency
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()

    def move(self, endpoints: Iterable[str]) -> None:
        """Goes on at other endpoints, with calls that are under way as well. They may be another cluster's."""
        self.endpoints = Endpoints(endpoints)
        self._admitted = False
        # Another cluster counts its hubs for itself: there, our number is nobody's or somebody else's.
        self._hub_epoch = None

    async def open(self) -> None:
        """Takes the namespace over, unless this hub has already: what is listed from now on, no earlier hub changes."""
        hub = self._hub
        if hub is None or self._hub_epoch is not None:
            return

        async def attempt(channel: grpc.aio.Channel, seconds: float, _left: float) -> int:
            return await self._open_hub(channel, hub, seconds)

        await self._retry(f"open namespace {self.namespace}", attempt)

    async def put(
        self, routespec: str, target: str, data: str, wait_for_proxies: float = 0.0
    ) -> routes_pb2.WriteResponse:
        """Adds or replaces one route; `data` is the text of a JSON object.

        Waits up to `wait_for_proxies` seconds for the live proxies to serve the change; the answer says which did not.
        """
        return await self.write([Put(routespec, target, data)], wait_for_proxies)

    async def delete(self, routespec: str, wait_for_proxies: float = 0.0) -> routes_pb2.WriteResponse:
        """Removes one route on purpose, or finds it absent, which is a success too."""
        return await self.write([Delete(routespec)], wait_for_proxies, deletes_meant=True)

    async def write(
        self,
        changes: Sequence[Change],
        wait_for_proxies: float = 0.0,
        *,
        deletes_meant: bool = False,
        deletes_to_come: int = 0,
    ) -> routes_pb2.WriteResponse:
        """Applies `changes` as one batch: all of them or none.

        Deletions in numbers that look like an accident are held: the cluster says that they are made, and in `held` how
        many of them it serves on until an operator decides. They count together with `deletes_to_come`, those of the
        batches that follow for the same purpose. With `deletes_meant` none is held.
        """
        what = str(changes[0]) if len(changes) == 1 else f"write of {len(changes)} changes"
        request = routes_pb2.WriteRequest(namespace=self.namespace, wait_for_proxies_ms=round(wait_for_proxies * 1000))
        for change in changes:
            change.add_to(request)
        if deletes_meant:
            request.deletes_expected = deletes_in(changes)
        request.deletes_to_come = deletes_to_come
        more = wait_for_proxies + CHANGE_SECONDS * len(changes)

        async with self._here().session() as session:

            async def attempt(channel: grpc.aio.Channel, seconds: float, _left: float) -> routes_pb2.WriteResponse:
                if self._hub is not None:
                    request.hub_epoch = self._hub_epoch or await self._open_hub(channel, self._hub, seconds)
                # The same sequence again: an earlier copy may be under way still.
                request.retry = request.sequence == session.sequence
                request.session, request.sequence = session.id, session.sequence
                return await self._unary(routes_pb2_grpc.RoutesStub(channel).Write, request, seconds + more)

            def repair(failure: Failure) -> bool:
                if failure.hub_unknown:
                    self._hub_epoch = None
                elif not failure.session_lost:
                    return False
                session.renew()
                # Another session at the same number is no retry.
                request.sequence = 0
                return True

            return await self._retry(what, attempt, repair=repair)

    async def write_each(
        self, changes: Iterable[Change], wait_for_proxies: float = 0.0, *, deletes_meant: bool = False
    ) -> Written:
        """Applies `changes` in their order and in as few batches as the cluster takes, each as `write` does.

        One that the cluster refuses for its own sake keeps no other from being made: it is left out, and told in the
        answer. Raises when a refusal is about all of them, or when no replica answers; the first batches may have been
        applied then.
        """
        written = Written()
        waiting = list(batches(changes))[::-1]
        while waiting:
            batch = waiting.pop()
            try:
                to_come = sum(map(deletes_in, waiting))
                answer = await self.write(batch, wait_for_proxies, deletes_meant=deletes_meant, deletes_to_come=to_come)
                written.applied.append((batch, answer))
            except Rejected as refusal:
                if refusal.reason not in ABOUT_ONE_CHANGE:
                    raise
                if len(batch) == 1:
                    written.refused.append((batch[0], refusal))
                else:
                    half = len(batch) // 2
                    waiting += [batch[half:], batch[:half]]
        return written

    async def get(self, routespec: str, timeout: float | None = None) -> routes_pb2.Route | None:
        """The `Route` as of now, or None if there is none in this namespace. Linearizable."""
        request = routes_pb2.GetRequest(routespec=routespec)

        async def attempt(channel: grpc.aio.Channel, seconds: float, _left: float) -> routes_pb2.GetResponse:
            return await self._unary(routes_pb2_grpc.RoutesStub(channel).Get, request, seconds)

        async with self._here().reads:
            response = await self._retry(f"get {routespec}", attempt, timeout=timeout)
        route = response.route if response.HasField("route") else None
        return route if route is not None and route.namespace == self.namespace else None

    async def list(self, prefix: str = "") -> Sequence[routes_pb2.Route]:
        """Every `Route` of this namespace as of one revision. Linearizable, and whole or an error."""
        request = routes_pb2.ListRequest(namespace=self.namespace, prefix=prefix)
        pages = await self._list(request, lambda page: page.routes)
        return [route for page in pages for route in page]

    async def list_json(self, take: Callable[[str], S]) -> Sequence[S]:
        """The same, as what `take` makes of each page while the next one is on its way; as many things as it has routes.

        A page is the text of a JSON object of arrays, each with one element for each route: `routespecs`, `targets`, `data`,
        `mod_revisions` and `last_activity`.
        """
        request = routes_pb2.ListRequest(namespace=self.namespace, as_json=True)

        def read(page: routes_pb2.ListResponse) -> S:
            if not page.json:
                raise BrokenAnswer("a page of a list came without the text that was asked for")
            return take(page.json)

        return await self._list(request, read)

    async def _list(self, request: routes_pb2.ListRequest, take: Callable[[routes_pb2.ListResponse], S]) -> Sequence[S]:
        async def attempt(channel: grpc.aio.Channel, seconds: float, left: float) -> Sequence[S]:
            # The list may take all the time there is, but each page has to come within one attempt's.
            call = routes_pb2_grpc.RoutesStub(channel).List(request, timeout=left, metadata=self.credentials.metadata())
            try:
                pages = await _read_pages(call, seconds, take)
                self._heard(await call.trailing_metadata())
                return pages
            finally:
                call.cancel()

        async with self._here().reads:
            return await self._retry("list routes", attempt)

    async def status(self, timeout: float | None = None) -> cluster_pb2.StatusResponse:
        """What some replica knows of itself and of the cluster."""

        async def attempt(channel: grpc.aio.Channel, seconds: float, _left: float) -> cluster_pb2.StatusResponse:
            status = cluster_pb2_grpc.ClusterStub(channel).Status
            return await self._unary(status, cluster_pb2.StatusRequest(), seconds)

        return await self._retry("status", attempt, timeout=timeout)

    async def close(self) -> None:
        """Closes this event loop's connections. Calls that are under way are cancelled; later calls connect again."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()

    async def _open_hub(self, channel: grpc.aio.Channel, hub: bytes, seconds: float) -> int:
        endpoints = self.endpoints
        request = routes_pb2.OpenHubRequest(namespace=self.namespace, hub=hub)
        stub = routes_pb2_grpc.RoutesStub(channel)
        opened: routes_pb2.OpenHubResponse = await self._unary(stub.OpenHub, request, seconds)
        # Meanwhile we may have moved to another cluster.
        if self.endpoints is endpoints:
            if self._hub_epoch is None:
                self.log.info("this hub writes the routes of namespace %s from now on", self.namespace)
            self._hub_epoch = opened.hub_epoch
        return opened.hub_epoch

    async def _retry(
        self,
        what: str,
        attempt: Attempt[T],
        *,
        timeout: float | None = None,
        repair: Callable[[Failure], bool] = lambda failure: False,
    ) -> T:
        """Makes one attempt at one endpoint after the other until one succeeds.

        `repair` may remove the cause of a failure; then the next try follows at once, but not for ever.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        waits = backoff()
        tried: set[str] = set()
        failures: dict[str, Failure] = {}
        repairs = 0
        warned = False
        while (left := deadline - time.monotonic()) > 0:
            address = self.endpoints.next(tried)
            if address is None:
                # Later the files may be on their way, and a call that fails may cost a user's server.
                if failures and not self._admitted and all(f.locked_out or f.hint for f in failures.values()):
                    raise LockedOut(what, failures)
                if not warned and timeout - left >= WARN_AFTER_SECONDS:
                    warned = True
                    self.log.warning("%s: %s; retrying for %.0f s", what, _summary(failures), left)
                await asyncio.sleep(min(next(waits), left))
                tried.clear()
                continue
            try:
                answer = await attempt(self._channel(address), min(ATTEMPT_SECONDS, left), left)
            except Failure.EXCEPTIONS as error:
                failure = Failure.of(error)
            else:
                self.endpoints.answered(address)
                self._admitted = True
                return answer

            self.log.debug("%s: %s: %s", what, address, failure)
            # The last attempt is cut short by the end of the time; what was heard before says more.
            if failure.code is not grpc.StatusCode.DEADLINE_EXCEEDED or address not in failures:
                failures[address] = failure
            if repair(failure) and repairs < 2:
                repairs += 1
                continue
            if not (failure.transient or failure.locked_out or failure.session_lost or failure.hub_unknown):
                self.endpoints.answered(address)
                raise Rejected(what, failure)
            tried.add(address)
            self.endpoints.failed(address)
            if failure.leader:
                self.endpoints.heard_of_leader(failure.leader)
            if failure.overloaded:
                await asyncio.sleep(min(next(waits), max(0.0, deadline - time.monotonic())))
        raise Unavailable(what, timeout, failures)

    async def _unary(self, method: Callable[..., grpc.aio.UnaryUnaryCall[Any, T]], request: Any, seconds: float) -> T:
        call = method(request, timeout=seconds, metadata=self.credentials.metadata())
        answer = await call
        self._heard(await call.trailing_metadata())
        return answer

    def _heard(self, trailing_metadata: Any) -> None:
        leader = trailers_of(trailing_metadata).get("holdfast-leader")
        if leader:
            self.endpoints.heard_of_leader(leader)

    def _channel(self, address: str) -> grpc.aio.Channel:
        return self._here().channel(address, self.credentials, self.credentials.uses_tls or self.endpoints.want_tls)

    def _here(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = _LoopState(self._concurrency)
        return here


class _LoopState:
    """What belongs to one event loop: its channels and its sessions."""

    def __init__(self, concurrency: int):
        self.reads = asyncio.Semaphore(concurrency)
        self._writes = asyncio.Semaphore(concurrency)
        self._sessions: list[_Session] = []
        self._channels: dict[tuple[str, bool], grpc.aio.Channel] = {}
        # The files of the credentials that the channels were made with.
        self._seen: Any = None
        self._of_channels: grpc.ChannelCredentials | None = None
        self._closing: set[asyncio.Future[None]] = set()

    def channel(self, address: str, credentials: Credentials, tls: bool) -> grpc.aio.Channel:
        of_channels = self._renewed(credentials) if tls else None
        channel = self._channels.get((address, tls))
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                self._retire(next(iter(self._channels)))
            channel = self._channels[address, tls] = _connect(address, of_channels, credentials.server_name)
        return channel

    def _renewed(self, credentials: Credentials) -> grpc.ChannelCredentials:
        """The files as they are now. What is under way goes on with what it began with."""
        seen = credentials.seen()
        if self._of_channels is not None and seen == self._seen:
            return self._of_channels
        try:
            renewed = credentials.of_channel()
        except (OSError, ValueError) as e:
            if self._of_channels is None:
                raise NoChannel(str(e)) from None
            credentials.warn("Certificates stay as they were: %s", e)
            return self._of_channels
        if self._of_channels is not None:
            credentials.log.info("Certificates have changed: new connections to the replicas have the new ones")
        self._of_channels, self._seen = renewed, seen
        for key in [key for key in self._channels if key[1]]:
            self._retire(key)
        return renewed

    def _retire(self, key: tuple[str, bool]) -> None:
        closing = asyncio.ensure_future(self._channels.pop(key).close(grace=RETIRE_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_Session]:
        """A session with its next sequence, for one write: the cluster allows one write at a time in each."""
        async with self._writes:
            # The last one put back is taken first, so that a quiet hub uses one session and not all of them.
            session = self._sessions.pop() if self._sessions else _Session()
            session.sequence += 1
            try:
                yield session
            except Rejected as refusal:
                if refusal.reason in DECIDED:
                    self._sessions.append(session)
                raise
            # Not reached after another failure: perhaps written, perhaps later, perhaps never, so the session's next
            # sequence is not known any more and nobody uses it again.
            self._sessions.append(session)

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()), *self._closing)


class _Session:
    """A name for a row of writes, so that the cluster knows a repeated one."""

    def __init__(self) -> None:
        self.id = secrets.token_bytes(16)
        self.sequence = 0

    def renew(self) -> None:
        """Another session, at its first write."""
        self.id = secrets.token_bytes(16)
        self.sequence = 1


def _connect(address: str, credentials: grpc.ChannelCredentials | None, server_name: str) -> grpc.aio.Channel:
    """Encrypted with `credentials`, in the clear without."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options = list(CHANNEL_OPTIONS)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _read_pages(call: Any, seconds: float, take: Callable[[routes_pb2.ListResponse], S]) -> list[S]:
    """What `take` makes of each page of a `List` stream.

    Raises `BrokenAnswer` unless the pages are of one revision and hold as many routes as they say: the hub deletes what
    it does not recognise and adds what it does not see, so half a list is worse than none.
    """
    pages: list[S] = []
    position: tuple[int, int] | None = None
    total = found = 0
    while (page := await asyncio.wait_for(call.read(), seconds)) is not grpc.aio.EOF:
        position = position or (page.epoch, page.revision)
        if (page.epoch, page.revision) != position:
            raise BrokenAnswer(f"a list at (epoch, revision) {position} went on at {(page.epoch, page.revision)}")
        total = max(total, page.total)
        pages.append(take(page))
        found += len(pages[-1])
    if position is None:
        raise BrokenAnswer("a list ended before its first page")
    if found != total:
        raise BrokenAnswer(f"a list of {total} routes ended after {found}")
    return pages


def _summary(failures: Mapping[str, Failure]) -> str:
    return "; ".join(f"{address}: {failure}" for address, failure in failures.items())
