"""What the report says of a scale: what it means, whether it was held, whether one sample outweighs the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import MODEL, STEP
from repaudit.plots import style
from repaudit.plots.pairs import PairDistances
from repaudit.plots.scales import Scale
from repaudit.results import (
    EFFECTIVE_NEIGHBORS,
    LARGEST_ROW,
    LARGEST_SAMPLE,
    SPREAD,
    SPREAD_ROWS,
    UNHELD,
)

MEANINGS: Final = {
    "neighbourhoods": "who is nearest to whom, with {} effective neighbours per sample",
    "shape": "the coarse arrangement, with {} effective neighbours, a quarter of the samples",
}
OUTLYING: Final = 0.1
"""One sample with more than this share of the squared distances is named."""
IDENTICAL: Final = 1e-6
"""Of models that are nearer than this no row of their distances means anything."""


def meaning(scales: Sequence[Scale]) -> str:
    """Return a paragraph on what each scale means; empty where there is only one.

    Examples
    --------
    >>> meaning([Scale(0, 15.0, "neighbourhoods"), Scale(1, 64.0, "shape")])[:84]
    'Distances, pictures and verdicts are given at 2 scales. Neighbourhoods: who is neare'
    """
    if len(scales) < 2:
        return ""
    words = [MEANINGS.get(scale.name, "{} effective neighbours per sample") for scale in scales]
    told = [f"{title(scale)}: {text.format(_count(scale.value))}." for scale, text in zip(scales, words, strict=True)]
    return " ".join(
        [
            f"Distances, pictures and verdicts are given at {len(scales)} scales.",
            *told,
            "They may disagree, and that is a finding: models can share the coarse arrangement and differ in who is "
            "nearest to whom, or the reverse.",
        ]
    )


def title(scale: Scale) -> str:
    """Return the name of a scale as the start of a sentence."""
    name = style.visible(scale.name, 40)
    return name[:1].upper() + name[1:]


def neighbours(diagnostics: xr.Dataset) -> str:
    """Return the range over steps of a layer's effective neighbours, each step's the median over models."""
    if EFFECTIVE_NEIGHBORS not in diagnostics:
        return ""
    values = _grid(diagnostics, EFFECTIVE_NEIGHBORS)
    known = values[:, np.isfinite(values).any(axis=0)]
    if not known.size:
        return ""
    medians = np.nanmedian(known, axis=0)
    low, high = (f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" for value in (medians.min(), medians.max()))
    return f"effective neighbours {low}{f' to {high}' if high != low else ''} (pairs count in both directions)"


def unheld(diagnostics: xr.Dataset, scale: Scale, samples: int) -> list[str]:
    """Say for how many samples, models and steps a layer's operators could not be held to the scale."""
    if UNHELD not in diagnostics:
        return []
    values = _grid(diagnostics, UNHELD)
    bad = values > 0
    if not bad.any():
        return []
    steps = np.asarray(diagnostics[STEP].values)[bad.any(axis=0)]
    goal = f"{_count(scale.value)} effective neighbours" if scale.value > 0 else "the scale"
    many = f"{'up to ' if bad.sum() > 1 else ''}{int(values[bad].max()):,}{f' of {samples:,}' if samples else ''}"
    return [
        f"Could not be held to {goal}: {many} samples, in {bad.any(axis=1).sum()} of {len(values)} models "
        f"at {len(steps)} of {values.shape[1]} steps ({_span(steps)})."
    ]


def outlying(spread: xr.Dataset) -> list[str]:
    """Name the sample that more than a tenth of a layer's squared distances come from, at the step where it is most."""
    if LARGEST_ROW not in spread:
        return []
    share, value = (np.asarray(spread[name].values, dtype=float) for name in (LARGEST_ROW, SPREAD))
    large = (share > OUTLYING) & (value > IDENTICAL)
    if not large.any():
        return []
    most = int(np.argmax(np.where(large, share, -1)))
    name = style.visible(str(spread[LARGEST_SAMPLE].values[most]), 60) if LARGEST_SAMPLE in spread else "(unknown)"
    steps = np.asarray(spread[STEP].values)
    often = f", and a sample more than {OUTLYING:.0%} at {large.sum()} of {len(steps)} steps" if large.sum() > 1 else ""
    rows = float(spread[SPREAD_ROWS].values[most]) if SPREAD_ROWS in spread else math.nan
    instead = f": row by row the spread there is {rows:.2f} instead of {value[most]:.2f}" if math.isfinite(rows) else ""
    return [f"Sample {name} is {share[most]:.0%} of the squared distances at step {steps[most]:,}{often}{instead}."]


def pair(found: PairDistances, i: int, j: int) -> str:
    """Return the distance of two models with its interval and adjusted p-value, as far as known."""
    if not math.isfinite(found.distance[i, j]):
        return "distance not known"
    low, high, pvalue = found.low[i, j], found.high[i, j], found.pvalue[i, j]
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else ""
    text = f"distance {found.distance[i, j]:.2f}{interval}"
    return f"{text}; Holm-adjusted {_pvalue(pvalue)}" if math.isfinite(pvalue) else text


def only_pair(found: PairDistances) -> str:
    """Return one line on the only two models of a layer."""
    first, second = (style.visible(name, 60) for name in found.models)
    return f"{first} and {second} at step {found.step:,}: {pair(found, 0, 1)}."


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _pvalue(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-4 else "p < 0.0001"


def _grid(diagnostics: xr.Dataset, variable: str) -> NDArray[np.float64]:
    return np.asarray(diagnostics[variable].transpose(MODEL, STEP).values, dtype=float)


def _span(steps: Any) -> str:
    return f"step {int(steps[0]):,}" if len(steps) == 1 else f"steps {int(min(steps)):,} to {int(max(steps)):,}"
