"""What the spread is set against, and what else an analysis shows, on stores whose truth is planted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.input_geometry import token_shares
from repaudit.analysis.sentences import of_curve
from repaudit.cli import app
from repaudit.embed.phate import phate_frames
from repaudit.errors import AnalysisError
from repaudit.measure import tally

SAMPLES = 60
BARE = {"frames": 0, "units": 0, "similarity": ()}


@pytest.fixture
def token_probe() -> ra.ProbeSet:
    """60 samples of up to 12 tokens out of 30, about half of them masked."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(30, (SAMPLES, 12), generator=generator)
    mask = (torch.arange(12) < torch.randint(3, 13, (SAMPLES, 1), generator=generator)).long()
    return ra.ProbeSet.from_tensors({"input_ids": ids, "attention_mask": mask})


def write(url, probe_set, model, steps):
    """Steps is a mapping of step to activations of one layer, "layer"."""
    shape = next(iter(steps.values())).shape
    layers = {"layer": (shape, "float32")}
    with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=layers, durable=False) as writer:
        for step, values in steps.items():
            writer.append(step, {"layer": values.astype(np.float32)})


def rotated(rng, values):
    return values @ np.linalg.qr(rng.standard_normal((values.shape[1], values.shape[1])))[0]


@pytest.mark.usefixtures("undrawn")
def test_what_is_inherited_from_the_inputs_is_told_from_what_is_learned(tmp_path, token_probe):
    shares = token_shares(*(token_probe.inputs[name].numpy() for name in ("input_ids", "attention_mask")))
    learned = np.random.default_rng(0).standard_normal((SAMPLES, shares.shape[1]))
    for model in range(3):
        rng = np.random.default_rng(model + 1)
        noise = 0.1 * shares.std() * rng.standard_normal((2, *shares.shape))
        write(
            tmp_path / "s.zarr",
            token_probe,
            f"seed{model}",
            {0: rotated(rng, shares + noise[0]), 10: rotated(rng, learned + 0.1 * noise[1])},
        )
    results = ra.analyze(tmp_path / "s.zarr", **BARE)
    against = results["comparison"].sel(layer="layer")
    assert against["from_inputs"].sel(step=0) < 0.15, "random projections of the inputs have their geometry"
    assert against["from_inputs"].sel(step=10) > 0.9, "unrelated to the inputs"
    assert against["from_untrained"].sel(step=0) == 0
    assert against["from_untrained"].sel(step=10) > 0.9
    assert results.repaudit.summary["layers"]["layer"]["agreement"] == "learned"
    late = ra.analyze(tmp_path / "s.zarr", tmp_path / "late", steps=[10], **BARE)
    assert not any("untrained" in line for line in late.repaudit.summary["left_out"]), "one step has no start"
    early = ra.analyze(tmp_path / "s.zarr", tmp_path / "early", steps=[0], **BARE)
    assert early.repaudit.summary["layers"]["layer"]["agreement"] == "inherited"


@pytest.mark.usefixtures("undrawn")
def test_untrained_networks_have_learned_nothing_however_much_they_agree(tmp_path, token_probe):
    architecture = np.random.default_rng(0).standard_normal((SAMPLES, 12))
    for model in range(3):
        rng = np.random.default_rng(model + 1)
        noise = 0.05 * rng.standard_normal(architecture.shape)
        write(tmp_path / "s.zarr", token_probe, f"seed{model}", {0: rotated(rng, architecture + noise)})
    layer = ra.analyze(tmp_path / "s.zarr", **BARE).repaudit.summary["layers"]["layer"]
    assert layer["inputs"]["low"] > 0.8, "far from the inputs"
    assert layer["agreement"] == "inherited"


@pytest.mark.usefixtures("undrawn")
def test_without_an_audit_at_step_0_there_is_nothing_untrained(planted_store, tmp_path):
    results = ra.analyze(planted_store(steps=(3, 5), layers=("only",)), tmp_path / "out", **BARE)
    assert "from_untrained" not in results["comparison"]
    layer = results.repaudit.summary["layers"]["only"]
    assert layer["untrained"] is None
    assert layer["agreement"] is None


