"""Walks of many steps on an operator: how many, and how far apart PHATE's potential puts the samples after them."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import OperatorError
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.stack import Operator, dense

Array = NDArray[np.float64]

IMPORTING: Final = Lock()
"""Held while phate or scikit-learn is imported: of two threads that import parts of it at once, one may meet a module
that the other has made half."""

T_MAX: Final = 100
"""Longest diffusion time at which the von Neumann entropy is computed."""
POTENTIAL_FLOOR: Final = 1e-7
"""Added to transition probabilities before the logarithm, as PHATE does."""
ROUNDING: Final = 1e-5
"""What float32 leaves uncertain of the logarithm of a probability after many steps."""


def potential_distances(matrix: Array, time: int, samples: Sequence[int] | None = None) -> Array:
    """Return the distances between rows of ``-log(P^t + 1e-7)``, all or some of them; 0 of those rounding tells apart.

    Products of probabilities lose no digits in float32, which is twice as fast.
    """
    with IMPORTING:
        from sklearn.metrics import euclidean_distances

    if (matrix < 0).any():
        raise OperatorError("expected transition probabilities, found negative entries in the operator")
    walked = rows_of_power(matrix.astype(np.float32), time, samples).astype(np.float64)
    distances: Array = euclidean_distances(-np.log(walked + POTENTIAL_FLOOR))
    distances[distances < ROUNDING * np.sqrt(len(matrix))] = 0
    return distances


def rows_of_power(matrix: NDArray[Any], time: int, samples: Sequence[int] | None) -> NDArray[Any]:
    """Return rows of ``matrix^time``, by as many squarings of the matrix as save more products with the rows alone.

    A walk that has mixed, whose rows are equal to rounding, stays as it is.
    """
    chosen = np.arange(len(matrix)) if samples is None else np.asarray(samples)
    squarings = min(range(time.bit_length()), key=lambda some: _products(time, some, len(matrix), len(chosen)))
    rows: NDArray[Any] | None = None
    for bit in range(squarings + 1):
        for _ in range(time >> bit if bit == squarings else time >> bit & 1):
            rows = matrix[chosen] if rows is None else rows @ matrix
        if bit < squarings:
            matrix = matrix @ matrix
            if np.ptp(matrix, axis=0).max() <= np.finfo(matrix.dtype).eps * matrix.max():
                return matrix[chosen]
    return rows if rows is not None else matrix[chosen]


def _products(time: int, squarings: int, count: int, rows: int) -> int:
    """Return the cost of a power of a (count, count) matrix in rows multiplied."""
    left, once = divmod(time, 1 << squarings)
    return squarings * count + (left + once.bit_count() - 1) * rows


def diffusion_time(operator: Operator, t: int | str) -> int:
    """Return `t`, or the knee of the von Neumann entropy ``-sum p log p`` of ``p = |lambda|^t / sum |lambda|^t``."""
    if t == "auto":
        with IMPORTING:
            from phate.vne import find_knee_point

        chain = operator if isinstance(operator, DiffusionOperator) else DiffusionOperator.from_matrix(dense(operator))
        times = np.arange(1, T_MAX + 1)
        return int(find_knee_point(np.array([chain.entropy(int(time)) for time in times]), times))
    if not isinstance(t, int | np.integer) or t < 1:
        raise ValueError(f"expected t='auto' or a whole number of at least 1, found {t!r}")
    return int(t)
