"""How a call can fail, and what the caller does next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc

# The session is of no more use; the same write goes out again under a new one. Puts and deletes say what shall be, not
# what shall change, so a second application does no harm; one with a precondition is refused.
SESSION_LOST = frozenset({"session-expired", "sequence"})

# What a dying connection, a starting replica or an election looks like from here. UNKNOWN and INTERNAL are among them
# because that is what gRPC makes of a connection that breaks in the middle of an answer.
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class HoldfastError(Exception):
    """A call to the cluster failed."""


class Rejected(HoldfastError):
    """The cluster understood the call and refused it. Nothing changed; the same call will be refused again.

    `reason` is the word from `proto/routes.proto`: "invalid", "namespace", "fenced", ...
    """

    def __init__(self, what: str, failure: Failure):
        super().__init__(f"{what}: {failure}")
        self.reason = failure.reason


class Unavailable(HoldfastError, TimeoutError):
    """No replica gave an answer in time. A write may have been applied, or may yet be; writing it again is safe."""

    def __init__(self, what: str, seconds: float, failures: Mapping[str, Failure]):
        answers = "; ".join(f"{address}: {failure}" for address, failure in failures.items()) or "no endpoint was tried"
        super().__init__(f"{what}: no answer from the cluster within {seconds:g} s ({answers})")


class LockedOut(HoldfastError):
    """No replica takes our credentials, and none ever has. Nothing changed; the text names what to set."""

    def __init__(self, what: str, failures: Mapping[str, Failure]):
        answers = "; ".join(f"{address}: {failure}" for address, failure in failures.items())
        super().__init__(f"{what}: the replicas do not let this hub in ({answers})")


_OTHER_NAME = "its certificate is for another name: endpoints_server_name says for which"

# What gRPC says of a connection that was made and not believed, and what to do about it.
_UNTRUSTED = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate has expired, or is of another authority than that of endpoints_ssl_ca",
    # Which of the two depends on gRPC's version.
    "is not in peer certificate": _OTHER_NAME,
    "Hostname Verification Check failed": _OTHER_NAME,
    "WRONG_VERSION_NUMBER": "it does not use TLS there, and endpoints_ssl_ca or https:// asks for it",
    "this port wants TLS": "set endpoints_ssl_ca to the authority of its certificate",
    # All that it says of an alert after the handshake, which is when TLS 1.3 looks at the caller's certificate.
    "TSI_DATA_CORRUPTED": "it wants a certificate, or does not believe the one it is shown: see endpoints_ssl_cert",
}


class BrokenAnswer(Exception):
    """An answer that contradicts itself, such as a list that ended before its end."""


class NoChannel(Exception):
    """No connection could be asked for, because of our own files."""


@dataclass(frozen=True)
class Failure:
    """One failed attempt at one endpoint."""

    code: grpc.StatusCode
    message: str
    reason: str | None = None
    leader: str | None = None

    # What an attempt may raise that `of` understands.
    # gRPC's UsageError: the channel was closed between two calls, for there are new certificates.
    EXCEPTIONS: ClassVar = (
        grpc.aio.AioRpcError,
        grpc.aio.UsageError,
        asyncio.TimeoutError,
        BrokenAnswer,
        NoChannel,
    )

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, grpc.aio.AioRpcError):
            trailers = trailers_of(error.trailing_metadata())
            return cls(
                error.code(), error.details() or "", trailers.get("holdfast-reason"), trailers.get("holdfast-leader")
            )
        if isinstance(error, (BrokenAnswer, NoChannel, grpc.aio.UsageError)):
            return cls(grpc.StatusCode.UNAVAILABLE, str(error))
        return cls(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within the attempt's time")

    @property
    def transient(self) -> bool:
        """Whether another attempt may fare better.

        What carries no reason was not decided by the cluster: an endpoint that is something else than a replica, or
        something in between. It says nothing about the other endpoints.
        """
        return self.code in _TRANSIENT or self.reason is None

    @property
    def session_lost(self) -> bool:
        return self.reason in SESSION_LOST

    @property
    def hub_unknown(self) -> bool:
        """The cluster was restored from a time before this hub opened its namespace."""
        return self.reason == "hub-unknown"

    @property
    def locked_out(self) -> bool:
        """The replica does not know the token, or wants one. It has not looked at the call."""
        return self.reason == "token"

    @property
    def hint(self) -> str | None:
        """What to do about a replica that cannot be spoken with by TLS, or only by TLS."""
        return next((hint for said, hint in _UNTRUSTED.items() if said in self.message), None)

    @property
    def overloaded(self) -> bool:
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED

    def __str__(self) -> str:
        hint = f"{self.hint} (HoldfastProxy): " if self.hint else ""
        return f"{hint}{self.message or 'no message'} [{self.reason or self.code.name.lower()}]"


def trailers_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """The text trailers of a call as a dict."""
    return {key: value for key, value in metadata or () if isinstance(value, str)}
