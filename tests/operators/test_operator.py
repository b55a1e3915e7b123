"""Spectrum, stationary distribution and distances of operators, against closed forms."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.sparse import csr_array

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.operators.stationary import stationary_distribution

KERNELS, NAMES = [{}, {"knn": 15}], ["perplexity", "knn"]


def cycle(n=12):
    step = np.roll(np.eye(n), 1, axis=1)
    return (step + step.T) / 2


def gauged(n=80, dtype=np.float64, seed=1, **parameters):
    X = np.random.default_rng(seed).standard_normal((n, 6)).astype(dtype)
    return ra.DiffusionGauge(**parameters)(X)


def test_cycle():
    values = ra.DiffusionOperator.from_matrix(cycle()).eigenpairs(12)[0].numpy()
    np.testing.assert_allclose(values, np.sort(np.cos(2 * np.pi * np.arange(12) / 12))[::-1], atol=1e-12)


def test_three_cliques_have_three_unit_eigenvalues_and_components():
    P = np.kron(np.eye(3), np.full((5, 5), 0.2))
    operator = ra.DiffusionOperator.from_matrix(P)
    np.testing.assert_allclose(operator.eigenpairs(4)[0].numpy(), [1, 1, 1, 0], atol=1e-12)
    assert operator.diagnostics["components"] == 3
    np.testing.assert_allclose(operator.stationary.numpy(), 1 / 15)


def test_two_state_chain():
    operator = ra.DiffusionOperator.from_matrix([[0.7, 0.3], [0.1, 0.9]])
    np.testing.assert_allclose(operator.stationary.numpy(), [0.25, 0.75])
    np.testing.assert_allclose(operator.eigenpairs(2)[0].numpy(), [1, 0.6])
    assert operator.reversible
    # D(1, 2)² = (p11 - p21)² (1/π1 + 1/π2)
    np.testing.assert_allclose(operator.diffusion_distance(1)[0, 1].item() ** 2, 0.6**2 * (4 + 4 / 3))


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenpairs_solve_the_eigenproblem(dtype, parameters):
    operator = gauged(dtype=dtype, **parameters)
    values, vectors = operator.eigenpairs(80)
    P, pi = operator.matrix.double(), operator.stationary
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    torch.testing.assert_close(P @ vectors, vectors * values, rtol=0, atol=tolerance * 50)
    torch.testing.assert_close(
        vectors.mT @ (pi[:, None] * vectors), torch.eye(80, dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(pi @ P, pi, rtol=0, atol=tolerance)
    np.testing.assert_allclose(values, np.sort(np.linalg.eigvals(P.numpy()).real)[::-1], atol=tolerance)


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
def test_symmetric_conjugate(parameters):
    operator = gauged(**parameters)
    root = operator.degrees.sqrt()
    torch.testing.assert_close(operator.symmetric, root[:, None] * operator.matrix / root, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(operator.symmetric, operator.symmetric.mT, rtol=0, atol=0)


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
def test_diffusion_distance_is_the_spectral_one(parameters):
    operator = gauged(**parameters)
    values, vectors = operator.eigenpairs(80)
    for t in (1, 4):
        coordinates = (vectors * values**t).numpy()
        truth = np.sqrt(((coordinates[:, None] - coordinates) ** 2).sum(2))
        np.testing.assert_allclose(operator.diffusion_distance(t).numpy(), truth, atol=1e-8)


def test_entropy():
    assert ra.DiffusionOperator.from_matrix(np.eye(8)).entropy() == pytest.approx(np.log(8))
    assert ra.DiffusionOperator.from_matrix(np.full((8, 8), 1 / 8)).entropy() == pytest.approx(0, abs=1e-12)
    p = np.array([1, 0.6**3]) / (1 + 0.6**3)
    assert ra.DiffusionOperator.from_matrix([[0.7, 0.3], [0.1, 0.9]]).entropy(3) == pytest.approx(
        -(p * np.log(p)).sum()
    )


@pytest.mark.parametrize("parameters", KERNELS, ids=NAMES)
def test_power(parameters):
    operator = gauged(dtype=np.float32, **parameters)
    raised = operator.power(8)
    np.testing.assert_allclose(
        raised.to_numpy(), np.linalg.matrix_power(operator.to_numpy().astype(float), 8), rtol=1e-5
    )
    assert raised.matrix.dtype == torch.float32
    torch.testing.assert_close(raised.stationary, operator.stationary)
    torch.testing.assert_close(operator.power(0).matrix, torch.eye(80))
    with pytest.raises(ValueError, match="diffusion time"):
        operator.entropy(-1)
    for wrong in (-1, 0.5):
        with pytest.raises(ValueError, match="diffusion time"):
            operator.power(wrong)


def test_a_circulating_chain_is_told_from_a_reversible_one():
    P = np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    operator = ra.DiffusionOperator.from_matrix(P)
    assert not operator.reversible
    with pytest.raises(OperatorError, match="reversible"):
        operator.symmetric  # noqa: B018 - the property raises
    values, vectors = operator.eigenpairs(3)
    torch.testing.assert_close(torch.from_numpy(P + 0j) @ vectors, vectors * values)
    assert operator.entropy() == pytest.approx(ra.DiffusionOperator.from_matrix(P.T).entropy())


@pytest.mark.parametrize("form", [np.array, csr_array], ids=["dense", "sparse"])
def test_transient_samples_do_not_hide_eigenvalues(form):
    P = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
    operator = ra.DiffusionOperator.from_matrix(form(P))
    assert not operator.reversible
    np.testing.assert_allclose(sorted(operator.eigenpairs()[0].abs().tolist()), [0, 0.4, 1], atol=1e-12)
    moduli = np.array([1, 0.4]) / 1.4
    assert operator.entropy() == pytest.approx(-(moduli * np.log(moduli)).sum(), abs=1e-9)


@pytest.mark.parametrize(
    ("P", "pi"),
    [
        ([[0.5, 0.25, 0.25], [0, 1, 0], [0, 0, 1]], [0, 0.5, 0.5]),
        ([[1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], [1 / 3, 1 / 3, 1 / 3]),
        ([[0.5, 0.5], [0, 1]], [0, 1]),
    ],
)
def test_stationary_distribution_of_reducible_chains(P, pi):
    np.testing.assert_allclose(stationary_distribution(np.array(P, dtype=float)), pi, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)) / 3, "square"),
        (np.eye(3)[:0, :0], "square"),
        ([[0.5, 0.4], [0.5, 0.5]], "0.9 in row 0"),
        ([[1.5, -0.5], [0.5, 0.5]], "-0.5 in row 0"),
        ([[0.5, 0.5], [np.nan, 0.5]], "row 1"),
    ],
)
def test_what_is_no_operator_is_refused(matrix, message):
    with pytest.raises(OperatorError, match=message):
        ra.DiffusionOperator.from_matrix(matrix)


@pytest.mark.parametrize("parameters", [{"perplexity": 4.0}, {"knn": 4}], ids=NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dataarray_and_back(dtype, parameters):
    X = np.random.default_rng(0).standard_normal((20, 4)).astype(dtype)
    ids = [f"s{i}" for i in range(20)]
    gauge = ra.DiffusionGauge(alpha=0.5, metric="cosine", **parameters)
    operator = gauge(xr.DataArray(X, dims=("sample", "feature"), coords={"sample": ids, "step": 7}, name="layer.1"))
    array = operator.to_dataarray()
    assert array.dims == ("sample", "neighbor")
    assert array.attrs.items() >= parameters.items()
    assert array.attrs["alpha"] == 0.5
    assert array.attrs["metric"] == "cosine"
    assert (array.attrs["layer"], array.attrs["step"]) == ("layer.1", 7)
    back = ra.DiffusionOperator.from_dataarray(array)
    torch.testing.assert_close(back.matrix, operator.matrix, rtol=0, atol=0)
    torch.testing.assert_close(back.degrees, operator.degrees, rtol=0, atol=0)
    assert back.attrs == operator.attrs
    assert back.diagnostics == operator.diagnostics
    assert back.samples.tolist() == ids


def test_neighbors_are_matched_by_their_ids():
    X = xr.DataArray(np.random.default_rng(0).standard_normal((12, 3)), dims=("sample", "feature"))
    operator = ra.DiffusionGauge(knn=3)(X.assign_coords(sample=[f"s{i}" for i in range(12)]))
    array, order = operator.to_dataarray(), np.random.default_rng(1).permutation(12)
    for read in (ra.DiffusionOperator.from_dataarray, ra.DiffusionOperator.from_matrix):
        assert torch.equal(read(array.isel(neighbor=order)).matrix, operator.matrix)
    with pytest.raises(OperatorError, match="other ids"):
        ra.DiffusionOperator.from_dataarray(array.assign_coords(neighbor=np.arange(12)))


def test_diagnostics_count_what_was_planted():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 3))
    X[40:43] = X[40]
    far = np.concatenate([X, X + 1e4, [[-1e5, 0, 0]]])
    found = ra.DiffusionGauge(bandwidth=0.5, alpha=0.0)(far).diagnostics
    assert found["duplicates"] == 6
    assert found["isolated"] >= 1
    assert found["components"] >= 3
    assert not found["collapsed"]
    assert ra.DiffusionGauge(bandwidth=1e6)(far[:50]).diagnostics["uniformity"] == pytest.approx(1)
    assert ra.DiffusionGauge(knn=2)(X).diagnostics["floored"] == 3


@pytest.mark.parametrize("parameters", [{}, {"knn": 4}, {"knn": 4, "landmarks": 50}], ids=["sparse", "dense", "thin"])
def test_an_operator_is_shown_with_where_it_is_from(parameters):
    X = np.random.default_rng(0).standard_normal((400, 4))
    name = "<script>layer.1\n"
    array = xr.DataArray(X, dims=("sample", "feature"), coords={"step": 7}, name=name)
    operator = ra.DiffusionGauge(**parameters)(array)
    form = {"": "sparse, ", "knn": "dense", "knnlandmarks": "50 landmarks"}["".join(parameters)]
    said, page = repr(operator), operator._repr_html_()
    assert said.startswith(f"DiffusionOperator(400 samples, {form}")
    assert r"layer=<script>layer.1\n, step=7" in said
    assert "<script" not in page
    assert "\n" not in said + page
    assert all(word in page for word in ("400 samples", form, "&lt;script&gt;layer.1", "duplicates"))


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.thin(2)
def test_sparse_entries_are_checked_as_the_caller_has_it_and_without_a_warning_of_torchs(checked):
    program = (
        "import torch, repaudit as ra\n"
        f"checked = {checked}\n"
        "if checked: torch.sparse.check_sparse_tensor_invariants.enable()\n"
        "operator = ra.DiffusionGauge(perplexity=5)(torch.randn(60, 4))\n"
        "ra.DiffusionMerging('weighted').merge({'a': operator, 'b': operator})\n"
        "assert torch.sparse.check_sparse_tensor_invariants.is_enabled() is checked"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], check=True)
