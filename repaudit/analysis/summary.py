"""The answer in words: a verdict and a sentence per layer, and a headline for all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from repaudit.analysis.layer_operators import LayerOperators
from repaudit.measure.phases import phases, verdict
from repaudit.measure.settling import settling_order
from repaudit.names import LAYER, MODEL, STEP
from repaudit.results import (
    APPROACH,
    COMPARISON,
    FROM_INPUTS,
    FROM_UNTRAINED,
    GROUP,
    GROUPS,
    HIGH,
    LOW,
    N_MODELS,
    NOISE_FLOOR,
    OTHER,
    SPREAD,
    bounds,
)

OPENINGS = {
    "converging": "The models converge",
    "diverging": "The models diverge",
    "unrelated": "The models cannot be told from unrelated ones in the end",
    "unchanged": "No significant change between the models",
    "undecided": "Too uncertain to decide",
}
COUNTED = {
    "converging": ("converges", "converge"),
    "diverging": ("diverges", "diverge"),
    "unrelated": ("cannot be told from unrelated", "cannot be told from unrelated"),
    "unchanged": ("shows no significant change", "show no significant change"),
    "undecided": ("is undecided", "are undecided"),
}
UNSETTLED = ("unrelated", "undecided")
"""Verdicts on layers for which settling has no meaning."""
IDENTICAL = 1e-6
"""A spread below this at every step is the same run under several names, or the same seed."""


def summarize(parts: Mapping[str, xr.Dataset], layers: Sequence[LayerOperators]) -> dict[str, Any]:
    """Summarise all layers: headline, verdicts, what settles first, and the models and steps that were used."""
    models = list(dict.fromkeys(model for one in layers for model in one.models()))
    single = APPROACH in parts and len(models) == 1
    curves = {one.layer: _curve(parts, one.layer, single) for one in layers}
    said = {name: layer_summary(parts[SPREAD].sel({LAYER: name})) for name in curves}
    moving = {name: curve for name, curve in curves.items() if single or said[name]["verdict"] not in UNSETTLED}
    order = settling_order({name: curve for name, curve in moving.items() if len(curve[0])})
    settling = {one.layer: {"settled": one.settled, "below_start": one.below_start} for one in order}
    nothing = {"settled": None, "below_start": None}
    summaries = {}
    for name, (steps, *_) in curves.items():
        one = said[name] | settling.get(name, nothing)
        one |= comparisons(parts, name, int(steps[-1]) if len(steps) else None)
        summaries[name] = one | {"sentence": _sentence(one, single, len(steps))}
    return {
        "headline": headline(summaries, len(models)),
        "layers": summaries,
        "settling": [{"layer": name, **when} for name, when in settling.items()],
        "models": models,
        "steps": [int(step) for step in parts[SPREAD][STEP].values],
    }


def layer_summary(spread: xr.Dataset) -> dict[str, Any]:
    """Return verdict, ends, peak, phases and a sentence for one layer of the ``spread`` group."""
    seen = spread.dropna(STEP, subset=[SPREAD])
    steps, value = seen[STEP].values, seen[SPREAD].values
    low, high = seen[LOW].values, seen[HIGH].values
    if not len(steps):
        nothing = dict.fromkeys(("start", "end", "low", "high", "peak"))
        why = "Too few models to decide: the spread needs at least two that share a step."
        if (spread[N_MODELS] > 1).any():
            why = "No spread at any step: see what was left out."
        return {"verdict": "undecided", **nothing, "phases": [], "sentence": why}
    stretches = phases(steps, value, low, high)
    peak = int(np.argmax(value))
    summary: dict[str, Any] = {
        "verdict": verdict(steps, value, low, high),
        "start": _number(value[0]),
        "end": _number(value[-1]),
        "low": _number(low[-1]),
        "high": _number(high[-1]),
        "peak": {"step": int(steps[peak]), "value": _number(value[peak])},
        "phases": [{"from": int(p.start), "to": int(p.end), "direction": p.direction} for p in stretches],
    }
    if value.max() < IDENTICAL:
        return {**summary, "sentence": "The models are identical at every step: are they one run, or one seed?"}
    ends = [_with_interval(value[i], low[i], high[i], int(steps[i])) for i in sorted({0, peak, len(steps) - 1})]
    return {**summary, "sentence": f"{OPENINGS[summary['verdict']]}: their spread is {_listed(ends)}."}


def comparisons(parts: Mapping[str, xr.Dataset], layer: str, end: int | None) -> dict[str, Any]:
    """Return what to compare a layer's spread at step `end` with: untrained networks, inputs, noise, and groups."""
    against = parts[COMPARISON].sel({LAYER: layer})
    entry: dict[str, Any] = {"noise_floor": _number(float(against[NOISE_FLOOR]))}
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
    """Say whether models are significantly nearer to each other than to their inputs and the untrained networks.

    Untrained networks agree without having learned anything: agreement is inherited if the models are no nearer to each
    other than to either. None if neither can be said, or a distance is not known.
    """
    if spread is None or spread["high"] is None or any(other is None or other["low"] is None for other in others):
        return None
    known = [other for other in others if other is not None]
    if all(spread["high"] < other["low"] for other in known):
        return "learned"
    return "inherited" if any(spread["value"] >= other["value"] for other in known) else None


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


def _curve(parts: Mapping[str, xr.Dataset], layer: str, single: bool) -> tuple[Any, Any, Any, Any]:
    """Return steps, value, low and high of what may settle: the spread, or a single model's distance from its end."""
    group, name = (APPROACH, APPROACH) if single else (SPREAD, SPREAD)
    one = parts[group].sel({LAYER: layer})
    seen = (one.isel({MODEL: 0}) if single else one).dropna(STEP, subset=[name])
    if N_MODELS in seen and seen.sizes[STEP]:  # another number of models is not a change of a model
        seen = seen.sel({STEP: seen[N_MODELS] == seen[N_MODELS][-1]})
    return seen[STEP].values, seen[name].values, seen[LOW].values, seen[HIGH].values


def _sentence(layer: Mapping[str, Any], single: bool, steps: int) -> str:
    settled = layer["settled"]
    if single:
        if steps < 2:
            return "One model at one step: nothing to compare it with."
        if settled is None:
            return "One model: at no step before the last it is within noise of its own end."
        return f"One model: from step {settled} on it cannot be told from its own end."
    return f"{layer['sentence']}{f' Settled from step {settled} on.' if settled is not None else ''}"


def headline(layers: dict[str, dict[str, Any]], n_models: int) -> str:
    """Return one line for all layers."""
    if n_models < 2:
        return "One model only: its trajectory and geometry are shown; the spread needs at least two models."
    counts = Counter(layer["verdict"] for layer in layers.values())
    parts = [f"{counts[name]} {words[counts[name] > 1]}" for name, words in COUNTED.items() if counts[name]]
    return f"{n_models} models, {len(layers)} layer{'s' * (len(layers) > 1)}: {', '.join(parts)}."


def _with_interval(value: float, low: float, high: float, step: int) -> str:
    known = math.isfinite(low) and math.isfinite(high)
    return f"{value:.2f}{f' [{low:.2f}, {high:.2f}]' if known else ''} at step {step}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
