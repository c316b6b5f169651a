"""A real JupyterLab in a real browser goes on while everything but its own server and proxy is killed.

`make lab` installs what it needs and runs it. Once over HTTP/1.1 and once over TLS with HTTP/2: three replicas, two
proxies, a JupyterHub, and a user who opens a notebook and runs a cell; then the other proxy, the leader and the hub are
killed, and stay dead. After each a cell is run in the same page. The exit code is 0 only if every result was seen and no
WebSocket of the page dropped.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from certipy import Certipy
from cluster import Cluster, end_servers
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from desk import NOTEBOOK, Desk
from hub import Hub, fetch
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import async_playwright

USER = "alice"
PACKAGES = ["jupyterlab", "jupyterhub", "playwright"]
# By the word that a browser has for each.
PROTOCOLS = {"HTTP/1.1": "http/1.1", "TLS, HTTP/2": "h2"}
# What a WebSocket is accepted with: a switch of protocols, or the answer to a CONNECT of HTTP/2.
ACCEPTED = {"http/1.1": 101, "h2": 200}
# For all that one protocol takes, on a busy machine; each step has a bound of its own, too.
PROTOCOL_SECONDS = 600


async def main():
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(how, task.cancel)
    report = Report()
    directory = Path(tempfile.mkdtemp(prefix="holdfast-lab-"))
    failed = False
    try:
        certificate = make_certificate(directory)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                # This one and no other: its authority is known to nobody else.
                args=[f"--ignore-certificate-errors-spki-list={certificate.key_hash}"],
                # Signals are for us, who end it with all else.
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
            )
            report.say(", ".join([f"chromium {browser.version}", *(f"{of} {version(of)}" for of in PACKAGES)]))
            for name, protocol in PROTOCOLS.items():
                below = directory / protocol.replace("/", "-")
                below.mkdir()
                story = Story(report, name, below, browser, certificate if protocol == "h2" else None)
                try:
                    await asyncio.wait_for(story.tell(protocol), PROTOCOL_SECONDS)
                except Exception as error:
                    failed = True
                    why = str(error) or f"not over within {PROTOCOL_SECONDS} s"
                    report.say(f"{name}: FAILED: {type(error).__name__}: {why}")
            await browser.close()
    finally:
        if not failed:
            shutil.rmtree(directory)
    report.print()
    if failed:
        print(f"\nThe page did not go on: see above. Logs, and what the page looked like: {directory}")
        return 1
    print("\nThe page went on through all of it.")
    return 0


class Story:
    """What one user goes through by one protocol. However it ends, its processes end with it."""

    def __init__(self, report, name, directory, browser, certificate):
        self.report, self.name, self.directory = report, name, directory
        self.browser, self.certificate = browser, certificate
        self.runs = 0

    def say(self, text):
        self.report.say(f"{self.name}: {text}")

    async def tell(self, protocol):
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(Cluster(self.directory, self.certificate))
            await asyncio.to_thread(cluster.start)
            hub = self._hub(cluster)
            stack.callback(end_servers, hub.homes)
            stack.enter_context(hub)
            await asyncio.to_thread(hub.start)
            self.say("3 replicas, 2 proxies and a hub run")
            async with await self.browser.new_context() as context:
                try:
                    desk = await Desk.new(context)
                    await self._begin_work(desk, cluster.proxies[0].url, protocol)
                    await self._kill_in_turn(desk, cluster, hub)
                    await desk.save()
                    await desk.page.close()
                    await self._start_all_again(cluster, hub)
                    await self._work_by_the_other_proxy(await Desk.new(context), cluster.proxies[1])
                except Exception:
                    for number, page in enumerate(context.pages):
                        # The failure itself says more than that its picture could not be taken.
                        with contextlib.suppress(PlaywrightError):
                            await page.screenshot(path=self.directory / f"page-{number}.png")
                    raise
            await asyncio.to_thread(hub.stop)

    def _hub(self, cluster):
        proxy = cluster.proxies[0]
        settings = [
            "c.HoldfastProxy.should_start = False",
            f"c.HoldfastProxy.endpoints = {cluster.endpoints!r}",
            f"c.JupyterHub.public_url = {proxy.url + '/'!r}",
            "c.Spawner.default_url = '/lab'",
        ]
        hub = Hub(self.directory / "hub", proxy.port, settings)
        home = hub.homes / USER
        home.mkdir()
        (home / NOTEBOOK).write_text(json.dumps(EMPTY_NOTEBOOK))
        return hub

    async def _begin_work(self, desk, url, protocol):
        await desk.log_in(url, USER)
        spoken = await desk.protocol()
        if spoken != protocol:
            raise AssertionError(f"the page came by {spoken}")
        self.say(f"{USER} has logged in and sees JupyterLab, which came by {spoken}")
        await desk.open_notebook()
        await self._cell(desk, "a notebook opened, its kernel started")
        accepted = ACCEPTED[protocol]
        if set(desk.handshakes) != {accepted}:
            raise AssertionError(f"WebSockets were answered with {dict(desk.handshakes)}, not all with {accepted}")
        self.say(f"{desk.handshakes[accepted]} WebSockets opened, each accepted with {accepted}")

    async def _kill_in_turn(self, desk, cluster, hub):
        proxy, other = cluster.proxies
        other.kill()
        await self._cell(desk, f"the other proxy ({other.name}) killed")

        leader = await cluster.leader()
        leader.kill()
        successor = await cluster.leader()
        self.say(f"{leader.name} led and is dead, {successor.name} leads")
        await self._cell(desk, "the leader killed too")

        await asyncio.to_thread(hub.stop, signal.SIGKILL)
        answer = await asyncio.to_thread(fetch, f"{proxy.url}/hub/login", ca=self.certificate and self.certificate.ca)
        if answer.status != 503:
            raise AssertionError(f"the hub is dead, and yet its login page is answered with {answer.status}")
        await self._cell(desk, "the hub killed too")

    async def _start_all_again(self, cluster, hub):
        await asyncio.to_thread(cluster.start)
        await asyncio.to_thread(hub.start)
        self.say("all are started again")

    async def _work_by_the_other_proxy(self, desk, proxy):
        """In a new page: the same server, the same kernel, and no second login."""
        await desk.page.goto(f"{proxy.url}/user/{USER}/lab/tree/{NOTEBOOK}")
        await desk.kernel_is_idle()
        await self._cell(desk, f"all started again, a new page by {proxy.name}")

    async def _cell(self, desk, step):
        """Runs the next cell. Its result tells that the kernel is the one that ran all before it."""
        self.runs += 1
        count = "runs = 1" if self.runs == 1 else "runs += 1"
        seconds = await desk.run_cell(self.runs - 1, f"{count}; print(6 * 7, runs)", f"42 {self.runs}")
        self.say(f"{step}: the cell shows 42 {self.runs}, after {1000 * seconds:.0f} ms")
        if not desk.kept:
            desk.keep_sockets()
        dropped = desk.dropped()
        self.report.found(step, self.name, f"{1000 * seconds:.0f} ms, {len(dropped)} of {len(desk.kept)} dropped")
        if dropped:
            raise AssertionError(f"{step}: WebSockets dropped: {', '.join(dropped)}")


class Report:
    """What is said while it happens, and the table at the end."""

    def __init__(self):
        self.began = time.monotonic()
        self.rows = {}

    def say(self, text):
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def found(self, step, protocol, text):
        self.rows.setdefault(step, {})[protocol] = text

    def print(self):
        rows = [["the cell's result after, WebSockets dropped", *PROTOCOLS]]
        rows += [[step, *(by.get(protocol, "NOT SEEN") for protocol in PROTOCOLS)] for step, by in self.rows.items()]
        widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
        rows.insert(1, ["-" * width for width in widths])
        print()
        for first, *others in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            print("  ".join([f"{first:<{widths[0]}}", *cells]))


EMPTY_NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "execution_count": None, "id": "first", "metadata": {}, "outputs": [], "source": ""}
    ],
    "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def make_certificate(directory):
    """For 127.0.0.1, of an authority of its own."""
    store = Certipy(store_dir=str(directory / "certificates"))
    store.create_ca("authority")
    store.create_signed_pair("proxy", "authority", alt_names=["IP:127.0.0.1"])
    ca, pair = (store.store.get_record(name)["files"] for name in ("authority", "proxy"))
    key = x509.load_pem_x509_certificate(Path(pair["cert"]).read_bytes()).public_key()
    hashed = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return SimpleNamespace(
        ca=ca["cert"], key=pair["key"], cert=pair["cert"], key_hash=base64.b64encode(hashed).decode()
    )


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:
        sys.exit("lab: ended by a signal")
