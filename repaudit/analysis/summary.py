"""The answer in words: a verdict and a sentence per layer, and a headline for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse.csgraph import connected_components

from repaudit.analysis.parts import CurveMargins
from repaudit.analysis.sentences import (
    IDENTICAL,
    NO_SPREAD,
    against_start,
    elsewhere,
    ended,
    headline,
    inherited,
    joined,
    of_curve,
    of_identical,
    of_pairs,
    outlying,
    with_settling,
)
from repaudit.measure.band import Margins
from repaudit.measure.curve import of_most_models
from repaudit.measure.phases import UNRELATED, phases, verdict
from repaudit.measure.settling import UNSETTLED, in_order, settling_of
from repaudit.names import LAYER, MODEL, SCALE, SCALE_NAME, STEP
from repaudit.results import (
    APPROACH,
    COMPARISON,
    DIAGNOSTICS,
    DISTANCE,
    FEATURE_HALVES,
    FROM_INPUTS,
    FROM_UNTRAINED,
    GROUP,
    GROUPS,
    HIGH,
    LOW,
    N_MODELS,
    OTHER,
    PAIRS,
    SPREAD,
    bounds,
)

EQUIVALENT = 0.05
"""Differences of this size, intervals included, are none."""


def summarize(parts: Mapping[str, xr.Dataset], margins: CurveMargins) -> dict[str, Any]:
    """Summarise all layers at all scales: headline, verdicts, what settles first, and the models and steps used.

    The entry of a layer is that of the first scale, with the entries of all under ``scales``.
    """
    spread = parts[SPREAD]
    names = [str(name) for name in spread[SCALE_NAME].values]
    every = {}
    for index, name in enumerate(names):
        at_scale = {key: part.isel({SCALE: index}) if SCALE in part.dims else part for key, part in parts.items()}
        every[name] = _at_scale(
            at_scale, {layer: change for (layer, scale), change in margins.items() if scale == name}
        )
    layers = {}
    for layer, entry in every[names[0]].layers.items():
        scales = {name: {"scale": value, **every[name].layers[layer]} for name, value in _values(spread)}
        layers[layer] = entry | {"sentence": joined({name: one["sentence"] for name, one in scales.items()})}
        layers[layer]["scales"] = scales
    models = [str(name) for name in parts[DIAGNOSTICS][MODEL].values]
    verdicts = {name: found.counted for name, found in every.items()}
    return {
        "headline": headline(verdicts, len(models), list(spread[STEP].values))
        + against_start(layers)
        + inherited(layers),
        "identical": identical_models(parts[PAIRS]) if PAIRS in parts else [],
        "layers": layers,
        "settling": every[names[0]].settling,
        "scales": [{"scale": value, "name": name} for name, value in _values(spread)],
        "models": models,
        "steps": [int(step) for step in spread[STEP].values],
    }


def _values(spread: xr.Dataset) -> list[tuple[str, float]]:
    return [
        (str(name), float(value)) for name, value in zip(spread[SCALE_NAME].values, spread[SCALE].values, strict=True)
    ]


@dataclass(frozen=True)
class _AtScale:
    layers: dict[str, dict[str, Any]]
    settling: list[dict[str, Any]]
    counted: dict[str, str]
    """What a headline counts each layer as: its verdict, or that all models are one, or that nothing is known."""


def _at_scale(parts: Mapping[str, xr.Dataset], margins: Mapping[str, Margins]) -> _AtScale:
    """Summarise all layers at one scale."""
    layers = [str(name) for name in parts[SPREAD][LAYER].values]
    single = set(parts[APPROACH][LAYER].values.tolist()) if APPROACH in parts else set()
    said, ends, found = {}, {}, []
    for layer in layers:  # one after the other: the margins of a layer are a matrix of all its steps
        change = margins[layer].matrix()
        curve = _curve(parts, layer, layer in single, change)
        said[layer] = layer_summary(parts[SPREAD].sel({LAYER: layer}), change)
        ends[layer] = curve[0]
        if len(curve[0]) and (layer in single or said[layer]["verdict"] not in UNSETTLED):
            found.append(settling_of(layer, curve))
    settling = {one.layer: {"settled": one.settled, "below_start": one.below_start} for one in in_order(found)}
    nothing = {"settled": None, "below_start": None}
    summaries = {}
    for name, steps in ends.items():
        one = said[name] | settling.get(name, nothing)
        one |= comparisons(parts, name, int(steps[-1]) if len(steps) else None)
        if PAIRS in parts and len(steps) == 1:
            one["sentence"] = of_pairs(parts[PAIRS].sel({LAYER: name, STEP: steps[0]}))
        summaries[name] = one | {"sentence": with_settling(one, name in single, len(steps))}
    first = sorted(settling.items(), key=lambda item: item[1]["settled"] is None)  # those that never do, last
    counted = {name: _counted_as(said[name], parts[SPREAD].sel({LAYER: name})) for name in layers}
    return _AtScale(summaries, [{"layer": name, **when} for name, when in first], counted)


def _counted_as(entry: Mapping[str, Any], spread: xr.Dataset) -> str:
    if entry["peak"] is None:
        return "without" if _are_several(spread) else "alone"
    return "identical" if entry["peak"]["value"] < IDENTICAL else str(entry["verdict"])


def identical_models(pairs: xr.Dataset) -> list[str]:
    """Return a sentence for every set of models that are copies at some steps, unless all are at every step."""
    one = pairs.isel({SCALE: 0}) if SCALE in pairs.dims else pairs
    distance = one[DISTANCE].transpose(LAYER, STEP, MODEL, OTHER).values
    known = np.isfinite(distance)
    there = known.any(axis=(2, 3))[..., None, None]  # where a layer is not known of two models, nobody knows
    same = ((distance**2 < IDENTICAL) | ~there).all(axis=0) & there.any(axis=0)
    names, steps = [str(name) for name in one[MODEL].values], one[STEP].values[known.any(axis=(0, 2, 3))].tolist()
    when: dict[tuple[int, ...], list[int]] = {}
    for index, step in enumerate(one[STEP].values.tolist()):
        count, label = connected_components(same[index], directed=False)
        sets = [tuple(np.flatnonzero(label == number).tolist()) for number in range(count)]
        for models in (some for some in sets if len(some) > 1):
            when.setdefault(models, []).append(step)
    return [
        of_identical([names[k] for k in models], some, steps)
        for models, some in when.items()
        if len(models) < len(names) or some != steps
    ]


def _are_several(spread: xr.Dataset) -> bool:
    """Return whether two models share a step, whether or not there is a spread of them."""
    return bool((spread[N_MODELS] > 1).any())


def layer_summary(spread: xr.Dataset, margins: Any = None) -> dict[str, Any]:
    """Return verdict, ends, peak, phases and a sentence for one layer of the ``spread`` group at one scale."""
    seen = spread.dropna(STEP, subset=[SPREAD])
    if not seen.sizes[STEP]:
        nothing = dict.fromkeys(("start", "end", "low", "high", "peak"))
        why = "Too few models to decide: the spread needs at least two that share a step."
        if _are_several(spread):
            why = NO_SPREAD
        return {"verdict": "undecided", **nothing, "phases": [], "sentence": why}
    here = of_most_models(seen[N_MODELS].values)
    every, seen = seen, seen.isel({STEP: here})
    margins = None if margins is None else margins[np.ix_(here, here)]
    steps, value, low, high = (seen[name].values for name in (STEP, SPREAD, LOW, HIGH))
    stretches = phases(steps, value, low, high, margins)
    peak = int(np.argmax(value))
    summary: dict[str, Any] = {
        "verdict": verdict(steps, value, low, high, margins),
        "start": _number(value[0]),
        "end": _number(value[-1]),
        "low": _number(low[-1]),
        "high": _number(high[-1]),
        "peak": {"step": int(steps[peak]), "value": _number(value[peak])},
        "phases": [{"from": int(p.start), "to": int(p.end), "direction": p.direction} for p in stretches],
    }
    *_, last = [None, *(p for p in stretches if p.direction != "flat")]
    since, until = (None, None) if last is None else (last.start if last.start > steps[0] else None, last.end)
    said = of_curve(summary["verdict"], seen, peak, margins, since, until)
    return {**summary, "sentence": said + elsewhere(every, seen) + ended(spread, every) + outlying(seen)}


def comparisons(parts: Mapping[str, xr.Dataset], layer: str, end: int | None) -> dict[str, Any]:
    """Return what to compare a layer's spread at step `end` with: untrained networks, inputs, halves of features."""
    against = parts[COMPARISON].sel({LAYER: layer})
    entry: dict[str, Any] = {"feature_halves": _number(float(against[FEATURE_HALVES]))}
    for name, variable in (("untrained", FROM_UNTRAINED), ("inputs", FROM_INPUTS)):
        entry[name] = _at(against, end, variable, *bounds(variable))
    if entry["untrained"]:
        entry["untrained"]["step"] = 0
    spread = _at(parts[SPREAD].sel({LAYER: layer}), end, SPREAD, LOW, HIGH)
    entry["agreement"] = _agreement(spread, entry["inputs"], entry["untrained"])
    if GROUPS in parts:
        entry["groups"] = _groups(parts[GROUPS].sel({LAYER: layer}), end)
    return entry


