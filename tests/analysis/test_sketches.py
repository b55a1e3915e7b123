"""Analysing what was recorded as sketches, against the analysis of the activations of the same training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.analysis.contract import contract_violations
from repaudit.capture.record.recorded_operators import operator_layers, to_store
from repaudit.errors import AnalysisError
from repaudit.operators.grouped_sketch import grouped_sketch
from repaudit.store.read import catalog
from tests.conftest import labelled_probe_set

Sketched = Callable[..., Path]
U = 12


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, plant: Callable[..., Path]) -> Path:
    return plant(tmp_path_factory.mktemp("planted"), steps=(0, 3, 6, 9, 12))


@pytest.fixture(scope="session")
def sketched(tmp_path_factory: pytest.TempPathFactory, planted: Path) -> Sketched:
    """Record sketches of the same activations, of some models; of the others the activations."""

    def make(name: str, models: dict[str, float] | None = None, of: Path = planted) -> Path:
        url = tmp_path_factory.mktemp(name) / f"{name}.zarr"
        tree = ra.open_store(of)
        for model in catalog.models(tree):
            scale = (models or {}).get(model, U)
            _replay(tree, model, url, scale)
        return url

    return make


def _replay(tree: xr.DataTree, model: str, url: Path, perplexity: float) -> None:
    """Write a model's sketches as a recorder does; a perplexity of 0 keeps its activations."""
    layers = catalog.layers(tree, model)
    gauge = ra.DiffusionGauge(perplexity=perplexity or U)
    arrays = {name: catalog.activations(tree, model, name) for name in layers}
    shapes: Any = {name: (array.shape[1:], "float32") for name, array in arrays.items()}
    attrs: Any = {}
    if perplexity:
        shapes, attrs = operator_layers("sketches", {name: gauge(arrays[name][0].values) for name in layers}, gauge)
    probe_set = labelled_probe_set()
    with ra.TrajectoryWriter(
        url, model_name=model, probe_set=probe_set, layers=shapes, layer_attrs=attrs, durable=False
    ) as writer:
        for index, step in enumerate(catalog.steps(tree, model)):
            values = {name: array[index].values for name, array in arrays.items()}
            operators = {name: gauge(value) for name, value in values.items()} if perplexity else {}
            writer.append(step, to_store("sketches", {}, operators) if perplexity else values)


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory, planted: Path) -> xr.DataTree:
    out = tmp_path_factory.mktemp("exact")
    return ra.analyze(planted, out=out, gauge=ra.DiffusionGauge(perplexity=U), frames=0, units=0, figures="none")


def test_spread_pairs_and_verdicts_are_those_of_operators_within_the_stated_error(sketched, exact, undrawn):
    found = ra.analyze(sketched("all"), figures="none")
    error = found["spread"]["sketch_error"]
    assert float(error.min()) > 0
    assert float(error.max()) < 0.08
    assert found["spread"]["scale"].values.tolist() == [U]
    apart = np.abs(found["spread"]["spread"] - exact["spread"]["spread"])
    assert bool((apart <= 3 * error).all())
    assert bool((found["spread"]["low"] <= exact["spread"]["spread"]).all())
    assert bool((found["spread"]["high"] >= exact["spread"]["spread"]).all())
    np.testing.assert_allclose(found["spread"]["null"], exact["spread"]["null"], rtol=1e-4)
    squares = [np.square(results["pairs"]["distance"].values) for results in (found, exact)]
    assert np.nanmax(np.abs(squares[0] - squares[1])) < 4 * float(error.max())
    for layer, said in exact.repaudit.summary["layers"].items():
        assert found.repaudit.summary["layers"][layer]["verdict"] == said["verdict"]
    for name in ("effective_neighbors", "components", "isolated"):
        np.testing.assert_allclose(found["diagnostics"][name], exact["diagnostics"][name], rtol=1e-4)
    inputs = [results["comparison"]["from_inputs"].values for results in (found, exact)]
    np.testing.assert_allclose(*inputs, atol=0.1)


