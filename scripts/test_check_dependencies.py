"""The dependency check must fail when it should: each kind of breach is planted in a copy of the workspace."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECK = ROOT / "scripts" / "check_dependencies.py"


@pytest.fixture
def workspace(tmp_path):
    """A copy of the workspace's manifests, with empty sources."""
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    places = ("crates/*", "tests", "benches", "third-party/*")
    for manifest in [path for place in places for path in ROOT.glob(f"{place}/Cargo.toml")]:
        crate = tmp_path / manifest.parent.relative_to(ROOT)
        (crate / "src" / "bin").mkdir(parents=True)
        shutil.copy(manifest, crate / "Cargo.toml")
        (crate / "src" / "lib.rs").touch()
        for binary in manifest.parent.glob("src/bin/*.rs"):
            (crate / "src" / "bin" / binary.name).touch()
    return tmp_path


def check(workspace):
    return subprocess.run(
        [sys.executable, CHECK, "--manifest-path", workspace / "Cargo.toml"], capture_output=True, text=True
    )


def add_dependency(workspace, crate, dependency):
    manifest = workspace / "crates" / crate / "Cargo.toml"
    text = manifest.read_text()
    # A crate's tests may use what it may not.
    assert f"\n{dependency}.workspace" not in text.split("[dev-dependencies]")[0]
    manifest.write_text(text.replace("[dependencies]\n", f"[dependencies]\n{dependency}.workspace = true\n", 1))


def test_the_workspace_is_as_drawn(workspace):
    result = check(workspace)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("crate", "dependency", "complaint"),
    [
        ("proxy", "openraft", "holdfast-proxy links openraft"),
        ("proxy", "rocksdb", "holdfast-proxy links librocksdb-sys"),
        ("proxy", "holdfast-replica", "holdfast-proxy uses holdfast-replica"),
        ("client", "rocksdb", "holdfast-client links rocksdb"),
        ("table", "tokio", "holdfast-table links tokio"),
        ("table", "tonic", "holdfast-table links tonic"),
        ("table", "prost", "holdfast-table links prost"),
        ("table", "rand", "holdfast-table links rand"),
        ("replica", "holdfast-client", "holdfast-replica uses holdfast-client"),
    ],
)
def test_a_dependency_the_wrong_way_is_refused(workspace, crate, dependency, complaint):
    add_dependency(workspace, crate, dependency)
    result = check(workspace)
    assert result.returncode == 1
    assert complaint in result.stderr


def test_nothing_uses_the_tests(workspace):
    manifest = workspace / "crates" / "holdfast" / "Cargo.toml"
    dependency = '[dependencies]\nholdfast-tests = { path = "../../tests" }\n'
    manifest.write_text(manifest.read_text().replace("[dependencies]\n", dependency, 1))
    result = check(workspace)
    assert result.returncode == 1
    assert "holdfast uses holdfast-tests: nothing may use holdfast-tests" in result.stderr


def test_a_crate_without_a_place_is_refused(workspace):
    crate = workspace / "crates" / "extra"
    (crate / "src").mkdir(parents=True)
    (crate / "src" / "lib.rs").touch()
    (crate / "Cargo.toml").write_text('[package]\nname = "holdfast-extra"\nedition = "2024"\n')
    result = check(workspace)
    assert result.returncode == 1
    assert "holdfast-extra: has no place in the house" in result.stderr


def test_a_check_that_cannot_run_is_not_a_pass(workspace):
    (workspace / "crates" / "proxy" / "Cargo.toml").write_text("[package]\n")
    assert check(workspace).returncode != 0
