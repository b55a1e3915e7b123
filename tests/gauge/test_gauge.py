"""The gauge against closed forms, direct float64 computation and graphtools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import iv

import repaudit as ra
from repaudit.errors import ActivationError

KERNELS, NAMES = [{}, {"knn": 3}], ["perplexity", "knn"]


def direct(X, *, kernel="gaussian", knn=15, bandwidth=None, decay=40.0, alpha=1.0, metric="euclidean", loops=True):
    """The same operator from its definition: float64, scipy's distances, no blocks, no shortcuts."""
    X = np.asarray(X, dtype=np.float64)
    if metric == "cosine":
        X = X / np.linalg.norm(X, axis=1, keepdims=True)
    d = cdist(X, X)
    if bandwidth == "median":
        bandwidth = np.median(d[np.triu_indices(len(d), 1)])
    s = np.sort(d, axis=1)[:, knn] if bandwidth is None else np.full(len(d), float(bandwidth))
    floor = 1e-6 * np.sqrt(((X - X.mean(0)) ** 2).sum(1).mean())
    s = np.maximum(s, floor) if floor > 0 else np.ones(len(d))
    with np.errstate(over="ignore", under="ignore"):
        if kernel == "gaussian":
            K = np.exp(-(d**2) / (s[:, None] * s * (1 if bandwidth is None else 2)))
        else:
            K = (np.exp(-((d / s[:, None]) ** decay)) + np.exp(-((d / s) ** decay))) / 2
        if not loops:
            np.fill_diagonal(K, 0)
        q = K.sum(1)
        K = K / np.outer(q, q) ** alpha
        return K / K.sum(1, keepdims=True), K.sum(1)


def relative(found, truth):
    return np.linalg.norm(np.asarray(found) - truth) / np.linalg.norm(truth)


def samples(n=200, d=32, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.linspace(0.1, 3, d) + rng.integers(0, 3, (n, 1))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "parameters",
    [
        {"knn": 15},
        {"alpha": 0.0, "knn": 15},
        {"alpha": 0.5, "knn": 3},
        {"bandwidth": 4.0},
        {"bandwidth": "median"},
        {"metric": "cosine", "knn": 15},
        {"kernel": "alpha_decay", "knn": 5},
        {"kernel": "alpha_decay", "knn": 7, "decay": 2.0, "alpha": 0.0},
        {"kernel": "alpha_decay", "bandwidth": 6.0, "decay": 10.0},
    ],
)
def test_operator_is_what_its_definition_gives(parameters, dtype):
    X = samples(n=331, dtype=dtype)
    operator = ra.DiffusionGauge(**parameters)(X)
    P, degrees = direct(X, **parameters)
    assert relative(operator.matrix, P) < (2e-6 if dtype == np.float32 else 1e-11)
    assert relative(operator.degrees, degrees) < (2e-6 if dtype == np.float32 else 1e-11)
    assert operator.matrix.dtype == (torch.float32 if dtype == np.float32 else torch.float64)


def test_without_self_loops():
    operator = ra.DiffusionGauge(knn=15, self_loops=False)(samples())
    assert relative(operator.matrix, direct(samples(), loops=False)[0]) < 2e-6
    assert not operator.matrix.diagonal().any()


def test_standardize_divides_by_the_standard_deviation():
    X = samples(dtype=np.float64) * np.logspace(-3, 3, 32)
    X[:, 4] = 7.0
    deviation = X.std(0)
    deviation[4] = 1.0
    assert relative(ra.DiffusionGauge(knn=15, standardize=True)(X).matrix, direct(X / deviation)[0]) < 1e-10


def test_circle_has_bessel_eigenvalues():
    n, epsilon = 200, 0.3
    angle = 2 * np.pi * np.arange(n) / n
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    values = ra.DiffusionGauge(bandwidth=epsilon**0.5)(circle).eigenpairs(9)[0].numpy()
    order = np.array([0, 1, 1, 2, 2, 3, 3, 4, 4])
    np.testing.assert_allclose(values, iv(order, 1 / epsilon) / iv(0, 1 / epsilon), atol=1e-12)


