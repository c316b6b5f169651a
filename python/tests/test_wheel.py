"""The wheel, as an operator installs it: one `pip install` brings class and program."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from holdfast_up import find_holdfast
from hub import Hub, fetch
from ports import free_ports

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"), find_holdfast())


def build(directory, program):
    made = subprocess.run(
        [ROOT / "scripts" / "wheel.sh", directory],
        env=os.environ | {"HOLDFAST_BIN": str(program), "HOLDFAST_VENV": sys.prefix, "RELEASE": ""},
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise RuntimeError(made.stdout + made.stderr)
    return Path(made.stdout.strip())


def pip(*arguments):
    run = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel and what it asks for, in the versions that these tests run with."""
    directory = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    pip("--python", directory, "install", "--no-compile", "--no-index", "--find-links", dependencies(wheel), wheel)
    return directory


def dependencies(wheel):
    """A directory with the wheels of what `wheel` asks for. Kept: looking all of them up takes a minute."""
    versions = pip("freeze", "--exclude-editable")
    cache = Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast") / "dependencies"
    kept = cache / hashlib.sha256(f"{sys.version} {versions}".encode()).hexdigest()[:16]
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            constraints = Path(scratch) / "constraints.txt"
            constraints.write_text(versions)
            pip("wheel", "--constraint", constraints, "--wheel-dir", Path(scratch) / "wheels", wheel)
            next(Path(scratch).glob("wheels/jupyterhub_holdfast-*")).unlink()
            (Path(scratch) / "wheels").rename(kept)
    return kept


def test_a_wheel_is_for_one_kind_of_machine(wheel):
    distribution, version, *tags = wheel.stem.split("-")
    assert (distribution, version) == ("jupyterhub_holdfast", "0.1.0")
    assert tags[:2] == ["py3", "none"]
    assert tags[2] != "any"
    assert sysconfig.get_platform().split("-")[-1] in tags[2]


def test_a_hub_needs_the_wheel_and_the_name_of_the_class(environment, tmp_path, monkeypatch):
    # Nobody else's program is found.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ports = free_ports(5)
    settings = [f"c.HoldfastProxy.base_port = {ports}", f"c.HoldfastProxy.proxy_admin_base = {ports + 3}"]
    with Hub(tmp_path / "hub", ports + 4, settings, python=str(environment / "bin" / "python")) as hub:
        hub.start()
        up = json.loads((hub.directory / "holdfast-data" / "up.json").read_text())
        program = Path(f"/proc/{up['pid']}/exe").resolve()
        assert fetch(f"{hub.public_url}/hub/login").status == 200
        assert set(hub.routes()) == {"/"}
        hub.stop()
    assert program == (environment / "bin" / "holdfast").resolve()


def test_another_versions_program_makes_no_wheel(tmp_path):
    program = tmp_path / "holdfast"
    program.write_text("#!/bin/sh\necho holdfast 0.0.9\n")
    program.chmod(0o755)
    env = os.environ | {"HOLDFAST_WHEEL_BIN": str(program)}
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT / "python"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert made.returncode != 0
    assert "is 'holdfast 0.0.9', and this package is of 'holdfast 0.1.0'" in made.stdout + made.stderr
    assert not list(tmp_path.glob("*.whl"))
