"""The operator of stored activations, or the operator or sketch that is stored in place of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.recorded import gauge_of, recorded_operator
from repaudit.names import SKETCH
from repaudit.operators.grouped_sketch import GroupedSketch
from repaudit.store.read.stand_ins import holds_sketches, stands_in


def stored_operator(values: xr.DataArray, gauge: DiffusionGauge) -> Any:
    """Return what stands for one step of a layer in a spread.

    Raises
    ------
    ActivationError
        The gauge refuses the activations.
    AnalysisError
        The operator or sketch was made with another gauge.
    OperatorError
        What was recorded is no operator.
    """
    if not stands_in(values):
        return gauge(values)
    made_with, sketched = gauge_of(values), holds_sketches(values)
    if made_with != gauge:
        what = "sketches" if sketched else "operators"
        raise AnalysisError(f"expected {what} made with {gauge}, found {made_with}: compare with that gauge")
    if not sketched:
        return recorded_operator(values)
    return GroupedSketch.of_numbers(np.asarray(values.values), values.attrs[SKETCH])
