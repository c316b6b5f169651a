"""The benchmark of JupyterHub's proxy classes works, and says so loudly where it does not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast_up import find_holdfast

HERE = Path(__file__).parent
MAIN = HERE.parents[1] / "benches" / "hub" / "main.py"


def bench(*flags, path="/usr/bin:/bin"):
    return subprocess.run(
        [sys.executable, MAIN, "--quick", *flags],
        env=os.environ | {"HOLDFAST_BIN": find_holdfast(), "PYTHONPATH": str(HERE), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.timeout(150)
def test_it_measures_and_tells_what_is_missing():
    run = bench()
    assert run.returncode == 0, run.stdout + run.stderr
    assert "chp       MISSING: no configurable-http-proxy on PATH" in run.stdout
    assert "MISSING, so nothing is said about: chp, traefik" in run.stdout
    table = run.stdout.partition("\nmedians of")[2].partition("\n\n")[0]
    rows = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in table.splitlines()[2:] if line)
    # Three of add_route, each with two figures, two of get_all_routes, three of the killed proxy.
    assert len(rows) == 11, table
    for row, cells in rows.items():
        ours, chp, traefik, *_ = cells.split()
        assert float(ours) >= 0, row
        assert (chp, traefik) == ("MISSING", "MISSING"), row
    wrong = next(cells.split() for row, cells in rows.items() if "wrong or no-route" in row)
    assert wrong[0] == "0"
    assert wrong[-1] == "yes"


def test_a_row_that_is_not_there_is_refused():
    run = bench("--rows", "add,rest")
    assert run.returncode == 2
    assert "rest: there are add, list, incident" in run.stderr
