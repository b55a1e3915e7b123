"""The gauge of operators and sketches that were made during training: one for all of an analysis, at its one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import xarray as xr

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.analysis.scales import Scale, of_perplexity, resolve_scales
from repaudit.analysis.selection import Selection
from repaudit.analysis.settings import Settings
from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.gauge.recorded import difference, gauge_of
from repaudit.names import SKETCH
from repaudit.store.read import catalog
from repaudit.store.read.stand_ins import holds_sketches, stands_in

LEFT_OUT: Final = (
    "feature_halves, units and similarity need activations, and so do collapsed, duplicates, floored and unheld in the "
    "diagnostics"
)

_SAME: Final = ("size", "groups", "samples", "seed")
"""What sketches that are compared have in common."""

ByLayer = Mapping[str, Sequence[str]]
"""Models by layer."""


def recorded_layers(tree: xr.DataTree, selection: Selection) -> dict[str, list[str]]:
    """Return the layers of which some models keep operators or sketches in place of activations, with these models."""
    having = {
        layer: [
            model
            for model in selection.models
            if layer in selection.layers_of[model] and stands_in(catalog.activations(tree, model, layer))
        ]
        for layer in selection.layers
    }
    return {layer: models for layer, models in having.items() if models}


def recorded_scales(tree: xr.DataTree, recorded: ByLayer, settings: Settings, samples: int) -> list[Scale]:
    """Return the one scale at which all operators and sketches were made.

    Raises
    ------
    AnalysisError
        They were made at several, or with other hashes or samples than each other, or not at what is asked for.
    """
    gauge = recorded_gauge(tree, recorded)
    scale = resolve_scales(None, gauge, samples)[0] if gauge.perplexity is None else of_perplexity(gauge, samples)
    _refuse_other(settings, scale, samples, kept_as(tree, recorded))
    return [scale]


def recorded_gauge(tree: xr.DataTree, recorded: ByLayer) -> DiffusionGauge:
    """Return the gauge with which all operators and sketches of some models in some layers were made.

    Raises
    ------
    AnalysisError
        They were made with several gauges, with one whose parameters are not known, or with other hashes.
    """
    keys = [(model, layer) for layer, some in recorded.items() for model in some]
    arrays = {key: catalog.activations(tree, *key) for key in keys}
    gauges = {key: _gauge_in(array, key) for key, array in arrays.items()}
    _one(kept_as(tree, recorded), "gauge", gauges)
    sketches = {key: array.attrs[SKETCH] for key, array in arrays.items() if holds_sketches(array)}
    _one("sketches", "kind of hash", {key: {name: facts[name] for name in _SAME} for key, facts in sketches.items()})
    return next(iter(gauges.values()))


def recorded_notes(layers: Sequence[Sequence[LayerOperators]]) -> list[str]:
    """Say of the layers that are known by recorded operators what is left out."""
    names = [one.layer for one, *_ in layers if not one.has_activations and not one.sketched]
    if not names:
        return []
    return [f"layers {', '.join(names)}: known by operators that were recorded during training; {LEFT_OUT}"]


def mixed_notes(selection: Selection, recorded: ByLayer, sketched: ByLayer, scales: Sequence[Scale]) -> list[str]:
    """Say which models keep operators or sketches where others keep activations, and what that costs these."""
    kept: dict[str, dict[str, None]] = {}
    for layer, models in recorded.items():
        having = [model for model in selection.models if layer in selection.layers_of[model]]
        for model in models if len(models) < len(having) else ():
            kind = "sketches" if model in sketched.get(layer, ()) else "operators"
            kept.setdefault(kind, {})[model] = None
    said = " and ".join(f"{kind} of {', '.join(models)}" for kind, models in kept.items())
    return (
        [f"other scales than {scales[0].name}, that of the recorded {said}: leave them out for these"] if kept else []
    )


def kept_as(tree: xr.DataTree, recorded: ByLayer) -> str:
    """Return what the models keep of these layers, in words."""
    every = [catalog.activations(tree, model, layer) for layer, some in recorded.items() for model in some]
    kinds = {"sketches" if holds_sketches(array) else "operators" for array in every}
    return " and ".join(sorted(kinds))


def _gauge_in(array: xr.DataArray, key: tuple[str, str]) -> DiffusionGauge:
    try:
        return gauge_of(array)
    except AnalysisError as error:
        raise AnalysisError(f"model {key[0]}, layer {key[1]}: {error}") from error


def _one(what: str, of_one: str, found: Mapping[tuple[str, str], Any]) -> None:
    """Refuse what is not the same for all."""
    for key, other in found.items():
        first, value = next(iter(found.items()))
        if apart := difference(*(asdict(it) if isinstance(it, DiffusionGauge) else it for it in (value, other))):
            raise AnalysisError(
                f"expected {what} of one {of_one}, found {apart[0]} of model {first[0]}, layer {first[1]}, "
                f"and {apart[1]} of model {key[0]}, layer {key[1]}: choose models and layers that agree"
            )


def _refuse_other(settings: Settings, scale: Scale, samples: int, kept: str) -> None:
    asked = settings.gauge
    if settings.scales is not None:
        found = [one.value for one in resolve_scales(settings.scales, DiffusionGauge(), samples)]
    else:
        found = [scale.value]
    if found != [scale.value] or asked not in (DiffusionGauge(), scale.gauge):
        raise AnalysisError(
            f"expected no gauge and scales but those that the {kept} were recorded with, {scale.gauge}, found "
            f"gauge={'the same' if asked in (DiffusionGauge(), scale.gauge) else asked}, scales={settings.scales}: "
            "give neither"
        )
