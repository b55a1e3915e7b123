"""Sketches against the distances that they estimate: unbiased, as sure as they say, and the same for any form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import repaudit as ra
from repaudit.errors import OperatorError
from repaudit.measure import sketched
from repaudit.measure.distances import operator_distances
from repaudit.measure.sketched import nearest_operators, sketch_distances
from repaudit.operators.grouped_sketch import grouped_sketch
from repaudit.operators.sketch import mean_sketch, sketch


def walk(count: int, side: int, seed: int = 0) -> list[ra.DiffusionOperator]:
    """Operators of points that drift, in three clusters: near in time is near in distance."""
    rng = np.random.default_rng(seed)
    points, drift = rng.normal(size=(2, side, 8))
    clusters = rng.normal(size=(3, 8))[rng.integers(0, 3, side)]
    gauge = ra.DiffusionGauge(perplexity=6)
    return [
        gauge((points + 2 * step / count * clusters + np.sin(3 * step / count) * drift).astype(np.float32))
        for step in range(count)
    ]


def pair(side: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(side, 0.2), size=(2, side))


def test_squared_distances_are_unbiased_with_the_error_that_is_told() -> None:
    p, q = pair()
    exact = float(((p - q) ** 2).sum())
    estimates = []
    for seed in range(400):
        apart = sketch(p, 256, seed=seed).values - sketch(q, 256, seed=seed).values
        estimates.append(float(apart @ apart) / exact)
    told = sketch(p, 256).error
    assert told == pytest.approx(np.sqrt(2 / 256))
    assert abs(np.mean(estimates) - 1) < 4 * told / np.sqrt(400)
    assert np.std(estimates) == pytest.approx(told, rel=0.2)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**63), st.floats(0.05, 0.95))
def test_the_sketch_of_a_mean_is_the_mean_of_sketches(side: int, seed: int, share: float) -> None:
    p, q = pair(side)
    mixed = sketch(share * p + (1 - share) * q, 64, seed=seed)
    mean = mean_sketch([sketch(p, 64, seed=seed), sketch(q, 64, seed=seed)], [share, 1 - share])
    np.testing.assert_allclose(mean.values, mixed.values, atol=1e-5)
    assert (mean.trace, mean.total) == pytest.approx((mixed.trace, mixed.total), abs=1e-9)


@pytest.mark.parametrize("form", ["scipy", "coo", "tensor", "operator", "float32", "file"])
def test_any_form_of_an_operator_has_one_sketch(form: str, tmp_path: Path) -> None:
    p, _ = pair()
    p[p < 0.01] = 0
    p /= p.sum(1, keepdims=True)
    np.save(tmp_path / "p.npy", p)
    forms: dict[str, Callable[[], Any]] = {
        "scipy": lambda: scipy.sparse.coo_array(p),
        "coo": lambda: torch.sparse_coo_tensor(
            torch.from_numpy(np.stack(p.nonzero())), torch.from_numpy(p[p.nonzero()]), p.shape, check_invariants=True
        ),
        "tensor": lambda: torch.from_numpy(p),
        "operator": lambda: ra.DiffusionOperator.from_matrix(p),
        "float32": lambda: p.astype(np.float32),
        "file": lambda: ra.operators.files.OperatorFile.at(tmp_path / "p.npy"),
    }
    found, wanted = sketch(forms[form]()), sketch(p)
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
    assert (found.trace, found.square) == pytest.approx((wanted.trace, wanted.square), abs=1e-5)


def test_the_moments_are_exact_even_near_the_uniform_operator() -> None:
    p = np.full((50, 50), 1 / 50) + 1e-7 * (np.random.default_rng(0).random((50, 50)) - 0.5)
    made = sketch(p)
    assert made.square == pytest.approx(float(((p - 1 / 50) ** 2).sum()), rel=0.1, abs=1e-14)
    assert made.trace == pytest.approx(float(np.trace(p - 1 / 50)), abs=1e-12)


@pytest.mark.parametrize("metric", ["frobenius", "calibrated"])
def test_sketched_distances_are_those_of_all_entries_within_the_bound(metric: Any) -> None:
    operators = walk(40, 120)
    exact, estimated = operator_distances(operators, metric), operator_distances(operators, metric, sketch=4096)
    off = ~np.eye(40, dtype=bool)
    errors = np.abs(estimated[off] ** 2 / exact[off] ** 2 - 1)
    assert np.median(errors) < 0.018
    assert np.quantile(errors, 0.95) < 3 * np.sqrt(2 / 4096)  # all pairs share their hashes: errors go together
    np.testing.assert_array_equal(estimated, estimated.T)
    assert not estimated.diagonal().any()


def test_nearest_operators_are_those_of_all_pairs() -> None:
    operators = [one.matrix for one in walk(60, 120)]
    exact = operator_distances(operators, "calibrated")
    np.fill_diagonal(exact, np.inf)
    neighbors, distances = nearest_operators(operators, k=5)
    truth = np.argsort(exact, 1)[:, :5]
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(neighbors, truth, strict=True)])
    assert recall >= 0.99
    np.testing.assert_allclose(distances, np.take_along_axis(exact, neighbors, 1), rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_of_equal_operators_the_first_ones_are_nearest() -> None:
    p, q = pair()
    neighbors, distances = nearest_operators([p, q, p, p], k=2)
    assert neighbors.tolist() == [[2, 3], [0, 2], [0, 3], [0, 2]]
    assert distances[0].tolist() == [0.0, 0.0]


def test_each_operator_is_read_once_for_its_sketch() -> None:
    class Counted(list[Any]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

    stack = Counted(pair())
    operator_distances(stack, "calibrated", sketch=64)
    assert stack.reads <= len(stack) + 1  # one look at its size


def test_what_does_not_go_together_is_refused() -> None:
    p, q = pair()
    with pytest.raises(OperatorError, match="one size and seed"):
        sketch_distances([sketch(p), sketch(q, seed=1)])
    with pytest.raises(OperatorError, match="on the same samples"):
        sketch_distances([sketch(p), sketch(np.eye(7))])
    with pytest.raises(ValueError, match="square number"):
        sketch(p, 1000)
    with pytest.raises(ValueError, match="frobenius and calibrated"):
        operator_distances([p, q], "hellinger", sketch=64)
    with pytest.raises(ValueError, match="k from 1 to 1"):
        nearest_operators([p, q], k=2)
    with pytest.raises(OperatorError, match="finite"):
        sketch(np.array([[np.nan, 1.0], [0.5, 0.5]]))
    with pytest.raises(OperatorError, match="finite"):
        sketch(scipy.sparse.csr_array(np.array([[np.inf, 1.0], [0.5, 0.5]])))


def near_ties(count: int, side: int, apart: float) -> list[np.ndarray]:
    """Operators that drift by so little, relative to their entries, that single precision sees hardly any of it."""
    rng = np.random.default_rng(0)
    base, first, second = rng.dirichlet(np.full(side, 0.3), size=(3, side))
    steps = [np.sin(np.array([0.9, 1.7]) * 2 * step / count) for step in range(count)]
    return [(base + apart * (a * first + b * second)).astype(np.float32) for a, b in steps]


@pytest.mark.parametrize("given_sketches", [False, True])
def test_operators_that_hardly_move_have_the_nearest_of_all_pairs(given_sketches: bool) -> None:
    operators = near_ties(40, 60, 1e-4)
    wide = np.array([one.astype(np.float64).ravel() for one in operators])
    exact = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    np.fill_diagonal(exact, np.inf)
    sketches = [sketch(one) for one in operators] if given_sketches else None
    neighbors, distances = nearest_operators(operators, 3, "frobenius", sketches=sketches)
    truth = np.sort(exact, axis=1)[:, :3]
    np.testing.assert_allclose(distances, np.take_along_axis(exact, neighbors, 1), rtol=1e-5)
    np.testing.assert_allclose(distances, truth, rtol=1e-5 if sketches is None else 0.05)


@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize("metric", ["frobenius", "calibrated"])
def test_candidates_of_blocks_are_those_of_all_at_once(block: int, metric: Any, monkeypatch: Any) -> None:
    made = [sketch(one.matrix) for one in walk(50, 40)]
    apart = sketch_distances(made, metric)
    np.fill_diagonal(apart, np.inf)
    monkeypatch.setattr(sketched, "_BLOCK", block)
    told: list[tuple[int, int]] = []
    near = sketched._candidates(made, 12, metric, lambda *done: told.append(done))
    np.testing.assert_array_equal(np.sort(near, axis=1), np.sort(np.argsort(apart, axis=1)[:, :12], axis=1))
    pairs = (-(-50 // block)) * (-(-50 // block) + 1) // 2
    assert told == [(done, pairs) for done in range(1, pairs + 1)]


def test_blocks_of_sketches_hold_no_row_of_all(monkeypatch: Any) -> None:
    """Of a search with few in a block, what is held does not grow with the square of the operators, or with a row."""
    made = [sketch(one.matrix, 4) for one in walk(400, 20)]
    monkeypatch.setattr(sketched, "_BLOCK", 10)
    largest = []
    multiplied = torch.addmm

    def counted(*given: Any, **options: Any) -> torch.Tensor:
        largest.append(found := multiplied(*given, **options))
        return found

    monkeypatch.setattr(torch, "addmm", counted)
    sketched._candidates(made, 5, "frobenius", None)
    assert max(found.numel() for found in largest) == 100


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.float32])
def test_sparse_operators_of_whole_numbers_are_compared_in_float64(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    plain = [np.eye(200)[rng.permutation(200)] for _ in range(5)]
    operators = [scipy.sparse.csr_array(one.astype(dtype)) for one in plain]
    neighbors, distances = nearest_operators(operators, 2, "frobenius", sketches=[sketch(one) for one in operators])
    flat = np.array(plain).reshape(5, -1)
    np.testing.assert_allclose(distances, np.linalg.norm(flat[:, None] - flat[neighbors], axis=2), rtol=1e-12)


def test_what_sketches_cannot_hold_is_refused() -> None:
    made = [sketch(p, 64) for p in (*pair(), *pair(seed=1))]
    made[2].values[5] = np.nan
    with pytest.raises(OperatorError, match=r"finite sketches, found others of operators \[2\] of 4"):
        nearest_operators([*pair(), *pair(seed=1)], 1, sketches=made)
    with pytest.raises(OperatorError, match="single precision holds"):
        sketch(pair()[0] * 1e39)
    with pytest.raises(OperatorError, match="single precision holds"):
        grouped_sketch(pair()[0] * 1e39)


def test_entries_are_kept_by_their_bytes_and_an_error_names_its_operator(monkeypatch: Any) -> None:
    """Also where the first operator is a small one, which tells nothing of the others."""
    others = walk(39, 60)
    operators = [scipy.sparse.csr_array(np.eye(60)), *(one.to_numpy().astype(np.float64) for one in others)]
    made = [sketch(one) for one in operators]
    monkeypatch.setattr(sketched, "_HELD", 10 * 60 * 60 * 8)
    held = sketched._Entries(operators, 60)
    for index in range(40):
        held(index)
    assert len(held._kept) <= 10
    assert held._bytes == sum(map(sketched._size, held._kept.values())) <= sketched._HELD
    operators[7] = np.eye(61)
    with pytest.raises(OperatorError, match="on 60 samples, found 61 in 7"):
        nearest_operators(operators, 3, sketches=made)
    operators[7] = others[6].to_numpy() * np.nan
    with pytest.raises(OperatorError, match=r"operator 7 of 40: expected finite entries"):
        nearest_operators(operators, 3, sketches=made)
    monkeypatch.setattr(sketched, "FEW", 10)
    with pytest.raises(OperatorError, match=r"operator 7 of 40: expected finite entries"):
        nearest_operators(operators, 3)


@pytest.mark.parametrize(
    ("sketches", "said"),
    [
        ([], "expected sketches, one at least, found none"),
        (pair(), "found ndarray: repaudit.sketch makes one"),
        (iter(pair()), "found ndarray: repaudit.sketch makes one"),
        (np.array([1.0, 2.0]), "found float64"),
    ],
)
def test_what_are_no_sketches_is_told(sketches: Any, said: str) -> None:
    given = list(sketches)
    for some in (given, iter(given)):
        with pytest.raises(OperatorError, match=said):
            sketch_distances(some)
    with pytest.raises(OperatorError, match=said):
        nearest_operators(pair(), 1, sketches=given)


@pytest.mark.parametrize("kinds", ["sparse", "dense", "mixed"])
@pytest.mark.parametrize("held", [1, 2**26])
def test_distances_of_candidates_are_exact_whatever_holds_them(kinds: str, held: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sketched, "_HELD", held)
    plain = [one.to_numpy().astype(np.float64) for one in walk(30, 40)]
    plain[7] = plain[3]
    operators = [scipy.sparse.csr_array(one) for one in plain]
    operators = {"sparse": operators, "dense": plain, "mixed": [*plain[:9], *operators[9:]]}[kinds]
    neighbors, distances = nearest_operators(operators, 6, "frobenius", sketches=[sketch(one) for one in operators])
    flat = np.array([one.ravel() for one in plain])
    exact = np.linalg.norm(flat[:, None] - flat[neighbors], axis=2)
    np.testing.assert_allclose(distances, exact, rtol=1e-12, atol=0)
    assert (neighbors[7, 0], neighbors[3, 0], distances[7, 0]) == (3, 7, 0)


@pytest.mark.parametrize(
    ("operators", "options", "said"),
    [
        (pair(), {"k": 1.5}, "expected k from 1 to 1"),
        (pair(), {"k": True}, "expected k from 1 to 1"),
        (pair(), {"k": 1, "size": 5}, "square number"),
        ([], {"k": 1}, "two operators at least, found 0"),
        (dict(enumerate(pair())), {"k": 1}, r"found a mapping: pass list\(operators.values\(\)\)"),
        ([sketch(p) for p in pair()], {"k": 1}, "expected operators, found sketches: pass them as sketches="),
        (pair(), {"k": 1, "memory": "lots"}, "memory: expected a number of bytes, .* found 'lots'"),
        (pair(), {"k": 1, "memory": None}, "memory: expected .* found None"),
        (pair(), {"k": 1, "memory": "1kB"}, "at least 1.38 kiB for 2 operators of 40 samples"),
    ],
)  # fmt: skip
def test_nearest_operators_of_something_else_are_refused_in_a_sentence(operators: Any, options: Any, said: str) -> None:
    with pytest.raises((OperatorError, ValueError), match=said):
        nearest_operators(operators, **options)


def test_a_sketch_is_shown_in_one_line() -> None:
    made = sketch(pair()[0], 64)
    assert repr(made) == "OperatorSketch(64 numbers, samples=40, seed=0)"
    assert repr(grouped_sketch(pair()[0])).startswith("GroupedSketch(4")
