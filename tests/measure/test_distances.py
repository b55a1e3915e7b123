"""Operator distances against direct computation, and the bounds they keep."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
import xarray as xr
from scipy.spatial.distance import cdist

from repaudit.errors import OperatorError
from repaudit.measure.distances import operator_distances
from repaudit.measure.gram import stream_gram
from repaudit.measure.null import null_squared_distance
from repaudit.measure.stack import OperatorStack


def random_operators(count: int, side: int, seed: int = 0, power: int = 6) -> np.ndarray:
    kernel = np.random.default_rng(seed).random((count, side, side)) ** power
    return kernel / kernel.sum(2, keepdims=True)


def trajectory(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Operators that come to rest: ever closer to the last one."""
    operators = random_operators(count, side, seed)
    weight = (np.linspace(0, 1, count) ** 0.25)[:, None, None]
    return (1 - weight) * operators + weight * operators[-1]


def direct(operators: np.ndarray) -> np.ndarray:
    flat = operators.reshape(len(operators), -1).astype(np.float64)
    return cdist(flat, flat)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_frobenius_is_the_direct_distance(dtype: type, tolerance: float) -> None:
    operators = trajectory(40, 60).astype(dtype)
    np.testing.assert_allclose(operator_distances(operators), direct(operators), rtol=tolerance, atol=0)


def test_close_float32_operators_keep_their_distance() -> None:
    base = random_operators(1, 100)[0]
    noise = np.random.default_rng(1).standard_normal((6, 100, 100)) * base
    operators = np.stack([base + 1e-5 * scale * z for scale, z in zip((0, 1, 2, 3, 4, 5), noise, strict=True)])
    far = random_operators(3, 100, seed=2)
    mixed = np.concatenate([operators, far]).astype(np.float32)
    np.testing.assert_allclose(operator_distances(mixed), direct(mixed), rtol=1e-5, atol=0)
    assert stream_gram(OperatorStack(mixed)).recomputed == 15


@pytest.mark.parametrize(
    "convert",
    [
        list,
        lambda cube: [torch.from_numpy(p) for p in cube],
        lambda cube: [torch.from_numpy(p).to_sparse_csr() for p in cube],
        lambda cube: [torch.from_numpy(p).to_sparse_coo() for p in cube],
        lambda cube: [scipy.sparse.csr_array(p) for p in cube],
        lambda cube: [xr.DataArray(p, dims=("sample", "neighbor")) for p in cube],
        torch.from_numpy,
        lambda cube: xr.DataArray(cube, dims=("step", "sample", "neighbor")),
    ],
    ids=["list", "tensors", "csr", "coo", "scipy", "dataarrays", "cube", "dataarray-cube"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_operators_of_any_kind_give_the_same(convert) -> None:
    cube = random_operators(5, 20)
    cube[cube < 0.01] = 0
    np.testing.assert_allclose(operator_distances(convert(cube)), direct(cube), rtol=1e-12, atol=1e-15)


def test_memory_maps_are_read_and_left_alone(tmp_path) -> None:
    cube = random_operators(7, 30).astype(np.float32)
    np.save(tmp_path / "operators.npy", cube)
    mapped = np.load(tmp_path / "operators.npy", mmap_mode="r")
    np.testing.assert_allclose(operator_distances(mapped), direct(cube), rtol=1e-5, atol=0)
    np.testing.assert_array_equal(mapped, cube)


def test_the_band_does_not_change_the_result_nor_the_operators() -> None:
    cube = trajectory(30, 50)
    before = cube.copy()
    whole = operator_distances(cube, "calibrated")
    banded = operator_distances(cube, "calibrated", memory=3 * 8 * 30**2 + 2 * 8 * 30 * 50 * 3)
    np.testing.assert_allclose(banded, whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(cube, before)


def test_calibrated_divides_by_the_null_of_each_pair() -> None:
    cube = random_operators(4, 25)
    expected = direct(cube) / np.sqrt([[null_squared_distance(p, q) for q in cube] for p in cube])
    np.testing.assert_allclose(operator_distances(cube, "calibrated"), expected, rtol=1e-9, atol=1e-12)


def test_uniform_operators_are_at_distance_zero_and_never_nan() -> None:
    uniform = np.full((2, 10, 10), 0.1, dtype=np.float32)
    np.testing.assert_array_equal(operator_distances(uniform, "calibrated"), np.zeros((2, 2)))


def test_progress_ends_at_the_number_of_samples() -> None:
    seen: list[tuple[int, int]] = []
    operator_distances(random_operators(3, 10), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        ([], "at least one operator"),
        ([np.eye(3), np.eye(4)], "expected operators on 3 samples each, found 4 in operator 1"),
        ([np.ones((3, 4))], r"\(3, 4\) in operator 0"),
        ([np.eye(3), np.full((3, 3), np.nan)], r"NaN or infinity in operators \[1\] of 2"),
        ([np.eye(3, dtype=np.float32), np.eye(3)], "float64 in operator 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(operators: list[np.ndarray], words: str) -> None:
    with pytest.raises(OperatorError, match=words):
        operator_distances(operators)


def test_a_budget_too_small_for_one_row_is_refused() -> None:
    with pytest.raises(OperatorError, match="memory budget of at least"):
        operator_distances(random_operators(10, 50), memory="1kB")


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match="found 'manhattan'"):
        operator_distances([np.eye(3)], "manhattan")
