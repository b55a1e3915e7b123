"""Pictures of an analysis: trajectories of operators, the merged operator over steps in one frame, units over steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.analysis.cache import StoredOperator
from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.merged_operators import merge
from repaudit.analysis.sketched_layers import kept_sketch
from repaudit.analysis.study import Study
from repaudit.embed.mds import mds_embedding, scaled_stress
from repaudit.embed.phate import phate_embedding, phate_frames, phate_onto, phate_trajectories, unit_trajectories
from repaudit.embed.placed import placed_between, placed_by_gower
from repaudit.errors import ActivationError, StoreError
from repaudit.measure.calibrated import calibrated_distances
from repaudit.measure.sketched import sketch_distances
from repaudit.names import COMPONENT, FEATURE, LABEL, LAYER, MODEL, OF_SAMPLE, POSITION, SAMPLE, STEP, TEXT, THUMBNAIL
from repaudit.operators.files import AnyOperatorFile
from repaudit.operators.grouped_sketch import LazySketch
from repaudit.operators.sketch import SIZE, OperatorSketch, sketch
from repaudit.operators.stack import OperatorStack
from repaudit.results import (
    DIFFUSION_TIME,
    DISTANCE_STRESS,
    EMBEDDING,
    MDS,
    MERGED,
    MERGED_MODELS,
    MERGED_STEP,
    OF_MODELS,
    STRESS,
    TOGETHER,
    TOGETHER_DISTANCE_STRESS,
    TOGETHER_STRESS,
    TRAJECTORY,
    UNIT,
)

METRIC: Final = "calibrated"
"""The distance of trajectories: unlike the raw one it does not grow as operators sharpen."""
MOST_TOGETHER: Final = 1000
"""Most operators in the picture of all layers; of more, steps are chosen evenly, two at least."""
MOST_LAID_OUT: Final = 500
"""Operators of a layout up to which it is of all of them: a layout of T points takes matrices (T, T)."""

_STREAMING: Final = Lock()
"""Held while very many operators are read for a picture: it takes a second or two, and two at once twice the room."""
MOST_UNIT_STEPS: Final = 24
"""Most steps, chosen evenly, at which units are drawn."""
MOST_EXACT: Final = 2000
"""Operators of a layout up to which their distances come from all entries; of more from their sketches."""
MOST_MOVING: Final = 500
"""Most samples, chosen evenly, that are laid out at every step."""
PREVIEW: Final = 200
"""Characters of each text that results show."""
GRID: Final = (MODEL, STEP, COMPONENT)


def trajectory_dataset(operators: LayerOperators, study: Study) -> xr.Dataset:
    """Compute PHATE and classical-MDS coordinates of all operators of a layer; NaN where a model lacks a step.

    Of very many operators some are laid out, chosen evenly, and the others placed among them: stresses are of those.
    """
    keys = list(operators.stored)
    by_sketches = operators.sketched or len(keys) > MOST_EXACT
    points = _laid_out(study, ["trajectories", operators.layer, operators.scale.value], list(operators.stored.values()))
    grids = {name: _on_grid(points[name], keys, study) for name in (TRAJECTORY, MDS)}
    return xr.Dataset(
        {
            **{name: ((LAYER, *GRID), grid[None]) for name, grid in grids.items()},
            **{name: ((LAYER,), [float(points[name])]) for name in (STRESS, DISTANCE_STRESS)},
        },
        coords={LAYER: _names([operators.layer]), **_grid_coords(study)},
        attrs={
            "metric": METRIC,
            "seed": study.settings.seed,
            **({"sketch": SIZE} if by_sketches else {}),
            **({"landmarks": MOST_LAID_OUT} if len(keys) > MOST_LAID_OUT else {}),
        },
    )


def together_dataset(layers: Sequence[LayerOperators], study: Study) -> xr.Dataset:
    """Compute PHATE coordinates of the operators of all layers in one picture; NaN where left out."""
    most = max(2, MOST_TOGETHER // sum(len(one.models()) for one in layers))
    steps = _evenly(study.selection.all_steps(), most)
    chosen = [(one.layer, key) for one in layers for key in one.stored if key[1] in steps]
    stored = {one.layer: one.stored for one in layers}
    points = _laid_out(study, ["together", layers[0].scale.value], [stored[layer][key] for layer, key in chosen])
    grids = []
    for one in layers:
        mine = [index for index, (layer, _) in enumerate(chosen) if layer == one.layer]
        grids.append(_on_grid(points[TRAJECTORY][mine], [chosen[index][1] for index in mine], study))
    return xr.Dataset(
        {
            TOGETHER: ((LAYER, *GRID), np.stack(grids)),
            TOGETHER_STRESS: float(points[STRESS]),
            TOGETHER_DISTANCE_STRESS: float(points[DISTANCE_STRESS]),
        },
        coords={LAYER: _names([one.layer for one in layers]), **_grid_coords(study)},
    )


def merged_dataset(operators: LayerOperators, study: Study) -> xr.Dataset:
    """Compute PHATE of the merged operator P* at the last step that all models share."""
    step, settings = operators.last_step(), study.settings
    embedded = study.cache.recall(
        ["merged", settings.merge, settings.seed, operators.content(step)], partial(_embedding, operators, step, study)
    )
    return xr.Dataset(
        {
            EMBEDDING: ((LAYER, SAMPLE, COMPONENT), embedded[EMBEDDING][None]),
            STRESS: ((LAYER,), [float(embedded[STRESS])]),
            MERGED_STEP: ((LAYER,), [step]),
            MERGED_MODELS: ((LAYER,), [len(operators.at(step))]),
        },
        coords={LAYER: _names([operators.layer]), COMPONENT: [0, 1], **_samples(study), **_thumbnails(study)},
        attrs={"merge": settings.merge, "seed": settings.seed},
    )


def frames_dataset(operators: LayerOperators, study: Study) -> xr.Dataset | None:
    """Compute PHATE of P* and of every model's P at some of the steps that all models share, in one frame.

    Of many samples some are laid out, chosen evenly: the layouts would take longer than everything else.
    """
    settings, models = study.settings, operators.models()
    steps = _evenly(operators.shared_steps(), settings.frames)
    if not steps:
        return None
    every = study.samples.sizes[SAMPLE]
    shown = _evenly(range(every), MOST_MOVING)
    content = ["frames", settings.merge, settings.seed, [operators.content(step) for step in steps], models]
    content += [len(shown)] if len(shown) < every else []
    embedded = study.cache.recall(content, partial(_frames, operators, steps, shown, study))
    return xr.Dataset(
        {
            MERGED: ((LAYER, STEP, SAMPLE, COMPONENT), embedded[MERGED][None]),
            OF_MODELS: ((LAYER, MODEL, STEP, SAMPLE, COMPONENT), embedded[OF_MODELS][None]),
            STRESS: ((LAYER, STEP), embedded[STRESS][None]),
            DIFFUSION_TIME: ((LAYER,), [int(embedded[DIFFUSION_TIME])]),
        },
        coords={LAYER: _names([operators.layer]), MODEL: _names(models), STEP: steps, **_samples(study, shown)},
        attrs={"merge": settings.merge, "seed": settings.seed},
    )


def units_dataset(operators: LayerOperators, study: Study) -> xr.Dataset | None:
    """Compute M-PHATE of some of the first model's units over steps, chosen evenly; None if they cannot be drawn."""
    settings, model = study.settings, operators.models()[0]
    steps = _evenly([step for step in operators.steps() if model in operators.at(step)], MOST_UNIT_STEPS)
    if settings.units < 2 or len(steps) < 2:
        return None
    content = [operators.stored[model, step].digest for step in steps]
    view = partial(_units, model, operators.layer, steps, study)
    try:
        embedded = study.cache.recall(["units", settings.units, settings.seed, content], view)
    except StoreError:  # which is noted
        return None
    if not len(embedded["units"]):
        return None
    coords = {
        LAYER: _names([operators.layer]),
        MODEL: _names([model]),
        STEP: steps,
        UNIT: range(len(embedded["units"])),
    }
    return xr.Dataset(
        {
            EMBEDDING: ((LAYER, MODEL, STEP, UNIT, COMPONENT), embedded[EMBEDDING][None, None]),
            FEATURE: ((LAYER, MODEL, UNIT), embedded["units"][None, None]),
            STRESS: ((LAYER, MODEL), [[float(embedded[STRESS])]]),
        },
        coords=coords,
        attrs={"seed": settings.seed},
    )


