"""What all figures of the report share: the empty figure, axes of steps, bare embeddings, colour bars, plain data."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
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
MOST_CODE: Final = 65_534
SHORT: Final = 12
"""Lists with fewer items stand where they are used."""
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


def literals(names: Sequence[str], limit: int) -> list[str]:
    """Return names as :func:`literal` does, shortened so that they stay different."""
    return [escape(name, quote=False) for name in style.shortened(names, limit)]


def mode(axis: style.StepAxis) -> str:
    """Return plotly's mode: lines, with markers if there are few steps."""
    return "lines" if axis.dense else "lines+markers"


def symbol(index: int) -> str:
    """Return the marker of the model `index`."""
    return style.PLOTLY_SYMBOLS[index % len(style.PLOTLY_SYMBOLS)]


def curve(
    made: go.Figure,
    axis: style.StepAxis,
    drawn: Line,
    said: str,
    *,
    wide: Line | None = None,
    meta: Any = None,
    **look: Any,
) -> None:
    """Draw a curve; hovering tells the step, the value, its interval and that over all steps, where they are known."""
    interval = "<br>95% %{customdata[1]:.3f} to %{customdata[2]:.3f}" if np.isfinite(drawn.low).any() else ""
    interval += "<br>all steps %{customdata[3]:.3f} to %{customdata[4]:.3f}" if wide is not None else ""
    told = [drawn.step, drawn.low, drawn.high, *((wide.low, wide.high) if wide else ())]
    if len(drawn.step) == 1 and np.isfinite(drawn.low).all():  # an interval of one step is no area
        apart = {"array": drawn.high - drawn.value, "arrayminus": drawn.value - drawn.low}
        look["error_y"] = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, **apart}
    made.add_scatter(
        x=axis.position(drawn.step), y=drawn.value, mode=mode(axis), meta={"told": told, **(meta or {})},
        hovertemplate=f"{said}<br>step %{{customdata[0]:,}}<br>%{{y:.3f}}{interval}<extra></extra>", **look,
    )  # fmt: skip


def band(made: go.Figure, of: int, color: str, **meta: Any) -> None:
    """Fill between the bounds of the curve that will be the trace `of`.

    The page finds the bounds in what hovering over the curve shows: in the columns ``low`` and ``high`` of it, from
    the step ``from`` to the step ``to`` where these are given.
    """
    made.add_scatter(
        x=[None], y=[None], mode="lines", line={"width": 0}, fill="toself", fillcolor=style.translucent(color, 0.22),
        hoverinfo="skip", showlegend=False, meta={"band": {"of": of, "low": 1, "high": 2, **meta}},
    )  # fmt: skip


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
        title=axis.title,
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
        colorbar(made, step_scale(axis), bar(axis.title, axis.position(ticks), [f"{tick:,}" for tick in ticks]))


def colorbar(made: go.Figure, scale: dict[str, Any], shown: dict[str, Any]) -> None:
    """Draw the colour bar of a scale, with a trace that shows nothing else."""
    marker = {"color": [scale["cmin"]], **scale, "showscale": True, "colorbar": shown}
    made.add_scatter(x=[None], y=[None], mode="markers", marker=marker, showlegend=False, hoverinfo="skip")


def bar(title: str, values: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return the look of a colour bar with these ticks."""
    return {
        "title": {"text": f"{title}<br>\u00a0", "side": "top"}, "thickness": 8, "len": 0.7, "outlinewidth": 0,
        "ticks": "", "xpad": 4, "tickvals": values, "ticktext": texts,
    }  # fmt: skip


def coordinates(points: xr.DataArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the first two components in single precision."""
    x, y = two(points)
    return x.astype(np.float32), y.astype(np.float32)


def packed(values: NDArray[Any], low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """Return an array as 16-bit numbers in base64: 0 is `low`, 65,534 is `high`, and 65,535 is unknown.

    Without bounds they are those of the values; values beyond given bounds are moved to them.
    """
    finite = np.isfinite(values)
    known = values[finite] if finite.any() else np.zeros(1)
    low = float(known.min()) if low is None else low
    high = float(known.max()) if high is None else high
    high = high if high > low else low + 1
    codes = np.full(values.shape, MOST_CODE + 1, dtype="<u2")
    codes[finite] = np.round((np.clip(values[finite], low, high) - low) / (high - low) * MOST_CODE)
    data = base64.b64encode(codes.tobytes()).decode()
    return {"bdata": data, "shape": list(values.shape), "low": low, "high": high}


def as_data(made: go.Figure) -> Any:
    """Return the figure as plain data: numbers to four digits, whole numbers as they are, None where unknown."""
    return plain(made.to_plotly_json())


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers to four digits, whole numbers as they are, None where unknown."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        if "bdata" in value:  # an array as plotly writes it
            array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
            return plain(array.reshape([int(n) for n in str(value.get("shape", array.size)).split(",")]))
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return _rounded(value) if isinstance(value, float) else value


def shared(figures: Any) -> tuple[Any, list[Any]]:
    """Return plain figures in which long lists are ``{"at": index}``, and the lists, each once."""
    lists: dict[str, int] = {}
    kept: list[Any] = []

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(item) for name, item in value.items()}
        if not isinstance(value, list):
            return value
        if len(value) < SHORT or isinstance(value[0], dict | list):
            return [without(item) for item in value]
        index = lists.setdefault(repr(value), len(kept))
        if index == len(kept):
            kept.append(value)
        return {"at": index}

    return without(figures), kept


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.4g}")
