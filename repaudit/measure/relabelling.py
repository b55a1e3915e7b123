"""Mean and variance of the inner product of two matrices over all relabellings of the samples, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from scipy.sparse import issparse

from repaudit.measure.null import null_inner

Moments: TypeAlias = Mapping[str, float]

_PATTERNS: Final = {
    "same": (2, 1),
    "reversed": (2, 1),
    "row": (3, 1),
    "column": (3, 1),
    "chain": (3, 2),
    "apart": (4, 1),
    "diagonal_same": (1, 1),
    "diagonal_apart": (2, 1),
    "diagonal_row": (2, 2),
    "diagonal_column": (2, 2),
    "diagonal_off": (3, 2),
}
"""How two entries of a matrix can share samples: the number of different samples, and of such patterns alike."""


def inner_moments(p: Moments, q: Moments, samples: int) -> tuple[float, float]:
    """Return mean and variance of ``<P, R Q R'>`` over all relabellings R, from the sums of each matrix.

    The square of the inner product is a sum over two entries of each matrix. A relabelling takes every pattern of
    samples that two entries share to any other such pattern alike, so its mean is a sum over patterns.

    Source: Mantel, The detection of disease clustering and a generalized regression approach (1967); with the
    diagonal, which is empty there.

    Examples
    --------
    >>> mean, variance = inner_moments(pattern_sums(np.eye(3)), pattern_sums(np.eye(3)), 3)
    >>> mean, round(variance, 12)
    (3.0, 0.0)
    """
    totals = [one["trace"] + one["off"] for one in (p, q)]
    mean = float(null_inner(p["trace"], totals[0], q["trace"], totals[1], samples))
    square = 0.0
    for name, (places, alike) in _PATTERNS.items():
        count = math.perm(samples, places)
        square += alike * p[name] * q[name] / count if count else 0.0
    return mean, max(square - mean**2, 0.0)


def pattern_sums(matrix: Any, constant: float = 0.0) -> dict[str, float]:
    """Return the sums of ``a_ij a_kl`` over every pattern of shared samples, of a dense or a scipy sparse matrix.

    ``a_ij`` is the entry less a constant: of nearly uniform matrices, ``1 / N`` keeps what differs from rounding.
    """
    size = matrix.shape[0]
    matrix = matrix if issparse(matrix) else matrix - constant
    less = constant if issparse(matrix) else 0.0
    kept = np.asarray(matrix.diagonal(), dtype=np.float64) - less
    rows = np.asarray(matrix.sum(axis=1)).ravel() - size * less - kept
    columns = np.asarray(matrix.sum(axis=0)).ravel() - size * less - kept
    if issparse(matrix):
        shift = size**2 * less**2 - 2 * less * float(matrix.sum())
        squares = float(matrix.data @ matrix.data) + shift
        back = float(matrix.multiply(matrix.T.tocsr()).sum()) + shift
    else:
        squares, back = float(np.vdot(matrix, matrix)), float(np.vdot(matrix, matrix.T))
    trace, off, diagonal = float(kept.sum()), float(rows.sum()), float(kept @ kept)
    same, back = squares - diagonal, back - diagonal
    row, column, chain = float(rows @ rows) - same, float(columns @ columns) - same, float(rows @ columns) - back
    with_row, with_column = float(kept @ rows), float(kept @ columns)
    return {
        "trace": trace,
        "off": off,
        "same": same,
        "reversed": back,
        "row": row,
        "column": column,
        "chain": chain,
        "apart": off**2 - same - back - row - column - 2 * chain,
        "diagonal_same": diagonal,
        "diagonal_apart": trace**2 - diagonal,
        "diagonal_row": with_row,
        "diagonal_column": with_column,
        "diagonal_off": trace * off - with_row - with_column,
    }
