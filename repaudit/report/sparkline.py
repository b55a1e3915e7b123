"""The small drawing of a curve next to a layer's sentence."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from repaudit.plots import style
from repaudit.plots.lines import Line

WIDTH, HEIGHT, MOST_POINTS = 160.0, 40.0, 60


def sparkline(line: Line, axis: style.StepAxis, color: str, top: float = 1.1) -> Markup:
    """Return a small drawing of a curve, its band and the null line at 1, from 0 to ``top``.

    Examples
    --------
    >>> step, value = np.array([0, 10, 20]), np.array([0.2, 0.7, 0.1])
    >>> "<polyline" in sparkline(Line(step, value, value, value), style.StepAxis.of(step), "#0f7fc0")
    True
    """
    shown = np.unique(np.linspace(0, len(line.step) - 1, min(len(line.step), MOST_POINTS)).round().astype(int))
    line = Line(*(values[shown] for values in (line.step, line.value, line.low, line.high)))
    x = 3 + axis.fraction(line.step) * (WIDTH - 6)

    def points(values: np.ndarray, *, back: bool = False) -> str:
        y = HEIGHT - 2 - np.clip(values, 0, top) / top * (HEIGHT - 4)
        pairs = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if math.isfinite(b)]
        return " ".join(reversed(pairs) if back else pairs)

    null, end = HEIGHT - 2 - (HEIGHT - 4) / top, points(line.value).split()[-1].split(",")
    return Markup(  # noqa: S704 - only numbers and one of our colours, formatted here
        f'<svg class="spark" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" aria-hidden="true">'
        f'<line x1="0" x2="{WIDTH:g}" y1="{null:.1f}" y2="{null:.1f}" class="null"/>'
        f'<polygon points="{points(line.high)} {points(line.low, back=True)}" fill="{color}" opacity=".2"/>'
        f'<polyline points="{points(line.value)}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        f'<circle cx="{end[0]}" cy="{end[1]}" r="2.4" fill="{color}"/></svg>'
    )
