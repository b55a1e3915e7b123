"""The closed-form null against random relabelling itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from repaudit.measure.null import null_squared_distance


def operator(side: int, seed: int, power: int) -> np.ndarray:
    kernel = np.random.default_rng(seed).random((side, side)) ** power + np.eye(side) * seed
    return kernel / kernel.sum(1, keepdims=True)


def test_it_is_the_mean_over_all_permutations() -> None:
    p, q = operator(5, 1, 2), operator(5, 2, 6)
    orders = [list(order) for order in itertools.permutations(range(5))]
    mean = np.mean([np.sum((p - q[np.ix_(order, order)]) ** 2) for order in orders])
    assert null_squared_distance(p, q) == pytest.approx(mean, rel=1e-12)


def test_it_is_the_monte_carlo_mean() -> None:
    rng = np.random.default_rng(3)
    p, q = operator(80, 1, 3), operator(80, 2, 9)
    draws = []
    for _ in range(400):
        order = rng.permutation(80)
        draws.append(np.sum((p - q[np.ix_(order, order)]) ** 2))
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(null_squared_distance(p, q) - np.mean(draws)) < 4 * error
    assert error < 0.001 * np.mean(draws)
