"""Count sketches that keep groups of samples apart: the spread of models with its intervals, from 20 kB of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from repaudit.errors import OperatorError
from repaudit.operators.patterns import PATTERNS, pattern_sums
from repaudit.operators.sketch import SIZE, OperatorSketch, hashed, in_single
from repaudit.operators.stack import Operator, entries_of, side_of

GROUPS: Final = 20
"""The samples are dealt into this many groups; of a sketch, each two groups have the same share of its numbers."""

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class GroupedSketch(OperatorSketch):
    """A count sketch of an operator in which every two groups of samples have buckets of their own.

    So a distance is known group by group, and from this how much other samples would change it; and everything that
    the null of a distance is made of is exact.

    Attributes
    ----------
    diagonal : (G), entries : (G, G), squares : (G, G)
        Sums by groups of the diagonal, of the entries, and of their squares.
    moments : dict
        Sums over patterns of entries less ``1 / N``.
    diagnostics : dict
        What the gauge said of the operator.

    See Also
    --------
    grouped_sketch : makes one.
    repaudit.spread : takes them in the place of operators.
    """

    diagonal: Array
    entries: Array
    squares: Array
    moments: Mapping[str, float]
    diagnostics: Mapping[str, float]

    @property
    def groups(self) -> int:
        """How many groups of samples it keeps apart."""
        return len(self.diagonal)

    def read(self) -> GroupedSketch:
        """Return the sketch, as one that is read when it is needed does."""
        return self

    def facts(self) -> dict[str, Any]:
        """Return what a store says of its :meth:`numbers`."""
        sizes = {"size": SIZE, "groups": self.groups, "samples": self.samples, "seed": self.seed}
        return {**sizes, "diagnostics": list(self.diagnostics)}

    def numbers(self) -> Array:
        """Return all of it in one row, from which :meth:`of_numbers` makes it again."""
        sums = [self.moments[name] for name in PATTERNS]
        parts = (self.values, self.diagonal, self.entries.ravel(), self.squares.ravel(), sums)
        rest = (self.trace, self.total, self.square), list(self.diagnostics.values())
        return np.concatenate([np.asarray(part, dtype=np.float64) for part in (*parts, *rest)])

    @classmethod
    def of_numbers(cls, numbers: Array, facts: Mapping[str, Any]) -> GroupedSketch:
        """Make a sketch of what :meth:`numbers` and :meth:`facts` have returned.

        Raises
        ------
        OperatorError
            So many numbers are not such a sketch.
        """
        samples, seed, diagnostics = int(facts["samples"]), int(facts["seed"]), list(facts["diagnostics"])
        count = groups_of(samples)
        lengths = (SIZE, count, count**2, count**2, len(PATTERNS), 3, len(diagnostics))
        if len(numbers) != sum(lengths):
            raise OperatorError(
                f"expected {sum(lengths)} numbers of a sketch of {samples} samples with {len(diagnostics)} "
                f"diagnostics, found {len(numbers)}"
            )
        values, diagonal, entries, squares, sums, (trace, total, square), seen = np.split(
            numbers, np.cumsum(lengths[:-1])
        )
        return cls(
            values.astype(np.float32), samples, seed, float(trace), float(total), float(square),
            diagonal, entries.reshape(count, count), squares.reshape(count, count),
            dict(zip(PATTERNS, sums.tolist(), strict=True)), dict(zip(diagnostics, seen.tolist(), strict=True)),
        )  # fmt: skip


@dataclass(frozen=True)
class LazySketch:
    """A grouped sketch that is read when it is needed; ``samples`` is that of its operator."""

    samples: int
    read: Callable[[], GroupedSketch]


def is_sketched(operator: Any) -> bool:
    """Whether this stands for an operator as a grouped sketch of it."""
    return isinstance(operator, GroupedSketch | LazySketch)


def as_sketch(operator: Any, seed: int = 0) -> GroupedSketch:
    """Return the grouped sketch of an operator, or of what stands for it."""
    return operator.read() if is_sketched(operator) else grouped_sketch(operator, seed=seed)


def groups_of(samples: int) -> int:
    """Return into how many groups so many samples are dealt: an even number.

    Examples
    --------
    >>> groups_of(1000), groups_of(5)
    (20, 4)
    """
    return min(GROUPS, samples // 2 * 2)


def deal(rng: np.random.Generator, samples: int, count: int) -> NDArray[np.int64]:
    """Return the group of each sample, drawn at random, in groups of one size to a sample."""
    group = np.empty(samples, dtype=np.int64)
    group[rng.permutation(samples)] = np.arange(samples) % count
    return group


def grouped_sketch(operator: Operator, *, seed: int = 0) -> GroupedSketch:
    """Compute the count sketch of an operator, group by group of its samples, and its exact sums.

    As of :func:`repaudit.operators.sketch.sketch`, ``E|S(P) - S(Q)|^2 = |P - Q|_F^2``. With ``d_b`` the squared
    distance between two groups, the variance is at most ``2 G^2 / size sum of d_b^2``: that of a sketch without groups,
    ``2 / size |P - Q|_F^4``, where all groups differ alike, and more where few samples make the difference.

    Parameters
    ----------
    operator : operator (sample, neighbor)
        Dense or sparse; a sparse one is not made dense. Its ``diagnostics``, if it has any, are kept.
    seed : int
        Of the hashes and groups: only sketches of one seed can be compared.

    Raises
    ------
    OperatorError
        The operator is not square, or not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p, q = rng.dirichlet(np.ones(64), size=(2, 64))
    >>> apart = grouped_sketch(p).values - grouped_sketch(q).values
    >>> round(float(apart @ apart / ((p - q) ** 2).sum()), 1)
    1.0
    """
    samples = side_of(operator)
    matrix, count = entries_of(operator), groups_of(samples)
    values, sums, squares = (_of_sparse if issparse(matrix) else _of_dense)(matrix, seed)
    kept = np.asarray(matrix.diagonal(), dtype=np.float64)
    moments = pattern_sums(matrix, 1 / samples)
    seen = {name: float(value) for name, value in dict(getattr(operator, "diagnostics", {})).items()}
    return GroupedSketch(
        in_single(values), samples, seed, moments["trace"], moments["trace"] + moments["off"],
        max(moments["same"] + moments["diagonal_same"], 0.0),
        _sums(_groups(samples, seed), kept, count), sums, squares, moments, seen,
    )  # fmt: skip


def by_groups(apart: NDArray[Any], groups: int) -> Array:
    """Return the squared distance of every two groups, (G, G), from the difference of two sketches' values."""
    per = len(apart) // groups**2
    squares: Array = np.square(apart[: per * groups**2], dtype=np.float64).reshape(groups, groups, per).sum(2)
    return squares


