"""Which changes of a curve hold over all its steps at once: margins of every difference, from the same resamples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from repaudit.operators.grouped_sketch import GROUPS

Array = NDArray[np.float64]

LEVEL: Final = 0.95
MOST_STEPS: Final = 400
"""Steps up to which the largest difference is resampled; of more the number of comparisons is counted instead."""


@dataclass(frozen=True)
class Margins:
    """What a difference between two steps must exceed, made when asked for: of all layers it would be most of a memory.

    Attributes
    ----------
    samples : (step, half)
        Two steps differ by more than their rows are apart, as far as samples go.
    models : (step, model), optional
        The same as far as models go, where all have all steps.
    least : float
        What every difference must exceed, as far as models go.
    alone : (step), optional
        Where other models have other steps: two steps differ by more than the hypotenuse of theirs.
    """

    samples: Array
    models: Array | None = None
    least: float = 0.0
    alone: Array | None = None

    def matrix(self) -> Array:
        """Return the margins (step, step); NaN where nothing is known, 0 of a step from itself."""
        change = _apart(self.samples)
        if self.models is not None:
            np.fmax(change, np.maximum(_apart(self.models), self.least), out=change)
        if self.alone is not None:
            np.fmax(change, np.hypot(self.alone[:, None], self.alone), out=change)
        np.fill_diagonal(change, 0.0)
        return change


@dataclass(frozen=True)
class Band:
    """Margins that hold over a whole curve, with probability .95 for all of them together.

    Attributes
    ----------
    level : (step), half-width of the band about each value
    margins : Margins
    """

    level: Array
    margins: Margins

    @property
    def change(self) -> Array:
        """What a difference between two steps must exceed, (step, step)."""
        return self.margins.matrix()


def band(halves: Array, left_out: Array | None = None) -> Band:
    """Return the margins of a curve from its resamples.

    Two sources of uncertainty are weighed, and the wider one counts. *Samples*: the same random halves of the samples
    at every step, so that what the steps share cancels in a difference; the critical value is the .95 quantile, over
    halves, of the largest standardised difference between any two steps. *Models*: the jackknife of the difference,
    paired, since the models are the same: pooled over steps after each model's own level is taken out, with
    ``(K - 1) (T - 1)`` degrees of freedom and the same tail as that of the samples; and of the two steps alone, at 95%.

    Parameters
    ----------
    halves : (step, half)
        The curve in random halves of the samples, the same ones at every step.
    left_out : (step, model), optional
        The curve with each model left out; NaN where a model has no step. Not for fewer than three models.

    Source: Romano and Wolf, Exact and approximate stepdown methods for multiple hypothesis testing (2005), for the
    maximum statistic; Efron and Stein, The jackknife estimate of variance (1981).
    """
    steps = len(halves)
    deviations = halves - halves.mean(1, keepdims=True) if halves.size else np.full((steps, 1), math.nan)
    scaled = deviations / math.sqrt(max(1, deviations.shape[1]))
    critical = _critical(deviations)
    level = _student(critical.level, GROUPS - 1) * np.sqrt(np.square(scaled).sum(1))
    margins = Margins(_student(critical.change, GROUPS - 1) * scaled)
    if left_out is not None and left_out.shape[1] > 2:
        by_models, alone = _models(left_out, critical)
        level, margins = np.fmax(level, alone), replace(by_models, samples=margins.samples)
    return Band(level, margins)


@dataclass(frozen=True)
class _Critical:
    """Normal quantiles of the largest of many: levels, and differences."""

    level: float
    change: float


def _apart(rows: Array) -> Array:
    """Return how far rows (T, n) are from each other, (T, T), in one matrix of that size."""
    squares = np.square(rows).sum(1)
    apart: Array = rows @ rows.T
    apart *= -2
    apart += squares[:, None]
    apart += squares
    return np.sqrt(np.clip(apart, 0, None, out=apart), out=apart)


def _critical(deviations: Array) -> _Critical:
    steps = len(deviations)
    pairs = max(1, steps * (steps - 1) // 2)
    bonferroni = _Critical(*(float(stats.norm.isf((1 - LEVEL) / 2 / count)) for count in (steps, pairs)))
    if not np.isfinite(deviations).all() or steps > MOST_STEPS:
        return bonferroni
    errors = np.sqrt(np.square(deviations).mean(1))
    largest = np.abs(deviations / np.where(errors > 0, errors, math.inf)[:, None]).max(0)
    between = np.zeros(deviations.shape[1])
    apart = _apart(deviations / math.sqrt(deviations.shape[1]))
    scale = np.where(apart > 1e-12, apart, math.inf)
    for step in range(steps - 1):
        standardised = np.abs(deviations[step] - deviations[step + 1 :]) / scale[step, step + 1 :, None]
        np.maximum(between, standardised.max(0), out=between)
    single = float(stats.norm.isf((1 - LEVEL) / 2))
    level, change = (max(single, float(np.quantile(values, LEVEL))) for values in (largest, between))
    return _Critical(min(level, bonferroni.level), min(change, bonferroni.change))


def _student(quantile: float, freedom: float) -> float:
    """Return the quantile of Student's distribution with the tail of a normal one."""
    return float(stats.t.isf(stats.norm.sf(quantile), freedom))


def _models(left_out: Array, critical: _Critical) -> tuple[Margins, Array]:
    """Return the margins of differences as far as models go, and those of the levels."""
    steps, models = left_out.shape
    influence = left_out - left_out.mean(1, keepdims=True)
    single = float(stats.t.isf((1 - LEVEL) / 2, models - 1))
    of_level = single * critical.level / float(stats.norm.isf((1 - LEVEL) / 2))
    if not np.isfinite(influence).all():  # other models at other steps: nothing to pair
        known = np.isfinite(left_out)
        count = known.sum(1)
        mean = np.where(known, left_out, 0.0).sum(1) / np.maximum(count, 1)
        squares = np.where(known, left_out - mean[:, None], 0.0)
        error = np.sqrt(np.square(squares).sum(1) * (count - 1) / np.maximum(count, 1))
        error[count < 3] = math.nan
        return Margins(influence, alone=single * error), of_level * error
    scaled = influence * math.sqrt((models - 1) / models)
    least = 0.0
    if steps > 1:
        pooled = np.square(scaled - scaled.mean(0)).sum() / (steps - 1)
        least = _student(critical.change, (models - 1) * (steps - 1)) * math.sqrt(2 * pooled)
    return Margins(influence, single * scaled, least), of_level * np.sqrt(np.square(scaled).sum(1))
