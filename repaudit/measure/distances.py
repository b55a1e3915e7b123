"""Distances between operators: one matrix (T, T) for T operators, read in bands under a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repaudit.measure.gram import Gram, Progress, stream_gram
from repaudit.measure.null import NO_STRUCTURE, null_inner
from repaudit.measure.stack import Operator, OperatorStack

METRICS = ("frobenius", "calibrated")


def operator_distances(
    operators: Sequence[Operator] | Any,
    metric: str = "frobenius",
    *,
    memory: str | int = "2GB",
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Distances of all pairs of operators on the same samples.

    ============= ==========================================================================================
    metric        distance of P and Q
    ============= ==========================================================================================
    frobenius     ``|P - Q|_F``
    calibrated    ``sqrt(|P - Q|_F^2 / E|P - R Q R'|_F^2)``, R a random relabelling: 0 identical, 1 unrelated
    ============= ==========================================================================================

    Parameters
    ----------
    operators : sequence of T operators (sample, neighbor), or array (T, sample, neighbor)
        Operators, arrays or tensors; a lazy sequence is asked for every item once per band of rows.
    metric : str
    memory : bytes, or text such as "2GB"
        Bound on the memory used beside the operators themselves; it does not depend on T but for the (T, T) results.
    progress : function of (rows done, rows in all), optional

    Returns
    -------
    ndarray (T, T), float64, symmetric with a zero diagonal

    Raises
    ------
    OperatorError
        Operators of different sizes, or not square, or with NaN; a budget that not even one row of each fits in.
    ValueError
        An unknown metric.

    Examples
    --------
    >>> import numpy as np
    >>> operator_distances([np.eye(2), np.full((2, 2), 0.5)])
    array([[0., 1.],
           [1., 0.]])
    """
    if metric not in METRICS:
        raise ValueError(f"expected a metric among {', '.join(METRICS)}, found {metric!r}")
    stack = OperatorStack(operators)
    if metric == "calibrated":
        # A constant changes neither the distances nor their null, and without it near-uniform operators cancel nothing.
        gram = stream_gram(stack, memory=memory, progress=progress, transform=lambda band: band.sub_(1 / stack.samples))
        squares = _calibrated_squares(gram, stack.samples)
    else:
        squares = stream_gram(stack, memory=memory, progress=progress).squared_distances
    distances: NDArray[np.float64] = np.sqrt(squares)
    return distances


def _calibrated_squares(gram: Gram, samples: int) -> NDArray[np.float64]:
    """Squared distances over their null; 0 where the null itself is 0, which only identical operators have."""
    inner = null_inner(gram.trace[:, None], gram.total[:, None], gram.trace[None, :], gram.total[None, :], samples)
    null = gram.square[:, None] + gram.square[None, :] - 2 * inner
    ratio: NDArray[np.float64] = np.zeros_like(gram.squared_distances)
    np.divide(gram.squared_distances, null, out=ratio, where=null > NO_STRUCTURE)
    return ratio
