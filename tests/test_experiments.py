"""The experiments, in their short form, from the command to the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import repaudit as ra

ROOT = Path(__file__).parents[1]


def run(name: str, out: Path) -> str:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / f"scripts/experiments/{name}.py"),
        "--quick",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return (out / "RESULTS.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_merging(tmp_path: Path) -> None:
    page = run("merging", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["students"]
    arms = found["few labels"]
    assert set(arms) == {"none", "merged", "permuted"}
    stores = {name: ra.open_store(tmp_path / f"students-{name}.zarr").repaudit for name in ("train", "held-out")}
    names = [name for name in stores["train"].models if name.startswith("few-labels")]
    assert len(names) == 6
    assert stores["train"].steps(names[0]) == [0, 10, 20, 40]
    mean = {arm: np.mean([one["train distance"] for one in runs]) for arm, runs in arms.items()}
    assert mean["merged"] < 0.5 * mean["none"]
    assert f"| none | {mean['none']:.3f} |" in page
    target = ra.AlignmentTarget.from_results(
        tmp_path / "teachers-held-out.analysis/results.zarr", "penultimate", scale="shape"
    )
    features = stores["held-out"].activations("few-labels-merged-seed0", "top").isel(step=-1).values
    assert target.distance(features) == pytest.approx(arms["merged"][0]["held-out distance"], rel=1e-3)
    assert (tmp_path / "operators.png").stat().st_size > 10_000
    assert (tmp_path / "teachers-held-out.analysis/report.html").exists()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    run("merging", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == written
