"""What a comparison of two operators needs of each: entries, their roots, and sums by groups of samples."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from repaudit.errors import OperatorError
from repaudit.operators.grouped_sketch import deal, groups_of
from repaudit.operators.patterns import pattern_sums
from repaudit.operators.stack import Operator, entries_of

Array: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = Any
"""A dense array (N, N) or a scipy sparse one, float64."""

HALVES: Final = 400

MEMORY: Final = 2**28
"""Bytes of the tallies that a comparison of several operators keeps."""


@dataclass(frozen=True)
class Halves:
    """Groups of samples, and random halves of the groups as an indicator (B, G).

    Attributes
    ----------
    group : (sample), the group of each
    sizes : (G), samples in each group
    picks : (B, G), 1 where a half has a group; none for fewer than 8 samples
    """

    group: NDArray[np.int64]
    sizes: Array
    picks: Array

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, samples: int, seed: int) -> Halves:
        """Deal samples into groups, and draw halves of the groups without replacement."""
        rng, count = np.random.default_rng(seed), groups_of(samples)
        group = deal(rng, samples, count)
        sizes = np.bincount(group, minlength=count).astype(np.float64)
        if samples < 8:
            return cls(group, sizes, np.zeros((0, count)))
        picks = np.zeros((HALVES, count))
        for row in picks:
            row[rng.choice(count, count // 2, replace=False)] = 1
        return cls(group, sizes, picks)

    def sums(self, matrix: Matrix) -> tuple[Array, Array]:
        """Return the sums of a matrix's entries by row, (N), and by the groups of their row and column, (G, G)."""
        count = len(self.sizes)
        if issparse(matrix):
            rows = np.repeat(np.arange(len(self.group)) * count, np.diff(matrix.indptr))
            flat = np.bincount(rows + self.group[matrix.indices], matrix.data, len(self.group) * count)
            by_group = flat.reshape(-1, count)
        else:
            by_group = matrix @ self._indicator
        table: Array = self._indicator.T @ by_group
        return by_group.sum(1), table

    @cached_property
    def _indicator(self) -> Array:
        return np.eye(len(self.sizes))[self.group]

    def along(self, values: Array) -> Array:
        """Return the sums of values (sample) by group, (G)."""
        return np.asarray(np.bincount(self.group, values, len(self.sizes)), dtype=np.float64)

    def of_table(self, table: Array) -> Array:
        """Return the sum of a (G, G) table over the rows and columns of every half, (B)."""
        sums: Array = ((self.picks @ table) * self.picks).sum(1)
        return sums

    def of_row(self, row: Array) -> Array:
        """Return the sum of a (G) row over the groups of every half, (B)."""
        sums: Array = self.picks @ row
        return sums


@dataclass(frozen=True)
class Tally:
    """One operator, and the sums that the null of its distances is made of.

    Attributes
    ----------
    matrix, root : (N, N)
        Entries and their square roots, dense or sparse.
    sums, norms : (N), sum and squared norm of each row
    kept : (N), the diagonal
    diagonal : (G); entries, squares : (G, G)
        Sums by groups.
    root_sums : sum of the diagonal, of all entries, and of the squares of the root
    """

    matrix: Matrix
    root: Matrix
    sums: Array
    norms: Array
    kept: Array
    diagonal: Array
    entries: Array
    squares: Array
    root_sums: tuple[float, float, float]

    @cached_property
    def moments(self) -> dict[str, float]:
        """Sums over patterns of entries less ``1 / N``, which the chance of a distance is made of."""
        return pattern_sums(self.matrix, 1 / self.matrix.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of both matrices."""
        return sum(
            one.data.nbytes + one.indices.nbytes + one.indptr.nbytes if issparse(one) else one.nbytes
            for one in (self.matrix, self.root)
        )

    @classmethod
    def of(cls, operator: Operator, halves: Halves) -> Tally:
        """Take an operator apart; a sparse one stays sparse.

        Raises
        ------
        OperatorError
            The operator is not square, or not finite.
        """
        matrix = as_float64(operator)
        if issparse(matrix):
            root, squared = (
                csr_array((data, matrix.indices, matrix.indptr), matrix.shape)
                for data in (np.sqrt(np.clip(matrix.data, 0, None)), matrix.data**2)
            )
            entries_of_root = root.data
        else:
            root = np.sqrt(np.clip(matrix, 0, None))
            squared, entries_of_root = matrix**2, root.ravel()
        kept = np.asarray(matrix.diagonal(), dtype=np.float64)
        (sums, entries), (norms, squares) = halves.sums(matrix), halves.sums(squared)
        trace = float(np.sqrt(np.clip(kept, 0, None)).sum())
        root_sums = trace, float(entries_of_root.sum()), float(entries_of_root @ entries_of_root)
        return cls(matrix, root, sums, norms, kept, halves.along(kept), entries, squares, root_sums)


class Tallies:
    """Tallies of operators that come again and again: the last ones are kept, two of them at least.

    Parameters
    ----------
    memory : int
        Bytes of the tallies that are kept.
    most : int, optional
        How many are kept: as many as come again.
    """

    def __init__(self, memory: int = MEMORY, most: int | None = None) -> None:
        self.memory, self.most = memory, most
        self._kept: OrderedDict[tuple[int, int], tuple[Operator, Halves, Tally]] = OrderedDict()

    def __call__(self, operator: Operator, halves: Halves) -> Tally:
        """Return the tally of an operator, computed or kept."""
        key = id(operator), id(halves)  # of objects that are held beside it, so that no other gets their address
        if key not in self._kept:
            self._kept[key] = operator, halves, Tally.of(operator, halves)
            while len(self._kept) > 2 and self._are_many():
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][2]

    def _are_many(self) -> bool:
        if self.most is not None and len(self._kept) > self.most:
            return True
        return sum(tally.nbytes for *_, tally in self._kept.values()) > self.memory


def as_float64(operator: Operator) -> Matrix:
    """Return an operator's matrix in float64: scipy sparse where it is sparse, else a checked dense array.

    Raises
    ------
    OperatorError
        The operator is not square, or not finite.
    """
    matrix = entries_of(operator)
    if not issparse(matrix):
        return matrix
    sparse = csr_array(matrix, dtype=np.float64)
    if sparse.shape[0] != sparse.shape[1] or sparse.shape[0] < 2:
        raise OperatorError(f"expected a square (sample, neighbor) of at least 2 samples, found {sparse.shape}")
    return sparse
