"""Two scales in the report and among the figures: both are shown, and nothing of one stands in for the other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from repaudit import plots
from repaudit.errors import AnalysisError
from repaudit.plots.scales import at_scale
from repaudit.report import write_report
from tests.report.pages import Page

SPEC = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
assert SPEC is not None
assert SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)

HOSTILE = "</script><img src=x>"
FOUR = ("a", "b", "c", "d")


@pytest.fixture
def written(tmp_path):
    def make(tree, summary):
        return pages.Page(write_report(tree, summary, tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def set_values(tree: xr.DataTree, group: str, variable: str, value: object, **where: int) -> None:
    """Set one variable of a group at some places."""
    dataset = tree[group].to_dataset().copy(deep=True)
    dataset[variable][where] = value
    tree[group] = xr.DataTree(dataset)


def test_each_scale_has_its_curve_band_and_words(make_results, written):
    tree, summary = make_results(scales=True)
    page = written(tree, summary)
    figures = page.data("figures")
    spread = tree["spread"].to_dataset()
    for number, layer in enumerate(spread["layer"].values):
        for anchor, scale in ((f"layer-{number}", 15.0), (f"layer-{number}-scale-1", 30.0)):
            one = spread.sel(layer=layer, scale=scale)
            traces = figures[anchor]["spread"]["data"]
            curve = next(trace for trace in traces if "ink" in trace.get("meta", ()))
            np.testing.assert_allclose(pages.numbers(curve["y"]), one["spread"], rtol=5e-4)
            band = traces[0]["meta"]["band"]
            assert traces[band["of"]] is curve
            for end in ("low", "high"):
                told = pages.numbers(curve["meta"]["told"][band[end]])
                np.testing.assert_allclose(told, one[f"band_{end}"], rtol=5e-4)
        tops = [
            figures[a]["spread"]["layout"]["yaxis"]["range"] for a in (f"layer-{number}", f"layer-{number}-scale-1")
        ]
        assert tops[0] == tops[1]
        assert f"Shape of {layer} goes apart." in page.text
    assert "The scales disagree in every layer." in page.text
    assert "neighbourhoods converging" in page.text
    assert "shape diverging" in page.text


def test_one_paragraph_says_what_the_scales_mean(make_results, written):
    text = written(*make_results(scales=True)).text
    assert "Neighbourhoods: who is nearest to whom, with 15 effective neighbours" in text
    assert "Shape: the coarse arrangement, with 30 effective neighbours, a quarter of the samples" in text
    assert "They may disagree, and that is a finding" in text
    assert text.index("They may disagree") < text.index("Neighbourhoods converging")
    assert "They may disagree" not in written(*make_results()).text


def test_a_control_switches_the_figures_of_each_layer_and_ids_are_unique(make_results, written):
    page = written(*make_results(scales=True, more=True))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    radios = [(attrs["name"], attrs["value"]) for _, attrs in page.tags if attrs.get("type") == "radio"]
    assert radios == [(f"layer-{k}-scale", str(scale)) for k in range(3) for scale in (0, 1)]
    parts = [attrs for _, attrs in page.tags if attrs.get("class") == "at-scale"]
    assert ["hidden" in attrs for attrs in parts] == [False, True] * 3
    drawn = [(a["data-layer"], a["data-figure"]) for _, a in page.tags if a.get("class") == "plot"]
    assert len(set(drawn)) == len(drawn)
    kinds = {"spread", "comparison", "pairs", "groups", "embedding", "effective_neighbors"}
    for anchor in ("layer-1", "layer-1-scale-1"):
        figures = {figure for layer, figure in drawn if layer == anchor}
        assert figures >= kinds
        assert len(figures & {"trajectory", "mds"}) == 1
    assert {figure for layer, figure in drawn if layer == "overview"} == {"together", "together-1", "similarity"}
    units = [layer for layer, figure in drawn if figure.startswith("units")]
    assert units == ["layer-0", "layer-1", "layer-2"]
    assert not [attrs for _, attrs in written(*make_results(more=True)).tags if attrs.get("type") == "radio"]


def test_moving_samples_are_those_of_their_scale(make_results, written):
    tree, summary = make_results(scales=True, more=True)
    layers = written(tree, summary).data("frames")["layers"]
    first, second = (
        np.stack([pages.numbers(of_source) for of_source in layers[anchor]["positions"]])
        for anchor in ("layer-0", "layer-0-scale-1")
    )
    np.testing.assert_allclose(second, first / 2, atol=1e-3)


def test_effective_neighbours_are_the_medians_over_models(make_results, written):
    tree, summary = make_results(scales=True)
    set_values(tree, "diagnostics", "effective_neighbors", np.array([10.0, 10.4, 300.0])[:, None], layer=0, scale=0)
    set_values(tree, "diagnostics", "effective_neighbors", np.array([11.0, 11.2, 300.0]), layer=0, scale=0, step=3)
    set_values(tree, "diagnostics", "effective_neighbors", np.nan, layer=0, scale=0, step=4)
    set_values(tree, "diagnostics", "effective_neighbors", 31.0, layer=0, scale=1)
    text = written(tree, summary).text
    assert "effective neighbours 10 to 11 " in text
    assert "effective neighbours 31 " in text


def test_a_scale_that_was_not_held_is_a_warning_at_that_scale_only(make_results, written):
    tree, summary = make_results(scales=True)
    assert "Could not be held" not in written(tree, summary).text
    set_values(tree, "diagnostics", "unheld", 7, layer=1, scale=1, model=2, step=3)
    set_values(tree, "diagnostics", "unheld", 9, layer=1, scale=1, model=0, step=5)
    text = written(tree, summary).text
    said = "Could not be held to 30 effective neighbours: up to 9 of 120 samples, in 2 of 3 models at 2 of 11 steps"
    assert f"{said} (steps 4 to 16)." in text
    assert text.count("Could not be held") == 1


def test_a_sample_that_outweighs_the_others_is_named(make_results, written):
    tree, summary = make_results(scales=True)
    set_values(tree, "spread", "largest_row", 0.34, layer=2, scale=0, step=5)
    set_values(tree, "spread", "largest_sample", HOSTILE, layer=2, scale=0, step=5)
    one = tree["spread"].to_dataset().isel(layer=2, scale=0, step=5)
    page = written(tree, summary)
    rows, whole = float(one["spread_rows"]), float(one["spread"])
    said = f"Sample {HOSTILE} is 34% of the squared distances at step 16: row by row the spread there is {rows:.2f}"
    assert f"{said} instead of {whole:.2f}." in page.text
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.text.count("of the squared distances at step") == 1


def test_of_identical_models_no_sample_is_named(make_results, written):
    tree, summary = make_results(scales=True)
    set_values(tree, "spread", "largest_row", 0.9)
    set_values(tree, "spread", "spread", 0.0)
    assert "of the squared distances" not in written(tree, summary).text


def test_the_map_of_pairs_has_the_values_and_the_order_of_the_clustering(make_results, written):
    tree, summary = make_results(scales=True, models=FOUR)
    figures = written(tree, summary).data("figures")
    pairs = tree["pairs"].to_dataset().isel(layer=1, step=-2)
    for scale, anchor in enumerate(("layer-1", "layer-1-scale-1")):
        values = pairs["distance"].isel(scale=scale).values
        order = leaves_list(linkage(squareform(values), "average"))
        assert sorted(order[:2]) in ([0, 2], [1, 3])
        (trace,) = figures[anchor]["pairs"]["data"]
        drawn = pages.numbers(trace["z"]).reshape(4, 4)
        expected = values[np.ix_(order, order)].astype(np.float32)
        np.testing.assert_allclose(drawn, np.where(np.eye(4, dtype=bool), np.nan, expected), rtol=5e-4)
        assert figures[anchor]["pairs"]["layout"]["yaxis"]["ticktext"] == [FOUR[k] for k in order]
        d = expected[0, 1]
        assert trace["text"][0][1] == f"{d:.2f}"
        told = f"distance {d:.2f} [{0.9 * d:.2f}, {1.1 * d:.2f}]<br>Holm-adjusted p < 0.0001"
        assert trace["hovertext"][0][1] == f"{FOUR[order[0]]}<br>{FOUR[order[1]]}<br>{told}"


def test_two_models_get_a_line_for_each_scale_and_no_map(make_results, written):
    page = written(*make_results(scales=True, models=("a", "b")))
    assert not any("pairs" in figures for figures in page.data("figures").values())
    d = 0.8 * 1.1 * (0.5 + 0.5 * 0.9)
    for value in (d, d / 2):
        told = f"a and b at step 256: distance {value:.2f} [{0.9 * value:.2f}, {1.1 * value:.2f}]; Holm-adjusted p = "
        assert page.text.count(told) == 3


@pytest.mark.parametrize("group", ["spread", "pairs", "diagnostics", "trajectories", "merged", "frames", "comparison"])
def test_a_group_known_at_one_scale_only_is_shown_there(make_results, written, group):
    tree, summary = make_results(layers=("a", "b"), scales=True, more=True)
    dataset = tree[group].to_dataset()
    numeric = {name: values for name, values in dataset.data_vars.items() if values.dtype.kind == "f"}
    kept = {name: values.where(values["scale"] == 30.0) for name, values in numeric.items() if "scale" in values.dims}
    tree[group] = xr.DataTree(dataset.assign(kept))
    figures = written(tree, summary).data("figures")
    shown = {"spread": "spread", "pairs": "pairs", "trajectories": "trajectory", "comparison": "comparison"}.get(group)
    if shown is not None and shown != "comparison":
        assert shown not in figures["layer-0"]
        assert shown in figures["layer-0-scale-1"]


def test_hostile_names_of_scales_stay_text(make_results, written):
    tree, summary = make_results(scales=True)
    for name in list(tree.children):
        if "scale" in tree[name].dims:
            tree[name] = xr.DataTree(
                tree[name].to_dataset().assign_coords(scale_name=("scale", ["neighbourhoods", HOSTILE]))
            )
    for entry in summary["layers"].values():
        entry["scales"][HOSTILE] = entry["scales"].pop("shape")
    page = written(tree, summary)
    assert "img" not in [tag for tag, _ in page.tags]
    assert HOSTILE in page.text
    assert "Shape of model.norm goes apart." in page.text


def test_results_with_one_scale_draw_the_same_page_as_without_the_dim(make_results, written):
    tree, summary = make_results(scales=True, more=True)
    page = written(at_scale(tree, 0), summary | {"layers": {}})
    assert not [attrs for _, attrs in page.tags if attrs.get("type") == "radio"]
    assert set(page.data("figures")) == {"overview", "layer-0", "layer-1", "layer-2"}


def test_plot_pairs_draws_the_last_known_step_or_the_one_asked_for(make_results):
    pairs = at_scale(make_results(scales=True, models=FOUR)[0], 1)["pairs"].to_dataset()
    ax = Figure().add_subplot()
    assert plots.plot_pairs(pairs, "model.norm", ax) is ax
    assert ax.get_title(loc="left") == "model.norm   step 256"
    values = pairs["distance"].sel(layer="model.norm", step=256).values
    order = leaves_list(linkage(squareform(values), "average"))
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array())[off], values[np.ix_(order, order)][off])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [FOUR[k] for k in order]
    early = plots.plot_pairs(pairs, "model.norm", Figure().add_subplot(), step=0)
    expected = pairs["distance"].sel(layer="model.norm", step=0).values[np.ix_(order, order)][off]
    np.testing.assert_array_equal(np.asarray(early.images[0].get_array())[off], expected)


@pytest.mark.parametrize(("layer", "step"), [("nowhere", None), ("model.norm", 3), ("model.norm", 512)])
def test_plot_pairs_refuses_what_is_not_known(make_results, layer, step):
    pairs = at_scale(make_results(scales=True)[0], 0)["pairs"].to_dataset()
    with pytest.raises(AnalysisError, match=f"expected .* found .*{step or layer}"):
        plots.plot_pairs(pairs, layer, Figure().add_subplot(), step=step)


def test_a_model_without_distances_is_left_out_of_the_map(make_results):
    pairs = at_scale(make_results(scales=True, models=FOUR)[0], 0)["pairs"].to_dataset().copy(deep=True)
    pairs["distance"].loc[{"model": "b", "step": 256}] = np.nan
    pairs["distance"].loc[{"other": "b", "step": 256}] = np.nan
    ax = plots.plot_pairs(pairs, "model.norm", Figure().add_subplot())
    assert sorted(tick.get_text() for tick in ax.get_yticklabels()) == ["a", "c", "d"]


def test_a_picture_names_its_scale(make_results):
    """Two scales of one layer are two pictures that look alike."""
    tree, _ = make_results(scales=True, models=FOUR)
    spread = tree["spread"].to_dataset()
    for index, (name, value) in enumerate(zip(spread["scale_name"].values, spread["scale"].values, strict=True)):
        named = f"{name} ({float(value):g} neighbours)"
        one = at_scale(tree, index)
        for ax in (
            plots.plot_spread(one["spread"].to_dataset(), Figure().add_subplot()),
            plots.plot_pairs(one["pairs"].to_dataset(), "model.norm", Figure().add_subplot()),
            plots.plot_spread(spread.isel(scale=[index]), Figure().add_subplot()),
        ):
            assert ax.get_title(loc="right") == named
    unknown = spread.isel(scale=0, drop=True)
    assert plots.plot_spread(unknown, Figure().add_subplot()).get_title(loc="right") == ""


def test_pairs_are_those_of_the_verdicts_end_where_trainings_end_at_different_steps(make_results, tmp_path):
    tree, summary = make_results(scales=True, models=FOUR)
    pairs = tree["pairs"].to_dataset().copy(deep=True)
    last = pairs["step"].values[-3:]  # two models train on: most share the steps before
    for name in ("c", "d"):
        pairs["distance"].loc[{"model": name, "step": last}] = np.nan
        pairs["distance"].loc[{"other": name, "step": last}] = np.nan
    before = int(pairs["step"].values[-4])
    tree["pairs"] = xr.DataTree(pairs)
    tree.attrs["summary"] = "{}"
    ax = tree.repaudit.plot.pairs("model.norm")
    assert ax.get_title(loc="left") == f"model.norm   step {before}"
    assert len(ax.get_yticklabels()) == 4
    assert len(tree.repaudit.plot.pairs("model.norm", step=int(last[0])).get_yticklabels()) == 2
    text = Page(write_report(tree, summary, tmp_path / "report.html").read_text()).text
    assert f"step {before}" in text
    assert f"step {last[-1]}: distance" not in text


def test_files_of_further_scales_have_their_name_at_the_end(make_results, tmp_path):
    tree, _ = make_results(layers=("norm", "head"), scales=True, more=True)
    names = {file.name for file in plots.save_figures(tree, tmp_path, dpi=40)}
    stems = ["spread", "comparison", "groups", "settling", "together", "diagnostics"]
    stems += [
        f"{kind}-{layer}" for kind in ("pairs", "trajectories", "embedding", "frames") for layer in ("norm", "head")
    ]
    once = {"units-norm", "units-head", "similarity-cka", "similarity-mutual_knn", "similarity-procrustes"}
    assert {f"{name}.png" for name in {*stems, *once}} <= names
    further = {f"{stem}-shape.png" for stem in stems} - {"settling-shape.png"}
    assert names == {f"{name}.png" for name in {*stems, *once}} | further


def test_a_layer_named_like_another_one_at_a_scale_keeps_its_file(make_results, tmp_path):
    tree, _ = make_results(layers=("norm", "norm-shape"), scales=True)
    assert json.loads(tree.attrs["summary"])["layers"]["norm"]["scales"]["shape"]["verdict"] == "diverging"
    names = [file.name for file in plots.save_figures(tree, tmp_path, dpi=40)]
    assert len(set(names)) == len(names)
    assert sum(name.startswith("trajectories-") for name in names) == 4
    assert (tmp_path / "spread.png").read_bytes() != (tmp_path / "spread-shape.png").read_bytes()
