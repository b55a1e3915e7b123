"""The Wasserstein barycenter against POT, linear programming and closed forms."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.merge.barycenter import barycenter, exact_barycenter
from repaudit.merge.cost import ground_cost
from repaudit.merge.projections import Projections, Smoothing


def problem(n=25, count=3, seed=0, **parameters):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, 3))
    gauge = ra.DiffusionGauge(knn=4, **parameters)
    matrices = [gauge(base + 0.5 * rng.standard_normal((n, 3))).matrix for _ in range(count)]
    return matrices, ground_cost(matrices, [1 / count] * count)


def rows_of(matrices, row):
    return np.stack([matrix[row].numpy() for matrix in matrices], axis=1)


@pytest.mark.parametrize(
    ("weights", "reg"),
    [
        ([1 / 3, 1 / 3, 1 / 3], 0.1),
        ([0.6, 0.3, 0.1], 0.1),
        pytest.param([1 / 3, 1 / 3, 1 / 3], 0.03, marks=pytest.mark.slow),
        ([0.6, 0.3, 0.1], 0.03),
    ],
)
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.thin(2)
def test_pot_agrees(weights, reg, debiased):
    matrices, cost = problem()
    found = barycenter(matrices, weights, cost, reg, debiased=debiased, tolerance=1e-9, max_iterations=100_000)
    assert found.marginal_error <= 1e-9
    solve = ot.bregman.barycenter_debiased if debiased else ot.bregman.barycenter
    for row in (0, 7, 20) if reg == 0.1 else (7,):
        truth = solve(
            rows_of(matrices, row),
            cost.numpy(),
            reg,
            weights=np.array(weights),
            method="sinkhorn_log",
            numItermax=5_000,
            stopThr=1e-8,
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


def random_operators(kind, seed, n=30, count=3):
    rng = np.random.default_rng(seed)
    if kind == "gauge":
        base = rng.standard_normal((n, 4))
        return [ra.DiffusionGauge()(base + 0.5 * rng.standard_normal((n, 4))).to_numpy() for _ in range(count)]
    drawn = {"uniform": rng.random, "sharp": lambda shape: np.exp(3 * rng.standard_normal(shape))}[kind]
    return [matrix / matrix.sum(1, keepdims=True) for matrix in (drawn((n, n)) for _ in range(count))]


@pytest.mark.parametrize("kind", ["uniform", "sharp", "gauge"])
@pytest.mark.parametrize("seed", [0, 1])
def test_default_costs_little_more_transport_than_the_exact_barycenter(kind, seed):
    matrices = random_operators(kind, seed)
    weights = [1 / 3] * 3
    cost = ground_cost([torch.from_numpy(matrix) for matrix in matrices], weights).numpy()
    operators = dict(zip("abc", matrices, strict=True))

    def total(merged):
        return sum(wasserstein(np.stack([m[i] for m in matrices], 1), merged[i], weights, cost) for i in range(30))

    best = total(ra.DiffusionMerging("ot_barycenter", reg=0).merge(operators).to_numpy())
    excess = total(ra.DiffusionMerging("ot_barycenter").merge(operators).to_numpy()) / best - 1
    mean = total(sum(matrices) / 3) / best - 1
    assert -1e-6 <= excess <= 0.02
    assert mean > 0.05


@pytest.mark.parametrize("gauge", [ra.DiffusionGauge(knn=15), ra.DiffusionGauge()], ids=["knn", "perplexity"])
def test_one_outlying_sample_does_not_move_the_other_rows(gauge):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((60, 5)) + 2 * (np.arange(60) < 30)[:, None]
    clouds = [base + 0.3 * rng.standard_normal(base.shape) for _ in range(3)]
    far = 100 * rng.standard_normal((1, 5))
    before = {str(k): gauge(cloud) for k, cloud in enumerate(clouds)}
    after = {str(k): gauge(np.vstack([cloud, far])) for k, cloud in enumerate(clouds)}

    def change(first, second):
        return np.abs(first.to_numpy() - second.to_numpy()[:60, :60]).sum(1)

    # the perplexity kernel links its 15 nearest samples to the outlying one: rows that change themselves are left out
    same = np.max([change(before[k], after[k]) for k in before], axis=0) < 0.01
    assert same.sum() >= 30
    merging = ra.DiffusionMerging("ot_barycenter")
    merged, moved = merging.merge(before), merging.merge(after)
    assert change(merged, moved)[same].max() < 0.02
    assert moved.attrs["cost_scale"] == pytest.approx(merged.attrs["cost_scale"], rel=0.1)


@pytest.mark.parametrize("debiased", [pytest.param(True, marks=pytest.mark.slow), False])
def test_small_regularisation_agrees_with_pot(debiased):
    matrices, cost = problem(n=8, seed=3)
    weights = [0.5, 0.3, 0.2]
    reg = 0.004
    assert float(cost.max()) / reg > 600
    found = barycenter(matrices, weights, cost, reg, debiased=debiased, tolerance=1e-7, max_iterations=50_000)
    assert found.marginal_error <= 1e-7
    solve = ot.bregman.barycenter_debiased if debiased else ot.bregman.barycenter
    for row in (1,):
        rules = {"weights": np.array(weights), "method": "sinkhorn_log", "numItermax": 20_000, "stopThr": 1e-9}
        truth = solve(rows_of(matrices, row), cost.numpy(), reg, warn=False, **rules)
        np.testing.assert_allclose(found.rows[row].numpy(), truth / truth.sum(), atol=1e-4)


@pytest.mark.parametrize("reg", [1e-3, 1e-4])
def test_smallest_regularisation_nears_the_exact_barycenter(reg):
    rng = np.random.default_rng(0)
    matrices = [torch.from_numpy(rng.dirichlet(np.full(12, 0.1), 12)) for _ in range(3)]
    weights = [1 / 3] * 3
    cost = ground_cost(matrices, weights)
    exact = exact_barycenter(matrices, weights, cost)
    near = barycenter(matrices, weights, cost, reg, max_iterations=3000)
    assert bool(near.rows.isfinite().all())
    best, reached = (
        sum(wasserstein(rows_of(matrices, row), found.rows[row].numpy(), weights, cost.numpy()) for row in range(12))
        for found in (exact, near)
    )
    # a marginal that is off by the error moves at most that much mass over the largest cost
    assert best - 1e-9 <= reached <= best + 12 * max(near.marginal_error, 2e-4) * float(cost.max())
    assert reached <= 1.01 * best


@pytest.mark.parametrize("worst", [0, 1, 2], ids=["rows", "center", "itself"])
def test_marginal_error_is_that_of_the_couplings(worst):
    matrices, cost = problem(n=10)
    rows, scaled = torch.stack(matrices, dim=1), cost / 0.05
    project = Projections(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), True, 1e-4)
    smooth = Smoothing(scaled)
    state = project._start(rows, smooth, torch.ones(10, 10, dtype=torch.bool))
    center, back = project._project(state, smooth)
    if worst:
        state.left = state.logs - state.spread
        back = smooth(state.left)
    if worst == 2:
        state.debias = state.debias + 1
    couplings = (state.left[..., :, None] + state.right[..., None, :] - scaled).exp()
    itself = (state.debias[:, :, None] + state.debias[:, None, :] - scaled).exp()
    of_rows = (couplings.sum(3) - rows).abs().sum(2).amax(1)
    of_center = (couplings.sum(2) - center.exp()[:, None]).abs().sum(2).amax(1)
    of_itself = (itself.sum(2) - center.exp()).abs().sum(1)
    errors = torch.stack([of_rows, of_center, of_itself])
    torch.testing.assert_close(project._error(state, center, back, smooth), errors.amax(0))
    assert int(errors.sum(1).argmax()) == worst


def test_marginal_error_falls_with_the_iterations():
    matrices, cost = problem()
    errors = [barycenter(matrices, [1 / 3] * 3, cost, 0.01, max_iterations=n).marginal_error for n in (10, 100, 1000)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


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
    mean = sum(matrices).numpy() / 3
    np.fill_diagonal(mean, 0)
    scale = np.median((mean * cost).sum(1) / mean.sum(1))
    merged = ra.DiffusionMerging("ot_barycenter", reg=0.2, cost=1e3 * cost).merge(operators)
    truth = barycenter(matrices, [1 / 3] * 3, torch.from_numpy(cost / scale), 0.2).rows
    torch.testing.assert_close(merged.matrix, truth)
    assert merged.attrs["cost_scale"] == pytest.approx(1e3 * scale)
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
        ra.DiffusionMerging("ot_barycenter", reg=9e-5)
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
