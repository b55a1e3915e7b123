"""Figures with matplotlib: what is drawn is what the results hold."""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from repaudit import plots
from repaudit.errors import AnalysisError
from repaudit.plots import style
from repaudit.plots.panels import small_multiples


@pytest.fixture
def ax():
    return Figure().add_subplot()


def test_every_function_draws_on_the_ax_it_is_given_and_returns_it(make_results, ax):
    tree, _ = make_results()
    layer = "model.layers.1"
    for draw in (
        lambda: plots.plot_spread(tree["spread"].to_dataset(), ax=ax),
        lambda: plots.plot_trajectories(tree["trajectories"].to_dataset(), layer, ax=ax),
        lambda: plots.plot_embedding(tree["merged"].to_dataset(), layer, ax=ax),
        lambda: plots.plot_diagnostics(tree["diagnostics"].to_dataset(), ax=ax),
    ):
        before = len(ax.get_children())
        assert draw() is ax
        assert len(ax.get_children()) > before


def test_every_further_function_draws_on_the_ax_it_is_given_and_returns_it(make_results, ax):
    tree, summary = make_results(more=True)
    alone, _ = make_results(models=("only",), more=True)
    layer, group = "model.layers.1", lambda name: tree[name].to_dataset()
    for draw in (
        lambda: plots.plot_comparison(group("comparison"), layer, ax=ax, spread=group("spread")),
        lambda: plots.plot_groups(group("groups"), layer, ax=ax),
        lambda: plots.plot_approach(alone["approach"].to_dataset(), ax=ax),
        lambda: plots.plot_settling(summary["settling"], ax=ax),
        lambda: plots.plot_together(group("trajectories"), ax=ax),
        lambda: plots.plot_frame(group("frames"), layer, 512, ax=ax, model="seed1"),
        lambda: plots.plot_units(group("units"), layer, ax=ax),
    ):
        before = len(ax.get_children())
        assert draw() is ax
        assert len(ax.get_children()) > before


