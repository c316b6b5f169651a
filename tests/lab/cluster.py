"""Three replicas and two proxies, each a process that nobody starts again when it is killed."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from holdfast_up import find_holdfast
from hub import fetch, until
from jupyterhub_holdfast import RouteClient
from ports import free_ports
from waiting import eventually

REPLICAS = 3
PROXIES = 2
START_SECONDS = 60
STOP_SECONDS = 30


class Program:
    """A process with its log. It may be started again after its end."""

    def __init__(self, directory, name, *arguments):
        self.name = name
        self.log_path = directory / f"{name}.log"
        self.command = [str(argument) for argument in arguments]
        self.process = None

    @property
    def runs(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        with self.log_path.open("a") as log:
            # A Ctrl-C is for the one who started us all, who ends the others.
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self):
        """SIGKILL; returns when it is dead."""
        self.process.kill()
        self.process.wait()

    def ended(self):
        """Returns when it has ended, by force if it has not within the time that it was given."""
        if self.process is not None:
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()


class Replica(Program):
    def __init__(self, directory, number, first_port, peers):
        self.endpoint = f"127.0.0.1:{first_port}"
        self.admin_port = first_port + 2
        name = f"r{number}"
        flags = ["--name", name, "--data-dir", directory / f"{name}-data", "--peers", peers]
        flags += ["--listen-client", self.endpoint]
        flags += ["--listen-peer", f"127.0.0.1:{first_port + 1}", "--listen-admin", f"127.0.0.1:{self.admin_port}"]
        super().__init__(directory, name, find_holdfast(), "replica", *flags)


class Proxy(Program):
    def __init__(self, directory, number, first_port, endpoints, certificate):
        self.admin_port = first_port + 1
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{first_port}"
        self.port = first_port
        name = f"p{number}"
        flags = ["--name", name, "--data-dir", directory / f"{name}-data", "--endpoints", endpoints]
        flags += ["--ip", "127.0.0.1", "--port", first_port, "--listen-admin", f"127.0.0.1:{self.admin_port}"]
        flags += ["--drain-delay", "0s", "--drain-timeout", "5s"]
        if certificate:
            flags += ["--ssl-cert", certificate.cert, "--ssl-key", certificate.key]
        super().__init__(directory, name, find_holdfast(), "proxy", *flags)


class Cluster:
    """All of them, in `directory`; users come by TLS if there is a `certificate`. Leaving it ends what still runs."""

    def __init__(self, directory, certificate=None):
        self.directory = Path(directory)
        ports = free_ports(3 * REPLICAS + 2 * PROXIES)
        firsts = range(ports, ports + 3 * REPLICAS, 3)
        peers = ",".join(f"r{number}=127.0.0.1:{first + 1}" for number, first in enumerate(firsts))
        self.replicas = [Replica(self.directory, number, first, peers) for number, first in enumerate(firsts)]
        self.proxies = [
            Proxy(self.directory, number, first, ",".join(self.endpoints), certificate)
            for number, first in enumerate(range(firsts.stop, firsts.stop + 2 * PROXIES, 2))
        ]

    @property
    def endpoints(self):
        return [replica.endpoint for replica in self.replicas]

    @property
    def programs(self):
        return [*self.replicas, *self.proxies]

    def start(self):
        """Starts what does not run; returns when all of it is ready."""
        for program in self.programs:
            if not program.runs:
                program.start()
        for program in self.programs:
            until(lambda program=program: self._is_ready(program), START_SECONDS, f"{program.name} is ready")

    def _is_ready(self, program):
        if not program.runs:
            raise RuntimeError(
                f"{program.name} ended with {program.process.returncode}: {program.log_path.read_text()}"
            )
        return fetch(f"http://127.0.0.1:{program.admin_port}/readyz").status == 200

    async def leader(self):
        """The replica that leads, once one that runs is named."""
        client = RouteClient([replica.endpoint for replica in self.replicas if replica.runs])

        async def leader():
            status = await client.status()
            name = next((member.name for member in status.members if member.node_id == status.leader_id), None)
            # Until the others have noticed, they name one that is dead.
            return next((replica for replica in self.replicas if replica.name == name and replica.runs), None)

        try:
            return await eventually(leader, "a replica that runs leads")
        finally:
            await client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.programs:
            if program.runs:
                program.process.terminate()
        for program in self.programs:
            program.ended()


def end_servers(directory):
    """Ends what the hub in `directory` has started: users' servers, which outlive a hub that is killed, and kernels."""
    for how, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for pid in _servers(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        try:
            until(lambda: not _servers(directory), seconds, "users' servers end")
            return
        except AssertionError:
            pass
    raise RuntimeError(f"users' servers do not end: {_servers(directory)}")


def _servers(directory):
    """The processes whose home is in `directory`: a process id alone may have been given to another process since."""
    home = f"HOME={directory}/".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if any(setting.startswith(home) for setting in environment.split(b"\0")):
            pids.append(int(entry.name))
    return pids
