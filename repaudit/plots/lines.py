"""Curves to draw: values over steps with their bounds, read from the results as far as they are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import STEP
from repaudit.results import (
    BAND_HIGH,
    BAND_LOW,
    DIAGNOSTIC_NAMES,
    FEATURE_HALVES,
    FROM_INPUTS,
    FROM_UNTRAINED,
    GROUP,
    SPREAD,
    bounds,
    names_of,
    of_layer,
    one_layer,
)

DISTANCES: Final = {
    SPREAD: "from each other",
    FROM_UNTRAINED: "from the untrained networks",
    FROM_INPUTS: "from the inputs",
}
"""What the models of one layer are compared with, in the order in which it is shown."""


@dataclass(frozen=True)
class Line:
    """Steps, values and 95% bounds where the value is known, each of shape (steps known,); bounds may be NaN."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def top(self) -> float:
        """Largest of the values and upper bounds; 0 where there are none."""
        everything = np.concatenate([self.value, self.high[np.isfinite(self.high)]])
        return float(everything.max(initial=0.0))


def line_of(dataset: xr.Dataset, layer: str, variable: str = SPREAD, **where: int) -> Line:
    """Return the curve of one layer; ``where`` selects along the other dims by index."""
    curve = one_layer(dataset, layer).isel(where)
    value = np.asarray(curve[variable].values, dtype=float)
    finite = np.isfinite(value)
    low, high = (_bound(curve, name)[finite] for name in bounds(variable))
    return Line(np.asarray(curve[STEP].values)[finite], value[finite], low, high)


def band_of(spread: xr.Dataset, layer: str) -> Line | None:
    """Return a layer's spread with the band that holds over all steps at once; None where it is not known."""
    if not (of_layer(spread, layer, BAND_LOW) and of_layer(spread, layer, BAND_HIGH)):
        return None
    curve, line = one_layer(spread, layer), line_of(spread, layer)
    finite = np.isfinite(np.asarray(curve[SPREAD].values, dtype=float))
    return replace(line, low=_bound(curve, BAND_LOW)[finite], high=_bound(curve, BAND_HIGH)[finite])


def _bound(curve: xr.Dataset, name: str) -> NDArray[np.float64]:
    return np.asarray(curve[name].values, dtype=float) if name in curve else np.full(curve.sizes[STEP], np.nan)


def distances(
    spread: xr.Dataset | None, comparison: xr.Dataset | None, layer: str
) -> tuple[dict[str, Line], float | None]:
    """Return the known curves of what a layer's models are compared with, and the value of halves of the features."""
    lines = {
        name: line_of(dataset, layer, name)
        for name, dataset in zip(DISTANCES, (spread, comparison, comparison), strict=True)
        if dataset is not None and of_layer(dataset, layer, name)
    }
    if comparison is None or not of_layer(comparison, layer, FEATURE_HALVES):
        return lines, None
    return lines, float(one_layer(comparison, layer)[FEATURE_HALVES])


def pairs(groups: xr.Dataset, layer: str) -> list[tuple[int, int, str, Line]]:
    """Return the known curves within and between groups: indices of the two groups, a name, the curve."""
    names = names_of(groups, GROUP)
    curves = []
    for i in range(len(names)):
        for j in range(i, len(names)):
            line = line_of(groups, layer, group=i, other=j)
            if line.step.size:
                curves.append((i, j, names[i] if i == j else f"{names[i]} | {names[j]}", line))
    return sorted(curves, key=lambda pair: pair[0] != pair[1])


def varying(diagnostics: xr.Dataset) -> list[str]:
    """Return the diagnostics that differ between operators, in the order in which they are shown."""
    names = []
    for name in DIAGNOSTIC_NAMES:
        values = np.asarray(diagnostics[name].values, dtype=float) if name in diagnostics else np.array([])
        finite = values[np.isfinite(values)]
        if finite.size and np.ptp(finite) > 0:
            names.append(name)
    return names
