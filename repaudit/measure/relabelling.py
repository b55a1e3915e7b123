"""Mean and variance of the inner product of two matrices over all relabellings of the samples, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, TypeAlias

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
    >>> import numpy as np
    >>> from repaudit.operators.patterns import pattern_sums
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