def test_graphtools_agrees_on_alpha_decay():
    graphtools = pytest.importorskip("graphtools")
    X = samples(n=150, dtype=np.float64)
    # graphtools partitions each row at knn + 1 and takes the largest of the first knn + 1, the sample itself included
    graph = graphtools.Graph(X, graphtype="exact", knn=5, decay=40, thresh=0, anisotropy=1, n_pca=None, verbose=0)
    operator = ra.DiffusionGauge(kernel="alpha_decay", knn=5)(X)
    assert (
        relative(
            operator.matrix, np.asarray(graph.diff_op.todense() if hasattr(graph.diff_op, "todense") else graph.diff_op)
        )
        < 1e-5
    )


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
@pytest.mark.parametrize("place", ["coords", "attrs"])
def test_nan_is_an_error_that_says_where(place, parameters):
    X = samples(20)
    X[7, 3] = np.nan
    where = {"model": "seed1", "layer": "model.layers.3", "step": 40}
    array = xr.DataArray(X, dims=("sample", "feature"), coords={"sample": [f"id{i}" for i in range(20)]})
    array = array.assign_coords(where) if place == "coords" else array.assign_attrs(where)
    with pytest.raises(ActivationError, match=r"1 of 20 samples.*7 \(id7\).*seed1.*model\.layers\.3.*40"):
        ra.DiffusionGauge(**parameters)(array)
    with pytest.raises(ActivationError, match="sample 7"):
        ra.DiffusionGauge(**parameters)(X)


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
def test_an_error_names_the_dims_as_they_are(parameters):
    array = xr.DataArray(np.zeros((2, 20, 3)), dims=("step", "sample", "feature"))
    with pytest.raises(ActivationError, match=r"found dims \('step', 'sample', 'feature'\)"):
        ra.DiffusionGauge(**parameters)(array)


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
@pytest.mark.parametrize("X", [np.ma.masked_array(np.ones((9, 2)), True), torch.eye(9).to_sparse()])
def test_masked_and_sparse_activations_are_refused(X, parameters):
    with pytest.raises(ActivationError, match="dense activations without a mask"):
        ra.DiffusionGauge(**parameters)(X)


def test_too_few_samples_for_a_given_knn():
    with pytest.raises(ActivationError, match="knn=15 needs at least 16 samples, found 10"):
        ra.DiffusionGauge(knn=15)(samples(10))
    operator = ra.DiffusionGauge(kernel="alpha_decay")(samples(4))
    assert operator.attrs["knn"] == 3
    assert relative(operator.matrix, direct(samples(4), kernel="alpha_decay", knn=3)[0]) < 2e-6


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
@pytest.mark.parametrize(
    "X", [np.zeros(4), np.zeros((2, 3, 4)), np.zeros((1, 4)), np.array([["a"]]), np.ones((4, 4)) * 1j]
)
def test_what_is_no_table_of_numbers_is_refused(X, parameters):
    with pytest.raises(ActivationError):
        ra.DiffusionGauge(**parameters)(X)


@pytest.mark.parametrize(
    "parameters",
    [
        {"kernel": "cauchy"},
        {"knn": 0},
        {"knn": 2.5},
        {"knn": "a"},
        {"knn": float("nan")},
        {"landmarks": 2.5},
        {"neighbors": 0},
        {"neighbors": True},
        {"alpha": 2.0},
        {"bandwidth": -1.0},
        {"metric": "l1"},
        {"decay": 0.0},
    ],
)
def test_wrong_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        ra.DiffusionGauge(**parameters)


def test_collapsed_representation_is_reported():
    operator = ra.DiffusionGauge(knn=15)(np.full((30, 4), 3.0, dtype=np.float32))
    assert operator.diagnostics["collapsed"]
    assert operator.diagnostics["duplicates"] == 30
    torch.testing.assert_close(operator.matrix, torch.full((30, 30), 1 / 30))


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
def test_cosine_of_a_zero_row_is_refused(parameters):
    X = samples(20)
    X[3] = 0
    with pytest.raises(ActivationError, match=r"1 of 20 samples are zero rows: \[3\]"):
        ra.DiffusionGauge(metric="cosine", **parameters)(X)
    with pytest.raises(ActivationError, match=r"1 of 20 samples are zero rows: \[3\]"):
        ra.DiffusionGauge(metric="cosine", **parameters)(torch.from_numpy(X).requires_grad_())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [*KERNELS, {"perplexity": 2}], ids=[*NAMES, "sparse"])
def test_input_is_left_as_it_is_and_every_kind_of_it_is_taken(parameters, dtype):
    X = samples(60, dtype=dtype)
    before = X.copy()
    gauge = ra.DiffusionGauge(**parameters)
    from_array = gauge(X)
    np.testing.assert_array_equal(X, before)
    tensor = torch.from_numpy(X)
    torch.testing.assert_close(gauge(tensor).matrix, from_array.matrix, rtol=0, atol=0)
    labelled = xr.DataArray(X.T, dims=("feature", "sample"), coords={"sample": np.arange(60) * 2})
    operator = gauge(labelled)
    torch.testing.assert_close(operator.matrix, from_array.matrix, rtol=0, atol=0)
    assert np.unique(operator.to_dataarray().sample.values).tolist() == list(range(0, 120, 2))


