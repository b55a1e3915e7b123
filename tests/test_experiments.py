"""The experiments in ``scripts/experiments``, in their quick form: what they write is what they found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra

CONVERGENCE = Path(__file__).parents[1] / "scripts" / "experiments" / "convergence.py"
NUMBER = r"(\d\.\d\d) \[(\d\.\d\d), (\d\.\d\d)\]"


def run_quick(out: Path) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, CONVERGENCE, "--quick", "--out", out],
        capture_output=True, text=True, timeout=600, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def spread_of(folder: Path) -> xr.Dataset:
    return xr.open_datatree(folder / "results.zarr", engine="zarr")["spread"].to_dataset().load()


def section(text: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of the first table under a heading, by the first cell of each row."""
    _, _, below = text.partition(f"\n### {heading}\n")
    assert below, f"no heading {heading}"
    lines = [line for line in re.split(r"\n#", below)[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {name: cells for name, *cells in rows}


def expect_estimate(cell: str, dataset: xr.Dataset) -> None:
    found = re.match(NUMBER, cell)
    assert found, cell
    np.testing.assert_allclose(
        [float(number) for number in found.groups()],
        [float(dataset[name]) for name in ("spread", "low", "high")],
        atol=0.005 + 1e-9,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_experiment_on_convergence_tells_what_it_found_and_trains_once(tmp_path):
    first = run_quick(tmp_path)
    recipes, models = ("base", "wide", "deep", "fast"), set(ra.open_store(tmp_path / "store.zarr").repaudit.models)
    assert len(models) == 8
    assert {model.partition("-")[0] for model in models} == set(recipes)
    assert all(f"{model}: loss" in first for model in models)

    text = (tmp_path / "RESULTS.md").read_text()
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert "analysis/report.html" in linked
    assert [path for path in linked if not (tmp_path / path).exists()] == []
    for recipe in recipes:
        spread = spread_of(tmp_path / "recipes" / recipe)
        for index, scale in enumerate(spread["scale_name"].values):
            rows = section(text, f"{recipe}, {scale}")
            assert set(rows) == {"embeddings", "middle", "penultimate", "last"}
            for layer, (start, peak, end, *_) in rows.items():
                curve = spread.isel(scale=index).sel(layer=layer)
                expect_estimate(start, curve.isel(step=0))
                expect_estimate(peak, curve.isel(step=int(curve["spread"].values.argmax())))
                expect_estimate(end, curve.isel(step=-1))
    groups = xr.open_datatree(tmp_path / "analysis" / "results.zarr", engine="zarr")["groups"].to_dataset().load()
    within = groups.sel(group="wide", other="wide", layer="last")["spread"]
    np.testing.assert_allclose(within, spread_of(tmp_path / "recipes" / "wide").sel(layer="last")["spread"], rtol=1e-9)
    assert float(groups.sel(group="base", other="fast").isel(step=0)["spread"].min()) > 0.1  # no common first weights

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "store.zarr").rglob("*") if path.is_file()}
    second = run_quick(tmp_path)
    assert ": loss" not in second
    assert "8 of 8 replicas were recorded already" in second
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store.zarr").rglob("*") if path.is_file()} == written
    again = (tmp_path / "RESULTS.md").read_text()
    assert again.partition("## How it was made")[0] == text.partition("## How it was made")[0]
