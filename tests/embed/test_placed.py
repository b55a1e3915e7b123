"""Points placed among landmarks: exact where a picture is, on a landmark where they are its copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from repaudit.embed.mds import classical_mds, procrustes_align
from repaudit.embed.placed import NEIGHBORS, placed_between, placed_by_gower


@given(seed=st.integers(0, 2**32 - 1), dims=st.integers(1, 3), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_gowers_points_are_those_of_the_picture_where_distances_are_of_so_many_dims(
    seed: int, dims: int, scale: float
) -> None:
    points = scale * np.random.default_rng(seed).normal(size=(30, dims))
    chosen, others = points[:12], points[12:]
    among = cdist(chosen, chosen)
    laid_out = classical_mds(among, dims)
    placed = placed_by_gower(cdist(others, chosen), among, laid_out)
    both = np.concatenate([laid_out, placed])
    np.testing.assert_allclose(procrustes_align(both, points), points, atol=1e-6 * scale)


def test_a_component_without_extent_stays_so() -> None:
    line = np.arange(4.0)[:, None]
    among = cdist(line, line)
    placed = placed_by_gower(cdist([[7.0]], line), among, classical_mds(among, 2))
    assert abs(placed[0, 1]) < 1e-6
    assert abs(placed[0, 0]) == pytest.approx(7 - 1.5)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_a_copy_lies_on_its_landmark_and_others_between(scale: float) -> None:
    landmarks = np.random.default_rng(0).normal(size=(9, 2))
    distances = scale * cdist(landmarks, landmarks)
    np.testing.assert_allclose(placed_between(distances, landmarks), landmarks)
    twins = np.concatenate([landmarks, landmarks[:1]])
    np.testing.assert_allclose(placed_between(np.hstack([distances, distances[:, :1]])[:1], twins), landmarks[:1])
    middle = scale * cdist([(landmarks[0] + landmarks[1]) / 2], landmarks)
    placed = placed_between(middle, landmarks)
    nearest = landmarks[np.argsort(middle[0])[:NEIGHBORS]]
    assert (placed >= nearest.min(0)).all()
    assert (placed <= nearest.max(0)).all()


def test_weights_are_those_of_the_squared_distance() -> None:
    found = placed_between(np.array([[1.0, 2.0, 9.0]]), np.array([[0.0], [5.0], [100.0]]), neighbors=2)
    assert found == pytest.approx((0 / 1 + 5 / 4) / (1 + 1 / 4))
