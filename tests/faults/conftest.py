"""Stores that die or fail at a chosen write, and the checks every store must pass afterwards."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from repaudit.errors import StoreError
from repaudit.store.read.stored_probe_set import StoredProbeSet
from repaudit.store.storage.local import LocalStorage
from repaudit.store.storage.storage import Fence

SAMPLES = 4
LAYERS = {"layer.0": ((SAMPLES, 3), "float32"), "layer.1": ((SAMPLES, 2), "float64")}


class StoreDiedError(StoreError):
    """The machine under the store is gone: from here on nothing is written, and nobody cleans up."""


class FailingStorage(LocalStorage):
    """A local store that asks `fails(n)` before its n-th single write or deletion, counted from 1."""

    def __init__(self, root: Path, fails: Callable[[int], BaseException | None]) -> None:
        super().__init__(root, durable=False)
        self.fails, self.writes = fails, 0

    def _count(self) -> None:
        self.writes += 1
        error = self.fails(self.writes)
        if error is not None:
            raise error

    def put_many(self, objects: Mapping[str, Any], fence: Fence | None = None) -> None:
        for key, parts in objects.items():
            self._count()
            super().put_many({key: parts}, fence)

    def create(self, key: str, data: bytes) -> bool:
        self._count()
        return super().create(key, data)

    def delete(self, key: str, fence: Fence | None = None) -> None:
        self._count()
        super().delete(key, fence)

    def delete_prefix(self, prefix: str, fence: Fence | None = None) -> None:
        self._count()
        super().delete_prefix(prefix, fence)


def dying_at(number: int) -> Callable[[int], BaseException | None]:
    """Die at the n-th write, and stay dead."""
    return lambda write: StoreDiedError(f"died at write {number}") if write >= number else None


def step_arrays(step: int, seed: int = 0) -> dict[str, Any]:
    """Give the arrays of one step; the same for the same step and seed."""
    generator = np.random.default_rng([step, seed])
    return {name: generator.normal(size=shape).astype(dtype) for name, (shape, dtype) in LAYERS.items()}


def open_plainly(url: Path | str, mode: str) -> dict[str, xr.Dataset]:
    """Open a store's models as any xarray user would, without repaudit; an absent store has no models."""
    with warnings.catch_warnings():
        # Only what xarray itself says of every store without root consolidation is let through.
        warnings.filterwarnings("ignore", "Failed to open Zarr store with consolidated", RuntimeWarning)
        options: dict[str, Any] = {} if mode == "default" else {"consolidated": False}
        try:
            tree = xr.open_datatree(str(url), engine="zarr", **options)
        except FileNotFoundError:
            return {}
        models = {name: node.to_dataset() for name, node in tree.children["models"].children.items()}
        for name, dataset in models.items() if mode == "default" else []:
            alone = xr.open_zarr(str(url), group=f"models/{name}")
            assert alone.step.values.tolist() == dataset.step.values.tolist()
        return models


def assert_reads_back(
    url: Path | str, model: str, expected: Mapping[int, int], modes: Sequence[str] = ("default", "unconsolidated")
) -> None:
    """Check through plain xarray that a model's committed steps are `expected` (step to seed), each bit-exact."""
    for mode in modes:
        models = open_plainly(url, mode)
        steps = models[model].step.values.tolist() if model in models else []
        assert steps == list(expected)
        for name in LAYERS if steps else ():
            wanted = np.stack([step_arrays(step, seed)[name] for step, seed in expected.items()])
            np.testing.assert_array_equal(models[model][name].values, wanted)


@pytest.fixture
def probe_set() -> StoredProbeSet:
    inputs = {"input_ids": np.arange(SAMPLES * 2).reshape(SAMPLES, 2)}
    return StoredProbeSet("a" * 64, [f"s{i}" for i in range(SAMPLES)], inputs, labels=["x"] * SAMPLES)


@pytest.fixture
def failing_storage() -> type[FailingStorage]:
    return FailingStorage


@pytest.fixture(scope="session")
def s3():
    """An S3 service on this machine; gives the options to reach it."""
    moto = pytest.importorskip("moto.server", reason="the S3 tests need the extra 'test' (moto)")
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir("bucket")
    yield options
    server.stop()
