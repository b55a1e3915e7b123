"""What unrelated operators would give: expected distances under random relabelling, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repaudit.operators.stack import Operator, dense

NO_STRUCTURE = 1e-12
"""A null below this is rounding, since row-stochastic operators have a squared norm of at least 1: relabelling changes
nothing in uniform operators."""


@dataclass(frozen=True)
class Moments:
    """All that the null depends on: side, trace, sum of entries and sum of squares of a matrix."""

    side: int
    trace: float
    total: float
    square: float

    @classmethod
    def of(cls, matrix: NDArray[Any]) -> Moments:
        """Compute the moments of a dense matrix (N, N) in float64."""
        flat = matrix.ravel()
        return cls(matrix.shape[0], float(np.trace(matrix)), float(matrix.sum()), float(flat @ flat))


def null_inner(trace_p: Any, total_p: Any, trace_q: Any, total_q: Any, side: Any) -> Any:
    """Return the expected inner product of P with a randomly relabelled Q, from traces and sums of entries (arrays).

    ``E<P, R Q R'> = tr P tr Q / N + (sum P - tr P) (sum Q - tr Q) / (N (N - 1))``: a uniformly random permutation R
    sends every diagonal entry to every diagonal position equally often, and so for off-diagonal ones.
    """
    off = (total_p - trace_p) * (total_q - trace_q)
    return trace_p * trace_q / side + off / (side * (side - 1))


def null_squared_distance(p: Operator, q: Operator) -> float:
    """Return the expected squared Frobenius distance of P from a randomly relabelled Q.

    ``E|P - R Q R'|^2 = |P|^2 + |Q|^2 - 2 E<P, R Q R'>`` with R a uniformly random permutation of the samples: what two
    operators with these entries and nothing in common would have.

    Parameters
    ----------
    p, q : operators (sample, neighbor)
        On the same number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> null_squared_distance(np.eye(4), np.full((4, 4), 1 / 4))
    3.0
    """
    first, second = Moments.of(dense(p)), Moments.of(dense(q))
    inner = null_inner(first.trace, first.total, second.trace, second.total, first.side)
    return first.square + second.square - 2 * float(inner)
