"""Changes of routes, and how many of them are one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ._proto import routes_pb2

# Below what a replica takes (`proto/routes.proto`), so that other writers find room beside us, and an answer comes
# within one attempt.
CHANGES_MAX = 20_000
BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True)
class Put:
    """Adds the route or replaces it whole. `data` is the text of a JSON object."""

    routespec: str
    target: str
    data: str = "{}"

    @property
    def size(self) -> int:
        return sum(len(text.encode()) for text in (self.routespec, self.target, self.data))

    def add_to(self, request: routes_pb2.WriteRequest) -> None:
        route = routes_pb2.Route(
            routespec=self.routespec, target=self.target, data=self.data, namespace=request.namespace
        )
        request.changes.add(put=route)

    def __str__(self) -> str:
        return f"put {self.routespec}"


@dataclass(frozen=True)
class Delete:
    """Removes the route, or finds it absent, which is a success too.

    With `mod_revision`, only the version that this revision wrote: a later one is left alone, and the change is refused
    with the reason "precondition".
    """

    routespec: str
    mod_revision: int | None = None

    @property
    def size(self) -> int:
        return 2 * len(self.routespec.encode())

    def add_to(self, request: routes_pb2.WriteRequest) -> None:
        request.changes.add(delete=self.routespec)
        if self.mod_revision is not None:
            unchanged = routes_pb2.RouteRevision(routespec=self.routespec, mod_revision=self.mod_revision)
            request.preconditions.add(route_revision=unchanged)

    def __str__(self) -> str:
        return f"delete {self.routespec}"


Change = Put | Delete


def deletes_in(changes: Iterable[Change]) -> int:
    """How many of the changes are deletions."""
    return sum(isinstance(change, Delete) for change in changes)


def batches(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """The changes in their order, in as few batches as the bounds allow."""
    batch: list[Change] = []
    size = 0
    for change in changes:
        if batch and (len(batch) == CHANGES_MAX or size + change.size > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(change)
        size += change.size
    if batch:
        yield batch
