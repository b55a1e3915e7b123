"""When a layer settles, and which layers settle first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from repaudit.measure.curve import SMALLEST_CHANGE, Curve
from repaudit.measure.phases import Phase, read_phases

UNINFORMATIVE = 0.5
"""With a wider interval of the end, half of the way from identical to unrelated, nothing is known of settling."""

Points = Sequence[Any]
"""Steps, value, low and high, each (step,), and margins of their differences (step, step) where they are known."""


UNSETTLED: Final = ("unrelated", "undecided", "unchanged")
"""Verdicts on layers for which settling has no meaning; what never moved does not settle."""


@dataclass(frozen=True)
class Settling:
    """Change points of one layer's spread: steps, None if there is none."""

    layer: str
    below_start: int | None
    settled: int | None


def below_start(
    steps: Sequence[int] | ArrayLike,
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    margins: ArrayLike | None = None,
) -> int | None:
    """Return the first step at which the spread is significantly below its start; None if there is none.

    Examples
    --------
    >>> below_start([0, 10, 100], [0.9, 0.85, 0.3], [0.8, 0.75, 0.2], [1.0, 0.95, 0.4])
    100
    """
    curve = Curve.of(steps, value, low, high, margins)
    return next((int(curve.steps[i]) for i in range(1, len(curve)) if curve.falls(0, i)), None)


def settled(
    steps: Sequence[int] | ArrayLike,
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    margins: ArrayLike | None = None,
) -> int | None:
    """Return the first step from which the spread stays within the interval of its end (or 0.01).

    The end's interval decides: a step does not count as settled because it is too uncertain to differ significantly
    from the end. No later step differs significantly from the end, either, and no significant change begins there or
    later: a wide interval of the end must not call what still moves settled. For the same reason it is significantly
    away from where the last significant change began. None if the spread still moves: if that step is the last one,
    for fewer than two steps, and if the end has no interval or one wider than 0.5.

    Examples
    --------
    >>> settled([0, 10, 100, 200], [0.9, 0.5, 0.2, 0.22], [0.8, 0.4, 0.1, 0.12], [1.0, 0.6, 0.3, 0.32])
    100
    """
    curve = Curve.of(steps, value, low, high, margins)
    last = len(curve) - 1
    if last < 1 or not curve.below[last] + curve.above[last] <= UNINFORMATIVE:
        return None
    away = curve.value - curve.value[last]
    outside = (away > max(SMALLEST_CHANGE, curve.above[last])) | (-away > max(SMALLEST_CHANGE, curve.below[last]))
    moved = [i for i in range(last) if outside[i] or curve.falls(i, last) or curve.rises(i, last)]
    first = moved[-1] + 1 if moved else 0
    changes = [phase for phase in read_phases(curve) if phase.direction != "flat"]
    if first >= last or any(change.start >= curve.steps[first] for change in changes):
        return None
    if changes:
        first = _arrival(curve, changes[-1], first)
    return int(curve.steps[first]) if first < last else None


def _arrival(curve: Curve, change: Phase, first: int) -> int:
    """Return the index of the first step from `first` on that is significantly away from an earlier one of a change."""
    began = int(np.searchsorted(curve.steps, change.start))
    moves = curve.falls if change.direction == "falls" else curve.rises
    later = range(max(first, began + 1), len(curve))
    return next((i for i in later if moves(slice(began, i), i)), len(curve))


def settling_order(curves: Mapping[str, Points]) -> list[Settling]:
    """Return the change points of every layer: those that settle first in front, those that never do at the end.

    Parameters
    ----------
    curves : mapping of layer to (steps, value, low, high), with margins behind them where they are known

    Examples
    --------
    >>> early = ([0, 10, 20], [0.9, 0.2, 0.2], [0.8, 0.1, 0.1], [1.0, 0.3, 0.3])
    >>> late = ([0, 10, 20], [0.9, 0.6, 0.2], [0.8, 0.5, 0.1], [1.0, 0.7, 0.3])
    >>> [layer.layer for layer in settling_order({"first": late, "last": early})]
    ['last', 'first']
    """
    return in_order(settling_of(layer, points) for layer, points in curves.items())


def settling_of(layer: str, points: Points) -> Settling:
    """Return the change points of one layer."""
    return Settling(layer, below_start(*points), settled(*points))


def in_order(layers: Iterable[Settling]) -> list[Settling]:
    """Return layers with those that settle first in front, those that never do at the end."""
    return sorted(layers, key=lambda layer: (layer.settled is None, layer.settled or 0))
