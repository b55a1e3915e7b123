"""Which changes of a curve hold over all its steps at once: margins of every difference, from the same resamples."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
class Band:
    """Margins that hold over a whole curve, with probability .95 for all of them together.

    Attributes
    ----------
    level : (step), half-width of the band about each value
    change : (step, step), what a difference between two steps must exceed; NaN where nothing is known
    """

    level: Array
    change: Array


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
    covariance = deviations @ deviations.T / max(1, deviations.shape[1])
    error, apart = _errors(covariance)
    critical = _critical(deviations, apart)
    level, change = _student(critical.level, GROUPS - 1) * error, _student(critical.change, GROUPS - 1) * apart
    if left_out is not None and left_out.shape[1] > 2:
        by_models = _models(left_out, critical)
        level, change = np.fmax(level, by_models.level), np.fmax(change, by_models.change)
    np.fill_diagonal(change, 0.0)
    return Band(level, change)


@dataclass(frozen=True)
class _Critical:
    """Normal quantiles of the largest of many: levels, and differences."""

    level: float
    change: float


def _errors(covariance: Array) -> tuple[Array, Array]:
    """Return the standard errors of values (T) and of their differences (T, T)."""
    variance = np.diag(covariance)
    apart = np.sqrt(np.clip(variance[:, None] + variance - 2 * covariance, 0, None))
    return np.sqrt(np.clip(variance, 0, None)), apart


def _critical(deviations: Array, apart: Array) -> _Critical:
    steps = len(deviations)
    pairs = max(1, steps * (steps - 1) // 2)
    bonferroni = _Critical(*(float(stats.norm.isf((1 - LEVEL) / 2 / count)) for count in (steps, pairs)))
    if not np.isfinite(deviations).all() or steps > MOST_STEPS:
        return bonferroni
    errors = np.sqrt(np.square(deviations).mean(1))
    largest = np.abs(deviations / np.where(errors > 0, errors, math.inf)[:, None]).max(0)
    between = np.zeros(deviations.shape[1])
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


def _models(left_out: Array, critical: _Critical) -> Band:
    steps, models = left_out.shape
    influence = left_out - left_out.mean(1, keepdims=True)
    paired = bool(np.isfinite(influence).all())
    if paired:
        covariance = influence @ influence.T * (models - 1) / models
        error, apart = _errors(covariance)
    else:  # other models at other steps: nothing to pair
        known = np.isfinite(left_out)
        count = known.sum(1)
        mean = np.where(known, left_out, 0.0).sum(1) / np.maximum(count, 1)
        squares = np.where(known, left_out - mean[:, None], 0.0)
        error = np.sqrt(np.square(squares).sum(1) * (count - 1) / np.maximum(count, 1))
        error[count < 3] = math.nan
        apart = np.hypot(error[:, None], error)
    single = float(stats.t.isf((1 - LEVEL) / 2, models - 1))
    level = single * error * critical.level / float(stats.norm.isf((1 - LEVEL) / 2))
    change = single * apart
    if paired and steps > 1:
        own = influence - influence.mean(0)
        pooled = (models - 1) / models * np.square(own).sum() / (steps - 1)
        change = np.maximum(change, _student(critical.change, (models - 1) * (steps - 1)) * math.sqrt(2 * pooled))
    return Band(level, change)
