"""The answer in words: a verdict and a sentence for every layer, and a headline over all of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import xarray as xr

from repaudit.measure.phases import phases, verdict
from repaudit.names import STEP

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
IDENTICAL = 1e-6
"""A spread below this at every step is the same run under several names, or the same seed."""


def layer_summary(spread: xr.Dataset) -> dict[str, Any]:
    """Verdict, ends, peak, phases and a sentence for one layer of the ``spread`` group."""
    seen = spread.dropna(STEP, subset=["spread"])
    steps, value = seen[STEP].values, seen["spread"].values
    low, high = seen["low"].values, seen["high"].values
    if not len(steps):
        nothing = dict.fromkeys(("start", "end", "low", "high", "peak"))
        why = "Too few models to decide: the spread needs at least two that share a step."
        if (spread["n_models"] > 1).any():
            why = "No spread at any step: see what was left out."
        return {"verdict": "undecided", **nothing, "phases": [], "sentence": why}
    found = phases(steps, value, low, high)
    peak = int(np.argmax(value))
    summary: dict[str, Any] = {
        "verdict": verdict(steps, value, low, high),
        "start": _number(value[0]),
        "end": _number(value[-1]),
        "low": _number(low[-1]),
        "high": _number(high[-1]),
        "peak": {"step": int(steps[peak]), "value": _number(value[peak])},
        "phases": [{"from": int(p.start), "to": int(p.end), "direction": p.direction} for p in found],
    }
    if value.max() < IDENTICAL:
        return {**summary, "sentence": "The models are identical at every step: are they one run, or one seed?"}
    ends = [_with_interval(value[i], low[i], high[i], int(steps[i])) for i in sorted({0, peak, len(steps) - 1})]
    return {**summary, "sentence": f"{OPENINGS[summary['verdict']]}: their spread is {_listed(ends)}."}


def headline(layers: dict[str, dict[str, Any]], n_models: int) -> str:
    """One line over all layers."""
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
