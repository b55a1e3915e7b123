"""Models of several stores, and layers that models call differently, in one analysis."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

import repaudit as ra
from repaudit.analysis.layer_names import LayerNames
from repaudit.cli import app
from repaudit.errors import AnalysisError
from repaudit.store.format.sample_set import text_hash
from repaudit.store.read.stored_probe_set import StoredProbeSet

SAMPLES, BARE = 40, {"frames": 0, "units": 0, "similarity": ("mutual_knn",), "scales": (8,)}
POINTS = np.random.default_rng(0).normal(size=(SAMPLES, 6))
IDS = [f"mail {i}" for i in range(SAMPLES)]


def samples(chosen=range(SAMPLES), text="text", tokenizer="words"):
    chosen = list(chosen)
    texts = [f"{text} {i}" for i in chosen]
    ids = np.random.default_rng(len(tokenizer)).integers(1, 50, (SAMPLES, len(tokenizer)))[chosen]
    return StoredProbeSet(
        text_hash(f"{chosen} {tokenizer}"),
        [IDS[i] for i in chosen],
        {"input_ids": ids},
        labels=[str(i % 2) for i in chosen],
        texts=texts,
        text_hashes=[text_hash(one) for one in texts],
        encoding={"tokenizer": tokenizer, "max_length": 8, "truncated": 0},
    )


def activations(model: str, layer: str) -> np.ndarray:
    rng = np.random.default_rng([*f"{model} {layer}".encode()])
    return (POINTS @ rng.normal(size=(6, 9)) + 0.3 * rng.normal(size=(SAMPLES, 9))).astype(np.float32)


def record(url, model, layers=("last",), steps=(0,), chosen=range(SAMPLES), **more):
    probe_set = samples(chosen, **more)
    shapes = dict.fromkeys(layers, ((len(probe_set), 9), "float32"))
    with ra.TrajectoryWriter(url, model_name=model, probe_set=probe_set, layers=shapes) as writer:
        for step in steps:
            writer.append(step, {layer: activations(model, layer)[list(chosen)] for layer in layers})
    return url


def distance(one, other, rows=slice(None)):
    gauge = ra.DiffusionGauge(perplexity=8)
    return ra.spread({"a": gauge(one[rows]), "b": gauge(other[rows])}).value


def test_models_of_two_stores_are_compared_on_the_samples_they_share(tmp_path):
    a = record(tmp_path / "a.zarr", "bert")
    b = record(tmp_path / "b.zarr", "llama", chosen=range(SAMPLES - 1, 9, -1), tokenizer="bytes!")
    results = ra.analyze([a, b], tmp_path / "out", **BARE)
    summary = results.repaudit.summary
    assert summary["models"] == ["bert", "llama"]
    assert any("10 of its 40 samples" in line and "a.zarr" in line for line in summary["left_out"])
    expected = distance(activations("bert", "last"), activations("llama", "last"), slice(10, None))
    found = float(results["pairs"]["distance"].isel(step=0, scale=0).sel(layer="last", model="bert", other="llama"))
    assert found**2 == pytest.approx(expected, abs=1e-5)
    assert results["merged/operator"]["sample"].values.tolist() == IDS[10:]
    one_store = record(tmp_path / "c.zarr", "bert", chosen=range(10, SAMPLES))
    record(one_store, "llama", chosen=range(10, SAMPLES), tokenizer="bytes!")
    same = ra.analyze(one_store, tmp_path / "same", **BARE)
    np.testing.assert_allclose(same["pairs"]["distance"], results["pairs"]["distance"], atol=1e-6)


def test_models_of_one_name_are_told_apart_by_their_stores(tmp_path):
    a, b = record(tmp_path / "a.zarr", "seed0"), record(tmp_path / "b.zarr", "seed0", steps=(0, 5))
    results = ra.analyze([a, b], tmp_path / "out", **BARE)
    assert results.repaudit.summary["models"] == ["a:seed0", "b:seed0"]
    both = ra.analyze([a, b], tmp_path / "both", models=["seed*"], **BARE)
    assert both.repaudit.summary["models"] == ["a:seed0", "b:seed0"]
    again = ra.analyze([a, b], tmp_path / "out", models=["b:seed0"], **BARE)
    assert again.repaudit.summary["steps"] == [0, 5]


def test_stores_of_other_samples_are_refused(tmp_path):
    a = record(tmp_path / "a.zarr", "one")
    with pytest.raises(AnalysisError, match=r"sample 'mail 0' is not the same.*text differs"):
        ra.analyze([a, record(tmp_path / "b.zarr", "two", text="other")], tmp_path / "out")
    alone = record(tmp_path / "c.zarr", "three", chosen=[0, 1])
    with pytest.raises(AnalysisError, match="at least 3 samples"):
        ra.analyze([a, alone], tmp_path / "out")
    with pytest.raises(AnalysisError, match="out: expected a folder"):
        ra.analyze([a, alone])
    with pytest.raises(AnalysisError, match="each once"):
        ra.analyze([a, a], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_under_two_names_is_one(tmp_path):
    a = record(tmp_path / "a.zarr", "one")
    (tmp_path / "link.zarr").symlink_to(a)
    with pytest.raises(AnalysisError, match="each once"):
        ra.analyze([a, tmp_path / "link.zarr"], tmp_path / "out")


def test_the_inputs_are_those_of_the_models_analysed_each_once(tmp_path):
    url = record(tmp_path / "s.zarr", "a")
    record(url, "b")
    alone = ra.analyze(url, tmp_path / "alone", **BARE)
    record(url, "llama", tokenizer="bytes!")
    chosen = ra.analyze(url, tmp_path / "chosen", models=["a", "b"], **BARE)
    np.testing.assert_array_equal(chosen["comparison"]["from_inputs"], alone["comparison"]["from_inputs"])
    every = ra.analyze(url, tmp_path / "every", **BARE)
    assert float(every["comparison"]["from_inputs"].squeeze()) != float(alone["comparison"]["from_inputs"].squeeze())


def test_names_that_are_patterns_or_hold_a_slash_are_names_first(tmp_path):
    url = record(tmp_path / "s.zarr", "run[1]", ["x", "y/z"])
    record(url, "run[1]/y", ["z", "x"])
    layers = {"last": {"run*": "x", "run[1]": "y/z"}}
    assert LayerNames(layers).of_model("run[1]", ["x", "y/z"]) == {"last": "y/z"}
    LayerNames({"last": {"run[1]": "x"}}).refuse_unused({"run[1]": 0})
    results = ra.analyze(url, tmp_path / "out", **BARE)
    assert results["similarity"].sizes["representation"] == 4


def test_one_name_for_a_layer_of_each_model(tmp_path):
    url = record(tmp_path / "s.zarr", "bert", ["encoder.layer.4", "encoder.layer.5"])
    record(url, "smol", ["model.layers.27", "model.layers.28", "model.layers.29"], tokenizer="bytes!")
    layers = {"penultimate": {"bert": "encoder.layer.4", "smo*": "model.layers.28"}}
    results = ra.analyze(url, tmp_path / "out", layers=layers, **BARE)
    assert results["spread"]["layer"].values.tolist() == ["penultimate"]
    expected = distance(activations("bert", "encoder.layer.4"), activations("smol", "model.layers.28"))
    assert float(results["spread"]["spread"].squeeze()) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(AnalysisError, match=r"penultimate of model smol.*'model.layers.3'.*it has model.layers.27"):
        ra.analyze(url, tmp_path / "out", layers={"penultimate": {"smol": "model.layers.3"}})
    with pytest.raises(AnalysisError, match="names model 'gpt'"):
        ra.analyze(url, tmp_path / "out", layers={"penultimate": {"gpt": "h.0"}})


def test_layers_are_paired_by_relative_depth(tmp_path):
    shallow, deep = [f"encoder.layer.{i}" for i in range(3)], [f"h.{i}" for i in range(7)]
    url = record(tmp_path / "s.zarr", "shallow", shallow)
    record(url, "deep", deep, tokenizer="bytes!")
    results = ra.analyze(url, tmp_path / "out", match="depth", **BARE)
    assert results["spread"]["layer"].values.tolist() == ["depth 0", "depth 0.5", "depth 1"]
    assert any(
        line == f"depth of deep: in the order of {', '.join(deep)}" for line in results.repaudit.summary["left_out"]
    )
    assert "depth 0.5 is h.3 of deep, encoder.layer.1 of shallow" in results.repaudit.summary["left_out"]
    for name, one, other in zip(results["spread"]["layer"].values, shallow, ("h.0", "h.3", "h.6"), strict=True):
        expected = distance(activations("shallow", one), activations("deep", other))
        assert float(results["spread"]["spread"].sel(layer=name).squeeze()) == pytest.approx(expected, abs=1e-5)


def test_nothing_compared_is_an_answer_of_its_own(tmp_path):
    url = record(tmp_path / "s.zarr", "bert", ["encoder.layer.4"])
    record(url, "smol", ["model.layers.28"], tokenizer="bytes!")
    given = ["analyze", str(url), "--frames", "0", "--units", "0", "--scales", "8"]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 1, run.output
    assert run.stdout.startswith("compared with no other model: encoder.layer.4 (bert), model.layers.28 (smol)")
    assert f"repaudit analyze {url} --match depth" in run.stdout
    line = next(line for line in run.stdout.splitlines() if "printf" in line)
    subprocess.run(["sh", "-c", line], check=True, cwd=tmp_path)
    for more in (["--match", "depth"], ["--config", str(tmp_path / "layers.yaml")]):
        again = CliRunner().invoke(app, [*given, *more])
        assert again.exit_code == 0, again.output
        assert "compared with no other" not in again.stdout


def test_the_command_takes_several_stores(tmp_path):
    a, b = record(tmp_path / "a.zarr", "one"), record(tmp_path / "b.zarr", "two")
    without = CliRunner().invoke(app, ["analyze", str(a), str(b)])
    assert without.exit_code == 2
    assert "--out" in without.output
    given = ["analyze", str(a), str(b), "--out", str(tmp_path / "out"), "--frames", "0", "--units", "0"]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 0, run.output
    assert (tmp_path / "out/report.html").exists()
