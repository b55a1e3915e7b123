"""Stores and probe sets that several parts' tests share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import hypothesis
import numpy as np
import pytest
import torch
import xarray as xr

import repaudit as ra
from repaudit.cli import progress

SAMPLES, WIDTH = 48, 12

hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)


def pytest_configure(config: pytest.Config) -> None:
    """The same examples on every run, so that a red run is red again; new ones where the slow tests run too."""
    hypothesis.settings.load_profile("same" if config.option.markexpr == "not slow" else "random")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked ``thin(n)`` leave one in n to every run, spread over its parameters."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("thin") is not None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for some in cases.values():
        (n,) = some[0].get_closest_marker("thin").args
        order = sorted(some, key=lambda item: crc32(item.name.encode()))
        for item in order[max(1, len(order) // n) :]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _no_first_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a command that runs in this process from saying what it does, which it says where that takes a while."""
    monkeypatch.setattr(progress, "FIRST_SIGN", 600.0)


def labelled_probe_set() -> ra.ProbeSet:
    ids = torch.arange(SAMPLES * 5).reshape(SAMPLES, 5) % 17
    labels = [f"group {i % 4}" for i in range(SAMPLES)]
    return ra.ProbeSet.from_tensors({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels=labels)


@pytest.fixture
def probe_set() -> ra.ProbeSet:
    """48 samples of 5 tokens in 4 labelled groups."""
    return labelled_probe_set()


@pytest.fixture
def planted_store(tmp_path: Path, plant: Callable[..., Path]) -> Callable[..., Path]:
    """Make a store of models whose geometries converge, each in a rotated frame of its own."""
    return partial(plant, tmp_path)


@pytest.fixture(scope="session")
def plant() -> Callable[..., Path]:
    """Make the same in a folder that several tests share."""
    probe_set = labelled_probe_set()

    def make(
        folder: Path,
        models: int = 3,
        steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16),
        layers: tuple[str, ...] = ("first", "second"),
        name: str = "store.zarr",
    ) -> Path:
        url = folder / name
        common = np.random.default_rng(99).normal(size=(SAMPLES, WIDTH))
        for m in range(models):
            rng = np.random.default_rng(m)
            own, (rotation, _) = rng.normal(size=(SAMPLES, WIDTH)), np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
            shapes = dict.fromkeys(layers, ((SAMPLES, WIDTH), "float32"))
            with ra.TrajectoryWriter(
                url, model_name=f"seed{m}", probe_set=probe_set, layers=shapes, durable=False
            ) as writer:
                for i, step in enumerate(steps):
                    share = i / max(1, len(steps) - 1)
                    mixed = (share * common + (1 - share) * own) @ rotation
                    writer.append(step, {layer: mixed.astype(np.float32) for layer in layers}, loss=1.0 / (i + 1))
        return url

    return make


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of an analysis, half of its time, where a test looks at numbers alone."""

    def no_figures(_results: xr.DataTree, folder: Path, **_options: object) -> list[Path]:
        folder.mkdir()
        return []

    def no_report(_results: xr.DataTree, summary: Mapping[str, Any], path: Path) -> Path:
        path.write_text(json.dumps(summary["headline"]))
        return path

    monkeypatch.setattr("repaudit.analysis.folder.save_figures", no_figures)
    monkeypatch.setattr("repaudit.analysis.folder.write_report", no_report)