def _at(dataset: xr.Dataset, step: int | None, value: str, low: str, high: str) -> dict[str, Any] | None:
    """Return a value with its interval at one step; None if it is not known."""
    if step is None or value not in dataset or not np.isfinite(dataset[value].sel({STEP: step})):
        return None
    here = dataset.sel({STEP: step})
    return {name: _number(float(here[variable])) for name, variable in (("value", value), ("low", low), ("high", high))}


def _agreement(spread: Mapping[str, Any] | None, *others: Mapping[str, Any] | None) -> str | None:
    """Say where an agreement of the models comes from; None where they do not agree, or nothing is shown.

    They agree where the interval of the spread lies below that of unrelated models; identical ones say nothing. That is
    learned where they are significantly nearer to each other than to their inputs and to the untrained networks, which
    agree without having learned anything. It is inherited where they are shown to be no nearer to each other than to
    one of these: the difference is reversed, or lies within .05 with all of its interval.
    """
    if spread is None or spread["high"] is None or spread["high"] >= UNRELATED or spread["value"] < IDENTICAL:
        return None
    known = [other for other in others if other is not None and other["low"] is not None]
    if len(known) < len(others):
        return None
    if all(spread["high"] < other["low"] for other in known):
        return "learned"
    return "inherited" if any(_no_nearer(spread, other) for other in known) else None


