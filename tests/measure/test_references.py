"""Products of operators less the nearest of some references: the distances are those of the operators, to rounding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from repaudit.errors import OperatorError
from repaudit.measure import gram, products, sparse_products
from repaudit.measure.distances import operator_distances
from repaudit.measure.gram import stream_gram
from repaudit.measure.references import Links, References, choose
from repaudit.measure.sketched import nearest_operators, sketch_distances
from repaudit.operators.files import write_sparse
from repaudit.operators.sketch import sketch
from repaudit.operators.stack import OperatorStack


def trainings(steps: int, models: int = 3, side: int = 60, *, pace: float = 4.0, seed: int = 0) -> np.ndarray:
    """Models that come to rest, each at an end of its own, sparse and in single precision; steps of all in turn."""
    rng = np.random.default_rng(seed)
    held = rng.random((side, side)) < 0.15
    starts, ends = rng.random((2, models, side, side)) * held
    left = np.exp(-pace * np.arange(steps) / steps)[:, None, None, None]
    cube = (left * starts + (1 - left) * ends).reshape(-1, side, side) + np.eye(side) * 0.05
    return (cube / cube.sum(2, keepdims=True)).astype(np.float32)


def direct(cube: np.ndarray) -> np.ndarray:
    flat = cube.reshape(len(cube), -1).astype(np.float64)
    return cdist(flat, flat)


def dense(cube: np.ndarray) -> Any:
    return cube


def sparse(cube: np.ndarray) -> Any:
    return [scipy.sparse.csr_array(matrix) for matrix in cube]


@pytest.mark.parametrize("kind", [dense, sparse])
def test_of_slow_trainings_little_is_recomputed(kind: Callable[[Any], Any], monkeypatch: Any) -> None:
    cube = trainings(80)
    found = stream_gram(OperatorStack(kind(cube)))
    np.testing.assert_allclose(np.sqrt(found.squared_distances), direct(cube), rtol=1e-5, atol=0)
    monkeypatch.setattr(gram, "choose", lambda *_: None)
    without = stream_gram(OperatorStack(kind(cube)))
    np.testing.assert_allclose(found.squared_distances, without.squared_distances, rtol=2e-5, atol=0)
    assert without.recomputed > 1000
    assert found.recomputed < 150


@pytest.mark.parametrize("kind", [dense, sparse])
@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_trainings_that_hardly_move(kind: Callable[[Any], Any], apart: float, scale: float) -> None:
    cube = trainings(30)
    cube = (scale * (cube[-1].astype(np.float64) + apart * cube)).astype(np.float32)
    found = np.sqrt(stream_gram(OperatorStack(kind(cube))).squared_distances)
    np.testing.assert_allclose(found, direct(cube), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", [dense, sparse])
@pytest.mark.parametrize("first", [1, 3, 30, 150])
def test_the_first_to_all_are_rows_of_all(kind: Callable[[Any], Any], first: int) -> None:
    cube = trainings(80)
    found = stream_gram(OperatorStack(kind(cube)), first=first)
    np.testing.assert_allclose(np.sqrt(found.squared_distances), direct(cube)[:first], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", [dense, sparse])
def test_copies_and_nearly_copies_are_told_apart(kind: Callable[[Any], Any]) -> None:
    """References cannot help where a distance is a rounding error of the entries themselves."""
    cube = trainings(40)
    cube[7], cube[50] = cube[90], np.nextafter(cube[91], np.float32(1))
    found = np.sqrt(stream_gram(OperatorStack(kind(cube))).squared_distances)
    np.testing.assert_allclose(found, direct(cube), rtol=1e-5, atol=0)
    assert found[7, 90] == 0
    assert 0 < found[50, 91] < 1e-6


def test_products_of_what_is_left_are_put_together_exactly() -> None:
    """In float64, where nothing is rounded, any references on any tree give the same."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((12, 50))
    links = Links(References(np.array([4, 0, 9, 7]), np.array([0, 0, 1, 0]), rng.integers(0, 4, 12)))
    truth = cdist(flat, flat, "sqeuclidean")
    left = flat.copy()
    part = torch.from_numpy(left)
    links.add(links.take(part), part)
    for first in (12, 5):
        products_of = part[:first] @ part.T
        norms = links.rejoin(products_of, part.square().sum(1))
        squared = norms[:first, None] + norms[None, :] - 2 * products_of
        np.testing.assert_allclose(squared.numpy(), truth[:first], atol=1e-12)