def _laid_out(study: Study, name: list[Any], operators: list[StoredOperator]) -> dict[str, NDArray[Any]]:
    """Return both layouts of operators, from their calibrated distances, whose table bears the name."""
    content = ["layout", METRIC, study.settings.seed, [one.digest for one in operators]]
    if len(operators) <= MOST_LAID_OUT:
        return study.cache.recall(content, partial(_layouts, study, name, operators))
    return study.cache.recall([*content, MOST_LAID_OUT], partial(_layouts_among_landmarks, study, operators))


def _layouts(study: Study, name: list[Any], operators: list[StoredOperator]) -> dict[str, Any]:
    def rows(files: list[AnyOperatorFile], first: int) -> NDArray[Any]:
        return calibrated_distances(OperatorStack(files), first, memory=study.settings.memory)

    if _files(operators) is None:
        return _layouts_of(_distances(study, operators, len(operators)), study)
    return _layouts_of(study.cache.distances([METRIC, *name], operators, rows), study)


def _layouts_among_landmarks(study: Study, operators: list[StoredOperator]) -> dict[str, Any]:
    """Lay out some operators, and place the others among them."""
    landmarks = _evenly(range(len(operators)), MOST_LAID_OUT)
    others = sorted({*range(len(operators))} - {*landmarks})
    order = [*landmarks, *others]
    with _STREAMING:
        study.cache.freed.give_back(at_once=True)
        distances = _distances(study, [operators[index] for index in order], len(landmarks))
        study.cache.freed.give_back(at_once=True)
    among, beside = distances[:, : len(landmarks)], distances[:, len(landmarks) :].T
    made = _layouts_of(among, study)
    placed = {
        TRAJECTORY: placed_between(beside, made[TRAJECTORY]),
        MDS: placed_by_gower(beside, among, made[MDS]),
    }
    back = np.argsort(order)
    return made | {name: np.concatenate([made[name], points])[back] for name, points in placed.items()}


