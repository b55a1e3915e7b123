"""A small probe set, layers and recorded steps for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repaudit.store.read.stored_probe_set import StoredProbeSet

SAMPLES = 6


@pytest.fixture
def probe_set() -> StoredProbeSet:
    inputs = {"input_ids": np.arange(SAMPLES * 4).reshape(SAMPLES, 4), "attention_mask": np.ones((SAMPLES, 4), "int64")}
    ids = [f"passage-{index}" for index in range(SAMPLES)]
    return StoredProbeSet("f" * 64, ids, inputs, labels=list("aabbcc"), texts=[f"text {i}" for i in range(SAMPLES)])


@pytest.fixture
def layers() -> dict[str, tuple[tuple[int, ...], str]]:
    return {"model.layers.0": ((SAMPLES, 3), "float32"), "model.layers.1": ((SAMPLES, 3), "float32")}


@pytest.fixture
def step_arrays(layers: dict[str, tuple[tuple[int, ...], str]]) -> Callable[[int], dict[str, Any]]:
    """Give the arrays of one step: random, and the same for the same step."""

    def arrays(step: int) -> dict[str, Any]:
        generator = np.random.default_rng(step)
        return {name: generator.normal(size=shape).astype(dtype) for name, (shape, dtype) in layers.items()}

    return arrays


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store.zarr")
