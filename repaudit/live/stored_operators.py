"""The operator of stored activations, or the sketch that is stored in the place of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from repaudit.analysis.sketched_layers import gauge_of
from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import SKETCH
from repaudit.operators.grouped_sketch import GroupedSketch
from repaudit.store.read.sketches import holds_sketches


def stored_operator(values: xr.DataArray, gauge: DiffusionGauge) -> Any:
    """Return what stands for one step of a layer in a spread.

    Raises
    ------
    ActivationError
        The gauge refuses the activations.
    AnalysisError
        The sketch was made with another gauge.
    """
    if not holds_sketches(values):
        return gauge(values)
    made_with = gauge_of(values)
    if made_with != gauge:
        raise AnalysisError(f"expected sketches made with {gauge}, found {made_with}: compare with that gauge")
    return GroupedSketch.of_numbers(np.asarray(values.values), values.attrs[SKETCH])