def test_settling_of_results_counts_the_layers_that_it_does_not_show(make_results, ax):
    tree, _ = make_results()
    layers = {"a": {"settled": 40, "below_start": 10}, "b": {"settled": None, "below_start": None}, "c": {}}
    entries = {name: {"settled": None, "below_start": None, **entry} for name, entry in layers.items()}
    tree.attrs["summary"] = json.dumps({"layers": entries, "steps": [0, 10, 40, 90]})
    plots.plot_settling(tree, ax=ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a"]
    assert ax.get_title(loc="left").endswith("2 more layers: neither")
    assert ax.get_xlim()[1] >= 90


@pytest.mark.parametrize("wrong", ["store.analysis", None, 3, ["a"]])
def test_what_is_no_results_is_refused_by_name(wrong):
    with pytest.raises(TypeError, match=r"expected the results of an analysis.* found (str|NoneType|int|list)"):
        plots.plot_settling(wrong)
    with pytest.raises(TypeError, match=r"expected the results of an analysis.*group 'spread', found"):
        plots.plot_spread(wrong)


def test_a_node_of_the_results_is_its_group_and_axes_are_axes(make_results, ax):
    tree, _ = make_results()
    drawn = [plots.plot_spread(one, ax=Figure().add_subplot()) for one in (tree["spread"], tree["spread"].to_dataset())]
    np.testing.assert_array_equal(*(one.lines[0].get_ydata() for one in drawn))
    with pytest.raises(TypeError, match=r"ax: expected axes of matplotlib, found 'model.norm'"):
        plots.plot_spread(tree, "model.norm")


def test_one_step_has_an_interval(make_results, ax):
    spread = make_results()[0]["spread"].to_dataset().isel(step=[-1])
    plots.plot_spread(spread, ax, ["model.norm"])
    (low, high) = ax.collections[-1].get_segments()[0][:, 1]
    one = spread.sel(layer="model.norm")
    assert (low, high) == (float(one["low"][0]), float(one["high"][0]))


def test_a_layer_is_known_by_its_path_behind_the_base(make_results):
    pairs = make_results(scales=True)[0]["pairs"].to_dataset().isel(scale=0)
    shown = [plots.plot_pairs(pairs, name, Figure().add_subplot()) for name in ("layers.1", "model.layers.1")]
    np.testing.assert_array_equal(*(one.images[0].get_array() for one in shown))
    assert [one.get_title(loc="left").split()[0] for one in shown] == ["model.layers.1", "model.layers.1"]
    tree, _ = make_results(more=True)
    comparison = tree["comparison"].to_dataset()
    both = [plots.plot_comparison(comparison, name, Figure().add_subplot()) for name in ("norm", "model.norm")]
    assert both[0].lines[0].get_color() == both[1].lines[0].get_color()


def test_a_comparison_holds_three_curves_and_the_halves_of_the_features(make_results, ax):
    tree, _ = make_results(more=True)
    comparison = tree["comparison"].to_dataset()
    plots.plot_comparison(comparison, "model.norm", ax=ax, spread=tree["spread"].to_dataset())
    drawn = {line.get_gid(): line.get_ydata() for line in ax.lines if line.get_gid()}
    assert list(drawn) == ["spread", "from_untrained", "from_inputs"]
    np.testing.assert_array_equal(drawn["from_inputs"], comparison["from_inputs"].sel(layer="model.norm"))
    assert [0.03, 0.03] in [list(line.get_ydata()) for line in ax.lines]


@pytest.mark.parametrize("by", ["model", "layer"])
def test_a_similarity_map_orders_its_rows(make_results, by):
    tree, _ = make_results(more=True)
    similarity = tree["similarity"].to_dataset()
    ax = plots.plot_similarity(similarity, "cka", ax=Figure().add_subplot(), by=by)
    drawn = ax.images[0].get_array()
    one = similarity["similarity"].sel(measure="cka", step=512).values
    order = range(9) if by == "model" else [3 * m + k for k in range(3) for m in range(3)]
    np.testing.assert_array_equal(drawn, one[np.ix_(order, order)])
    with pytest.raises(AnalysisError, match="found 'cosine'"):
        plots.plot_similarity(similarity, "cosine", ax=ax)


def test_pictures_of_trajectories_say_how_rough_they_are(make_results):
    trajectories = make_results(more=True)[0]["trajectories"].to_dataset()
    told = trajectories.assign(together_distance_stress=0.49, distance_stress=("layer", [0.1] * 3))
    assert plots.plot_together(told, Figure().add_subplot()).get_title(loc="left") == "stress 0.49: a rough picture"
    one = plots.plot_trajectories(told, "norm", Figure().add_subplot())
    assert one.get_title(loc="left") == "model.norm   stress 0.10"
    unknown = told.drop_vars(["together_distance_stress", "distance_stress"])
    assert plots.plot_together(unknown, Figure().add_subplot()).get_title(loc="left") == ""


def test_rows_of_a_similarity_map_are_told_apart(make_results):
    """Of one layer, its name tells no row from the others; the models do. So does a layer, of one model."""
    similarity = make_results(more=True)[0]["similarity"].to_dataset()
    for kept, by, wanted in (
        ("layer", "model", ["seed0", "seed1", "seed2"]),
        ("layer", "layer", ["seed0", "seed1", "seed2"]),
        ("model", "model", ["layers.0", "layers.1", "norm"]),
        ("model", "layer", ["layers.0", "layers.1", "norm"]),
    ):
        of_one = np.flatnonzero(similarity[kept].values == similarity[kept].values[0])
        some = similarity.isel(representation=of_one, other=of_one)
        ax = plots.plot_similarity(some, "cka", ax=Figure().add_subplot(), by=by)
        named = [tick.get_text().removeprefix("model.") for tick in ax.get_yticklabels()]
        assert named == wanted, (kept, by)


def test_frames_of_one_layer_share_their_limits(make_results):
    frames = make_results(more=True)[0]["frames"].to_dataset()
    axes = [plots.plot_frame(frames, "model.norm", step, ax=Figure().add_subplot()) for step in (16, 512)]
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_every_further_group_has_its_files(make_results, tmp_path):
    tree, _ = make_results(layers=("a,b", "norm"), more=True)
    found = {file.name for file in plots.save_figures(tree, tmp_path, dpi=40)}
    assert {
        "comparison.png", "groups.png", "settling.png", "together.png", "similarity-cka.png", "frames-a,b.png",
        "units-norm.png",
    } <= found  # fmt: skip


def test_panels_share_a_legend_that_lies_on_none_of_them(make_results):
    tree, _ = make_results(layers=("a", "b"), more=True)
    draw = partial(_drawn_comparison, tree)
    figure = small_multiples(tree["comparison"].to_dataset(), draw)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "from each other", "from the untrained networks", "from the inputs", "halves of the features",
    ]  # fmt: skip
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.axison]
    assert all(ax.get_legend() is None for ax in panels)
    assert not any(legend.get_window_extent().overlaps(ax.get_window_extent()) for ax in panels)
    colors = [[line.get_color() for line in ax.lines[:3]] for ax in panels]
    assert colors[0] == colors[1] == [line.get_color() for line in legend.get_lines()[:3]]


