"""The report as text: what it says, in what order, and that nothing in the results can break out of it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from repaudit.report import words, write_report
from repaudit.report.figures.frames import Thinning, frames_of

SPEC = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
assert SPEC is not None
assert SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
Page, numbers = pages.Page, pages.numbers

HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=1">'


@pytest.fixture
def page(make_results, tmp_path):
    def make(**options) -> pages.Page:
        tree, summary = make_results(**options)
        return Page(write_report(tree, summary, tmp_path / "new" / "report.html").read_text(encoding="utf-8"))

    return make


def test_opens_with_the_headline_and_a_sentence_for_each_layer(page):
    text = page().text
    places = [text.index("The 3 replicas converge in every layer.", 60)]
    places += [text.index(f"in {layer}.") for layer in ("model.layers.0", "model.layers.1", "model.norm")]
    places += [text.index(title) for title in ("Parameters", "Fingerprint", "Versions")]
    assert places == sorted(places)


def test_every_layer_has_its_figures_with_the_values_of_the_results(make_results, page):
    tree, _ = make_results()
    figures = page().data("figures")
    assert len(figures) == 3
    for number, layer in enumerate(tree["spread"]["layer"].values):
        found = figures[f"layer-{number}"]
        assert {"spread", "trajectory", "mds", "embedding", "effective_neighbors"} <= set(found)
        curve = next(trace for trace in found["spread"]["data"] if "ink" in trace.get("meta", ()))
        np.testing.assert_allclose(numbers(curve["y"]), tree["spread"]["spread"].sel(layer=layer), rtol=5e-4)
        assert found["spread"]["layout"]["shapes"][0]["y0"] == 1
        drawn = np.concatenate([numbers(trace["x"]) for trace in found["embedding"]["data"]])
        known = tree["merged"]["embedding"].sel(layer=layer)[:, 0].values
        np.testing.assert_allclose(sorted(drawn), sorted(known), rtol=5e-4)


def test_hover_texts_stand_in_the_order_of_the_points(make_results, page):
    tree, _ = make_results()
    shown = page()
    texts = shown.data("texts")
    for trace in shown.data("figures")["layer-0"]["embedding"]["data"]:
        x = numbers(trace["x"])
        for value, text in zip(x, texts[trace["meta"]["group"]], strict=True):
            at = int(np.argmin(np.abs(tree["merged"]["embedding"][0, :, 0].values - value)))
            assert str(tree["merged"]["sample"].values[at]) in text
            assert f"parse_{at}(" in text


def test_nothing_is_asked_of_the_network(page):
    shown = page()
    for tag, attrs in shown.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        assert not attrs.get("src"), (tag, attrs)
        assert attrs.get("href", "#")[:1] == "#" or attrs["href"] == "data:,"
    policy = next(attrs["content"] for tag, attrs in shown.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in text for _, text in shown.scripts) == 1


def test_hostile_names_stay_text(page):
    shown = page(layers=(HOSTILE, "norm"), models=(HOSTILE, "b\u2028c"), labels=(HOSTILE, "<b>bold</b>"))
    assert [tag for tag, _ in shown.tags].count("script") == 3
    assert "img" not in [tag for tag, _ in shown.tags]
    assert HOSTILE in shown.text
    names = [trace.get("name", "") for trace in shown.data("figures")["layer-0"]["embedding"]["data"]]
    assert "&lt;b&gt;bold&lt;/b&gt;" in names
    assert not any("<img" in text or "<script" in text for group in shown.data("texts") for text in group)


def test_a_single_model_gets_what_there_is_and_is_told_what_is_not(page):
    shown = page(models=("only",))
    assert "No spread: it needs at least two models" in shown.text
    figures = shown.data("figures")["layer-0"]
    assert "spread" not in figures
    assert {"trajectory", "embedding"} <= set(figures)


@pytest.mark.parametrize("group", ["spread", "trajectories", "merged", "diagnostics"])
def test_a_missing_group_leaves_the_others(make_results, tmp_path, group):
    tree, summary = make_results()
    del tree[group]
    shown = Page(write_report(tree, summary, tmp_path / "report.html").read_text())
    assert len(shown.data("figures")["layer-0"]) >= 2


def test_unhealthy_operators_are_named(make_results, tmp_path):
    tree, summary = make_results()
    tree["diagnostics"]["isolated"][1, 2, 3] = 7
    text = Page(write_report(tree, summary, tmp_path / "report.html").read_text()).text
    assert "isolated samples: in 1 of 33 operators, at most 7 (seed2; steps 4 to 4)" in text


def test_what_was_left_out_and_nested_parameters_are_shown(make_results, tmp_path):
    tree, summary = make_results()
    summary["left_out"] = [{"model": "seed2", "step": 0, "reason": "no other model has it"}]
    text = Page(write_report(tree, summary, tmp_path / "report.html").read_text()).text
    assert text.index("no other model has it") > text.index("Left out")
    assert re.search(r"kernel\s+gaussian", text)


def test_what_was_matched_was_not_left_out(make_results, tmp_path):
    """How layers were matched by depth is told with what was left out, and is not shown as such."""
    tree, summary = make_results()
    summary["left_out"] = ["layer h: no other model has it", "depth of seed2: in the order of h.0, h.1"]
    titles = dict(words.about(tree, summary))
    assert titles["Left out"] == ["layer h: no other model has it"]
    assert titles["Matched by depth"] == ["depth of seed2: in the order of h.0, h.1"]


def _as_objects(group):
    """Text of any length, which is what Zarr has a specification for."""
    return {name: group[name].astype(object) for name in group.coords if group[name].dtype.kind == "U"}


def test_results_read_back_from_disk_give_the_same_page(make_results, tmp_path):
    tree, summary = make_results()
    tree.attrs = {name: json.dumps(value) for name, value in tree.attrs.items()}
    objects = tree.map_over_datasets(lambda group: group.assign_coords(_as_objects(group)))
    objects.attrs = tree.attrs
    objects.to_zarr(tmp_path / "results.zarr", zarr_format=3, consolidated=False)
    back = xr.open_datatree(tmp_path / "results.zarr", engine="zarr", consolidated=False, chunks={})
    first = write_report(tree, summary, tmp_path / "a.html").read_bytes()
    assert write_report(back, summary, tmp_path / "b.html").read_bytes() == first


def test_a_failed_report_leaves_the_old_one(make_results, tmp_path):
    tree, summary = make_results()
    path = write_report(tree, summary, tmp_path / "report.html")
    before = path.read_bytes()
    summary["layers"]["model.norm"]["start"] = "not a number"
    with pytest.raises(TypeError, match="real number"):
        write_report(tree, summary, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_reader_of_the_old_report_never_meets_half_of_the_new(make_results, tmp_path):
    tree, summary = make_results()
    path = write_report(tree, summary, tmp_path / "report.html")
    before = path.read_text(encoding="utf-8")
    with path.open(encoding="utf-8") as reader:
        write_report(tree, {**summary, "headline": "Another day."}, path)
        assert reader.read() == before
    assert "Another day." in path.read_text(encoding="utf-8")


def test_a_lone_surrogate_is_shown_and_does_not_stop_the_report(make_results, tmp_path):
    tree, summary = make_results()
    summary["headline"] = "cut \ud800 here"
    assert "cut \\ud800 here" in write_report(tree, summary, tmp_path / "report.html").read_text(encoding="utf-8")


MORE = ("spread", "comparison", "approach", "groups", "similarity", "trajectories", "merged", "frames", "units")


@pytest.mark.parametrize("group", MORE)
@pytest.mark.thin(2)
def test_any_group_may_be_absent_or_empty_or_unknown(make_results, tmp_path, group):
    tree, summary = make_results(layers=("a", "b"), models=("only",) if group == "approach" else ("a", "b"), more=True)
    unknown = tree[group].to_dataset().map(lambda values: values.astype(float) * np.nan)
    for left in (None, xr.Dataset(), tree[group].to_dataset().drop_vars(list(tree[group].data_vars)), unknown):
        del tree[group]
        if left is not None:
            tree[group] = xr.DataTree(left)
        shown = Page(write_report(tree, summary, tmp_path / "report.html").read_text())
        assert len(shown.data("figures")["layer-0"]) >= 2
        tree[group] = xr.DataTree(unknown)


@pytest.mark.parametrize(
    "options",
    [{"steps": (7,)}, {"layers": ("only",)}, {"layers": tuple(f"layer{k}" for k in range(12)), "n": 20}, {"n": 4}],
)
def test_one_step_one_layer_or_twelve_are_written(page, options):
    shown = page(more=True, **options)
    assert all(name in shown.text for name in options.get("layers", ()))


def test_words_of_agreement_settling_and_stress(page):
    text = page(more=True).text
    assert "Learned agreement: in the end the models are closer to each other (0.12 [0.08, 0.16])" in text
    assert "no closer to each other (0.10 [0.06, 0.14]) than to their untrained networks (0.85 [0.80, 0.90])" in text
    assert re.search(r"model\.norm step 64 below its start from 128 .* model\.layers\.0 still moving", text)
    assert "Classical scaling; PHATE has a stress of 0.33 against the operators' distances." in text


AGREED = {"end": 0.5, "low": 0.4, "high": 0.6, "agreement": None}
INPUTS, UNTRAINED = {"value": 0.6, "low": 0.5, "high": 0.7}, {"value": 0.55, "low": 0.45, "high": 0.65}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            AGREED | {"inputs": INPUTS, "untrained": None},
            "of the untrained networks is not known here (audit before",
        ),
        (AGREED | {"inputs": None, "untrained": UNTRAINED}, "the geometry of the inputs is not known here."),
        (
            AGREED | {"inputs": INPUTS, "untrained": UNTRAINED},
            "(0.50 [0.40, 0.60]) than to their inputs (0.60 [0.50, 0.70]) or to their untrained networks (0.55 [0.45, "
            "0.65]) is not decided: the intervals overlap.",
        ),
        (
            AGREED | {"inputs": INPUTS, "untrained": {"value": 0.8, "low": 0.7, "high": 0.9}},
            "is not decided: the interval of the inputs overlaps with theirs.",
        ),
        (
            AGREED | {"end": 0.0, "low": 0.0, "high": 0.0, "inputs": INPUTS, "untrained": UNTRAINED},
            "the models are identical, which tells nothing of it",
        ),
    ],
)
def test_why_an_origin_is_not_known_is_told(entry, said):
    assert said in words.agreement(entry)
    assert not words.agreement(entry | {"high": 0.97}), "no agreement, no origin"


def test_moving_samples_are_those_of_the_results(make_results, page):
    tree, _ = make_results(more=True)
    frames = page(more=True).data("frames")
    kept = frames["layers"]["layer-1"]
    values = [numbers(of_source) for of_source in kept["positions"]]
    order = np.concatenate([np.flatnonzero(np.arange(120) % 4 == k) for k in (0, 2, 3, 1)])
    np.testing.assert_allclose(values[0], tree["frames"]["merged"][1].values[:, order], atol=1e-3)
    np.testing.assert_allclose(values[2], tree["frames"]["models"][1, 1].values[:, order], atol=1e-3)
    for (x, y), of_source in zip(kept["ranges"], values, strict=True):
        for (low, high), component in zip((x, y), np.moveaxis(of_source, -1, 0), strict=True):
            assert low <= component.min()
            assert component.max() <= high
            assert high - low < 2 * np.ptp(component)


def test_frames_beyond_the_limit_are_thinned_and_said(make_results):
    frames = make_results(more=True)[0]["frames"].to_dataset()
    everything = 2 * 3 * 4 * 6 * 120
    assert Thinning.of(frames, everything).words == ""
    thinned = Thinning.of(frames, everything // 2)
    assert thinned.words == "Shown: 60 of 120 samples."
    assert frames.sizes["step"] - 1 in thinned.steps
    sizes = [numbers_of(frames_of(frames, layer, thinned)) for layer in frames["layer"].values]
    assert sum(sizes) <= everything // 2


def numbers_of(kept) -> int:
    return sum(int(np.prod(of_source["shape"])) for of_source in kept["positions"])
