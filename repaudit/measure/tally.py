"""What a comparison of two operators needs of each: entries, their roots, and sums by groups of samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from repaudit.errors import OperatorError
from repaudit.measure.relabelling import pattern_sums
from repaudit.operators.stack import Operator, dense, matrix_of

Array: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = Any
"""A dense array (N, N) or a scipy sparse one, float64."""

GROUPS: Final = 20
"""The samples are dealt into this many groups; a random half of the groups is one subsample."""

HALVES: Final = 400


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
    def of(cls, samples: int, seed: int) -> Halves:
        """Deal samples into groups, and draw halves of the groups without replacement."""
        rng = np.random.default_rng(seed)
        count = min(GROUPS, samples // 2 * 2)
        group = np.empty(samples, dtype=np.int64)
        group[rng.permutation(samples)] = np.arange(samples) % count
        sizes = np.bincount(group, minlength=count).astype(np.float64)
        if samples < 8:
            return cls(group, sizes, np.zeros((0, count)))
        picks = np.zeros((HALVES, count))
        for row in picks:
            row[rng.choice(count, count // 2, replace=False)] = 1
        return cls(group, sizes, picks)

    def table(self, matrix: Matrix) -> Array:
        """Return the sums of a matrix's entries by the groups of their row and column, (G, G)."""
        count = len(self.sizes)
        if issparse(matrix):
            rows = np.repeat(self.group, np.diff(matrix.indptr))
            flat = np.bincount(rows * count + self.group[matrix.indices], matrix.data, count * count)
            return np.asarray(flat.reshape(count, count), dtype=np.float64)
        indicator = np.eye(count)[self.group]
        table: Array = indicator.T @ (matrix @ indicator)
        return table

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
    norms : (N), squared norm of each row
    kept : (N), the diagonal
    diagonal : (G); entries, squares : (G, G)
        Sums by groups.
    """

    matrix: Matrix
    root: Matrix
    norms: Array
    kept: Array
    diagonal: Array
    entries: Array
    squares: Array

    @cached_property
    def moments(self) -> dict[str, float]:
        """Sums over patterns of entries less ``1 / N``, which the chance of a distance is made of."""
        return pattern_sums(self.matrix, 1 / self.matrix.shape[0])

    @classmethod
    def of(cls, operator: Operator, halves: Halves) -> Tally:
        """Take an operator apart; a sparse one stays sparse.

        Raises
        ------
        OperatorError
            The operator is not square, or not finite.
        """
        matrix = as_float64(operator)
        squared = matrix.multiply(matrix) if issparse(matrix) else matrix**2
        root = matrix.copy()
        if issparse(matrix):
            squared = csr_array(squared)
            root.data = np.sqrt(np.clip(matrix.data, 0, None))
        else:
            root = np.sqrt(np.clip(matrix, 0, None))
        kept = np.asarray(matrix.diagonal(), dtype=np.float64)
        tables = halves.along(kept), halves.table(matrix), halves.table(squared)
        return cls(matrix, root, np.asarray(squared.sum(axis=1)).ravel(), kept, *tables)


def as_float64(operator: Operator) -> Matrix:
    """Return an operator's matrix in float64: scipy sparse where it is sparse, else a checked dense array.

    Raises
    ------
    OperatorError
        The operator is not square, or not finite.
    """
    matrix = matrix_of(operator)
    if isinstance(matrix, torch.Tensor) and matrix.layout != torch.strided:
        coo = matrix.detach().cpu().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        rows, columns = coo.indices().numpy()
        matrix = csr_array((coo.values().double().numpy(), (rows, columns)), shape=tuple(coo.shape))
    if not issparse(matrix):
        return dense(matrix)
    sparse = csr_array(matrix, dtype=np.float64)
    sparse.sum_duplicates()
    if sparse.shape[0] != sparse.shape[1] or sparse.shape[0] < 2:
        raise OperatorError(f"expected a square (sample, neighbor) of at least 2 samples, found {sparse.shape}")
    if not np.isfinite(sparse.data).all():
        raise OperatorError("expected finite entries, found NaN or infinity in the operator: leave this step out")
    return sparse
