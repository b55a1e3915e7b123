"""Similarities against closed forms, and their nulls against relabelling itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import pdist, squareform
from sklearn.neighbors import NearestNeighbors

from repaudit.errors import ActivationError
from repaudit.measure.similarity import effective_rank, similarity, similarity_map

MEASURES = ["cka", "cka_debiased", "cka_rbf", "mutual_knn", "procrustes", "rsa"]


def pair(samples: int = 40, shared: float = 0.7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((samples, 5))
    return X, math.sqrt(shared) * X[:, :4] + math.sqrt(1 - shared) * rng.standard_normal((samples, 4))


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(labels.max() + 1)[labels]


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_scale_and_shift_change_nothing(measure: str) -> None:
    X, Y = pair()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    moved = 1e3 * X @ rotation + 5
    assert similarity(moved, Y, measure).value == pytest.approx(similarity(X, Y, measure).value, rel=1e-9)
    assert similarity(moved, X, measure).value == pytest.approx(1, rel=1e-9)
    assert similarity(X, Y, measure).value == pytest.approx(similarity(Y, X, measure).value, rel=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_null_is_the_mean_over_relabellings(measure: str) -> None:
    X, Y = pair(samples=25)
    rng = np.random.default_rng(2)
    drawn = [similarity(X, Y[rng.permutation(25)], measure, permutations=1).value for _ in range(400)]
    error = np.std(drawn) / 20
    null = similarity(X, Y, measure, permutations=400).null
    assert abs(null - np.mean(drawn)) < 4 * error * (math.sqrt(2) if measure == "procrustes" else 1)
    assert similarity(X, Y, measure).value > null + 3 * np.std(drawn)


def test_linear_cka_has_its_closed_forms() -> None:
    rng = np.random.default_rng(3)
    X, Y = pair()
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    features = np.linalg.norm(Xc.T @ Yc) ** 2 / (np.linalg.norm(Xc.T @ Xc) * np.linalg.norm(Yc.T @ Yc))
    assert similarity(X, Y, "cka").value == pytest.approx(features, rel=1e-12)
    basis = np.linalg.qr(np.c_[np.ones(30), rng.standard_normal((30, 9))])[0][:, 1:]
    # Of p and q orthonormal directions, s shared: CKA = s / sqrt(p q).
    assert similarity(basis[:, :4], basis[:, 2:9], "cka").value == pytest.approx(2 / math.sqrt(4 * 7), rel=1e-12)
    assert similarity(basis[:, :4], basis[:, 4:], "cka").value == pytest.approx(0, abs=1e-12)


def test_debiased_cka_of_unrelated_features_is_about_zero_and_biased_is_not() -> None:
    rng = np.random.default_rng(4)
    pairs = [(rng.standard_normal((50, 100)), rng.standard_normal((50, 100))) for _ in range(20)]
    assert np.mean([similarity(x, y, "cka_debiased").value for x, y in pairs]) == pytest.approx(0, abs=0.01)
    assert np.mean([similarity(x, y, "cka").value for x, y in pairs]) > 0.5
    assert np.mean([similarity(x, y, "cka").null for x, y in pairs]) > 0.5


def test_debiased_cka_is_songs_unbiased_hsic() -> None:
    X, Y = pair(samples=12)

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        n, one = len(K), np.ones(len(K))
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        inner = (
            np.trace(K @ L)
            + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ K @ L @ one)
        )
        return float(inner / (n * (n - 3)))

    K, L = X @ X.T, Y @ Y.T
    expected = hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
    assert similarity(X, Y, "cka_debiased").value == pytest.approx(expected, rel=1e-9)


def test_rbf_cka_of_two_clusters_apart_is_that_of_their_labels() -> None:
    X = np.repeat([[0.0], [1.0]], 10, axis=0)
    # Median distance 1: K = 1 within, exp(-1/2) between; centred, any such kernel is a multiple of s s', s = +-1.
    assert similarity(X, np.repeat([[5.0, 1.0], [2.0, 7.0]], 10, axis=0), "cka_rbf").value == pytest.approx(1)
    crossed = np.tile([[0.0], [1.0]], (10, 1))
    assert similarity(X, crossed, "cka_rbf").value == pytest.approx(0, abs=1e-12)


def test_mutual_knn_counts_shared_neighbours() -> None:
    X, Y = pair()
    first, second = (NearestNeighbors(n_neighbors=6).fit(z).kneighbors(return_distance=False) for z in (X, Y))
    expected = np.mean([len(set(a) & set(b)) / 6 for a, b in zip(first, second, strict=True)])
    found = similarity(X, Y, "mutual_knn", k=6)
    assert found.value == pytest.approx(expected)
    assert found.null == pytest.approx(6 / 39)


def test_procrustes_and_rsa_agree_with_scipy_and_numpy() -> None:
    X, Y = pair()
    padded = np.c_[Y - Y.mean(0), np.zeros(len(Y))]
    Xc = X - X.mean(0)
    _, scale = orthogonal_procrustes(Xc, padded)
    assert similarity(X, Y, "procrustes").value == pytest.approx(scale / np.linalg.norm(Xc) / np.linalg.norm(padded))
    assert similarity(X, Y, "rsa").value == pytest.approx(np.corrcoef(pdist(X), pdist(Y))[0, 1])


def test_procrustes_decomposes_nothing_larger_than_the_samples_for_each_relabelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides: list[int] = []
    svd = np.linalg.svd

    def watched(matrix: np.ndarray, **parameters: bool) -> np.ndarray:
        sides.append(max(matrix.shape))
        return svd(matrix, **parameters)

    monkeypatch.setattr(np.linalg, "svd", watched)
    rng = np.random.default_rng(6)
    similarity(rng.standard_normal((12, 400)), rng.standard_normal((12, 300)), "procrustes", permutations=3)
    # each representation once, then the two of them and 3 relabellings
    assert sorted(sides) == [12] * 4 + [300, 400]


@pytest.mark.parametrize("classes", [2, 5, 10, 20])
def test_mutual_knn_of_unrelated_labels_is_about_its_null(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = np.arange(100) % classes
    found = [
        similarity(one_hot(labels[rng.permutation(100)]), one_hot(labels[rng.permutation(100)]), "mutual_knn")
        for _ in range(20)
    ]
    # sorted by class, as labels often are: ties by index would find the same first samples in both
    sorted_ = similarity(one_hot(np.sort(labels)), one_hot(rng.permutation(labels)), "mutual_knn")
    values = [one.value for one in found]
    assert np.mean(values) == pytest.approx(found[0].null, abs=4 * np.std(values) / math.sqrt(20) + 1e-3)
    assert abs(sorted_.value - sorted_.null) < 5 * np.std(values) + 1e-3


def test_mutual_knn_shares_the_last_places_among_the_samples_that_tie() -> None:
    cross = np.array([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    line = np.array([[0.0], [1.0], [3.0], [6.0], [10.0]])
    # of k = 3, the middle has four neighbours at distance 1, and each of those has three that are nearer than the last
    A = np.array([[0, 3, 3, 3, 3], [4, 0, 0, 4, 4], [4, 0, 0, 4, 4], [4, 4, 4, 0, 0], [4, 4, 4, 0, 0]]) / 4
    B = np.array([[0, 1, 1, 1, 0], [1, 0, 1, 1, 0], [1, 1, 0, 1, 0], [0, 1, 1, 0, 1], [0, 1, 1, 1, 0]])
    expected = (A * B).sum() / (np.linalg.norm(A) * np.linalg.norm(B))
    assert similarity(cross, line, "mutual_knn", k=3).value == pytest.approx(expected)
    assert similarity(cross, cross, "mutual_knn", k=3).value == pytest.approx(1)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(5, 20), k=st.integers(1, 4))
def test_the_order_of_the_samples_changes_nothing_with_ties(measure: str, data: st.DataObject, n: int, k: int) -> None:
    few = st.lists(st.integers(0, 3), min_size=2 * n, max_size=2 * n)
    X, Y = (np.array(data.draw(few), dtype=float).reshape(n, 2) for _ in range(2))
    order = np.array(data.draw(st.permutations(range(n))))
    before, after = similarity(X, Y, measure, k=k), similarity(X[order], Y[order], measure, k=k)
    assert after.value == pytest.approx(before.value, rel=1e-9, abs=1e-9, nan_ok=True)
    if measure != "procrustes":
        assert after.null == pytest.approx(before.null, rel=1e-9, abs=1e-9, nan_ok=True)


def test_rbf_cka_where_most_pairs_coincide_has_the_median_of_the_distances_above_zero() -> None:
    rng = np.random.default_rng(0)
    X, other = np.r_[np.zeros((16, 1)), [[1.0], [1.0], [2.0], [5.0]]], rng.standard_normal((20, 3))
    apart = pdist(X)
    assert np.median(apart) == 0
    K = np.exp(-((squareform(apart) / np.median(apart[apart > 0])) ** 2) / 2)
    L = np.exp(-((squareform(pdist(other)) / np.median(pdist(other))) ** 2) / 2)
    H = np.eye(20) - 1 / 20
    K, L = H @ K @ H, H @ L @ H
    expected = (K * L).sum() / (np.linalg.norm(K) * np.linalg.norm(L))
    assert similarity(X, other, "cka_rbf").value == pytest.approx(expected)


def test_effective_rank_has_its_closed_forms() -> None:
    basis = np.linalg.qr(np.c_[np.ones(30), np.random.default_rng(0).standard_normal((30, 9))])[0][:, 1:]
    assert effective_rank(basis[:, :6]) == pytest.approx(6)
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(basis[:, :3] * shares) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert math.isnan(effective_rank(np.ones((5, 3))))


@pytest.mark.parametrize("measure", ["cka", "cka_debiased", "cka_rbf", "procrustes", "rsa"])
def test_a_constant_representation_has_no_similarity(measure: str) -> None:
    assert math.isnan(similarity(np.full((10, 3), 0.1), pair(10)[0], measure).value)


def test_tensors_and_dataarrays_are_taken() -> None:
    X, Y = pair()
    expected = similarity(X, Y).value
    assert similarity(torch.from_numpy(X).requires_grad_(), xr.DataArray(Y)).value == pytest.approx(expected)


def test_bad_input_is_refused() -> None:
    X, Y = pair()
    with pytest.raises(ValueError, match="found 'cca'"):
        similarity(X, Y, "cca")
    with pytest.raises(ActivationError, match="found 40 and 39"):
        similarity(X, Y[1:])
    broken = X.copy()
    broken[7, 1] = np.inf
    with pytest.raises(ActivationError, match="in Y at sample 7"):
        similarity(X, broken)
    with pytest.raises(ActivationError, match=r"\(40,\) in X"):
        similarity(X[:, 0], Y)
    with pytest.raises(ValueError, match="found 40"):
        similarity(X, Y, "mutual_knn", k=40)


def test_the_map_holds_every_pair_once_computed() -> None:
    X, Y = pair()
    found = similarity_map({"a/1": X, "b/1": Y, "b/2": X}, "rsa")
    assert float(found["similarity"].sel(representation="a/1", other="b/1")) == similarity(X, Y, "rsa").value
    np.testing.assert_array_equal(found["similarity"], found["similarity"].T)
    np.testing.assert_allclose(np.diag(found["similarity"]), 1)


def test_ties_share_their_places_so_that_no_order_counts() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(20):
        x, y = (one_hot(rng.integers(0, 5, 100)) for _ in range(2))
        found = similarity(x, y, "mutual_knn", k=10)
        order = rng.permutation(100)
        assert similarity(x[order], y[order], "mutual_knn", k=10).value == pytest.approx(found.value, abs=1e-12)
        values.append((found.value, found.null))
    value, null = np.mean(values, axis=0)
    assert value == pytest.approx(null, rel=0.1)
    assert similarity(x, x, "mutual_knn", k=10).value == pytest.approx(1)


def test_procrustes_of_many_features_is_that_of_the_whole_matrices() -> None:
    rng = np.random.default_rng(5)
    X, Y = rng.standard_normal((20, 150)), rng.standard_normal((20, 90)) + 3
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    norms = np.linalg.norm(Xc) * np.linalg.norm(Yc)

    def agreement(order: np.ndarray) -> float:
        return float(np.linalg.svd(Xc.T @ Yc[order], compute_uv=False).sum() / norms)

    found = similarity(X, Y, "procrustes", permutations=5, seed=7)
    drawn = np.random.default_rng(7)
    assert found.value == pytest.approx(agreement(np.arange(20)), rel=1e-12)
    assert found.null == pytest.approx(np.mean([agreement(drawn.permutation(20)) for _ in range(5)]), rel=1e-12)


def test_a_kernel_of_mostly_equal_samples_has_a_bandwidth() -> None:
    x = np.zeros((40, 3))
    x[:8] = np.random.default_rng(2).standard_normal((8, 3))
    assert similarity(x, x, "cka_rbf").value == pytest.approx(1)
    assert np.isnan(similarity(np.zeros((40, 3)), x, "cka_rbf").value)
