"""Analysing operators that were recorded in place of activations, against the analysis of these activations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.contract import contract_violations
from repaudit.cli import app
from repaudit.errors import AnalysisError, AuditWarning
from repaudit.live.spreads import LiveSpreads
from repaudit.live.track import Track

GAUGE = ra.DiffusionGauge(perplexity=4)
STEPS = (0, 20)
QUICK: dict[str, Any] = {"frames": 0, "units": 0, "figures": "none"}


def record(url: Path, seed: int, kept: str, gauge: Any = GAUGE, samples: int = 100, **options: Any) -> None:
    """Record a network that moves from its own weights to those that all share."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
    shared = torch.randn(16, 8, generator=torch.Generator().manual_seed(99))
    inputs = torch.randn(samples, 8, generator=torch.Generator().manual_seed(0))
    how = {"record": kept, "gauge": gauge} if kept != "activations" else {}
    probe_set = ra.ProbeSet.from_tensors({"input": inputs})
    with ra.Recorder(url, f"seed{seed}", probe_set, ["0", "1"], durable=False, **how, **options) as recorder:
        for step in STEPS:
            recorder.audit(model, step)
            with torch.no_grad():
                model[0].weight.lerp_(shared, 0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Record three models, each as it is told."""
    made: dict[Any, Path] = {}

    def make(*kept: str, gauge: Any = GAUGE, samples: int = 100) -> Path:
        key = (*kept, gauge, samples)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("kept") / "store.zarr"
            for seed, one in enumerate(kept):
                record(made[key], seed, one, gauge, samples)
        return made[key]

    return make


@pytest.fixture(scope="module")
def analysed(store: Callable[..., Path]) -> Callable[..., xr.DataTree]:
    """Analyse what is recorded so, each kind once."""
    made: dict[Any, xr.DataTree] = {}

    def analyse(*kept: str, gauge: Any = GAUGE, samples: int = 100) -> xr.DataTree:
        key = (*kept, gauge, samples)
        if key not in made:
            given = {"gauge": gauge} if "activations" in kept else {}
            made[key] = ra.analyze(store(*kept, gauge=gauge, samples=samples), similarity=(), **given, **QUICK)
        return made[key]

    return analyse


OPERATORS = ("operators",) * 3
ACTIVATIONS = ("activations",) * 3


@pytest.mark.parametrize(
    ("gauge", "samples"),
    [(GAUGE, 100), (GAUGE, 60), pytest.param(ra.DiffusionGauge(knn=5), 60, marks=pytest.mark.slow)],
    ids=["sparse", "dense", "of knn"],
)
def test_an_analysis_of_operators_is_that_of_their_activations(analysed, undrawn, gauge, samples):
    found, exact = (analysed(*kept, gauge=gauge, samples=samples) for kept in (OPERATORS, ACTIVATIONS))
    for group, names in {
        "spread": ("spread", "low", "high", "null", "hellinger", "largest_row"),
        "pairs": ("distance", "low", "high"),
        "comparison": ("from_untrained", "from_inputs"),
        "diagnostics": ("effective_neighbors", "components", "isolated", "entropy"),
    }.items():
        for name in names:
            np.testing.assert_allclose(found[group][name], exact[group][name], rtol=1e-5, atol=1e-7, err_msg=name)
    merged = [ra.DiffusionOperator.from_results(results, "1").to_numpy() for results in (found, exact)]
    np.testing.assert_allclose(*merged, rtol=1e-5, atol=1e-8)
    assert {"merged", "trajectories"} <= set(found)
    assert found["spread"]["scale"].values.tolist() == exact["spread"]["scale"].values.tolist()
    for layer, said in exact.repaudit.summary["layers"].items():
        assert found.repaudit.summary["layers"][layer]["verdict"] == said["verdict"]
    assert contract_violations(found) == []


def test_what_operators_do_not_tell_is_left_out_by_name(store, undrawn):
    results = ra.analyze(store(*OPERATORS), steps=[20], frames=0, figures="none")
    assert {"units", "similarity"}.isdisjoint(results)
    assert bool(results["comparison"]["feature_halves"].isnull().all())
    (line,) = [line for line in results.repaudit.summary["left_out"] if "recorded during training" in line]
    assert line.startswith("layers 0, 1: ")
    assert all(name in line for name in ("units", "similarity", "feature_halves"))


@pytest.mark.parametrize("kept", [("operators", "activations", "operators"), ("activations", "operators", "both")])
def test_models_of_operators_and_of_activations_are_compared(analysed, undrawn, kept):
    found, exact = analysed(*kept), analysed(*ACTIVATIONS)
    assert bool((found["spread"]["n_models"] == 3).all())
    np.testing.assert_allclose(found["spread"]["spread"], exact["spread"]["spread"], rtol=1e-5)


def test_models_of_operators_are_compared_with_sketches_through_sketches(analysed, undrawn):
    found, exact = analysed("operators", "sketches", "operators"), analysed(*ACTIVATIONS)
    error = found["spread"]["sketch_error"]
    assert float(error.min()) > 0
    assert bool((np.abs(found["spread"]["spread"] - exact["spread"]["spread"]) <= 3 * error).all())
    assert len([line for line in found.repaudit.summary["left_out"] if "known by" in line]) == 1


def test_operators_beside_activations_are_not_what_is_analysed(store, undrawn):
    results = ra.analyze(store("both", "both", "both"), steps=[20], **QUICK)
    assert results["spread"]["layer"].values.tolist() == ["0", "1"]
    assert results["spread"]["scale"].values.tolist() == [15, 25]
    assert "similarity" in results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (20,)}, "those that the operators were recorded with"),
        ({"gauge": ra.DiffusionGauge(knn=5)}, "those that the operators were recorded with"),
        ({"tokens": "samples"}, "token"),
    ],
)
def test_what_cannot_be_made_of_operators_is_refused(store, options, message):
    with pytest.raises(AnalysisError, match=message):
        ra.analyze(store(*OPERATORS), **QUICK, **options)


def test_operators_of_two_gauges_are_refused(tmp_path):
    for seed, gauge in enumerate((GAUGE, ra.DiffusionGauge(perplexity=5))):
        record(tmp_path / "s.zarr", seed, "operators", gauge)
    with pytest.raises(AnalysisError, match=r"operators of one gauge.*4\.0.*seed0.*5\.0.*seed1"):
        ra.analyze(tmp_path / "s.zarr", **QUICK)


def test_operators_of_a_gauge_of_ones_own_are_refused_by_name(tmp_path):
    def own_gauge(values: torch.Tensor) -> ra.DiffusionOperator:
        return GAUGE(values)

    for seed in range(2):
        record(tmp_path / "s.zarr", seed, "operators", own_gauge)
    with pytest.raises(AnalysisError, match=r"model seed0, layer 0: expected operators of a DiffusionGauge"):
        ra.analyze(tmp_path / "s.zarr", **QUICK)
    found = ra.open_store(tmp_path / "s.zarr").repaudit.operators("0", step=20)
    assert 0 < ra.spread(found).value < 1, "they are compared by hand"


def test_a_matrix_that_is_no_operator_is_left_out_with_its_place(tmp_path, undrawn):
    """As of a gauge that broke, or a record that somebody made by hand."""
    url, ids = tmp_path / "s.zarr", np.arange(200).reshape(100, 2)
    probe_set = ra.ProbeSet.from_tensors({"input_ids": ids})
    attrs = {"0@operator": {"kind": "operator", "operator_of": "0", "gauge": {"name": "DiffusionGauge", "knn": 5}}}
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        with ra.TrajectoryWriter(
            url, model_name=name, probe_set=probe_set, layers={"0@operator": ((100, 100), "float32")}, layer_attrs=attrs
        ) as writer:
            matrix = rng.random((100, 100), dtype=np.float32)
            matrix /= matrix.sum(1, keepdims=True)
            if name == "c":
                matrix[7, 3] = np.nan
            writer.append(0, {"0@operator": matrix})
    results = ra.analyze(url, frames=0, figures="none")
    (line,) = [line for line in results.repaudit.summary["left_out"] if "c at step 0" in line]
    assert line.startswith("layer 0, c at step 0: expected finite transition probabilities")
    assert "row 7" in line
    assert results["spread"]["n_models"].item() == 2


def test_operators_are_not_rounded_beside_activations_that_are(tmp_path):
    """Rows of rounded operators do not sum to 1."""
    record(tmp_path / "s.zarr", 0, "both", codec="lossy", keepbits=4)
    ra.copy_store(tmp_path / "s.zarr", tmp_path / "copied.zarr", codec="lossy", keepbits=3)
    for name in ("s.zarr", "copied.zarr"):
        tree = ra.open_store(tmp_path / name)
        kept = tree.repaudit.operators("0@operator", step=20)["seed0"].to_numpy()
        np.testing.assert_allclose(kept.sum(1), 1, atol=1e-6)
        assert {array.attrs["codec"] for array in tree["models/seed0"].data_vars.values()} == {"lossy", "compact"}
        assert ra.verify(tmp_path / name, data=True) == []


def test_layers_of_operators_take_the_names_that_an_analysis_gives_them(tmp_path, undrawn):
    url = tmp_path / "s.zarr"
    for seed, kept in enumerate(("operators", "sketches", "activations")):
        record(url, seed, kept)
    given = {"top": {"seed0": "1", "seed1": "1", "seed2": "1"}}
    named = ra.analyze(url, models=["seed0", "seed2"], layers=given, **QUICK)
    plain = ra.analyze(url, models=["seed0", "seed2"], layers=["1"], **QUICK)
    assert named["spread"]["layer"].values.tolist() == ["top"]
    np.testing.assert_array_equal(named["spread"]["spread"], plain["spread"]["spread"])
    by_depth = ra.analyze(url, match="depth", **QUICK)
    assert by_depth["spread"]["layer"].values.tolist() == ["depth 0", "depth 1"]
    assert bool((by_depth["spread"]["n_models"] == 3).all())


def test_a_layer_that_is_only_called_like_one_of_operators_holds_activations(tmp_path):
    probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(80).reshape(40, 2)})
    layers = {"x@operator": ((40, 4), "float32")}
    with ra.TrajectoryWriter(tmp_path / "s.zarr", model_name="m", probe_set=probe_set, layers=layers) as writer:
        writer.append(0, {"x@operator": np.random.default_rng(0).normal(size=(40, 4)).astype("float32")})
    assert ra.open_store(tmp_path / "s.zarr").repaudit.operators("x@operator", step=0)["m"].n_samples == 40


def test_stores_that_share_some_samples_are_refused(store, tmp_path):
    url = tmp_path / "some.zarr"
    record(url, 5, "activations", samples=90)
    with pytest.raises(AnalysisError, match="its operators are"):
        ra.analyze([store(*OPERATORS), url], out=tmp_path / "out", **QUICK)


def test_recorded_operators_are_given_by_the_name_of_their_layer(store):
    tree = ra.open_store(store("operators", "activations", "both"))
    found = tree.repaudit.operators("0", step=20, perplexity=4)
    exact = ra.open_store(store(*ACTIVATIONS)).repaudit.operators("0", step=20, perplexity=4)
    assert list(found) == ["seed0", "seed1", "seed2"]
    for name, operator in found.items():
        assert type(operator) is type(exact[name])
        np.testing.assert_array_equal(operator.to_numpy(), exact[name].to_numpy())
        np.testing.assert_allclose(operator.stationary, exact[name].stationary, atol=1e-6)
    assert found["seed0"].samples.tolist() == tree["sample"].values.tolist()
    assert found["seed0"].attrs["perplexity"] == 4
    kept = tree.repaudit.operators("0@operator", step=20, models=["seed2"])["seed2"]
    np.testing.assert_array_equal(kept.to_numpy(), exact["seed2"].to_numpy())
    with pytest.raises(
        AnalysisError, match=r"model seed0, layer 0@operator: .*perplexity=4.0.*found \{'perplexity': 9"
    ):
        tree.repaudit.operators("0", step=20, perplexity=9)


def test_the_live_spread_of_operators_is_that_of_their_activations(store):
    found = LiveSpreads().update(ra.open_store(store(*OPERATORS)))  # with their gauge, not the default
    exact = LiveSpreads(gauge=GAUGE).update(ra.open_store(store(*ACTIVATIONS)))
    assert [curve.layer for curve in found] == ["0", "1"]
    for one, other in zip(found, exact, strict=True):
        assert one.steps == other.steps == STEPS
        assert one.value == pytest.approx(other.value, rel=1e-5)


def test_a_training_is_tracked_against_operators(tmp_path):
    url = tmp_path / "s.zarr"
    record(url, 0, "operators")
    track = Track(url, gauge=GAUGE)
    record(url, 1, "activations", track=track)
    assert sorted(track.latest) == ["0", "1"]
    exact = ra.open_store(url).repaudit.operators("0", step=20, perplexity=4)
    assert track.latest["0"][1].value == pytest.approx(ra.spread(exact).value, rel=1e-6)


def test_an_older_record_tells_its_gauge_by_what_it_used(tmp_path, undrawn):
    """Records had the parameters that the gauge used alone, without those that were given."""
    urls = {kept: tmp_path / f"{kept}.zarr" for kept in ("operators", "activations")}
    for kept, url in urls.items():
        for seed in range(2):
            record(url, seed, kept, ra.DiffusionGauge(knn=5))
    tree = xr.open_datatree(urls["operators"], engine="zarr", consolidated=False)
    assert tree["models/seed0"]["0@operator"].attrs["gauge"].pop("given")["knn"] == 5
    for path in sorted(urls["operators"].glob("models/*/*@operator/zarr.json")):
        described = json.loads(path.read_text())
        del described["attributes"]["gauge"]["given"]
        path.write_text(json.dumps(described))
    found = ra.analyze(urls["operators"], steps=[20], **QUICK)
    exact = ra.spread(ra.open_store(urls["activations"]).repaudit.operators("0", step=20, knn=5)).value
    assert found["spread"]["spread"].sel(layer="0").item() == pytest.approx(exact, rel=1e-5)


def test_another_gauge_than_that_of_the_store_is_told_when_it_is_recorded(tmp_path, caplog):
    for seed, perplexity in enumerate((4, 4, 5)):
        assert not caplog.records
        record(tmp_path / "s.zarr", seed, "operators", ra.DiffusionGauge(perplexity=perplexity))
    (line,) = [one.message for one in caplog.records]
    assert "gauge of perplexity=5.0, and model 'seed0' in this store was with perplexity=4.0" in line


def test_a_gauge_wider_than_the_samples_is_told_when_it_is_recorded_and_by_the_analysis(tmp_path, undrawn):
    for seed in range(2):
        with pytest.warns(AuditWarning, match=r"30 neighbours, and 20 samples have 19.*DiffusionGauge\(perplexity=5\)"):
            record(tmp_path / "s.zarr", seed, "operators", ra.DiffusionGauge(perplexity=30), samples=20)
    left_out = ra.analyze(tmp_path / "s.zarr", **QUICK).repaudit.summary["left_out"]
    assert any(line.endswith("(gauge=DiffusionGauge(perplexity=5))") for line in left_out)


def test_what_a_record_of_operators_costs_the_others_is_told_with_its_models(store, undrawn):
    found = {
        kept: ra.analyze(store(*kept), layers=["0"], **QUICK).repaudit.summary["left_out"]
        for kept in (("activations", "operators", "sketches"), OPERATORS)
    }
    told = {kept: [line for line in lines if line.startswith("other scales")] for kept, lines in found.items()}
    assert told[OPERATORS] == []
    (line,) = told["activations", "operators", "sketches"]
    assert "perplexity 4, that of the recorded operators of seed1 and sketches of seed2: leave them out" in line


@pytest.mark.parametrize("name", ["0@operator", "*@operator", "0"])
def test_a_layer_is_found_by_the_name_that_info_shows(store, undrawn, name):
    results = ra.analyze(store(*OPERATORS), layers=[name], steps=[20], **QUICK)
    assert "0" in results["spread"]["layer"].values.tolist()
    with pytest.raises(AnalysisError, match="layer 0@sketch is not in the store"):
        ra.analyze(store(*OPERATORS), layers=["0@sketch"], **QUICK)


def test_info_tells_the_gauge(store, capsys):
    assert CliRunner().invoke(app, ["info", str(store(*OPERATORS))]).output.endswith("@operator (100, perplexity 4)\n")
    said = json.loads(CliRunner().invoke(app, ["info", str(store(*OPERATORS)), "--json"]).output)
    assert said["models"][0]["layers"][0]["gauge"]["perplexity"] == 4


def test_watch_refuses_a_perplexity_that_the_record_does_not_have(store):
    given = ["watch", str(store(*OPERATORS)), "--once", "--perplexity"]
    found = {scale: CliRunner().invoke(app, [*given, scale]) for scale in ("4", "9")}
    assert {scale: run.exit_code for scale, run in found.items()} == {"4": 0, "9": 2}
    assert "recorded with, 4, found 9" in " ".join(found["9"].stderr.split()).replace("4.0", "4").replace("9.0", "9")


def test_an_audit_that_fails_is_left_out_by_name(tmp_path, undrawn):
    """NaN in one layer: without an operator there is no audit, and the analysis says which step and layer."""
    for seed, broken in enumerate((False, True)):
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
        probe_set = ra.ProbeSet.from_tensors({"input": torch.randn(40, 8, generator=torch.Generator().manual_seed(0))})
        with ra.Recorder(tmp_path / "s.zarr", f"seed{seed}", probe_set, ["0", "1"], durable=False, gauge=GAUGE,
                         record="operators") as recorder:  # fmt: skip
            recorder.audit(model, 0)
            if broken:
                model[1].weight.data.fill_(math.nan)
                with pytest.warns(AuditWarning, match="layer '1': NaN or infinite"):
                    assert not recorder.audit(model, 1)
    left_out = ra.analyze(tmp_path / "s.zarr", **QUICK).repaudit.summary["left_out"]
    assert any(line.startswith("model seed1 at step 1: not recorded: ActivationError: layer '1'") for line in left_out)


def test_activations_are_recorded_whatever_a_gauge_beside_them_says(tmp_path):
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    model[1].weight.data.fill_(math.nan)
    probe_set = ra.ProbeSet.from_tensors({"input": torch.randn(40, 8)})
    with ra.Recorder(tmp_path / "s.zarr", "m", probe_set, ["0", "1"], durable=False, gauge=GAUGE) as recorder:
        with pytest.warns(AuditWarning, match=r"no operator of layer '1' at step 0 \(NaN"):
            assert recorder.audit(model, 0)
        ((_, operators),) = recorder.trajectory
    assert list(operators) == ["0"]
    assert ra.open_store(tmp_path / "s.zarr").repaudit.steps("m") == [0]
