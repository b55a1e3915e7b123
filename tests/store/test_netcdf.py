"""What xarray holds of a store, of results and of operators can be written to netCDF, and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

import repaudit as ra

ENGINE = "h5netcdf"


def there_and_back(data, path):
    data.to_netcdf(path, engine=ENGINE)
    opener = xr.open_dataarray if isinstance(data, xr.DataArray) else xr.open_dataset
    return opener(path, engine=ENGINE).load()


def test_a_model_of_a_store(planted_store, tmp_path):
    tree = ra.open_store(planted_store(layers=("first", "größe/2")))
    dataset = tree["models/seed1"].to_dataset().load()
    back = there_and_back(dataset, tmp_path / "model.nc")
    xr.testing.assert_equal(back, dataset)
    assert back.attrs["model"] == "seed1"
    assert json.loads(back.attrs["repaudit"]) == tree.repaudit.facts("seed1")
    assert back["layer"].values.tolist() == ["first", "größe/2"]
    assert [back[name].attrs["layer"] for name in back.data_vars] == ["first", "größe/2"]
    lazy = there_and_back(tree["models/seed1"].to_dataset(), tmp_path / "lazy.nc")
    xr.testing.assert_identical(lazy, back)


def test_a_model_with_many_missing_steps(tmp_path, probe_set):
    url, count = tmp_path / "gaps.zarr", len(probe_set)
    shape = {"only": ((count, 2), "float32")}
    with ra.TrajectoryWriter(url, model_name="a", probe_set=probe_set, layers=shape, durable=False) as writer:
        writer.append(0, {"only": np.ones((count, 2), np.float32)})
        for step in range(1, 1500):
            writer.note_gap(step, "no memory left for this step of the training")
    tree = ra.open_store(url)
    back = there_and_back(tree["models/a"].to_dataset(), tmp_path / "gaps.nc")
    assert len(json.loads(back.attrs["repaudit"])["gaps"]) == 1499


def test_a_whole_store_as_a_tree(planted_store, tmp_path):
    tree = ra.open_store(planted_store(2))
    models = tree["models"]
    models.to_netcdf(tmp_path / "models.nc", engine=ENGINE)
    with xr.open_datatree(tmp_path / "models.nc", engine=ENGINE) as back:
        for name in ("seed0", "seed1"):
            np.testing.assert_array_equal(back[f"models/{name}"]["second"], models[name]["second"])


@pytest.mark.usefixtures("undrawn")
def test_the_groups_of_results(planted_store, tmp_path):
    results = ra.analyze(planted_store(steps=(0, 1)), tmp_path / "out", frames=2, units=2)
    with xr.open_datatree(tmp_path / "out/results.zarr", engine="zarr") as stored:
        groups = [node.path for node in results.subtree if node.data_vars]
        assert {"/spread", "/merged/operator", "/similarity", "/diagnostics"} <= {*groups}
        for tree, kind in ((results, "made"), (stored, "stored")):
            for path in groups:
                dataset = tree[path].to_dataset().load()
                back = there_and_back(dataset, tmp_path / f"{kind}-{path.strip('/').replace('/', '-')}.nc")
                xr.testing.assert_identical(back, dataset)


def points(n=400):
    ids = [f"s{i}" for i in range(n)]
    X = np.random.default_rng(0).standard_normal((n, 5))
    return xr.DataArray(X, dims=("sample", "feature"), coords={"sample": ids, "step": 7}, name="layer.1")


@pytest.mark.parametrize(
    "gauge",
    [{}, {"knn": 5}, {"bandwidth": "median", "metric": "cosine", "standardize": True}, {"knn": 5, "landmarks": 40}],
    ids=["sparse", "knn", "bandwidth", "landmarks"],
)
def test_an_operator_is_the_same_again(tmp_path, gauge):
    operator = ra.DiffusionGauge(**gauge)(points())
    array = operator.to_dataarray()
    back = ra.DiffusionOperator.from_dataarray(there_and_back(array, tmp_path / "operator.nc"))
    assert type(back) is type(operator)
    np.testing.assert_array_equal(back.to_numpy(), operator.to_numpy())
    torch.testing.assert_close(back.degrees, operator.degrees, rtol=0, atol=0)
    assert back.attrs == operator.attrs
    assert {name: type(value) for name, value in back.attrs.items()} == {
        name: type(value) for name, value in operator.attrs.items()
    }
    assert None in back.attrs.values()
    assert back.diagnostics == operator.diagnostics
    assert back.samples.tolist() == operator.samples.tolist()
    assert back.reversible == operator.reversible


def test_a_merged_operator_is_the_same_again(tmp_path):
    operators = {f"seed{k}": ra.DiffusionGauge(knn=4)(points(30) + k * 0.1) for k in range(3)}
    merged = ra.DiffusionMerging("frobenius").merge(operators)
    back = ra.DiffusionOperator.from_dataarray(there_and_back(merged.to_dataarray(), tmp_path / "merged.nc"))
    np.testing.assert_array_equal(back.to_numpy(), merged.to_numpy())
    assert back.attrs == merged.attrs


def test_operators_of_a_whole_store(planted_store, tmp_path):
    tree = ra.open_store(planted_store(1, steps=(0, 1)))
    operators = ra.DiffusionGauge(knn=5).map(tree)["models/seed0"].to_dataset()
    back = there_and_back(operators, tmp_path / "operators.nc")
    read = ra.DiffusionOperator.from_dataarray(back["first"].sel(step=1))
    by_hand = tree.repaudit.operators("first", step=1, knn=5)["seed0"]
    np.testing.assert_array_equal(read.to_numpy(), by_hand.to_numpy())
