"""What JupyterHub asks of a proxy, asked of a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sysconfig
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakKeyDictionary

from jupyterhub.metrics import CHECK_ROUTES_DURATION_SECONDS, PROXY_POLL_DURATION_SECONDS
from jupyterhub.proxy import Proxy
from jupyterhub.traitlets import Command
from jupyterhub.utils import url_path_join
from tornado.httpclient import HTTPClientError, HTTPResponse
from tornado.netutil import Resolver
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from traitlets import Bool, Float, Integer, List, TraitError, Unicode, default, observe, validate

from ._proto import routes_pb2
from .changes import Delete, Put
from .check import TableRoutes, Wanted, as_text
from .client import RouteClient
from .credentials import Credentials
from .endpoints import parse_endpoint, parse_endpoints
from .errors import HoldfastError, LockedOut, Rejected, Unavailable
from .pages import as_table_routes
from .process import UpProcess
from .shared_writes import SharedWrites

DEFAULT_ENDPOINT = "127.0.0.1:7011"
READY_POLL_SECONDS = 0.1

# A hub that ends waits no longer than this for its servers' routes to go. Its successor removes what stays.
LAST_WORDS_SECONDS = 5.0


class HoldfastProxy(Proxy):
    """JupyterHub's routes in a Holdfast cluster: three replicas keep them, any number of proxies serve them.

    By default the hub starts everything itself on its own machine::

        c.JupyterHub.proxy_class = "holdfast"

    With a cluster that runs elsewhere::

        c.JupyterHub.proxy_class = "holdfast"
        c.HoldfastProxy.should_start = False
        c.HoldfastProxy.endpoints = ["replica-0:7011", "replica-1:7011", "replica-2:7011"]

    Routes outlive hub, proxies and replicas; the hub removes those of servers that are gone when it starts. If those are so many
    that the hub may have lost its database, the cluster serves them on until an operator decides: see `holdfast held`.
    """

    endpoints = List(
        Unicode(),
        default_value=[DEFAULT_ENDPOINT],
        config=True,
        help="""
        The replicas' API addresses, as `host:port`, or as `https://host:port` where they have certificates.

        Name all of them: a call goes on at the next one when one does not answer. Only with `should_start = False`;
        otherwise the hub starts the replicas and knows where they are.
        """,
    )

    namespace = Unicode(
        "default",
        config=True,
        help="""
        Which routes of the cluster are this hub's.

        Two hubs on one cluster need two namespaces. A hub sees, changes and removes routes of its own namespace only,
        so routes that operators keep in another one are safe from it.
        """,
    )

    mixed_routespecs = Bool(
        False,
        config=True,
        help="""
        Whether routespecs with a host and such without one may be used together.

        JupyterHub allows the ones with `subdomain_host`, the others without it, and refuses what does not fit (`/` fits
        always). The proxies themselves take both: a route with the request's host first, then one without a host. So
        with this on, `extra_routes` and other programs within the hub may add either kind.
        """,
    )

    api_url = Unicode(
        config=True,
        help="""
        `endpoints` as one text, comma-separated. Setting it replaces `endpoints`.

        `PATCH /hub/api/proxy` sets it, to move a running hub to another cluster.
        """,
    )

    auth_token = Unicode(
        config=True,
        help="""
        Sent to the replicas with every call, as a bearer token: one of those in their `--api-token-file`. Default: the
        environment's CONFIGPROXY_AUTH_TOKEN.

        With `should_start` it opens the replicas that the hub starts, which ask for a token always: without this one and
        without `auth_token_file`, for one that is made and kept in the file `api-token` in `data_dir`.

        `PATCH /hub/api/proxy` sets it. `auth_token_file` wins over it.
        """,
    )

    auth_token_file = Unicode(
        config=True,
        help="""
        A file whose first line is the token to send to the replicas. Read again when it changes. With `should_start` the
        replicas that the hub starts take the tokens in it, one a line.

        To change tokens: add the new one to the replicas' `--api-token-file`, then put it here, then take the old one
        away from the replicas. Meanwhile calls that are refused are tried again, for `timeout`.
        """,
    )

    endpoints_ssl_ca = Unicode(
        config=True,
        help="""
        A file with the authorities that vouch for the replicas, in PEM. With it, connections to them are encrypted.

        For replicas with `--api-ssl-cert`. Read again when it changes. With `https://` in `endpoints` and without this,
        gRPC's own list of authorities is believed. Only with `should_start = False`.
        """,
    )

    endpoints_ssl_cert = Unicode(
        config=True,
        help="""
        A file with the certificate to show to the replicas, in PEM. For replicas with `--api-ssl-ca`.

        Read again when it changes. Only with `should_start = False`.
        """,
    )

    endpoints_ssl_key = Unicode(
        config=True,
        help="A file with the private key of `endpoints_ssl_cert`, in PEM, not encrypted.",
    )

    endpoints_server_name = Unicode(
        config=True,
        help="""
        The name that the replicas' certificates are for, where it is none of their addresses.

        Default: the host of each address.
        """,
    )

    timeout = Float(
        30.0,
        min=0.1,
        config=True,
        help="""
        How long one call may be retried, in seconds, before it fails.

        The hub stops a user's server whose route it cannot add. Less than 30 seconds may be less than a rolling
        restart.
        """,
    )

    wait_for_proxies = Float(
        1.0,
        min=0.0,
        max=10.0,
        config=True,
        help="""
        How long a change waits for the proxies to serve it, in seconds. 0: do not wait.

        The hub sends the browser to a new server as soon as its route is added. The change itself never depends on the
        wait: it is kept, and proxies that lag are named in the log.
        """,
    )

    concurrency = Integer(
        32,
        min=1,
        config=True,
        help="How many calls may be under way at once. Others queue, and `timeout` does not run meanwhile.",
    )

    command = Command(
        ["holdfast"],
        config=True,
        help="""
        The command that starts Holdfast, without its subcommand. Only with `should_start`.

        Default: the program that came with this package, else the one on the PATH.
        """,
    )

    data_dir = Unicode(
        "holdfast-data",
        config=True,
        help="""
        Where a Holdfast that the hub starts keeps the routes; relative to the directory that the hub starts in.

        It is kept when the hub ends. Only with `should_start`.
        """,
    )

    replicas = Integer(
        1,
        config=True,
        help="""
        How many replicas to start: 1, or 3 to go on when one process dies. Only with `should_start`.

        Replicas on one machine do not help against the loss of that machine.
        """,
    )

    proxies = Integer(
        1,
        min=1,
        config=True,
        help="How many proxies to start, on the public port and the ports after it. Only with `should_start`.",
    )

    base_port = Integer(
        7011,
        min=1,
        max=65535,
        config=True,
        help="""
        First port of the replicas: replica i uses base_port + 10 * i and the two ports after it. Only with
        `should_start`.
        """,
    )

    proxy_admin_base = Integer(
        8100,
        min=1,
        max=65535,
        config=True,
        help="First port of the proxies' health, metrics and status, one port for each. Only with `should_start`.",
    )

    start_timeout = Float(
        60.0,
        min=1.0,
        config=True,
        help="How long Holdfast may take to answer after its start, in seconds. Only with `should_start`.",
    )

    stop_timeout = Float(
        30.0,
        min=0.0,
        config=True,
        help="How long Holdfast may take to end, in seconds, before it is killed. Only with `should_start`.",
    )

    check_running_interval = Float(
        1.0,
        min=0.1,
        config=True,
        help="How often to look whether Holdfast still runs and answers, in seconds. Only with `should_start`.",
    )

    hung_checks = Integer(
        10,
        min=0,
        config=True,
        help="""
        How many times in a row no proxy may answer, before Holdfast is ended by force and started again. 0: never.

        While one proxy answers, users are served, and a restart would end their connections. Only with `should_start`.
        """,
    )

    @default("command")
    def _command_default(self) -> list[str]:
        # A hub is often started by its path, without its environment's programs on the PATH.
        ours = os.path.join(sysconfig.get_path("scripts"), "holdfast")
        return [ours if os.access(ours, os.X_OK) else "holdfast"]

    @default("auth_token")
    def _auth_token_default(self) -> str:
        return os.environ.get("CONFIGPROXY_AUTH_TOKEN", "")

    @validate("endpoints")
    def _validate_endpoints(self, proposal: Any) -> list[str]:
        if not proposal.value:
            raise TraitError("HoldfastProxy.endpoints: at least one host:port")
        try:
            return [parse_endpoint(text) for text in proposal.value]
        except ValueError as e:
            raise TraitError(f"HoldfastProxy.endpoints: {e}") from None

    @validate("api_url")
    def _validate_api_url(self, proposal: Any) -> str:
        value: str = proposal.value
        try:
            parse_endpoints(value)
        except ValueError as e:
            raise TraitError(f"HoldfastProxy.api_url: {e}") from None
        return value

    @validate("auth_token")
    def _validate_auth_token(self, proposal: Any) -> str:
        value: str = proposal.value
        try:
            Credentials(auth_token=value).check()
        except ValueError as e:
            raise TraitError(f"HoldfastProxy.{e}") from None
        return value

    @validate("namespace")
    def _validate_namespace(self, proposal: Any) -> str:
        value: str = proposal.value
        if value in ("", "*"):
            raise TraitError(f"HoldfastProxy.namespace: {value!r} names no namespace")
        return value

    @validate("replicas")
    def _validate_replicas(self, proposal: Any) -> int:
        value: int = proposal.value
        if value not in (1, 3):
            raise TraitError(f"HoldfastProxy.replicas: 1 or 3, not {value}")
        return value

    # Of the base class's name, for it takes the place of that one.
    @validate("extra_routes")
    def _validate_extra_routes(self, proposal: Any) -> dict[str, str]:
        if not self.mixed_routespecs:
            checked: dict[str, str] = super()._validate_extra_routes(proposal)
            return checked
        for routespec, target in proposal.value.items():
            if not target.lower().startswith(("http://", "https://")):
                raise TraitError(f"HoldfastProxy.extra_routes: {routespec}: {target!r} is no http:// or https:// URL")
        return {self.validate_routespec(routespec): target for routespec, target in proposal.value.items()}

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.client = RouteClient(
            self.endpoints,
            namespace=self.namespace,
            timeout=self.timeout,
            concurrency=self.concurrency,
            credentials=self._credentials(),
            # Of this process: what the one before it had still under way is refused once this one writes.
            hub=secrets.token_bytes(16),
            log=self.log,
        )
        self._writes = SharedWrites(self.client)
        # Only from here on: traits change before they all have their values, too.
        self.observe(lambda change: self.client.move(change.new), "endpoints")
        self.observe(self._take_auth_token, "auth_token")
        self._process: UpProcess | None = None
        self._watch: asyncio.Future[None] | None = None
        self._check_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        # The routes that a check is about to change, and what tells that it has.
        self._under_check: Mapping[str, asyncio.Event] = {}
        # The hub has no other hook for its end, and stops its servers there without a word to its proxy. Their routes would
        # be stale to its successor, and so many at once that the cluster may hold them.
        cleanup = getattr(self.app, "cleanup", None)
        if cleanup is not None:
            self.app.cleanup = lambda: self._cleanup(cleanup)

    def _credentials(self) -> Credentials:
        credentials = Credentials(
            ssl_ca=self.endpoints_ssl_ca,
            ssl_cert=self.endpoints_ssl_cert,
            ssl_key=self.endpoints_ssl_key,
            server_name=self.endpoints_server_name,
            auth_token=self.auth_token,
            auth_token_file=self.auth_token_file,
            log=self.log,
        )
        try:
            credentials.check()
        except ValueError as e:
            prefix = "" if str(e).startswith("auth") else "endpoints_"
            raise TraitError(f"HoldfastProxy.{prefix}{e}") from None
        return credentials

    @observe("api_url")
    def _api_url_changed(self, change: Any) -> None:
        self.endpoints = parse_endpoints(change.new)

    def _take_auth_token(self, change: Any) -> None:
        if self.auth_token_file:
            self.log.warning(
                "The new HoldfastProxy.auth_token has no effect, for auth_token_file wins: write it into the first line of %s",
                self.auth_token_file,
            )
        elif self._process is not None:
            self._process.keep_token(change.new)
        else:
            self.client.credentials.auth_token = change.new

    def validate_routespec(self, routespec: str) -> str:
        """The routespec with its trailing slash. Raises ValueError for a host where none may be, or none where one must."""
        if not self.mixed_routespecs:
            checked: str = super().validate_routespec(routespec)  # type: ignore[no-untyped-call]
            return checked
        return routespec if routespec.endswith("/") else f"{routespec}/"

    async def add_route(self, routespec: str, target: str, data: Mapping[str, Any] | None) -> None:
        """Adds or replaces a route. Then live proxies serve it, or the log names those that do not yet."""
        routespec = self.validate_routespec(routespec)
        text = as_text(data)
        await self._no_check_changes(routespec)
        written = await self._writes.write(Put(routespec, target, text), self.wait_for_proxies)
        self._report_lagging(f"Route {routespec} added", written)

    async def delete_route(self, routespec: str) -> None:
        """Removes a route. One that is not there, or not ours, is removed already."""
        routespec = self.validate_routespec(routespec)
        await self._no_check_changes(routespec)
        try:
            written = await self._writes.write(Delete(routespec), self.wait_for_proxies)
        except Rejected as refusal:
            if refusal.reason != "namespace":
                raise
            # The hub would keep a server that it cannot unroute for ever.
            self.log.warning("No route of namespace %s to delete: %s", self.namespace, refusal)
        else:
            self._report_lagging(f"Route {routespec} deleted", written)

    async def get_all_routes(self) -> TableRoutes:
        """This hub's routes as of now. Raises when the cluster cannot say; an empty answer means an empty table.

        Their data tell when they were last active (`last_activity`), if a proxy has seen it or the route was written lately.
        """
        start = time.perf_counter()
        routes = TableRoutes()
        for page in await self.client.list_json(as_table_routes):
            routes.take(page)
        PROXY_POLL_DURATION_SECONDS.observe(time.perf_counter() - start)
        return routes

    async def get_route(self, routespec: str) -> dict[str, Any] | None:
        """One route as of now, or None. Raises when the cluster cannot say."""
        routespec = self.validate_routespec(routespec)
        route = await self.client.get(routespec)
        # The cluster finds it in another spelling, too (`%40` for `@`); in the list of all it is not under this one.
        return None if route is None or route.routespec != routespec else _as_hub_route(route)

    async def check_routes(
        self,
        user_dict: Mapping[Any, Any],
        service_dict: Mapping[str, Any],
        routes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Makes the table what the hub wants it to be, in one batch; see the base class for what that is.

        A route that the cluster refuses is named in the log and keeps no other from being mended. Raises when it is the
        hub's own, and when the cluster does not answer.
        """
        async with self._one_check_at_a_time():
            start = time.perf_counter()
            # A hub that finds nothing to write has a predecessor all the same.
            await self.client.open()
            if not routes:
                self.log.debug("Fetching routes to check")
                routes = await self.get_all_routes()
            hub_routespec = self.app.hub.routespec
            wanted = Wanted.by(hub_routespec, self.hub, user_dict.values(), service_dict.values(), self.extra_routes)
            changes = wanted.changes_to(routes, self.log)
            # Nothing was awaited since the hub was looked at. What it decides from here on comes after our changes.
            decided = asyncio.Event()
            self._under_check = {change.routespec: decided for change in changes}
            try:
                written = await self.client.write_each(changes, self.wait_for_proxies)
            finally:
                self._under_check = {}
                decided.set()
            for _, answer in written.applied:
                self._report_lagging("Routes checked", answer)
            self._report_held(sum(answer.held for _, answer in written.applied))
            for change, refusal in written.refused:
                if change.routespec == hub_routespec:
                    raise refusal
                if refusal.reason == "precondition":
                    self.log.info("Route %s has changed since it was found stale, it stays", change.routespec)
                else:
                    self.log.error("Route %s cannot be mended: %s", change.routespec, refusal)
            CHECK_ROUTES_DURATION_SECONDS.observe(time.perf_counter() - start)

    def _one_check_at_a_time(self) -> asyncio.Lock:
        return self._check_locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _no_check_changes(self, routespec: str) -> None:
        """Waits for a check that is about to change this route.

        What the check saw is older than what the hub wants now, but during an outage its batch may well be applied
        later; and where both spell the same route, the table could not tell that it was added again.
        """
        while (decided := self._under_check.get(routespec)) is not None:
            await decided.wait()

    async def start(self) -> None:
        """Starts Holdfast, or goes on with the one that an earlier hub left running.

        Returns when the API and every public port answer and every proxy follows the table. Raises when that takes
        longer than `start_timeout`, when the process ends, or when a setting asks for what this version cannot do.
        """
        self._refuse_unsupported()
        arguments = ["--replicas", str(self.replicas), "--proxies", str(self.proxies)]
        door, doors = await self._doors()
        arguments += [*door, "--base-port", str(self.base_port), "--proxy-admin-base", str(self.proxy_admin_base)]
        arguments += ["--error-target", url_path_join(self.hub.url, "error"), *self._tls_arguments()]
        self.log.info("Starting Holdfast @ %s with its data in %s", self.public_url, os.path.abspath(self.data_dir))
        process = self._process = UpProcess(self.command, os.path.abspath(self.data_dir), self.log)
        # Said even where it is the default: a process of a version that asked for no token is not gone on with.
        token_file = os.path.abspath(self.auth_token_file) if self.auth_token_file else process.token_file
        arguments += ["--api-token-file", token_file]
        self.client.credentials.auth_token_file = token_file
        self.endpoints = [f"127.0.0.1:{self.base_port + 10 * i}" for i in range(self.replicas)]
        try:
            await process.start(arguments, self.stop_timeout, self._own_token())
            await self._wait_until_ready(process, doors)
        except FileNotFoundError:
            self.log.error("There is no command %r: install Holdfast or set c.HoldfastProxy.command", self.command[0])
            raise
        except BaseException:
            await process.stop(self.stop_timeout)
            raise
        self._watch = asyncio.ensure_future(self._keep_running(process, arguments, doors))

    async def stop(self) -> None:
        """Stops what `start` started. The routes stay on disk. May be called in another event loop than `start` was."""
        if self._watch is not None:
            loop = self._watch.get_loop()
            if loop is asyncio.get_running_loop():
                self._watch.cancel()
                await asyncio.wait([self._watch])
            elif not loop.is_closed():
                # It may stand still until we return.
                loop.call_soon_threadsafe(self._watch.cancel)
            self._watch = None
        await self.client.close()
        if self._process is not None:
            self.log.info("Stopping Holdfast[%s]", self._process.pid)
            await self._process.stop(self.stop_timeout)

    def _own_token(self) -> str | None:
        """What the process is to keep a token by; None if that is the business of whoever writes `auth_token_file`."""
        return None if self.auth_token_file else self.auth_token

    def _refuse_unsupported(self) -> None:
        if urlsplit(self.public_url).scheme not in ("http", "https", "http+unix"):
            raise RuntimeError(
                f"JupyterHub.bind_url: give http://ip:port, https://ip:port or http+unix://%2Fpath, not {self.public_url}"
            )
        if self.endpoints != [DEFAULT_ENDPOINT] and self._process is None:
            raise RuntimeError(
                f"HoldfastProxy.endpoints names a cluster, {self.endpoints}, and should_start asks for a new one. Set "
                "c.HoldfastProxy.should_start = False to use the cluster, or remove endpoints to start one"
            )
        if self.client.credentials.uses_tls:
            raise RuntimeError(
                "HoldfastProxy.endpoints_ssl_ca, endpoints_ssl_cert, endpoints_ssl_key and endpoints_server_name are for a "
                "cluster with certificates, and should_start starts one on 127.0.0.1 without. Set "
                "c.HoldfastProxy.should_start = False to use the cluster, or remove them"
            )

    async def _doors(self) -> tuple[list[str], list[str]]:
        """What `holdfast up` is told about where users come in, and the URL of each proxy there."""
        address = urlsplit(self.public_url)
        if address.scheme == "http+unix":
            path = unquote(address.netloc)
            sockets = [path, *(f"{path}.{number}" for number in range(1, self.proxies))]
            return ["--socket", path], [f"http+unix://{quote(path, safe='')}" for path in sockets]
        ip, port = await _ip_address(address.hostname), address.port or (443 if address.scheme == "https" else 80)
        urls = [f"{address.scheme}://{_connect_address(ip)}:{port + number}" for number in range(self.proxies)]
        return ["--port", str(port), *(("--ip", ip) if ip else ())], urls

    def _tls_arguments(self) -> list[str]:
        """What proxies are told about TLS: towards users, and with `internal_ssl` towards the hub and users' servers."""
        files = {"ssl-key": self.ssl_key, "ssl-cert": self.ssl_cert}
        if self.app.internal_ssl:
            ours = self.app.internal_proxy_certs["proxy-client"]
            files["client-ssl-key"] = ours["keyfile"]
            files["client-ssl-cert"] = ours["certfile"]
            files["client-ssl-ca"] = self.app.internal_trust_bundles["proxy-client-ca"]
        return [text for flag, file in files.items() if file for text in (f"--{flag}", file)]

    async def _wait_until_ready(self, process: UpProcess, doors: list[str]) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            problem = await self._why_not_ready(doors)
            # Asked last: another program on our ports may have answered in place of a process that could not bind.
            ended = process.ended()
            if ended is not None:
                raise RuntimeError(f"Holdfast ended during its start with {ended}; its own output says why")
            if problem is None:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"Holdfast is not ready after {self.start_timeout:g} s: {problem}")
            await asyncio.sleep(READY_POLL_SECONDS)

    async def _why_not_ready(self, doors: list[str]) -> str | None:
        try:
            # Linearizable, so the answer proves a leader with a quorum behind it.
            await self.client.get("/", timeout=1.0)
        except (Unavailable, LockedOut) as e:
            # One that an earlier hub left running does not know a new token yet.
            return str(e)
        for number, url in enumerate(doors):
            problem = await _why_not(f"{url}/_chp_healthz")
            # A proxy serves from its copy on disk before it follows the replicas; until then no write waits for it.
            problem = problem or await _why_not(
                f"http://127.0.0.1:{self.proxy_admin_base + number}/status",
                lambda body: None if json.loads(body)["connected"] else "the proxy does not follow a replica yet",
            )
            if problem is not None:
                return problem
        return None

    async def _keep_running(self, process: UpProcess, arguments: list[str], doors: list[str]) -> None:
        """Starts Holdfast again whenever it has ended or hangs. It comes back with its routes."""
        is_back, silent = True, 0
        while True:
            await asyncio.sleep(self.check_running_interval)
            ended = process.ended()
            if ended is None and is_back:
                # Counted, not timed: when this loop stood still itself, it has asked once and not for long.
                silent = 0 if await _some_answer(doors) else silent + 1
                if not 0 < self.hung_checks <= silent:
                    continue
                self.log.error("Holdfast[%s] runs and has not answered %i times, ending it", process.pid, silent)
                await process.stop(0)
                ended = process.ended()
            is_back, silent = False, 0
            try:
                if ended is not None:
                    self.log.error("Holdfast ended with %s, starting it again", ended)
                    await process.start(arguments, self.stop_timeout, self._own_token())
                await self._wait_until_ready(process, doors)
                # The table is durable, its disk need not be.
                await self.check_routes(self.app.users, self.app._service_map)
            except Exception:
                self.log.exception("Holdfast is not back yet, next try in %g s", self.check_running_interval)
            else:
                self.log.info("Holdfast is back")
                is_back = True

    async def _cleanup(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """What the hub does at its end; before that, what it does whenever it stops a server: the route goes first."""
        if self.app.cleanup_servers:
            spawners = (spawner for user in self.app.users.values() for spawner in user.spawners.values())
            deletes = [Delete(spawner.proxy_spec) for spawner in spawners if spawner.active]
            try:
                await asyncio.wait_for(self.client.write_each(deletes, deletes_meant=True), LAST_WORDS_SECONDS)
            except (HoldfastError, asyncio.TimeoutError) as e:
                self.log.warning("The routes of the servers that are stopped now stay until the hub is back: %r", e)
        await cleanup()

    def _report_held(self, held: int) -> None:
        if held:
            self.log.error(
                "%i routes that this hub does not know are served on: so many stale routes at once look like a hub that lost "
                "its database. `holdfast held` lists them; an operator may confirm or reject, or they go by themselves",
                held,
            )

    def _report_lagging(self, what: str, written: routes_pb2.WriteResponse) -> None:
        # Who is named lags, also if it was not counted.
        lagging = max(written.proxies_live - written.proxies_synced, len(written.proxies_lagging))
        if lagging:
            self.log.warning(
                "%s at revision %i; %i of %i proxies do not serve that yet: %s",
                what,
                written.revision,
                lagging,
                written.proxies_synced + lagging,
                ", ".join(written.proxies_lagging),
            )


async def _why_not(url: str, judge: Callable[[bytes], str | None] = lambda body: None) -> str | None:
    """Why `url` does not answer as it should, in words; None if it does."""
    try:
        response = await _fetch(url)
    except (OSError, HTTPClientError) as e:
        return f"{url}: {e}"
    problem = f"{response.code} {response.reason}" if response.code != 200 else judge(response.body)
    return None if problem is None else f"{url}: {problem}"


async def _some_answer(doors: list[str]) -> bool:
    for url in doors:
        try:
            # That it is not ready is an answer, too.
            await _fetch(f"{url}/_chp_healthz")
        except (OSError, HTTPClientError):
            continue
        return True
    return False


async def _fetch(url: str) -> HTTPResponse:
    # Not the client that is configured for the hub: it may go through the environment's http_proxy. The users' certificate
    # is for the name that they come by, and not for this address.
    resolver = None
    if url.startswith("http+unix://"):
        path, _, rest = url.removeprefix("http+unix://").partition("/")
        url, resolver = f"http://localhost/{rest}", _OneSocket(path=unquote(path))
    client = SimpleAsyncHTTPClient(force_instance=True, resolver=resolver)
    try:
        return await client.fetch(url, raise_error=False, connect_timeout=1, request_timeout=2, validate_cert=False)
    finally:
        client.close()


class _OneSocket(Resolver):
    """Finds every name at one unix socket."""

    def initialize(self, path: str) -> None:
        self.path = path

    async def resolve(self, host: str, port: int, family: int = 0) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self.path)]


def _as_hub_route(route: routes_pb2.Route) -> dict[str, Any]:
    data = json.loads(route.data or "{}")
    if route.last_activity_ms:
        moment = datetime.fromtimestamp(route.last_activity_ms / 1000, timezone.utc)
        data["last_activity"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"routespec": route.routespec, "target": route.target, "data": data}


async def _ip_address(host: str | None) -> str:
    """The IP address that a host in a bind URL stands for; empty for every address."""
    if host in (None, "", "*"):
        return ""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def _connect_address(ip: str) -> str:
    """Where to reach, from this machine, what listens on `ip`."""
    if ip in ("", "0.0.0.0"):
        return "127.0.0.1"
    if ip == "::":
        return "[::1]"
    return f"[{ip}]" if ":" in ip else ip
