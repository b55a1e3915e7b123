"""What does not fit the metadata is refused before memory is asked for, and nothing that is no file is waited for."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr
from numcodecs.blosc import Blosc

import repaudit as ra
from repaudit.errors import CorruptStoreError, StoreError
from repaudit.store.format.encoding import checksum
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step


@pytest.fixture
def store(url, tmp_path, probe_set, layers, step_arrays):
    with ra.TrajectoryWriter(
        url, model_name="a", probe_set=probe_set, layers=layers, durable=False, codec="compact"
    ) as writer:
        writer.append(0, step_arrays(0))
    return tmp_path / "store.zarr"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_foreign_group_is_not_opened(store):
    foreign = zarr.open_group(store / "other", mode="w")
    foreign.create_array("x", shape=(10**9,), chunks=(10**9,), dtype="f8", dimension_names=["x"])
    zarr.open_group(store / "models" / "a" / "inner", mode="w")
    before, started = peak(), time.monotonic()
    tree = ra.open_store(store)
    assert set(tree.children) == {"probe", "models"}
    assert set(tree["models"].children["a"].children) == set()
    assert peak() - before < 2**28
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("kind", ["zeros", "header"])
def test_a_chunk_that_inflates_is_refused(store, kind):
    (chunk,) = (store / "models/a/model.layers.0").glob("c.*")
    bomb = Blosc(cname="zstd", clevel=9).encode(np.zeros(2**29, "u1"))
    if kind == "header":  # short enough for an ordinary chunk
        bomb = chunk.read_bytes()[:4] + bomb[4:8] + chunk.read_bytes()[8:-4]
    chunk.write_bytes(bomb + checksum(bomb).to_bytes(4, "little"))
    tree = ra.open_store(store)
    before = peak()
    with pytest.raises(CorruptStoreError, match="expected at most"):
        read_step(tree, "a", "model.layers.0", 0)
    with pytest.raises(OSError, match="would take 536870912 bytes" if kind == "header" else "at most"):
        catalog.activations(tree, "a", "model.layers.0").load()
    assert peak() - before < 2**27


def test_a_chunk_longer_than_its_values_is_refused(store):
    (chunk,) = (store / "models/a/model.layers.0").glob("c.*")
    os.truncate(chunk, 2**36)  # sparse
    with pytest.raises(CorruptStoreError, match="bytes, expected at most"):
        read_step(ra.open_store(store), "a", "model.layers.0", 0)


@pytest.mark.parametrize(
    "name",
    ["models/a/model.layers.0/c.0.0.0", "models/a/checksum/c.0.0", "models/a/zarr.json", "zarr.json", "sample/c.0"],
)
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    script = (
        "import sys, repaudit as ra; from repaudit.store.read.activations import read_step\n"
        "try: read_step(ra.open_store(sys.argv[1]), 'a', 'model.layers.0', 0)\n"
        "except ra.errors.StoreError as error: print('refused', error)"
    )
    run = subprocess.run([sys.executable, "-c", script, store], capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout.startswith("refused"), run.stderr


def test_a_pipe_in_the_place_of_a_lease_is_refused_at_once(store, probe_set, layers):
    os.mkfifo(store / "models/a/.lease")
    with pytest.raises(StoreError, match="not a regular file"):
        ra.TrajectoryWriter(store, model_name="a", probe_set=probe_set, layers=layers, codec="compact")


def test_an_open_store_can_be_sent_to_another_process(store, step_arrays):
    tree = pickle.loads(pickle.dumps(ra.open_store(store)))
    layer = catalog.activations(tree, "a", "model.layers.0")
    np.testing.assert_array_equal(layer.sel(step=0).values, step_arrays(0)["model.layers.0"])
