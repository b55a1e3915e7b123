"""Operator distances against direct computation, and the bounds they keep."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
import xarray as xr
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist, pdist, squareform

from repaudit.errors import OperatorError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure import gram
from repaudit.measure.distances import METRICS, calibrated_distances, operator_distances
from repaudit.measure.gram import stream_gram
from repaudit.measure.null import null_squared_distance
from repaudit.measure.structure import Structure
from repaudit.operators.files import OperatorFile
from repaudit.operators.stack import OperatorStack


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


def test_operators_in_files_of_their_own_are_read_band_by_band(tmp_path) -> None:
    cube = trajectory(6, 24).astype(np.float32)
    for index, matrix in enumerate(cube):
        np.save(tmp_path / f"{index}.npy", matrix)
    files = [OperatorFile.at(tmp_path / f"{index}.npy") for index in range(6)]
    np.testing.assert_array_equal(
        operator_distances(files, memory="20kB"), operator_distances(list(cube), memory="20kB")
    )
    np.testing.assert_array_equal(files[3].matrix, cube[3])
    with (tmp_path / "3.npy").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(OperatorError, match=r"3\.npy"):
        operator_distances(files)
    with pytest.raises(OperatorError, match=r"3\.npy"):
        OperatorFile.at(tmp_path / "3.npy")


@pytest.mark.parametrize("first", [1, 3, 12])
def test_distances_of_the_first_to_all_are_rows_of_all_distances(first: int) -> None:
    cube = trajectory(12, 32)
    cube[7] = cube[1] + 1e-5 * cube[2]  # recomputed directly, also where it is not among the first
    cube[7] /= cube[7].sum(1, keepdims=True)
    rows = calibrated_distances(OperatorStack(cube.astype(np.float32)), first)
    np.testing.assert_allclose(rows, operator_distances(cube, metric="calibrated")[:first], rtol=1e-4, atol=1e-7)


def test_memory_maps_are_read_and_left_alone(tmp_path) -> None:
    cube = random_operators(7, 30).astype(np.float32)
    np.save(tmp_path / "operators.npy", cube)
    mapped = np.load(tmp_path / "operators.npy", mmap_mode="r")
    np.testing.assert_allclose(operator_distances(mapped), direct(cube), rtol=1e-5, atol=0)
    np.testing.assert_array_equal(mapped, cube)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_parts_of_a_memory_map_and_unsaved_changes_are_seen(mode: str, tmp_path) -> None:
    cube = random_operators(9, 20)
    np.save(tmp_path / "operators.npy", cube)
    mapped = np.load(tmp_path / "operators.npy", mmap_mode=mode)
    if mode != "r":
        mapped[4] = cube[4] = np.eye(20)
    for part in (slice(None), slice(3, 7), slice(1, None, 3), slice(None, None, -1)):
        np.testing.assert_allclose(operator_distances(mapped[part]), direct(cube[part]), rtol=1e-9, atol=1e-12)


def test_the_band_does_not_change_the_result_nor_the_operators() -> None:
    cube = trajectory(30, 50)
    before = cube.copy()
    whole = operator_distances(cube, "calibrated")
    banded = operator_distances(cube, "calibrated", memory=4 * 8 * 30**2 + 2 * 8 * 30 * 50 * 3)
    np.testing.assert_allclose(banded, whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(cube, before)


def test_calibrated_divides_by_the_null_of_each_pair() -> None:
    cube = random_operators(4, 25)
    expected = direct(cube) / np.sqrt([[null_squared_distance(p, q) for q in cube] for p in cube])
    np.testing.assert_allclose(operator_distances(cube, "calibrated"), expected, rtol=1e-9, atol=1e-12)


def reversible(count: int, side: int, seed: int = 0) -> np.ndarray:
    kernel = np.random.default_rng(seed).random((count, side, side)) ** 4
    kernel = kernel + kernel.transpose(0, 2, 1)
    return kernel / kernel.sum(2, keepdims=True)


def pairwise(function: Callable[[np.ndarray, np.ndarray], float], cube: np.ndarray) -> np.ndarray:
    return np.array([[function(p, q) for q in cube] for p in cube])


def overlap(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.mean([np.sum(np.sqrt(a * b)) for a, b in zip(p, q, strict=True)]))


def diffusion_map_distances(p: np.ndarray, t: int = 8) -> np.ndarray:
    """Off-diagonal distances in diffusion coordinates, from the eigenvectors of a reversible P."""
    values, left = scipy.linalg.eig(p, left=True, right=False)
    stationary = np.abs(left[:, values.real.argmax()].real)
    root = np.sqrt(stationary / stationary.sum())
    values, vectors = np.linalg.eigh((root[:, None] * p / root + (root[:, None] * p / root).T) / 2)
    return pdist(vectors / root[:, None] * values**t)


def test_hellinger_and_bhattacharyya_are_their_definitions() -> None:
    cube = random_operators(4, 15)
    np.testing.assert_allclose(
        operator_distances(cube, "hellinger"), np.sqrt(1 - pairwise(overlap, cube)), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        operator_distances(cube, "bhattacharyya"), -np.log(pairwise(overlap, cube)), rtol=1e-6, atol=1e-12
    )


def test_rows_that_never_overlap_are_as_far_as_can_be() -> None:
    apart = [np.eye(6), np.roll(np.eye(6), 1, axis=1)]
    assert operator_distances(apart, "hellinger")[0, 1] == pytest.approx(1)
    assert operator_distances(apart, "bhattacharyya")[0, 1] == np.inf


def test_rsa_is_one_less_pearsons_r_of_diffusion_distances() -> None:
    cube = reversible(4, 15)
    profiles = [diffusion_map_distances(p) for p in cube]
    expected = 1 - np.corrcoef(profiles)
    for memory in ("2GB", "60kB"):
        np.testing.assert_allclose(operator_distances(cube, "rsa", memory=memory), expected, rtol=1e-4, atol=1e-6)


def test_rsa_of_alike_distances_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"equally far in operators \[1\]"):
        operator_distances([reversible(1, 6)[0], np.full((6, 6), 1 / 6)], "rsa")


def test_spectrum_is_the_distance_of_sorted_eigenvalues_and_blind_to_order() -> None:
    cube = reversible(3, 12)
    order = np.random.default_rng(0).permutation(12)
    cube = np.concatenate([cube, cube[:1][:, order][:, :, order]])
    values = np.sort(np.linalg.eigvals(cube).real, axis=1)
    found = operator_distances(cube, "spectrum")
    np.testing.assert_allclose(found, cdist(values, values), rtol=1e-6, atol=1e-9)
    assert found[0, 3] < 1e-12
    assert operator_distances(cube)[0, 3] > 0.1


@pytest.mark.parametrize("metric", list(METRICS))
def test_every_metric_is_a_symmetric_matrix_with_a_zero_diagonal(metric: str) -> None:
    for seed, kind in itertools.product(range(3), (np.float32, np.float64)):
        found = operator_distances(random_operators(5, 12, seed).astype(kind), metric)
        np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all()
    assert (found[~np.eye(5, dtype=bool)] > 0).all()


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
        ([np.eye(3), np.full((3, 3), np.nan)], r"expected finite entries .* operators \[1\] of 2"),
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


PEAK = """
import resource, sys
import numpy as np
from repaudit.measure.distances import operator_distances
cube = np.load(sys.argv[1], mmap_mode="r")
operator_distances(cube[:2], sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
operator_distances(cube, sys.argv[2], memory="64MB")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.parametrize("metric", ["calibrated", pytest.param("rsa", marks=pytest.mark.slow)])
def test_the_peak_does_not_grow_with_the_number_of_operators(metric: str, tmp_path) -> None:
    peaks = []
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for count in (60, 300):
        path = tmp_path / "operators.npy"
        np.save(path, reversible(count, 200).astype(np.float32))
        run = subprocess.run(
            [sys.executable, "-c", PEAK, path, metric], capture_output=True, text=True, check=True, env=one_thread
        )
        peaks.append(float(run.stdout))
    # 300 operators are 48 MB; their distances and the work on them may take 4 x 8 x 300^2 = 3 MB
    assert peaks[1] < peaks[0] + 12
    assert peaks[1] < 64


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("few", [False, True])
def test_operators_that_come_to_rest_keep_their_distances(monkeypatch, kind, few):
    """Over six decades, among copies, whether close pairs are products in float64 or differences."""
    monkeypatch.setattr(gram, "MANY", 0 if few else gram.MANY)
    rng, side = np.random.default_rng(0), 40
    ends = rng.random((2, side, side)) ** 6 * (rng.random((side, side)) < 0.4)
    shares = np.exp(-14 * np.arange(60) / 60)
    operators = [(share * ends[0] + (1 - share) * ends[1]).astype(np.float32) for share in shares]
    operators += [operators[-1].copy(), operators[30].copy()]
    given = [csr_array(one) for one in operators] if kind == "sparse" else operators
    found = operator_distances(given)
    wide = np.array(operators, dtype=np.float64).reshape(len(operators), -1)
    expected = squareform(pdist(wide))
    assert (found[59, 60], found[30, 61]) == (0, 0)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=0)
    assert expected[expected > 0].min() < 1e-6 * expected.max()


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("count", [4, 80], ids=["few", "with references"])
def test_calibrated_distances_of_near_identical_operators_are_exact_in_single_precision(
    apart: float, count: int
) -> None:
    rng, side = np.random.default_rng(0), 50
    base = rng.dirichlet(np.full(side, 0.3), size=side)
    cube = (base * (1 + apart * rng.standard_normal((count, side, side)))).astype(np.float32)
    wide = cube.astype(np.float64)
    exact = [np.linalg.norm(wide[0] - one) / math.sqrt(null_squared_distance(wide[0], one)) for one in wide[1:]]
    np.testing.assert_allclose(operator_distances(cube, "calibrated")[0, 1:], exact, rtol=1e-5)


