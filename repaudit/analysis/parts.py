"""The groups of the results, layer by layer and scale by scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.analysis.convergence import (
    approach_dataset,
    comparison_dataset,
    groups_dataset,
    missing_starts,
    undefined_spreads,
)
from repaudit.analysis.diagnostics import diagnostics_dataset
from repaudit.analysis.embeddings import (
    frames_dataset,
    merged_dataset,
    together_dataset,
    trajectory_dataset,
    units_dataset,
)
from repaudit.analysis.input_geometry import InputGeometry, input_geometry
from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.merged_operators import merged_operators
from repaudit.analysis.scales import Scale
from repaudit.analysis.similarities import no_similarity, similarity_dataset
from repaudit.analysis.spreads import spread_curve
from repaudit.analysis.study import Study
from repaudit.errors import ActivationError, CorruptStoreError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import LAYER, SCALE, SCALE_NAME
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTICS,
    FRAMES,
    GROUPS,
    MERGED,
    MERGED_OPERATOR,
    PAIRS,
    SIMILARITY,
    SPREAD,
    TRAJECTORIES,
    UNITS,
)

Margins: TypeAlias = dict[tuple[str, str], NDArray[np.float64]]
"""By layer and name of the scale: what a difference between two steps of the spread must exceed."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

Part = Callable[[LayerOperators, Study], xr.Dataset | None]

PARTS: Final[dict[str, Part]] = {
    APPROACH: approach_dataset,
    GROUPS: groups_dataset,
    TRAJECTORIES: trajectory_dataset,
    MERGED: merged_dataset,
    FRAMES: frames_dataset,
    DIAGNOSTICS: diagnostics_dataset,
}
"""Groups of the results that are computed layer by layer, in addition to those that need more than the operators."""


def compute_parts(
    layers: Sequence[Sequence[LayerOperators]], study: Study, report: Progress
) -> tuple[dict[str, xr.Dataset], Margins, list[str]]:
    """Return the groups of the results, the margins of every curve, and a line for what could not be computed."""
    notes: list[str] = []
    margins: Margins = {}
    at_scales = []
    total, done = sum(map(len, layers)) * (len(PARTS) + 2) + 2, 0
    for index, scale in enumerate(study.scales):
        inputs, complaint = _inputs(study, scale.gauge)
        notes += complaint if not index else []
        datasets: dict[str, list[xr.Dataset]] = {}
        for operators in (scales[index] for scales in layers):
            curve = spread_curve(operators, study)
            margins[operators.layer, scale.name] = curve.margins
            made = {SPREAD: curve.spread, PAIRS: curve.pairs, COMPARISON: comparison_dataset(operators, study, inputs)}
            for name, part in PARTS.items():
                made[name] = part(operators, study)
                done += 1
                report("results", done, total)
            for name, dataset in made.items():
                datasets.setdefault(name, []).extend([dataset] if dataset is not None else [])
            notes += undefined_spreads(curve.spread, operators)
            notes += missing_starts(operators) if not index else []
            done += 2
        joined = {name: _concat(some, LAYER) for name, some in datasets.items() if some}
        every = [scales[index] for scales in layers]
        joined[TRAJECTORIES] = joined[TRAJECTORIES].merge(together_dataset(every, study))
        at_scales.append({name: _at_scale(dataset, scale) for name, dataset in joined.items()})
    groups = {name: _concat([scale[name] for scale in at_scales if name in scale], SCALE) for name in at_scales[0]}
    first = [scales[0] for scales in layers]
    units = [dataset for one in first if (dataset := units_dataset(one, study)) is not None]
    if units:
        groups[UNITS] = _concat(units, LAYER)
    groups[MERGED_OPERATOR] = merged_operators(layers, study)
    report("results", total - 1, total)
    similar = similarity_dataset(first, study)
    report("results", total, total)
    if similar is not None:
        groups[SIMILARITY] = similar
    return groups, margins, [*dict.fromkeys(notes), *no_similarity(study)]


def _concat(datasets: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    return xr.concat(datasets, dim=dim, data_vars="minimal", coords="minimal", compat="override", join="outer")


def _at_scale(dataset: xr.Dataset, scale: Scale) -> xr.Dataset:
    """Return a group with dim ``scale`` behind the layers, and first where a variable has none."""
    coords = {SCALE: [scale.value], SCALE_NAME: (SCALE, np.array([scale.name], dtype=object))}
    expanded = {
        name: array.expand_dims(SCALE, axis=int(LAYER in array.dims)) for name, array in dataset.data_vars.items()
    }
    return dataset.assign(expanded).assign_coords(coords)


def _inputs(study: Study, gauge: DiffusionGauge) -> tuple[InputGeometry | None, list[str]]:
    if study.settings.tokens is not None:
        return None, ["comparison with the geometry of the inputs: the input of a token is its id, which has none"]
    try:
        return input_geometry(study.tree, gauge, study.selection.models), []
    except (ActivationError, CorruptStoreError) as error:
        return None, [f"comparison with the geometry of the inputs: {error}"]
