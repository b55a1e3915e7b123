"""The spread of the models over steps, every pair of them, and the margins that hold over the whole curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.study import Study
from repaudit.measure.band import Band, Margins, band
from repaudit.measure.comparison import holm
from repaudit.measure.spread import Spread, spread
from repaudit.names import LAYER, MODEL, SAMPLE, STEP
from repaudit.operators.grouped_sketch import GROUPS
from repaudit.results import (
    BAND_HIGH,
    BAND_LOW,
    DISTANCE,
    HELLINGER,
    HIGH,
    LARGEST_ROW,
    LARGEST_SAMPLE,
    LOW,
    N_MODELS,
    NULL,
    OTHER,
    PVALUE,
    PVALUE_HOLM,
    SKETCH_ERROR,
    SPREAD,
    SPREAD_RAW,
    SPREAD_ROWS,
)

Array = NDArray[np.float64]

NUMBERS: Final = {
    SPREAD: "value",
    SPREAD_RAW: "raw",
    NULL: "null",
    LOW: "low",
    HIGH: "high",
    HELLINGER: "hellinger",
    SPREAD_ROWS: "rows",
    LARGEST_ROW: "largest_row",
}
"""Variables of the group ``spread`` and the numbers of a :class:`repaudit.Spread` that they hold."""


@dataclass(frozen=True)
class SpreadCurve:
    """The spread of a layer at one scale over all steps.

    Attributes
    ----------
    spread : Dataset on (layer, step)
    pairs : Dataset on (layer, step, model, other); None for one model
    margins : Margins of the steps that have a spread
    """

    spread: xr.Dataset
    pairs: xr.Dataset | None
    margins: Margins


def spread_curve(operators: LayerOperators, study: Study) -> SpreadCurve:
    """Compute the spread at every step that at least two models share; NaN elsewhere."""
    steps = study.selection.all_steps()
    found = {}
    for step in steps:
        content = operators.content(step)
        if len(content) > 1:
            compute = partial(spread_arrays, operators.at(step), study.settings.seed)
            found[step] = study.cache.recall(["spread", study.settings.seed, list(content.items())], compute)
    known = {step: arrays for step, arrays in found.items() if np.isfinite(arrays["value"])}
    margins = curve_band(list(known.values()), [list(operators.at(step)) for step in known], operators.models())
    dataset = _spread_dataset(operators, study, found)
    level = np.full(len(steps), np.nan)
    level[[steps.index(step) for step in known]] = margins.level
    values = dataset[SPREAD].values[0]
    dataset[BAND_LOW] = ((LAYER, STEP), np.maximum(values - level, 0)[None])
    dataset[BAND_HIGH] = ((LAYER, STEP), (values + level)[None])
    return SpreadCurve(dataset, _pairs_dataset(operators, study, found), margins.margins)


def spread_arrays(operators: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return everything that is kept of a spread: numbers, resamples, and a row per pair of models."""
    result: Spread = spread(operators, seed=seed)
    numbers = {number: getattr(result, number) for number in (*NUMBERS.values(), "largest_sample", SKETCH_ERROR)}
    pairs = [(pair.ratio, pair.error, pair.pvalue) for pair in result.pairs.values()]
    return {**numbers, "halves": result.halves, "left_out": result.left_out, "pairs": np.array(pairs)}


def curve_band(found: Sequence[Mapping[str, Any]], present: Sequence[Sequence[str]], models: Sequence[str]) -> Band:
    """Return the margins of a curve from the resamples of its steps, and the models that each of them has."""
    if not found:
        return Band(np.zeros(0), Margins(np.zeros((0, 1))))
    left_out = np.full((len(found), len(models)), np.nan)
    for row, arrays, names in zip(left_out, found, present, strict=True):
        if len(arrays["left_out"]):
            row[[models.index(name) for name in names]] = arrays["left_out"]
    some = np.isfinite(left_out).any()
    return band(np.array([arrays["halves"] for arrays in found]), left_out if some else None)


def _spread_dataset(operators: LayerOperators, study: Study, found: Mapping[int, dict[str, Array]]) -> xr.Dataset:
    steps = study.selection.all_steps()
    values = {name: np.full(len(steps), np.nan) for name in NUMBERS}
    samples = study.samples[SAMPLE].values
    largest = np.full(len(steps), "", dtype=object)
    for index, step in enumerate(steps):
        if step in found:
            for name, number in NUMBERS.items():
                values[name][index] = found[step][number]
            at = int(found[step]["largest_sample"])
            largest[index] = str(samples[at]) if at >= 0 else ""
    data: dict[str, Any] = {name: ((LAYER, STEP), value[None]) for name, value in values.items()}
    if operators.sketched:
        error = [float(found[step][SKETCH_ERROR]) if step in found else np.nan for step in steps]
        data[SKETCH_ERROR] = ((LAYER, STEP), [error])
    data[LARGEST_SAMPLE] = ((LAYER, STEP), largest[None])
    data[N_MODELS] = ((LAYER, STEP), [[len(operators.at(step)) for step in steps]])
    return xr.Dataset(data, coords={LAYER: _names(operators.layer), STEP: steps})


def _pairs_dataset(operators: LayerOperators, study: Study, found: Mapping[int, dict[str, Array]]) -> xr.Dataset | None:
    """Return the distance of every two models with its interval over samples, and its p-values."""
    models, steps = list(study.selection.models), study.selection.all_steps()
    if len(models) < 2:
        return None
    shape = (len(steps), len(models), len(models))
    values = {name: np.full(shape, np.nan) for name in (DISTANCE, LOW, HIGH, PVALUE, PVALUE_HOLM)}
    quantile = float(stats.t.ppf(0.975, GROUPS - 1))
    for index, step in enumerate(steps):
        if step not in found:
            continue
        places = [models.index(name) for name in operators.at(step)]
        i, j = np.array(list(combinations(places, 2))).T
        ratio, error, pvalue = found[step]["pairs"].T
        columns = {
            DISTANCE: np.sqrt(ratio),
            LOW: np.sqrt(np.maximum(ratio - quantile * error, 0)),
            HIGH: np.sqrt(ratio + quantile * error),
            PVALUE: pvalue,
            PVALUE_HOLM: holm(pvalue),
        }
        for name, column in columns.items():
            values[name][index, i, j] = values[name][index, j, i] = column
        for name in (DISTANCE, LOW, HIGH):
            values[name][index, places, places] = 0.0
    coords = {LAYER: _names(operators.layer), STEP: steps, MODEL: _names(*models), OTHER: _names(*models)}
    dims = (LAYER, STEP, MODEL, OTHER)
    return xr.Dataset({name: (dims, value[None]) for name, value in values.items()}, coords=coords)


def _names(*names: str) -> NDArray[Any]:
    return np.array(names, dtype=object)
