"""The demo, shortened: from three training runs to a report, twice with the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

DEMO = Path(__file__).parents[1] / "scripts" / "demo.py"


def run_demo(out: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, DEMO, "--out", out, "--steps", "12"],
        capture_output=True, text=True, timeout=280, check=False, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_the_demo_reports_and_repeats_itself(tmp_path):
    runs = [run_demo(tmp_path / name) for name in ("first", "second")]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "report.html" in run.stdout
    tree = xr.open_datatree(tmp_path / "first" / "store.zarr", engine="zarr", consolidated=False)
    assert set(tree["models"].children) == {"seed0", "seed1", "seed2"}
    assert tree.sizes["sample"] >= 256
    layers = {f"model.layers.{i}" for i in range(3)} | {"model.embed_tokens", "model.norm"}
    assert layers <= set(tree["models/seed1"].data_vars)
    assert int(tree["models/seed1"]["step"][0]) == 0
    spreads = [
        xr.open_datatree(tmp_path / name / "store.analysis" / "results.zarr", engine="zarr")["spread"]["spread"]
        for name in ("first", "second")
    ]
    np.testing.assert_allclose(spreads[0], spreads[1], atol=1e-5, rtol=0)
    summary = json.loads((tmp_path / "first" / "store.analysis" / "summary.json").read_text())
    assert set(summary["layers"]) == layers
