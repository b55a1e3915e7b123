"""Hostile names, absurd metadata, links out of the store, and other people's Zarr."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import repaudit as ra
from repaudit.errors import (
    CorruptStoreError,
    ForeignPathError,
    LayoutError,
    ModelExistsError,
    NotAStoreError,
    StoreNotFoundError,
    StoreWarning,
)
from repaudit.names import decode_name, encode_name
from repaudit.store.format.keys import safe_key
from repaudit.store.format.layer_layout import lay_out_layers
from repaudit.store.read import catalog
from repaudit.store.storage.place import open_storage

HOSTILE = [
    "../../escape",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "zarr.json",
    "step",
    "sample",
    "feature",
    "feature_3",
    "layer",
    "checksum",
    "loss",
    ".lease",
    "__proto__",
    " ",
    "a\x00b",
    "line\nbreak",
    "%2E%2E",
    "ü" * 90,
    "x" * 500,
    "模型",
    "c.0.0.0",
    "model.layers[0]",
    "CON",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.thin(2)
def test_a_hostile_name_stays_inside_and_comes_back(name, url, tmp_path, probe_set):
    layers = {name: ((6, 3), "float32"), "plain": ((6, 5), "float32")}
    with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers) as writer:
        writer.append(0, {name: np.full((6, 3), 7, "f4"), "plain": np.zeros((6, 5), "f4")})
    assert [path.name for path in tmp_path.iterdir()] == ["store.zarr"]
    tree = ra.open_store(url)
    assert catalog.models(tree) == [name]
    assert set(catalog.layers(tree, name)) == {name, "plain"}
    assert (catalog.activations(tree, name, name)[0].values == 7).all()
    assert ra.verify(url, data=True) == []


@settings(max_examples=300, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=6, unique=True))
@example(names=["a/b", "a%2Fb"])
@example(names=["x" * 300, "x" * 301])
def test_different_names_get_different_single_keys(names):
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(names)
    for name, key in zip(names, keys, strict=True):
        assert "/" not in key
        assert "\\" not in key
        assert key not in {"", ".", "..", "zarr.json"}
        assert key.isascii()
        assert key.isprintable()
        assert len(key) <= 180
        assert decode_name(encode_name(name)) == name


def test_layers_named_like_each_others_dimensions_do_not_collide():
    layers = lay_out_layers({"feature_5": ((2, 3), "float32"), "other": ((2, 5), "float32")}, 2)
    dimensions = {dimension for layer in layers for dimension in layer.dimensions}
    assert not dimensions & {layer.key for layer in layers}


@pytest.fixture
def store(url, probe_set, layers, step_arrays) -> Path:
    with ra.TrajectoryWriter(url, model_name="seed0", probe_set=probe_set, layers=layers) as writer:
        writer.append(0, step_arrays(0))
    return Path(url)


@pytest.mark.parametrize("name", ["step", "model.layers.0", "checksum"])
@pytest.mark.parametrize("part", ["shape", "chunks"])
def test_a_metadata_bomb_is_refused_before_memory_is_asked_for(store, name, part):
    path = store / "models/seed0/zarr.json"
    document = json.loads(path.read_text())
    array = document["consolidated_metadata"]["metadata"][name]
    if part == "shape":
        array["shape"][0] = 10**13
    else:
        array["chunk_grid"]["configuration"]["chunk_shape"][-1] = 10**13
    path.write_text(json.dumps(document))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptStoreError, match=f"{name} cannot be right"):
            ra.open_store(store)
        assert {problem.kind for problem in ra.verify(store)} == {"damaged_metadata"}
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\x00\xff"])
def test_a_document_that_is_no_json_object_is_a_clear_error(store, text):
    (store / "models/seed0/zarr.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptStoreError, match=r"models/seed0/zarr\.json"):
        ra.open_store(store)
    assert [problem.kind for problem in ra.verify(store)] == ["damaged_metadata"]


def test_nothing_is_read_or_written_through_a_link_out_of_the_store(store, tmp_path, probe_set, layers, step_arrays):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "zarr.json").write_text((store / "models/seed0/zarr.json").read_text())
    (store / "models/linked").symlink_to(outside)
    with pytest.warns(StoreWarning, match="model 'linked' is left out: .*symbolic link"):
        assert catalog.models(ra.open_store(store)) == ["seed0"]
    with pytest.raises(ForeignPathError, match="symbolic link"):
        ra.TrajectoryWriter(store, model_name="linked", probe_set=probe_set, layers=layers)
    assert [path.name for path in outside.iterdir()] == ["zarr.json"]
    assert ("foreign", "models/linked") in {(problem.kind, problem.location) for problem in ra.verify(store)}
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (store / "models/linked").unlink()
    (store / "models/seed0/model.layers.0/c.1.0.0").symlink_to(secret)
    writer = ra.TrajectoryWriter(store, model_name="seed0", probe_set=probe_set, layers=layers)
    writer.append(1, step_arrays(1))
    with pytest.raises(ForeignPathError):
        writer.flush()
    writer.close()
    assert secret.read_text() == "mine"


def test_a_linked_root_is_a_users_own_choice(store, tmp_path, probe_set, layers, step_arrays):
    (tmp_path / "link.zarr").symlink_to(store)
    with ra.TrajectoryWriter(tmp_path / "link.zarr", model_name="seed0", probe_set=probe_set, layers=layers) as writer:
        writer.append(1, step_arrays(1))
    assert catalog.steps(ra.open_store(tmp_path / "link.zarr"), "seed0") == [0, 1]


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_key_that_leads_out_is_refused(key, place, tmp_path):
    storage = open_storage(tmp_path / "s" if place == "local" else "memory://s")
    if place == "memory" and key.startswith("/"):
        assert storage.get(key) is None
        return
    with pytest.raises(ForeignPathError, match="leads out"):
        storage.put(key, [b"x"])


def test_other_peoples_data_is_neither_read_nor_overwritten(tmp_path, probe_set, layers):
    group = zarr.create_group(tmp_path / "theirs.zarr")
    group.create_array("data", data=np.ones(3))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("x")
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "dataset.zarr", zarr_format=2, consolidated=False)
    for name in ("theirs.zarr", "folder", "dataset.zarr"):
        before = sorted(str(path) for path in (tmp_path / name).rglob("*"))
        with pytest.raises(NotAStoreError):
            ra.TrajectoryWriter(tmp_path / name, model_name="m", probe_set=probe_set, layers=layers)
        with pytest.raises((NotAStoreError, StoreNotFoundError)):
            ra.open_store(tmp_path / name)
        assert sorted(str(path) for path in (tmp_path / name).rglob("*") if "probe" not in str(path)) == before


@pytest.mark.parametrize("if_exists", ["resume", "error", "replace"])
def test_checkpoints_under_the_name_of_a_model_are_never_deleted(tmp_path, probe_set, layers, if_exists, step_arrays):
    theirs = tmp_path / "proj/models/seed0/checkpoint-100/model.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("weights")
    options = {"model_name": "seed0", "probe_set": probe_set, "layers": layers, "durable": False}
    with pytest.raises(NotAStoreError, match="models/seed0"):
        ra.TrajectoryWriter(tmp_path / "proj", **options, if_exists=if_exists)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [
        "proj/models/seed0/checkpoint-100/model.safetensors"
    ]
    store = tmp_path / "store"
    with ra.TrajectoryWriter(store, **options | {"model_name": "other"}) as writer:
        writer.append(0, step_arrays(0))
    theirs.parent.parent.rename(store / "models/seed0")
    with pytest.raises((NotAStoreError, ModelExistsError)):
        ra.TrajectoryWriter(store, **options, if_exists=if_exists)
    assert (store / "models/seed0/checkpoint-100/model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("steps", [0, 1])
def test_what_lies_among_the_arrays_of_a_model_stays(url, tmp_path, probe_set, layers, step_arrays, steps):
    options = {"model_name": "seed0", "probe_set": probe_set, "layers": layers, "durable": False}
    with ra.TrajectoryWriter(url, **options) as writer:
        for step in range(steps):
            writer.append(step, step_arrays(step))
    notes = tmp_path / "store.zarr/models/seed0/notes/today.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    ra.TrajectoryWriter(url, **options).close()
    with pytest.raises(NotAStoreError, match=r"today\.txt"):
        ra.TrajectoryWriter(url, **options, if_exists="replace")
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, "at least one layer"),
        ({"x": ((5, 3), "float32")}, "5 samples: the probe set has 6"),
        ({"x": ((6,), "float32")}, "expected"),
        ({"x": ((6, 0), "float32")}, "none of them 0"),
        ({"x": ((6, 2, 2, 2), "float32")}, "expected"),
        ({"x": ((6, 3), "int8")}, "dtype 'int8'"),
    ],
)
def test_impossible_layers_are_refused(url, probe_set, layers, message):
    with pytest.raises(LayoutError, match=message):
        ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers)
    assert not Path(url).exists()


def test_a_directory_in_the_place_of_a_file_is_an_error_that_names_it(url, probe_set, layers):
    ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers=layers).close()
    own = Path(url, "sample/zarr.json")
    own.unlink()
    own.mkdir()
    with pytest.raises(ForeignPathError, match=r"sample/zarr\.json is a directory, expected a file"):
        ra.repair(url)