@pytest.mark.usefixtures("undrawn")
def test_groups_are_near_themselves_and_far_from_each_other(tmp_path, probe_set):
    own = {name: np.random.default_rng(i).standard_normal((48, 8)) for i, name in enumerate(("small", "large"))}
    for name, values in own.items():
        for seed in range(3):
            rng = np.random.default_rng(100 + seed)
            noise = 0.05 * rng.standard_normal(values.shape)
            write(tmp_path / "g.zarr", probe_set, f"{name}{seed}", {7: rotated(rng, values + noise)})
    groups = {"s": ["small*"], "l": ["large0", "large1", "large2"]}
    results = ra.analyze(tmp_path / "g.zarr", groups=groups, **BARE)
    found = results["groups"]["spread"].sel(layer="layer", step=7)
    assert found.sel(group="s", other="s") < 0.1
    assert found.sel(group="l", other="l") < 0.1
    assert 0.9 < found.sel(group="s", other="l") < 1.1
    assert found.sel(group="l", other="s") == found.sel(group="s", other="l")
    assert set(results.repaudit.summary["layers"]["layer"]["groups"]) == {"s", "l", "s | l"}
    uneven = {"one": ["small0"], "rest": ["small1", "small2", "large*"]}
    first = ra.analyze(tmp_path / "g.zarr", groups=uneven, **BARE)["groups"]["spread"]
    second = ra.analyze(tmp_path / "g.zarr", groups=dict(reversed(uneven.items())), **BARE)["groups"]["spread"]
    np.testing.assert_array_equal(first, second.sel(group=["one", "rest"], other=["one", "rest"]))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"a": ["seed0"]}, "seed1 in none"),
        ({"a": ["seed*"], "b": ["seed1"]}, "seed1 in a, b"),
        ({"a": ["seed*"], "b": ["none*"]}, "no model belongs to b"),
    ],
)
def test_groups_that_do_not_fit_the_models_are_refused(planted_store, tmp_path, groups, said):
    with pytest.raises(AnalysisError, match=said):
        ra.analyze(planted_store(models=2), tmp_path / "out", groups=groups)
    assert not (tmp_path / "out").exists()


def test_one_model_settles_where_it_was_planted(tmp_path, probe_set):
    rng = np.random.default_rng(0)
    end, start = rng.standard_normal((2, 48, 12))
    shares = {0: 0.0, 10: 0.3, 20: 0.8, 30: 1.0, 40: 1.0, 50: 1.0}
    write(tmp_path / "one.zarr", probe_set, "solo", {s: a * end + (1 - a) * start for s, a in shares.items()})
    results = ra.analyze(tmp_path / "one.zarr", **BARE)
    approach = results["approach"]["approach"].sel(layer="layer", model="solo")
    assert approach.sel(step=0) > 0.8
    assert approach.sel(step=[30, 40, 50]).max() < 1e-6
    summary = results.repaudit.summary
    assert summary["layers"]["layer"]["settled"] == 30
    # of the end a share of .3 is planted at step 10
    assert summary["settling"] == [{"layer": "layer", "settled": 30, "below_start": 10}]
    assert summary["layers"]["layer"]["verdict"] == "undecided"
    assert "step 30" in summary["layers"]["layer"]["sentence"]


def test_one_model_at_one_step_is_not_said_to_move(tmp_path, probe_set):
    write(tmp_path / "one.zarr", probe_set, "solo", {4: np.random.default_rng(0).standard_normal((48, 12))})
    sentence = ra.analyze(tmp_path / "one.zarr", **BARE).repaudit.summary["layers"]["layer"]["sentence"]
    assert sentence == "One model at one step: nothing to compare it with."


