"""Every byte of metadata is under a checksum or compared: one that is changed is found, or without effect."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repaudit as ra
from repaudit.errors import CorruptStoreError, NotAStoreError, RepauditError
from repaudit.store.copying import copy_store
from repaudit.store.format.sample_set import text_hash
from repaudit.store.format.seal import broken_seal, seal
from repaudit.store.read import catalog
from repaudit.store.read.stored_probe_set import StoredProbeSet

SCHEMAS = Path(__file__).parents[2] / "schemas"
LAYERS = {"l": ((3, 2), "float32")}
IDS = np.arange(6).reshape(3, 2)
MUTATIONS = (250, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)]))


def probe_set(**more: Any) -> StoredProbeSet:
    return StoredProbeSet("a" * 64, list("abc"), {"input_ids": IDS}, labels=list("uvw"), texts=list("rst"), **more)


@pytest.fixture
def store(tmp_path) -> Path:
    url = tmp_path / "s.zarr"
    with ra.TrajectoryWriter(
        url, model_name="m", probe_set=probe_set(), layers=LAYERS, model_attrs={"seed": 3, "pair": (1, 2), 7: "é"}
    ) as writer:
        for step in (0, 5):
            writer.append(step, {"l": np.full((3, 2), step, "f4")}, loss=1.0, epoch=0.5, trigger="t")
    return url


def held(url: Path) -> dict[str, Any]:
    """Give every value and attribute of an opened store as text."""
    found = {}
    for node in ra.open_store(url).subtree:
        found[node.path] = json.dumps(node.attrs, sort_keys=True)
        for name, variable in node.variables.items():
            values = np.asarray(variable.values)
            found[f"{node.path}/{name}"] = f"{variable.dims} {values.dtype} {values.tolist()} {variable.attrs}"
    return found


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Flip one bit of one byte, or put another byte in its place."""
    place = chance.randrange(len(data))
    other = data[place] ^ (1 << chance.randrange(8)) if chance.random() < 0.5 else chance.randrange(256)
    return data[:place] + bytes([other]) + data[place + 1 :]


@pytest.mark.parametrize("mutations", MUTATIONS)
def test_a_changed_byte_of_metadata_is_found_or_without_effect(store, mutations):
    truth, chance = held(store), random.Random(mutations)
    assert ra.verify(store, data=True) == []
    paths = sorted(store.rglob("zarr.json"))
    silent = []
    for number in range(mutations):
        path = paths[number % len(paths)]
        data = path.read_bytes()
        path.write_bytes(changed := mutated(data, chance))
        try:
            found = ra.verify(store, data=True)
        except RepauditError as error:
            found = [error]
        try:
            if not found and held(store) != truth:
                silent.append((path, data, changed))
        except CorruptStoreError as error:
            silent.append((path, data, changed, error))
        path.write_bytes(data)
    assert silent == []


def test_a_changed_byte_of_the_document_of_a_model_or_the_root_is_never_read(store):
    """What opens in spite of a changed byte is what it was: only the rest of the store says what may be read."""
    truth, chance = held(store), random.Random(1)
    paths = sorted(store.rglob("zarr.json"))
    for number in range(100):
        path = paths[number % len(paths)]
        data = path.read_bytes()
        path.write_bytes(changed := mutated(data, chance))
        try:
            seen = held(store)
        except RepauditError:
            seen = truth
        assert seen == truth, (path, changed)
        path.write_bytes(data)


def documents(url: Path) -> list[dict[str, Any]]:
    return [json.loads((url / name).read_text()) for name in ("zarr.json", "models/m/zarr.json")]


def assert_sealed(url: Path) -> None:
    for document in documents(url):
        assert "crc32c" in document["attributes"]
        assert broken_seal(document) is None


def test_every_way_to_write_a_document_gives_it_a_checksum(store, tmp_path):
    assert_sealed(store)
    with ra.TrajectoryWriter(store, model_name="m", probe_set=probe_set(), layers=LAYERS) as writer:
        assert_sealed(store)
        writer.append(9, {"l": np.zeros((3, 2), "f4")}, trigger="t")
        writer.amend_trigger(9, "end")
        writer.note_gap(11, "full")
        writer.flush()
        assert_sealed(store)
        writer.truncate(5)
        assert_sealed(store)
    (store / "models/m/l/c.0.0.0").unlink()
    ra.repair(store)
    assert_sealed(store)
    copy_store(store, tmp_path / "copy.zarr")
    assert_sealed(tmp_path / "copy.zarr")
    assert ra.verify(tmp_path / "copy.zarr", data=True) == []


