"""How a process is started, found again and ended. The processes are real; they only do less than Holdfast."""

import json
import logging
import os
import signal
import sys

import pytest
from hub import until
from processes import is_alive

from jupyterhub_holdfast.process import HUB_FILE, TOKEN_FILE, UP_FILE, InUse, UpProcess

# Behaves as `holdfast up` does towards whoever starts it: a child, a note about both, and a lock.
PROGRAM = """
import fcntl, json, os, signal, subprocess, sys, time
data_dir = sys.argv[sys.argv.index("--data-dir") + 1]
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in sys.argv:
    lock = open(os.path.join(data_dir, "lock"), "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    open(os.path.join(data_dir, "locked"), "w").close()
    time.sleep(600)
child = subprocess.Popen([sys.executable, sys.argv[0], "child"] + sys.argv[1:])
if "--stubborn" not in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while not os.path.exists(os.path.join(data_dir, "locked")):
    if child.poll() is not None:
        sys.exit(1)
    time.sleep(0.01)
os.unlink(os.path.join(data_dir, "locked"))
with open(os.path.join(data_dir, "new"), "w") as note:
    json.dump({"pid": os.getpid(), "children": {"r0": child.pid}}, note)
os.rename(os.path.join(data_dir, "new"), os.path.join(data_dir, "up.json"))
try:
    time.sleep(600)
finally:
    child.terminate()
    child.wait()
"""


@pytest.fixture
def make(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    data_dir = tmp_path / "data"

    def make():
        return UpProcess([sys.executable, str(program)], data_dir, logging.getLogger("test"))

    make.data_dir = data_dir
    yield make
    for pid in pids(data_dir):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def pids(data_dir):
    try:
        note = json.loads((data_dir / UP_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return []
    everyone = [note["pid"], *note["children"].values()] if note else []
    return [pid for pid in everyone if isinstance(pid, int)]


async def started(make, *arguments, grace=10):
    process = make()
    await process.start(list(arguments), grace)
    until(lambda: process.pid in pids(make.data_dir), 10, "the process runs")
    return process


async def test_stop_ends_the_process_and_its_children(make):
    process = await started(make)
    assert process.ended() is None
    everyone = pids(make.data_dir)
    await process.stop(grace=10)
    assert process.ended() == "exit code 0"
    assert not any(map(is_alive, everyone))
    assert (make.data_dir / UP_FILE).exists()


async def test_a_process_that_does_not_end_is_killed_with_its_children(make):
    process = await started(make, "--stubborn")
    everyone = pids(make.data_dir)
    await process.stop(grace=0.3)
    assert process.ended() == "signal 9"
    until(lambda: not any(map(is_alive, everyone)), 10, "everyone is gone")


async def test_a_second_start_with_the_same_settings_goes_on_with_the_first_process(make):
    first = await started(make, "--port", "1")
    second = await started(make, "--port", "1")
    assert second.pid == first.pid
    assert second.ended() is None
    await second.stop(grace=10)
    until(lambda: first.ended() == "exit code 0", 10, "its parent has heard of its end")
    assert second.ended() is not None


async def test_a_process_finds_its_token_and_one_that_goes_on_another(make):
    first = make()
    await first.start([], 10, "one")
    file = make.data_dir / TOKEN_FILE
    assert first.token_file == str(file)
    assert file.read_text() == "one\n"
    until(lambda: first.pid in pids(make.data_dir), 10, "the process runs")
    second = make()
    await second.start([], 10, "another")
    assert second.pid == first.pid
    assert file.read_text() == "another\n"
    # Who says nothing takes what there is.
    await make().start([], 10, "")
    assert file.read_text() == "another\n"
    await second.stop(grace=10)


def test_a_token_is_kept_for_its_owner_alone_and_made_up_where_there_is_none(make):
    make.data_dir.mkdir()
    process, file = make(), make.data_dir / TOKEN_FILE
    process.keep_token("")
    made = file.read_text()
    assert len(bytes.fromhex(made.strip())) == 32
    assert file.stat().st_mode & 0o777 == 0o600
    process.keep_token("")
    assert file.read_text() == made
    file.chmod(0o644)
    process.keep_token("one\n")
    assert file.read_text() == "one\n"
    assert file.stat().st_mode & 0o777 == 0o600
    file.unlink()
    process.keep_token("")
    assert file.read_text() not in (made, "one\n")
    assert [path.name for path in make.data_dir.iterdir()] == [TOKEN_FILE]


async def test_a_second_start_with_other_settings_replaces_the_first_process(make):
    first = await started(make, "--port", "1")
    second = await started(make, "--port", "2")
    assert second.pid != first.pid
    assert first.ended() == "exit code 0"
    await second.stop(grace=10)


async def test_children_of_a_process_that_was_killed_do_not_keep_the_next_one_out(make):
    first = await started(make)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: first.ended() is not None, 10, "the process is gone")
    second = await started(make)
    assert second.ended() is None
    await second.stop(grace=10)


async def test_somebody_elses_process_is_left_alone(make):
    first = await started(make)
    (make.data_dir / HUB_FILE).unlink()
    with pytest.raises(InUse, match=f"pid {first.pid}"):
        await make().start([], 10, "a-token-of-ours")
    assert first.ended() is None
    assert not (make.data_dir / TOKEN_FILE).exists()
    await first.stop(grace=10)


async def test_a_pid_that_somebody_else_has_now_is_left_alone(make):
    make.data_dir.mkdir()
    for name in (UP_FILE, HUB_FILE):
        (make.data_dir / name).write_text(json.dumps({"pid": os.getpid(), "children": {"r0": os.getppid()}}))
    process = await started(make)
    assert process.pid != os.getpid()
    await process.stop(grace=10)


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"pid": "x", "children": {"r0": null}}', '{"pid": 1, "children": {}}']
)
async def test_a_damaged_note_is_no_note(make, note):
    make.data_dir.mkdir()
    (make.data_dir / UP_FILE).write_text(note)
    (make.data_dir / HUB_FILE).write_text(note)
    process = await started(make)
    await process.stop(grace=10)


async def test_a_command_that_is_not_there_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        await UpProcess(["no-such-command"], tmp_path / "data", logging.getLogger("test")).start([], 1)
