"""Pages of a list of routes, read as the hub wants them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from .check import TableRoutes


class _Page(msgspec.Struct):
    """`ListResponse.json`."""

    routespecs: list[str]
    targets: list[str]
    data: list[dict[str, Any]]
    mod_revisions: list[int]
    last_activity: list[str | None]


_decode_page = msgspec.json.Decoder(_Page).decode


def as_table_routes(text: str) -> TableRoutes:
    """The routes of a page. Raises a `ValueError` when it is not what a replica sends."""
    # There may be ten thousand of them a minute, and read one by one they take four times as long.
    with _no_garbage():
        try:
            page = _decode_page(text)
        except msgspec.DecodeError:
            # One route's data may have what only Python reads, such as 1e999, or half of a surrogate pair.
            page = msgspec.convert(json.loads(text), _Page)
        for data, last_activity in zip(page.data, page.last_activity, strict=True):
            if last_activity is not None:
                data["last_activity"] = last_activity
        routes = TableRoutes()
        routes.update(
            (routespec, {"routespec": routespec, "target": target, "data": data})
            for routespec, target, data in zip(page.routespecs, page.targets, page.data, strict=True)
        )
        routes.mod_revisions.update(zip(page.routespecs, page.mod_revisions, strict=True))
        return routes


@contextmanager
def _no_garbage() -> Iterator[None]:
    """For a moment in which much is made and nothing is garbage: to look for some would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
