"""Stores at the root of any file system that fsspec knows, and stores where none may be."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import LayoutError, NotAStoreError, StoreError
from repaudit.store.copying import copy_store, export_layer
from repaudit.store.read import catalog


def record(place, probe_set, layers, step_arrays, name="a"):
    with ra.TrajectoryWriter(place, model_name=name, probe_set=probe_set, layers=layers, durable=False) as writer:
        for step in (0, 5):
            writer.append(step, step_arrays(step))


@pytest.fixture
def store(tmp_path, probe_set, layers, step_arrays):
    record(tmp_path / "s.zarr", probe_set, layers, step_arrays)
    return tmp_path / "s.zarr"


def test_a_mistyped_store_is_told_what_is_beside_it(store, tmp_path):
    with pytest.raises(StoreError, match=r"there is no store at .*sr\.zarr; did you mean s\.zarr\?"):
        ra.open_store(tmp_path / "sr.zarr")
    for absent in (tmp_path / "other", tmp_path / "none" / "s.zarr", "memory://nowhere/s.zarr"):
        with pytest.raises(StoreError, match="there is no store at") as told:
            ra.open_store(absent)
        assert "did you mean" not in str(told.value)


def test_results_are_no_store(store, tmp_path):
    ra.analyze(store, tmp_path / "a", scales=[2], frames=0, units=0, figures="none")
    with pytest.raises(NotAStoreError, match=r"results of an analysis, not a store: read them with xarray\.open_data"):
        ra.open_store(tmp_path / "a" / "results.zarr")
    with pytest.raises(NotAStoreError, match=r"Its results are in results\.zarr"):
        ra.open_store(tmp_path / "a")


@pytest.fixture(params=["zip root", "zip folder", "tar root", "tar folder"])
def archive(request, store, tmp_path):
    """Return the URL of the store in an archive, at its root or below."""
    kind, where = request.param.split()
    inside = "" if where == "root" else "s.zarr"
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "s"), "zip", store if where == "root" else tmp_path, inside or ".")
    else:
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            for path in store.rglob("*"):
                tar.add(path, Path(inside) / path.relative_to(store), recursive=False)
    return f"{kind}://{inside}::{tmp_path}/s.{kind}"


def test_a_store_in_an_archive_is_read_and_said_to_be_read_only(
    archive, store, tmp_path, probe_set, layers, step_arrays
):
    tree = ra.open_store(archive)
    assert catalog.describe(tree) == catalog.describe(ra.open_store(store))
    layer = catalog.activations(tree, "a", "model.layers.0")
    np.testing.assert_array_equal(layer.sel(step=5).values, step_arrays(5)["model.layers.0"])
    assert ra.verify(archive, data=True) == []
    assert copy_store(archive, tmp_path / "copy.zarr") == {"a": [0, 5]}
    assert export_layer(archive, "a", "model.layers.0", tmp_path / "x.npy") == (2, 6, 3)
    for name in ("a", "b"):
        with pytest.raises(StoreError, match="is read-only"):
            record(archive, probe_set, layers, step_arrays, name)
    with pytest.raises(StoreError, match="is read-only"):
        ra.repair(archive)


def test_a_store_at_the_root_of_the_memory(probe_set, layers, step_arrays):
    memory = fsspec.filesystem("memory")
    kept, memory.store = memory.store, {}
    try:
        type(memory).store = {}
        record("memory://", probe_set, layers, step_arrays)
        assert ra.verify("memory://", data=True) == []
        assert catalog.steps(ra.open_store("memory://"), "a") == [0, 5]
        assert "/models/a/zarr.json" in memory.store
    finally:
        type(memory).store = kept
        del memory.store


@pytest.mark.parametrize("inner", ["", "models/inner", "inner", "models/a/inner", "../link/models/inner"])
def test_a_store_is_neither_copied_nor_recorded_into_one(store, tmp_path, probe_set, layers, step_arrays, inner):
    (tmp_path / "link").symlink_to(store)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LayoutError, match="into itself"):
        copy_store(store, store / inner)
    if inner:
        with pytest.raises(NotAStoreError, match="inside the store"):
            record(store / inner, probe_set, layers, step_arrays)
    assert sorted(tmp_path.rglob("*")) == before
    assert ra.verify(store, data=True) == []
