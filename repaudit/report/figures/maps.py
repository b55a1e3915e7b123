"""The report's maps: the spread of every layer at every step, every two models, every pair of representations."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from repaudit.names import LAYER, MODEL, STEP
from repaudit.plots import style
from repaudit.plots.maps import MEASURES
from repaudit.plots.pairs import MOST_WRITTEN, PairDistances
from repaudit.plots.points import Blocks, arrange
from repaudit.report.figures import canvas
from repaudit.report.scale_words import pair
from repaudit.results import MEASURE, NULL, OTHER, REPRESENTATION, SIMILARITY, SPREAD, names_of

MOST_SIMILARITIES: Final = 300_000
"""Numbers in the similarity maps of one report (1 MB, and as much for their nulls); beyond them steps are left out."""
SPREADS: Final = [[k / 2, color] for k, color in enumerate(style.SPREAD_COLORS)]
MOST_NAMES: Final = 24
"""A map with more rows names its blocks only."""


def overview_figure(spread: xr.Dataset) -> go.Figure:
    """Draw the spread of every layer at every step as a map: steps to the right, layers downward."""
    axis = style.StepAxis.of(spread[STEP].values)
    layers = names_of(spread, LAYER)
    values = spread[SPREAD].transpose(LAYER, STEP).values.astype(np.float32)
    order = np.argsort(np.asarray(spread[STEP].values), kind="stable")
    names = canvas.literals(layers, 30)
    hover = [
        [f"{name}<br>step {step:,}<br>spread {value:.3f}" for step, value in zip(axis.steps, row, strict=True)]
        for name, row in zip((canvas.literal(layer, 64) for layer in layers), values[:, order], strict=True)
    ]
    made = canvas.figure()
    made.add_heatmap(
        x=axis.edges(), y=np.arange(len(layers) + 1) - 0.5, z=values[:, order], zmin=0, zmax=1, ygap=1,
        colorscale=SPREADS, hovertext=hover, hoverinfo="text",
        hoverongaps=False, colorbar=canvas.bar("spread", [0, 0.5, 1], ["0", "0.5", "1"]),
    )  # fmt: skip
    canvas.step_axis(made, axis)
    every = range(0, len(layers), max(1, round(len(layers) / 15)))
    made.update_yaxes(autorange="reversed", tickvals=list(every), ticktext=[names[k] for k in every], title=None)
    made.update_layout(margin={"l": 8})
    return made


def pairs_figure(found: PairDistances) -> go.Figure:
    """Draw the distance of every two models as a map, in the order of a clustering of the models."""
    names = canvas.literals(found.models, 26)
    values, written = found.drawn, len(names) <= MOST_WRITTEN
    made = canvas.figure()
    made.add_heatmap(
        x=np.arange(len(names)), y=np.arange(len(names)), z=values.astype(np.float32), zmin=0, zmax=1, xgap=1, ygap=1,
        colorscale=SPREADS, hoverongaps=False, hoverinfo="text", hovertext=_pair_texts(found),
        text=[[f"{value:.2f}" if np.isfinite(value) else "" for value in row] for row in values] if written else None,
        texttemplate="%{text}" if written else None, colorbar=canvas.bar("distance", [0, 0.5, 1], ["0", "0.5", "1"]),
    )  # fmt: skip
    every = range(0, len(names), max(1, round(len(names) / MOST_NAMES)))
    ticks = {"tickvals": list(every), "ticktext": [names[k] for k in every]}
    return _square(made, x=ticks, y=ticks)


def _pair_texts(found: PairDistances) -> list[list[str]]:
    """Return what hovering over each cell says: the two models, their distance, its interval, the p-value."""
    names = [canvas.literal(name, 64) for name in found.models]
    return [
        [f"{row}<br>{column}<br>{pair(found, i, j).replace('; ', '<br>')}" for j, column in enumerate(names)]
        for i, row in enumerate(names)
    ]


def similarity_figure(similarity: xr.Dataset) -> go.Figure:
    """Draw the empty map of similarities; the page fills it with the chosen part of :func:`similarity_data`."""
    made = canvas.figure()
    last = len(style.SIMILARITY_COLORS) - 1
    made.add_heatmap(
        z=[[None]], zmin=0, zmax=1, hoverongaps=False,
        colorscale=[[k / last, color] for k, color in enumerate(style.SIMILARITY_COLORS)],
        colorbar=canvas.bar("similarity", [0, 0.5, 1], ["0", "0.5", "1"]),
    )  # fmt: skip
    return _square(made)


def _square(made: go.Figure, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None) -> go.Figure:
    """Set up the axes of a square map, the first row on top."""
    made.update_xaxes(
        showgrid=False, zeroline=False, constrain="domain", automargin=True, tickangle=-35, ticks="", **(x or {})
    )  # fmt: skip
    made.update_yaxes(
        showgrid=False, zeroline=False, constrain="domain", constraintoward="top", automargin=True, ticks="",
        scaleanchor="x", scaleratio=1, autorange="reversed", **(y or {}),
    )  # fmt: skip
    made.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8})
    return made


def similarity_data(similarity: xr.Dataset) -> dict[str, Any]:
    """Return the similarities and their nulls by measure and step, the last step first, and the two orders of rows."""
    measures = [str(name) for name in similarity[MEASURE].values]
    count = similarity.sizes[REPRESENTATION]
    steps = similarity[STEP].values
    most = max(1, MOST_SIMILARITIES // max(1, len(measures) * count**2))
    chosen = np.unique(np.linspace(len(steps) - 1, 0, min(most, len(steps))).round().astype(int))[::-1]
    on = (MEASURE, STEP, REPRESENTATION, OTHER)
    kept = similarity.isel({STEP: chosen})
    null = kept[NULL] if NULL in kept else xr.full_like(kept[SIMILARITY], np.nan)
    return {
        "measures": [canvas.literal(MEASURES.get(name, name)) for name in measures],
        "steps": [int(step) for step in steps[chosen]],
        "left_out": len(steps) - len(chosen),
        "similarity": canvas.packed(kept[SIMILARITY].transpose(*on).values),
        "null": canvas.packed(null.transpose(*on).values),
        "orders": {by: _order(similarity, by) for by in (MODEL, LAYER)},
    }


def _order(similarity: xr.Dataset, by: Blocks) -> dict[str, Any]:
    """Return one order of the rows: their indices, the names to hover over, the ticks and the lines between blocks."""
    order = arrange(similarity, by)
    count = len(order.index)
    middles = [(start + end - 1) / 2 for _, start, end in order.blocks]
    blocks = canvas.literals([name for name, *_ in order.blocks], 24)
    every = range(0, len(blocks), max(1, round(len(blocks) / MOST_NAMES)))
    coarse = {"tickvals": [middles[k] for k in every], "ticktext": [blocks[k] for k in every]}
    rows = canvas.literals(order.inner, 26)
    starts = [start for _, start, _ in order.blocks]
    for start, name in zip(starts, blocks, strict=True):
        rows[start] = f"<b>{name}</b>  {rows[start]}"
    return {
        "index": order.index.tolist(),
        "names": [f"{canvas.literal(a)} · {canvas.literal(b)}" for a, b in zip(order.outer, order.inner, strict=True)],
        "x": coarse,
        "y": {"tickvals": list(range(count)), "ticktext": rows} if count <= MOST_NAMES else coarse,
        "lines": [start - 0.5 for start in starts[1:]],
    }