def _no_nearer(spread: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    difference = other["value"] - spread["value"]
    half = math.hypot(other["high"] - other["value"], spread["high"] - spread["value"])
    return bool(difference + half < 0 or abs(difference) + half <= EQUIVALENT)


def _groups(groups: xr.Dataset, end: int | None) -> dict[str, Any]:
    if end is None:
        return {}
    names = [str(name) for name in groups[GROUP].values]
    spreads = {}
    for i, first in enumerate(names):
        for other in names[i:]:
            spread = _at(groups.sel({GROUP: first, OTHER: other}), end, SPREAD, LOW, HIGH)
            if spread is not None:
                spreads[first if first == other else f"{first} | {other}"] = spread
    return spreads


def _curve(parts: Mapping[str, xr.Dataset], layer: str, single: bool, margins: Any) -> tuple[Any, ...]:
    """Return steps, value, low, high and margins of what may settle: the spread, or a model's distance from its end."""
    group, name = (APPROACH, APPROACH) if single else (SPREAD, SPREAD)
    one = parts[group].sel({LAYER: layer})
    if single:  # of the models that are alone in some layer, the one of this layer
        one, margins = one.isel({MODEL: int(one[name].notnull().any(STEP).values.argmax())}), None
    seen = one.dropna(STEP, subset=[name])
    if N_MODELS in seen and seen.sizes[STEP]:
        same = of_most_models(seen[N_MODELS].values)
        seen, margins = seen.isel({STEP: same}), margins[np.ix_(same, same)]
    return seen[STEP].values, seen[name].values, seen[LOW].values, seen[HIGH].values, margins


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