def test_a_legend_of_many_panels_has_what_any_has_and_fits(make_results):
    tree, _ = make_results(layers=("a", "b"), more=True)
    figure = small_multiples(tree["comparison"].to_dataset(), partial(_many_lines, ["a"]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 12, "those of the second panel: the first has one less"
    assert legend.get_window_extent().width <= figure.bbox.width
    assert all(ax.get_window_extent().width > 0.2 * figure.bbox.width for ax in figure.axes if ax.axison)


def _many_lines(fewer, layer, ax):
    for k in range(12 - (layer in fewer)):
        ax.plot([0, 1], [0, k / 12], label=f"a group of some models {k}")
    ax.legend()
    return ax


def _drawn_comparison(tree, layer, ax):
    return plots.plot_comparison(tree["comparison"].to_dataset(), layer, ax, spread=tree["spread"].to_dataset())


def test_spread_lines_hold_the_values_and_the_null_line_lies_at_one(make_results, ax):
    tree, _ = make_results()
    spread = tree["spread"].to_dataset()
    plots.plot_spread(spread, ax=ax, layers=["model.norm"])
    drawn, null = ax.lines
    np.testing.assert_array_equal(drawn.get_ydata(), spread["spread"].sel(layer="model.norm"))
    np.testing.assert_array_equal(drawn.get_xdata(), spread["step"])
    assert list(null.get_ydata()) == [1, 1]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(float(spread["high"].sel(layer="model.norm").max()))


def test_step_zero_has_its_place_on_a_log_like_axis(make_results, ax):
    tree, _ = make_results()
    plots.plot_spread(tree["spread"].to_dataset(), ax=ax)
    assert ax.get_xscale() == "asinh"
    assert 0 in ax.get_xticks()
    zero, one, last = (ax.transData.transform((step, 0))[0] for step in (0, 1, 512))
    assert (one - zero) / (last - zero) > 0.05


def test_unknown_layers_and_variables_name_what_there_is(make_results, ax):
    tree, _ = make_results()
    with pytest.raises(AnalysisError, match=r"model\.norm.*found 'nowhere'"):
        plots.plot_trajectories(tree["trajectories"].to_dataset(), "nowhere", ax=ax)
    with pytest.raises(AnalysisError, match=r"effective_neighbors.*found 'nothing'"):
        plots.plot_diagnostics(tree["diagnostics"].to_dataset(), ax=ax, variable="nothing")


def test_a_trajectory_skips_the_steps_that_its_model_lacks(make_results):
    tree, _ = make_results()
    points = plots.path(tree["trajectories"].to_dataset(), "model.norm", "seed2")
    assert points["step"].values.tolist() == list(tree["trajectories"]["step"].values[1:])


def test_embedding_gives_each_label_its_own_colour(make_results, ax):
    tree, _ = make_results()
    plots.plot_embedding(tree["merged"].to_dataset(), "model.norm", ax=ax)
    colors = [to_hex(points.get_facecolor()[0]) for points in ax.collections]
    assert len(set(colors)) == 4
    assert sum(len(points.get_offsets()) for points in ax.collections) == 120


def test_saved_figures_are_those_named_and_pyplot_stays_out(make_results, tmp_path):
    tree, _ = make_results(layers=("a/b", "norm"))
    files = plots.save_figures(tree, tmp_path / "figures", dpi=50)
    found = {file.name for file in files}
    assert found == {
        "spread.png", "diagnostics.png", "trajectories-a%2Fb.png", "trajectories-norm.png",
        "embedding-a%2Fb.png", "embedding-norm.png",
    }  # fmt: skip
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_long_names_of_layers_fit_into_names_of_files(make_results, tmp_path):
    layers = ("层" * 30, "层" * 31, "x" * 251, "x" * 250 + "y")
    tree, _ = make_results(layers=layers)
    names = {file.name for file in plots.save_figures(tree, tmp_path, dpi=40)}
    for stem in ("trajectories", "embedding"):
        assert sum(name.startswith(f"{stem}-") for name in names) == len(layers)


def test_a_single_model_has_no_spread_figure(make_results, tmp_path):
    tree, _ = make_results(models=("only",), layers=("norm",))
    names = {file.name for file in plots.save_figures(tree, tmp_path, dpi=50)}
    assert names == {"trajectories-norm.png", "embedding-norm.png", "diagnostics.png"}


def test_hostile_names_are_drawn_as_they_are(make_results, tmp_path):
    names = ("$\\frac{", "_hidden", "层", "a\nb")
    tree, _ = make_results(layers=("$x^$", "_y"), models=names[:3], labels=names)
    files = plots.save_figures(tree, Path(tmp_path), dpi=50)
    assert len(files) == 6


@pytest.mark.parametrize(
    ("steps", "log"),
    [
        ([0, 10, 20, 30, 40], False),
        ([0, 1, 2, 4, 8, 16], True),
        ([0, 10, 30, 100, 300, 1000], True),
        ([5], False),
        ([], False),
    ],
)
def test_step_axis_follows_the_spacing(steps, log):
    axis = style.StepAxis.of(steps)
    assert axis.log is log
    assert np.all(np.diff(axis.position(steps)) > 0)
    ticks = axis.ticks()
    assert set(ticks) <= set(steps)
    assert not steps or (ticks[0] == steps[0] and ticks[-1] == steps[-1])


def test_rare_labels_share_one_group_and_no_sample_is_lost():
    labels = [f"label{k}" for k in range(30) for _ in range(30 - k + 1)]
    groups = style.label_groups(labels, len(labels))
    assert groups[0].name == "10 other labels"
    assert sorted(np.concatenate([group.index for group in groups])) == list(range(len(labels)))
    assert len({(group.color, group.marker) for group in groups}) == len(groups)


@pytest.mark.parametrize("verdict", style.VERDICTS)
def test_verdicts_stand_out_on_white_and_on_black(verdict):
    def luminance(color: str) -> float:
        rgb = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    def contrast(color: str, paper: str) -> float:
        light, dark = sorted((luminance(paper), luminance(color)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    papers = (("#fdfdfb", "#f3f3ef"), ("#14171a", "#1c2024"))  # as in report.css, alone and under the mouse
    assert all(contrast(style.VERDICTS[verdict], paper) >= 3 for paper, _ in papers)
    for word, of_theme in zip(style.VERDICT_WORDS[verdict], papers, strict=True):
        assert all(contrast(word, paper) >= 4.5 for paper in of_theme)


LORA = [f"base_model.model.model.layers.{k}.self_attn.{p}_proj.lora_A.default" for k in range(12) for p in "qkvo"]


@pytest.mark.parametrize("limit", [26, 30, 34])
@pytest.mark.parametrize("names", [LORA, [*LORA, "base_model.model.model.embed_tokens"], [f"h.{k}" for k in range(9)]])
def test_shortened_names_stay_different_and_short(names, limit):
    shown = style.shortened(names, limit)
    assert len(set(shown)) == len(names)
    assert max(map(len, shown)) <= limit


def test_sixteen_models_have_markers_of_their_own_and_more_are_told(make_results):
    assert len(set(style.MATPLOTLIB_MARKERS)) == len(set(style.PLOTLY_SYMBOLS)) == 16
    for count, told in ((16, None), (17, "markers repeat after 16 models")):
        results, _ = make_results(models=tuple(f"seed{k}" for k in range(count)))
        legend = plots.plot_trajectories(results, "model.norm", ax=Figure().add_subplot()).get_legend()
        assert (legend.get_title().get_text() or None) == told


def test_functions_take_whole_results_and_draw_the_first_scale(make_results):
    results, _ = make_results(more=True, scales=True)
    layer = "model.layers.1"
    for draw, name, arguments in (
        (plots.plot_spread, "spread", {}),
        (plots.plot_comparison, "comparison", {"layer": layer}),
        (plots.plot_groups, "groups", {"layer": layer}),
        (plots.plot_diagnostics, "diagnostics", {}),
        (plots.plot_trajectories, "trajectories", {"layer": layer}),
        (plots.plot_together, "trajectories", {}),
        (plots.plot_embedding, "merged", {"layer": layer}),
        (plots.plot_frame, "frames", {"layer": layer, "step": 512}),
        (plots.plot_units, "units", {"layer": layer}),
        (plots.plot_pairs, "pairs", {"layer": layer}),
        (plots.plot_similarity, "similarity", {"measure": "cka"}),
    ):
        group = results[name].to_dataset()
        one = group.isel(scale=0, drop=True) if "scale" in group.dims else group
        whole, alone = (draw(found, ax=Figure().add_subplot(), **arguments) for found in (results, one))
        assert [line.get_xydata().tolist() for line in whole.lines] == [
            line.get_xydata().tolist() for line in alone.lines
        ], name
        assert len(whole.get_children()) == len(alone.get_children())
        if "scale" in group.dims:
            with pytest.raises(AnalysisError, match=f"group '{name}' at one scale, found 2 scales: select one"):
                draw(group, ax=Figure().add_subplot(), **arguments)


def test_a_tree_without_the_group_is_told(make_results, ax):
    results, _ = make_results()
    del results["spread"]
    with pytest.raises(AnalysisError, match=r"with the group 'spread'.* found a tree with 'trajectories'"):
        plots.plot_spread(results, ax=ax)


def test_rings_are_seen_around_dots_and_the_axis_goes_to_the_end_of_the_analysis(ax):
    plots.plot_settling([{"layer": "norm", "settled": 40, "below_start": 40}], ax=ax, end=600)
    ring, dot = ax.lines[-2:]
    assert ring.get_markersize() > dot.get_markersize() + 2
    assert ring.get_markerfacecolor() == "white" != dot.get_markerfacecolor()
    low, high = ax.get_xlim()
    assert low < 0
    assert high > 600
    assert 600 in ax.get_xticks()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["m" * 60, "日本語モデル学習率バッチ" * 4, "a.long.name-" * 12, "seed"])
def test_long_names_of_models_leave_a_picture_its_room(make_results, name):
    tree, _ = make_results(layers=("norm",))
    trajectories = tree["trajectories"].to_dataset()
    models = [f"{name}{i}" for i in range(trajectories.sizes["model"])]
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    ax = plots.plot_trajectories(trajectories.assign_coords(model=models), "norm", ax=figure.add_subplot())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # as the files are drawn
        figure.draw_without_rendering()
    assert ax.get_window_extent().height > 0.4 * figure.bbox.height


def test_single_pictures_name_their_layer_and_what_is_coloured(make_results):
    tree, _ = make_results(layers=("a", "b"), more=True, scales=True)
    drawn = plots.plot_diagnostics(tree, Figure().add_subplot())
    models = [str(name) for name in tree["diagnostics"].model.values]
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["a", "b", *models]
    frames = tree["frames"].to_dataset()
    frame = plots.plot_frame(tree, "a", int(frames.step[-1]), Figure().add_subplot())
    assert frame.get_title(loc="right") == "a"
    assert len(frame.get_legend().get_texts()) == len(set(frames["label"].values.tolist()))
    compared = plots.plot_comparison(tree, "b", Figure().add_subplot(), spread=tree)
    assert (compared.get_title(loc="left"), compared.get_title(loc="right") != "") == ("b", True)
    assert "halves of the features" in [text.get_text() for text in compared.get_legend().get_texts()]
