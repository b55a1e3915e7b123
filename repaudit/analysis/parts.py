"""The groups of the results, layer by layer and scale by scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr

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
from repaudit.analysis.execution import side_by_side
from repaudit.analysis.input_geometry import InputGeometry, input_geometry
from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.merged_operators import merged_operators
from repaudit.analysis.recorded_gauge import recorded_notes
from repaudit.analysis.scales import Scale
from repaudit.analysis.similarities import no_similarity, similarity_dataset
from repaudit.analysis.sketched_layers import sketch_notes
from repaudit.analysis.spreads import SpreadCurve, spread_curve
from repaudit.analysis.study import Study
from repaudit.errors import ActivationError, CorruptStoreError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.band import Margins
from repaudit.names import LAYER, SAMPLE, SCALE, SCALE_NAME
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
    TOGETHER,
    TRAJECTORIES,
    UNITS,
)

CurveMargins: TypeAlias = dict[tuple[str, str], Margins]
"""By layer and name of the scale: what a difference between two steps of the spread must exceed."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

Piece: TypeAlias = tuple[int | None, int | None, str]
"""A group of the results: indices of its scale and layer, None where it has all of them, and its name."""

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


Parts: TypeAlias = tuple[dict[str, xr.Dataset], CurveMargins, list[str]]
"""The groups of the results, the margins of every curve, and a line for what could not be computed."""

OF_OPERATORS: Final = frozenset({MERGED, FRAMES})
"""Those of them that need whole operators: sketches do not do."""

ANSWER: Final = frozenset({SPREAD, COMPARISON, APPROACH, GROUPS, DIAGNOSTICS})
"""Groups that the summary is made of: they are computed first."""


def compute_parts(
    layers: Sequence[Sequence[LayerOperators]],
    study: Study,
    slots: int,
    report: Progress,
    answered: Callable[[Parts], None],
) -> Parts:
    """Return the groups of the results.

    Every group of every layer and scale is a piece of work of its own, of which `slots` run at once. `answered` is
    called with those that the summary is made of, as soon as they are there; pictures come after.
    """
    geometries = [_inputs(study, scale.gauge) for scale in study.scales]
    pieces = _pieces(layers, study, [inputs for inputs, _ in geometries])
    first = [piece for piece in pieces if piece[2] in ANSWER]
    made: dict[Piece, Any] = {}
    report("results", 0, len(pieces))
    for some, done in ((first, answered), ([piece for piece in pieces if piece not in first], None)):
        with side_by_side(slots) as workplace:
            for piece, result in workplace.run(lambda piece: pieces[piece](), some):
                made[piece] = result
                report("results", len(made), len(pieces))
        if done is not None:
            done(_joined(layers, study, made, geometries[0][1]))
    return _joined(layers, study, made, geometries[0][1])


def _joined(
    layers: Sequence[Sequence[LayerOperators]], study: Study, made: dict[Piece, Any], notes: Sequence[str]
) -> Parts:
    """Return the groups of the pieces that are made, each with all its layers and scales."""
    told, margins = list(notes), CurveMargins()
    at_scales = []
    for index, scale in enumerate(study.scales):
        datasets: dict[str, list[xr.Dataset]] = {}
        for place, operators in enumerate(scales[index] for scales in layers):
            curve: SpreadCurve = made[index, place, SPREAD]
            margins[operators.layer, scale.name] = curve.margins
            groups = {SPREAD: curve.spread, PAIRS: curve.pairs}
            groups |= {name: made.get((index, place, name)) for name in (COMPARISON, *PARTS)}
            for name, dataset in groups.items():
                datasets.setdefault(name, []).extend([dataset] if dataset is not None else [])
            told += undefined_spreads(curve.spread, operators, study.samples.sizes[SAMPLE])
            told += missing_starts(operators) if not index else []
        joined = {name: _concat(some, LAYER) for name, some in datasets.items() if some}
        if (index, None, TOGETHER) in made:
            joined[TRAJECTORIES] = joined[TRAJECTORIES].merge(made[index, None, TOGETHER])
        at_scales.append({name: _at_scale(dataset, scale) for name, dataset in joined.items()})
    found = {name: _concat([scale[name] for scale in at_scales if name in scale], SCALE) for name in at_scales[0]}
    units = [one for place in range(len(layers)) if (one := made.get((0, place, UNITS))) is not None]
    alone = {name: made.get((None, None, name)) for name in (MERGED_OPERATOR, SIMILARITY)}
    alone[UNITS] = _concat(units, LAYER) if units else None
    found |= {name: dataset for name, dataset in alone.items() if dataset is not None}
    told += [*recorded_notes(layers), *sketch_notes([scales[0] for scales in layers], found)]
    return found, margins, [*dict.fromkeys(told), *no_similarity(study), *study.unread_notes()]


def _pieces(
    layers: Sequence[Sequence[LayerOperators]], study: Study, geometries: Sequence[InputGeometry | None]
) -> dict[Piece, Callable[[], Any]]:
    """Return what computes each group, by its scale and layer where it has them; the answer comes first."""
    places = [
        (scale, place, scales[scale]) for scale in range(len(study.scales)) for place, scales in enumerate(layers)
    ]
    pieces: dict[Piece, Callable[[], Any]] = {
        (scale, place, SPREAD): partial(spread_curve, operators, study) for scale, place, operators in places
    }
    for scale, place, operators in places:
        pieces[scale, place, COMPARISON] = partial(comparison_dataset, operators, study, geometries[scale])
    for scale, place, operators in places:
        made = {name: part for name, part in PARTS.items() if name not in OF_OPERATORS or not operators.sketched}
        pieces |= {(scale, place, name): partial(part, operators, study) for name, part in made.items()}
        if not scale and operators.has_activations:
            pieces[scale, place, UNITS] = partial(units_dataset, operators, study)
    for scale in range(len(study.scales)):
        pieces[scale, None, TOGETHER] = partial(together_dataset, [scales[scale] for scales in layers], study)
    whole = [scales for scales in layers if not scales[0].sketched]
    if whole:
        pieces[None, None, MERGED_OPERATOR] = partial(merged_operators, whole, study)
    having = [scales[0] for scales in layers if scales[0].has_activations]
    if having:
        pieces[None, None, SIMILARITY] = partial(similarity_dataset, having, study)
    return pieces


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
