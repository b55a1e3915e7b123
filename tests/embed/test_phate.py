"""Embeddings against geometry that is known, and on the odd inputs that real runs give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from repaudit import DiffusionGauge
from repaudit.embed.mds import kruskal_stress, mds_embedding, procrustes_align
from repaudit.embed.phate import (
    phate_embedding,
    phate_frames,
    phate_onto,
    phate_trajectories,
    unit_trajectories,
)
from repaudit.embed.potential import POTENTIAL_FLOOR, rows_of_power
from repaudit.errors import ActivationError, OperatorError


def distances(points: np.ndarray) -> np.ndarray:
    return squareform(pdist(points))


def trajectories(models: int = 3, steps: int = 20) -> np.ndarray:
    time = np.linspace(0, 1, steps)
    return np.concatenate([np.c_[3 * time, k * (1 - time), 0.3 * np.sin(5 * time + k)] for k in range(models)])


def chain(side: int) -> np.ndarray:
    walk = np.eye(side) + np.eye(side, k=1) + np.eye(side, k=-1)
    return walk / walk.sum(1, keepdims=True)


def test_classical_mds_gives_planar_points_back() -> None:
    points = np.random.default_rng(0).standard_normal((12, 2))
    found = mds_embedding(distances(points))
    np.testing.assert_allclose(distances(found.values), distances(points), atol=1e-10)
    assert found.attrs["stress"] < 1e-10
    assert found.dims == ("operator", "component")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_points_are_laid_out_by_their_distances(count: int) -> None:
    points = trajectories()[:count]
    known = distances(points) if count > 1 else np.zeros((1, 1))
    found = phate_trajectories(known)
    assert found.shape == (count, 2)
    assert found.attrs["method"] == "mds"
    if count < 4:  # three points always lie in a plane
        np.testing.assert_allclose(distances(found.values), known, atol=1e-6)


def test_trajectories_keep_the_order_of_steps() -> None:
    found = phate_trajectories(distances(trajectories()))
    assert found.attrs["method"] == "phate"
    assert found.attrs["stress"] < 0.1
    for points in found.values.reshape(3, 20, 2):
        along = np.linalg.norm(points - points[0], axis=1)
        assert spearmanr(along, np.arange(20)).statistic > 0.95


def test_the_layout_is_phates_own() -> None:
    import phate

    known = distances(trajectories())
    found = phate_trajectories(known)
    reference = phate.PHATE(
        knn=found.attrs["knn"], knn_dist="precomputed_distance", mds_solver="smacof", random_state=0, verbose=0
    ).fit_transform(known)
    assert procrustes(reference, found.values)[2] < 1e-3


def test_groups_far_apart_are_connected_first() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.standard_normal((15, 3)), 1000 + rng.standard_normal((15, 3))])
    found = phate_trajectories(distances(points))
    assert found.attrs["knn"] > 5
    assert np.isfinite(found.values).all()


def test_operators_that_creep_are_one_point_though_their_ends_are_not_as_close() -> None:
    """As of a layer that does not move, whose distances are rounding: of each from the next, and of all."""
    points = np.vstack([np.random.default_rng(0).normal(size=(12, 3)), np.zeros((9, 3))])
    points[12:, 0] = 0.7e-9 * np.arange(9)
    found = phate_trajectories(distances(points))  # warnings of the library for kernels are errors
    assert np.unique(found.values[12:], axis=0).shape == (1, 2)
    assert len(np.unique(found.values, axis=0)) == 13
    alone = phate_trajectories(distances(points[:13]))
    np.testing.assert_array_equal(found[:13], alone)


def test_identical_operators_are_one_point() -> None:
    points = trajectories()
    points[20:40] = points[:1]
    found = phate_trajectories(distances(points)).values
    assert np.isfinite(found).all()
    assert (found[20:40] == found[0]).all()
    assert not phate_trajectories(np.zeros((9, 9))).values.any()


def test_the_same_seed_gives_the_same_layout_and_no_word_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    known = distances(trajectories())
    first, second = phate_trajectories(known, seed=3), phate_trajectories(known, seed=3)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(phate_embedding(chain(30)).values, phate_embedding(chain(30)).values)
    assert capfd.readouterr() == ("", "")


def test_samples_of_a_chain_lie_along_a_curve() -> None:
    found = phate_embedding(chain(30), t=20)
    assert found.dims == ("sample", "component")
    assert found.attrs["t"] == 20
    assert abs(spearmanr(found.values[:, 0], np.arange(30)).statistic) > 0.99


def test_three_cliques_fall_into_three_places() -> None:
    blocks = np.kron(np.eye(3), np.full((10, 10), 0.1))
    found = phate_embedding(blocks).values.reshape(3, 10, 2)
    assert np.ptp(found, axis=1).max() < 1e-6
    assert pdist(found[:, 0]).min() > 1


def test_the_operator_is_neither_changed_nor_made_symmetric() -> None:
    one_way = 0.6 * np.roll(np.eye(20), 1, axis=1) + 0.4 * np.eye(20)
    before = one_way.copy()
    there, back = phate_embedding(one_way, t=3), phate_embedding((one_way + one_way.T) / 2, t=3)
    np.testing.assert_array_equal(one_way, before)
    assert not np.allclose(distances(there.values), distances(back.values), rtol=0.01)


def test_bad_input_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"found -0\.5 in row 0"):
        phate_embedding(np.array([[1.5, -0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="t='auto'"):
        phate_embedding(chain(5), t=0)
    with pytest.raises(OperatorError, match="2 that are not"):
        phate_trajectories(np.array([[0, np.nan], [np.nan, 0]]))
    with pytest.raises(OperatorError, match="symmetric"):
        phate_trajectories(np.array([[0.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(OperatorError, match=r"\(2, 3\)"):
        mds_embedding(np.ones((2, 3)))


def test_operators_of_the_gauge_embed_as_their_matrices_do() -> None:
    operator = DiffusionGauge()(np.random.default_rng(0).standard_normal((60, 4)))
    found, plain = phate_embedding(operator), phate_embedding(operator.to_numpy())
    assert found.attrs["t"] == plain.attrs["t"]
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-6, atol=1e-6)


def test_frames_do_not_jump() -> None:
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, 80, 5))
    operators = [DiffusionGauge()(start + 0.05 * k * drift) for k in range(6)]
    found = phate_frames(operators)
    assert found.dims == ("frame", "sample", "component")
    assert found.attrs["t"] == phate_embedding(operators[-1]).attrs["t"]
    size = np.linalg.norm(found.values[0], axis=1).mean()
    moved = np.linalg.norm(np.diff(found.values, axis=0), axis=2).mean(1)
    assert (moved < 0.25 * size).all()
    np.testing.assert_allclose(found.values[0], phate_embedding(operators[0], t=found.attrs["t"]).values)


def test_some_samples_are_laid_out_by_walks_over_all() -> None:
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, 60, 5))
    operators = [DiffusionGauge(knn=5)(start + 0.1 * k * drift).to_numpy() for k in range(2)]
    every, chosen = phate_frames(operators, t=4), list(range(0, 60, 3))
    np.testing.assert_array_equal(phate_frames(operators, t=4, samples=range(60)).values, every.values)
    some = phate_frames(operators, t=4, samples=chosen)
    potential = -np.log(np.linalg.matrix_power(operators[1], 4) + POTENTIAL_FLOOR)[chosen]
    assert some.attrs["stress"][1] == pytest.approx(
        kruskal_stress(distances(potential), distances(some.values[1])), rel=1e-6
    )
    onto = phate_onto(operators, some, samples=chosen)
    assert onto.shape == some.shape


def test_a_collapsed_frame_does_not_collapse_those_that_follow() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(20, 2)), rng.normal(size=(20, 2)) + 6])
    two = DiffusionGauge(knn=5)(points).to_numpy()
    frames = phate_frames([np.full((40, 40), 1 / 40), two, two])
    assert not np.ptp(frames.values[0], axis=0).any()
    for frame in frames.values[1:]:
        gap = np.linalg.norm(frame[:20].mean(0) - frame[20:].mean(0))
        assert gap > 2 * frame[:20].std(0).max()


def test_alignment_undoes_rotation_mirroring_and_shift_and_keeps_distances() -> None:
    rng = np.random.default_rng(1)
    points, other = rng.standard_normal((2, 20, 3))
    turned = points @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + 4
    np.testing.assert_allclose(procrustes_align(turned, points), points, atol=1e-12)
    np.testing.assert_allclose(distances(procrustes_align(other, points)), distances(other), atol=1e-12)


def test_units_move_smoothly_and_those_alike_stay_together() -> None:
    rng = np.random.default_rng(2)
    steps, samples = 12, 60
    directions, noise = rng.standard_normal((3, samples)), 0.2 * rng.standard_normal((15, samples))
    late = directions[np.arange(15) % 3] + noise
    early = rng.standard_normal((15, samples))
    weights = np.linspace(0.3, 1, steps)[:, None, None]
    activations = ((1 - weights) * early + weights * late).transpose(0, 2, 1)
    found = unit_trajectories(activations)
    assert found.dims == ("step", "feature", "component")
    assert found.attrs["constant"] == 0
    last = found.values[-1]
    within = np.mean([pdist(last[k::3]).mean() for k in range(3)])
    assert within < 0.5 * pdist(last).mean()
    moved = np.linalg.norm(np.diff(found.values, axis=0), axis=2).mean()
    assert moved < 0.5 * pdist(found.values.reshape(-1, 2)).mean()


def test_constant_units_are_counted_and_bad_activations_refused() -> None:
    activations = np.random.default_rng(3).standard_normal((4, 20, 5))
    activations[1:, :, 2] = 0.1
    found = unit_trajectories(activations)
    assert found.attrs["constant"] == 3
    assert np.isfinite(found.values).all()
    with pytest.raises(ActivationError, match=r"\(20, 5\)"):
        unit_trajectories(activations[0])
    with pytest.raises(ActivationError, match="found 6000"):
        unit_trajectories(np.zeros((2, 3, 3000)))
    activations[2, 3, 3] = np.nan
    with pytest.raises(ActivationError, match="step index 2"):
        unit_trajectories(activations)


def test_frames_on_other_samples_are_refused() -> None:
    with pytest.raises(OperatorError, match="same 8 samples in operator 1, found 9"):
        phate_frames([chain(8), chain(9)], t=2)
    with pytest.raises(OperatorError, match="at least one"):
        phate_frames([])


@pytest.mark.parametrize("rows", [None, range(0, 30, 2), [7]], ids=["all", "half", "one"])
def test_rows_of_a_power_are_those_of_the_whole_power(rows):
    matrix = np.random.default_rng(0).random((30, 30)) ** 6
    matrix /= matrix.sum(1, keepdims=True)
    for time in range(1, 70):
        whole = np.linalg.matrix_power(matrix, time)
        np.testing.assert_allclose(
            rows_of_power(matrix, time, rows), whole if rows is None else whole[rows], atol=1e-12
        )


def test_a_walk_that_has_mixed_is_not_multiplied_further():
    uniform = np.full((6, 6), 1 / 6, np.float32)
    np.testing.assert_array_equal(rows_of_power(uniform, 10**9, [2]), uniform[[2]])