def test_gradient_flows_and_the_value_is_the_same():
    X = torch.from_numpy(samples(12, 3, dtype=np.float64)).requires_grad_()
    for parameters in (
        {"knn": 3},
        {"kernel": "alpha_decay", "knn": 3, "decay": 4.0},
        {"bandwidth": 2.0},
        {"metric": "cosine", "knn": 11},
    ):
        gauge = ra.DiffusionGauge(**parameters)
        torch.testing.assert_close(gauge(X).matrix, gauge(X.detach()).matrix, rtol=1e-9, atol=1e-12)
        assert torch.autograd.gradcheck(lambda Z, gauge=gauge: gauge(Z).matrix, (X,))


@pytest.mark.parametrize("size", [1e160, 1e-160])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"knn": 3}, {"bandwidth": 2.0}, {"metric": "cosine"}, {"metric": "cosine", "standardize": True, "knn": 3}],
)
def test_gradients_come_at_any_size_of_the_activations(parameters, size):
    X = torch.from_numpy(samples(40, 3, dtype=np.float64))
    scaled = {**parameters, **({"bandwidth": parameters["bandwidth"] * size} if "bandwidth" in parameters else {})}
    large = (X * size).requires_grad_()
    found = ra.DiffusionGauge(**scaled)(large).matrix
    torch.testing.assert_close(found, ra.DiffusionGauge(**parameters)(X).matrix, rtol=1e-9, atol=1e-12)
    found.square().sum().backward()
    assert bool(large.grad.isfinite().all())
    assert bool(large.grad.any())


@pytest.mark.parametrize("decay", [1.0, 1.5, 40.0, 200.0])
def test_gradients_are_finite_where_samples_coincide_or_lie_far_out(decay):
    X = torch.from_numpy(samples(20, 3, dtype=np.float64))
    X[1] = X[0]
    X[2] *= 1e6
    X.requires_grad_()
    ra.DiffusionGauge(kernel="alpha_decay", knn=3, decay=decay)(X).matrix.square().sum().backward()
    assert bool(X.grad.isfinite().all())


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_a_bandwidth_of_any_kind_of_number_is_the_same_distance(kind):
    X = samples(30) * 100
    expected = ra.DiffusionGauge(bandwidth=300.0)(X).matrix
    torch.testing.assert_close(ra.DiffusionGauge(bandwidth=kind(300))(X).matrix, expected, rtol=0, atol=0)


def test_a_gauge_made_from_the_default_one_keeps_the_loops_of_its_own_kernel():
    made = replace(ra.DiffusionGauge(), perplexity=None, knn=5)
    assert made(samples(30)).attrs["self_loops"] is True
    torch.testing.assert_close(made(samples(30)).matrix, ra.DiffusionGauge(knn=5)(samples(30)).matrix)
    assert ra.DiffusionGauge()(samples(30)).attrs["self_loops"] is False


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 60), alpha=st.floats(0, 1))
@pytest.mark.parametrize("parameters", [{}, {"perplexity": 2}, {"knn": 2}], ids=["perplexity", "sparse", "knn"])
def test_permuting_samples_permutes_the_operator(parameters, seed, n, alpha):
    rng = np.random.default_rng(seed)
    X, order = rng.standard_normal((n, 5)), rng.permutation(n)
    gauge = ra.DiffusionGauge(alpha=alpha, **parameters)
    P = gauge(X).matrix.to_dense()
    torch.testing.assert_close(gauge(X[order]).matrix.to_dense(), P[order][:, order], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(P.sum(1), torch.ones(n, dtype=P.dtype), rtol=0, atol=1e-12)


def test_graphtools_agrees_on_a_fixed_bandwidth():
    graphtools = pytest.importorskip("graphtools")
    X = samples(n=150, dtype=np.float64)
    # exp(-(d / b)^2) is the Gaussian kernel of bandwidth b / sqrt(2)
    graph = graphtools.Graph(
        X, graphtype="exact", knn=5, bandwidth=8.0, decay=2, thresh=0, anisotropy=1, n_pca=None, verbose=0
    )
    truth = graph.diff_op.toarray() if hasattr(graph.diff_op, "toarray") else np.asarray(graph.diff_op)
    assert relative(ra.DiffusionGauge(bandwidth=8.0 / 2**0.5)(X).matrix, truth) < 1e-5
    assert relative(ra.DiffusionGauge(kernel="alpha_decay", bandwidth=8.0, decay=2.0)(X).matrix, truth) < 1e-5
