"""A replica that answers what a test tells it to, over real gRPC on a real socket."""

import asyncio

import grpc

from jupyterhub_holdfast._proto import routes_pb2, routes_pb2_grpc


class Refusal:
    """A failed answer."""

    def __init__(self, code, message="", reason=None, leader=None):
        self.code, self.message = code, message
        self.trailers = [("holdfast-reason", reason)] if reason else []
        if leader:
            self.trailers.append(("holdfast-leader", leader))


NO_LEADER = Refusal(grpc.StatusCode.UNAVAILABLE, "no leader", "no-leader")
NO_SERVICE = Refusal(grpc.StatusCode.UNIMPLEMENTED, "no such service")
UNKNOWN = Refusal(grpc.StatusCode.UNAVAILABLE, "perhaps written", "unknown")
OVERLOADED = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many writes", "overloaded")
SESSION_EXPIRED = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "no such session", "session-expired")
FENCED = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "a newer hub has taken over", "fenced")
HUB_UNKNOWN = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "never given here", "hub-unknown")
SEQUENCE = Refusal(grpc.StatusCode.FAILED_PRECONDITION, "sequence 7 after 3", "sequence")
SILENCE = object()


class ScriptedReplica(routes_pb2_grpc.RoutesServicer):
    """Answers calls with `script`, one item for each, and with a success when it is used up.

    An item is a Refusal, SILENCE (no answer ever), or the answer itself: for List, a list of pages. `judge` may refuse a
    request by what is in it, before the script is asked.
    """

    def __init__(self, script=(), leader=None, judge=lambda request: None):
        self.script = list(script)
        self.judge = judge
        self.leader = leader
        self.calls = []
        self.metadata = []
        self.under_way = 0
        self.most_under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __aenter__(self):
        self._server = grpc.aio.server()
        routes_pb2_grpc.add_RoutesServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_):
        await self._server.stop(grace=0)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def _next(self, request, context, success):
        self.calls.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
            item = self.judge(request)
            if item is None:
                item = self.script.pop(0) if self.script else success
            if item is SILENCE:
                await asyncio.Event().wait()
            if isinstance(item, Refusal):
                context.set_trailing_metadata(item.trailers)
                await context.abort(item.code, item.message)
            if self.leader:
                context.set_trailing_metadata([("holdfast-leader", self.leader)])
            return item
        finally:
            self.under_way -= 1

    async def Write(self, request, context):
        return await self._next(request, context, routes_pb2.WriteResponse(revision=1, changed=True))

    async def OpenHub(self, request, context):
        return await self._next(request, context, routes_pb2.OpenHubResponse(hub_epoch=1))

    async def Get(self, request, context):
        return await self._next(request, context, routes_pb2.GetResponse(revision=1))

    async def List(self, request, context):
        for page in await self._next(request, context, [routes_pb2.ListResponse(revision=1)]):
            if isinstance(page, Refusal):
                await context.abort(page.code, page.message)
            if page is SILENCE:
                await asyncio.Event().wait()
            yield page
