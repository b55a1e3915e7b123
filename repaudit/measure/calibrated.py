"""Distances of operators as shares of what unrelated ones would have."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from repaudit.measure.gram import Progress, stream_gram
from repaudit.measure.null import NO_STRUCTURE
from repaudit.measure.structure import Structure
from repaudit.operators.stack import OperatorStack

Array = NDArray[np.float64]


def calibrated_distances(
    stack: OperatorStack,
    first: int,
    *,
    memory: str | int = "2GB",
    recompute: bool = True,
    progress: Progress | None = None,
) -> Array:
    """Compute the calibrated distances (first, T) of the first operators of a stack to all of them.

    Close ones are recomputed unless a rounding error of about 1e-3 does not matter.
    """
    gram = stream_gram(
        stack,
        memory=memory,
        progress=progress,
        moments=True,
        first=first,
        recompute=recompute,
    )
    squares = _calibrated_squares(gram.squared_distances, cast(Structure, gram.structure))
    return np.sqrt(squares, out=squares)


def _calibrated_squares(squares: Array, structure: Structure) -> Array:
    """Put squared distances over their null, in place; 0 where the null is 0, which only identical operators have."""
    for start in range(0, len(squares), 64):  # few rows at a time: the nulls are as many numbers again, and more
        rows = slice(start, min(start + 64, len(squares)))
        null = structure.null(rows)
        known = null > NO_STRUCTURE
        np.divide(squares[rows], null, out=squares[rows], where=known)
        squares[rows][~known] = 0
    return squares