def _distances(study: Study, operators: list[StoredOperator], first: int) -> NDArray[Any]:
    """Return the distances of some first operators from all, as a picture needs them; of very many from sketches."""
    files, memory = _files(operators), study.settings.memory
    if files is None or len(files) > MOST_EXACT:
        return sketch_distances(_sketches(study, operators), METRIC, first=first, memory=memory)
    return calibrated_distances(OperatorStack(files), first, memory=memory, recompute=False)


def _files(operators: Sequence[StoredOperator]) -> list[AnyOperatorFile] | None:
    """Return the files of operators; None where one of them is known by its sketch alone."""
    files = [one.file for one in operators if not isinstance(one.file, LazySketch)]
    return files if len(files) == len(operators) else None


def _layouts_of(distances: NDArray[Any], study: Study) -> dict[str, Any]:
    phate = phate_trajectories(distances, n_components=2, seed=study.settings.seed)
    return {
        TRAJECTORY: phate.values,
        MDS: mds_embedding(distances, n_components=2).values,
        STRESS: phate.attrs["stress"],
        DISTANCE_STRESS: scaled_stress(distances, phate.values),
    }


def _sketches(study: Study, operators: Sequence[StoredOperator]) -> list[OperatorSketch]:
    """Return sketches of one kind: where some stand for their operators, of the others such ones are made too."""
    if _files(operators) is not None:
        return [_sketch(study, one) for one in operators]
    return [one.file.read() if isinstance(one.file, LazySketch) else kept_sketch(study, one) for one in operators]