def rewrite(path: Path, change: Any, *, sealed: bool = False) -> None:
    document = json.loads(path.read_text())
    change(document["attributes"])
    path.write_bytes(seal(document) if sealed else json.dumps(document).encode())


def test_a_store_of_before_there_were_checksums_is_read_and_gets_them(store):
    truth = held(store)
    for path in (store / "zarr.json", store / "models/m/zarr.json"):
        rewrite(path, lambda attributes: attributes.pop("crc32c"))
    assert held(store) == truth
    assert ra.verify(store, data=True) == []
    ra.TrajectoryWriter(store, model_name="m", probe_set=probe_set(), layers=LAYERS).close()
    assert broken_seal(documents(store)[1]) is None
    assert "crc32c" in documents(store)[1]["attributes"]


@pytest.mark.parametrize("place", ["zarr.json", "models/m/zarr.json"])
def test_a_document_that_its_checksum_contradicts_is_refused_in_one_line(store, place):
    rewrite(store / place, lambda attributes: attributes["repaudit"].update(created="yesterday"))
    assert [(p.kind, p.location) for p in ra.verify(store)] == [("damaged_metadata", place)]
    with pytest.raises(CorruptStoreError, match=rf"{place}: it does not match its checksum.*repaudit repair"):
        ra.open_store(store)
    with pytest.raises(CorruptStoreError, match="does not match its checksum"):
        ra.TrajectoryWriter(store, model_name="m", probe_set=probe_set(), layers=LAYERS)


ROOT = {
    "fingerprint": "a" * 63 + "b",
    "samples_fingerprint": "0" * 64,
    "samples": 4,
    "raw": "text",
}


@pytest.mark.parametrize("name", ROOT)
def test_a_damaged_root_is_made_again_from_the_samples_and_inputs(store, name):
    truth = json.loads((store / "zarr.json").read_text())["attributes"]["repaudit"]
    rewrite(store / "zarr.json", lambda attributes: attributes["repaudit"].update({name: ROOT[name]}))
    (done,) = ra.repair(store)
    assert "unconfirmed" in done.message
    assert ra.verify(store, data=True) == []
    facts = ra.open_store(store).attrs["repaudit"]
    assert facts.pop("repaired")
    assert facts.pop("unconfirmed") == ["created", "versions"]
    assert facts == truth
    ra.TrajectoryWriter(store, model_name="n", probe_set=probe_set(), layers=LAYERS).close()


LOST_ROOTS = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "torn": lambda data: data[: len(data) // 2],
    "no JSON": lambda data: data.replace(b'{"zarr_format"', b'["zarr_format"'),
    "no store": lambda data: data.replace(b'"repaudit"', b'"repaudiu"'),
    "no group": lambda data: data.replace(b'"group"', b'"gsoup"'),
    "a later version": lambda data: data.replace(b'"version":2', b'"version":3'),
}


@pytest.mark.parametrize("known_by", ["texts", "hashes of texts", "inputs"])
@pytest.mark.parametrize("kind", LOST_ROOTS)
@pytest.mark.thin(3)
def test_a_lost_root_costs_no_store(tmp_path, kind, known_by):
    hashes = None if known_by == "inputs" else [text_hash(text) for text in "rst"]
    read = replace(probe_set(text_hashes=hashes), texts=None if known_by == "hashes of texts" else list("rst"))
    store = tmp_path / "s.zarr"
    ra.TrajectoryWriter(store, model_name="m", probe_set=read, layers=LAYERS).close()
    truth = json.loads((store / "zarr.json").read_text())["attributes"]["repaudit"]
    data = LOST_ROOTS[kind]((store / "zarr.json").read_bytes())
    (store / "zarr.json").unlink() if data is None else (store / "zarr.json").write_bytes(data)
    assert [problem.location for problem in ra.verify(store)] == ["zarr.json"]
    with pytest.raises(CorruptStoreError, match=r"run `repaudit repair`"):
        ra.open_store(store)
    (done,) = ra.repair(store)
    assert "unconfirmed" in done.message
    assert ra.verify(store, data=True) == []
    facts = ra.open_store(store).attrs["repaudit"]
    told = facts.keys() - {"created", "versions", "repaired", "unconfirmed"}
    assert {name: facts[name] for name in told} == {name: truth[name] for name in told}
    ra.TrajectoryWriter(store, model_name="n", probe_set=read, layers=LAYERS).close()


