"""Groups, references, a model's own end, and the noise floor, on operators whose relations are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repaudit import DiffusionGauge
from repaudit.errors import ActivationError, OperatorError
from repaudit.measure.comparison import approach, departure, feature_halves, group_spread, spread_between
from repaudit.measure.spread import spread

GAUGE = DiffusionGauge(knn=15)


def representation(common: np.ndarray, shared: float, rng: np.random.Generator) -> np.ndarray:
    return math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.standard_normal(common.shape)


def test_two_recipes_agree_within_and_not_between() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.standard_normal((2, 120, 10))
    operators = {f"s{k}": GAUGE(representation(small, 0.95, rng)) for k in range(3)}
    operators |= {f"l{k}": GAUGE(representation(large, 0.95, rng)) for k in range(2)}
    found = group_spread(operators, {name: name[0] for name in operators})
    assert found.within["s"].value < 0.3
    assert found.within["l"].n_models == 2
    assert found.between["s", "l"].value == pytest.approx(1, abs=0.03)
    assert found.between["s", "l"].low < 1 < found.between["s", "l"].high
    assert found.within["s"] == spread({name: operators[name] for name in ("s0", "s1", "s2")})


def test_between_is_the_mean_over_the_pairs_across() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (GAUGE(rng.standard_normal((40, 5))) for _ in range(3))
    expected = np.mean([spread([a, c]).value, spread([b, c]).value])
    found = spread_between({"a": a, "b": b}, {"c": c})
    assert found.value == pytest.approx(expected)
    assert math.isnan(found.models_error)  # without c no pair is left


def test_departure_tells_inherited_from_learned_geometry() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((120, 10))
    untrained = {f"seed{k}": GAUGE(representation(inputs, 0.98, rng)) for k in range(3)}
    learned = rng.standard_normal((120, 10))
    trained = {f"seed{k}": GAUGE(representation(learned, 0.98, rng)) for k in range(3)}
    geometry = GAUGE(inputs)
    assert departure(untrained, geometry).value < 0.2
    assert departure(trained, geometry).value == pytest.approx(1, abs=0.03)
    assert departure(trained, untrained).value == pytest.approx(1, abs=0.03)
    assert departure(trained, trained).value == 0
    assert spread(trained).value < 0.2  # agreement, and none of it inherited


def test_the_jackknife_of_a_departure_is_that_of_a_plain_mean() -> None:
    rng = np.random.default_rng(3)
    operators = {str(k): GAUGE(rng.standard_normal((40, 5))) for k in range(4)}
    reference = GAUGE(rng.standard_normal((40, 5)))
    alone = [spread([operator, reference]).value for operator in operators.values()]
    assert departure(operators, reference).models_error == pytest.approx(np.std(alone, ddof=1) / 2)


def test_one_model_approaches_its_own_end() -> None:
    rng = np.random.default_rng(4)
    start, end = rng.standard_normal((2, 100, 8))
    weights = np.linspace(0, 1, 6)
    found = approach([GAUGE((1 - w) * start + w * end) for w in weights])
    values = [f.value for f in found]
    assert values[0] == pytest.approx(1, abs=0.1)
    assert values[-1] == 0
    assert values[1:] == sorted(values[1:], reverse=True)


def test_the_feature_halves_is_low_where_many_features_carry_the_structure() -> None:
    rng = np.random.default_rng(5)
    structure = rng.standard_normal((100, 4))
    redundant = structure @ rng.standard_normal((4, 400))
    assert feature_halves(redundant, GAUGE) < 0.02
    assert feature_halves(rng.standard_normal((100, 6)), GAUGE) == pytest.approx(1, abs=0.05)
    assert feature_halves(redundant, GAUGE, seed=1) == feature_halves(redundant, GAUGE, seed=1)


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(6)
    a, b = GAUGE(rng.standard_normal((30, 5))), GAUGE(rng.standard_normal((31, 5)))
    with pytest.raises(OperatorError, match=r"none for \['b'\]"):
        group_spread({"a": a, "b": a}, {"a": "x"})
    with pytest.raises(OperatorError, match=r"reference for every model, found none for \['b'\]"):
        departure({"a": a, "b": a}, {"a": a})
    with pytest.raises(OperatorError, match=r"sizes \[30, 31\]"):
        departure({"a": a}, b)
    with pytest.raises(OperatorError, match="at least one"):
        approach([])
    with pytest.raises(ActivationError, match=r"\(30, 1\)"):
        feature_halves(rng.standard_normal((30, 1)), GAUGE)
