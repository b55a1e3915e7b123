"""Verdicts, calibration and intervals on replicas whose truth was built in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from repaudit.measure.band import band
from repaudit.measure.phases import verdict
from repaudit.measure.spread import spread

SPEC = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
assert SPEC is not None
assert SPEC.loader is not None
planted = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(planted)

WORDS = {"converge": "converging", "diverge": "diverging", "unrelated": "unrelated"}


@pytest.mark.parametrize("kind", WORDS)
def test_the_verdict_is_the_planted_truth_for_every_seed(kind: str) -> None:
    values = []
    for seed in range(20):
        found = [spread(operators) for operators in planted.run(kind, seed, steps=5)]
        curve = ([getattr(s, name) for s in found] for name in ("value", "low", "high"))
        margins = band(np.array([s.halves for s in found]), np.array([s.left_out for s in found])).change
        assert verdict(range(5), *curve, margins) == WORDS[kind], f"seed {seed}"
        values += [s.value for s in found]
        if kind == "unrelated":
            assert found[-1].raw > 3 * found[0].raw, "operators sharpen, so the raw spread misleads"
    if kind == "unrelated":
        np.testing.assert_allclose(values, 1, atol=0.02)


@pytest.mark.parametrize("models", [3, 5])
def test_intervals_of_unrelated_replicas_cover_one(models: int) -> None:
    found = [spread(planted.run("unrelated", seed, models=models, steps=1)[0]) for seed in range(30)]
    assert np.mean([s.low <= 1 <= s.high for s in found]) >= 0.9
