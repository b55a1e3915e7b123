"""Settings from keywords, flags and YAML: what cannot be is refused by name, all of it at once."""

from __future__ import annotations

import numpy as np
import pytest

import repaudit as ra
from repaudit.analysis.settings import Settings, read_config
from repaudit.errors import AnalysisError


def test_a_file_holds_any_setting(tmp_path):
    path = tmp_path / "analysis.yaml"
    path.write_text(
        "layers: [model.norm]\nsteps: [0, 10]\ngauge: {knn: 10, alpha: 0.5}\ngroups: {small: ['s*', t1]}\nseed: 3\n"
    )
    settings = Settings.of(read_config(path))
    assert settings.layers == ("model.norm",)
    assert settings.steps == (0, 10)
    assert (settings.gauge.knn, settings.gauge.alpha) == (10, 0.5)
    assert settings.group_of(("s1", "s2", "t1")) == {"s1": "small", "s2": "small", "t1": "small"}


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"layer": ["x"]}, "layer: unknown setting; expected one of models, layers"),
        ({"scale": [15]}, r"scale: unknown setting; .*did you mean scales\?"),
        ({"gauge": {"kn": 3}}, "gauge.kn: unknown setting of the gauge; expected one of kernel, knn"),
        ({"merge": "sum"}, "merge.*frobenius.*'sum'"),
        ({"merge": "gromov"}, "merge.*'gromov'"),
        ({"memory": "1e300GB"}, "memory: expected a memory budget such as 2GB, found '1e300GB'"),
        ({"memory": "lots"}, "memory: expected a memory budget such as 2GB, found 'lots'"),
        ({"gauge": {"knn": -3}}, "gauge.*knn"),
        ({"gauge": {"kernel": "box"}}, "gauge.kernel"),
        ({"gauge": {"neighbours": 3}}, "gauge.*neighbours"),
        ({"similarity": ["ckaa"]}, "similarity.*'ckaa'"),
        ({"workers": 0}, "^workers: expected a number greater than or equal to 1, found 0$"),
        ({"steps": [0, 1.5]}, "^steps: expected a whole number, found 1.5$"),
        ({"gauge": {"knn": "many"}}, "^gauge.knn: expected a whole number, found 'many'$"),
        ({"cache": "perhaps"}, "^cache: expected a boolean, found 'perhaps'$"),
        ({"seed": "x", "frames": -1}, "frames.*; .*seed|seed.*; .*frames"),
        ({"steps": ["soon"]}, "steps.*'soon'"),
        ({"device": "nonsense"}, "device"),
        ({"device": "meta"}, "device"),
        ({"memory": "-2GB"}, "memory"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_an_invalid_setting_is_named(choices, said):
    with pytest.raises(AnalysisError, match=said):
        Settings.of(choices)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "42"])
def test_a_file_that_is_none_is_named(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(AnalysisError, match=r"bad\.yaml"):
        read_config(path)


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_numbers_of_numpy_are_numbers(kind):
    assert Settings.of({"steps": np.int64(3), "scales": kind(10)}).scales == (10,)
    assert Settings.of({"similarity_steps": np.int32(3)}).similarity_steps == (3,)


@pytest.mark.parametrize(("steps", "found"), [([], "none"), ([0, 16], "16")])
def test_steps_for_the_similarity_are_among_those_analysed(planted_store, tmp_path, steps, found):
    url, out = planted_store(models=2, layers=("only",)), tmp_path / "out"
    with pytest.raises(AnalysisError, match=rf"similarity_steps.*\(0, 1\), found {found}"):
        ra.analyze(url, out, steps=[0, 1], similarity_steps=steps)
    assert not (out / "results.zarr").exists()


def test_scales_beside_another_perplexity_are_refused(planted_store, tmp_path):
    url = planted_store(models=2, layers=("only",), steps=(0,))
    with pytest.raises(AnalysisError, match=r"scales.*perplexity=10"):
        ra.analyze(url, tmp_path / "out", gauge={"perplexity": 10}, scales=[5, 12])


@pytest.mark.parametrize("models", [1, 2])
def test_a_budget_too_small_is_refused_for_any_number_of_models(planted_store, tmp_path, models):
    with pytest.raises(AnalysisError, match="memory budget of about"):
        ra.analyze(planted_store(models=models, layers=("only",), steps=(0,)), tmp_path / "out", memory="100kB")


def test_no_gauge_is_the_default_one():
    assert Settings.of({"gauge": None}).gauge == Settings().gauge


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AnalysisError, match=r"none\.yaml"):
        read_config(tmp_path / "none.yaml")
