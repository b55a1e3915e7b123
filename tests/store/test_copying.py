"""Copies and exports hold what the source holds."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import repaudit as ra
from repaudit.errors import CorruptStoreError, LayoutError, ModelExistsError, NotInStoreError, StepOrderError
from repaudit.store.copying import copy_store, export_layer
from repaudit.store.read import catalog


@pytest.fixture
def source(url, probe_set, step_arrays, layers):
    shapes = {**layers, "half": ((6, 5), "bfloat16")}
    for seed in ("a", "b"):
        with ra.TrajectoryWriter(
            url,
            model_name=seed,
            probe_set=probe_set,
            layers=shapes,
            layer_attrs={"half": {"reduction": "mean"}},
            model_attrs={"seed": 3},
        ) as writer:
            for step in (0, 5, 10):
                half = np.random.default_rng(step).normal(size=(6, 5)).astype(ml_dtypes.bfloat16)
                writer.append(step, {**step_arrays(step), "half": half}, loss=1.5 if step else None, trigger="x")
    return url


def test_a_copy_is_the_source(source, tmp_path):
    copied = copy_store(source, tmp_path / "copy.zarr", codec="compact")
    assert copied == {"a": [0, 5, 10], "b": [0, 5, 10]}
    assert ra.verify(tmp_path / "copy.zarr", data=True) == []
    before, after = ra.open_store(source), ra.open_store(tmp_path / "copy.zarr")
    assert after.attrs["repaudit"]["fingerprint"] == before.attrs["repaudit"]["fingerprint"]
    assert catalog.inputs(after, "a").identical(catalog.inputs(before, "a"))
    for model in ("a", "b"):
        left, right = (catalog.model_dataset(tree, model).load() for tree in (before, after))
        assert left.drop_attrs().identical(right.drop_attrs())
        assert catalog.facts(after, model)["seed"] == 3
        assert right["half"].attrs["reduction"] == "mean"
        assert right["half"].attrs["source_dtype"] == "bfloat16"


def test_a_part_can_be_copied_and_the_copy_grows_later(source, tmp_path):
    target = tmp_path / "part.zarr"
    assert copy_store(source, target, models=["b"], layers=["half"], steps=[0, 5]) == {"b": [0, 5]}
    assert catalog.layers(ra.open_store(target), "b") == ["half"]
    assert copy_store(source, target, models=["b"], layers=["half"]) == {"b": [0, 5, 10]}
    assert ra.verify(target, data=True) == []


@pytest.mark.parametrize("part", [{"models": ["c"]}, {"layers": ["c"]}, {"steps": [7]}])
def test_what_is_not_there_is_named(source, tmp_path, part):
    with pytest.raises(NotInStoreError, match=r"no (model 'c'|layer 'c'|step 7) in .*it has"):
        copy_store(source, tmp_path / "copy.zarr", **part)


def test_exports_hold_the_activations(source, tmp_path, step_arrays):
    expected = np.stack([step_arrays(step)["model.layers.0"] for step in (0, 5, 10)])
    assert export_layer(source, "a", "model.layers.0", tmp_path / "x.npy") == (3, 6, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    export_layer(source, "a", "model.layers.0", tmp_path / "x.safetensors", steps=[5, 10])
    loaded = load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(loaded["activations"], expected[1:])
    assert loaded["step"].tolist() == [5, 10]
    export_layer(source, "a", "layers[0]", tmp_path / "short.npy")  # as an analysis takes it
    np.testing.assert_array_equal(np.load(tmp_path / "short.npy"), expected)
    named = ra.open_store(source).repaudit.activations("a", "layers[0]")
    assert named.layer == "model.layers.0"
    np.testing.assert_array_equal(named, expected)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(LayoutError, match=r"path 'folder.npy': expected a file, found a folder"):
        export_layer(source, "a", "model.layers.0", tmp_path / "folder.npy")
    with pytest.raises(LayoutError, match=r"\.npy or \.safetensors"):
        export_layer(source, "a", "model.layers.0", tmp_path / "x.txt")


def test_an_export_goes_home_as_a_store_does(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    export_layer(source, "a", "model.layers.0", "~/x.npy")
    assert (tmp_path / "x.npy").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_neither_a_copy_nor_an_export_takes_a_damaged_step(source, tmp_path, damage):
    chunk = Path(source) / "models/a/model.layers.0/c.1.0.0"
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(b"\x00" * chunk.stat().st_size)
    where = r"step 5 of layer 'model.layers.0' of model 'a'.*repaudit verify"
    with pytest.raises(CorruptStoreError, match=where):
        copy_store(source, tmp_path / "copy.zarr")
    for name in ("x.npy", "x.safetensors"):
        with pytest.raises(CorruptStoreError, match=where):
            export_layer(source, "a", "model.layers.0", tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_an_export_that_fails_leaves_the_earlier_file(source, tmp_path, name):
    export_layer(source, "a", "model.layers.0", tmp_path / name)
    earlier = (tmp_path / name).read_bytes()
    Path(source, "models/a/model.layers.0/c.2.0.0").unlink()
    with pytest.raises(CorruptStoreError):
        export_layer(source, "a", "model.layers.0", tmp_path / name)
    assert (tmp_path / name).read_bytes() == earlier
    assert [path.name for path in tmp_path.iterdir() if "x" in path.name] == [name]


def test_what_was_rounded_stays_known_as_rounded(source, tmp_path):
    copy_store(source, tmp_path / "lossy.zarr", models=["a"], layers=["model.layers.0"], codec="lossy", keepbits=4)
    copy_store(tmp_path / "lossy.zarr", tmp_path / "again.zarr")
    copy_store(tmp_path / "again.zarr", tmp_path / "third.zarr")
    for name in ("again.zarr", "third.zarr"):
        array = catalog.activations(ra.open_store(tmp_path / name), "a", "model.layers.0")
        assert array.attrs["copied_from"] == {"codec": "lossy", "keepbits": 4}
        assert ra.verify(tmp_path / name, data=True) == []


@pytest.mark.parametrize(
    ("part", "dtype", "codec"), [("codec", "float32", "lossy"), ("source_dtype", "bfloat16", "compact")]
)
def test_a_model_is_not_resumed_in_another_codec_or_dtype(url, probe_set, part, dtype, codec):
    first = {"layers": {"x": ((6, 3), "float32")}, "codec": "compact"}
    with ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, **first) as writer:
        writer.append(0, {"x": np.ones((6, 3), "f4")})
    with pytest.raises(LayoutError, match=rf"'x' of model 'm' has {part}"):
        ra.TrajectoryWriter(url, model_name="m", probe_set=probe_set, layers={"x": ((6, 3), dtype)}, codec=codec)


@pytest.mark.parametrize("other", ["values", "steps"])
@pytest.mark.parametrize("codec", [{}, {"codec": "lossy", "keepbits": 5}])
def test_a_copy_does_not_take_another_run_for_its_own(source, tmp_path, probe_set, layers, step_arrays, other, codec):
    target = tmp_path / "other.zarr"
    with ra.TrajectoryWriter(target, model_name="a", probe_set=probe_set, layers=layers, **codec) as writer:
        writer.append(0, step_arrays(0))
        writer.append(5 if other == "values" else 4, step_arrays(99))
    with pytest.raises(ModelExistsError, match=r"another model 'a': its step (5|4)"):
        copy_store(source, target, models=["a"], layers=list(layers), steps=[0, 10], **codec)
    assert len(catalog.steps(ra.open_store(target), "a")) == 2


def test_a_lossy_copy_goes_on_where_it_stopped(source, tmp_path):
    part = {"models": ["a"], "layers": ["model.layers.0"], "codec": "lossy", "keepbits": 5}
    copy_store(source, tmp_path / "copy.zarr", steps=[0, 5], **part)
    assert copy_store(source, tmp_path / "copy.zarr", **part) == {"a": [0, 5, 10]}


def test_earlier_steps_cannot_follow_later_ones_into_a_copy(source, tmp_path):
    copy_store(source, tmp_path / "copy.zarr", steps=[5])
    with pytest.raises(StepOrderError, match=r"up to step 5; step 0 is earlier.*another path or URL"):
        copy_store(source, tmp_path / "copy.zarr")


def test_a_store_is_not_copied_into_itself(source, tmp_path):
    (tmp_path / "link.zarr").symlink_to(source)
    for target in (source, tmp_path / "link.zarr"):
        with pytest.raises(LayoutError, match="into itself"):
            copy_store(source, target)


@pytest.mark.parametrize(
    ("part", "what"), [("sample/c.0", "ids of the samples"), ("models/a/checksum/c.0.0", "checksums")]
)
def test_damage_of_what_is_needed_is_a_clear_error_of_a_copy(source, tmp_path, part, what):
    chunk = Path(source) / part
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(CorruptStoreError, match=what):
        copy_store(source, tmp_path / "copy.zarr")
