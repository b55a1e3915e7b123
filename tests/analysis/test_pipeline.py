"""The whole analysis on stores whose truth is planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import repaudit as ra
from repaudit.analysis.folder import analysis_folder, default_folder, nulls_for_nan, rewrite_report, scratch
from repaudit.analysis.pipeline import run
from repaudit.analysis.settings import Settings
from repaudit.errors import AnalysisError, NotAStoreError, StoreNotFoundError
from repaudit.store.format.schema import violations


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_planted_convergence_is_found_and_everything_is_written(planted_store, tmp_path):
    url = planted_store()
    before = files_of(url)
    results = ra.analyze(url)
    out = tmp_path / "store.analysis"
    assert files_of(url) == before, "analysis wrote into the store"
    assert (out / "report.html").stat().st_size > 10_000
    assert {file.name for file in (out / "figures").iterdir()} == {"spread.png", "settling.png", "together.png"}
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "scratch left behind"

    summary = json.loads((out / "summary.json").read_text())
    assert violations("summary", summary) == []
    assert set(summary["layers"]) == {"first", "second"}
    for layer in summary["layers"].values():
        assert layer["verdict"] == "converging"
        assert layer["start"] > 0.8
        assert layer["end"] < 0.05
        assert layer["phases"][-1]["direction"] in ("falls", "flat")
    assert summary["fingerprint"] == ra.open_store(url).attrs["repaudit"]["fingerprint"]
    assert summary["left_out"] == []
    assert {"repaudit", "torch", "zarr", "xarray"} <= set(summary["versions"])

    with xr.open_datatree(out / "results.zarr", engine="zarr") as stored:
        xr.testing.assert_allclose(stored["spread"].to_dataset(), results["spread"].to_dataset())
        assert stored["spread"]["spread"].dims == ("layer", "scale", "step")
        assert set(stored["spread"].data_vars) >= {"spread", "spread_raw", "low", "high", "hellinger"}
        assert stored["trajectories"]["trajectory"].dims == ("layer", "scale", "model", "step", "component")
        assert stored["trajectories"]["stress"].dims == ("layer", "scale")
        assert stored["merged"]["embedding"].dims == ("layer", "scale", "sample", "component")
        assert stored["merged"]["label"].dims == ("sample",)
        assert np.isfinite(stored["trajectories"]["trajectory"]).all()
        assert (stored["diagnostics"]["components"] >= 1).all()


@pytest.mark.usefixtures("undrawn")
def test_spread_is_the_formula_on_the_stored_activations(planted_store):
    url = planted_store(layers=("only",))
    results = ra.analyze(url)
    tree = ra.open_store(url)
    gauge = ra.DiffusionGauge()
    P = [gauge(tree[f"models/seed{m}"]["only"].sel(step=4).values).to_numpy().astype(float) for m in range(3)]
    ratios = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        p, q, n = P[i], P[j], len(P[i])
        trace_p, trace_q = np.trace(p), np.trace(q)
        inner = trace_p * trace_q / n + (n - trace_p) * (n - trace_q) / (n * (n - 1))
        null = (p**2).sum() + (q**2).sum() - 2 * inner
        ratios.append(((p - q) ** 2).sum() / null)
    np.testing.assert_allclose(
        results["spread"]["spread"].sel(layer="only", scale=15, step=4), np.mean(ratios), rtol=1e-5
    )


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_results(planted_store, tmp_path):
    url = planted_store(layers=("only",))
    first, second = (ra.analyze(url, tmp_path / name, seed=3) for name in ("a", "b"))
    for group in ("spread", "trajectories", "merged", "diagnostics"):
        xr.testing.assert_identical(first[group].to_dataset(), second[group].to_dataset())


def test_one_model_gives_a_reduced_result(planted_store, tmp_path):
    results = ra.analyze(planted_store(models=1), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert np.isnan(results["spread"]["spread"]).all()
    assert np.isfinite(results["trajectories"]["trajectory"]).all()
    assert "One model" in summary["headline"]
    assert summary["layers"]["first"]["verdict"] == "undecided"
    assert summary["layers"]["first"]["end"] is None
    assert (tmp_path / "out" / "report.html").exists()


def test_one_model_one_step(planted_store, tmp_path):
    ra.analyze(planted_store(models=1, steps=(7,)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == [7]


@pytest.mark.usefixtures("undrawn")
def test_selection_keeps_what_was_asked_for(planted_store, tmp_path):
    url = planted_store()
    results = ra.analyze(url, tmp_path / "out", models=["seed2", "seed0"], layers=["second"], steps=[0, 16])
    assert list(results["trajectories"]["model"].values) == ["seed0", "seed2"]
    assert list(results["spread"]["layer"].values) == ["second"]
    assert list(results["spread"]["step"].values) == [0, 16]


@pytest.mark.parametrize(
    ("selection", "named"),
    [
        ({"models": ["seed9"]}, "seed9"),
        ({"layers": ["third"]}, "third"),
        ({"steps": [5]}, "5"),
        ({"merge": "sum"}, "sum"),
    ],
)
def test_a_selection_that_is_not_there_names_itself(planted_store, tmp_path, selection, named):
    with pytest.raises(ValueError, match=named):
        ra.analyze(planted_store(), tmp_path / "out", **selection)


def test_models_that_share_few_steps_are_reported_not_aligned_by_index(planted_store, tmp_path, probe_set):
    url = planted_store(models=2, steps=(0, 2, 4), layers=("only",))
    tree = ra.open_store(url)
    values = tree["models/seed0"]["only"].values
    with ra.TrajectoryWriter(
        url, model_name="late", probe_set=probe_set, layers={"only": (values.shape[1:], "float32")}
    ) as writer:
        writer.append(2, {"only": values[1]})
        writer.append(3, {"only": values[2]})
    results = ra.analyze(url, tmp_path / "out")
    assert list(results["spread"]["step"].values) == [0, 2, 3, 4]
    assert results["spread"]["n_models"].sel(layer="only", scale=15).values.tolist() == [2, 3, 1, 2]
    assert np.isnan(results["spread"]["spread"].sel(step=3)).all()
    left_out = json.loads((tmp_path / "out" / "summary.json").read_text())["left_out"]
    assert any("late" in line and "0, 4" in line for line in left_out)


def test_activations_that_are_not_finite_are_counted(planted_store, tmp_path, probe_set):
    url = planted_store(models=2, steps=(0, 1), layers=("only",))
    broken = np.ones((48, 12), dtype=np.float32)
    broken[5, 3] = np.nan
    with ra.TrajectoryWriter(
        url, model_name="broken", probe_set=probe_set, layers={"only": (broken.shape, "float32")}
    ) as writer:
        writer.append(0, {"only": np.random.default_rng(5).normal(size=broken.shape).astype(np.float32)})
        writer.append(1, {"only": broken})
    results = ra.analyze(url, tmp_path / "out")
    assert results["diagnostics"]["failed"].sel(layer="only", scale=15, model="broken").values.tolist() == [0, 1]
    assert results["spread"]["n_models"].sel(layer="only", scale=15).values.tolist() == [3, 2]
    left_out = json.loads((tmp_path / "out" / "summary.json").read_text())["left_out"]
    assert any("broken" in line and "step 1" in line for line in left_out)


def test_places_that_are_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        ra.analyze(tmp_path / "nowhere.zarr")
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "foreign.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(NotAStoreError, match=r"foreign\.zarr"):
        ra.analyze(tmp_path / "foreign.zarr")
    assert not (tmp_path / "foreign.analysis").exists()


def test_a_budget_too_small_for_one_operator_is_refused(planted_store, tmp_path):
    with pytest.raises(AnalysisError, match="memory"):
        ra.analyze(planted_store(), tmp_path / "out", memory="10kB")


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("runs/store.zarr", "runs/store.analysis"),
        ("runs/store.zarr/", "runs/store.analysis"),
        ("runs/plain", "runs/plain.analysis"),
        ("s3://bucket/deep/store.zarr", "store.analysis"),
        ("file:///data/store.zarr", "/data/store.analysis"),
    ],
)
def test_default_folder(url, folder):
    assert default_folder(url) == Path(folder)


def test_default_folder_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "store.zarr" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "store.zarr" / "deep")
    assert default_folder("..") == tmp_path / "store.analysis"
    monkeypatch.chdir(tmp_path / "store.zarr")
    assert default_folder(".") == default_folder("./") == tmp_path / "store.analysis"


def test_a_wholly_bad_layer_is_left_out_and_the_rest_is_written(planted_store, tmp_path, probe_set):
    url = tmp_path / "bad.zarr"
    good, bad = np.random.default_rng(0).normal(size=(48, 4)).astype("float32"), np.full((48, 4), np.nan, "float32")
    for model in ("a", "b"):
        layers = {"good": ((48, 4), "float32"), "bad": ((48, 4), "float32")}
        with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=layers, durable=False) as writer:
            writer.append(0, {"good": good, "bad": bad})
            writer.append(1, {"good": good, "bad": bad})
    results = ra.analyze(url, tmp_path / "out")
    assert list(results["spread"]["layer"].values) == ["good"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum("layer bad" in line for line in summary["left_out"]) == 4
    assert "identical" in summary["layers"]["good"]["sentence"]
    with pytest.raises(AnalysisError, match="bad"):
        ra.analyze(url, tmp_path / "none", layers="bad")
    assert not (tmp_path / "none").exists()


def test_collapsed_models_are_named_as_the_reason(tmp_path, probe_set):
    url = tmp_path / "flat.zarr"
    for model in ("a", "b"):
        with ra.TrajectoryWriter(
            url, model_name=model, probe_set=probe_set, layers={"x": ((48, 4), "float32")}, durable=False
        ) as writer:
            writer.append(0, {"x": np.ones((48, 4), "float32")})
            writer.append(5, {"x": np.ones((48, 4), "float32")})
    ra.analyze(url, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "Too few" not in summary["layers"]["x"]["sentence"]
    assert [line for line in summary["left_out"] if "step 5" in line and "collapsed" in line]


def test_nothing_is_written_into_the_store_or_over_foreign_files(planted_store, tmp_path):
    url = planted_store(models=1, layers=("only",), steps=(0, 1))
    for out in (url, url / "inside"):
        with pytest.raises(AnalysisError, match="is in the store"):
            ra.analyze(url, out)
    mine = tmp_path / "mine"
    (mine / "figures").mkdir(parents=True)
    (mine / "figures" / "thesis.png").write_bytes(b"mine")
    ra.analyze(url, mine)
    assert (mine / "figures" / "thesis.png").read_bytes() == b"mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    with pytest.raises(AnalysisError, match=r"report\.html"):
        ra.analyze(url, tmp_path / "other")


@pytest.mark.usefixtures("undrawn")
def test_scratch_of_a_dead_process_is_swept(planted_store, tmp_path):
    url = planted_store(models=1, layers=("only",), steps=(0, 1))
    with scratch(tmp_path) as own:
        host, _, start, moment, _ = own.name.removeprefix(".repaudit-").split("-")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / "out" / f".repaudit-{host}-{dead.pid}-{start}1-{moment}-x"
    left.mkdir(parents=True)
    ra.analyze(url, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_scratch_of_a_process_that_another_namespace_cannot_see_stays(tmp_path):
    tmp_path.joinpath(f".repaudit-{'0' * 12}-1-1-1-x").mkdir()
    with scratch(tmp_path) as mine, analysis_folder(tmp_path, [tmp_path / "store.zarr"]):
        assert mine.is_dir()
        assert len(list(tmp_path.iterdir())) == 2


def test_gromov_is_refused_because_its_points_are_not_the_samples(planted_store, tmp_path):
    with pytest.raises(AnalysisError, match="gromov"):
        ra.analyze(planted_store(models=2, layers=("only",), steps=(0, 1)), tmp_path / "out", merge="gromov")


def test_the_answer_is_there_before_the_pictures(planted_store, tmp_path, undrawn):
    out, seen = tmp_path / "out", []

    def answered(summary):
        written = json.loads((out / "summary.json").read_text())
        seen.append((summary["status"], written["status"], (out / "results.zarr").exists(), reported[-1][0]))
        assert (out / "report.html").exists()
        assert written["layers"] == json.loads(json.dumps(nulls_for_nan(summary["layers"])))

    reported: list[tuple[str, int, int]] = []
    url = planted_store()
    results = run(url, out, Settings(), lambda *news: reported.append(news), answered)
    assert seen == [("partial", "partial", False, "results")]
    last = json.loads((out / "summary.json").read_text())
    assert last["status"] == "complete" == json.loads(results.attrs["summary"])["status"]
    later = [what for what, done, total in reported if what == "results" and done < total]
    assert later, "nothing was left to compute after the answer"
    run(url, out, Settings(), answered=lambda summary: seen.append(summary["status"]))
    assert seen[-1] == "partial"
    assert json.loads((out / "summary.json").read_text())["status"] == "complete"


def test_the_first_page_says_that_there_is_more_to_come(planted_store, tmp_path):
    out, note = tmp_path / "out", "an analysis that has not ended"

    def answered(_summary):
        assert note in (out / "report.html").read_text(encoding="utf-8")
        with pytest.raises(AnalysisError, match="whose analysis has not ended"):
            rewrite_report(out)

    run(planted_store(layers=("only",)), out, Settings(frames=0, units=0, figures="none"), answered=answered)
    assert note not in (out / "report.html").read_text(encoding="utf-8")


def test_an_analysis_that_ended_after_its_answer_may_be_repeated(planted_store, tmp_path, undrawn):
    def stop(_summary):
        raise KeyboardInterrupt

    url = planted_store()
    with pytest.raises(KeyboardInterrupt):
        run(url, tmp_path / "out", Settings(), answered=stop)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "partial"
    run(url, tmp_path / "out", Settings())
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(("figures", "expected"), [("none", 0), ("main", 3), ("all", 4)])
def test_figures_are_written_as_asked(planted_store, tmp_path, figures, expected):
    ra.analyze(planted_store(), tmp_path / "out", figures=figures, frames=0, units=0)
    made = len(list((tmp_path / "out" / "figures").glob("*.png")))
    assert made == expected if expected < 4 else made >= expected
