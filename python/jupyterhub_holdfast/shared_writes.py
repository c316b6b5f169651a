"""Changes that several callers want at about the same time, written together."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import cast
from weakref import WeakKeyDictionary

from ._proto import routes_pb2
from .changes import CHANGES_MAX, Change
from .client import RouteClient

# Batches under way at once. Each that waits for a proxy that hangs leaves the others to go on.
UNDER_WAY_MAX = 4


@dataclass
class _Waiting:
    change: Change
    wait_for_proxies: float
    answer: asyncio.Future[routes_pb2.WriteResponse]

    def succeed(self, answer: routes_pb2.WriteResponse) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass
class _LoopState:
    waiting: deque[_Waiting] = field(default_factory=deque)
    writers: set[asyncio.Task[None]] = field(default_factory=set)
    # The routes that batches under way change.
    routespecs: set[str] = field(default_factory=set)

    def next_batch(self) -> dict[str, _Waiting]:
        """The first that wait, by routespec, up to one whose route is being changed already: of two, the later one wins."""
        batch: dict[str, _Waiting] = {}
        while self.waiting and self.waiting[0].change.routespec not in self.routespecs and len(batch) < CHANGES_MAX:
            first = self.waiting.popleft()
            if not first.answer.cancelled():
                batch[first.change.routespec] = first
                self.routespecs.add(first.change.routespec)
        return batch


class SharedWrites:
    """Writes single changes in as few batches as their callers' haste allows.

    A batch costs hub, cluster and proxies little more than one change does. So what is asked for in one turn of the event
    loop goes together, and so does what is asked for while `UNDER_WAY_MAX` batches are under way.
    """

    def __init__(self, client: RouteClient):
        self._client = client
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()

    async def write(self, change: Change, wait_for_proxies: float) -> routes_pb2.WriteResponse:
        """Makes the change, a deletion on purpose; returns the answer to the batch that it was in.

        Raises as `RouteClient.write` does; a change that is refused for its own sake fails its own caller alone. A
        cancelled call's change is not made if its batch had not begun.
        """
        loop = asyncio.get_running_loop()
        here = self._loops.setdefault(loop, _LoopState())
        waiting = _Waiting(change, wait_for_proxies, loop.create_future())
        here.waiting.append(waiting)
        if len(here.writers) < UNDER_WAY_MAX:
            # It begins in the next turn, with all that are asked for in this one.
            here.writers.add(loop.create_task(self._write_all(here)))
        return await waiting.answer

    async def _write_all(self, here: _LoopState) -> None:
        try:
            while batch := here.next_batch():
                try:
                    await self._write_batch(batch)
                finally:
                    here.routespecs.difference_update(batch)
        finally:
            # In one turn with having found nothing more, or who comes next would believe that we go on.
            here.writers.remove(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _write_batch(self, batch: dict[str, _Waiting]) -> None:
        try:
            written = await self._client.write_each(
                [waiting.change for waiting in batch.values()],
                max(waiting.wait_for_proxies for waiting in batch.values()),
                deletes_meant=True,
            )
        except Exception as error:
            for waiting in batch.values():
                waiting.fail(error)
        else:
            for changes, answer in written.applied:
                for change in changes:
                    batch[change.routespec].succeed(answer)
            for change, refusal in written.refused:
                batch[change.routespec].fail(refusal)
        finally:
            # What nobody has answered is answered by nobody any more: we are cancelled.
            for waiting in batch.values():
                waiting.answer.cancel()