def apart_from_the_identity(kind: str) -> list[np.ndarray]:
    """Unrelated operators, most of whose mass stays: what their diagonals share is not what they differ in."""
    rng = np.random.default_rng(0)
    if kind == "blends":
        return [(a * np.eye(40) + (1 - a) / 40).astype(np.float32) for a in rng.random(8)]
    gauge = DiffusionGauge(kernel="gaussian", bandwidth=float(kind))
    clouds = rng.standard_normal((8, 120, 24), dtype=np.float32)
    return [gauge(cloud).to_numpy().astype(np.float32) for cloud in clouds]


@pytest.mark.parametrize("order", ["dense", "sparse", "dense first", "sparse first", "file"])
@pytest.mark.parametrize("kind", ["blends", "0.75", "1.0", "1.5"])
def test_calibrated_distances_of_operators_near_the_identity(kind: str, order: str, tmp_path: Path) -> None:
    some = apart_from_the_identity(kind)
    exact = [math.sqrt(((some[0].astype(float) - one) ** 2).sum() / null_by_parts(some[0], one)) for one in some[1:]]
    operators: object = [
        csr_array(one) if order == "sparse" or order == ("sparse first", "dense first")[index % 2] else one
        for index, one in enumerate(some)
    ]
    if order == "file":
        np.save(tmp_path / "operators.npy", np.stack(some))
        operators = np.load(tmp_path / "operators.npy", mmap_mode="r")
    found = operator_distances(operators, "calibrated", memory="1MB")
    np.testing.assert_allclose(found[0, 1:], exact, rtol=1e-4)


