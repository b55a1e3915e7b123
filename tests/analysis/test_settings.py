"""Settings from keywords, flags and YAML: what cannot be is refused by name, all of it at once."""

from __future__ import annotations

import pytest

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
        ({"gauge": {"kn": 3}}, "gauge.kn: unknown setting of the gauge; expected one of kernel, knn"),
        ({"merge": "sum"}, "merge.*frobenius.*'sum'"),
        ({"merge": "gromov"}, "merge.*'gromov'"),
        ({"memory": "lots"}, "memory: expected a memory budget such as 2GB, found 'lots'"),
        ({"gauge": {"knn": -3}}, "gauge.*knn"),
        ({"gauge": {"kernel": "box"}}, "gauge.kernel"),
        ({"gauge": {"neighbours": 3}}, "gauge.*neighbours"),
        ({"similarity": ["ckaa"]}, "similarity.*'ckaa'"),
        ({"workers": 0}, "workers.*1"),
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


def test_no_gauge_is_the_default_one():
    assert Settings.of({"gauge": None}).gauge == Settings().gauge


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AnalysisError, match=r"none\.yaml"):
        read_config(tmp_path / "none.yaml")
