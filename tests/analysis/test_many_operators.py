"""Layouts of very many operators come from sketches, kept by content, and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
