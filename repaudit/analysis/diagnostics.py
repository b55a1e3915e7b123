"""What the gauge reports about every operator, on one grid of models and steps."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.study import Study
from repaudit.names import LAYER, MODEL, STEP
from repaudit.results import FAILED


def diagnostics_dataset(operators: LayerOperators, study: Study) -> xr.Dataset:
    """Collect all diagnostics of all operators; NaN where a model lacks a step, ``failed`` where there is no P."""
    models, steps = list(study.selection.models), study.selection.all_steps()
    first = next(iter(operators.stored.values()))
    shape = (len(models), len(steps))
    names = dict.fromkeys(name for stored in operators.stored.values() for name in stored.diagnostics)
    data = {name: np.full(shape, np.nan) for name in names}
    failed = np.zeros(shape, dtype=np.int64)
    for (model, step), stored in operators.stored.items():
        for name, value in stored.diagnostics.items():
            data[name][models.index(model), steps.index(step)] = value
    for model, step in operators.failed:
        failed[models.index(model), steps.index(step)] = 1
    return xr.Dataset(
        {name: ((LAYER, MODEL, STEP), value[None]) for name, value in {**data, FAILED: failed}.items()},
        coords={
            LAYER: np.array([operators.layer], dtype=object),
            MODEL: np.array(models, dtype=object),
            STEP: steps,
        },
        attrs={"gauge": json.dumps(first.gauge)},
    )
