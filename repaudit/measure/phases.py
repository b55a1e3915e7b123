"""The curve of the spread over steps as a sequence of phases, each significant against its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repaudit.measure.curve import Curve

Direction = Literal["falls", "rises", "flat"]
Verdict = Literal["converging", "diverging", "unrelated", "unchanged", "undecided"]

UNRELATED = 0.95
"""The end counts as unrelated if its interval reaches this share of the null."""
RELATED = 0.5
"""An end whose interval contains both this and the null is neither related nor unrelated."""
SHOULDER = 0.1
"""Less than this share of a change happens in the flat stretch before or after it."""
SHORTEST_SHOULDER = 3


@dataclass(frozen=True)
class Phase:
    """A stretch of steps over which the spread falls, rises or stays."""

    start: int
    end: int
    direction: Direction


def phases(
    steps: Sequence[int] | ArrayLike,
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    margins: ArrayLike | None = None,
) -> list[Phase]:
    """Cut a curve with intervals into phases that fall, rise or stay flat.

    A change between two steps is significant where it exceeds the margin of their difference, and 0.01. Without
    margins, that is both half-widths facing it, taken together as ``sqrt(a^2 + b^2)`` and widened for the number of
    steps (Tukey's studentized range). A turn is reported once the curve has moved significantly away from its last
    extreme. Flat stretches at the ends of a change, of at least three further steps in which less than a tenth of it
    happens, are separate phases.

    Parameters
    ----------
    steps, value, low, high : (step,)
        Steps with a NaN value are skipped; with an unknown interval no change is significant.
    margins : (step, step), optional
        What a difference between two steps must exceed; see :func:`repaudit.measure.band.band`.

    Returns
    -------
    list of Phase
        In order, each beginning where the previous one ends; one flat phase if nothing is significant.

    Raises
    ------
    AnalysisError
        Different lengths, steps that do not increase, or a value outside its interval.

    Examples
    --------
    >>> curve = np.array([0.1, 0.7, 0.4, 0.15])
    >>> [(p.start, p.end, p.direction) for p in phases([0, 40, 200, 600], curve, curve - 0.05, curve + 0.05)]
    [(0, 40, 'rises'), (40, 600, 'falls')]
    """
    return read_phases(Curve.of(steps, value, low, high, margins))


def read_phases(curve: Curve) -> list[Phase]:
    """Return the phases of a checked curve; see :func:`phases`."""
    if not len(curve):
        return []
    steps, pivots = curve.steps, _pivots(curve)
    if not pivots:
        return [Phase(int(steps[0]), int(steps[-1]), "flat")]
    stretches = _with_shoulders(curve.value, pivots)
    return [Phase(int(steps[a]), int(steps[b]), direction) for a, b, direction in stretches]


def verdict(
    steps: Sequence[int] | ArrayLike,
    value: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    margins: ArrayLike | None = None,
) -> Verdict:
    """Say in one word what became of the spread.

    ``undecided``: fewer than two steps, no interval at the end, or one from below 0.5 to 0.95.
    ``unrelated``: the end's interval reaches 0.95. ``converging`` or ``diverging``: the last significant phase falls or
    rises. ``unchanged``: no phase is significant.

    Parameters
    ----------
    steps, value, low, high : (step,)
    margins : (step, step), optional
        As in :func:`phases`.

    Examples
    --------
    >>> verdict([0, 100], [0.9, 0.2], [0.8, 0.1], [0.93, 0.3])
    'converging'
    """
    curve = Curve.of(steps, value, low, high, margins)
    if len(curve) < 2 or not math.isfinite(curve.below[-1] + curve.above[-1]):
        return "undecided"
    if curve.value[-1] + curve.above[-1] >= UNRELATED:
        return "unrelated" if curve.value[-1] - curve.below[-1] >= RELATED else "undecided"
    changes = [phase.direction for phase in read_phases(curve) if phase.direction != "flat"]
    if not changes:
        return "unchanged"
    return "converging" if changes[-1] == "falls" else "diverging"


def _pivots(curve: Curve) -> list[int]:
    """Return the indices of the extremes between which the curve changes significantly, ends included; empty if none.

    A change counts from any point since the last turn, not only from its extreme: an extreme with a wide interval must
    not hide what more certain points show.
    """
    v = curve.value
    turns: list[int] = []
    high = low = 0
    direction = ""
    for i in range(1, len(v)):
        high, low = (i if v[i] > v[high] else high), (i if v[i] < v[low] else low)
        since = slice(turns[-1] if turns else 0, i)
        if direction != "falls" and curve.falls(since, i):
            turns.append(high)
            direction, low = "falls", high + int(v[high : i + 1].argmin())
        elif direction != "rises" and curve.rises(since, i):
            turns.append(low)
            direction, high = "rises", low + int(v[low : i + 1].argmax())
    return [*turns, low if direction == "falls" else high] if turns else []


def _with_shoulders(v: NDArray[np.float64], pivots: list[int]) -> list[tuple[int, int, Direction]]:
    """Return changes between pivots with their flat ends cut off, and the flat stretches between them.

    A change with fewer than three steps before or after it extends to the end of the curve.
    """
    stretches: list[tuple[int, int, Direction]] = []
    reached = 0
    for a, b in pairwise(pivots):
        start, end = _steep_part(v, a, b)
        start = reached if start - reached < SHORTEST_SHOULDER else start
        end = len(v) - 1 if len(v) - 1 - end < SHORTEST_SHOULDER and b == pivots[-1] else end
        if start > reached:
            stretches.append((reached, start, "flat"))
        stretches.append((start, end, "falls" if v[b] < v[a] else "rises"))
        reached = end
    if reached < len(v) - 1:
        stretches.append((reached, len(v) - 1, "flat"))
    return stretches


def _steep_part(v: NDArray[np.float64], a: int, b: int) -> tuple[int, int]:
    done = (v[a : b + 1] - v[a]) / (v[b] - v[a])
    start = a + int(np.flatnonzero(done <= SHOULDER)[-1])
    end = a + int(np.flatnonzero(done >= 1 - SHOULDER)[0])
    if end <= start:
        return a, b
    return (start if start - a >= SHORTEST_SHOULDER else a), (end if b - end >= SHORTEST_SHOULDER else b)
