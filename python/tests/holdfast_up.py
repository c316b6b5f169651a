"""The real binary: `holdfast up` as a process of the test's own."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from ports import free_ports
from waiting import eventually

from jupyterhub_holdfast import Credentials, RouteClient

TOKEN = "the-token-of-this-cluster"


def find_holdfast():
    """The binary under test: $HOLDFAST_BIN, else cargo's debug build, else the one on PATH."""
    target_dirs = [os.environ.get("CARGO_TARGET_DIR"), Path.home() / ".cache" / "holdfast" / "target"]
    candidates = [os.environ.get("HOLDFAST_BIN")]
    candidates += [Path(target) / "debug" / "holdfast" for target in target_dirs if target]
    candidates.append(shutil.which("holdfast"))
    found = next((str(path) for path in candidates if path and Path(path).is_file()), None)
    if found is None:
        raise FileNotFoundError("no holdfast binary: build it (make build) or name it in HOLDFAST_BIN")
    return found


async def leader_of(client):
    """The leader's name, by the first answer of some replica that knows one. Closes the client."""

    async def leader():
        status = await client.status()
        return next((member.name for member in status.members if member.node_id == status.leader_id), None)

    name = await eventually(leader, "a replica leads")
    await client.close()
    return name


class HoldfastUp:
    """One `holdfast up` with its replicas and proxies, on ports of its own; or with `socket` for users to come by.

    The output goes to `<data_dir>.log`; a failed start quotes it. The token is in `<data_dir>.token`, before the start already.
    """

    def __init__(self, data_dir, replicas=3, proxies=2, token=TOKEN, socket=None, flags=()):
        self.data_dir = Path(data_dir)
        self.log_path = self.data_dir.with_suffix(".log")
        self.token, self.token_file = token, str(self.data_dir.with_suffix(".token"))
        Path(self.token_file).write_text(f"{token}\n")
        first = free_ports(10 * replicas + 2 * proxies)
        self.base_port = first
        self.public_port = first + 10 * replicas
        self.admin_port = self.public_port + proxies
        self.replicas, self.proxies = replicas, proxies
        self.more_flags = [
            *(("--socket", socket) if socket else ("--ip", "127.0.0.1", "--port", self.public_port)),
            *flags,
        ]
        self.process = None

    @property
    def endpoints(self):
        return [f"127.0.0.1:{self.base_port + 10 * i}" for i in range(self.replicas)]

    @property
    def public_urls(self):
        return [f"http://127.0.0.1:{self.public_port + j}" for j in range(self.proxies)]

    @property
    def settings(self):
        """Of a hub that writes its routes here."""
        traits = {"should_start": False, "endpoints": self.endpoints, "auth_token_file": self.token_file}
        return [f"c.HoldfastProxy.{name} = {value!r}" for name, value in traits.items()]

    def client(self, endpoints=None, **options):
        return RouteClient(
            endpoints or self.endpoints, credentials=Credentials(auth_token_file=self.token_file), **options
        )

    @property
    def flags(self):
        """Of a command that asks this cluster."""
        return ["--endpoints", ",".join(self.endpoints), "--endpoints-token-file", self.token_file]

    def child_pid(self, name):
        """Of a replica (`r0`) or proxy (`p0`), as of now: a restarted one has another. None while it does not run."""
        return json.loads((self.data_dir / "up.json").read_text())["children"].get(name)

    def ask(self, *arguments, exit_code=0):
        """What a command of the binary says about this cluster."""
        command = [find_holdfast(), *arguments, *self.flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == exit_code, f"{arguments}: {done}"
        return done.stdout

    async def restarted(self, name, pid):
        """Returns when the child that had `pid` runs under another one."""
        await eventually(lambda: self.child_pid(name) not in (None, pid), f"{name} is started again")

    async def leader(self):
        """The leader's name. The first answer of some replica that knows one decides."""
        return await leader_of(self.client())

    async def all_ready(self):
        """Returns when every replica says that it has caught up."""
        for endpoint in self.endpoints:
            client = self.client([endpoint])

            async def ready(client=client):
                return (await client.status()).ready

            await eventually(ready, f"the replica at {endpoint} is ready")
            await client.close()

    def __enter__(self):
        command = [find_holdfast(), "up", "--data-dir", self.data_dir, *self.more_flags]
        command += ["--replicas", self.replicas, "--proxies", self.proxies]
        command += ["--base-port", self.base_port, "--proxy-admin-base", self.admin_port]
        command += ["--api-token-file", self.token_file]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        is_up = threading.Event()

        def read():
            with self.log_path.open("a") as log:
                for line in self.process.stdout:
                    log.write(line)
                    log.flush()
                    if line.startswith("holdfast is up: "):
                        is_up.set()

        self._reader = threading.Thread(target=read)
        self._reader.start()
        deadline = time.monotonic() + 60
        while not is_up.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"holdfast did not come up:\n{self.log_path.read_text()}")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        finally:
            self._reader.join()
