"""What all figures of the report share: the empty figure, axes of steps, bare embeddings, colour bars, plain data."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray

from repaudit.plots import style
from repaudit.plots.lines import Line
from repaudit.plots.points import two

STEPS: Final = [[k / (len(style.STEP_COLORS) - 1), color] for k, color in enumerate(style.STEP_COLORS)]
GREY: Final = "rgba(128,134,140,0.55)"


def figure() -> go.Figure:
    """Return an empty figure, transparent, without plotly's template."""
    # with a template of its own, plotly does not copy its large default one into every figure
    return go.Figure(
        layout={
            "template": {}, "showlegend": False, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 48, "r": 12, "t": 12, "b": 40}, "hovermode": "closest",
        }
    )  # fmt: skip


def literal(text: str, limit: int = 40) -> str:
    """Return a text that plotly shows literally: it reads some HTML in every text that it draws."""
    return escape(style.visible(text, limit), quote=False)


def mode(axis: style.StepAxis) -> str:
    """Return plotly's mode: lines, with markers if there are few steps."""
    return "lines" if axis.dense else "lines+markers"


def symbol(index: int) -> str:
    """Return the marker of the model `index`."""
    return style.PLOTLY_SYMBOLS[index % len(style.PLOTLY_SYMBOLS)]


def band(made: go.Figure, axis: style.StepAxis, line: Line, color: str, during: Any = None, meta: Any = None) -> Any:
    """Fill between the bounds of a curve where they are known, during some of its steps; return what was filled."""
    filled = np.isfinite(line.low) & np.isfinite(line.high)
    filled = filled if during is None else filled & during
    x = axis.position(line.step[filled])
    if len(x):
        made.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([line.high[filled], line.low[filled][::-1]]),
            mode="lines", line={"width": 0}, fill="toself", fillcolor=style.translucent(color, 0.22), hoverinfo="skip",
            showlegend=False, meta=meta,
        )  # fmt: skip
    return x


def null_axis(made: go.Figure, axis: style.StepAxis, top: float, title: str, *, unrelated: bool = True) -> go.Figure:
    """Set up axes of a spread or distance over steps: from 0, with a dotted line of unrelated models at 1."""
    if unrelated:
        made.add_hline(y=1, line={"width": 1, "dash": "dot", "color": "rgba(128,134,140,0.9)"})
        made.add_annotation(
            x=1, xref="paper", y=1, text="unrelated", showarrow=False, xanchor="right", yanchor="bottom"
        )
    made.update_yaxes(range=[0, top], title=title)
    return step_axis(made, axis)


def step_axis(made: go.Figure, axis: style.StepAxis) -> go.Figure:
    """Set ticks at steps, spaced like the axis of steps."""
    ticks = axis.ticks()
    made.update_xaxes(
        tickvals=axis.position(ticks),
        ticktext=[f"{tick:,}" for tick in ticks],
        title="step",
        showgrid=False,
        zeroline=False,
    )
    made.update_yaxes(showgrid=False, zeroline=False, automargin=True, nticks=6)
    return made


def legend(made: go.Figure, *, above: bool = False) -> None:
    """Show the names in a row below the figure, or above it."""
    where = {"yanchor": "bottom", "y": 1.02} if above else {"yanchor": "top", "y": -0.02}
    made.update_layout(showlegend=True, legend={"orientation": "h", "x": 0, "itemsizing": "constant", **where})
    if above:
        made.update_layout(margin={"t": 40})


def bare(made: go.Figure, *, named: bool) -> go.Figure:
    """Draw an embedding without ticks and frame: its proportions have a meaning, its units have none."""
    made.update_xaxes(visible=False)
    made.update_yaxes(visible=False, scaleanchor="x", scaleratio=1)
    made.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 8})
    if named:
        legend(made)
    return made


def step_scale(axis: style.StepAxis) -> dict[str, Any]:
    """Return the colour scale of markers from the first to the last step."""
    first, last = (float(end) for end in axis.position([min(axis.steps), max(axis.steps)]))
    return {"cmin": first, "cmax": last, "colorscale": STEPS}


def step_colorbar(made: go.Figure, axis: style.StepAxis) -> None:
    """Draw a colour bar from the first to the last step, spaced like the axis of steps."""
    if len(axis.steps) > 1:
        ticks = axis.ticks(6)
        colorbar(made, step_scale(axis), bar("step", axis.position(ticks), [f"{tick:,}" for tick in ticks]))


def colorbar(made: go.Figure, scale: dict[str, Any], shown: dict[str, Any]) -> None:
    """Draw the colour bar of a scale, with a trace that shows nothing else."""
    marker = {"color": [scale["cmin"]], **scale, "showscale": True, "colorbar": shown}
    made.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def bar(title: str, values: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return the look of a colour bar with these ticks."""
    return {
        "title": {"text": f"{title}<br> ", "side": "top"}, "thickness": 8, "len": 0.7, "outlinewidth": 0,
        "ticks": "", "xpad": 4, "tickvals": values, "ticktext": texts,
    }  # fmt: skip


def coordinates(points: xr.DataArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the first two components in single precision."""
    x, y = two(points)
    return x.astype(np.float32), y.astype(np.float32)


def packed(values: NDArray[Any]) -> dict[str, Any]:
    """Return an array as single-precision numbers in base64, with its shape."""
    exact = np.ascontiguousarray(values, dtype="<f4")
    return {"bdata": base64.b64encode(exact.tobytes()).decode(), "shape": list(exact.shape)}


def as_data(made: go.Figure) -> Any:
    """Return the figure as plain data: arrays in plotly's binary form, coordinates in single precision."""
    for trace in made.data:
        for name in ("x", "y"):
            values = trace[name]
            if isinstance(values, np.ndarray) and values.dtype == np.float64:
                trace[name] = values.astype(np.float32)
    return json.loads(made.to_json())
