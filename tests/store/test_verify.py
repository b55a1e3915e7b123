"""Verification names every problem with its place; repair mends it, says what was lost, and invents nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import (
    CorruptStoreError,
    LeaseError,
    NotAStoreError,
    StoreNotFoundError,
    StoreWarning,
    UnknownVersionError,
)
from repaudit.store.read import catalog
from repaudit.store.storage.local import LocalStorage

FIRST = "models/seed0/model.layers.0"


@pytest.fixture
def store(url, probe_set, layers, step_arrays) -> Path:
    """A finished store of five steps."""
    with ra.TrajectoryWriter(url, model_name="seed0", probe_set=probe_set, layers=layers) as writer:
        for step in range(5):
            writer.append(step, step_arrays(step), loss=float(step), trigger="t")
    return Path(url)


def edit(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    document.get("attributes", {}).pop("crc32c", None)  # as in a store of before there were checksums
    path.write_text(json.dumps(document))


def flip(path: Path, position: int = 5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


DAMAGES = {
    "missing_chunk": lambda store: (store / FIRST / "c.2.0.0").unlink(),
    "missing_step_chunk": lambda store: (store / "models/seed0/step/c.0").unlink(),
    "missing_sample_chunk": lambda store: (store / "sample/c.0").unlink(),
    "damaged_chunk": lambda store: flip(store / FIRST / "c.2.0.0"),
    "short_chunk": lambda store: (store / FIRST / "c.2.0.0").write_bytes(b"short"),
    "damaged_loss": lambda store: flip(store / "models/seed0/loss/c.0"),
    "damaged_checksum": lambda store: flip(store / "models/seed0/checksum/c.0.0"),
    "damaged_input": lambda store: flip(store / "probe/ffffffffffffffff/input_ids/c.0.0"),
    "truncated_document": lambda store: (store / "models/seed0/zarr.json").write_text("{"),
    "no_document": lambda store: (store / "models/seed0/zarr.json").unlink(),
    "negative": lambda store: edit(
        store / "models/seed0/zarr.json", lambda d: d["attributes"]["repaudit"].update(committed=-1)
    ),
    "misaligned": lambda store: edit(
        store / "models/seed0/zarr.json", lambda d: d["attributes"]["repaudit"].update(committed=4)
    ),
    "consolidated_root": lambda store: edit(
        store / "zarr.json",
        lambda d: d.update(consolidated_metadata={"kind": "inline", "must_understand": False, "metadata": {}}),
    ),
    "unknown_version": lambda store: edit(
        store / "zarr.json", lambda d: d["attributes"]["repaudit"].update(version=99)
    ),
    "leftover_chunk": lambda store: shutil.copy(store / FIRST / "c.2.0.0", store / FIRST / "c.7.0.0"),
    "leftover_write": lambda store: (store / "probe/.abc.partial").write_bytes(b"half"),
    "foreign": lambda store: (store / "notes.txt").write_text("mine"),
    "no_models_group": lambda store: (store / "models/zarr.json").unlink(),
    "empty_models_group": lambda store: (store / "models/zarr.json").write_text(""),
    "foreign_models_group": lambda store: (store / "models/zarr.json").write_text('{"zarr_format": 2}'),
    "consolidated_models": lambda store: edit(
        store / "models/zarr.json",
        lambda d: d.update(consolidated_metadata={"kind": "inline", "must_understand": False, "metadata": {}}),
    ),
    "missing_names": lambda store: (store / "models/seed0/layer/c.0").unlink(),
    "damaged_names": lambda store: flip(store / "models/seed0/layer/c.0"),
    "sample_shape": lambda store: edit(store / "sample/zarr.json", lambda d: d.update(shape=[5])),
    "label_dtype": lambda store: edit(store / "label/zarr.json", lambda d: d.update(data_type="float64")),
    "text_codecs": lambda store: edit(store / "text/zarr.json", lambda d: d.update(codecs=[])),
    "no_text_document": lambda store: (store / "text/zarr.json").unlink(),
    "input_document": lambda store: (store / "probe/ffffffffffffffff/input_ids/zarr.json").write_text("{"),
    "empty_probe": lambda store: edit(
        store / "probe/zarr.json", lambda d: d["consolidated_metadata"].update(metadata={})
    ),
    "no_probe": lambda store: (store / "probe/zarr.json").unlink(),
    "own_document": lambda store: (store / FIRST / "zarr.json").write_text("{}"),
    "own_column": lambda store: (store / "models/seed0/step/zarr.json").unlink(),
    "linked_layer": lambda store: (
        shutil.move(store / FIRST, store.parent / "x"),
        (store / FIRST).symlink_to(store.parent / "x"),
    ),
}
EXPECTED = {
    "missing_chunk": ("missing_chunk", f"{FIRST}/c.2.0.0"),
    "missing_step_chunk": ("missing_chunk", "models/seed0/step/c.0"),
    "missing_sample_chunk": ("missing_chunk", "sample/c.0"),
    "damaged_chunk": ("damaged_chunk", f"{FIRST}/c.2.0.0"),
    "short_chunk": ("damaged_chunk", f"{FIRST}/c.2.0.0"),
    "damaged_loss": ("damaged_chunk", "models/seed0/loss/c.0"),
    "damaged_checksum": ("damaged_chunk", "models/seed0/checksum/c.0.0"),
    "damaged_input": ("damaged_chunk", "probe/ffffffffffffffff/input_ids/c.0.0"),
    "truncated_document": ("damaged_metadata", "models/seed0/zarr.json"),
    "no_document": ("damaged_metadata", "models/seed0/zarr.json"),
    "negative": ("damaged_metadata", "models/seed0/zarr.json"),
    "misaligned": ("misaligned", FIRST),
    "consolidated_root": ("misaligned", "zarr.json"),
    "unknown_version": ("unknown_version", "zarr.json"),
    "leftover_chunk": ("leftover", f"{FIRST}/c.7.0.0"),
    "leftover_write": ("leftover", "probe/.abc.partial"),
    "foreign": ("foreign", "notes.txt"),
    "no_models_group": ("damaged_metadata", "models/zarr.json"),
    "empty_models_group": ("damaged_metadata", "models/zarr.json"),
    "foreign_models_group": ("damaged_metadata", "models/zarr.json"),
    "consolidated_models": ("misaligned", "models/zarr.json"),
    "missing_names": ("missing_chunk", "models/seed0/layer/c.0"),
    "damaged_names": ("damaged_chunk", "models/seed0/layer/c.0"),
    "sample_shape": ("damaged_metadata", "sample/zarr.json"),
    "label_dtype": ("damaged_metadata", "label/zarr.json"),
    "text_codecs": ("damaged_metadata", "text/zarr.json"),
    "no_text_document": ("damaged_metadata", "text/zarr.json"),
    "input_document": ("damaged_metadata", "probe/ffffffffffffffff/input_ids/zarr.json"),
    "empty_probe": ("damaged_metadata", "probe/zarr.json"),
    "no_probe": ("damaged_metadata", "probe/zarr.json"),
    "own_document": ("damaged_metadata", f"{FIRST}/zarr.json"),
    "own_column": ("damaged_metadata", "models/seed0/step/zarr.json"),
    "linked_layer": ("foreign", FIRST),
}
NEEDS_DATA = {"damaged_chunk", "damaged_input"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.thin(3)
def test_each_damage_is_found_with_kind_and_place(store, damage):
    assert ra.verify(store, data=True) == []
    DAMAGES[damage](store)
    problems = ra.verify(store, data=True)
    assert EXPECTED[damage] in {(problem.kind, problem.location) for problem in problems}
    assert all(problem.message for problem in problems)
    shallow = {(problem.kind, problem.location) for problem in ra.verify(store)}
    assert (EXPECTED[damage] in shallow) == (damage not in NEEDS_DATA)


def test_every_damage_is_listed_at_once(store):
    (store / FIRST / "c.1.0.0").unlink()
    (store / FIRST / "c.3.0.0").unlink()
    flip(store / "models/seed0/model.layers.1/c.2.0.0")
    kinds = [(problem.kind, problem.location[-7:]) for problem in ra.verify(store, data=True)]
    assert sorted(kinds) == [("damaged_chunk", "c.2.0.0"), ("missing_chunk", "c.1.0.0"), ("missing_chunk", "c.3.0.0")]


LOST = {"missing_chunk": [2], "damaged_chunk": [2], "short_chunk": [2]}
KEEPS_ALL = [
    "damaged_loss",
    "damaged_checksum",
    "truncated_document",
    "no_document",
    "negative",
    "consolidated_root",
    "leftover_chunk",
    "leftover_write",
    "no_models_group",
    "empty_models_group",
    "foreign_models_group",
    "consolidated_models",
    "missing_names",
    "damaged_names",
    "sample_shape",
    "label_dtype",
    "text_codecs",
    "no_text_document",
    "input_document",
    "empty_probe",
    "no_probe",
    "own_document",
    "own_column",
]


@pytest.mark.parametrize("damage", [*LOST, *KEEPS_ALL])
@pytest.mark.thin(3)
def test_repair_keeps_every_step_that_can_be_trusted(store, damage, layers, step_arrays):
    DAMAGES[damage](store)
    done = ra.repair(store)
    lost = LOST.get(damage, [])
    assert [step for repaired in done for step in repaired.lost] == lost
    assert done
    assert ra.verify(store, data=True) == []
    tree = ra.open_store(store)
    kept = [step for step in range(5) if step not in lost]
    assert catalog.steps(tree, "seed0") == kept
    for name in layers:
        for step in kept:
            values = catalog.activations(tree, "seed0", name).sel(step=step).values
            np.testing.assert_array_equal(values, step_arrays(step)[name])
    loss = catalog.model_dataset(tree, "seed0").loss.values
    np.testing.assert_array_equal(loss, [np.nan] * 5 if damage == "damaged_loss" else [float(step) for step in kept])
    assert ra.repair(store) == []


def test_a_repaired_model_can_be_recorded_further(store, probe_set, layers, step_arrays):
    DAMAGES["missing_chunk"](store)
    ra.repair(store)
    with ra.TrajectoryWriter(store, model_name="seed0", probe_set=probe_set, layers=layers) as writer:
        assert writer.steps == [0, 1, 3, 4]
        writer.append(5, step_arrays(5))
    assert ra.verify(store, data=True) == []


def shapes_of(document: dict) -> dict:
    return document["consolidated_metadata"]["metadata"]


def test_a_length_that_disagrees_is_settled_by_the_chunks_and_what_is_lost_is_named(store, step_arrays):
    DAMAGES["misaligned"](store)
    assert [repaired.lost for repaired in ra.repair(store)] == [[]]
    assert ra.verify(store, data=True) == []
    assert catalog.steps(ra.open_store(store), "seed0") == [0, 1, 2, 3, 4]
    DAMAGES["misaligned"](store)
    (store / FIRST / "c.4.0.0").unlink()
    assert [step for repaired in ra.repair(store) for step in repaired.lost] == [4]
    assert ra.verify(store, data=True) == []
    assert catalog.steps(ra.open_store(store), "seed0") == [0, 1, 2, 3]


def test_a_lost_document_beside_a_lost_chunk_costs_that_step_alone(store):
    DAMAGES["no_document"](store)
    DAMAGES["missing_chunk"](store)
    assert [step for repaired in ra.repair(store) for step in repaired.lost] == [2]
    assert catalog.steps(ra.open_store(store), "seed0") == [0, 1, 3, 4]


def wrong_dtype(document):
    shapes_of(document)["model.layers.0"]["data_type"] = "float64"


def wrong_name(document):
    shapes_of(document)["model.layers.0"]["attributes"]["layer"] = "else"


def no_layer(document):
    del shapes_of(document)["model.layers.0"]


@pytest.mark.parametrize("change", [wrong_dtype, wrong_name, no_layer])
def test_a_document_that_the_chunks_contradict_is_rebuilt_from_the_layers_own(store, change, step_arrays):
    edit(store / "models/seed0/zarr.json", change)
    assert {problem.kind for problem in ra.verify(store)} == {"damaged_metadata"}
    done = ra.repair(store)
    assert [step for repaired in done for step in repaired.lost] == []
    assert ra.verify(store, data=True) == []
    tree = ra.open_store(store)
    assert catalog.layers(tree, "seed0") == ["model.layers.0", "model.layers.1"]
    for step in range(5):
        values = catalog.activations(tree, "seed0", "model.layers.0").sel(step=step).values
        np.testing.assert_array_equal(values, step_arrays(step)["model.layers.0"])


def forget_steps(store):
    """Remove the second copy of the step numbers, which stores of an earlier day do not have."""
    edit(store / "models/seed0/zarr.json", lambda document: document["attributes"]["repaudit"].pop("steps"))


@pytest.mark.parametrize("damage", ["flipped", "missing", "dtype_everywhere"])
def test_intact_activations_are_never_erased_unasked(store, damage):
    column = store / "models/seed0/step/c.0"
    forget_steps(store)
    if damage == "dtype_everywhere":
        edit(store / "models/seed0/zarr.json", wrong_dtype)
        edit(store / FIRST / "zarr.json", lambda document: document.update(data_type="float64"))
    elif damage == "flipped":
        flip(column)
    else:
        column.unlink()
    before = {path: path.read_bytes() for path in (store / "models").rglob("*") if path.is_file()}
    with pytest.raises(CorruptStoreError, match=r"intact.*force=True"):
        ra.repair(store)
    assert {path: path.read_bytes() for path in (store / "models").rglob("*") if path.is_file()} == before


def test_a_live_writer_is_left_alone(store, probe_set, layers, step_arrays):
    (store / FIRST / "c.2.0.0").unlink()
    stale = store / "probe/.abc.partial"
    with ra.TrajectoryWriter(store, model_name="seed1", probe_set=probe_set, layers=layers) as writer:
        own = LocalStorage(store)._staged()
        own.write_bytes(b"half")
        assert own.name not in str(ra.verify(store))
        stale.write_bytes(b"half")
        with pytest.raises(LeaseError, match="nothing was repaired"):
            ra.repair(store)
        assert stale.exists()
        writer.append(0, step_arrays(0))
    assert [problem.location for problem in ra.verify(store) if problem.kind == "leftover"] == ["probe/.abc.partial"]
    ra.repair(store)
    assert own.exists()
    assert not stale.exists()


def test_lost_step_numbers_cost_the_steps_and_nothing_is_invented(store):
    forget_steps(store)
    DAMAGES["missing_step_chunk"](store)
    done = ra.repair(store, force=True)
    assert len([repaired for repaired in done if "unknown number" in repaired.message]) == 5
    assert catalog.steps(ra.open_store(store), "seed0") == []
    assert ra.verify(store, data=True) == []


def test_repair_leaves_foreign_files_and_unknown_versions_alone(store):
    DAMAGES["foreign"](store)
    assert ra.repair(store) == []
    assert (store / "notes.txt").read_text() == "mine"
    DAMAGES["unknown_version"](store)
    with pytest.raises(UnknownVersionError, match=r"version 99.*up to 2"):
        ra.repair(store)


def test_what_is_no_store_is_refused(tmp_path):
    import zarr

    with pytest.raises(StoreNotFoundError):
        ra.verify(tmp_path / "absent.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    for function in (ra.verify, ra.repair, ra.open_store):
        with pytest.raises(NotAStoreError, match="not a repaudit store"):
            function(tmp_path / "other.zarr")


def test_two_groups_of_one_model_are_told_apart_by_a_person(store):
    shutil.copytree(store / "models/seed0", store / "models/seed1")
    assert [(p.kind, p.location) for p in ra.verify(store)] == [("misaligned", "models/seed1/zarr.json")]
    with pytest.warns(StoreWarning, match="models/seed0 and models/seed1 are both model 'seed0'"):
        assert catalog.models(ra.open_store(store)) == ["seed0"]  # the one whose folder bears the name
    (store / "models/seed0").rename(store / "models/seed2")
    with pytest.raises(CorruptStoreError, match="models/seed1 and models/seed2 are both model 'seed0'"):
        ra.open_store(store)


def test_a_model_without_its_document_is_not_passed_over(store):
    DAMAGES["no_document"](store)
    with pytest.raises(CorruptStoreError, match="models/seed0: its document is missing"):
        ra.open_store(store)
    ra.repair(store)
    assert catalog.models(ra.open_store(store)) == ["seed0"]


def test_without_document_and_names_no_column_of_checksums_is_guessed(store):
    DAMAGES["no_document"](store)
    DAMAGES["missing_names"](store)
    with pytest.raises(CorruptStoreError, match=r"names of the layers are lost.*nothing of this model was changed"):
        ra.repair(store, force=True)


def test_of_very_many_missing_chunks_the_first_thousand_are_listed(store):
    def grow(document):
        document["attributes"]["repaudit"]["committed"] = 9_000_000
        for array in shapes_of(document).values():
            if array["dimension_names"][0] == "step":
                array["shape"][0] = 9_000_000

    edit(store / "models/seed0/zarr.json", grow)
    missing = [problem for problem in ra.verify(store, data=True) if problem.location.startswith(FIRST)]
    assert [problem.location for problem in missing[:2]] == [f"{FIRST}/c.5.0.0", f"{FIRST}/c.6.0.0"]
    assert len(missing) == 1001
    assert "more chunks" in missing[-1].message
