"""Activations and settings that spoil a plain float32 gauge; the definition in float64 is the truth."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch.utils._python_dispatch import TorchDispatchMode

import repaudit as ra
from repaudit.distance import squared as distance
from repaudit.distance.points import cloud
from repaudit.distance.squared import squared_distances_
from repaudit.gauge import landmarks, neighbors
from repaudit.gauge import smallest as nearest
from repaudit.gauge.bandwidth import median_distance
from repaudit.gauge.smallest import merge_smallest_, smallest

N, D = 600, 256


def adversaries():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((N, D))

    def changed(rows, value):
        X = base.copy()
        X[rows] = value(X[rows])
        return X

    outlier = base.copy()
    outlier[:, 5] = 3000 + 0.3 * rng.standard_normal(N)
    twins = base.copy()
    twins[300:] = twins[:300] + 1e-4 * rng.standard_normal((300, D))
    groups = base[rng.integers(0, 20, N)]
    return {
        "offset 100": base + 100,
        "outlier dimension": outlier,
        "massive rows": changed(slice(0, 4), lambda rows: rows * 1e4),
        "many far rows": changed(slice(0, 60), lambda rows: rows + 1e4),
        "near-duplicate pairs": twins,
        "groups of exact duplicates": groups,
        "tight clusters far off": groups + 1e-3 * base + 100,
        "constant rows": changed(slice(0, 50), lambda rows: np.repeat(rows[:, :1], D, axis=1)),
        "equal rows": changed(slice(0, 50), lambda rows: np.full_like(rows, 0.5)),
        "tiny": base * 1e-25,
        "huge": base * 1e25,
    }


def direct(X, kernel, knn, loops=True):
    d = cdist(X.astype(np.float64), X.astype(np.float64))
    s = np.maximum(np.sort(d, axis=1)[:, knn], 1e-6 * np.sqrt((d**2).mean() / 2))
    with np.errstate(over="ignore"):
        if kernel == "gaussian":
            K = np.exp(-(d / s) * (d / s[:, None]))
        else:
            K = (np.exp(-((d / s) ** 40)) + np.exp(-((d / s[:, None]) ** 40))) / 2
    q = K.sum(1)
    K = K / np.outer(q, q)
    return K / K.sum(1, keepdims=True)


@pytest.mark.parametrize("name", adversaries())
@pytest.mark.parametrize(("kernel", "knn"), [("gaussian", 15), ("alpha_decay", 5)])
@pytest.mark.parametrize("neighbors", [None, N - 1])
def test_adversarial_activations(name, kernel, knn, neighbors):
    X = adversaries()[name].astype(np.float32)
    P = ra.DiffusionGauge(kernel=kernel, knn=knn, neighbors=neighbors)(X).to_numpy()
    truth = direct(X, kernel, knn)
    assert np.linalg.norm(P - truth) <= 1e-5 * np.linalg.norm(truth)


def test_bfloat16_is_widened_and_not_computed_in():
    X = torch.from_numpy(adversaries()["offset 100"]).bfloat16()
    operator = ra.DiffusionGauge(knn=15)(X)
    assert operator.matrix.dtype == torch.float32
    truth = direct(X.double().numpy(), "gaussian", 15)
    assert np.linalg.norm(operator.to_numpy() - truth) <= 1e-5 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"perplexity": N / 4}, {"knn": 15}, {"knn": 15, "neighbors": 20}, {"knn": 15, "landmarks": 40}],
)
def test_torch_settings_do_not_reach_the_gauge(parameters, monkeypatch):
    X = torch.from_numpy(adversaries()["offset 100"].astype(np.float32))
    gauge = ra.DiffusionGauge(**parameters)
    plain = gauge(X).to_numpy()
    seen = []
    multiply = distance.squared_block_

    # which settings change a product depends on the processor, so the settings themselves are looked at
    def watched(*arguments):
        seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return multiply(*arguments)

    for module in (distance, neighbors, landmarks):
        monkeypatch.setattr(module, "squared_block_", watched)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = gauge(X)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {("highest", False)}
    np.testing.assert_array_equal(inside.to_numpy(), plain)
    with torch.inference_mode():
        np.testing.assert_array_equal(gauge(X).to_numpy(), plain)


@pytest.mark.parametrize("parameters", [{}, {"knn": 15}], ids=["perplexity", "knn"])
def test_autocast_does_not_reach_gradients(parameters):
    X, gauge = torch.from_numpy(adversaries()["offset 100"].astype(np.float32)), ra.DiffusionGauge(**parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gauge(X.clone().requires_grad_()).matrix.detach()
    torch.testing.assert_close(found, gauge(X).matrix.to_dense(), rtol=1e-4, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(2, 90),
    strip=st.integers(1, 40),
    width=st.integers(1, 100),
    shift=st.floats(-1e4, 1e4),
    copies=st.integers(1, 5),
)
def test_distances_do_not_depend_on_strips(seed, n, strip, width, shift, copies):
    rng = np.random.default_rng(seed)
    X = (np.repeat(rng.standard_normal((-(-n // copies), width)), copies, axis=0)[:n] + shift).astype(np.float32)
    points = cloud(torch.from_numpy(X))
    found = squared_distances_(torch.empty(n, n), points, strip)
    truth = cdist(X.astype(np.float64), X.astype(np.float64), "sqeuclidean") * points.scaling**2
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-5, atol=0)
    assert torch.equal(found, found.mT)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), columns=st.integers(4, 900), k=st.integers(1, 4), levels=st.integers(1, 2000))
@pytest.mark.parametrize("select", [smallest, nearest._by_groups])
def test_smallest_entries(select, seed, columns, k, levels):
    rows = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, (5, columns)).astype(np.float32))
    rows[0, k - 1 :] = np.inf
    values, place = select(rows, k)
    torch.testing.assert_close(values.sort(1).values, rows.sort(1).values[:, :k], rtol=0, atol=0)
    assert torch.equal(rows.gather(1, place), values)
    assert all(len(set(row)) == k for row in place.tolist())


def test_smallest_entries_of_many_rows():
    rows = torch.from_numpy(np.random.default_rng(0).random((4000, 600), dtype=np.float32))
    values, place = smallest(rows, 20)
    torch.testing.assert_close(values.sort(1).values, rows.sort(1).values[:, :20], rtol=0, atol=0)
    assert torch.equal(rows.gather(1, place), values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    k=st.integers(1, 12),
    levels=st.integers(1, 2000),
    slope=st.sampled_from([-1.0, 0.0, 1.0]),
    turned=st.booleans(),
)
def test_blocks_compete_for_the_smallest_entries(seed, widths, k, levels, slope, turned):
    """In any order of blocks: also where each has nearer ones than all before, or none of them."""
    rng = np.random.default_rng(seed)
    ranks = slope * levels * np.repeat(np.arange(len(widths)), widths)
    rows = torch.from_numpy((rng.integers(0, levels, (7, sum(widths))) + ranks).astype(np.float32))
    rows[0, 1:] = np.inf
    values, columns = torch.full((7, k), np.inf), torch.zeros(7, k, dtype=torch.int64)
    for part, first in zip(rows.split(widths, 1), np.cumsum([0, *widths]).tolist(), strict=False):
        block = part.mT.contiguous().mT if turned else part.contiguous()
        merge_smallest_(values, columns, block, first)
    known = min(k, rows.shape[1])
    torch.testing.assert_close(values.sort(1).values[:, :known], rows.sort(1).values[:, :known], rtol=0, atol=0)
    finite = values < np.inf
    assert torch.equal(rows.gather(1, columns)[finite], values[finite])
    assert all(len(set(row[own].tolist())) == own.sum() for row, own in zip(columns, finite, strict=True))


@pytest.mark.parametrize("turned", [False, True])
def test_a_block_with_few_of_the_smallest_is_read_once(turned):
    rows = torch.from_numpy(np.random.default_rng(0).random((300, 900), dtype=np.float32))
    near, far = rows[:, :600].contiguous(), rows[:, 600:]
    far = far.mT.contiguous().mT if turned else far.contiguous()
    values, columns = smallest(near, 10)
    with mock.patch.object(nearest, "smallest", wraps=smallest) as select:
        merge_smallest_(values, columns, far, 600)
    assert max(call.args[0].shape[1] for call in select.call_args_list) < 100
    torch.testing.assert_close(values.sort(1).values, rows.sort(1).values[:, :10], rtol=0, atol=0)
    assert torch.equal(rows.gather(1, columns), values)


COARSE = torch.float32, torch.bfloat16, torch.float16


class Products(TorchDispatchMode):
    """Collects the settings under which products of dense matrices in single or half precision are computed."""

    KINDS = frozenset({"mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "mv", "addmv", "dot"})

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = [value for value in args if isinstance(value, torch.Tensor) and value.layout == torch.strided]
        if function.overloadpacket.__name__ in self.KINDS and any(value.dtype in COARSE for value in found):
            self.seen.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("parameters", [{}, {"perplexity": 30}, {"knn": 15, "neighbors": 20}, {"landmarks": 40}])
@pytest.mark.thin(2)
def test_no_product_of_an_analysis_is_coarser_than_float32(parameters):
    """TF32, which many trainings turn on, rounds products to three digits: as much as what is measured."""
    gauge = ra.DiffusionGauge(**({"knn": 15} if "landmarks" in parameters else {}), **parameters)
    clouds = [torch.randn(120, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16), Products() as products:
            operators = [gauge(one) for one in clouds]
            ra.spread(operators)
            ra.operator_distances(operators)
            for operator in operators:
                operator.to_numpy()
                operator.eigenpairs(4)
            merged = {str(k): operator for k, operator in enumerate(operators)}
            for strategy in ("weighted", "frobenius", "ot_barycenter"):
                ra.DiffusionMerging(strategy).merge(merged)
            for measure in ("cka", "cka_rbf", "procrustes", "mutual_knn"):
                ra.similarity(*clouds[:2], measure)
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(products.seen) == {("highest", False)}


@pytest.mark.parametrize("n", [2, 3, 4, 7, 50])
def test_median_distance(n):
    d = cdist(*[np.random.default_rng(n).standard_normal((n, 3))] * 2)
    truth = np.median(d[np.triu_indices(n, 1)])
    assert median_distance(torch.from_numpy(d**2)) == pytest.approx(truth)
    assert median_distance(torch.from_numpy((d**2).astype(np.float32))) == pytest.approx(truth, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", adversaries())
@pytest.mark.parametrize(
    "parameters",
    [{}, {"perplexity": N / 4}, {"knn": 15}, {"kernel": "alpha_decay"}, {"knn": 15, "neighbors": 20}],
)
def test_cuda_agrees_with_the_cpu(name, parameters):
    X = torch.from_numpy(adversaries()[name].astype(np.float32))
    gauge = ra.DiffusionGauge(**parameters)
    truth = gauge(X).to_numpy()
    operator = gauge(X.cuda())
    assert operator.matrix.is_cuda
    assert np.linalg.norm(operator.to_numpy() - truth) <= 1e-5 * np.linalg.norm(truth)
