"""Properties that every merge keeps, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import repaudit as ra
from repaudit.errors import OperatorError, WeightError

STRATEGIES = ["weighted", "frobenius", "reversible", "ot_barycenter"]


def operators(seed, n, count=3, dtype=np.float64, **parameters):
    rng = np.random.default_rng(seed)
    gauge = ra.DiffusionGauge(**({} if "perplexity" in parameters else {"knn": min(15, n - 1)}) | parameters)
    return {f"m{i}": gauge(rng.standard_normal((n, 4)).astype(dtype)) for i in range(count)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(3, 25), count=st.integers(1, 4))
@pytest.mark.parametrize("parameters", [{"perplexity": 3}, {}], ids=["perplexity", "knn"])
def test_properties(parameters, strategy, seed, n, count):
    given_ = operators(seed, n, count, **parameters)
    before = {name: operator.matrix.clone() for name, operator in given_.items()}
    merging = ra.DiffusionMerging(strategy, reg=0.1)
    merged = merging.merge(given_)
    torch.testing.assert_close(merged.matrix.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-9)
    for name, operator in given_.items():
        assert torch.equal(operator.matrix, before[name])
    assert torch.equal(merging.merge(dict(reversed(given_.items()))).matrix, merged.matrix)
    order = np.random.default_rng(seed).permutation(n)
    permuted = merging.merge({name: operator.matrix[order][:, order] for name, operator in given_.items()})
    torch.testing.assert_close(permuted.matrix, merged.matrix[order][:, order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"perplexity": 5}, {}], ids=["perplexity", "knn"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_merging_identical_operators_gives_that_operator(strategy, parameters, dtype):
    operator = operators(0, 30, 1, dtype, **parameters)["m0"]
    merged = ra.DiffusionMerging(strategy).merge({"a": operator, "b": operator, "c": operator})
    torch.testing.assert_close(merged.matrix, operator.matrix, rtol=1e-6, atol=1e-7)
    assert merged.matrix.dtype == operator.matrix.dtype


def test_weighted_is_the_weighted_mean():
    found = operators(1, 20, 2)
    merged = ra.DiffusionMerging("weighted", weights={"m0": 1, "m1": 3}).merge(found)
    truth = (found["m0"].matrix + 3 * found["m1"].matrix) / 4
    torch.testing.assert_close(merged.matrix, truth)
    assert merged.attrs["weights"] == {"m0": 0.25, "m1": 0.75}
    assert merged.attrs["merge"] == "weighted"
    assert merged.attrs["kernel"] == "gaussian"


def test_frobenius_minimises_the_summed_squared_distance():
    found = operators(2, 15)
    merged = ra.DiffusionMerging("frobenius").merge(found).matrix
    cost = lambda P: sum(float((P - o.matrix).square().sum()) for o in found.values())  # noqa: E731
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = torch.from_numpy(rng.dirichlet(np.ones(15), 15))
        assert cost(merged) < cost(0.99 * merged + 0.01 * other)
    torch.testing.assert_close(ra.DiffusionMerging("weighted").merge(found).matrix, merged)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"m0": 1, "other": 1}, r"no operator named \['other'\] and no weight for \['m1', 'm2'\]"),
        ({"m0": 1}, r"no weight for \['m1', 'm2'\]"),
        ({"m0": 0, "m1": 0, "m2": 0}, "found all weights zero"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    with pytest.raises(WeightError, match=message):
        ra.DiffusionMerging("weighted", weights=weights).merge(operators(0, 5))


def test_weights_without_names():
    with pytest.raises(WeightError, match="by model name"):
        ra.DiffusionMerging("weighted", weights=[1, 2])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "1"])
def test_weights_that_are_none(weight):
    with pytest.raises(WeightError, match="m0"):
        ra.DiffusionMerging("weighted", weights={"m0": weight})


def test_frobenius_takes_no_weights():
    with pytest.raises(WeightError, match="weighted"):
        ra.DiffusionMerging("frobenius", weights={"a": 1})


def test_operators_that_do_not_go_together():
    merging = ra.DiffusionMerging()
    with pytest.raises(OperatorError, match="none"):
        merging.merge({})
    with pytest.raises(OperatorError, match="model name"):
        merging.merge([np.eye(2)])
    with pytest.raises(OperatorError, match="same samples"):
        merging.merge({"a": np.eye(2), "b": np.eye(3)})
    with pytest.raises(OperatorError, match=r"operator 'b'.*row 0"):
        merging.merge({"a": np.eye(2), "b": np.ones((2, 2))})
    a, b = (ra.DiffusionOperator(torch.eye(2), samples=np.array(ids)) for ids in (["x", "y"], ["y", "x"]))
    with pytest.raises(OperatorError, match="'x' in 'a' and 'y' in 'b' at position 0"):
        merging.merge({"a": a, "b": b})
    with pytest.raises(ValueError, match="strategy"):
        ra.DiffusionMerging("median")


def test_inputs_of_every_kind_and_gradients():
    P = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    merged = ra.DiffusionMerging().merge({"a": P, "b": np.eye(2)})
    merged.matrix[0, 1].backward()
    assert P.grad.tolist() == [[0.0, 0.5], [0.0, 0.0]]


def test_sparse_operators_merge_as_the_dense_ones_do():
    sparse = operators(3, 40, knn=15, neighbors=5)
    dense = {name: operator.to_numpy() for name, operator in sparse.items()}
    for strategy in STRATEGIES:
        merging = ra.DiffusionMerging(strategy, reg=0.1, max_iterations=20000)
        np.testing.assert_allclose(merging.merge(sparse).to_numpy(), merging.merge(dense).to_numpy(), atol=1e-9)
    assert ra.DiffusionMerging("weighted").merge(sparse).matrix.layout == torch.sparse_coo


def test_rows_of_foreign_operators_are_normalised():
    off = np.array([[0.5, 0.50005], [0.5, 0.5]])
    assert float(ra.DiffusionMerging().merge({"a": off}).matrix[0].sum()) == pytest.approx(1, abs=1e-12)


def test_reversible_merge_is_the_mixture_of_walks():
    found = operators(4, 20, alpha=0.0)
    merged = ra.DiffusionMerging("reversible", weights={"m0": 1, "m1": 2, "m2": 0}).merge(found)
    flow = sum(w * np.diag(found[m].stationary) @ found[m].to_numpy() for m, w in (("m0", 1 / 3), ("m1", 2 / 3)))
    np.testing.assert_allclose(merged.to_numpy(), flow / flow.sum(1, keepdims=True), rtol=1e-9)
    # what it claims about itself is what its matrix says
    alone = ra.DiffusionOperator.from_matrix(merged.matrix)
    assert alone.reversible
    torch.testing.assert_close(merged.stationary, alone.stationary, rtol=1e-8, atol=1e-12)
    values = np.linalg.eigvals(merged.to_numpy())
    assert abs(values.imag).max() < 1e-9
    np.testing.assert_allclose(merged.eigenpairs()[0].numpy(), np.sort(values.real)[::-1], atol=1e-9)
    assert not ra.DiffusionMerging("frobenius").merge(found).reversible


def test_reversible_merge_refuses_a_circulating_operator():
    P = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    with pytest.raises(OperatorError, match=r"'b'.*circulates"):
        ra.DiffusionMerging("reversible").merge({"a": np.full((3, 3), 1 / 3), "b": P})


def test_gromov_merges_operators_on_different_samples():
    rng = np.random.default_rng(0)
    clusters = [np.concatenate([rng.standard_normal((n, 2)) * 0.1 + c for c in (0, 5, 40)]) for n in (6, 8)]
    found = {f"m{i}": ra.DiffusionGauge(bandwidth=1.0, alpha=0.0)(X) for i, X in enumerate(clusters)}
    merged = ra.DiffusionMerging("gromov", n_samples=12).merge(found)
    assert merged.n_samples == 12
    torch.testing.assert_close(merged.matrix.sum(1), torch.ones(12, dtype=torch.float64))
    # three groups in both, three in what they have in common
    values = merged.eigenpairs(4)[0]
    np.testing.assert_allclose(values[:3], 1, atol=2e-2)
    assert values[3] < 0.2
    torch.testing.assert_close(merged.stationary @ merged.matrix, merged.stationary)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", ["weighted", "frobenius", "reversible", "ot_barycenter", "gromov"])
def test_cuda_merges_as_the_cpu_does(strategy):
    gauge, clouds = ra.DiffusionGauge(), np.random.default_rng(5).standard_normal((3, 40, 6))
    merging = ra.DiffusionMerging(strategy)
    truth = merging.merge({str(k): gauge(torch.from_numpy(cloud)) for k, cloud in enumerate(clouds)})
    merged = merging.merge({str(k): gauge(torch.from_numpy(cloud).cuda()) for k, cloud in enumerate(clouds)})
    np.testing.assert_allclose(merged.to_numpy(), truth.to_numpy(), atol=1e-6)
