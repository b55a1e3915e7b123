"""How the samples move over training: the positions at some steps, for the page to show one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import COMPONENT, LAYER, MODEL, SAMPLE, STEP
from repaudit.plots import style
from repaudit.plots.points import labels_of
from repaudit.report.figures import canvas
from repaudit.report.figures.embeddings import samples_figure
from repaudit.results import MERGED, OF_MODELS, names_of, one_layer

MOST_NUMBERS: Final = 800_000
"""Coordinates in one report, for all its moving figures: about 2 MB."""
FEWEST_STEPS: Final = 6
"""Below this number of steps, fewer samples are shown instead."""


@dataclass(frozen=True)
class Thinning:
    """Which steps and samples are kept, so that all layers together stay below the limit."""

    steps: NDArray[np.int64]
    samples: NDArray[np.int64]
    words: str

    @classmethod
    def of(cls, frames: xr.Dataset, most: int = MOST_NUMBERS) -> Thinning:
        """Keep evenly chosen steps, the last among them, and where six are too many evenly chosen samples."""
        steps, samples = frames.sizes[STEP], frames.sizes[SAMPLE]
        each = 2 * frames.sizes[LAYER] * (1 + (frames.sizes.get(MODEL, 0) if OF_MODELS in frames else 0))
        few = min(steps, max(min(steps, FEWEST_STEPS), most // max(1, each * samples)))
        sparse = min(samples, max(1, most // max(1, each * few)))
        words = [
            f"{kept} of {count} {name}"
            for kept, count, name in (
                (few, steps, "steps"),
                (sparse, samples, "samples"),
            )
            if kept < count
        ]
        return cls(_even(steps, few), _even(samples, sparse), f"Shown: {', '.join(words)}." if words else "")


def _even(count: int, kept: int) -> NDArray[np.int64]:
    """Return evenly chosen indices, the last among them."""
    return np.unique(np.linspace(count - 1, 0, kept).round().astype(np.int64))


def frames_of(frames: xr.Dataset, layer: str, thinning: Thinning) -> dict[str, Any] | None:
    """Return the positions of one layer's samples by source and step; None if fewer than two steps are known.

    The first source is the merged operator, the others are the models. Samples are in the order of :func:`picked`,
    group by group. ``ranges`` has the bounds of both axes for each source: of all its steps, without the few samples
    that would make dots of all others.
    """
    dataset = one_layer(frames, layer).isel({STEP: thinning.steps, SAMPLE: thinning.samples})
    everything = [_positions(dataset[MERGED])]
    names = names_of(dataset, MODEL) if OF_MODELS in dataset and dataset.sizes[MODEL] > 1 else []
    everything += [_positions(dataset[OF_MODELS].isel({MODEL: k})) for k in range(len(names))]
    shown = [k for k, values in enumerate(everything) if np.isfinite(values).any()]
    seen = np.isfinite(everything[0]).any(axis=(1, 2))
    if seen.sum() < 2:
        return None
    groups = style.label_groups(labels_of(frames), frames.sizes[SAMPLE])
    kept = np.concatenate([group.index[pick] for group, pick in zip(groups, picked(frames, thinning), strict=True)])
    order = np.searchsorted(thinning.samples, kept)
    values = [everything[k][seen][:, order] for k in shown]
    ranges = [_range(of_source) for of_source in values]
    return {
        "steps": [int(step) for step in dataset[STEP].values[seen]],
        "sources": ["all models merged", *(style.visible(names[k - 1], 40) for k in shown[1:])],
        "ranges": ranges,
        "positions": [_packed(of_source, bounds) for of_source, bounds in zip(values, ranges, strict=True)],
    }


def picked(frames: xr.Dataset, thinning: Thinning) -> list[list[int]]:
    """Return which samples of each group of labels are kept, as indices within the group."""
    groups = style.label_groups(labels_of(frames), frames.sizes[SAMPLE])
    return [np.flatnonzero(np.isin(group.index, thinning.samples)).tolist() for group in groups]


def _positions(values: xr.DataArray) -> NDArray[np.float32]:
    """Return positions (step, sample, 2), with a second component of 0 if there is only one."""
    points = values.transpose(STEP, SAMPLE, COMPONENT).values[..., :2].astype(np.float32)
    return points if points.shape[2] == 2 else np.concatenate([points, np.zeros_like(points)], axis=2)


def _packed(values: NDArray[np.float32], bounds: list[list[float]]) -> dict[str, Any]:
    """Return the positions of one source (step, sample, 2), those far out of sight moved nearer."""
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    return canvas.packed(values, low - (high - low), high + (high - low))


def _range(values: NDArray[np.float32]) -> list[list[float]]:
    """Return bounds of both axes that contain the positions of every step, with a margin.

    What lies farther out than three times the width of the middle 98% is left out: one sample far away would leave the
    others in one place.
    """
    bounds = []
    for k in (0, 1):
        known = values[..., k][np.isfinite(values[..., k])]
        low, high = np.quantile(known, (0.01, 0.99)) if known.size else (0.0, 0.0)
        near = known[(known >= low - 3 * (high - low)) & (known <= high + 3 * (high - low))]
        low, high = (float(near.min()), float(near.max())) if near.size else (0.0, 0.0)
        margin = 0.05 * (high - low) or 1.0
        bounds.append([low - margin, high + margin])
    return bounds


def figure_of_frames(frames: xr.Dataset, bounds: list[list[float]]) -> go.Figure:
    """Return the figure in which the page moves the samples: one trace per group of labels, fixed axes."""
    empty = np.full(frames.sizes[SAMPLE], np.nan, np.float32)
    groups = style.label_groups(labels_of(frames), frames.sizes[SAMPLE])
    made = samples_figure(empty, empty, groups)
    for trace in made.data:
        trace.x, trace.y = [None], [None]
    made.update_xaxes(range=bounds[0], autorange=False, constrain="domain")
    made.update_yaxes(range=bounds[1], autorange=False, constrain="domain")
    return made
