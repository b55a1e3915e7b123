"""One language of patterns for models and layers, in every command and function that takes their names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import repaudit as ra
from repaudit.analysis.selection import select
from repaudit.errors import AnalysisError
from repaudit.names import matching, matching_layers

LAYERS = [*(f"model.layers.{i}" for i in range(12)), "model.norm"]
COMMAND = str(Path(sys.executable).with_name("repaudit"))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("model.norm", ["model.norm"]),
        ("model.layers[*]", LAYERS[:12]),
        ("model.layers[1]", ["model.layers.1"]),
        ("model.layers[-1]", ["model.layers.11"]),
        ("model.layers[:2]", LAYERS[:2]),
        ("model.layers[-2:]", LAYERS[10:12]),
        ("model.layers[20]", []),
        ("model.layers.1?", ["model.layers.10", "model.layers.11"]),
        ("*norm", ["model.norm"]),
        ("model.layers", []),
        ("model+layers[*]", []),
        ("*", LAYERS),
    ],
)
def test_a_pattern_stands_for_these_names(pattern: str, found: list[str]) -> None:
    assert matching(pattern, LAYERS) == found


def test_a_name_that_looks_like_a_pattern_is_itself() -> None:
    assert matching("a*", ["ab", "a*"]) == ["a*"]
    assert matching("a[*]", ["a.0", "a[*]"]) == ["a[*]"]
    assert matching("*\n", ["a\n", "b"]) == ["a\n"]


def test_two_indices_are_chosen_one_after_the_other() -> None:
    names = [f"h.{i}.heads.{j}" for i in range(3) for j in range(i + 1)]
    assert matching("h[-1].heads[-1]", names) == ["h.2.heads.2"]
    assert matching("h[0].heads[*]", names) == ["h.0.heads.0"]


def test_a_path_may_lack_the_models_base_as_where_it_is_recorded() -> None:
    names = ["transformer.h.0", "transformer.h.1", "transformer.ln_f"]
    assert matching_layers("h[-1]", names) == ["transformer.h.1"]
    assert matching_layers("ln_f", names) == ["transformer.ln_f"]
    assert matching_layers("h[*]", ["h.0", *names]) == ["h.0"], "one that is there is meant"
    assert matching_layers("f", names) == [], "a part of a name is none"


def test_analyses_copies_and_commands_take_patterns(planted_store: Callable[..., Path], tmp_path: Path) -> None:
    url = planted_store(models=3, layers=("h.0", "h.1", "norm"))
    chosen = select(ra.open_store(url), ["seed*"], ["h[*]"])
    assert (chosen.models, chosen.layers) == (("seed0", "seed1", "seed2"), ("h.0", "h.1"))
    with pytest.raises(AnalysisError, match=r"layer g\[\*\] is not in the store; it has h\.0"):
        select(ra.open_store(url), None, ["g[*]"])
    run = subprocess.run(
        [COMMAND, "copy", str(url), str(tmp_path / "copy.zarr"), "--models", "*0,*2", "--layers", "h[-1]"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    copied = ra.open_store(tmp_path / "copy.zarr").repaudit
    assert (copied.models, copied.layers("seed0")) == (["seed0", "seed2"], ["h.1"])
    run = subprocess.run(
        [COMMAND, "analyze", str(url), "--out", str(tmp_path / "out"), "--models", "seed?", "--layers", "h[*]",
         "--no-figures", "--frames", "0", "--units", "0", "--json"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert list(json.loads(run.stdout)["layers"]) == ["h.0", "h.1"]
