"""Labelled results of an analysis: spread over steps, trajectories, the merged operator's embedding, diagnostics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from repaudit.analysis.operators import LayerOperators
from repaudit.analysis.selection import Selection
from repaudit.embed import mds_embedding, phate_embedding, phate_trajectories
from repaudit.measure.distances import operator_distances
from repaudit.measure.spread import spread
from repaudit.merge.merging import DiffusionMerging
from repaudit.names import COMPONENT, LABEL, LAYER, MODEL, SAMPLE, STEP

TRAJECTORY_METRIC = "calibrated"
"""The distance that trajectories are drawn from: unlike the raw one it does not grow as operators sharpen."""

SPREAD_VARIABLES = ("spread", "spread_raw", "null", "low", "high", "hellinger")


def spread_dataset(operators: LayerOperators, steps: list[int], seed: int = 0) -> xr.Dataset:
    """Spread of the models at every step that at least two of them share; NaN elsewhere."""
    values = {name: np.full(len(steps), np.nan) for name in SPREAD_VARIABLES}
    n_models = np.zeros(len(steps), dtype=np.int64)
    for i, step in enumerate(steps):
        here = operators.at(step)
        n_models[i] = len(here)
        if len(here) < 2:
            continue
        result = spread(here, seed=seed)
        found = (result.value, result.raw, result.null, result.low, result.high, result.hellinger)
        for name, value in zip(SPREAD_VARIABLES, found, strict=True):
            values[name][i] = value
    data = {name: (STEP, value) for name, value in values.items()}
    return _with_layer(xr.Dataset({**data, "n_models": (STEP, n_models)}, coords={STEP: steps}), operators.layer)


def undefined_spreads(dataset: xr.Dataset, operators: LayerOperators) -> list[str]:
    """A line for every step whose spread does not exist although at least two models have an operator there."""
    values = dataset["spread"].sel({LAYER: operators.layer})
    return [
        f"layer {operators.layer} at step {step}: no spread, since relabelling an operator's samples "
        "changes nothing (collapsed or uniform; see diagnostics)"
        for step, value in zip(values[STEP].values.tolist(), values.values, strict=True)
        if np.isnan(value) and len(operators.at(step)) > 1
    ]


def trajectory_dataset(
    operators: LayerOperators, models: Iterable[str], steps: list[int], *, memory: str, seed: int = 0
) -> xr.Dataset:
    """PHATE and classical-MDS coordinates of every operator of the layer; NaN where a model lacks a step."""
    distances = operator_distances(operators.matrices, metric=TRAJECTORY_METRIC, memory=memory)
    phate = phate_trajectories(distances, n_components=2, seed=seed)
    mds = mds_embedding(distances, n_components=2)
    models = list(models)
    coords = {MODEL: np.array(models, dtype=object), STEP: steps, COMPONENT: [0, 1]}
    dims = (MODEL, STEP, COMPONENT)
    dataset = xr.Dataset(
        {
            "trajectory": (dims, _on_grid(np.asarray(phate), operators, models, steps)),
            "mds": (dims, _on_grid(np.asarray(mds), operators, models, steps)),
            "stress": ((), float(phate.attrs["stress"])),
            "distance_stress": ((), distance_stress(distances, np.asarray(phate))),
        },
        coords=coords,
        attrs={"metric": TRAJECTORY_METRIC, "seed": seed},
    )
    return _with_layer(dataset, operators.layer)


def distance_stress(distances: NDArray[Any], points: NDArray[Any]) -> float:
    """Kruskal's stress of a layout against the operators' own distances, at the best common scale.

    PHATE's stress is measured against its potential distances; with few operators those say little about the input.
    """
    laid_out = pdist(points)
    given = squareform(distances, checks=False)
    scale = (laid_out @ given) / (laid_out @ laid_out) if laid_out.any() else 0.0
    return float(np.sqrt(((given - scale * laid_out) ** 2).sum() / (given**2).sum())) if given.any() else 0.0


def merged_dataset(
    operators: LayerOperators, selection: Selection, samples: xr.Dataset, *, merging: DiffusionMerging, seed: int = 0
) -> xr.Dataset:
    """PHATE of the merged operator P* at the last step that all models share (one model: its own last operator)."""
    step = _last_common_step(operators, selection)
    here = operators.at(step)
    merged = merging.merge(here)
    embedding = phate_embedding(merged, n_components=2, seed=seed)
    dataset = xr.Dataset(
        {
            "embedding": ((SAMPLE, COMPONENT), np.asarray(embedding)),
            "stress": ((), float(embedding.attrs["stress"])),
            "merged_step": ((), step),
            "merged_models": ((), len(here)),
        },
        coords={SAMPLE: samples[SAMPLE].values, COMPONENT: [0, 1]},
        attrs={"merge": merging.strategy, "seed": seed},
    )
    for name in (LABEL, "text"):
        if name in samples:
            dataset = dataset.assign_coords({name: (SAMPLE, samples[name].values)})
    return _with_layer(dataset, operators.layer)


def diagnostics_dataset(operators: LayerOperators, models: Iterable[str], steps: list[int]) -> xr.Dataset:
    """Every diagnostic of every operator; NaN where a model lacks a step, ``failed`` where P could not be computed."""
    models = list(models)
    names = list(next(iter(operators.diagnostics.values())))
    shape = (len(models), len(steps))
    data: dict[str, NDArray[Any]] = {name: np.full(shape, np.nan) for name in names}
    failed = np.zeros(shape, dtype=np.int64)
    for (model, step), found in operators.diagnostics.items():
        for name in names:
            data[name][models.index(model), steps.index(step)] = found[name]
    for model, step in operators.failed:
        failed[models.index(model), steps.index(step)] = 1
    variables = {name: ((MODEL, STEP), value) for name, value in {**data, "failed": failed}.items()}
    coords = {MODEL: np.array(models, dtype=object), STEP: steps}
    attrs = {"gauge": json.dumps(operators.gauge)}
    return _with_layer(xr.Dataset(variables, coords=coords, attrs=attrs), operators.layer)


def _last_common_step(operators: LayerOperators, selection: Selection) -> int:
    models = [model for model in selection.models if any(model == m for m, _ in operators.keys)]
    common = set.intersection(*({s for m, s in operators.keys if m == model} for model in models))
    return max(common) if common else max(step for _, step in operators.keys)


def _on_grid(points: NDArray[Any], operators: LayerOperators, models: list[str], steps: list[int]) -> NDArray[Any]:
    grid = np.full((len(models), len(steps), points.shape[1]), np.nan)
    for point, (model, step) in zip(points, operators.keys, strict=True):
        grid[models.index(model), steps.index(step)] = point
    return grid


def _with_layer(dataset: xr.Dataset, layer: str) -> xr.Dataset:
    varying = [name for name in dataset.data_vars if name != "n_models"]
    return dataset.assign(
        {name: dataset[name].expand_dims({LAYER: np.array([layer], dtype=object)}) for name in varying}
    )
