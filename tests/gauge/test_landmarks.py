"""Diffusion through landmarks: the dense operator's square with all of them, near it with few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import repaudit as ra
from repaudit.errors import ActivationError, OperatorError

KERNELS = [
    {"knn": 15},
    {"knn": 15, "alpha": 0.0, "metric": "cosine"},
    {"knn": 15, "alpha": 0.5, "standardize": True},
    {"kernel": "alpha_decay", "knn": 4},
    {"bandwidth": 2.0},
    {"knn": 15, "self_loops": False},
]


def samples(n=120, d=8, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def clusters(n=600, d=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) + 3 * rng.standard_normal((5, d))[np.arange(n) % 5]


def relative(found, truth):
    return float(torch.linalg.norm(found - truth) / torch.linalg.norm(truth))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", KERNELS)
def test_with_all_samples_it_is_the_square_of_the_dense_operator(parameters, dtype):
    X = samples(dtype=dtype)
    dense, through = ra.DiffusionGauge(**parameters)(X), ra.DiffusionGauge(**parameters, landmarks=120)(X)
    tolerance = 5e-6 if dtype == np.float32 else 1e-11
    assert relative(through.matrix, dense.power(2).matrix) < tolerance
    assert relative(through.degrees, dense.degrees) < tolerance
    assert through.matrix.dtype == dense.matrix.dtype
    assert through.attrs["t"] == 2
    assert through.power(3).attrs["t"] == 6
    np.testing.assert_allclose(
        through.eigenpairs(6)[0], dense.power(2).eigenpairs(6)[0], atol=1e-6 if dtype == np.float32 else 1e-12
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_close_pairs_are_recomputed_through_landmarks_too(offset):
    X = samples(400, 64)
    X[200:] = X[:200] + 1e-4 * samples(200, 64, seed=1)
    X = (X + offset).astype(np.float32)
    found = ra.DiffusionGauge(knn=15, landmarks=400)(X).matrix.double()
    assert relative(found, ra.DiffusionGauge(knn=15)(X.astype(np.float64)).power(2).matrix) < 1e-5


@pytest.mark.parametrize("parameters", KERNELS)
def test_few_landmarks_still_make_a_reversible_walk(parameters):
    operator = ra.DiffusionGauge(**parameters, landmarks=40)(samples())
    assert operator.factor.shape == (120, 40)
    torch.testing.assert_close(operator.matrix.sum(1), torch.ones(120, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(operator.matrix.min()) >= 0
    alone = ra.DiffusionOperator.from_matrix(operator.matrix)
    assert alone.reversible
    torch.testing.assert_close(alone.stationary, operator.stationary, rtol=1e-8, atol=0)
    assert operator.diagnostics == pytest.approx(
        alone.diagnostics | {"duplicates": 0, "collapsed": False, "floored": 0}, rel=1e-9
    )


def test_spectrum_is_near_the_dense_one_and_nears_it_with_more_landmarks():
    X = clusters()
    gauge = {"bandwidth": 5.0}
    truth = ra.DiffusionGauge(**gauge)(X).power(2).eigenpairs(6)[0]
    errors = []
    for count in (30, 120, 480):
        seeds = [ra.DiffusionGauge(**gauge, landmarks=count, seed=seed)(X).eigenpairs(6)[0] for seed in range(4)]
        errors.append(np.mean([float((found - truth).abs().max()) for found in seeds]))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[1] < 0.05
    # the slow directions, those between the clusters, are the dense operator's
    vectors = ra.DiffusionGauge(**gauge, landmarks=120)(X).eigenpairs(5)[1]
    exact = ra.DiffusionGauge(**gauge)(X).eigenpairs(5)[1]
    assert np.linalg.svd(np.linalg.qr(vectors)[0].T @ np.linalg.qr(exact)[0])[1].min() > 0.98


def test_powers_spectrum_and_entropy_agree_with_the_dense_matrix():
    operator = ra.DiffusionGauge(knn=15, landmarks=30)(samples())
    dense = ra.DiffusionOperator(operator.matrix, operator.degrees)
    for t in (0, 1, 2, 5):
        torch.testing.assert_close(operator.power(t).matrix, dense.power(t).matrix, rtol=0, atol=1e-13)
    values, vectors = operator.eigenpairs(10)
    torch.testing.assert_close(values, dense.eigenpairs(10)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.matrix @ vectors, vectors * values, rtol=0, atol=1e-12)
    norms = (operator.stationary[:, None] * vectors.square()).sum(0)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert len(operator.eigenpairs()[0]) == 120
    assert operator.entropy(2) == pytest.approx(dense.entropy(2), rel=1e-6)
    torch.testing.assert_close(operator.diffusion_distance(2), dense.diffusion_distance(2))


def test_components_duplicates_and_collapse():
    X = samples(90, 3) + 1000 * (np.arange(90)[:, None] % 3)
    assert ra.DiffusionGauge(landmarks=60, knn=3)(X).diagnostics["components"] == 3
    X[80:] = X[80]
    operator = ra.DiffusionGauge(landmarks=60, knn=3)(X)
    assert operator.diagnostics["duplicates"] == 10
    same = ra.DiffusionGauge(knn=9, landmarks=10)(np.full((20, 3), 2.5))
    assert same.diagnostics["collapsed"]
    np.testing.assert_allclose(same.to_numpy(), 1 / 20)


def test_seed_draws_the_landmarks():
    X = samples()
    first, again, other = (ra.DiffusionGauge(knn=15, landmarks=20, seed=seed)(X) for seed in (1, 1, 2))
    assert torch.equal(first.factor, again.factor)
    assert not torch.equal(first.landmarks, other.landmarks)
    assert (first.attrs["landmarks"], first.attrs["seed"]) == (20, 1)


def test_dataarray_and_back():
    ids = [f"s{i}" for i in range(40)]
    X = xr.DataArray(samples(40), dims=("sample", "feature"), coords={"sample": ids}, name="l")
    operator = ra.DiffusionGauge(knn=11, landmarks=12)(X)
    array = operator.to_dataarray()
    assert array.dims == ("sample", "landmark")
    back = ra.DiffusionOperator.from_dataarray(array)
    torch.testing.assert_close(back.matrix, operator.matrix, rtol=0, atol=0)
    assert back.samples.tolist() == ids
    assert back.attrs == operator.attrs
    assert back.diagnostics == operator.diagnostics


def test_no_square_matrix_is_made_of_many_samples():
    X = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    operator = ra.DiffusionGauge(knn=15, landmarks=100)(X)
    assert operator.factor.shape == (20_000, 100)
    assert operator.power(2).eigenpairs(3)[0].numpy() == pytest.approx(operator.eigenpairs(3)[0].numpy() ** 2, abs=1e-5)
    with pytest.raises(OperatorError, match="up to 5000 samples"):
        operator.to_numpy()


def test_what_cannot_be_asked_of_it():
    with pytest.raises(ActivationError, match="landmarks=30 needs as many samples, found 20"):
        ra.DiffusionGauge(knn=15, landmarks=30)(samples(20))
    with pytest.raises(ActivationError, match="knn=10 needs at least 11 landmarks, found 5"):
        ra.DiffusionGauge(landmarks=5, knn=10)(samples(20))
    for wrong, message in (
        ({"landmarks": 1, "knn": 3}, "landmarks is a number of samples, 2 or more"),
        ({"landmarks": 5, "knn": 3, "neighbors": 3}, "neighbors keeps near samples, landmarks a few"),
        ({"landmarks": 5, "bandwidth": "median"}, "needs all distances"),
    ):
        with pytest.raises(ValueError, match=message):
            ra.DiffusionGauge(**wrong)
    with pytest.raises(ValueError, match="no gradient"):
        ra.DiffusionGauge(knn=2, landmarks=3)(torch.randn(20, 3, requires_grad=True))
