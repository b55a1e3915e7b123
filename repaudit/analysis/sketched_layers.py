"""Layers of which some models keep sketches alone: sketches in the place of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.analysis.cache import StoredOperator, digest
from repaudit.analysis.execution import Workplace
from repaudit.analysis.layer_operators import Key, LayerOperators, layer_operators
from repaudit.analysis.study import Study
from repaudit.errors import CorruptStoreError, OperatorError
from repaudit.names import SAMPLE, SKETCH
from repaudit.operators.grouped_sketch import GroupedSketch, LazySketch, grouped_sketch
from repaudit.results import SKETCH_ERROR
from repaudit.store.read import catalog
from repaudit.store.read.stand_ins import holds_sketches

LEFT_OUT: Final = (
    "hellinger, spread_rows, largest_row, feature_halves, merged operators, frames, units, similarity and entropy need "
    "operators or activations"
)


def sketched_layers(tree: xr.DataTree, recorded: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the layers of which some models keep sketches, with these models, of those that keep no activations."""
    sketched = {
        layer: [model for model in models if holds_sketches(catalog.activations(tree, model, layer))]
        for layer, models in recorded.items()
    }
    return {layer: models for layer, models in sketched.items() if models}


def layer_sketches(
    study: Study, layer: str, sketching: Sequence[str], workplace: Workplace, advance: Callable[[], None]
) -> list[LayerOperators]:
    """Return the sketches of a layer: as recorded of these models, of the others from their activations."""
    keys = study.selection.keys(layer)
    (others,) = layer_operators(study, layer, workplace, advance, [key for key in keys if key[0] not in sketching])
    failed = dict(others.failed)
    stored = {key: _of_operator(study, operator) for key, operator in others.stored.items()}
    for model in sketching:
        try:
            sums = study.sources.checksums(model, layer)
        except CorruptStoreError as error:
            failed |= {key: str(error) for key in keys if key[0] == model}
            continue
        for key in keys:
            if key[0] == model:
                try:
                    stored[key] = _recorded(study, layer, key, sums[key[1]])
                except (CorruptStoreError, OperatorError) as error:
                    failed[key] = str(error)
                advance()
    known = {key: stored[key] for key in keys if key in stored}
    return [LayerOperators(layer, others.scale, known, failed, has_activations=False)]


def _of_operator(study: Study, operator: StoredOperator) -> StoredOperator:
    """Return the sketch of an operator in the place of it."""
    name = digest("grouped sketch", operator.digest)
    read = partial(kept_sketch, study, operator)
    return StoredOperator(name, LazySketch(study.samples.sizes[SAMPLE], read), operator.diagnostics, operator.gauge)


def kept_sketch(study: Study, operator: StoredOperator) -> GroupedSketch:
    """Return the grouped sketch of an operator, kept by its content."""
    kept = study.cache.recall(["grouped sketch", operator.digest], partial(_numbers, operator))
    facts = {"samples": study.samples.sizes[SAMPLE], "seed": 0, "diagnostics": []}
    return GroupedSketch.of_numbers(kept["numbers"], facts)


def _numbers(operator: StoredOperator) -> dict[str, Any]:
    return {"numbers": grouped_sketch(operator.file).numbers()}


def _recorded(study: Study, layer: str, key: Key, checksum: int) -> StoredOperator:
    """Return a recorded sketch, which is read once to see that it can be, and again when it is needed."""
    source = study.sources.of_model[key[0]]
    read = partial(_read, study, layer, key, checksum)
    found = read()
    name = digest("sketch", *source.identity(layer), key[1], checksum)
    gauge = asdict(study.scales[0].gauge)
    return StoredOperator(name, LazySketch(found.samples, read), dict(found.diagnostics), gauge)


def _read(study: Study, layer: str, key: Key, checksum: int) -> GroupedSketch:
    values = study.sources.read(key[0], layer, key[1], checksum)
    return GroupedSketch.of_numbers(np.asarray(values.values), values.attrs[SKETCH])


def sketch_notes(layers: Sequence[LayerOperators], parts: Mapping[str, xr.Dataset]) -> list[str]:
    """Say of the layers that are known by sketches what is left out, and how sure the rest is."""
    names = [one.layer for one in layers if one.sketched]
    if not names:
        return []
    error = float(parts["spread"][SKETCH_ERROR].max())
    return [
        f"layers {', '.join(names)}: known by sketches of their operators; {LEFT_OUT}; a pair's distance over its null "
        f"has a standard error of {error:.3f} at most from this, which the intervals hold"
    ]
