"""The Wasserstein barycenter against POT, linear programming and closed forms."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.merge.barycenter import barycenter, exact_barycenter, ground_cost


def problem(n=25, count=3, seed=0, **parameters):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 3))
    gauge = ra.DiffusionGauge(knn=4, **parameters)
    matrices = [gauge(base + 0.5 * rng.standard_normal((n, 3))).matrix for _ in range(count)]
    return matrices, ground_cost(matrices, [1 / count] * count)


def rows_of(matrices, row):
    return np.stack([matrix[row].numpy() for matrix in matrices], axis=1)


@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.6, 0.3, 0.1]])
@pytest.mark.parametrize("reg", [0.1, 0.03])
@pytest.mark.parametrize("debiased", [True, False])
def test_pot_agrees(weights, reg, debiased):
    matrices, cost = problem()
    found = barycenter(matrices, weights, cost, reg, debiased=debiased, tolerance=1e-9, max_iterations=100_000)
    assert found.marginal_error <= 1e-9
    solve = ot.bregman.barycenter_debiased if debiased else ot.bregman.barycenter
    for row in (0, 7, 20):
        truth = solve(
            rows_of(matrices, row),
            cost.numpy(),
            reg,
            weights=np.array(weights),
            method="sinkhorn_log",
            numItermax=20_000,
            stopThr=1e-10,
            warn=False,
        )
        np.testing.assert_allclose(found.rows[row].numpy(), truth / truth.sum(), atol=2e-5)


def wasserstein(rows, b, weights, cost):
    return sum(w * ot.emd2(a / a.sum(), b / b.sum(), cost) for w, a in zip(weights, rows.T, strict=True))


def test_exact_barycenter_is_no_worse_than_any_other():
    matrices, cost = problem(n=15)
    weights = [0.5, 0.3, 0.2]
    exact = exact_barycenter(matrices, weights, cost)
    near = barycenter(matrices, weights, cost, 0.01, tolerance=1e-4, max_iterations=20_000)
    for row in range(15):
        rows = rows_of(matrices, row)
        best = wasserstein(rows, exact.rows[row].numpy(), weights, cost.numpy())
        entropic = wasserstein(rows, near.rows[row].numpy(), weights, cost.numpy())
        mean = wasserstein(rows, rows @ weights, weights, cost.numpy())
        assert best <= entropic + 1e-9
        # the cost of what the entropic barycenter gives away is a small part of what the mean does
        assert entropic - best <= 0.5 * (mean - best) + 1e-6


def test_two_gaussians_on_a_grid():
    x = np.linspace(0, 1, 100)
    cost = torch.from_numpy((x[:, None] - x) ** 2)

    def bell(mean, deviation):
        p = np.exp(-((x - mean) ** 2) / (2 * deviation**2))
        return p / p.sum()

    rows = [torch.from_numpy(bell(*parameters))[None] for parameters in ((0.3, 0.03), (0.7, 0.07))]
    for weight in (0.5, 0.25):
        found = (
            barycenter(rows, [weight, 1 - weight], cost, 0.005, tolerance=1e-5, max_iterations=20_000).rows[0].numpy()
        )
        # in one dimension the W2 barycenter of Gaussians has the mean of the means and of the deviations
        mean = float(found @ x)
        deviation = float((found @ (x - mean) ** 2) ** 0.5)
        assert mean == pytest.approx(weight * 0.3 + (1 - weight) * 0.7, abs=1e-4)
        assert deviation == pytest.approx(weight * 0.03 + (1 - weight) * 0.07, rel=0.02)
        assert np.abs(found - bell(mean, deviation)).sum() < 0.1


@pytest.mark.parametrize("reg", [0.1, 0.03, 0.005])
@pytest.mark.parametrize("parameters", [{}, {"kernel": "alpha_decay"}, {"bandwidth": 0.3, "alpha": 0.0}])
def test_identical_operators_come_out_as_they_went_in(reg, parameters):
    matrix = problem(count=1, **parameters)[0][0]
    merged = ra.DiffusionMerging("ot_barycenter", reg=reg).merge({"a": matrix, "b": matrix})
    assert float((merged.matrix - matrix).abs().sum(1).amax()) < 1e-6
    blurred = ra.DiffusionMerging("ot_barycenter", reg=reg, debiased=False).merge({"a": matrix, "b": matrix})
    assert float((blurred.matrix - matrix).abs().sum(1).amax()) > 1e-4


def test_what_was_reached_is_told():
    matrices, _ = problem()
    operators = dict(zip("abc", matrices, strict=True))
    merged = ra.DiffusionMerging("ot_barycenter", reg=0.1, weights={"a": 1, "b": 2, "c": 0}).merge(operators)
    assert merged.attrs["marginal_error"] <= 1e-4
    assert merged.attrs["iterations"] > 1
    assert merged.attrs["reg"] == 0.1
    assert merged.attrs["weights"] == {"a": 1 / 3, "b": 2 / 3, "c": 0}
    alone = ra.DiffusionMerging("ot_barycenter", reg=0.1, weights={"a": 1, "b": 2}).merge(
        {k: operators[k] for k in "ab"}
    )
    assert float((alone.matrix - merged.matrix).abs().amax()) < 0.05
    with pytest.warns(UserWarning, match="marginals are off"):
        ra.DiffusionMerging("ot_barycenter", reg=0.02, max_iterations=3).merge(operators)


def test_cost_may_be_given():
    matrices, _ = problem()
    operators = dict(zip("abc", matrices, strict=True))
    x = np.random.default_rng(1).standard_normal((25, 2))
    cost = ((x[:, None] - x) ** 2).sum(2)
    merging = ra.DiffusionMerging("ot_barycenter", reg=0.2, cost=cost)
    truth = barycenter(matrices, [1 / 3] * 3, torch.from_numpy(cost / cost.max()), 0.2).rows
    torch.testing.assert_close(merging.merge(operators).matrix, truth)
    for wrong, message in (
        (cost[:3, :3], "25 samples"),
        (-cost, "negative"),
        (np.triu(cost), "symmetric"),
        (cost + 1, "zero"),
    ):
        with pytest.raises(OperatorError, match=message):
            ra.DiffusionMerging("ot_barycenter", cost=wrong).merge(operators)


def test_regularisation_out_of_range_and_gradients_are_refused():
    with pytest.raises(ValueError, match="reg=0"):
        ra.DiffusionMerging("ot_barycenter", reg=1e-4)
    P = torch.full((3, 3), 1 / 3, requires_grad=True)
    with pytest.raises(OperatorError, match="gradient"):
        ra.DiffusionMerging("ot_barycenter").merge({"a": P})


def test_exact_strategy_and_collapsed_operators():
    matrices, _ = problem(n=10)
    operators = dict(zip("abc", matrices, strict=True))
    exact = ra.DiffusionMerging("ot_barycenter", reg=0).merge(operators)
    torch.testing.assert_close(exact.matrix.sum(1), torch.ones(10, dtype=torch.float64))
    flat = np.full((6, 6), 1 / 6)
    np.testing.assert_allclose(ra.DiffusionMerging("ot_barycenter").merge({"a": flat, "b": flat}).to_numpy(), flat)