@pytest.mark.usefixtures("undrawn")
def test_models_that_end_earlier_do_not_make_the_others_settle(tmp_path, probe_set):
    common = np.random.default_rng(9).standard_normal((48, 12))
    for model in range(6):
        rng = np.random.default_rng(model)
        own, short = rng.standard_normal((48, 12)), model >= 3
        values = {s: rotated(rng, own if short else common + 0.1 * own) for s in range(4 if short else 8)}
        write(tmp_path / "s.zarr", probe_set, f"m{model}", values)
    summary = ra.analyze(tmp_path / "s.zarr", **BARE).repaudit.summary
    layer = summary["layers"]["layer"]
    assert (layer["settled"], layer["below_start"]) == (None, None), "none of them changed"
    assert summary["left_out"][-1] == (
        "verdicts are of the steps that 6 models share, up to 3; m0, m1, m2 go on together to 7: choose them "
        "(--models) for a verdict up to there"
    )
    further = ra.analyze(tmp_path / "s.zarr", tmp_path / "further", models=["m0", "m1", "m2"], **BARE).repaudit.summary
    assert "at step 7" in further["layers"]["layer"]["sentence"]
    assert further["left_out"] == []
    assert "at the 4 steps which 6 models share; other models are at 4 other steps" in layer["sentence"]


def test_too_few_samples_for_the_scale_are_told_once_and_as_such(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.arange(20).reshape(10, 2)})
    for model in range(2):
        rng = np.random.default_rng(model)
        write(tmp_path / "few.zarr", probe_set, f"m{model}", {s: rng.standard_normal((10, 5)) for s in range(3)})
    left_out = ra.analyze(tmp_path / "few.zarr", **BARE).repaudit.summary["left_out"]
    (told,) = [line for line in left_out if "no spread" in line]
    assert told == (
        "layer layer: no spread at any step, since 10 samples are too few for 15 neighbours of each: record more "
        "samples, or look at fewer neighbours (--scales 2)"
    )
    shown = CliRunner().invoke(app, ["analyze", str(tmp_path / "few.zarr"), "--no-figures"])
    assert shown.exit_code == 1, shown.output  # nothing was compared
    found = ra.analyze(tmp_path / "few.zarr", scales=[2], out=tmp_path / "two", **BARE)
    assert np.isfinite(found["spread"]["spread"].values).all()


