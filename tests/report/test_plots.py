"""Figures with matplotlib: what is drawn is what the results hold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from repaudit import plots, style
from repaudit.errors import AnalysisError


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

    for paper in ("#fdfdfb", "#14171a"):
        light, dark = sorted((luminance(paper), luminance(style.VERDICTS[verdict])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3