def test_what_is_rounded_is_what_lies_between_two_references_and_about_them() -> None:
    flat = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 1.0]])
    links = Links(References(np.array([0, 1, 2]), np.array([0, 0, 1]), np.array([0, 1, 2, 2])))
    part = torch.from_numpy(flat)
    links.add(links.take(part), part)
    sizes = links.rounded(part.square().sum(1), 4).numpy()
    np.testing.assert_allclose(sizes, [[0, 1, 5, 6], [1, 0, 4, 5], [5, 4, 0, 1], [6, 5, 1, 2]])


def test_references_are_chosen_for_close_ones_alone() -> None:
    rng = np.random.default_rng(0)
    apart = rng.standard_normal((100, 40))
    norms = np.square(apart - apart.mean(0)).sum(1)
    assert choose(cdist(apart, apart, "sqeuclidean"), norms, 2e-3) is None
    groups = np.repeat(apart[:5], 20, axis=0) + 1e-3 * apart
    norms = np.square(groups - groups.mean(0)).sum(1)
    found = choose(cdist(groups, groups, "sqeuclidean"), norms, 2e-3)
    assert found is not None
    assert sorted(index // 20 for index in found.operators.tolist()) == [0, 1, 2, 3, 4]
    assert (found.operators[found.nearest] // 20 == np.arange(100) // 20).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    first=st.integers(1, 90),
    scale=st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 1.0]),
    unit=st.sampled_from([1e-15, 1e-6, 1.0, 1e12]),
)
def test_references_form_a_tree_whatever_is_measured(seed: int, first: int, scale: float, unit: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((6, 3))[rng.integers(0, 6, 90)] + scale * rng.standard_normal((90, 3))
    points *= unit
    norms = np.square(points - points.mean(0)).sum(1)
    found = choose(cdist(points[:first], points, "sqeuclidean"), norms, 2e-3)
    if found is None:
        return
    count = len(found.operators)
    assert 2 <= count <= 32
    assert (found.operators < first).all()
    assert len(set(found.operators.tolist())) == count
    assert (found.parents[1:] < np.arange(1, count)).all()
    assert found.nearest.shape == (90,)
    assert set(found.nearest[found.operators].tolist()) == set(range(count))
    paths = found.paths
    assert paths.shape == (90, count - 1)
    assert not paths[found.operators[0]].any()


def test_what_is_not_finite_chooses_nothing() -> None:
    squared = np.ones((80, 80))
    squared[3, 5] = np.nan
    assert choose(squared, np.full(80, 100.0), 2e-3) is None


@pytest.mark.parametrize("columns", [1, 100, 4095, 4096, 5000, 12289, 50000])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_are_those_of_all_columns(columns: int, threads: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(columns)
    left, right = (torch.from_numpy(rng.integers(-3, 4, (k, columns)).astype(np.float32)) for k in (5, 7))
    total = torch.ones((5, 7), dtype=torch.float64)
    products.add_products(total, left, right)
    np.testing.assert_array_equal(total.numpy(), 1 + left.double().numpy() @ right.double().numpy().T)


def of_few_rows(count: int, side: int, dense_rows: slice) -> list[scipy.sparse.csr_array]:
    rng = np.random.default_rng(0)
    held = rng.random((count, side, side)) < 0.01
    held[:, dense_rows] = True
    return [scipy.sparse.csr_array(rng.random((side, side)).astype(np.float32) * one) for one in held]


def test_bands_of_rows_with_more_entries_are_smaller() -> None:
    stack = OperatorStack(of_few_rows(20, 100, slice(50, 60)))
    bands = list(sparse_products.sparse_bands(stack, 200_000, None, moments=False))
    rows = np.diff([0, *(band.stop for band in bands)])
    assert rows.sum() == 100
    assert rows[0] >= 10
    assert rows.min() <= 5
    flat = np.stack([matrix.toarray().ravel() for matrix in stack._operators]).astype(np.float64)
    np.testing.assert_allclose(np.sqrt(stream_gram(stack).squared_distances), cdist(flat, flat), rtol=1e-5)


def test_what_is_compressed_anew_keeps_its_rows_alone() -> None:
    stack = OperatorStack([matrix.tocsc() for matrix in of_few_rows(3, 100, slice(0, 0))])
    _, columns, values = stack.sparse_rows(1, 0, 10)
    assert columns.base is None
    assert values.base is None


@pytest.mark.parametrize("kind", [dense, list])
def test_few_close_ones_are_read_again_alone(kind: Callable[[Any], Any], monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    cube = rng.random((40, 30, 30)).astype(np.float32)
    cube[31] = cube[4] + 1e-6 * cube[5]
    read: list[int] = []
    bands = OperatorStack.bands
    monkeypatch.setattr(OperatorStack, "bands", lambda self, rows: read.append(len(self)) or bands(self, rows))
    found = stream_gram(OperatorStack(kind(cube)))
    assert found.recomputed == 1
    assert read == [40, 2]
    np.testing.assert_allclose(np.sqrt(found.squared_distances), direct(cube), rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta:UserWarning")
def test_what_cannot_be_compared_is_refused() -> None:
    eye = torch.eye(4)
    with pytest.raises(OperatorError, match=r"found dtype torch\.complex64"):
        operator_distances([eye.to(torch.complex64)] * 2)
    with pytest.raises(OperatorError, match=r"found dtype torch\.complex64"):
        operator_distances([eye.to(torch.complex64).to_sparse_coo()] * 2)
    with pytest.raises(OperatorError, match="found dtype complex128"):
        operator_distances([scipy.sparse.csr_array(np.eye(4) * 1j)] * 2)
    with pytest.raises(OperatorError, match=r"found torch\.sparse_csc: pass \.to_sparse_csr\(\)"):
        operator_distances([eye.to_sparse_csc()] * 2)
    with pytest.raises(OperatorError, match="squares are finite, found larger ones"):
        operator_distances([1e25 * eye, 1e25 * eye.flip(0)])


def test_half_precision_is_read_sparse_as_dense() -> None:
    cube = torch.from_numpy(trainings(1)).bfloat16()
    found = operator_distances([matrix.to_sparse_coo() for matrix in cube])
    np.testing.assert_allclose(found, operator_distances(list(cube)), rtol=1e-6)


def test_sketches_of_other_operators_are_refused() -> None:
    cube = trainings(2)
    with pytest.raises(OperatorError, match="expected sketches of operators on 60 samples, found 8"):
        nearest_operators(cube, 1, sketches=[sketch(np.eye(8))] * len(cube))
    with pytest.raises(ValueError, match="expected first from 1 to 3"):
        sketch_distances([sketch(matrix) for matrix in cube[:3]], first=5)


def test_writing_a_sparse_operator_leaves_it_as_it_is() -> None:
    twice = scipy.sparse.csr_array((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 2))
    write_sparse(io.BytesIO(), twice)
    assert twice.data.tolist() == [1.0, 2.0]


def test_norms_of_long_rows_lose_nothing() -> None:
    """In single precision the last of half a million equal squares are rounded to one side."""
    rows = torch.full((3, 500_001), 0.1) + torch.arange(3)[:, None] * 0.01
    truth = rows.double().square().sum(1)
    torch.testing.assert_close(products.squared_norms(rows), truth, rtol=2e-6, atol=0)