def test_few_samples_leave_out_the_similarity_and_nothing_else(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": torch.arange(9).reshape(3, 3)})
    for model in range(2):
        values = np.random.default_rng(model).standard_normal((3, 5))
        write(tmp_path / "few.zarr", probe_set, f"m{model}", {0: values})
    results = ra.analyze(tmp_path / "few.zarr", frames=0, units=0)
    assert "similarity" not in results.children
    assert "similarity: expected at least 4 samples, found 3" in results.repaudit.summary["left_out"]


@pytest.mark.usefixtures("undrawn")
def test_layers_are_listed_as_they_settle(tmp_path, probe_set):
    common = np.random.default_rng(9).standard_normal((48, 12))
    schedule = {"late": [0, 0, 0.2, 0.6, 1, 1, 1], "early": [0, 0.6, 1, 1, 1, 1, 1]}
    for model in range(4):
        rng = np.random.default_rng(model)
        own = rng.standard_normal((48, 12))
        layers = dict.fromkeys(schedule, ((48, 12), "float32"))
        with ra.TrajectoryWriter(
            tmp_path / "o.zarr", model_name=f"m{model}", probe_set=probe_set, layers=layers, durable=False
        ) as writer:
            for step in range(7):
                values = {
                    name: rotated(rng, shares[step] * common + (1 - shares[step]) * own).astype(np.float32)
                    for name, shares in schedule.items()
                }
                writer.append(step, values)
    order = ra.analyze(tmp_path / "o.zarr", **BARE).repaudit.summary["settling"]
    assert [one["layer"] for one in order] == ["early", "late"]
    assert (order[0]["settled"], order[1]["settled"]) == (2, 4)


@pytest.mark.usefixtures("undrawn")
def test_similarities_are_those_of_the_stored_activations(planted_store, tmp_path):
    url = planted_store(models=2)
    results = ra.analyze(
        url,
        tmp_path / "out",
        similarity=["cka", "mutual_knn", "procrustes"],
        similarity_steps=[0, 16],
        frames=0,
        units=0,
    )
    found = results["similarity"]
    tree = ra.open_store(url)
    X, Y = (tree[f"models/{name}"]["first"].sel(step=0).values for name in ("seed0", "seed1"))
    for measure in ("cka", "mutual_knn", "procrustes"):
        expected = ra.similarity(X, Y, measure=measure)
        one = found.sel(measure=measure, step=0, representation="seed0/first", other="seed1/first")
        np.testing.assert_allclose([one["similarity"], one["null"]], [expected.value, expected.null], rtol=1e-6)
    assert found["similarity"].sel(measure="cka", step=16, representation="seed0/first", other="seed1/second") > 0.99
    assert found["layer"].sel(representation="seed1/second") == "second"
    with pytest.raises(AnalysisError, match=r"similarity_steps.*3"):
        ra.analyze(url, tmp_path / "out", similarity_steps=[3])


@pytest.mark.usefixtures("undrawn")
def test_frames_are_phate_of_the_merged_operators_in_one_frame(planted_store, tmp_path):
    url = planted_store(layers=("only",))
    frames = ra.analyze(url, tmp_path / "out", frames=3, units=0, similarity=())["frames"]
    assert frames["step"].values.tolist() == [0, 2, 16]
    tree = ra.open_store(url)
    merged = [
        ra.DiffusionMerging("frobenius").merge({m: o.to_numpy() for m, o in tree.repaudit.operators("only", s).items()})
        for s in (0, 2, 16)
    ]
    np.testing.assert_allclose(frames["merged"].sel(layer="only").isel(scale=0), phate_frames(merged).values, atol=1e-6)
    last = frames.sel(layer="only", step=16)
    apart = np.linalg.norm(last["models"] - last["merged"], axis=-1).max()
    assert apart < 0.1 * np.abs(last["merged"]).max(), "models that agree lie where the merged one does"


def test_units_and_the_picture_of_all_layers_are_drawn(planted_store, tmp_path):
    results = ra.analyze(planted_store(), tmp_path / "out", units=5, frames=0, similarity=())
    units = results["units"]
    assert units["embedding"].shape == (2, 1, 6, 5, 2)
    assert units["feature"].sel(layer="first", model="seed0").values.tolist() == [0, 3, 6, 8, 11]
    together = results["trajectories"]["together"]
    assert together.dims == ("layer", "scale", "model", "step", "component")
    assert np.isfinite(together).all()
    # both layers hold the same activations: the same points
    np.testing.assert_allclose(together.sel(layer="first"), together.sel(layer="second"), atol=1e-9)


def test_a_damaged_chunk_is_left_out_by_name(planted_store, tmp_path):
    url = planted_store(models=2, layers=("only",))
    (url / "models/seed1/only/c.2.0.0").unlink()
    results = ra.analyze(url, tmp_path / "out", **BARE)
    assert results["diagnostics"]["failed"].sel(layer="only", model="seed1").sum() == 1
    (line,) = results.repaudit.summary["left_out"]
    assert "seed1" in line
    assert "checksum" in line


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_of_what_no_operator_needs_is_told_and_costs_nothing_else(planted_store, tmp_path):
    url = planted_store(models=2, layers=("only",))
    whole = ra.analyze(url, tmp_path / "whole", **BARE)
    for name in ("label/c.0", "models/seed1/loss/c.0", "models/seed1/trigger/c.0", "models/seed1/epoch/c.0"):
        flip(url / name)
    results = ra.analyze(url, tmp_path / "out", **BARE)
    assert results.repaudit.summary["left_out"] == [
        "label of the samples: lost to damage",
        *(f"{name} of model seed1: lost to damage" for name in ("epoch", "loss", "trigger")),
    ]
    xr.testing.assert_identical(results["spread"].to_dataset(), whole["spread"].to_dataset())
    flip(next((url / "probe").glob("*/input_ids/c.*")))
    lines = ra.analyze(url, tmp_path / "again", **BARE).repaudit.summary["left_out"]
    assert "input input_ids of the samples: lost to damage" in lines
    assert any("geometry of the inputs" in line for line in lines)


def test_the_command_says_in_one_line_what_is_lost(planted_store, tmp_path):
    url = planted_store(models=2, layers=("only",), steps=(0, 1, 2))
    flip(url / "label/c.0")
    flip(url / "models/seed1/loss/c.0")
    words = ("analyze", url, "--out", tmp_path / "out", "--no-figures", "--frames", "0", "--units", "0")
    run = CliRunner().invoke(app, [str(word) for word in words])
    assert run.exit_code == 0, run.stderr
    (line,) = (line for line in run.stderr.splitlines() if "warning" in line)
    assert "label of the samples, loss of model seed1" in line


def test_a_model_without_checksums_is_left_out_and_the_others_are_not(planted_store, tmp_path):
    url = planted_store(models=3, layers=("only",))
    flip(url / "models/seed1/checksum/c.0.0")
    results = ra.analyze(url, tmp_path / "out", **BARE)
    failed = results["diagnostics"]["failed"].sel(layer="only").sum("step")
    assert failed.sel(model="seed1") > 0
    assert failed.sel(model=["seed0", "seed2"]).sum() == 0
    assert all("checksums of model 'seed1'" in line for line in results.repaudit.summary["left_out"])


def test_frames_of_one_are_the_last_and_the_picture_of_many_operators_keeps_both_ends(
    planted_store, tmp_path, monkeypatch
):
    monkeypatch.setattr("repaudit.analysis.embeddings.MOST_TOGETHER", 3)
    url = planted_store(models=2, steps=(0, 1, 2, 4))
    results = ra.analyze(url, tmp_path / "out", frames=1, units=0, similarity=())
    assert results["frames"]["step"].values.tolist() == [4]
    shown = results["trajectories"]["together"].dropna("step", how="all")
    assert shown["step"].values.tolist() == [0, 4]


def test_of_many_samples_some_move(planted_store, tmp_path, monkeypatch):
    monkeypatch.setattr("repaudit.analysis.embeddings.MOST_MOVING", 20)
    url = planted_store(models=2, layers=("only",), steps=(0, 1))
    results = ra.analyze(url, tmp_path / "out", units=0, similarity=())
    assert results["frames"].sizes["sample"] == 20
    assert results["merged"].sizes["sample"] == 48
    chosen = results["frames"]["sample"].values
    label = results["merged"]["label"].to_series()
    assert results["frames"]["label"].values.tolist() == label.loc[chosen].tolist()
    assert (tmp_path / "out/report.html").exists()


def test_of_what_diverges_the_lowest_point_is_told():
    names = ("spread", "low", "high")
    seen = xr.Dataset({name: ("step", [0.3, 0.1, 0.5, 0.4]) for name in names}, coords={"step": [0, 10, 20, 30]})
    said = of_curve("diverging", seen, 2)
    assert "0.10 [0.10, 0.10] at step 10" in said
    assert "at step 20" not in said


def test_where_nothing_changes_it_is_told_what_could_not_be_seen():
    steps = {"step": [0, 10]}
    values = {"spread": [0.4, 0.38], "low": [0.3, 0.3], "high": [0.5, 0.5]}
    seen = xr.Dataset({name: ("step", row) for name, row in values.items()}, coords=steps)
    margins = np.array([[0.0, 0.17], [0.17, 0.0]])
    assert of_curve("unchanged", seen, 0, margins).endswith("a change of less than 0.17 would not be seen.")
    for verdict, known in (("converging", margins), ("unchanged", None), ("unchanged", margins / 10)):
        assert "would not be seen" not in of_curve(verdict, seen, 0, known)


def test_a_training_without_its_untrained_network_is_told(planted_store):
    results = ra.analyze(planted_store(models=2, steps=(10, 20, 30), layers=("layer",)), **BARE)
    told = [line for line in results.repaudit.summary["left_out"] if "untrained" in line]
    assert told == ["layer layer: untrained networks, of which none was recorded (audit before the first step)"]


def test_operators_are_taken_apart_once_for_spreads_and_once_for_departures(planted_store, tmp_path, monkeypatch):
    """That from the untrained networks, which come again at every step, and that from the inputs."""
    taken = []
    plain = tally.as_float64
    monkeypatch.setattr(tally, "as_float64", lambda operator: taken.append(operator) or plain(operator))
    ra.analyze(planted_store(layers=("only",)), tmp_path / "out", scales=[6], **BARE)
    counts = Counter(getattr(operator, "path", "inputs") for operator in taken)
    inputs = counts.pop("inputs", 0)
    assert (len(counts), {*counts.values()}, inputs) == (18, {2}, 1)
