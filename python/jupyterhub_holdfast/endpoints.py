"""The replicas, and who seems to lead."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

# How long a leader's address that did not answer is not believed again. It is an address as the replicas know it, and
# the hub may sit on another network.
DISBELIEF_SECONDS = 60.0

EXPECTED = "expected host:port, https://host:port or http://host:port"


def parse_endpoint(text: str) -> str:
    """`host:port` from `host:port` or `http://host:port`; `https://host:port` as it is, for it asks for TLS.

    Raises ValueError, naming the text, for anything else.
    """
    address = text.strip()
    scheme, separator, rest = address.partition("://")
    if separator:
        if scheme not in ("http", "https"):
            raise ValueError(f"endpoint {text!r}: {EXPECTED}")
        address = rest.rstrip("/")
    try:
        url = urlsplit(f"//{address}")
        host, port = url.hostname, url.port
    except ValueError as e:
        raise ValueError(f"endpoint {text!r}: {e}") from None
    if not host or not port or url.netloc != address or url.username is not None:
        raise ValueError(f"endpoint {text!r}: {EXPECTED}")
    return f"https://{address}" if scheme == "https" else address


def parse_endpoints(text: str) -> list[str]:
    """The endpoints in a comma-separated text; at least one."""
    endpoints = [parse_endpoint(part) for part in text.split(",") if part.strip()]
    if not endpoints:
        raise ValueError(f"no endpoint in {text!r}")
    return endpoints


class Endpoints:
    """Which replica to ask next. Every replica takes every call; asking the leader saves one forwarding."""

    def __init__(self, endpoints: Iterable[str]):
        endpoints = list(endpoints)
        # One that asks for TLS asks for all: they are replicas of one cluster.
        self.want_tls = any(endpoint.startswith("https://") for endpoint in endpoints)
        self._addresses = [endpoint.removeprefix("https://") for endpoint in endpoints]
        self._favourite: str | None = None
        self._disbelieved: dict[str, float] = {}

    def next(self, tried: Collection[str]) -> str | None:
        """The best endpoint that is not in `tried`, or None."""
        candidates = [self._favourite, *self._addresses] if self._favourite else self._addresses
        return next((address for address in candidates if address not in tried), None)

    def answered(self, address: str) -> None:
        """`address` gave a good answer: without a better hint it is asked first from now on."""
        if self._favourite is None:
            self._favourite = address

    def failed(self, address: str) -> None:
        """`address` gave none: others are asked first."""
        if address == self._favourite:
            self._favourite = None
        if address in self._addresses:
            self._addresses.remove(address)
            self._addresses.append(address)
        else:
            self._disbelieved = {address: time.monotonic()}

    def heard_of_leader(self, address: str) -> None:
        """A replica says that `address` leads."""
        since = self._disbelieved.get(address)
        if since is not None and time.monotonic() - since < DISBELIEF_SECONDS:
            return
        try:
            self._favourite = parse_endpoint(address).removeprefix("https://")
        except ValueError:
            # A hint is a help, not a part of the answer.
            return
