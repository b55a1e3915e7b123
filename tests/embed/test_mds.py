"""Metric scaling against another solver, at places where its derivative has none, and from a layout that is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import smacof

from repaudit.embed.mds import _stress_and_slope, classical_mds, kruskal_stress, metric_mds


def distances_of(n: int, dims: int, seed: int) -> np.ndarray:
    return squareform(pdist(np.random.default_rng(seed).standard_normal((n, dims))))


def raw_stress(points: np.ndarray, distances: np.ndarray) -> float:
    return float(((pdist(points) - squareform(distances)) ** 2).sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 60), st.integers(1, 12), st.integers(0, 99))
def test_another_solver_finds_nothing_better_nearby(n: int, dims: int, seed: int) -> None:
    distances = distances_of(n, dims, seed)
    points, stress = metric_mds(distances, 2)
    further, _ = smacof(distances, n_components=2, init=points, n_init=1, max_iter=300, eps=1e-9)
    tolerance = 1e-9 * float((distances**2).sum())
    assert raw_stress(points, distances) <= 1.01 * raw_stress(further, distances) + tolerance
    assert raw_stress(points, distances) <= raw_stress(classical_mds(distances, 2), distances) + tolerance
    assert stress == pytest.approx(kruskal_stress(distances, squareform(pdist(points))))


def test_from_the_same_start_it_is_as_good_as_smacof() -> None:
    ratios = []
    for seed in range(40):  # either may end in the better of two valleys
        distances = distances_of(40, 6, seed)
        start = classical_mds(distances, 2)
        other, _ = smacof(distances, n_components=2, init=start, n_init=1, max_iter=3000, eps=1e-9)
        ratios.append(metric_mds(distances, 2)[1] / kruskal_stress(distances, squareform(pdist(other))))
    assert 0.99 < np.mean(ratios) < 1.005


def test_the_slope_is_the_derivative_of_the_stress() -> None:
    distances, flat = distances_of(9, 3, 0), np.random.default_rng(1).standard_normal(18)
    room = np.empty((9, 9)), np.empty((9, 9))
    error = check_grad(
        lambda x: _stress_and_slope(x, distances, *room)[0], lambda x: _stress_and_slope(x, distances, *room)[1], flat
    )
    assert error < 1e-6


def test_a_start_with_points_in_one_place_is_left() -> None:
    distances = distances_of(40, 2, 0)
    start = np.random.default_rng(2).standard_normal((40, 2))
    start[10:20] = start[10]
    points, stress = metric_mds(distances, 2, start=start)
    assert np.isfinite(points).all()
    assert stress < 0.5 * kruskal_stress(distances, squareform(pdist(start)))


@pytest.mark.parametrize("size", [1e-150, 1e-6, 1e6, 1e150])
def test_the_unit_of_the_distances_does_not_matter(size: float) -> None:
    distances = distances_of(30, 5, 0)
    points, stress = metric_mds(distances, 2)
    scaled, again = metric_mds(distances * size, 2)
    np.testing.assert_allclose(scaled / size, points, atol=1e-6 * np.abs(points).max())
    assert again == pytest.approx(stress, rel=1e-6)
