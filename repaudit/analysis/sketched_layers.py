"""Layers of which some models keep sketches alone: their gauge, and sketches in the place of operators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.analysis.cache import StoredOperator, digest
from repaudit.analysis.execution import Workplace
from repaudit.analysis.layer_operators import Key, LayerOperators, layer_operators
from repaudit.analysis.scales import Scale, of_perplexity, resolve_scales
from repaudit.analysis.selection import Selection
from repaudit.analysis.settings import Settings
from repaudit.analysis.study import Study
from repaudit.errors import AnalysisError, CorruptStoreError, OperatorError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.names import GAUGE, SAMPLE, SKETCH
from repaudit.operators.grouped_sketch import GroupedSketch, LazySketch, grouped_sketch
from repaudit.results import SKETCH_ERROR
from repaudit.store.read import catalog
from repaudit.store.read.sketches import holds_sketches

_SAME: Final = ("size", "groups", "samples", "seed")
"""What sketches that are compared have in common."""

LEFT_OUT: Final = (
    "hellinger, spread_rows, largest_row, feature_halves, merged operators, frames, units, similarity and entropy need "
    "operators or activations"
)


def sketched_layers(tree: xr.DataTree, selection: Selection) -> dict[str, list[str]]:
    """Return the layers of which some models keep sketches, with these models."""
    having = {
        layer: [
            model
            for model in selection.models
            if layer in selection.layers_of[model] and holds_sketches(catalog.activations(tree, model, layer))
        ]
        for layer in selection.layers
    }
    return {layer: models for layer, models in having.items() if models}


def scales_of_sketches(
    tree: xr.DataTree, sketched: Mapping[str, Sequence[str]], settings: Settings, samples: int
) -> list[Scale]:
    """Return the one scale at which all sketches were made.

    Raises
    ------
    AnalysisError
        They were made at several, or with other hashes or samples than each other, or not at what is asked for.
    """
    gauge = gauge_of_sketches(tree, sketched)
    scale = resolve_scales(None, gauge, samples)[0] if gauge.perplexity is None else of_perplexity(gauge, samples)
    _refuse_other(settings, scale, samples)
    return [scale]


def gauge_of_sketches(tree: xr.DataTree, sketched: Mapping[str, Sequence[str]]) -> DiffusionGauge:
    """Return the gauge with which all sketches of some models in some layers were made.

    Raises
    ------
    AnalysisError
        They were made with several gauges, or other hashes.
    """
    keys = [(model, layer) for layer, some in sketched.items() for model in some]
    found = {key: catalog.activations(tree, *key) for key in keys}
    _one("gauge", {key: array.attrs[GAUGE] for key, array in found.items()})
    _one("kind of hash", {key: {name: array.attrs[SKETCH][name] for name in _SAME} for key, array in found.items()})
    return gauge_of(next(iter(found.values())))


def gauge_of(sketches: xr.DataArray) -> DiffusionGauge:
    """Return the gauge that the attributes of a layer of sketches tell."""
    known = {field.name for field in fields(DiffusionGauge)}
    return DiffusionGauge(**{name: value for name, value in sketches.attrs[GAUGE].items() if name in known})


def _one(what: str, found: Mapping[Key | tuple[str, str], Any]) -> Any:
    """Return what is the same for all sketches."""
    (first, value), *others = found.items()
    for key, other in others:
        if other != value:
            raise AnalysisError(
                f"expected sketches of one {what}, found {json.dumps(value)} of model {first[0]}, layer {first[1]}, "
                f"and {json.dumps(other)} of model {key[0]}, layer {key[1]}: choose models and layers that agree"
            )
    return value


def _refuse_other(settings: Settings, scale: Scale, samples: int) -> None:
    asked = settings.gauge
    if settings.scales is not None:
        found = [one.value for one in resolve_scales(settings.scales, DiffusionGauge(), samples)]
    else:
        found = [scale.value]
    if found != [scale.value] or asked not in (DiffusionGauge(), scale.gauge):
        raise AnalysisError(
            f"expected no gauge and scales but those that the sketches were recorded with, {scale.gauge}, found "
            f"gauge={asked}, scales={settings.scales}"
        )


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
    scale = others.scale
    return [LayerOperators(layer, scale, {key: stored[key] for key in keys if key in stored}, failed)]


def _of_operator(study: Study, operator: StoredOperator) -> StoredOperator:
    """Return the sketch of an operator in the place of it."""
    name = digest("grouped sketch", operator.digest)
    read = partial(kept_sketch, study, operator)
    return StoredOperator(name, LazySketch(study.samples.sizes[SAMPLE], read), operator.diagnostics, operator.gauge)


def kept_sketch(study: Study, operator: StoredOperator) -> GroupedSketch:
    """Return the grouped sketch of an operator, kept by its content: 37 kB."""
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