def error_by_groups(squares: Array, size: int = SIZE) -> float:
    """Return a bound on the standard error of a squared distance, from its estimated parts between every two groups.

    The estimates have a mean square of ``(1 + 2 / m) d_b^2``, m the buckets of two groups. Fewer entries than buckets
    meet less often than the bound has it.

    Examples
    --------
    >>> even = np.ones((20, 20))
    >>> round(error_by_groups(even) / float(even.sum()), 3), round(math.sqrt(2 / SIZE), 3)
    (0.02, 0.022)
    """
    buckets = size // squares.size
    return math.sqrt(2 / (buckets + 2) * float(np.square(squares).sum()))


def _of_sparse(matrix: Any, seed: int) -> tuple[Array, Array, Array]:
    """Return the buckets of a sparse matrix in rows, and the sums of its entries and of their squares by groups."""
    samples = matrix.shape[0]
    count, group = groups_of(samples), _groups(samples, seed)
    rows, entries = np.repeat(np.arange(samples), np.diff(matrix.indptr)), matrix.data.astype(np.float64)
    block = group[rows] * count + group[matrix.indices]
    bucket, negative = _buckets(rows * samples + matrix.indices, block, count, seed)
    tables = [_sums(block, some, count**2).reshape(count, count) for some in (entries, entries**2)]
    return _signed(bucket, negative, entries), tables[0], tables[1]


def _of_dense(matrix: Array, seed: int) -> tuple[Array, Array, Array]:
    """Return the same of a dense matrix: sums by groups are products with an indicator."""
    samples = matrix.shape[0]
    member = np.eye(groups_of(samples))[_groups(samples, seed)]
    tables = [member.T @ (some @ member) for some in (matrix, matrix**2)]
    return _signed(*_of_all(samples, seed), matrix.ravel()), tables[0], tables[1]


def _signed(bucket: NDArray[np.int64], negative: NDArray[np.bool_], entries: Array) -> Array:
    return _sums(bucket, np.where(negative, -entries, entries), SIZE)


def _sums(place: NDArray[np.int64], values: Array, count: int) -> Array:
    return np.bincount(place, values, minlength=count).astype(np.float64, copy=False)


@lru_cache(maxsize=4)
def _groups(samples: int, seed: int) -> NDArray[np.int64]:
    return deal(np.random.default_rng(seed), samples, groups_of(samples))


@lru_cache(maxsize=1)
def _of_all(samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the buckets and signs of all entries of a dense operator, row by row: the same at every audit."""
    count, group = groups_of(samples), _groups(samples, seed)
    return _buckets(np.arange(samples**2), np.add.outer(group * count, group).ravel(), count, seed)


def _buckets(
    entry: NDArray[np.int64], block: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the bucket of each entry, which is one of those of its two groups, and whether its sign is negative."""
    per = SIZE // count**2
    within, negative = hashed(entry.astype(np.uint64), per, seed)
    return block * per + within, negative