def null_by_parts(p: np.ndarray, q: np.ndarray) -> float:
    """Return the expected squared distance from a relabelled one, from variances, of which nothing cancels."""
    size = len(p)
    elsewhere = ~np.eye(size, dtype=bool)
    of_p, of_q = ([one.diagonal().astype(float), one[elsewhere].astype(float)] for one in (p, q))
    return sum(len(a) * (a.var() + b.var() + (a.mean() - b.mean()) ** 2) for a, b in zip(of_p, of_q, strict=True))


def test_variances_give_the_null_of_relabellings() -> None:
    p, q = random_operators(2, 12)
    assert null_by_parts(p, q) == pytest.approx(null_squared_distance(p, q), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 30])
@pytest.mark.parametrize("kind", [np.asarray, csr_array])
def test_structure_of_bands_together_is_that_of_the_whole(rows: int, kind: Callable[..., object]) -> None:
    cube = random_operators(5, 30).astype(np.float32)
    cube[1], cube[2, 3:9] = np.eye(30), 0
    parts = []
    for start in range(0, 30, rows):
        band = cube[:, start : start + rows]
        if kind is np.asarray:
            parts.append(Structure.of_dense(torch.from_numpy(band), start))
            continue
        flat = [one.ravel() for one in band]
        places = [np.flatnonzero(one) for one in flat]
        every = [(at, one[at]) for at, one in zip(places, flat, strict=True)]
        parts.append(Structure.of_sparse(every, band.shape[1], 30, start))
    found = sum(parts[1:], parts[0]).null(slice(0, 5))
    exact = [[null_by_parts(p, q) for q in cube] for p in cube]
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("apart", [1e-4, 1e-6])
@pytest.mark.parametrize("kind", ["dense", "sparse", "file"])
def test_hellinger_distances_of_close_operators_in_single_precision(kind: str, apart: float, tmp_path: Path) -> None:
    """A root in single precision has an error of the size of these distances."""
    rng, side = np.random.default_rng(0), 40
    base = rng.dirichlet(np.ones(side), size=side)
    cube = (base * (1 + apart * rng.standard_normal((6, side, side)))).astype(np.float32)
    roots = np.sqrt(cube.astype(np.float64)).reshape(6, -1)
    if kind == "file":
        for index, one in enumerate(cube):
            np.save(tmp_path / f"{index}.npy", one)
    operators = {
        "dense": list(cube),
        "sparse": [csr_array(one) for one in cube],
        "file": [OperatorFile.at(tmp_path / f"{index}.npy") for index in range(6)] if kind == "file" else [],
    }[kind]
    found = operator_distances(operators, "hellinger")
    np.testing.assert_allclose(found, cdist(roots, roots) / math.sqrt(2 * side), rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("kind", [np.asarray, csr_array, torch.from_numpy])
def test_a_close_pair_among_many_is_compared_in_the_same_precision(kind: Callable[..., object]) -> None:
    """Its two are read again alone."""
    cube = random_operators(9, 40).astype(np.float32)
    cube[5] = cube[2] * (1 + np.float32(1e-6) * np.random.default_rng(0).standard_normal((40, 40), np.float32))
    roots = np.sqrt(cube.astype(np.float64)).reshape(9, -1)
    found = operator_distances([kind(one) for one in cube], "hellinger")
    np.testing.assert_allclose(found, cdist(roots, roots) / math.sqrt(80), rtol=1e-8, atol=1e-15)
    mixed = [one.astype(np.float64) if index == 0 else one for index, one in enumerate(cube)]
    np.testing.assert_allclose(operator_distances([kind(one) for one in mixed]), direct(cube), rtol=1e-8, atol=1e-15)


def test_what_one_order_of_operators_takes_the_other_does() -> None:
    """A sparse one first, and tensors that NumPy does not take behind it."""
    rng = np.random.default_rng(0)
    sparse, cloud = csr_array(np.eye(6, dtype=np.float32)), rng.dirichlet(np.ones(6), 6)
    for other in (torch.from_numpy(cloud).bfloat16(), torch.from_numpy(cloud).float().requires_grad_()):
        there, back = operator_distances([sparse, other]), operator_distances([other, sparse])
        np.testing.assert_allclose(there, back, rtol=1e-6)
        assert there[0, 1] > 1
