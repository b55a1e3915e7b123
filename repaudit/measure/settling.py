"""When a layer settles, and which layers settle first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from repaudit.measure.curve import SMALLEST_CHANGE, Curve

UNINFORMATIVE = 0.5
"""An interval of the end wider than this, half of the way from identical to unrelated, says nothing of what settled."""

Points = tuple[Sequence[int] | ArrayLike, ArrayLike, ArrayLike, ArrayLike]
"""Steps, value, low and high, each (step,)."""


@dataclass(frozen=True)
class Settling:
    """Change points of one layer's spread: steps, or None where there is none."""

    layer: str
    below_start: int | None
    settled: int | None


def below_start(steps: Sequence[int] | ArrayLike, value: ArrayLike, low: ArrayLike, high: ArrayLike) -> int | None:
    """First step at which the spread is significantly below its start; None if there is none.

    Examples
    --------
    >>> below_start([0, 10, 100], [0.9, 0.85, 0.3], [0.8, 0.75, 0.2], [1.0, 0.95, 0.4])
    100
    """
    curve = Curve.of(steps, value, low, high)
    return next((int(curve.steps[i]) for i in range(1, len(curve)) if curve.falls(0, i)), None)


def settled(steps: Sequence[int] | ArrayLike, value: ArrayLike, low: ArrayLike, high: ArrayLike) -> int | None:
    """First step from which on the spread stays within the interval of its end (or .01) and never differs from it.

    The end's interval is what counts: a step that is itself too uncertain to differ significantly from the end has not
    settled for that. None where the spread still moves: where that step would be the last one, for fewer than two
    steps, and where the end has no interval or one wider than .5, which everything lies in.

    Examples
    --------
    >>> settled([0, 10, 100, 200], [0.9, 0.5, 0.2, 0.22], [0.8, 0.4, 0.1, 0.12], [1.0, 0.6, 0.3, 0.32])
    100
    """
    curve = Curve.of(steps, value, low, high)
    last = len(curve) - 1
    if last < 1 or not curve.below[last] + curve.above[last] <= UNINFORMATIVE:
        return None
    away = curve.value - curve.value[last]
    outside = (away > max(SMALLEST_CHANGE, curve.above[last])) | (-away > max(SMALLEST_CHANGE, curve.below[last]))
    moved = [i for i in range(last) if outside[i] or curve.falls(i, last) or curve.rises(i, last)]
    first = moved[-1] + 1 if moved else 0
    return int(curve.steps[first]) if first < last else None


def settling_order(curves: Mapping[str, Points]) -> list[Settling]:
    """Change points of every layer, those that settle first in front and those that never do at the end.

    Parameters
    ----------
    curves : mapping of layer to (steps, value, low, high)
    """
    found = [Settling(layer, below_start(*points), settled(*points)) for layer, points in curves.items()]
    return sorted(found, key=lambda layer: (layer.settled is None, layer.settled or 0))