def test_what_sketches_do_not_tell_is_left_out_by_name(sketched, undrawn):
    results = ra.analyze(sketched("named"), figures="none")
    assert {"merged", "frames", "units", "similarity"}.isdisjoint(results)
    assert bool(results["spread"]["hellinger"].isnull().all())
    assert bool(results["comparison"]["feature_halves"].isnull().all())
    assert (results["spread"]["largest_sample"] == "").all()
    assert results["trajectories"].attrs["sketch"] == 4096
    assert np.isfinite(results["trajectories"]["trajectory"]).all()
    (line,) = [line for line in results.repaudit.summary["left_out"] if "sketches" in line]
    assert "first, second" in line
    assert "merged operators" in line
    assert f"{float(results['spread']['sketch_error'].max()):.3f}" in line
    assert contract_violations(results) == []


def test_an_analysis_of_sketches_is_drawn_and_reported(sketched, tmp_path):
    ra.analyze(sketched("drawn"), out=tmp_path / "out")
    assert "sketches" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out/figures").is_dir()


def test_models_of_activations_and_of_sketches_are_compared(sketched, exact, undrawn):
    found = ra.analyze(sketched("mixed", {"seed1": 0}), figures="none")
    error = found["spread"]["sketch_error"]
    assert bool((found["spread"]["n_models"] == 3).all())
    assert bool((np.abs(found["spread"]["spread"] - exact["spread"]["spread"]) <= 3 * error).all())
    all_sketched = ra.analyze(sketched("same"), figures="none")
    np.testing.assert_allclose(found["spread"]["spread"], all_sketched["spread"]["spread"], rtol=1e-4)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({"seed2": 20}, {}, "sketches of one gauge"),
        ({}, {"scales": (20,)}, "those that the sketches were recorded with"),
        ({}, {"gauge": ra.DiffusionGauge(knn=5)}, "those that the sketches were recorded with"),
        ({}, {"tokens": "samples"}, "token"),
    ],
)
def test_what_cannot_be_made_of_sketches_is_refused(sketched, models, options, message):
    with pytest.raises(AnalysisError, match=message):
        ra.analyze(sketched("refused", models), figures="none", **options)


def test_sketches_of_another_seed_are_refused(sketched, monkeypatch):
    url = sketched("one")
    other = partial(grouped_sketch, seed=1)
    monkeypatch.setattr("repaudit.capture.record.recorded_operators.grouped_sketch", other)
    again = sketched("other")
    with pytest.raises(AnalysisError, match="sketches of one kind of hash"):
        ra.analyze([url, again], out=url.parent / "out", figures="none")


def test_stores_that_share_some_samples_are_refused(sketched, planted, tmp_path, plant):
    other = tmp_path / "other.zarr"
    probe_set = labelled_probe_set().select(0, 40)
    with ra.TrajectoryWriter(other, model_name="m", probe_set=probe_set, layers={"first": ((40, 3), "float32")}) as w:
        w.append(0, {"first": np.zeros((40, 3), "float32")})
    with pytest.raises(AnalysisError, match="its sketches"):
        ra.analyze([sketched("some"), other], out=tmp_path / "out", figures="none")


def test_a_grown_record_is_analysed_again(sketched, undrawn):
    url = sketched("grown")
    first = ra.analyze(url, figures="none", steps=[0, 3, 6])
    again = ra.analyze(url, figures="none")
    same = again["spread"]["spread"].sel(step=[0, 3, 6])
    np.testing.assert_array_equal(first["spread"]["spread"], same)


def test_one_model_of_sketches_is_compared_with_its_own_end(sketched, undrawn):
    results = ra.analyze(sketched("alone"), models=["seed0"], figures="none")
    approach = results["approach"]["approach"].squeeze()
    assert float(approach[0, -1]) == 0
    assert float(approach[0, 0]) > 0.1
