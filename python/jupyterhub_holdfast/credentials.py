"""How replicas are known, and what is shown to them."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

# Until the same problem with a file is said again.
WARN_AGAIN_SECONDS = 30.0


@dataclass
class Credentials:
    """How replicas are known, and what is shown to them. Files are PEM, and read again when they change.

    With `server_name` or any of the `ssl` files connections are encrypted. `auth_token_file` wins over `auth_token`.
    """

    # The authorities that vouch for replicas; empty: gRPC's own list.
    ssl_ca: str = ""
    # The certificate to show to replicas that ask for one, and its key.
    ssl_cert: str = ""
    ssl_key: str = ""
    # Which name replicas' certificates are for, where it is none of their addresses.
    server_name: str = ""
    auth_token: str = field(default="", repr=False)
    # A file whose first line is the token.
    auth_token_file: str = ""
    log: logging.Logger | logging.LoggerAdapter[Any] = field(default_factory=lambda: logging.getLogger(__name__))

    _token_seen: Any = field(default=None, init=False, repr=False)
    _token_read: str = field(default="", init=False, repr=False)
    _warned: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    @property
    def uses_tls(self) -> bool:
        return any((self.ssl_ca, self.ssl_cert, self.ssl_key, self.server_name))

    def check(self) -> None:
        """Raises ValueError, beginning with the name of the field, for what cannot be used."""
        self._check_tls()
        if self.auth_token and not _usable(self.auth_token):
            raise ValueError("auth_token: must be of printable ASCII characters, without spaces")
        if self.auth_token_file and not _token(_readable("auth_token_file", self.auth_token_file)):
            raise ValueError(f"auth_token_file: {self.auth_token_file} has no token in its first line")

    def _check_tls(self) -> None:
        if bool(self.ssl_cert) != bool(self.ssl_key):
            raise ValueError("ssl_cert: goes together with ssl_key, give both or none")
        # gRPC says of what it cannot use only that nothing works.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ssl_ca:
            _readable("ssl_ca", self.ssl_ca)
            try:
                trial.load_verify_locations(cafile=self.ssl_ca)
            except ssl.SSLError:
                raise ValueError(f"ssl_ca: {self.ssl_ca} holds no certificate in PEM") from None
        if self.ssl_cert:
            _readable("ssl_cert", self.ssl_cert)
            _readable("ssl_key", self.ssl_key)
            try:
                # Without a passphrase given, OpenSSL would ask on the terminal for that of an encrypted key.
                trial.load_cert_chain(self.ssl_cert, self.ssl_key, password="")
            except (ssl.SSLError, ValueError) as e:
                raise ValueError(
                    f"ssl_cert: {self.ssl_cert} and ssl_key {self.ssl_key} are not a certificate in PEM and its key, "
                    f"not encrypted: {e}"
                ) from None

    def seen(self) -> Sequence[Any]:
        """Another value when one of the `ssl` files has changed."""
        return [_stamp(path) for path in (self.ssl_ca, self.ssl_cert, self.ssl_key)]

    def of_channel(self) -> grpc.ChannelCredentials:
        """As the files are now. Raises ValueError or OSError while one cannot be used."""
        self._check_tls()
        ca, key, chain = (_content(path) if path else None for path in (self.ssl_ca, self.ssl_key, self.ssl_cert))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=chain)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is shown with a call."""
        token = self._token_of_file() if self.auth_token_file else _usable(self.auth_token)
        return (("authorization", f"Bearer {token}"),) if token else ()

    def warn(self, message: str, *args: Any) -> None:
        """Says that a file is not taken; again only after a while, for every call finds it so."""
        now = time.monotonic()
        if now - self._warned.get(message, -WARN_AGAIN_SECONDS) >= WARN_AGAIN_SECONDS:
            self._warned[message] = now
            self.log.warning(message, *args)

    def _token_of_file(self) -> str:
        seen = (self.auth_token_file, _stamp(self.auth_token_file))
        if seen != self._token_seen:
            try:
                token = _token(_readable("auth_token_file", self.auth_token_file))
            except ValueError as e:
                self.warn("The token stays as it was: %s", e)
            else:
                if token:
                    # Not before: a file that could not be read looks the same when it can.
                    self._token_seen, self._token_read = seen, token
                else:
                    self.warn("The token stays as it was: %s has none in its first line", self.auth_token_file)
        return self._token_read


def _readable(name: str, path: str) -> bytes:
    try:
        return _content(path)
    except OSError as e:
        raise ValueError(f"{name}: {path} cannot be read: {e.strerror}") from None


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _token(content: bytes) -> str:
    """That in the first line; empty if there is none."""
    return _usable(content.partition(b"\n")[0].decode("ascii", "replace"))


def _usable(token: str) -> str:
    """Without what surrounds it; empty if it cannot be sent."""
    token = token.strip()
    return token if token.isascii() and token.isprintable() and " " not in token else ""


def _stamp(path: str) -> Any:
    """Of a file's content, without reading it; a file put in the place of another has another one."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
