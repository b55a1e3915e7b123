"""The experiments in ``scripts/experiments``, in their quick form: what they write is what they found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra

EXPERIMENTS = Path(__file__).parents[1] / "scripts" / "experiments"
CONVERGENCE, MERGING = EXPERIMENTS / "convergence.py", EXPERIMENTS / "merging.py"
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


def run_merging(out: Path) -> str:
    done = subprocess.run(
        [sys.executable, MERGING, "--quick", "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return (out / "RESULTS.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_experiment_on_merging_tells_what_it_found_and_trains_once(tmp_path: Path) -> None:
    page = run_merging(tmp_path)
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
    run_merging(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == written
