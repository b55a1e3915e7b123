"""The accessors give the store's own names and the operators that the gauge gives."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import repaudit as ra
from repaudit.errors import ActivationError, AnalysisError


@pytest.fixture
def tree(planted_store):
    return ra.open_store(planted_store(layers=("first", "a/b")))


def test_names_are_the_real_ones(tree, probe_set):
    assert tree.repaudit.models == ["seed0", "seed1", "seed2"]
    assert tree.repaudit.layers("seed1") == ["first", "a/b"]
    assert tree.repaudit.steps("seed2") == [0, 1, 2, 4, 8, 16]
    assert tree.repaudit.fingerprint == probe_set.fingerprint


def test_activations_carry_where_they_are_from(tree):
    found = tree.repaudit.activations("seed0", "a/b")
    assert found.dims[:2] == ("step", "sample")
    assert (found.coords["model"].item(), found.coords["layer"].item()) == ("seed0", "a/b")
    assert found.chunks is not None
    assert found["sample"].values.tolist() == tree["sample"].values.tolist()


def test_operators_are_those_of_the_gauge_and_feed_the_spread(tree):
    found = tree.repaudit.operators("first", step=16, knn=7)
    assert list(found) == ["seed0", "seed1", "seed2"]
    by_hand = ra.DiffusionGauge(knn=7)(tree["models/seed1"]["first"].sel(step=16).values)
    np.testing.assert_array_equal(found["seed1"].to_numpy(), by_hand.to_numpy())
    early, late = (ra.spread(tree.repaudit.operators("first", step=step)).value for step in (0, 16))
    assert late < 0.1 < early


def test_a_missing_step_and_a_foreign_tree_are_said(tree):
    with pytest.raises(AnalysisError, match=r"step 3 .* seed0, seed1, seed2"):
        tree.repaudit.operators("first", step=3)
    with pytest.raises(KeyError, match=r"no layer 'nowhere'.*first"):
        tree.repaudit.operators("nowhere", step=16)
    with pytest.raises(ActivationError, match="step"):
        tree.repaudit.activations("seed0", "first").repaudit.gauge()
    foreign = xr.DataTree()
    for name in ("models", "fingerprint"):
        with pytest.raises(AnalysisError, match=r"root of a store .* or the results"):
            getattr(foreign.repaudit, name)
    with pytest.raises(AnalysisError, match="results of an analysis"):
        _ = tree.repaudit.summary


def test_summary_is_that_of_the_results(make_results):
    results, summary = make_results()
    assert results.repaudit.summary == summary


@pytest.mark.parametrize("first", ["import repaudit; repaudit.open_store", "import repaudit.accessor"])
def test_registering_needs_no_torch(first):
    program = f"{first}\nimport sys, xarray\nprint(hasattr(xarray.DataTree, 'repaudit'), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


def test_results_say_which_models_layers_and_steps_they_are_of(make_results):
    results, _ = make_results(scales=True)
    assert results.repaudit.models == ["seed0", "seed1", "seed2"]
    diagnostics = results["diagnostics"].to_dataset(inherit=False)
    for name, values in diagnostics.data_vars.items():
        if name != "failed":
            diagnostics[name] = values.astype(float).where((values["model"] != "seed1") | (values["step"] != 8))
            diagnostics[name] = diagnostics[name].where(
                (values["model"] != "seed2") | (values["layer"] != "model.norm")
            )
    results["diagnostics"] = xr.DataTree(diagnostics)
    assert results.repaudit.layers("seed1") == ["model.layers.0", "model.layers.1", "model.norm"]
    assert results.repaudit.layers("seed2") == ["model.layers.0", "model.layers.1"]
    assert 8 in results.repaudit.steps("seed0")
    assert 8 not in results.repaudit.steps("seed1")
    with pytest.raises(KeyError, match=r"no model 'seed3'.*seed0, seed1, seed2"):
        results.repaudit.layers("seed3")


def test_results_have_no_activations_and_say_which_store_has(make_results):
    results, _ = make_results()
    results.attrs["parameters"] = json.dumps({"url": "runs/a.zarr"})
    with pytest.raises(AnalysisError, match=r"without activations: open .runs/a\.zarr."):
        results.repaudit.activations("seed0", "model.norm")
    with pytest.raises(AnalysisError, match="without activations"):
        results.repaudit.operators("model.norm", step=8)


def test_figures_are_of_the_layer_and_the_scale_asked_for(make_results):
    results, _ = make_results(scales=True)
    draw = results.repaudit.plot
    for index, scale in enumerate((None, "shape", 30.0)):
        drawn = draw.spread("model.layers.1", scale, ax=Figure().add_subplot()).lines[0].get_ydata()
        expected = results["spread"]["spread"].sel(layer="model.layers.1").isel(scale=min(index, 1))
        np.testing.assert_array_equal(drawn, expected)
    names = [text.get_text() for text in draw.spread(ax=Figure().add_subplot()).get_legend().get_texts()]
    assert names == ["model.layers.0", "model.layers.1", "model.norm"]
    for one in (draw.spread, draw.trajectories, draw.embedding):
        assert (
            one("norm" if one != draw.spread else "model.norm", ax=Figure().add_subplot())
            .get_title(loc="left")
            .startswith("model.norm")
        )
    assert draw.pairs(ax=Figure().add_subplot()).get_title(loc="left").startswith("model.norm")
    points = results["trajectories"]["trajectory"].sel(layer="model.norm", model="seed0").isel(scale=1)
    np.testing.assert_array_equal(
        draw.trajectories(scale="shape", ax=Figure().add_subplot()).lines[0].get_xdata(), points[:, 0]
    )
    placed = results["merged"]["embedding"].sel(layer="model.norm").isel(scale=1)
    drawn = np.concatenate(
        [one.get_offsets() for one in draw.embedding(scale="shape", ax=Figure().add_subplot()).collections]
    )
    np.testing.assert_allclose(sorted(drawn[:, 0]), sorted(placed[:, 0].values), rtol=1e-6)
    assert draw.settling(ax=Figure().add_subplot()).get_title(loc="left").startswith("no layer has settled")
    plain, summary = make_results(more=True)
    plain.attrs["summary"] = json.dumps(summary)
    ticks = plain.repaudit.plot.settling(ax=Figure().add_subplot()).get_yticklabels()
    assert [tick.get_text() for tick in ticks] == [one["layer"] for one in summary["settling"]]
    with pytest.raises(AnalysisError, match=r"'neighbourhoods' \(15\), 'shape' \(30\); found 'size'"):
        draw.settling("size")
    with pytest.raises(AnalysisError, match=r"'neighbourhoods' \(15\), 'shape' \(30\); found 'size'"):
        draw.spread(scale="size")
    with pytest.raises(AnalysisError, match=r"model.norm\), found 'nowhere'"):
        draw.spread("nowhere", ax=Figure().add_subplot())
    short = draw.spread("layers.1", "shape", ax=Figure().add_subplot()).lines[0].get_ydata()
    np.testing.assert_array_equal(short, results["spread"]["spread"].sel(layer="model.layers.1").isel(scale=1))


def test_a_store_has_no_figures_and_says_what_to_do(tree):
    plot = tree.repaudit.plot
    for draw in (plot.spread, plot.pairs, plot.trajectories, plot.embedding, plot.settling):
        with pytest.raises(AnalysisError, match=r"analyze it first: results = ra.analyze\(url\)"):
            draw()
    with pytest.raises(AnalysisError, match="found the node '/' with nothing in it"):
        xr.DataTree().repaudit.plot.spread()


def test_stores_and_results_are_shown_as_tables(tree, make_results):
    said = repr(tree.repaudit).splitlines()
    assert said[0] == "store of 3 models on 48 samples"
    assert said[2].split() == ["seed0", "first,", "a/b", "6", "from", "0", "to", "16"]
    results, summary = make_results(scales=True)
    said = repr(results.repaudit).splitlines()
    assert said[0] == summary["headline"]
    assert [line.split()[0] for line in said[2:]] == [name for name in summary["layers"] for _ in range(2)]
    entry = summary["layers"]["model.norm"]["scales"]["shape"]
    for shown in (said[-1], results.repaudit._repr_html_()):
        assert all(word in shown for word in ("shape", entry["verdict"], f"{entry['end']:.2f}"))
    assert "expected the root of a store" in repr(xr.DataTree().repaudit)


def test_names_are_no_markup(planted_store):
    name = "<script>alert(1)</script>\n<b>"
    page = ra.open_store(planted_store(1, layers=(name,))).repaudit._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
