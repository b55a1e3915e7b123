"""What a layer's sentence says of a curve: whose it is, and since when."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from rich.console import Console

import repaudit as ra
from repaudit.analysis.sentences import against_start, headline, inherited, of_curve, with_settling
from repaudit.analysis.summary import identical_models, layer_summary
from repaudit.cli.answer import print_answer
from repaudit.errors import AnalysisError
from repaudit.measure.curve import of_most_models
from repaudit.results import HIGH, LOW, N_MODELS, SPREAD


def curve(values: list[float], models: list[int], half: float = 0.05) -> xr.Dataset:
    value = np.array(values)
    numbers = {SPREAD: value, LOW: value - half, HIGH: value + half, N_MODELS: np.array(models)}
    steps = np.arange(len(value)) * 100
    return xr.Dataset({name: ("step", column) for name, column in numbers.items()}, coords={"step": steps})


def test_a_single_step_of_other_models_is_named() -> None:
    found = layer_summary(curve([0.8, 0.6, 0.4, 0.7], [4, 4, 4, 2]))
    assert found["sentence"].endswith(" That is at the 3 steps which 4 models share; step 300 is of 2 models.")
    alone = layer_summary(curve([0.8, 0.7], [4, 2]))
    assert alone["sentence"].endswith(" That is at the step which 4 models share; step 100 is of 2 models.")


def test_a_curve_is_judged_at_the_steps_that_most_models_share() -> None:
    """Where two of four train on, the spread of these two is another one, and no change of any model."""
    found = layer_summary(curve([0.8, 0.6, 0.4, 0.7, 0.7, 0.7], [4, 4, 4, 2, 2, 2]))
    assert (found["verdict"], found["start"], found["end"]) == ("converging", 0.8, 0.4)
    assert found["phases"] == [{"from": 0, "to": 200, "direction": "falls"}]
    assert found["sentence"] == (
        "The models converge: their spread is 0.80 [0.75, 0.85] at step 0 and 0.40 [0.35, 0.45] at step 200. That is "
        "at the 3 steps which 4 models share; other models are at 3 other steps."
    )


def test_all_models_at_one_step_only_do_not_take_the_curve_of_the_others_away() -> None:
    found = layer_summary(curve([0.9, 0.8, 0.6, 0.4], [5, 3, 3, 3]))
    assert (found["verdict"], found["start"], found["end"]) == ("converging", 0.8, 0.4)


@pytest.mark.parametrize(
    ("counts", "which"),
    [([], []), ([2], [0]), ([2, 3], [1]), ([3, 2, 3, 2], [0, 2]), ([2, 2, 2], [0, 1, 2]), ([4, 2, 3, 2], [1, 3])],
)
def test_steps_of_the_most_models(counts: list[int], which: list[int]) -> None:
    assert np.flatnonzero(of_most_models(counts)).tolist() == which


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.3, 0.85, 0.59], "The models converge from step 100 on: their spread is 0.30"),
        ([0.8, 0.5, 0.3], "The models converge: their spread is 0.80"),
        ([0.8, 0.4, 0.6], "The models diverge from step 100 on: their spread is 0.80"),
        ([0.3, 0.5, 0.7], "The models diverge: their spread is 0.30"),
    ],
)
def test_a_verdict_is_that_of_the_last_phase_and_says_since_when(values: list[float], said: str) -> None:
    sentence = layer_summary(curve(values, [3, 3, 3]))["sentence"]
    assert sentence.startswith(said)
    for step, value in zip((0, 100, 200), values, strict=True):
        turned = "from step 100" in said
        assert (f"{value:.2f}" in sentence) == (step != 100 or turned)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.80, 0.82, 0.5, 0.3], [0, 300]),
        ([0.80, 0.82, 0.30, 0.33, 0.33, 0.34], [0, 200, 500]),
        ([0.30, 0.28, 0.5, 0.7], [0, 300]),
        ([0.80, 0.82, 0.30, 0.32, 0.60], [0, 200, 400]),
        ([0.50, 0.53, 0.52, 0.51], [0, 100, 300]),
    ],
    ids=["falls", "falls and stays", "rises", "falls and rises", "stays"],
)
def test_the_value_between_is_where_the_last_change_began_or_ended(values: list[float], told: list[int]) -> None:
    """Not a largest value within the noise; where nothing changes it is that one."""
    found = layer_summary(curve(values, [3] * len(values)))
    assert [int(step) for step in re.findall(r"at step (\d+)", found["sentence"])] == told, found["phases"]


@pytest.mark.parametrize(
    ("values", "said"),
    [([0.031, 0.03, 0.026], "0.031 [0.000, 0.081] at step 0 and 0.026"), ([0.0301, 0.0302, 0.0304], "0.0301")],
)
def test_a_change_is_told_with_as_many_decimals_as_show_it(values: list[float], said: str) -> None:
    small = curve(values, [3, 3, 3])
    verdict = "converging" if values[0] > values[-1] else "diverging"
    assert said in of_curve(verdict, small.assign(low=small["low"].clip(0)), 0)
    assert "is 0.03 [" in of_curve("unchanged", small, 0), "where nothing is said to change two decimals do"


def test_what_converges_without_having_learned_it_is_in_the_headline() -> None:
    def layer(*scales: tuple[str, str | None]) -> dict[str, dict[str, dict[str, str | None]]]:
        return {"scales": {str(i): {"verdict": verdict, "agreement": why} for i, (verdict, why) in enumerate(scales)}}

    inherited_one, learned = layer(("converging", "inherited")), layer(("converging", "learned"))
    assert inherited({"a": learned, "b": layer(("unchanged", "inherited"))}) == ""
    assert inherited({"a": inherited_one, "b": layer(("unchanged", None))}).startswith(" What converges agrees as")
    assert inherited({"a": inherited_one, "b": learned}).startswith(" What converges in a agrees as")
    assert inherited({"a": layer(("converging", "inherited"), ("converging", None))}) == ""


def test_it_is_the_scales_that_differ() -> None:
    verdicts = {"neighbourhoods": {"a": "unchanged", "b": "converging"}, "shape": {"a": "diverging", "b": "unrelated"}}
    assert headline(verdicts, 3, [0, 10]).endswith("The scales differ in a, b.")
    numbered = {scale: dict(zip("12", layers.values(), strict=True)) for scale, layers in verdicts.items()}
    assert headline(numbered, 3, [0, 10]).endswith("The scales differ in '1', '2'.")  # else they read as counts


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"settled": 40, "agreement": None}, "Settled from step 40 on, to within 0.24."),
        (
            {"settled": 40, "agreement": "learned"},
            "Settled from step 40 on, to within 0.24. At this scale the agreement is learned.",
        ),
        ({"settled": None, "agreement": "inherited"}, "At this scale the agreement is inherited."),
        ({"settled": None, "agreement": None}, ""),
    ],
)
def test_a_sentence_ends_with_what_settled_means_and_where_the_agreement_is_from(
    known: dict[str, object], said: str
) -> None:
    """An end whose interval is wide takes in much: a reader sees how much."""
    layer = {"sentence": "The models converge.", "end": 0.4, "low": 0.24, "high": 0.64} | known
    assert with_settling(layer, single=False, steps=5) == f"The models converge. {said}".strip()


def test_what_rests_exactly_has_settled_to_within_the_smallest_change() -> None:
    layer = {"sentence": "x", "end": 0.4, "low": 0.4, "high": 0.4, "settled": 7, "agreement": None}
    assert with_settling(layer, single=False, steps=5) == "x Settled from step 7 on, to within 0.01."


def store_of(models: np.ndarray, folder: Path) -> Path:
    """Record activations (model, step, sample, feature) as models of one layer."""
    n, width = models.shape[2:]
    probe_set = ra.ProbeSet.from_tensors({"x": np.arange(2 * n).reshape(n, 2)})
    for index, steps in enumerate(models):
        layers = {"top": ((n, width), "float32")}
        with ra.TrajectoryWriter(
            folder / "s.zarr", model_name=f"m{index}", probe_set=probe_set, layers=layers, durable=False
        ) as writer:
            for step, values in enumerate(steps):
                writer.append(step, {"top": values})
    return folder / "s.zarr"


def summary_of(models: np.ndarray, folder: Path, **options: Any) -> dict[str, Any]:
    url = store_of(models, folder)
    found: dict[str, Any] = ra.analyze(url, frames=0, units=0, figures="none", **options).repaudit.summary
    return found


@pytest.mark.parametrize("steps", [1, 3])
def test_identical_models_are_said_to_be_so_and_have_learned_nothing(tmp_path: Path, steps: int) -> None:
    one = np.random.default_rng(0).normal(size=(1, steps, 70, 4)).astype(np.float32)
    summary = summary_of(np.repeat(one, 4, axis=0), tmp_path)
    assert summary["headline"] == "4 models, 1 layer: 1 is identical in all models."
    layer = summary["layers"]["top"]
    assert layer["sentence"].endswith("are they one run, or one seed?")
    assert layer["agreement"] is None


def test_models_that_are_copies_are_named(tmp_path: Path) -> None:
    models = np.random.default_rng(0).normal(size=(4, 3, 70, 4)).astype(np.float32)
    models[2] = models[1]
    models[:, 0] = models[0, 0]
    summary = summary_of(models, tmp_path)
    a, b, c, d = summary["models"]
    first, second, last = summary["steps"]
    assert summary["identical"] == [
        f"{a}, {b}, {c} and {d} are identical at step {first} in every layer: do they start as one network?",
        f"{b} and {c} are identical at steps {second} to {last} in every layer: are they one run, or one seed?",
    ]
    distance = np.zeros((2, 1, 3, 3))
    distance[1, 0] = np.nan
    distance[1, 0, 1, 2] = distance[1, 0, 2, 1] = 0.5  # of the first model this layer is not known
    coords = {"layer": ["embed", "block"], "step": [0], "model": list("abc"), "other": list("abc")}
    pairs = xr.Dataset({"distance": (("layer", "step", "model", "other"), distance)}, coords=coords)
    assert identical_models(pairs) == []
    others = np.random.default_rng(1).normal(size=(3, 2, 70, 4)).astype(np.float32)
    assert summary_of(others, tmp_path / "others")["identical"] == []
    stream = io.StringIO()
    print_answer(summary, Console(file=stream, width=200))
    assert "do they start as one network?" in stream.getvalue()


def test_groups_are_printed_with_the_intervals_that_are_known() -> None:
    one, other = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.3, "low": None, "high": None}
    layer = {"sentence": "It converges.", "groups": {"s": one, "s | [l]": other}}
    summary = {
        "headline": "so",
        "models": ["a", "b"],
        "steps": [0, 1],
        "layers": {"norm": layer, "top": {"sentence": ""}},
    }
    stream = io.StringIO()
    print_answer(summary, Console(file=stream, width=200))
    assert "  norm  s 0.50 [0.40, 0.60], s | [l] 0.30\n" in stream.getvalue()
    assert stream.getvalue().count("groups at the end") == 1


def test_layers_of_one_model_each_are_not_said_to_be_compared(tmp_path: Path) -> None:
    probe_set = ra.ProbeSet.from_tensors({"x": torch.arange(40.0)[:, None]})
    for name in ("a", "b"):
        layers = {f"of {name}": ((40, 4), "float32")}
        with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name=name, probe_set=probe_set, layers=layers) as writer:
            writer.append(0, {f"of {name}": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)})
    summary = ra.analyze(tmp_path / "s.zarr", frames=0, units=0, figures="none").repaudit.summary
    assert summary["headline"] == "2 models, 2 layers: 2 have no step that two models share."


def test_what_is_no_store_is_refused_and_several_models_are_a_list(tmp_path: Path) -> None:
    url = store_of(np.random.default_rng(0).normal(size=(3, 2, 30, 4)).astype(np.float32), tmp_path)
    for wrong in (ra.open_store(url), 3.5, [url, None]):
        with pytest.raises(TypeError, match="expected a path or URL of a store, or several, found"):
            ra.analyze(wrong)  # type: ignore[arg-type]
    names = ra.open_store(url).repaudit.models
    with pytest.raises(AnalysisError, match=r"is not in the store; it has .*; several models are a list"):
        ra.analyze(url, models=",".join(names[:2]))  # type: ignore[arg-type]


def test_too_few_samples_are_said_in_the_headline(tmp_path: Path) -> None:
    models = np.random.default_rng(0).normal(size=(3, 2, 16, 4)).astype(np.float32)
    summary = summary_of(models, tmp_path)
    assert summary["headline"] == "3 models, 1 layer: 1 has no spread, see what was left out."
    assert any("16 samples are too few for 15 neighbours of each" in line for line in summary["left_out"])


def test_a_scale_of_all_samples_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    models = np.random.default_rng(0).normal(size=(3, 2, 16, 4)).astype(np.float32)
    summary_of(models, tmp_path, scales=(4,))
    before = {path: path.read_bytes() for path in (tmp_path / "s.analysis").rglob("*") if path.is_file()}
    for scales in ((4, 500), (15,)):
        with pytest.raises(AnalysisError, match=r"scales: expected perplexities below 15, .* each of 16 samples has"):
            ra.analyze(tmp_path / "s.zarr", scales=scales, frames=0, units=0, figures="none")
    assert {path: path.read_bytes() for path in (tmp_path / "s.analysis").rglob("*") if path.is_file()} == before
    ra.analyze(tmp_path / "s.zarr", scales=(14,), frames=0, units=0, figures="none")


def test_a_last_change_that_is_the_smaller_part_of_the_whole_is_in_the_headline() -> None:
    def layer(*scales: tuple[str, float, float, float]) -> dict[str, dict[str, dict[str, str | float]]]:
        names = ("verdict", "start", "low", "high")
        return {"scales": {str(index): dict(zip(names, one, strict=True)) for index, one in enumerate(scales)}}

    back, away = layer(("diverging", 0.5, 0.1, 0.3)), layer(("diverging", 0.1, 0.2, 0.4))
    assert against_start({"a": back}) == " What diverges ends closer than it began."
    assert against_start({"a": back, "b": away}) == " What diverges in a ends closer than it began."
    assert against_start({"a": away, "b": layer(("converging", 0.5, 0.1, 0.3))}) == ""
    assert (
        against_start({"a": layer(("converging", 0.1, 0.2, 0.4))}) == " What converges ends wider apart than it began."
    )
    assert against_start({"a": layer(("diverging", 0.5, 0.1, 0.3), ("diverging", 0.1, 0.2, 0.4))}) == "", (
        "at all scales"
    )
