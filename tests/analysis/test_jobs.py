"""The analysis that docs/scaling.md submits, its jobs being processes of this machine in the place of a scheduler's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra

DOCS = Path(__file__).parents[2] / "docs/scaling.md"
SBATCH = """#!/bin/sh
cp "$1" "{folder}/$$.sh"
setsid sh "{folder}/$$.sh" >"{folder}/$$.log" 2>&1 </dev/null &
echo "$!" >>"{folder}/submitted"
echo "Submitted batch job $!"
"""
SCANCEL = '#!/bin/sh\nfor job; do kill -- "-$job" 2>/dev/null; echo "$job" >>"{folder}/cancelled"; done\n'


@pytest.fixture
def scheduler(tmp_path):
    """Provide the two commands of SLURM that jobs need, in a folder that lists jobs, and an environment for it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    elsewhere = {"DASK_JOBQUEUE__SLURM__SCHEDULER_OPTIONS": '{"dashboard_address": ":0"}'}  # beside other tests
    yield folder, os.environ | elsewhere | {"PATH": f"{folder}:{os.environ['PATH']}"}
    for job in (folder / "submitted").read_text().split():
        subprocess.run(["kill", "-9", "--", f"-{job}"], check=False, capture_output=True)


def documented(store: Path) -> str:
    """Return the script of the page, for another store and two jobs."""
    code = DOCS.read_text().partition("tests/analysis/test_jobs.py")[2].partition("```python\n")[2].partition("```")[0]
    for old, new in (("/shared/run/store.zarr", str(store)), ("jobs=8", "jobs=2"), ("workers(8)", "workers(2)")):
        assert code.count(old) == 1
        code = code.replace(old, new)
    return code


def test_jobs_of_a_scheduler_give_what_threads_give(planted_store, tmp_path, scheduler):
    store = planted_store(models=2, steps=(0, 1, 2), layers=("only",))
    local = ra.analyze(store, tmp_path / "local")
    folder, environment = scheduler
    (tmp_path / "analyze.py").write_text(documented(store))
    done = subprocess.run(
        [sys.executable, "analyze.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    submitted, cancelled = ((folder / name).read_text().split() for name in ("submitted", "cancelled"))
    assert len(submitted) == 2
    assert set(cancelled) == set(submitted)
    with xr.open_datatree(store.with_suffix(".analysis") / "results.zarr", engine="zarr") as tree:
        remote = tree.load()
    np.testing.assert_allclose(remote["spread"]["spread"], local["spread"]["spread"], rtol=1e-6, atol=1e-9)
