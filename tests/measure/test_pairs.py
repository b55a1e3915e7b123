"""Two operators side by side: sparse as dense, rows of equal weight, and p-values against real permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.measure.comparison import holm
from repaudit.measure.pairs import compare, sampling_error
from repaudit.measure.relabelling import inner_moments
from repaudit.measure.tally import Halves, Tally
from repaudit.operators.patterns import pattern_sums


def compared(p, q, seed=0):
    halves = Halves.of(len(np.asarray(p)), seed)
    return compare(Tally.of(p, halves), Tally.of(q, halves), halves)


def cloud(seed, n=400, noise=0.7):
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).normal(size=(n, 6))
    return base + noise * rng.normal(size=base.shape)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
@pytest.mark.parametrize("empty_diagonal", [False, True])
def test_moments_are_those_of_all_permutations(n, empty_diagonal):
    a, b = np.random.default_rng(n).random((2, n, n)) - 0.3
    if empty_diagonal:
        np.fill_diagonal(a, 0)
    values = [(a * b[np.ix_(p, p)]).sum() for p in permutations(range(n))]
    found = inner_moments(pattern_sums(a), pattern_sums(csr_array(b)), n)
    np.testing.assert_allclose(found, [np.mean(values), np.var(values)], rtol=1e-9, atol=1e-12)
    for less in (0.1, 1 / n):
        centred = pattern_sums(csr_array(a), less)
        assert centred == pytest.approx(pattern_sums(a - less), rel=1e-9, abs=1e-12)
        assert pattern_sums(a, less) == pytest.approx(centred, rel=1e-9, abs=1e-12)


def test_p_values_of_unrelated_operators_are_those_of_permutations():
    rng = np.random.default_rng(0)
    p, q = (ra.DiffusionGauge()(rng.normal(size=(120, 5))).to_numpy().astype(float) for _ in range(2))
    drawn = [(p * q[np.ix_(order, order)]).sum() for order in (rng.permutation(120) for _ in range(999))]
    share = (1 + sum(value >= (p * q).sum() for value in drawn)) / 1000
    assert compared(p, q).pvalue == pytest.approx(share, abs=0.04)
    related = ra.DiffusionGauge()(cloud(1, 120)).to_numpy(), ra.DiffusionGauge()(cloud(2, 120)).to_numpy()
    assert compared(*related).pvalue < 1e-6


@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_p_values_hold_for_nearly_uniform_operators(size):
    rng = np.random.default_rng(0)
    n = 60

    def uniform_but(structure):
        matrix = 1 / n + size / n * (structure - structure.mean(1, keepdims=True))
        return matrix / matrix.sum(1, keepdims=True)

    shared = rng.normal(size=(n, n))
    related = [uniform_but(shared + 4 * rng.normal(size=(n, n))) for _ in range(2)]
    p, q = (one - 1 / n for one in related)
    drawn = [(p * q[np.ix_(order, order)]).sum() for order in (rng.permutation(n) for _ in range(999))]
    z = ((p * q).sum() - np.mean(drawn)) / np.std(drawn)
    assert compared(*related).pvalue == pytest.approx(stats.norm.sf(z), rel=0.5)
    assert np.isnan(compared(np.full((n, n), 1 / n), related[0]).pvalue)


def test_sparse_operators_give_what_dense_ones_do():
    p, q = ra.DiffusionGauge()(cloud(1)), ra.DiffusionGauge()(cloud(2))
    assert p.matrix.is_sparse
    sparse, dense = compared(p, q), compared(p.to_numpy(), q.to_numpy())
    for name in ("ratio", "rows", "distance", "null", "hellinger", "error", "pvalue"):
        assert getattr(sparse, name) == pytest.approx(getattr(dense, name), rel=1e-9), name
    np.testing.assert_allclose(sparse.shares, dense.shares, atol=1e-12)
    np.testing.assert_allclose(sparse.halves, dense.halves, atol=1e-12)


def test_row_by_row_no_sample_counts_for_more_than_its_share():
    p = np.full((40, 40), 1 / 39)
    np.fill_diagonal(p, 0)
    p[:, 0] = 0.5  # every row leans on sample 0, and each by half
    p = p / p.sum(1, keepdims=True)
    q = p.copy()
    q[7] = 0
    q[7, 8] = 1
    pair = compared(p, q)
    assert pair.shares.argmax() == 7
    assert pair.shares[7] > 0.99
    assert pair.rows <= 1.1 / 40 < pair.ratio * 2


def test_identical_and_unrelated_operators_are_the_ends_of_both_forms():
    rng = np.random.default_rng(3)
    p = ra.DiffusionGauge()(rng.normal(size=(400, 8)))
    same, apart = compared(p, p), compared(p, ra.DiffusionGauge()(rng.normal(size=(400, 8))))
    assert (same.ratio, same.rows) == (0, 0)
    assert apart.ratio == pytest.approx(1, abs=0.03)
    assert apart.rows == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("by_group", [0.0, 1.0])
def test_the_sampling_error_is_that_of_sums_over_groups_and_their_pairs(by_group):
    rng = np.random.default_rng(0)
    sums, errors = [], []
    for _ in range(400):
        own, rest = by_group * rng.normal(size=20), rng.normal(size=(20, 20))
        rest = (rest + rest.T) / 2**0.5
        np.fill_diagonal(rest, np.diag(rest) / 2**0.5)
        table = own[:, None] + own + rest
        sums.append(table.sum())
        errors.append(sampling_error(table - table.mean()))
    assert np.mean(errors) == pytest.approx(np.std(sums), rel=0.15)


def test_holm_takes_the_number_of_pairs_into_account():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04, 0.03]), [0.03, np.nan, 0.06, 0.06])


def test_operators_that_cannot_be_compared_are_refused():
    with pytest.raises(OperatorError, match="finite"):
        Tally.of(csr_array(np.array([[np.nan, 1], [0, 1]])), Halves.of(2, 0))
    with pytest.raises(OperatorError, match="square"):
        Tally.of(csr_array(np.ones((2, 3))), Halves.of(2, 0))
