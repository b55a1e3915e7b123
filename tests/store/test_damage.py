"""Damage costs no more than what it touches, and a reader sees one version of each model's record."""

from __future__ import annotations

import numpy as np
import pytest

import repaudit as ra
from repaudit.store.read import catalog
from repaudit.store.read.stored_probe_set import StoredProbeSet

LAYERS = {"l": ((3, 2), "float32")}
PROBE_SET = StoredProbeSet("a" * 64, list("abc"), {"x": np.eye(3)}, labels=["u", "v", "w"], texts=["r", "s", "t"])


@pytest.fixture
def store(tmp_path):
    for name in "abc":
        with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name=name, probe_set=PROBE_SET, layers=LAYERS) as writer:
            for step in range(5):
                writer.append(step, {"l": np.full((3, 2), step, "float32")}, loss=1.0)
    return tmp_path / "s.zarr"


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_lost_step_numbers_cost_nothing(damage, store):
    chunk = store / "models/b/step/c.0"
    flip(chunk) if damage == "flipped" else chunk.unlink()
    tree = ra.open_store(store)
    for name in "abc":
        assert catalog.steps(tree, name) == list(range(5))
        assert catalog.activations(tree, name, "l").values[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert [problem.location for problem in ra.verify(store, data=True)] == ["models/b/step/c.0"]
    assert [repaired.lost for repaired in ra.repair(store)] == [[]]
    assert ra.verify(store, data=True) == []


def test_a_writer_goes_on_where_step_numbers_are_lost(store):
    flip(store / "models/b/step/c.0")
    with ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS) as writer:
        assert writer.steps == list(range(5))
        writer.append(9, {"l": np.full((3, 2), 9, "float32")})
    assert ra.verify(store, data=True) == []


def test_a_reader_across_truncate_and_append_sees_one_version(store, monkeypatch):
    """The record changes after the documents were read, and before any coordinate is."""
    from repaudit.store.read import reader

    whole = reader._zarr_store

    def late(*arguments):
        with ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS, truncate_after=1) as writer:
            writer.append(7, {"l": np.full((3, 2), 7, "float32")})
        return whole(*arguments)

    monkeypatch.setattr(reader, "_zarr_store", late)
    assert catalog.steps(ra.open_store(store), "b") == list(range(5))
    monkeypatch.undo()
    assert catalog.steps(ra.open_store(store), "b") == [0, 1, 7]
