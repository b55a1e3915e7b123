"""kNN-sparse operators: equal to the dense one where they must be, and right where they keep less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors

import repaudit as ra
from repaudit.distance.points import cloud
from repaudit.errors import ActivationError, OperatorError
from repaudit.gauge.neighbors import nearest_neighbors

KERNELS = [
    {"knn": 15},
    {"knn": 15, "alpha": 0.0, "metric": "cosine"},
    {"kernel": "alpha_decay", "knn": 4},
    {"bandwidth": 2.0},
    {"knn": 15, "self_loops": False, "alpha": 0.5},
]


def samples(n=120, d=8, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", KERNELS)
def test_with_all_neighbors_it_is_the_dense_operator(parameters, dtype):
    X = samples(dtype=dtype)
    dense, sparse = ra.DiffusionGauge(**parameters)(X), ra.DiffusionGauge(**parameters, neighbors=119)(X)
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-13}
    torch.testing.assert_close(sparse.matrix.to_dense(), dense.matrix, **tolerance)
    torch.testing.assert_close(sparse.degrees, dense.degrees, rtol=1e-6, atol=0)
    assert sparse.matrix.dtype == dense.matrix.dtype


@pytest.mark.parametrize("k", [3, 20])
def test_an_entry_stays_where_either_side_has_it(k):
    X = samples()
    near = NearestNeighbors(n_neighbors=k).fit(X).kneighbors_graph().toarray() > 0
    keep = near | near.T | np.eye(120, dtype=bool)
    operator = ra.DiffusionGauge(knn=15, neighbors=k, alpha=0.0)(X)
    assert ((operator.to_numpy() > 0) == keep).all()
    # the bandwidth is still that of the 15th neighbour
    full = ra.DiffusionGauge(knn=15, alpha=0.0)(X).to_numpy() * keep
    np.testing.assert_allclose(operator.to_numpy(), full / full.sum(1, keepdims=True), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(20, 400), k=st.integers(1, 15), copies=st.integers(1, 4))
def test_nearest_neighbors_are_those_of_the_full_distances(seed, n, k, copies):
    X = np.repeat(samples(-(-n // copies), 5, seed), copies, axis=0)[:n]
    points = cloud(torch.from_numpy(X))
    squared, index = nearest_neighbors(points, k)
    truth = ((X[:, None] - X) ** 2).sum(2)
    np.fill_diagonal(truth, np.inf)
    np.testing.assert_allclose(squared.numpy() / points.scaling**2, np.sort(truth, 1)[:, :k], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(np.take_along_axis(truth, index.numpy(), 1), np.sort(truth, 1)[:, :k], atol=1e-12)
    assert (index != torch.arange(n)[:, None]).all()


@pytest.mark.parametrize(
    ("parameters", "known"),
    [({"knn": 15, "neighbors": 12}, {}), ({}, {"unheld": 0})],
    ids=["knn", "perplexity"],
)
@pytest.mark.parametrize("clusters", [1, 3])
def test_spectrum_without_a_dense_matrix(clusters, parameters, known):
    X = samples(900, 3) + 100 * np.arange(900)[:, None] % clusters * 100
    operator = ra.DiffusionGauge(**parameters)(X)
    assert operator.matrix.layout == torch.sparse_coo
    values, vectors = operator.eigenpairs(8)
    truth = ra.DiffusionOperator(operator.matrix.to_dense(), operator.degrees)
    np.testing.assert_allclose(values.numpy(), truth.eigenpairs(8)[0].numpy(), atol=1e-9)
    torch.testing.assert_close(operator.matrix @ vectors, vectors * values, rtol=0, atol=1e-7)
    norms = (operator.stationary[:, None] * vectors.square()).sum(0)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert operator.diagnostics == pytest.approx(
        truth.diagnostics | {"duplicates": 0, "collapsed": False, "floored": 0} | known
    )
    assert operator.diagnostics["components"] == clusters
    assert operator.entropy(2) == pytest.approx(truth.entropy(2))


@pytest.mark.parametrize("parameters", [{"knn": 15, "neighbors": 6}, {"perplexity": 4}], ids=["knn", "perplexity"])
def test_powers_symmetric_conjugate_and_distance_agree_with_dense_ones(parameters):
    operator = ra.DiffusionGauge(**parameters)(samples())
    assert operator.matrix.layout == torch.sparse_coo
    dense = ra.DiffusionOperator(operator.matrix.to_dense(), operator.degrees)
    for t in (0, 1, 5):
        np.testing.assert_allclose(operator.power(t).to_numpy(), dense.power(t).to_numpy(), atol=1e-14)
    torch.testing.assert_close(operator.symmetric.to_dense(), dense.symmetric)
    torch.testing.assert_close(operator.diffusion_distance(2), dense.diffusion_distance(2))


def test_foreign_sparse_matrices():
    dense = ra.DiffusionGauge(knn=15, neighbors=5)(samples()).to_numpy()
    operator = ra.DiffusionOperator.from_matrix(csr_array(dense))
    assert operator.matrix.layout == torch.sparse_coo
    assert operator.reversible
    np.testing.assert_allclose(operator.degrees, ra.DiffusionOperator.from_matrix(dense).degrees, rtol=1e-9)
    chain = csr_array(np.array([[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(ra.DiffusionOperator.from_matrix(chain).stationary, [0, 0.5, 0.5])
    with pytest.raises(OperatorError, match=r"1\.5 in row 1"):
        ra.DiffusionOperator.from_matrix(csr_array(np.array([[1, 0], [1, 0.5]])))
    with pytest.raises(OperatorError, match=r"-0\.5 in row 0"):
        ra.DiffusionOperator.from_matrix(csr_array(np.array([[1.5, -0.5], [0, 1]])))


def test_stationary_distribution_of_a_large_sparse_chain():
    ring = csr_array(np.roll(np.eye(4100, dtype=np.float32), 1, axis=1)).astype(float)
    lazy = csr_array((ring * 0.6 + ring.T * 0.4 + csr_array(np.eye(4100))) / 2)
    operator = ra.DiffusionOperator.from_matrix(lazy)
    np.testing.assert_allclose(operator.stationary, 1 / 4100, rtol=1e-6)
    assert not operator.reversible


def test_dataarray_and_back():
    X = xr.DataArray(samples(40), dims=("sample", "feature"), coords={"sample": [f"s{i}" for i in range(40)]}, name="l")
    operator = ra.DiffusionGauge(neighbors=5, knn=3)(X)
    array = operator.to_dataarray()
    assert array.dims == ("entry",)
    back = ra.DiffusionOperator.from_dataarray(array)
    torch.testing.assert_close(back.matrix.to_dense(), operator.matrix.to_dense(), rtol=0, atol=0)
    torch.testing.assert_close(back.degrees, operator.degrees, rtol=0, atol=0)
    assert back.samples.tolist() == X.sample.values.tolist()
    assert back.attrs == operator.attrs
    assert back.diagnostics == operator.diagnostics


def test_duplicates_and_collapse():
    X = samples(40)
    X[30:] = X[30]
    operator = ra.DiffusionGauge(neighbors=4, knn=4)(X)
    assert operator.diagnostics["duplicates"] == 10
    assert operator.diagnostics["floored"] == 10
    same = ra.DiffusionGauge(knn=15, neighbors=4)(np.full((20, 3), 2.5))
    assert same.diagnostics["collapsed"]
    np.testing.assert_allclose(same.to_numpy().sum(1), 1)


def test_what_cannot_be_asked_of_it():
    with pytest.raises(ActivationError, match="neighbors=10 needs at least 11"):
        ra.DiffusionGauge(knn=3, neighbors=10)(samples(10))
    with pytest.raises(ValueError, match="median"):
        ra.DiffusionGauge(neighbors=3, bandwidth="median")
    with pytest.raises(ValueError, match="no gradient"):
        ra.DiffusionGauge(knn=3, neighbors=3)(torch.randn(20, 3, requires_grad=True))
    with pytest.raises(ActivationError, match="no neighbour within"):
        ra.DiffusionGauge(neighbors=3, bandwidth=1e-4, self_loops=False)(samples(20))
