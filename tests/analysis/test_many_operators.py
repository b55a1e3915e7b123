"""Layouts of very many operators come from sketches, kept by content, and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repaudit as ra
from repaudit.analysis import embeddings
from repaudit.embed.mds import procrustes_align


def test_trajectories_beyond_the_limit_come_from_sketches(
    planted_store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = planted_store(models=3, layers=("first",))
    quiet = {"frames": 0, "units": 0, "figures": "none"}
    exact = ra.analyze(url, out=tmp_path / "exact", **quiet)  # type: ignore[arg-type]
    monkeypatch.setattr(embeddings, "MOST_EXACT", 10)
    sketched = ra.analyze(url, out=tmp_path / "sketched", **quiet)  # type: ignore[arg-type]
    assert "sketch" not in exact["trajectories"].attrs
    assert sketched["trajectories"].attrs["sketch"] == 4096
    given, found = (np.asarray(tree["trajectories"]["mds"])[0, 0].reshape(-1, 2) for tree in (exact, sketched))
    error = np.linalg.norm(procrustes_align(found, given) - given) / np.linalg.norm(given - given.mean(0))
    assert 0 < error < 0.1

    def never(*_: object) -> None:
        raise AssertionError("a kept sketch was made again")

    monkeypatch.setattr(embeddings, "sketch", never)
    again = ra.analyze(url, out=tmp_path / "sketched", seed=1, **quiet)  # type: ignore[arg-type]
    assert again["trajectories"].attrs["sketch"] == 4096


def slow_store(url: Path, models: int = 3, steps: int = 24, samples: int = 48) -> Path:
    """Models that drift slowly from points of their own to those that all share."""
    draw = np.random.default_rng(0)
    probe_set = ra.ProbeSet.from_tensors({"input": np.arange(2.0 * samples).reshape(samples, 2).astype(np.float32)})
    shared = draw.normal(size=(samples, 5))
    for model in range(models):
        own = draw.normal(size=(samples, 5))
        layers = dict.fromkeys(("first", "second"), ((samples, 5), "float32"))
        with ra.TrajectoryWriter(
            url, model_name=f"m{model}", probe_set=probe_set, layers=layers, durable=False
        ) as writer:
            for step, share in enumerate(np.linspace(0, 0.9, steps)):
                values = ((1 - share) * own + share * shared).astype(np.float32)
                writer.append(step, {"first": values, "second": values[::-1].copy()})
    return url


QUIET = {"frames": 0, "units": 0, "figures": "none"}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A store of slow trainings, and its analysis with every operator laid out."""
    folder = tmp_path_factory.mktemp("slow")
    url = slow_store(folder / "s.zarr")
    return url, ra.analyze(url, out=folder / "whole", **QUIET)  # type: ignore[arg-type]


@pytest.mark.parametrize("by_sketches", [False, True])
@pytest.mark.thin(2)
def test_of_very_many_operators_some_are_laid_out_and_the_others_placed_among_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slow: tuple[Path, Any], by_sketches: bool
) -> None:
    url, whole = slow
    count = whole["trajectories"].sizes["step"] * 3
    most = count // 2
    monkeypatch.setattr(embeddings, "MOST_LAID_OUT", most)
    if by_sketches:
        monkeypatch.setattr(embeddings, "MOST_EXACT", most)
    part = ra.analyze(url, out=tmp_path / "part", **QUIET)  # type: ignore[arg-type]
    assert "landmarks" not in whole["trajectories"].attrs
    assert part["trajectories"].attrs["landmarks"] == most
    for name, allowed in (("mds", 0.3 if by_sketches else 0.15), ("trajectory", 0.4)):
        given, found = (np.asarray(tree["trajectories"][name])[0, 0].reshape(-1, 2) for tree in (whole, part))
        assert np.isfinite(found).all()
        turned = procrustes_align(found, given)
        scale = (turned * given).sum() / (turned**2).sum()  # PHATE's potential has another scale with fewer operators
        error = np.linalg.norm(scale * turned - given) / np.linalg.norm(given - given.mean(0))
        assert error < allowed, name
    assert np.isfinite(part["trajectories"]["together"]).any()
    for name in ("stress", "distance_stress", "together_stress"):
        assert (part["trajectories"][name] < 1).all()
