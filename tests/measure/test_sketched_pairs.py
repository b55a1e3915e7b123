"""Spread from grouped sketches against the spread from all entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.measure.comparison import departure
from repaudit.measure.spread import spread
from repaudit.operators.grouped_sketch import GroupedSketch, LazySketch, by_groups, error_by_groups, grouped_sketch
from repaudit.operators.sketch import SIZE, sketch


def operators_of(side: int, apart: float, models: int = 3, perplexity: float = 12) -> dict[str, ra.DiffusionOperator]:
    """Operators of models that share a part of their geometry."""
    common = np.random.default_rng(0).normal(size=(side, 8))
    gauge = ra.DiffusionGauge(perplexity=perplexity)
    return {
        f"seed{m}": gauge((common + apart * np.random.default_rng(m + 1).normal(size=common.shape)).astype(np.float32))
        for m in range(models)
    }


def sketches_of(operators: dict[str, ra.DiffusionOperator], seed: int = 0) -> dict[str, GroupedSketch]:
    return {name: grouped_sketch(operator, seed=seed) for name, operator in operators.items()}


@pytest.mark.parametrize("side", [60, 300])
@pytest.mark.parametrize("apart", [0.1, 0.7, 10.0])
def test_the_spread_is_that_of_operators_within_the_stated_error(side: int, apart: float) -> None:
    operators = operators_of(side, apart)
    exact, found = spread(operators), spread(sketches_of(operators))
    assert 0 < found.sketch_error < 0.1 * exact.value
    assert abs(found.value - exact.value) < 3 * found.sketch_error
    assert found.null == pytest.approx(exact.null, rel=1e-9)  # exact, as the null of operators is
    assert found.low < exact.value < found.high
    assert found.models_error == pytest.approx(exact.models_error, abs=2 * found.sketch_error)
    assert found.samples_error > 0.7 * exact.samples_error
    assert math.isnan(found.hellinger)
    assert math.isnan(found.rows)
    assert found.largest_sample == -1
    assert exact.sketch_error == 0


def test_the_error_that_a_pair_states_is_that_of_its_estimates() -> None:
    operators = operators_of(200, 0.7, models=2)
    exact = spread(operators).value
    found = [spread(sketches_of(operators, seed)) for seed in range(150)]
    errors = np.array([one.value - exact for one in found])
    told = np.mean([one.sketch_error for one in found])
    assert abs(errors.mean()) < 4 * told / math.sqrt(len(found))
    assert 0.6 * told < errors.std() < 1.1 * told


def test_the_same_operator_has_no_spread_and_unrelated_ones_are_called_unrelated() -> None:
    one = grouped_sketch(operators_of(100, 0.5)["seed0"])
    assert spread([one, one]).value == 0
    apart = spread(sketches_of(operators_of(300, 50.0, models=2)))
    near = spread(sketches_of(operators_of(300, 0.5, models=2)))
    assert apart.low < 1 < apart.high
    assert next(iter(apart.pairs.values())).pvalue > 0.01
    assert next(iter(near.pairs.values())).pvalue < 1e-6


def test_pvalues_of_unrelated_operators_are_not_small_too_often() -> None:
    gauge, rng = ra.DiffusionGauge(perplexity=8), np.random.default_rng(0)
    sketches = [grouped_sketch(gauge(rng.normal(size=(60, 6)).astype(np.float32))) for _ in range(12)]
    found = np.array([pair.pvalue for pair in spread(sketches).pairs.values()])
    assert np.mean(found < 0.05) < 0.15
    assert found.min() > 1e-4


def test_operators_beside_sketches_are_sketched_with_the_same_hashes() -> None:
    operators = operators_of(80, 0.6)
    sketches = sketches_of(operators, seed=5)
    mixed = {**operators, "seed0": LazySketch(80, lambda: sketches["seed0"])}
    assert spread(mixed).value == spread(sketches).value
    reference = np.asarray(operators["seed0"], dtype=np.float64)
    exact, found = departure(operators, reference), departure(sketches, reference)
    assert found.value == pytest.approx(exact.value, abs=3 * found.sketch_error)


def test_a_sketch_is_its_numbers() -> None:
    made = grouped_sketch(operators_of(70, 0.5)["seed0"])
    numbers = made.numbers()
    again = GroupedSketch.of_numbers(numbers, made.facts())
    np.testing.assert_array_equal(again.numbers(), numbers)
    np.testing.assert_array_equal(again.values, made.values)
    assert again.diagnostics == made.diagnostics
    assert again.moments == made.moments
    with pytest.raises(OperatorError, match=f"found {len(numbers) - 1}"):
        GroupedSketch.of_numbers(numbers[1:], made.facts())


def test_sketches_of_different_hashes_or_samples_are_refused() -> None:
    operators = operators_of(60, 0.5, models=2)
    one, other = grouped_sketch(operators["seed0"]), grouped_sketch(operators["seed1"], seed=1)
    plain = sketch(operators["seed0"], len(one.values))
    with pytest.raises(OperatorError, match=r"seed 0 of 60 samples \(GroupedSketch\), .*\(OperatorSketch\)"):
        ra.sketch_distances([one, plain])
    with pytest.raises(OperatorError, match="one size and seed"):
        spread([one, other])
    with pytest.raises(OperatorError, match="same samples"):
        spread([one, grouped_sketch(operators_of(61, 0.5)["seed0"])])


def test_sparse_and_dense_operators_have_one_sketch() -> None:
    matrix: NDArray[np.float64] = np.asarray(operators_of(90, 0.5)["seed0"], dtype=np.float64)
    dense, sparse = grouped_sketch(matrix).numbers(), grouped_sketch(csr_array(matrix)).numbers()
    np.testing.assert_allclose(sparse, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", [2, 3, 7, 19])
def test_few_samples_have_few_groups(side: int) -> None:
    rng = np.random.default_rng(side)
    p, q = rng.dirichlet(np.ones(side), size=(2, side))
    one, other = grouped_sketch(p), grouped_sketch(q)
    apart = by_groups(one.values - other.values, one.groups)
    assert float(apart.sum()) == pytest.approx(float(((p - q) ** 2).sum()), abs=4 * error_by_groups(apart, SIZE))
    np.testing.assert_allclose(one.entries.sum(), side, rtol=1e-9)