def test_what_was_lost_before_its_root_was_stays_lost(store):
    (store / "label/c.0").unlink()
    ra.repair(store)
    (store / "zarr.json").write_bytes(b"")
    ra.repair(store)
    assert catalog.lost(ra.open_store(store)) == ["label of the samples"]


def test_an_attempt_at_creation_is_no_lost_root(store):
    shutil.rmtree(store / "models/m")
    (store / "zarr.json").unlink()
    with pytest.raises(NotAStoreError):
        ra.repair(store)


def test_a_root_is_not_made_again_from_samples_that_are_lost_too(store):
    rewrite(store / "zarr.json", lambda attributes: attributes["repaudit"].update(samples=4))
    (store / "sample/c.0").unlink()
    before = (store / "zarr.json").read_bytes()
    with pytest.raises(CorruptStoreError, match=r"restore one of them from a backup"):
        ra.repair(store)
    assert (store / "zarr.json").read_bytes() == before


def recorded(store):
    """What the document of the model says of it."""
    return json.loads((store / "models/m/zarr.json").read_text())["attributes"]["repaudit"]


@pytest.mark.parametrize("change", [{"name": "n"}, {"inputs_fingerprint": "b" * 64}, {"steps": [0, 7]}, {"seed": 4}])
def test_the_document_of_a_model_is_repaired_from_what_has_a_second_copy(store, change):
    truth, was = held(store), recorded(store)
    rewrite(store / "models/m/zarr.json", lambda attributes: attributes["repaudit"].update(change))
    ra.repair(store)
    assert ra.verify(store, data=True) == []
    seen = held(store)
    assert {key for key in truth if seen[key] != truth[key]} == {"/models/m"}
    facts = recorded(store)
    assert facts["seed"] == change.get("seed", 3)
    assert "seed" in facts["unconfirmed"]
    for name in ("name", "inputs_fingerprint", "steps", "committed"):
        assert facts[name] == was[name]
        assert name not in facts["unconfirmed"]


@pytest.mark.parametrize("place", ["sample", "label", "text", "sha256", "models", "probe", "probe/aaaaaaaaaaaaaaaa"])
def test_a_document_that_the_format_determines_costs_nothing(store, place):
    truth = held(store)
    (store / place / "zarr.json").write_text("{")
    assert ("damaged_metadata", f"{place}/zarr.json") in {(p.kind, p.location) for p in ra.verify(store)}
    assert held(store) == truth
    ra.repair(store)
    assert ra.verify(store, data=True) == []


def test_the_name_of_an_encoding_is_settled_by_those_who_read_it(store):
    path, wrong = store / "probe/zarr.json", "a" * 63 + "b"
    document = json.loads(path.read_text())
    document["consolidated_metadata"]["metadata"]["a" * 16]["attributes"]["inputs_fingerprint"] = wrong
    path.write_text(json.dumps(document))
    assert [p.location for p in ra.verify(store)] == ["probe/zarr.json"]
    ra.repair(store)
    assert wrong not in path.read_text()
    assert ra.verify(store, data=True) == []
    assert catalog.inputs(ra.open_store(store), "m").input_ids.values.tolist() == IDS.tolist()


@pytest.mark.parametrize("kind", ["root", "model"])
def test_the_checksums_of_the_examples_are_theirs(kind):
    """So that another implementation can check its own."""
    document = json.loads((SCHEMAS / f"v2/examples/valid/{kind}.json").read_text(encoding="utf-8"))
    assert document["attributes"]["crc32c"] > 0
    assert broken_seal(document) is None
