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
    "unrelated": "The models end unrelated",
    "unchanged": "The models neither converge nor diverge significantly",
    "undecided": "Too few models or steps to decide",
}
COUNTED = {
    "converging": ("converges", "converge"),
    "diverging": ("diverges", "diverge"),
    "unrelated": ("ends unrelated", "end unrelated"),
    "unchanged": ("does not change", "do not change"),
    "undecided": ("stays undecided", "stay undecided"),
}


def layer_summary(spread: xr.Dataset) -> dict[str, Any]:
    """Verdict, ends, peak, phases and a sentence for one layer of the ``spread`` group."""
    seen = spread.dropna(STEP, subset=["spread"])
    steps, value = seen[STEP].values, seen["spread"].values
    low, high = seen["low"].values, seen["high"].values
    if not len(steps):
        nothing = dict.fromkeys(("start", "end", "low", "high", "peak"))
        why = "Too few models to decide: the spread needs at least two that share a step."
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
    return {**summary, "sentence": _sentence(summary, int(steps[0]), int(steps[-1]))}


def headline(layers: dict[str, dict[str, Any]], n_models: int) -> str:
    """One line over all layers."""
    if n_models < 2:
        return "One model only: its trajectory and geometry are shown; the spread needs at least two models."
    counts = Counter(layer["verdict"] for layer in layers.values())
    parts = [f"{counts[name]} {words[counts[name] > 1]}" for name, words in COUNTED.items() if counts[name]]
    return f"{n_models} models, {len(layers)} layers: {', '.join(parts)}."


def _sentence(summary: dict[str, Any], first: int, last: int) -> str:
    peak, start, end = summary["peak"], summary["start"], summary["end"]
    path = f"their spread is {start:.2f} at step {first}"
    if last > first:
        path += f", {peak['value']:.2f} at its peak in step {peak['step']}" if peak["step"] not in (first, last) else ""
        path += f" and {end:.2f} at step {last}"
    if summary["low"] is not None and summary["high"] is not None:
        path += f" (95% interval {summary['low']:.2f} to {summary['high']:.2f})"
    return f"{OPENINGS[summary['verdict']]}: {path}."


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
