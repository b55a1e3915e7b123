"""Distances of many sparse operators: exact, whether a cell is held by many of them or by few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from repaudit.errors import OperatorError
from repaudit.measure import sparse_products
from repaudit.measure.distances import calibrated_distances, operator_distances
from repaudit.measure.gram import stream_gram
from repaudit.operators.files import SparseOperatorFile, write_sparse
from repaudit.operators.stack import OperatorStack


def operators(count: int, side: int = 40, seed: int = 0) -> np.ndarray:
    """Row-stochastic, most of them like one of three, each with entries of its own; the last two nearly the same."""
    rng = np.random.default_rng(seed)
    kinds = rng.random((3, side, side)) * (rng.random((3, side, side)) < 0.1)
    cube = np.stack([kinds[index % 3] * rng.uniform(0.5, 1.5, (side, side)) for index in range(count)])
    cube += rng.random(cube.shape) * (rng.random(cube.shape) < 0.01)
    cube += np.eye(side) * 0.05
    cube[-1] = cube[-2] + 1e-6 * cube[-3]
    return cube / cube.sum(2, keepdims=True)


def coo(matrix: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(matrix).to_sparse_coo()


def csr(matrix: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(matrix).to_sparse_csr()


@pytest.mark.parametrize("count", [5, 150])
@pytest.mark.parametrize("metric", ["frobenius", "calibrated", "hellinger"])
@pytest.mark.parametrize("convert", [coo, csr, scipy.sparse.csr_array, scipy.sparse.coo_array, scipy.sparse.csc_matrix])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_they_are_those_of_the_dense_ones(count: int, metric: Any, convert: Callable[[np.ndarray], Any]) -> None:
    cube = operators(count)
    found = operator_distances([convert(matrix) for matrix in cube], metric)
    np.testing.assert_allclose(found, operator_distances(list(cube), metric), rtol=1e-10, atol=1e-12)
    assert (found[~np.eye(count, dtype=bool)] > 0).all()


@pytest.mark.parametrize("memory", ["2GB", "900kB"])
def test_single_precision_holds_close_ones_apart(memory: str) -> None:
    cube = operators(150).astype(np.float32)
    flat = cube.reshape(150, -1).astype(np.float64)
    truth = np.linalg.norm(flat[:, None] - flat, axis=2)
    found = stream_gram(OperatorStack([scipy.sparse.csr_array(matrix) for matrix in cube]), memory=memory)
    np.testing.assert_allclose(np.sqrt(found.squared_distances), truth, rtol=1e-5, atol=0)
    assert found.recomputed >= 1


def test_of_the_cells_some_are_common_and_some_rare() -> None:
    """Else the tests above would show one half of the sums only."""
    stack = OperatorStack([coo(matrix) for matrix in operators(150)])
    (band,) = sparse_products.sparse_bands(stack, 2**26, None, moments=True)
    assert band.rare is not None
    assert band.rare.nnz > 1000
    assert band.common.shape[1] > 100
    assert band.common.shape[1] + band.rare.shape[1] < 1600


@pytest.mark.parametrize("first", [1, 40])
def test_the_first_to_all_are_rows_of_all(first: int) -> None:
    stack = OperatorStack([coo(matrix) for matrix in operators(150)])
    rows, every = calibrated_distances(stack, first), calibrated_distances(stack, 150)
    np.testing.assert_allclose(rows, every[:first], rtol=1e-9, atol=1e-12)


def test_files_are_read_in_bands_of_rows(tmp_path: Path) -> None:
    cube = operators(120).astype(np.float32)
    files = []
    for index, matrix in enumerate(cube):
        with (tmp_path / f"{index}.csr").open("wb") as stream:
            write_sparse(stream, scipy.sparse.csr_array(matrix))
        files.append(SparseOperatorFile.at(tmp_path / f"{index}.csr"))
    told: list[int] = []
    found = operator_distances(files, memory="900kB", progress=lambda done, _all: told.append(done))
    np.testing.assert_allclose(found, operator_distances(list(cube)), rtol=1e-5, atol=1e-9)
    assert len(told) > 3
    assert told[-1] == 40


@pytest.mark.parametrize("count", [6, 150])
def test_what_is_not_finite_or_of_another_size_is_named(count: int) -> None:
    cube = operators(count)
    cube[3, 2, np.flatnonzero(cube[3, 2])[0]] = np.nan
    with pytest.raises(OperatorError, match=rf"operators \[3\] of {count}"):
        operator_distances([coo(matrix) for matrix in cube])
    mixed = [*(coo(matrix) for matrix in operators(count)), coo(np.eye(7))]
    with pytest.raises(OperatorError, match=rf"found 7 in operator {count}"):
        operator_distances(mixed)


def test_a_dense_one_among_sparse_ones_is_compared_with_them() -> None:
    cube = operators(8)
    mixed = [coo(matrix) if index % 2 == 0 else matrix for index, matrix in enumerate(cube)]
    np.testing.assert_allclose(operator_distances(mixed), operator_distances(list(cube)), rtol=1e-10, atol=1e-12)


def test_operators_without_an_entry_in_common_and_without_any() -> None:
    shifts = [scipy.sparse.csr_array(np.roll(np.eye(9), shift, axis=1)) for shift in range(3)]
    np.testing.assert_allclose(operator_distances(shifts), np.sqrt(18) * (1 - np.eye(3)))
    empty = [scipy.sparse.csr_array((9, 9)) for _ in range(2)]
    assert not operator_distances(empty).any()
