"""Damage costs no more than what it touches, and a reader sees one version of each model's record."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import repaudit as ra
from repaudit.cli import app
from repaudit.errors import CorruptStoreError, StoreWarning
from repaudit.store.copying import copy_store, export_layer
from repaudit.store.format.sample_set import text_hash
from repaudit.store.read import catalog, model_columns
from repaudit.store.read.activations import read_step
from repaudit.store.read.stored_probe_set import StoredProbeSet

LAYERS = {"l": ((3, 2), "float32")}
PROBE_SET = StoredProbeSet("a" * 64, list("abc"), {"x": np.eye(3)}, labels=["u", "v", "w"], texts=["r", "s", "t"])


@pytest.fixture
def store(tmp_path):
    for name in "abc":
        with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name=name, probe_set=PROBE_SET, layers=LAYERS) as writer:
            for step in range(5):
                writer.append(
                    step, {"l": np.full((3, 2), step, "float32")}, loss=1.0, epoch=step / 2, trigger="t", wall_time=7
                )
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


def blank(path) -> None:
    path.write_bytes(b"")


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:99])


@pytest.mark.parametrize("harm", [flip, blank, cut, lambda path: path.unlink()])
def test_a_damaged_document_costs_its_model_only_and_is_told(store, tmp_path, harm):
    truth = everything(store)
    harm(store / "models/b/zarr.json")
    with pytest.warns(StoreWarning, match=r"model 'b' is left out.*models/b.*repaudit repair"):
        found = everything(store)
    assert found == {key: values for key, values in truth.items() if not key.startswith("models/b/")}
    with pytest.warns(StoreWarning, match="left out"):
        assert catalog.lost(ra.open_store(store)) == ["model b"]
    run = CliRunner().invoke(app, ["info", str(store)])
    assert run.exit_code == 0
    assert "read as missing, because damaged or lost: model b" in run.stderr
    with pytest.warns(StoreWarning, match="left out"):
        assert copy_store(store, tmp_path / "copy.zarr") == {model: list(range(5)) for model in "ac"}
    assert ra.verify(store, data=True) != []
    ra.repair(store)
    assert everything(store) == truth


def test_a_store_of_one_damaged_model_is_not_opened(store):
    for model in "abc":
        flip(store / f"models/{model}/zarr.json")
    with pytest.raises(CorruptStoreError, match=r"models/a/zarr\.json"):
        ra.open_store(store)


INPUT = f"probe/{'a' * 16}/x"
DISPENSABLE = {
    "label": "label/c.0",
    "text": "text/c.0",
    "sha256": "sha256/c.0",
    "input": f"{INPUT}/c.0.0",
    "loss": "models/b/loss/c.0",
    "epoch": "models/b/epoch/c.0",
    "trigger": "models/b/trigger/c.0",
    "wall_time": "models/b/wall_time/c.0",
}
OF_SAMPLES, OF_STEPS = ("label", "text", "sha256"), ("loss", "epoch", "trigger", "wall_time")
UNKNOWN = {"trigger": [""] * 5, "loss": ["nan"] * 5, "epoch": ["nan"] * 5, "wall_time": ["NaT"] * 5}


def damage(store, name, kind) -> None:
    path = store / DISPENSABLE[name]
    if kind == "flipped":
        flip(path)
    elif kind == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:9])


def everything(store) -> dict[str, list[str]]:
    """Give every value of an opened store as text."""
    return {
        f"{node.path.strip('/')}/{name}".strip("/"): [str(value) for value in np.asarray(variable.values).ravel()]
        for node in ra.open_store(store).subtree
        for name, variable in node.variables.items()
    }


def assert_only_this_is_missing(found, truth, name) -> None:
    missing = {"input": (INPUT, ["nan"] * 9)} | {one: (one, ["None"] * 3) for one in OF_SAMPLES}
    missing |= {one: (f"models/b/{one}", UNKNOWN[one]) for one in OF_STEPS}
    key, values = missing[name]
    assert found == truth | {key: values}


@pytest.mark.parametrize("kind", ["flipped", "missing", "short"])
@pytest.mark.parametrize("name", DISPENSABLE)
@pytest.mark.thin(3)
def test_damage_costs_what_it_touches_and_is_told(store, tmp_path, name, kind):
    truth = everything(store)
    damage(store, name, kind)
    assert_only_this_is_missing(everything(store), truth, name)
    run = CliRunner().invoke(app, ["info", str(store)])
    assert run.exit_code == 0
    told = {"input": "input x of the samples"} | {one: f"{one} of the samples" for one in OF_SAMPLES}
    assert run.stderr.count("\n") == 1
    assert "warning: " in run.stderr
    assert told.get(name, f"{name} of model b") in run.stderr
    assert {problem.location for problem in ra.verify(store, data=True)} == {DISPENSABLE[name]}
    assert export_layer(store, "b", "l", tmp_path / "b.npy") == (5, 3, 2)


@pytest.mark.parametrize("name", DISPENSABLE)
@pytest.mark.thin(3)
def test_a_copy_of_a_damaged_store_has_the_rest_and_says_what_is_lost(store, tmp_path, name):
    truth = everything(store)
    damage(store, name, "flipped")
    copied = tmp_path / "copy.zarr"
    assert copy_store(store, copied) == {model: list(range(5)) for model in "abc"}
    assert ra.verify(copied, data=True) == []
    found = everything(copied)
    different = {key for key in truth if found.get(key) != truth[key]}
    expected = {"input": {INPUT}, "sha256": set()} | {one: {f"models/b/{one}"} for one in OF_STEPS}
    assert different == expected.get(name, {name})
    lost = catalog.lost(ra.open_store(copied))
    assert lost == {"input": ["input x of the samples"]}.get(name, [f"{name} of model b"] if name in OF_STEPS else [])
    assert copy_store(store, copied) == {model: list(range(5)) for model in "abc"}


@pytest.mark.parametrize("kind", ["flipped", "missing"])
@pytest.mark.parametrize("name", DISPENSABLE)
@pytest.mark.thin(3)
def test_repair_writes_what_is_lost_as_missing_and_records_it(store, name, kind):
    truth = everything(store)
    damage(store, name, kind)
    done = ra.repair(store)
    assert any(name in problem.message or DISPENSABLE[name] == problem.location for problem in done)
    assert [problem.lost for problem in done if problem.lost] == []
    assert ra.verify(store, data=True) == []
    assert ra.repair(store) == []
    assert_only_this_is_missing(everything(store), truth, name)
    assert len(catalog.lost(ra.open_store(store))) == 1


@pytest.mark.parametrize("kind", ["flipped", "missing", "short"])
def test_damaged_whole_numbers_are_never_read_as_zeros(tmp_path, kind):
    ids = np.arange(6).reshape(3, 2)
    probe_set = StoredProbeSet("a" * 64, list("abc"), {"ids": ids, "mask": ids % 2 == 0})
    store, copied = tmp_path / "s.zarr", tmp_path / "copy.zarr"
    with ra.TrajectoryWriter(store, model_name="a", probe_set=probe_set, layers=LAYERS) as writer:
        writer.append(0, {"l": np.zeros((3, 2), "float32")})
    path = store / f"probe/{'a' * 16}/ids/c.0.0"
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:9]) if kind == "short" else flip(path)
    copy_store(store, copied)
    for url in (store, copied):
        inputs = ra.open_store(url)[f"probe/{'a' * 16}"]
        assert np.isnan(inputs["ids"].values).all()
        assert inputs["ids"].shape == (3, 2)
        np.testing.assert_array_equal(inputs["mask"].values, ids % 2 == 0)
        ra.repair(url)
        ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set, layers=LAYERS).close()
        np.testing.assert_array_equal(ra.open_store(url)[f"probe/{'a' * 16}"]["ids"].values, ids)


def test_inputs_are_whole_again_when_somebody_records_with_them(store):
    truth = everything(store)
    damage(store, "input", "flipped")
    ra.repair(store)
    ra.TrajectoryWriter(store, model_name="a", probe_set=PROBE_SET, layers=LAYERS).close()
    assert everything(store) == truth
    assert catalog.lost(ra.open_store(store)) == []
    assert ra.verify(store, data=True) == []


def test_hashes_of_texts_have_a_second_copy(tmp_path):
    texts = ["r", "s", "t"]
    hashes = [text_hash(text) for text in texts]
    probe_set = StoredProbeSet("a" * 64, list("abc"), {"x": np.eye(3)}, texts=texts, text_hashes=hashes)
    store = tmp_path / "s.zarr"
    ra.TrajectoryWriter(store, model_name="a", probe_set=probe_set, layers=LAYERS).close()
    truth = everything(store)
    flip(store / "sha256/c.0")
    assert everything(store) == truth
    assert catalog.lost(ra.open_store(store)) == []
    (done,) = ra.repair(store)
    assert "computed again from the texts" in done.message
    assert ra.verify(store, data=True) == []
    assert everything(store) == truth


@pytest.fixture
def other_samples(tmp_path):
    """A store and one of other samples, both known by their texts."""
    for name, texts in (("here", list("rst")), ("there", list("RST"))):
        hashes = [text_hash(text) for text in texts]
        read = StoredProbeSet("a" * 64, texts, {"x": np.eye(3)}, texts=texts, text_hashes=hashes)
        ra.TrajectoryWriter(tmp_path / name, model_name="a", probe_set=read, layers=LAYERS).close()
    return tmp_path / "here", tmp_path / "there"


def test_hashes_of_other_samples_are_made_again(other_samples):
    here, there = other_samples
    truth = everything(here)
    shutil.copy(there / "sha256/c.0", here / "sha256/c.0")
    assert everything(here) == truth
    assert [problem.location for problem in ra.verify(here, data=True)] == ["sha256/c.0"]
    ra.repair(here)
    assert ra.verify(here, data=True) == []
    assert everything(here) == truth


def test_texts_of_other_samples_are_read_as_missing(other_samples):
    here, there = other_samples
    truth = everything(here)
    shutil.copy(there / "text/c.0", here / "text/c.0")
    assert everything(here) == truth | {"text": ["None"] * 3}
    assert [problem.location for problem in ra.verify(here, data=True)] == ["text/c.0"]
    ra.repair(here)
    assert ra.verify(here, data=True) == []
    assert catalog.lost(ra.open_store(here)) == ["text of the samples"]


def test_ids_of_other_samples_are_an_error(other_samples):
    here, there = other_samples
    shutil.copy(there / "sample/c.0", here / "sample/c.0")
    assert [problem.location for problem in ra.verify(here, data=True)] == ["sample/c.0"]
    with pytest.raises(CorruptStoreError, match=r"not those that the store was made of"):
        ra.open_store(here)


@pytest.mark.parametrize("kind", ["flipped", "missing"])
def test_lost_ids_are_an_error_of_their_own(store, kind):
    flip(store / "sample/c.0") if kind == "flipped" else (store / "sample/c.0").unlink()
    with pytest.raises(CorruptStoreError, match=r"ids of the samples cannot be read: sample/c\.0.*no second copy"):
        ra.open_store(store)
    run = CliRunner().invoke(app, ["info", str(store)])
    assert (run.exit_code, run.stderr.count("\n")) == (3, 1)


def test_the_names_of_layers_have_a_second_copy(store):
    truth = everything(store)
    flip(store / "models/b/layer/c.0")
    assert everything(store) == truth


@pytest.mark.parametrize("name", ["label", "text", "sha256", "loss", "trigger"])
def test_a_writer_goes_on_where_what_is_dispensable_is_damaged(store, name):
    damage(store, name, "flipped")
    with ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS) as writer:
        writer.append(9, {"l": np.full((3, 2), 9, "float32")}, loss=2.0, trigger="u")
    tree = ra.open_store(store)
    dataset = catalog.model_dataset(tree, "b")
    np.testing.assert_array_equal(dataset.loss.values, [np.nan if name == "loss" else 1.0] * 5 + [2.0])
    assert dataset.trigger.values.tolist() == ["" if name == "trigger" else "t"] * 5 + ["u"]
    assert len(catalog.lost(tree)) == 1
    if name in OF_STEPS:
        document = json.loads((store / "models/b/zarr.json").read_text())
        assert document["attributes"]["repaudit"]["lost"] == [name]
        assert ra.verify(store, data=True) == []


def test_damaged_checksums_of_one_model_leave_the_others(store):
    flip(store / "models/b/checksum/c.0.0")
    tree = ra.open_store(store)
    assert catalog.models(tree) == ["a", "b", "c"]
    for name in "ac":
        assert read_step(tree, name, "l", 3).values.tolist() == [[3, 3]] * 3
    with pytest.raises(CorruptStoreError, match="checksums of model 'b' cannot be read"):
        read_step(tree, "b", "l", 3)


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


def coordinates(tree) -> list[list]:
    dataset = catalog.model_dataset(tree, "b")
    return [dataset[name].values.tolist() for name in ("step", "loss", "epoch", "trigger", "wall_time", "checksum")]


def go_back(store) -> None:
    """Record the steps from 2 on again, with other values."""
    with ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS, truncate_after=1) as writer:
        for step in (2, 3, 4):
            writer.append(step, {"l": np.full((3, 2), 7, "float32")}, loss=9.0, epoch=9.0, trigger="new", wall_time=9)


def test_coordinates_of_a_tree_opened_before_a_truncation_stay_the_old_ones(store):
    tree, truth = ra.open_store(store), coordinates(ra.open_store(store))
    go_back(store)
    assert coordinates(tree) == truth
    assert coordinates(ra.open_store(store))[1] == [1.0, 1.0, 9.0, 9.0, 9.0]


@pytest.mark.parametrize("at", range(5, 10))
@pytest.mark.parametrize("how", ["by another writer", "by the same writer"])
@pytest.mark.thin(3)
def test_no_moment_of_a_truncation_mixes_old_and_new_coordinates(store, monkeypatch, at, how):
    """The record goes back and on again, with the same steps, between two reads of one opening."""
    writer = ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS)
    before = coordinates(ra.open_store(store))
    if how == "by another writer":
        writer.close()
    reads = []

    def read(storage, key, paths):
        found = []
        for path in paths:
            if key == "models/b" and len(reads) == at:
                reads.append("changed")
                if how == "by another writer":
                    go_back(store)
                else:
                    writer.truncate(1)
                    for step in (2, 3, 4):
                        writer.append(step, {"l": np.full((3, 2), 7, "float32")}, loss=9.0, epoch=9.0, trigger="new")
                    writer.flush()
            reads.append(path)
            found.append(storage.get(f"{key}/{path}"))
        return found

    monkeypatch.setattr(model_columns, "_read", read)
    seen = coordinates(ra.open_store(store))
    monkeypatch.undo()
    writer.close()
    assert "changed" in reads
    assert seen in (before, coordinates(ra.open_store(store)))


def test_checksums_of_another_model_cost_no_step_unasked(store):
    with ra.TrajectoryWriter(store, model_name="d", probe_set=PROBE_SET, layers=LAYERS) as writer:
        for step in range(5):
            writer.append(step, {"l": np.full((3, 2), -1 - step, "float32")})
    shutil.copy(store / "models/d/checksum/c.0.0", store / "models/b/checksum/c.0.0")
    with pytest.raises(CorruptStoreError, match=r"models/b: not one of 5 steps can be kept .*nothing of this model"):
        ra.repair(store)
    assert catalog.steps(ra.open_store(store), "b") == list(range(5))


def command(*arguments) -> tuple[int, str, str]:
    found = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return found.exit_code, found.stdout, found.stderr


def older_document(store) -> None:
    """Put the document of five steps back after three more."""
    document = (store / "models/b/zarr.json").read_bytes()
    with ra.TrajectoryWriter(store, model_name="b", probe_set=PROBE_SET, layers=LAYERS) as writer:
        for step in range(5, 8):
            writer.append(step, {"l": np.full((3, 2), step, "float32")})
    (store / "models/b/zarr.json").write_bytes(document)


def test_an_older_document_put_back_costs_no_proven_step_unasked(store):
    older_document(store)
    assert any("an older copy of it was put back" in problem.message for problem in ra.verify(store))
    with pytest.raises(CorruptStoreError, match="has 5 steps, but checksums prove 3 more"):
        ra.repair(store)
    assert len(list((store / "models/b/l").glob("c.*"))) == 8
    (store / "models/b/zarr.json").unlink()  # as the error says
    ra.repair(store)
    assert catalog.steps(ra.open_store(store), "b") == list(range(8))
    assert ra.verify(store, data=True) == []


def test_an_older_document_put_back_costs_its_later_steps_when_asked(store):
    older_document(store)
    ra.repair(store, force=True)
    assert catalog.steps(ra.open_store(store), "b") == list(range(5))
    assert ra.verify(store, data=True) == []


@pytest.mark.parametrize("harm", ["documents", "pipe", "link", "copy"])
def test_whatever_is_wrong_with_a_model_leaves_the_others_and_is_told(store, tmp_path, harm):
    model = store / "models/b"
    if harm == "documents":
        (model / "zarr.json").unlink()
        (model / "step/zarr.json").unlink()
    elif harm == "pipe":
        (model / "loss/c.0").unlink()
        os.mkfifo(model / "loss/c.0")
    elif harm == "link":
        shutil.move(model, tmp_path / "elsewhere")
        model.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.copy(store / "models/c/zarr.json", model / "zarr.json")
    with pytest.warns(StoreWarning, match="model 'b' is left out"):
        tree = ra.open_store(store)
    assert catalog.models(tree) == ["a", "c"]
    assert catalog.activations(tree, "c", "l").values[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert ra.verify(store, data=True)


def test_every_command_that_reads_says_which_model_is_left_out(store, tmp_path):
    (store / "models/b/zarr.json").write_bytes(b"{")
    for arguments in (
        ("info", store),
        ("copy", store, tmp_path / "t.zarr"),
        ("export", store, "a", "l", tmp_path / "a.npy"),
    ):
        code, _, said = command(*arguments)
        assert code == 0
        assert "damaged or lost: model b" in " ".join(said.split())
    assert "model b" in command("watch", store, "--once")[1]
    assert json.loads(command("watch", store, "--once", "--json")[1])["lost"] == ["model b"]
    code, _, said = command("export", store, "b", "l", tmp_path / "b.npy")
    assert code == 2
    assert "model 'b' is damaged and left out" in " ".join(said.split())


def test_repair_mends_the_models_after_one_that_it_cannot(store):
    (store / "models/a/zarr.json").unlink()
    (store / "models/a/layer/c.0").unlink()
    (store / "models/b/loss/c.0").unlink()
    with pytest.raises(CorruptStoreError, match="models/a both the document and the names"):
        ra.repair(store)
    assert {problem.location.split("/")[1] for problem in ra.verify(store, data=True)} == {"a"}


def test_the_command_repair_says_what_it_leaves(store):
    shutil.copy(store / "models/c/zarr.json", store / "models/b/zarr.json")
    code, said, _ = command("repair", store)
    assert code == 0
    assert said.splitlines() == ["nothing that repair can mend", "1 problem left: see repaudit verify"]
    flip(store / "sample/c.0")
    assert command("repair", store)[0] == 3


@pytest.mark.parametrize("wrong", [1, True, "x", [], None, {"metadata": 3}], ids=str)
@pytest.mark.parametrize("name", ["probe/*/zarr.json", "probe/zarr.json"])
@pytest.mark.thin(3)
def test_a_list_of_arrays_of_another_type_is_damage_like_any_other(store, name, wrong):
    (path,) = store.glob(name)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "consolidated_metadata": wrong}))
    assert ra.verify(store) != []
    ra.repair(store)
    assert ra.verify(store, data=True) == []
    assert catalog.steps(ra.open_store(store), "a") == list(range(5))


def test_what_goes_while_a_store_is_opened_is_told_as_such(store, monkeypatch):
    """Between a look at the documents and the reading of them another process may delete the store."""
    from dataclasses import replace

    from repaudit.store.read import reader

    seen = reader.take_snapshot
    monkeypatch.setattr(reader, "take_snapshot", lambda storage: replace(seen(storage), absent=["probe/gone/x"]))
    with pytest.raises(CorruptStoreError, match=r"cannot be opened .*gone"):
        ra.open_store(store)
