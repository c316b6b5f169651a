"""The `holdfast up` that the hub starts, finds again, and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Written by `holdfast up` into its data directory: its own pid and its children's.
UP_FILE = "up.json"
# Written by the hub beside it: what it started, and with which settings.
HUB_FILE = "jupyterhub.json"
# Where `holdfast up` by itself keeps the token that opens its API.
TOKEN_FILE = "api-token"

POLL_SECONDS = 0.05


class InUse(RuntimeError):
    """The data directory belongs to a running `holdfast up` that no hub started."""


class UpProcess:
    """One `holdfast up` on this machine.

    It lives in a session of its own: a Ctrl-C at the hub's terminal is for the hub, and a hub that is killed leaves its
    users' connections alone. The next hub finds it by the data directory and goes on with it.
    """

    def __init__(self, command: Sequence[str], data_dir: str | os.PathLike[str], log: logging.Logger):
        self._command = [*command, "up", "--data-dir", str(data_dir)]
        self._data_dir = Path(data_dir)
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process, or of the last one; None before `start`."""
        return self._pid

    @property
    def token_file(self) -> str:
        """The file that `keep_token` writes."""
        return str(self._data_dir / TOKEN_FILE)

    def keep_token(self, token: str) -> None:
        """Puts `token` into `token_file`, for its owner alone. An empty one leaves the token that is there, or makes one up.

        A process that runs reads it within 10 seconds.
        """
        if not token and os.path.exists(self.token_file):
            return
        new = f"{self.token_file}.new"
        with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(f"{token.strip() or secrets.token_hex(32)}\n")
            file.flush()
            # An empty file would keep Holdfast from starting after a loss of power.
            os.fsync(file.fileno())
        os.replace(new, self.token_file)

    async def start(self, arguments: Sequence[str], grace: float, token: str | None = None) -> None:
        """Goes on with a process that an earlier hub left running with the same `arguments`, or starts one.

        A left-over process with other arguments is stopped first, with `grace` seconds to end by itself; so are the
        children of one that died without them, which would keep the directory locked. `token`, if it is not None, is kept as
        `keep_token` says before any of them goes on or starts.

        Raises `InUse` if the directory belongs to a process that no hub started, FileNotFoundError if there is no such
        command.
        """
        command = [*self._command, *arguments]
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        running = _read_json(self._data_dir / UP_FILE)
        ours = _read_json(self._data_dir / HUB_FILE)

        # Our own note comes first: a process that has just been started has not written its own yet.
        pid = next((pid for pid in (ours.get("pid"), running.get("pid")) if self._belongs_here(pid)), None)
        if pid is not None and ours.get("pid") != pid:
            raise InUse(
                f"{self._data_dir} is in use by `holdfast up` with pid {pid}, which no hub started. Stop it, or set "
                "c.HoldfastProxy.should_start = False, c.HoldfastProxy.endpoints to its API addresses and "
                "c.HoldfastProxy.auth_token_file to where its token is (it says so when it has started)"
            )
        if token is not None:
            self.keep_token(token)
        if pid is not None:
            if ours.get("command") == command:
                self._log.info("Holdfast is still running at pid %i, going on with it", pid)
                self._child, self._pid = None, pid
                return
            self._log.warning("Holdfast is still running at pid %i with other settings, stopping it", pid)
            await self._end([pid], grace)
        children = running.get("children")
        left_over = [
            child for child in (children.values() if isinstance(children, dict) else ()) if self._belongs_here(child)
        ]
        if left_over:
            self._log.warning("Stopping processes that an earlier `holdfast up` left behind: %s", left_over)
            await self._end(left_over, grace)

        self._log.debug("Starting %s", command)
        self._child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
        self._pid = self._child.pid
        (self._data_dir / HUB_FILE).write_text(json.dumps({"pid": self._pid, "command": command}) + "\n")

    def ended(self) -> str | None:
        """Why the process is not running, in words; None while it runs."""
        if self._child is not None:
            status = self._child.poll()
            if status is None:
                return None
            return f"signal {-status}" if status < 0 else f"exit code {status}"
        return None if self._pid is not None and self._belongs_here(self._pid) else "unknown exit code"

    async def stop(self, grace: float) -> None:
        """Ends the process with everything it started, by force after `grace` seconds. The data stays."""
        if self._pid is not None and self.ended() is None:
            await self._end([self._pid], grace)

    async def _end(self, pids: Sequence[int], grace: float) -> None:
        deadline = time.monotonic() + grace
        for pid in pids:
            _signal(os.kill, pid, signal.SIGTERM)
        while any(self._runs(pid) for pid in pids):
            if time.monotonic() > deadline:
                self._log.warning("Holdfast at pid %s did not end within %g s, killing it", pids, grace)
                for pid in pids:
                    # Its children would outlive it. They share its process group, unless somebody else started it.
                    leads_group = _signal(os.getpgid, pid) == pid
                    _signal(os.killpg if leads_group else os.kill, pid, signal.SIGKILL)
                deadline = float("inf")
            await asyncio.sleep(POLL_SECONDS)

    def _runs(self, pid: int) -> bool:
        if self._child is not None and pid == self._child.pid:
            return self._child.poll() is None
        return self._belongs_here(pid)

    def _belongs_here(self, pid: Any) -> bool:
        """Whether `pid` runs and works on our data directory. Pids are used again, and this one may get signals."""
        return isinstance(pid, int) and str(self._data_dir) in _command_line(pid)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if there is none, or none that is whole."""
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _command_line(pid: int) -> str:
    """Of a running process; empty for one that has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        pass
    try:
        return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def _signal(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function`, for which a process that is gone is no error."""
    try:
        return function(*arguments)
    except ProcessLookupError:
        return None
