"""The barycenter of sparse operators: the dense one of each row on the samples that the row has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.merge.barycenter import barycenter, exact_barycenter
from repaudit.merge.cost import SparseCost, scaled_cost
from repaudit.operators.sparse import SparseDiffusionOperator


def sparse_operators(seed=0, n=60, count=3, neighbors=8):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 3))
    gauge = ra.DiffusionGauge(knn=min(5, neighbors), neighbors=neighbors)
    return {f"m{k}": gauge(base + 0.4 * rng.standard_normal((n, 3))) for k in range(count)}


def restricted(operators, cost, solve):
    """Solve each row densely on the union of the supports, and put it back."""
    dense = [operator.to_numpy().astype(float) for operator in operators.values()]
    merged = np.zeros_like(dense[0])
    for row in range(len(merged)):
        own = np.flatnonzero(sum(matrix[row] for matrix in dense))
        rows = [torch.from_numpy(matrix[row, own][None]) for matrix in dense]
        merged[row, own] = solve(rows, [1 / len(dense)] * len(dense), cost[own][:, own]).rows[0].numpy()
    return merged


@pytest.mark.parametrize("reg", [0.05, 0.005])
@pytest.mark.parametrize("debiased", [True, False])
def test_each_row_is_the_dense_barycenter_on_its_support(reg, debiased):
    operators = sparse_operators(n=24)
    cost, scale = scaled_cost([operator.wide for operator in operators.values()], [1 / 3] * 3)
    rules = {"reg": reg, "debiased": debiased, "max_iterations": 2000}
    merged = ra.DiffusionMerging("ot_barycenter", tolerance=1e-2, **rules).merge(operators)
    assert isinstance(merged, SparseDiffusionOperator)
    truth = restricted(operators, cost, lambda *problem: barycenter(*problem, tolerance=1e-2, **rules))
    np.testing.assert_allclose(merged.to_numpy(), truth, atol=1e-9)
    assert merged.attrs["cost_scale"] == pytest.approx(scale, rel=1e-9)
    union = np.any([operator.to_numpy() > 0 for operator in operators.values()], axis=0)
    assert not merged.to_numpy()[~union].any()


def test_exact_barycenter_on_the_supports():
    operators = sparse_operators(n=20, neighbors=4)
    cost = scaled_cost([operator.wide for operator in operators.values()], [1 / 3] * 3)[0]
    merged = ra.DiffusionMerging("ot_barycenter", reg=0).merge(operators)
    assert isinstance(merged, SparseDiffusionOperator)
    np.testing.assert_allclose(merged.to_numpy(), restricted(operators, cost, exact_barycenter), atol=1e-9)


@pytest.mark.parametrize("rules", [{"reg": 0}, {"reg": 0.05}, {"reg": 0.05, "debiased": False}], ids=str)
def test_the_form_of_the_operators_does_not_change_the_barycenter(rules):
    operators = sparse_operators(n=12, neighbors=4)
    merging = ra.DiffusionMerging("ot_barycenter", tolerance=1e-6, max_iterations=20000, **rules)
    dense = {name: ra.DiffusionOperator.from_matrix(operator.to_numpy()) for name, operator in operators.items()}
    np.testing.assert_allclose(merging.merge(dense).to_numpy(), merging.merge(operators).to_numpy(), atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(12, 24), count=st.integers(1, 4))
def test_properties(seed, n, count):
    operators = sparse_operators(seed, n, count)
    before = {name: operator.matrix.clone() for name, operator in operators.items()}
    merging = ra.DiffusionMerging("ot_barycenter", reg=0.1)
    merged = merging.merge(operators)
    assert isinstance(merged, SparseDiffusionOperator)
    np.testing.assert_allclose(merged.to_numpy().sum(1), 1, atol=1e-9)
    assert all(torch.equal(operators[name].matrix.to_dense(), before[name].to_dense()) for name in operators)
    np.testing.assert_array_equal(merging.merge(dict(reversed(operators.items()))).to_numpy(), merged.to_numpy())
    order = np.random.default_rng(seed).permutation(n)
    permuted = {name: csr_array(operator.to_numpy()[order][:, order]) for name, operator in operators.items()}
    np.testing.assert_allclose(merging.merge(permuted).to_numpy(), merged.to_numpy()[order][:, order], atol=1e-8)


@pytest.mark.parametrize("reg", [0.05, 1e-4])
def test_identical_operators_come_out_as_they_went_in(reg):
    operator = sparse_operators(count=1)["m0"]
    merged = ra.DiffusionMerging("ot_barycenter", reg=reg).merge({"a": operator, "b": operator.matrix})
    np.testing.assert_allclose(merged.to_numpy(), operator.to_numpy(), atol=1e-12)
    blurred = ra.DiffusionMerging("ot_barycenter", reg=0.05, debiased=False).merge({"a": operator, "b": operator})
    assert np.abs(blurred.to_numpy() - operator.to_numpy()).max() > 1e-3


def test_nearly_identical_operators_come_out_nearly_as_they_went_in():
    operator = sparse_operators(count=1)["m0"]
    near = operator.csr.copy()
    near.data *= 1 + 1e-4 * np.random.default_rng(0).standard_normal(len(near.data))
    near.data /= np.repeat(np.asarray(near.sum(axis=1)).ravel(), np.diff(near.indptr))
    merged = ra.DiffusionMerging("ot_barycenter").merge({"a": operator, "b": near})
    assert np.abs(merged.to_numpy() - operator.to_numpy()).sum(1).max() < 1e-3


def test_scipy_operators_weights_and_a_given_cost():
    operators = {name: operator.csr for name, operator in sparse_operators(n=30).items()}
    points = np.random.default_rng(1).standard_normal((30, 2))
    cost = ((points[:, None] - points) ** 2).sum(2)
    weights = {"m0": 1, "m1": 2, "m2": 0}
    merging = ra.DiffusionMerging("ot_barycenter", weights=weights, cost=cost)
    merged = merging.merge(operators)
    assert isinstance(merged, SparseDiffusionOperator)
    dense = merging.merge({name: operator.toarray() for name, operator in operators.items()})
    np.testing.assert_allclose(merged.to_numpy(), dense.to_numpy(), atol=1e-9)
    assert not merged.to_numpy()[(operators["m0"] + operators["m1"]).toarray() == 0].any()
    with pytest.raises(OperatorError, match="30 samples"):
        ra.DiffusionMerging("ot_barycenter", cost=cost[:3, :3]).merge(operators)


def test_default_gauge_on_many_samples_stays_sparse():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((400, 4))
    operators = {str(k): ra.DiffusionGauge(neighbors=45)(base + 0.2 * rng.standard_normal(base.shape)) for k in "ab"}
    merged = ra.DiffusionMerging("ot_barycenter", reg=0.2, tolerance=1e-2).merge(operators)
    assert isinstance(merged, SparseDiffusionOperator)
    assert merged.matrix._nnz() < 400 * 150
    np.testing.assert_allclose(merged.to_numpy().sum(1), 1)


def test_rows_of_one_sample_and_samples_that_coincide():
    alone = csr_array(np.eye(5))
    np.testing.assert_array_equal(ra.DiffusionMerging("ot_barycenter").merge({"a": alone}).to_numpy(), np.eye(5))
    flat, mixed = np.kron(np.eye(2), np.full((2, 2), 0.5)), np.kron(np.eye(2), [[0.25, 0.75], [0.25, 0.75]])
    merged = ra.DiffusionMerging("ot_barycenter").merge({"a": csr_array(flat), "b": csr_array(mixed)})
    np.testing.assert_allclose(merged.to_numpy(), (flat + mixed) / 2)
    assert merged.attrs["cost_scale"] == 0


def test_cost_among_few_samples_is_that_of_all():
    operators = sparse_operators()
    found = SparseCost.of([operator.matrix for operator in operators.values()], [1 / 3] * 3)
    truth = scaled_cost([operator.wide for operator in operators.values()], [1 / 3] * 3)[0]
    some = np.array([3, 40, 7, 22])
    np.testing.assert_allclose(found.among(some), truth[some][:, some], rtol=1e-9, atol=1e-12)