def _sketch(study: Study, operator: StoredOperator) -> OperatorSketch:
    """Return an operator's sketch, kept by its content: 16 kB."""
    kept = study.cache.recall(["sketch", SIZE, operator.digest], partial(_sketch_arrays, operator))
    trace, total, square = (float(number) for number in kept["moments"])
    return OperatorSketch(kept["values"], int(kept["samples"]), 0, trace, total, square)


def _sketch_arrays(operator: StoredOperator) -> dict[str, Any]:
    made = sketch(operator.file)
    return {"values": made.values, "samples": made.samples, "moments": [made.trace, made.total, made.square]}


def _embedding(operators: LayerOperators, step: int, study: Study) -> dict[str, Any]:
    points = phate_embedding(merge(study, operators, step), n_components=2, seed=study.settings.seed)
    return {EMBEDDING: points.values, STRESS: points.attrs["stress"]}


def _frames(operators: LayerOperators, steps: Sequence[int], shown: Sequence[int], study: Study) -> dict[str, Any]:
    seed, models = study.settings.seed, operators.models()
    merged = phate_frames([merge(study, operators, step) for step in steps], seed=seed, samples=shown)
    of_models = [
        phate_onto([operators.at(step)[model] for step in steps], merged, seed, samples=shown) for model in models
    ]
    about = {name: merged.attrs[name] for name in ("stress", "t")}
    return {MERGED: merged.values, OF_MODELS: np.stack(of_models), **about}


def _units(model: str, layer: str, steps: Sequence[int], study: Study) -> dict[str, Any]:
    first = study.read(model, layer, steps[0])
    units = _evenly(range(first.shape[1]), study.settings.units)
    values = [study.read(model, layer, step).values[:, units] for step in steps]
    try:
        points = unit_trajectories(np.stack(values).astype(np.float32), seed=study.settings.seed)
    except ActivationError:  # fewer than two units
        return {"units": np.array([], dtype=np.int64)}
    return {"units": np.array(units), EMBEDDING: points.values, STRESS: points.attrs["stress"]}


def _evenly(items: Sequence[int], most: int) -> list[int]:
    """Choose at most this many of the items evenly, the last and the first among them, of one only the last."""
    if most >= len(items):
        return list(items)
    return [items[index] for index in np.linspace(len(items) - 1, 0, most).round().astype(int)[::-1]]


def _on_grid(points: NDArray[Any], keys: Sequence[tuple[str, int]], study: Study) -> NDArray[Any]:
    models, steps = study.selection.models, study.selection.all_steps()
    grid = np.full((len(models), len(steps), points.shape[1]), np.nan)
    for point, (model, step) in zip(points, keys, strict=True):
        grid[models.index(model), steps.index(step)] = point
    return grid


def _grid_coords(study: Study) -> dict[str, Any]:
    return {MODEL: _names(study.selection.models), STEP: study.selection.all_steps(), COMPONENT: [0, 1]}


def _samples(study: Study, shown: Sequence[int] | None = None) -> dict[str, Any]:
    """Return ids of all or some samples, with what else is known of each, and the beginnings of texts if there are."""
    samples = study.samples if shown is None else study.samples.isel({SAMPLE: list(shown)})
    others = {name: (SAMPLE, samples[name].values) for name in (LABEL, OF_SAMPLE, POSITION) if name in samples}
    if TEXT in samples:
        others[TEXT] = (SAMPLE, _names([str(text)[:PREVIEW] for text in samples[TEXT].values]))
    return {SAMPLE: samples[SAMPLE].values, **others}


def _thumbnails(study: Study) -> dict[str, Any]:
    pictures = study.sources.thumbnails
    return {} if pictures is None else {THUMBNAIL: (SAMPLE, _names(pictures))}


def _names(names: Sequence[str]) -> NDArray[Any]:
    return np.array(list(names), dtype=object)
