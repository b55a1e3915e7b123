"""A spread over steps with its intervals, and which changes between steps are significant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from repaudit.errors import AnalysisError

SMALLEST_CHANGE = 0.01
"""A smaller change does not count, however sharp the interval: one percent of the way from identical to unrelated."""


@dataclass(frozen=True)
class Curve:
    """Steps with a known value, and the half-widths of their intervals below and above it; unknown half-widths are NaN.

    A change between two steps is significant where it exceeds the margin of their difference, and 0.01. Without
    margins, which take what the steps share into account, that is both half-widths facing it, taken together as
    ``sqrt(a^2 + b^2)`` and widened for the number of steps (Tukey's studentized range).
    """

    steps: NDArray[np.int64]
    value: NDArray[np.float64]
    below: NDArray[np.float64]
    above: NDArray[np.float64]
    margins: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls,
        steps: Sequence[int] | ArrayLike,
        value: ArrayLike,
        low: ArrayLike,
        high: ArrayLike,
        margins: ArrayLike | None = None,
    ) -> Curve:
        """Check a curve given by values and interval ends (step), and leave out steps without a value.

        Raises
        ------
        AnalysisError
            Different lengths, steps that do not increase, or a value outside its interval.
        """
        at = np.asarray(steps)
        v, low, high = (np.asarray(x, dtype=np.float64) for x in (value, low, high))
        if not (at.shape == v.shape == low.shape == high.shape) or at.ndim != 1:
            shapes = f"{at.shape}, {v.shape}, {low.shape}, {high.shape}"
            raise AnalysisError(f"expected one value, low and high per step, found shapes {shapes}")
        if (np.diff(at) <= 0).any():
            raise AnalysisError("expected strictly increasing steps, found others: sort them, with one value per step")
        outside = (low > v) | (high < v)
        if outside.any():
            raise AnalysisError(f"expected low <= value <= high, found another order at step {at[outside.argmax()]}")
        known = np.isfinite(v)
        wide = None if margins is None else np.asarray(margins, dtype=np.float64)
        if wide is not None and wide.shape != (len(at), len(at)):
            raise AnalysisError(f"expected margins (step, step) of {len(at)} steps, found shape {wide.shape}")
        kept = None if wide is None else wide[np.ix_(known, known)]
        return cls(at[known].astype(np.int64), v[known], (v - low)[known], (high - v)[known], kept)

    def __len__(self) -> int:
        return len(self.value)

    @cached_property
    def widening(self) -> float:
        """Factor of the intervals for the number of steps."""
        return _widening(len(self))

    def falls(self, a: int | slice, b: int) -> bool:
        """Return whether the value at `b` is significantly below that at `a`, or at any index of a slice."""
        return self._exceeds(self.value[a] - self.value[b], a, b, self.below[a], self.above[b])

    def rises(self, a: int | slice, b: int) -> bool:
        """Return whether the value at `b` is significantly above that at `a`, or at any index of a slice."""
        return self._exceeds(self.value[b] - self.value[a], a, b, self.above[a], self.below[b])

    def _exceeds(self, change: ArrayLike, a: int | slice, b: int, half: ArrayLike, other: ArrayLike) -> bool:
        margin = self.widening * np.hypot(half, other) if self.margins is None else self.margins[a, b]
        return bool(np.any(change > np.maximum(SMALLEST_CHANGE, margin)))


@cache
def _widening(steps: int) -> float:
    """Return by what factor a 95% interval of one difference grows for the largest one among all pairs of steps."""
    if steps < 3:
        return 1.0
    return float(stats.studentized_range.ppf(0.95, steps, np.inf) / stats.studentized_range.ppf(0.95, 2, np.inf))


def of_most_models(counts: Sequence[int] | ArrayLike) -> NDArray[np.bool_]:
    """Return which steps are of the most models: where models come and go, a change of the curve is not one of theirs.

    Of all models, if they share two steps; else of the largest number of models that share two.

    Parameters
    ----------
    counts : (step,)
        Models at each step.

    Examples
    --------
    >>> of_most_models([3, 3, 3, 2, 2]).tolist(), of_most_models([5, 3, 3]).tolist()
    ([True, True, True, False, False], [False, True, True])
    """
    numbers = np.asarray(counts)
    known, often = np.unique(numbers, return_counts=True)
    several = known[often > 1] if (often > 1).any() else known
    return np.asarray(numbers == several.max()) if len(numbers) else numbers.astype(bool)
