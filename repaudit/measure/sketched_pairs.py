"""Two operators side by side from grouped sketches of them: their distance is estimated, all else is exact."""

from __future__ import annotations

import math

import numpy as np

from repaudit.measure.pairs import Pair, against_null, pvalue
from repaudit.measure.tally import Halves
from repaudit.operators.grouped_sketch import GroupedSketch, by_groups, error_by_groups


def compare_sketches(p: GroupedSketch, q: GroupedSketch) -> Pair:
    """Compare two operators on the same samples from sketches of one seed.

    What needs single rows, or roots of entries, is NaN. The sketch's own error is part of what the groups of samples
    differ by, and so of every error over samples; it widens the tail of the p-value.

    Examples
    --------
    >>> from repaudit.operators.grouped_sketch import grouped_sketch
    >>> ring, other = (grouped_sketch(np.roll(np.eye(64), shift, axis=1)) for shift in (1, 2))
    >>> compare_sketches(ring, ring).ratio, round(compare_sketches(ring, other).ratio, 1)
    (0.0, 1.0)
    """
    halves = Halves.of(p.samples, p.seed)
    apart = by_groups(p.values - q.values, p.groups)
    distance, error = float(apart.sum()), error_by_groups(apart)
    null, ratio, halved, influence = against_null(p, q, apart, distance, halves)
    return Pair(
        ratio=ratio,
        rows=math.nan,
        distance=math.sqrt(distance),
        null=null,
        hellinger=math.nan,
        pvalue=pvalue(p, q, distance, p.samples, error),
        shares=np.full(p.samples, math.nan),
        halves=halved,
        influence=influence,
        sketch_error=error / null if ratio == ratio else math.nan,  # noqa: PLR0124 - NaN where there is no null
    )
