"""The schemas accept what is valid and nothing else, and the golden store of each version stays readable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from jsonschema import Draft202012Validator

import repaudit as ra
from repaudit.store.format.schema import unbelievable, violations
from repaudit.store.read import catalog

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOLDEN = Path(__file__).with_name("golden") / "v1.zarr"
GOLDEN_2 = GOLDEN.with_name("v2.zarr")


def cases(folder: str) -> list[Path]:
    return sorted(SCHEMAS.glob(f"v*/examples/{folder}/*.json"))


def version(path: Path) -> int:
    return int(path.relative_to(SCHEMAS).parts[0].removeprefix("v"))


def kind(path: Path) -> str:
    return path.stem.partition("-")[0]


@pytest.mark.parametrize("path", cases("valid"), ids=lambda path: f"v{version(path)}-{path.stem}")
def test_valid_documents_are_accepted(path):
    assert violations(kind(path), json.loads(path.read_text(encoding="utf-8")), version(path)) == []


@pytest.mark.parametrize("path", cases("invalid"), ids=lambda path: f"v{version(path)}-{path.stem}")
def test_invalid_documents_are_refused_with_the_place(path):
    found = violations(kind(path), json.loads(path.read_text(encoding="utf-8")), version(path))
    assert found
    assert all(": " in violation for violation in found)


def test_there_are_cases_of_every_kind():
    schemas = {(version(path), path.name.partition(".")[0]) for path in SCHEMAS.glob("v*/*.schema.json")}
    first = {(1, name) for name in ("root", "model", "layer", "probe", "summary", "results")}
    assert schemas == first | {(2, name) for name in ("root", "model", "probe")}
    for folder in ("valid", "invalid"):
        assert {(version(path), kind(path)) for path in cases(folder)} == schemas


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("v*/*.schema.json")), ids=lambda path: path.name)
def test_the_schemas_are_schemas(path):
    Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


def test_the_golden_store_reads_with_plain_xarray():
    tree = xr.open_datatree(GOLDEN, engine="zarr", consolidated=False)
    assert tree["sample"].values.tolist() == [f"passage-{i}" for i in range(4)]
    assert tree["text"].values.tolist()[3] == "import é"
    dataset = tree["models/seed1"]
    assert dataset.step.values.tolist() == [0, 10, 25]
    base = np.arange(12, dtype="f4").reshape(4, 3) + 100
    np.testing.assert_array_equal(dataset["model.layers.0"].values, [base, base + 10, base + 25])


def test_the_golden_store_reads_with_repaudit_and_verifies():
    assert ra.verify(GOLDEN, data=True) == []
    tree = ra.open_store(GOLDEN)
    assert catalog.models(tree) == ["run/α", "seed1"]
    assert catalog.layers(tree, "run/α") == ["model.layers.0", "model.layers.1:all", "a/b %"]
    tokens = catalog.activations(tree, "run/α", "model.layers.1:all")
    assert tokens.dims == ("step", "sample", "token", "feature")
    np.testing.assert_array_equal(tokens.sel(step=25).values, np.arange(24.0).reshape(4, 2, 3) - 25)
    half = catalog.activations(tree, "run/α", "a/b %")
    assert half.attrs["source_dtype"] == "bfloat16"
    np.testing.assert_array_equal(half.sel(step=0).values, np.arange(12, dtype="f4").reshape(4, 3) / 8)
    dataset = catalog.model_dataset(tree, "seed1")
    np.testing.assert_array_equal(dataset.loss.values, [np.nan, 0.1, 0.04])
    assert dataset.wall_time.values[1] == np.datetime64("2023-11-14T22:13:30")


def test_the_golden_store_of_version_2_has_two_encodings_of_its_samples():
    assert ra.verify(GOLDEN_2, data=True) == []
    tree = ra.open_store(GOLDEN_2)
    assert tree["text"].values.tolist()[3] == "import é"
    assert tree["label"].dtype == tree["sample"].dtype == object  # of str, as scikit-learn takes them
    assert {model: dict(catalog.inputs(tree, model).sizes) for model in catalog.models(tree)} == {
        "run/α": {"sample": 4, "token": 5},
        "seed1": {"sample": 4, "token": 3},
    }
    assert catalog.encoding(tree, "seed1")["truncated"] == 1
    half = catalog.activations(tree, "run/α", "a/b %")
    np.testing.assert_array_equal(half.sel(step=0).values, np.arange(12, dtype="f4").reshape(4, 3) / 8)
    plain = xr.open_datatree(GOLDEN_2, engine="zarr", consolidated=False)
    assert plain["probe/fedcba9876543210/input_ids"].shape == (4, 5)
    np.testing.assert_array_equal(plain["models/seed1/model.layers.0"][2, 0], [125, 126, 127])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**15]},
        {"shape": [2.5, 3]},
        {"shape": [-1, 3]},
        {"shape": "12"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 10**12]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 3]}}},
        {"chunk_grid": None},
        {"shape": [True, 3]},
        {"shape": [5, 10**6]},
        {"shape": [5, 1]},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(change):
    grid = {"name": "regular", "configuration": {"chunk_shape": [1, 3]}}
    document = {"shape": [5, 3], "data_type": "float32", "chunk_grid": grid}
    assert unbelievable(document) is None
    assert unbelievable(document | change)
