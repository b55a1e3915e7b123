"""Sums of products of two entries of a matrix, over every pattern in which these share samples."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.sparse import issparse

PATTERNS: Final = (
    "trace",
    "off",
    "same",
    "reversed",
    "row",
    "column",
    "chain",
    "apart",
    "diagonal_same",
    "diagonal_apart",
    "diagonal_row",
    "diagonal_column",
    "diagonal_off",
)
"""Names of the sums, in the order of :func:`pattern_sums`."""


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
