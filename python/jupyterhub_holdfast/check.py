"""What the hub wants to be routed, and how the table differs from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .changes import Change, Delete, Put

# Each difference up to so many has a line of its own in the hub's log; a table that was lost has thousands.
LINES_MAX = 20


class TableRoutes(dict[str, dict[str, Any]]):
    """Routes as the hub knows them, by routespec: `routespec`, `target` and `data`.

    Which revision wrote each stands beside them, for the hub shows the routes to others.
    """

    def __init__(self) -> None:
        self.mod_revisions: dict[str, int] = {}

    def take(self, others: TableRoutes) -> None:
        self.update(others)
        self.mod_revisions.update(others.mod_revisions)


@dataclass(frozen=True)
class WantedRoute:
    target: str
    data: dict[str, Any]

    def is_served_by(self, route: Mapping[str, Any]) -> bool:
        """Whether the route leads there on behalf of the same user, service or hub. Its data may say more."""
        return bool(route["target"] == self.target and self.data.items() <= route["data"].items())


@dataclass
class Wanted:
    """The routes that there shall be, and those that shall stay as they are."""

    hub_routespec: str
    routes: dict[str, WantedRoute] = field(default_factory=dict)
    # Of servers that are just being started, stopped, looked at or renamed: whoever does that sees to their routes.
    pending: set[str] = field(default_factory=set)

    @classmethod
    def by(
        cls,
        hub_routespec: str,
        hub: Any,
        users: Iterable[Any],
        services: Iterable[Any],
        extra_routes: Mapping[str, str],
    ) -> Wanted:
        """What `hub` wants for itself, its users' servers, its services and its configured `extra_routes`."""
        wanted = cls(hub_routespec)
        wanted.routes[hub_routespec] = WantedRoute(hub.host, {"hub": True})
        for user in users:
            for name, spawner in user.spawners.items():
                if spawner.ready:
                    data = {"user": user.name, "server_name": name}
                    wanted.routes[spawner.proxy_spec] = WantedRoute(spawner.server.host, data)
                elif spawner.pending:
                    wanted.pending.add(spawner.proxy_spec)
        for service in services:
            if service.server is not None:
                wanted.routes[service.proxy_spec] = WantedRoute(service.server.host, {"service": service.name})
        for routespec, target in extra_routes.items():
            wanted.routes[routespec] = WantedRoute(target, {"extra": True})
        return wanted

    def changes_to(self, table: Mapping[str, Mapping[str, Any]], log: logging.Logger) -> list[Change]:
        """What makes `table` as it shall be: puts, then deletes of what nobody wants.

        A delete takes away the very version that was found superfluous and no later one.
        """
        missing = [spec for spec in self.routes if spec not in table]
        wrong = [spec for spec, route in self.routes.items() if spec in table and not route.is_served_by(table[spec])]
        stale = [spec for spec in table if spec not in self.routes and spec not in self.pending]
        if self.hub_routespec in missing:
            # The first start of every hub.
            log.info("Adding route for Hub: %s → %s", self.hub_routespec, self.routes[self.hub_routespec].target)
        _log_some(
            log,
            "Adding missing route %s → %s",
            [(spec, self.routes[spec].target) for spec in missing if spec != self.hub_routespec],
        )
        _log_some(
            log,
            "Updating route %s (%s → %s)",
            [(spec, table[spec]["target"], self.routes[spec].target) for spec in wrong],
        )
        _log_some(log, "Deleting stale route %s → %s", [(spec, table[spec]["target"]) for spec in stale])
        puts = [Put(spec, self.routes[spec].target, as_text(self.routes[spec].data)) for spec in missing + wrong]
        revisions = table.mod_revisions if isinstance(table, TableRoutes) else {}
        return puts + [Delete(spec, revisions.get(spec)) for spec in stale]


def as_text(data: Mapping[str, Any] | None) -> str:
    """The one text for equal data, so that writing it again changes nothing.

    Raises ValueError or TypeError for what is no JSON.
    """
    plain = json.loads(json.dumps(data or {}, allow_nan=False))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def _log_some(log: logging.Logger, line: str, differences: list[tuple[str, ...]]) -> None:
    for difference in differences[:LINES_MAX]:
        log.warning(line, *difference)
    if more := len(differences[LINES_MAX:]):
        log.warning(f"{line.split(' %s')[0]}: %i more", more)
