"""The kernel of fixed perplexity against its definition, scikit-learn's t-SNE, its symmetries and its edges."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, squareform
from sklearn.manifold._t_sne import _joint_probabilities

import repaudit as ra
from repaudit.distance import points
from repaudit.errors import ActivationError
from repaudit.gauge import neighbors, perplexity_operator
from repaudit.gauge.perplexity import neighbors_within, spread_over_neighbors


def beside(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference, numerics = beside("perplexity_reference"), beside("test_numerics")
adversaries, N = numerics.adversaries(), numerics.N
COUNTS = ("duplicates", "collapsed", "floored", "unheld")


@cache
def truth_of(name, perplexity):
    """P and degrees of what float32 keeps of an adversary."""
    return reference.operator(adversaries[name].astype(np.float32), perplexity)


def relative(found, truth):
    found, truth = (torch.as_tensor(x).to_dense().double() for x in (found, truth))
    return float(torch.linalg.norm(found - truth) / torch.linalg.norm(truth))


def samples(n=200, d=8, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def in_small_blocks():
    """Make blocks and panels so small that every loop over them runs many times."""
    stack = ExitStack()
    stack.enter_context(mock.patch.dict(neighbors.BLOCK, cpu=64))
    stack.enter_context(mock.patch.dict(neighbors._PANEL_ENTRIES, cpu=2**13))
    stack.enter_context(mock.patch.dict(points._PANEL_ENTRIES, cpu=2**13))
    return stack


@pytest.mark.parametrize("name", adversaries)
@pytest.mark.parametrize("perplexity", [15, N / 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
@pytest.mark.thin(3)
def test_adversarial_activations_give_the_operator_of_the_definition(name, perplexity, dtype, tolerance):
    operator = ra.DiffusionGauge(perplexity=perplexity)(adversaries[name].astype(np.float32).astype(dtype))
    P, degrees = truth_of(name, perplexity)
    assert relative(operator.matrix, P) <= tolerance
    assert relative(operator.degrees, degrees) <= tolerance
    assert operator.matrix.is_sparse == (perplexity == 15)
    assert operator.matrix.dtype == torch.from_numpy(np.zeros(0, dtype)).dtype


@pytest.mark.parametrize("parameters", [{"alpha": 0.0}, {"alpha": 0.5}, {"neighbors": 20}, {"neighbors": 500}])
@pytest.mark.parametrize("n", [100, 400])
def test_parameters_are_those_of_the_definition(parameters, n):
    X = samples(n)
    operator = ra.DiffusionGauge(**parameters)(X)
    P, degrees = reference.operator(X, **parameters)
    assert relative(operator.matrix, P) < 1e-9
    assert relative(operator.degrees, degrees) < 1e-9


@pytest.mark.parametrize("n", [100, 400])
def test_metric_and_standardize_change_the_distances_alone(n):
    X = samples(n) * np.logspace(-2, 2, 8) + 3
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert relative(ra.DiffusionGauge(metric="cosine")(X).matrix, ra.DiffusionGauge()(unit).matrix) < 1e-8
    assert relative(ra.DiffusionGauge(standardize=True)(X).matrix, ra.DiffusionGauge()(X / X.std(0)).matrix) < 1e-8


def test_bfloat16_is_widened_and_not_computed_in():
    X = torch.from_numpy(adversaries["offset 100"]).bfloat16()
    operator = ra.DiffusionGauge()(X)
    assert operator.matrix.dtype == torch.float32
    assert relative(operator.matrix, reference.operator(X.double().numpy())[0]) <= 1e-5


@pytest.mark.parametrize("kind", ["cloud", "heavy tails", "clusters", "pairs"])
@pytest.mark.parametrize("perplexity", [1.5, 15, 150])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.thin(3)
def test_every_row_has_the_perplexity(kind, perplexity, dtype, tolerance):
    X = samples(700, 5)
    if kind == "heavy tails":
        X = X / np.abs(samples(700, 1, seed=1)) ** 2
    elif kind == "clusters":
        X = X + 1e3 * samples(7, 5, seed=1)[np.arange(700) % 7]
    elif kind == "pairs":
        X[350:] = X[:350] + 1e-6 * X[350:]
    squared = torch.from_numpy(cdist(X, X, "sqeuclidean")).fill_diagonal_(np.inf)
    for k in (neighbors_within(perplexity, 700), 699):
        near = squared.masked_fill(squared > squared.kthvalue(k, dim=1, keepdim=True).values, np.inf).to(dtype)
        found = spread_over_neighbors(near, perplexity, 1e-12)
        p = found.probability.double()
        held = torch.exp(-torch.special.xlogy(p, p).sum(1))
        torch.testing.assert_close(held, torch.full_like(held, perplexity), rtol=tolerance, atol=0)
        torch.testing.assert_close(p.sum(1), torch.ones_like(held), rtol=0, atol=tolerance / 100)
        weight = torch.exp(-found.precision[:, None] * (near.double() - near.double().amin(1, keepdim=True)))
        torch.testing.assert_close(p, weight / weight.sum(1, keepdim=True), rtol=0, atol=tolerance / 10)
        assert (found.unheld, found.floored) == (0, 0)


@pytest.mark.parametrize("perplexity", [5, 15, 60])
def test_affinities_are_those_of_t_sne(perplexity):
    X = samples(250)
    operator = ra.DiffusionGauge(perplexity=perplexity, neighbors=249, alpha=0.0)(X)
    K = operator.degrees[:, None] * operator.matrix
    truth = squareform(_joint_probabilities(cdist(X, X, "sqeuclidean"), perplexity, 0))
    assert relative(K / 250, truth) < 1e-4


@pytest.mark.parametrize(
    ("dtype", "blocks", "tolerance"),
    [(np.float32, False, 1e-6), (np.float32, True, 1e-5), (np.float64, True, 1e-10)],
)
@pytest.mark.parametrize("perplexity", [3, 15, N / 8])
@pytest.mark.parametrize("name", adversaries)
@pytest.mark.thin(3)
def test_dense_sparse_and_blocked_operators_agree(name, perplexity, dtype, blocks, tolerance, monkeypatch):
    X, gauge, found = adversaries[name][::2].astype(dtype), ra.DiffusionGauge(perplexity=perplexity), {}
    for form, least in (("dense", N), ("sparse", 0)):
        monkeypatch.setattr(perplexity_operator, "SPARSE", least)
        with in_small_blocks() if blocks else ExitStack():
            found[form] = gauge(X)
    assert [operator.matrix.is_sparse for operator in found.values()] == [False, True]
    assert relative(found["sparse"].matrix, found["dense"].matrix) <= tolerance
    assert relative(found["sparse"].degrees, found["dense"].degrees) <= tolerance
    diagnostics = [[operator.diagnostics[name] for name in COUNTS] for operator in found.values()]
    assert diagnostics[0] == diagnostics[1]


def tied(kind, n, rng):
    if kind == "grid":
        return rng.integers(0, 4, (n, 2))
    if kind == "one-hot":
        return np.eye(7)[rng.integers(0, 7, n)]
    if kind == "two one-hots":
        return np.eye(5)[rng.integers(0, 5, (n, 2))].reshape(n, 10)
    if kind == "repeated rows":
        return rng.standard_normal((6, 4))[rng.integers(0, 6, n)]
    return np.concatenate([rng.integers(0, 2, (n - n // 3, 3)), rng.standard_normal((n // 3, 3))])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(7, 150),
    kind=st.sampled_from(["grid", "one-hot", "two one-hots", "repeated rows", "grid and cloud"]),
    scale=st.sampled_from([1, 0.1]),
    offset=st.sampled_from([0, 1 / 3, 30]),
    blocks=st.booleans(),
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-10)])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"perplexity": 2}, {"perplexity": 3.5, "neighbors": 5}, {"knn": 3, "neighbors": 5}],
    ids=["default", "sparse", "few neighbors", "knn"],
)
@pytest.mark.thin(3)
def test_permuting_tied_samples_permutes_the_operator(
    parameters, dtype, tolerance, seed, n, kind, scale, offset, blocks
):
    rng = np.random.default_rng(seed)
    X, order = (scale * tied(kind, n, rng) + offset).astype(dtype), rng.permutation(n)
    gauge = ra.DiffusionGauge(**parameters)
    with in_small_blocks() if blocks else ExitStack():
        one, other = gauge(X), gauge(X[order])
    P = one.matrix.to_dense()
    # the rounding of a distance depends on its block, and the samples between the grid's are at any distance
    tolerance *= 10 if kind == "grid and cloud" else 1
    torch.testing.assert_close(other.matrix.to_dense(), P[order][:, order], rtol=0, atol=tolerance)
    torch.testing.assert_close(other.degrees, one.degrees[order], rtol=10 * tolerance, atol=0)


@pytest.mark.parametrize("perplexity", [2, 15, 100])
@pytest.mark.parametrize("kind", ["grid", "one-hot", "repeated rows", "grid and cloud"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
@pytest.mark.thin(3)
def test_tied_samples_give_the_operator_of_the_definition(kind, perplexity, dtype, tolerance):
    X = tied(kind, 400, np.random.default_rng(0)).astype(dtype)
    operator = ra.DiffusionGauge(perplexity=perplexity)(X)
    assert relative(operator.matrix, reference.operator(X, perplexity)[0]) < tolerance


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("least", [0, 1000])
def test_float32_cuts_between_near_ties_where_float64_does(least, blocks, monkeypatch):
    monkeypatch.setattr(perplexity_operator, "SPARSE", least)
    monkeypatch.setattr(reference, "SAME", 1e-12)
    rng, lattice = np.random.default_rng(0), np.stack(np.meshgrid(np.arange(15), np.arange(15)), 2).reshape(-1, 2)
    X = (lattice + rng.integers(0, 8, (225, 2)) * 2.0**-20).astype(np.float32)
    with in_small_blocks() if blocks else ExitStack():
        operator = ra.DiffusionGauge(perplexity=2, neighbors=2)(X)
    # two of four neighbours at nearly the same distance, alike in weight whatever their distances
    assert relative(operator.matrix, reference.operator(X, 2, neighbors=2)[0]) < 1e-6


@pytest.mark.parametrize("n", [200, 400])
def test_scale_rotation_and_shift_change_nothing(n):
    X, rng = samples(n), np.random.default_rng(1)
    moved = 3 * X @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + rng.standard_normal(8)
    torch.testing.assert_close(
        ra.DiffusionGauge()(moved).matrix.to_dense(), ra.DiffusionGauge()(X).matrix.to_dense(), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("n", [40, 200, 400])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_it_is_a_reversible_walk_that_never_stays(n, dtype, tolerance):
    operator = ra.DiffusionGauge()(samples(n, dtype=dtype))
    P = operator.matrix.to_dense()
    torch.testing.assert_close(P.sum(1), torch.ones_like(P[0]), rtol=0, atol=tolerance)
    assert not P.diagonal().any()
    assert float(P.min()) == 0
    assert float(operator.degrees.min()) > 0
    flow = operator.degrees[:, None] * P
    torch.testing.assert_close(flow, flow.mT, rtol=0, atol=tolerance)
    assert ra.DiffusionOperator.from_matrix(P).reversible


def test_two_samples_swap():
    operator = ra.DiffusionGauge()(samples(2))
    assert operator.to_numpy().tolist() == [[0, 1], [1, 0]]
    assert operator.diagnostics["unheld"] == 2


@pytest.mark.parametrize(("n", "unheld"), [(3, 3), (10, 10), (15, 15), (16, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_too_few_samples_rows_are_uniform_over_the_others(n, unheld, dtype):
    operator = ra.DiffusionGauge()(samples(n, dtype=dtype))
    np.testing.assert_allclose(operator.to_numpy(), (1 - np.eye(n)) / (n - 1), atol=1e-7)
    assert operator.diagnostics["unheld"] == unheld
    assert operator.attrs["neighbors"] == n - 1


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_many_duplicates_are_uniform_over_these(n, dtype):
    X = samples(n, dtype=dtype)
    X[:20] = X[0]
    operator = ra.DiffusionGauge()(X)
    squared = torch.from_numpy(cdist(X, X, "sqeuclidean")).fill_diagonal_(np.inf)
    # to some others, the twenty are the nearest
    crowded = (squared[:, :20] <= squared.amin(1, keepdim=True) * (1 + 1e-9)).sum(1) >= 15
    assert operator.diagnostics["unheld"] == int(crowded.sum()) > 20
    assert operator.diagnostics["duplicates"] == 20
    assert relative(operator.matrix, reference.operator(X)[0]) < (1e-6 if dtype == np.float32 else 1e-11)
    found = spread_over_neighbors(squared, 15, 1e-9)
    assert found.probability[0, 1:20].tolist() == [1 / 19] * 19
    assert not found.probability[0, 20:].any()
    assert torch.equal(found.precision.isinf(), crowded)


@pytest.mark.parametrize("n", [50, 600])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_collapsed_representation_is_reported_and_uniform(n, dtype, blocks):
    with in_small_blocks() if blocks else ExitStack():
        operator = ra.DiffusionGauge()(np.full((n, 4), 3.1, dtype=dtype))
    assert operator.diagnostics["collapsed"] is True
    assert operator.diagnostics["duplicates"] == operator.diagnostics["unheld"] == n
    np.testing.assert_allclose(operator.to_numpy(), (1 - np.eye(n)) / (n - 1), rtol=1e-6)


@pytest.mark.parametrize("perplexity", [5, 15])
def test_several_perplexities_of_collapsed_and_duplicate_samples(perplexity):
    for X in (np.full((400, 4), 3.1), samples(6, 4)[np.arange(400) % 6]):
        with in_small_blocks():
            found = dict(zip((5, 15), ra.DiffusionGauge().operators(X, (5, 15)), strict=True))[perplexity]
        assert relative(found.matrix, reference.operator(X, perplexity)[0]) < 1e-10


@pytest.mark.parametrize(
    "parameters",
    [{}, {"alpha": 0.0}, {"alpha": 0.5, "neighbors": 20}, {"metric": "cosine"}, {"standardize": True}],
)
@pytest.mark.parametrize("kind", ["cloud", "grid", "one-hot", "repeated rows"])
@pytest.mark.parametrize("n", [12, 100, 400])
def test_the_differentiable_form_is_the_same_operator(n, kind, parameters):
    rng = np.random.default_rng(0)
    X = samples(n, 3) if kind == "cloud" else tied(kind, n, rng) + 1.0
    gauge = ra.DiffusionGauge(**parameters)
    found, plain = gauge(torch.from_numpy(X).requires_grad_()), gauge(X)
    torch.testing.assert_close(found.matrix.detach(), plain.matrix.to_dense(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.degrees.detach(), plain.degrees, rtol=1e-10, atol=0)
    assert [found.diagnostics[name] for name in COUNTS] == [plain.diagnostics[name] for name in COUNTS]


@pytest.mark.parametrize("alpha", [0, 1])
@pytest.mark.parametrize("neighbors", [None, 8])
def test_gradients_are_those_of_finite_differences(alpha, neighbors):
    gauge = ra.DiffusionGauge(perplexity=5, alpha=alpha, neighbors=neighbors)
    X = torch.from_numpy(samples(14, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda Z: gauge(Z).matrix, (X,))


@pytest.mark.parametrize("copies", [1, 2])
def test_gradients_at_equal_distances_are_finite(copies):
    X = torch.eye(20, dtype=torch.float64).repeat(copies, 1).requires_grad_()
    ra.DiffusionGauge()(X).matrix.square().sum().backward()
    assert torch.isfinite(X.grad).all()


@pytest.mark.parametrize("copies", [2, 10, 20, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_at_duplicates_are_finite(copies, dtype):
    X = torch.from_numpy(samples(60, 3)).to(dtype)
    X[:copies] = X[0]
    X.requires_grad_()
    operator = ra.DiffusionGauge()(X)
    operator.matrix.square().sum().backward()
    assert operator.matrix.dtype == X.grad.dtype == dtype
    assert torch.isfinite(X.grad).all()
    assert bool(X.grad.any()) == (copies < 60)


@pytest.mark.parametrize(
    ("parameters", "one", "other"),
    [
        ({"perplexity": 5, "knn": 3}, "perplexity=5", "knn=3"),
        ({"perplexity": 5, "bandwidth": 2.0}, "perplexity=5", "bandwidth=2.0"),
        ({"perplexity": 5, "kernel": "alpha_decay"}, "perplexity=5", "kernel='alpha_decay'"),
        ({"perplexity": 5, "landmarks": 30}, "perplexity", "landmarks"),
        ({"landmarks": 30}, "perplexity", "landmarks"),
        ({"perplexity": 5, "landmarks": 30, "knn": 5}, "perplexity", "landmarks"),
        ({"perplexity": 1}, "more than 1", "found 1"),
        ({"perplexity": 0.5}, "more than 1", "found 0.5"),
        ({"perplexity": -3}, "more than 1", "found -3"),
        ({"perplexity": True}, "more than 1", "found True"),
        ({"perplexity": float("inf")}, "more than 1", "found inf"),
        ({"perplexity": float("nan")}, "more than 1", "found nan"),
        ({"perplexity": "15"}, "more than 1", "found '15'"),
        ({"perplexity": 20, "neighbors": 19}, "perplexity=20", "neighbors=19"),
        ({"neighbors": 14}, "perplexity=15", "neighbors=14"),
        ({"self_loops": True}, "perplexity", "self_loops=False"),
    ],
)
def test_what_does_not_go_with_a_perplexity_is_named(parameters, one, other):
    with pytest.raises(ValueError, match="perplexity") as caught:
        ra.DiffusionGauge(**parameters)
    assert one in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"perplexity": 30, "neighbors": 40},
        {"knn": 15},
        {"knn": 5, "landmarks": 40, "seed": 3},
        {"knn": 5, "self_loops": False},
        {"bandwidth": 2.0},
        {"bandwidth": "median"},
        {"kernel": "alpha_decay"},
    ],
)
def test_a_gauge_is_what_its_fields_make(parameters):
    gauge = ra.DiffusionGauge(**parameters)
    assert ra.DiffusionGauge(**asdict(gauge)) == gauge
    assert replace(gauge, alpha=0.5) == ra.DiffusionGauge(**parameters, alpha=0.5)
    assert replace(replace(gauge, alpha=0.5), alpha=1.0) == gauge
    assert (gauge.perplexity is None) == (parameters.keys() & {"knn", "bandwidth", "kernel"} != set())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("perplexities", "widest"), [((10, N / 8), 30), ((12, 3, 12), 36), ((10.5,), 31)])
@pytest.mark.parametrize("name", ["offset 100", "groups of exact duplicates", "equal rows", "many far rows"])
def test_operators_at_several_perplexities_are_those_of_each(name, perplexities, widest, blocks, dtype):
    X = adversaries[name][::2].astype(dtype)
    # where one of several is dense, all distances are at hand; else they come in blocks, which round otherwise
    tolerance = 1e-5 if dtype == np.float32 and blocks and N / 8 in perplexities else 1e-7
    with in_small_blocks() if blocks else ExitStack():
        found = ra.DiffusionGauge(alpha=0.5).operators(X, perplexities)
        assert len(found) == len(perplexities)
        for perplexity, operator in zip(perplexities, found, strict=True):
            alone = ra.DiffusionGauge(alpha=0.5, perplexity=perplexity)(X)
            assert relative(operator.matrix, alone.matrix) <= tolerance
            assert operator.attrs == alone.attrs
            assert operator.diagnostics == pytest.approx(alone.diagnostics, rel=1e-5)
    assert (found[0].attrs["perplexity"], found[0].attrs["neighbors"]) == (perplexities[0], widest)


def test_operators_at_several_perplexities_need_a_perplexity_that_fits():
    for parameters in ({"knn": 5}, {"bandwidth": 1.0}, {"kernel": "alpha_decay"}):
        with pytest.raises(ValueError, match="several perplexities need a gauge with a perplexity"):
            ra.DiffusionGauge(**parameters).operators(samples(), (5, 15))
    with pytest.raises(ValueError, match="perplexity=30 needs as many neighbors; found neighbors=20"):
        ra.DiffusionGauge(neighbors=20).operators(samples(), (5, 30))
    with pytest.raises(ValueError, match="more than 1; found 1"):
        ra.DiffusionGauge().operators(samples(), (5, 1))


def test_given_neighbors_are_those_of_every_perplexity():
    found = ra.DiffusionGauge(neighbors=20).operators(samples(), (5, 15))
    assert [operator.attrs["neighbors"] for operator in found] == [20, 20]
    for perplexity, operator in zip((5, 15), found, strict=True):
        assert relative(operator.matrix, reference.operator(samples(), perplexity, neighbors=20)[0]) < 1e-9


def test_operators_at_several_perplexities_carry_gradients():
    X = torch.from_numpy(samples(40, 3)).requires_grad_()
    for perplexity, operator in zip((5, 15), ra.DiffusionGauge().operators(X, (5, 15)), strict=True):
        alone = ra.DiffusionGauge(perplexity=perplexity)(X)
        given, own = (torch.autograd.grad(P.matrix.square().sum(), X)[0] for P in (operator, alone))
        torch.testing.assert_close(given, own, rtol=1e-12, atol=0)
        assert bool(given.any())


WHOLE = np.random.default_rng(0).integers(-(2**40), 2**40, (60, 3))


@pytest.mark.parametrize(
    "X",
    [
        WHOLE.astype(np.float64).astype(">f8"),
        WHOLE,
        WHOLE.astype(">i8"),
        torch.from_numpy(WHOLE),
        (np.abs(WHOLE) % 2**32).astype(np.uint32),
        (np.abs(WHOLE)).astype(np.uint64),
        (WHOLE / 3).astype(np.longdouble),
        xr.DataArray(WHOLE, dims=("sample", "feature")),
        np.array([[2**53], [0], [-(2**53)]]),
        np.array([[2**24 + 1], [2**24], [0]]),
    ],
    ids=lambda X: f"{type(X).__name__} {X.dtype}",
)
@pytest.mark.parametrize("parameters", [{"perplexity": 3}, {"knn": 2}], ids=["perplexity", "knn"])
def test_wide_numbers_of_any_byte_order_are_read_as_they_are(X, parameters):
    gauge = ra.DiffusionGauge(**parameters)
    found, truth = gauge(X), gauge(np.asarray(X).astype(np.float64))
    assert found.matrix.dtype == torch.float64
    torch.testing.assert_close(found.matrix, truth.matrix, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.array([[2**53 + 1], [0], [1]]), f"found {2**53 + 1}, which float64 would round"),
        (np.array([[-(2**63)], [0], [1]]), f"found {2**63}, which float64 would round"),
        (np.array([[2**64 - 1], [0], [1]], dtype=np.uint64), f"found {2**64 - 1}, which float64 would round"),
        (torch.tensor([[2**53 + 1], [0], [1]]), f"found {2**53 + 1}, which float64 would round"),
        (np.array([[1], [2], [3]], dtype=np.longdouble) / 3, "expected numbers that float64 holds, found float128"),
    ],
)
def test_numbers_that_would_be_rounded_are_refused(X, message):
    if "float128" in message and np.finfo(np.longdouble).nmant <= 52:
        pytest.skip("here long doubles are doubles")
    with pytest.raises(ActivationError, match=message):
        ra.DiffusionGauge()(X)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16, np.float16, ml_dtypes.bfloat16, np.float32, bool])
@pytest.mark.parametrize("parameters", [{"perplexity": 3}, {"knn": 2}], ids=["perplexity", "knn"])
def test_narrow_numbers_give_float32(dtype, parameters):
    X = np.random.default_rng(0).integers(0, 200, (60, 3)).astype(dtype)
    gauge = ra.DiffusionGauge(**parameters)
    operator = gauge(X)
    assert operator.matrix.dtype == torch.float32
    torch.testing.assert_close(operator.matrix, gauge(X.astype(np.float32)).matrix, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sparse_default_as_a_dataarray_and_back(dtype):
    ids = [f"s{i}" for i in range(400)]
    X = xr.DataArray(samples(400, dtype=dtype), dims=("sample", "feature"), coords={"sample": ids}, name="layer.1")
    operator = ra.DiffusionGauge()(X)
    array = operator.to_dataarray()
    assert array.dims == ("entry",)
    assert (array.attrs["perplexity"], array.attrs["neighbors"], array.attrs["layer"]) == (15, 45, "layer.1")
    back = ra.DiffusionOperator.from_dataarray(array)
    torch.testing.assert_close(back.matrix, operator.matrix, rtol=0, atol=0)
    torch.testing.assert_close(back.degrees, operator.degrees, rtol=0, atol=0)
    assert back.samples.tolist() == ids
    assert back.attrs == operator.attrs
    assert back.diagnostics == operator.diagnostics


def test_a_tree_holds_the_sparse_operators_dense():
    X = xr.DataArray(samples(720).reshape(2, 360, 8), dims=("step", "sample", "feature"), coords={"step": [0, 5]})
    tree = xr.DataTree.from_dict({"/models/a": xr.Dataset({"layer": X}, attrs={"repaudit": {"name": "a"}}).chunk()})
    found = ra.DiffusionGauge().map(tree)["models/a"]["layer"]
    for step in (0, 5):
        operator = ra.DiffusionGauge()(X.sel(step=step))
        assert operator.matrix.is_sparse
        np.testing.assert_array_equal(found.sel(step=step).values, operator.to_numpy())


@pytest.mark.parametrize("gauge", [ra.DiffusionGauge(), ra.DiffusionGauge(knn=15)])
@pytest.mark.parametrize("size", [1e-39, 1e-44])
def test_a_layer_that_has_died_out_is_an_error_that_says_so(gauge, size):
    X = (np.random.default_rng(0).standard_normal((60, 4)) * size).astype(np.float32)
    with pytest.raises(ActivationError, match="died out"):
        gauge(X)
    assert gauge(np.zeros((60, 4), dtype=np.float32)).diagnostics["collapsed"]
