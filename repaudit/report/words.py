"""What the report says: sentences, numbers and remarks, each only if its values are known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.measure.phases import UNRELATED
from repaudit.names import BY_DEPTH, LABEL, MODEL, STEP
from repaudit.plots import style
from repaudit.plots.embeddings import ROUGH
from repaudit.results import (
    BAND_HIGH,
    BAND_LOW,
    COLLAPSED,
    COMPONENTS,
    DIAGNOSTIC_NAMES,
    DUPLICATES,
    FAILED,
    FINGERPRINT,
    FLOORED,
    HELLINGER,
    HIGH,
    ISOLATED,
    LOW,
    MERGED_MODELS,
    MERGED_STEP,
    N_MODELS,
    PARAMETERS,
    SPREAD,
    SPREAD_RAW,
    SPREAD_ROWS,
    UNHELD,
    UNIFORMITY,
    VERSIONS,
    names_of,
)

MOST_ROWS: Final = 200
"""A table of more steps shows this many of them, evenly chosen, and says so."""

HEALTHY: Final = {
    ISOLATED: 0, DUPLICATES: 0, COLLAPSED: 0, COMPONENTS: 1, FLOORED: 0, UNHELD: 0, FAILED: 0, UNIFORMITY: 0.99,
}  # fmt: skip
"""The largest value of each diagnostic of a healthy operator."""


def sentence(entry: Mapping[str, Any]) -> str:
    """Return the layer's sentence without the verdict, which stands before it in colour."""
    text = str(entry.get("sentence") or "").removeprefix(f"{entry.get('verdict')}: ")
    return text[:1].upper() + text[1:]


def numbers(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return start, peak and end of a layer's spread, as far as they are known; of one step they are the same."""
    texts: dict[str, str] = {}
    if _finite(entry.get("end")) and {entry.get("start"), (entry.get("peak") or {}).get("value")} == {entry["end"]}:
        return {"end": f"{entry['end']:.2f}" + _interval(entry)}
    peak = entry.get("peak") or {}
    if _finite(entry.get("start")):
        texts["start"] = f"{entry['start']:.2f}"
    if _finite(peak.get("value")):
        texts["peak"] = f"{peak['value']:.2f} at step {peak['step']:,}"
    if _finite(entry.get("end")):
        texts["end"] = f"{entry['end']:.2f}" + _interval(entry)
    return texts


def agreement(entry: Mapping[str, Any]) -> str:
    """Say whether the models' agreement was learned or inherited, with the numbers, or why not; empty without any."""
    kind, end = entry.get("agreement"), entry.get("end")
    inputs, untrained = entry.get("inputs") or {}, entry.get("untrained") or {}
    if kind not in {"learned", "inherited"}:
        return _unknown_origin(entry, inputs, untrained)
    if not _finite(end) or not _finite(inputs.get("value")):
        return ""
    each, theirs = f"{end:.2f}{_interval(entry)}", f"{inputs['value']:.2f}{_interval(inputs)}"
    moved = f"{untrained['value']:.2f}{_interval(untrained)}" if _finite(untrained.get("value")) else ""
    if kind == "learned":
        words = f"Learned agreement: in the end the models are closer to each other ({each}) than to their inputs"
        return f"{words} ({theirs}){f' and to their untrained networks ({moved})' if moved else ''}."
    words = f"Inherited agreement: in the end the models are no closer to each other ({each}) than to"
    far = _finite(entry.get("high")) and _finite(inputs.get("low")) and entry["high"] < inputs["low"]
    return f"{words} their untrained networks ({moved})." if far and moved else f"{words} their inputs ({theirs})."


def _unknown_origin(entry: Mapping[str, Any], inputs: Mapping[str, Any], untrained: Mapping[str, Any]) -> str:
    if not _finite(entry.get("high")) or entry["high"] >= UNRELATED or "untrained" not in entry:
        return ""
    sources = {"inputs": inputs, "untrained networks": untrained}
    lacks = [name for name, known in sources.items() if not _finite(known.get("value"))]
    if lacks:
        why = f"the geometry of the {' and of the '.join(lacks)} is not known here"
        advice = " (audit before the first step of a training)" if "untrained networks" in lacks else ""
        return f"Origin of the agreement: {why}{advice}."
    others = f"to their inputs ({inputs['value']:.2f}{_interval(inputs)})"
    others += f" or to their untrained networks ({untrained['value']:.2f}{_interval(untrained)})"
    overlap = [
        name for name, known in sources.items() if not (_finite(known.get("low")) and entry["high"] < known["low"])
    ]
    if not overlap:
        return "Origin of the agreement: the models are identical, which tells nothing of it."
    whose = "the intervals overlap" if len(overlap) > 1 else f"the interval of the {overlap[0]} overlaps with theirs"
    return (
        f"Origin of the agreement: whether the models are closer to each other ({entry['end']:.2f}{_interval(entry)}) "
        f"than {others} is not decided: {whose}."
    )


def group_numbers(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the spread within and between groups of models at the last step, as far as known."""
    spreads: Mapping[str, Any] = entry.get("groups") or {}
    return {
        style.visible(str(name), 60): f"{value['value']:.2f}{_interval(value)}"
        for name, value in spreads.items()
        if isinstance(value, Mapping) and _finite(value.get("value"))
    }


def settling(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the layers in the order in which they settle, with words for the steps, without those that have none."""
    shown: list[dict[str, str]] = []
    for entry in summary.get("settling") or ():
        settled, below = entry.get("settled"), entry.get("below_start")
        if settled is None and below is None:
            continue
        when = f"step {settled:,}" if settled is not None else "still moving"
        since = f"below its start from {below:,}" if below is not None else ""
        shown.append({"layer": str(entry["layer"]), "when": when, "since": since})
    names = style.shortened([entry["layer"] for entry in shown], 40)
    return [entry | {"layer": name} for entry, name in zip(shown, names, strict=True)]


def stress(in_phate: float | None, in_distances: float | None) -> str:
    """Say how faithful a picture is: its stress against the operators' distances, or else against PHATE's own."""
    if in_distances is None:
        return "" if in_phate is None else f"Stress {in_phate:.2f} against PHATE's own distances."
    rough = ": a rough picture" if in_distances >= ROUGH else ""
    return f"Stress {in_distances:.2f} against the operators' distances{rough}."


def merged_words(merged: xr.Dataset) -> str:
    """Say how many models were merged, and at which step, as far as the results tell."""
    count = int(merged[MERGED_MODELS]) if MERGED_MODELS in merged else 0
    step = f" at step {int(merged[MERGED_STEP]):,}" if MERGED_STEP in merged else ""
    operator = "the model's operator" if count == 1 else f"the merged operator{f' of {count} models' if count else ''}"
    return f"{operator}{step} (PHATE){', by label' if LABEL in merged.coords else ''}"


def rows(spread: xr.Dataset) -> Iterator[dict[str, str]]:
    """Iterate over the table of one layer's measures: one row per step."""
    columns = (SPREAD, LOW, HIGH, BAND_LOW, BAND_HIGH, SPREAD_ROWS, SPREAD_RAW, HELLINGER, N_MODELS)
    steps = spread[STEP].values
    for k in np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_ROWS)).astype(int)):
        row = {"step": f"{int(steps[k]):,}"}
        for name in columns:
            if name in spread and spread[name].dims == (STEP,):
                row[name] = _number(spread[name].values[k])
        yield row


def diagnostic(variable: str) -> str:
    """Return the words for what is counted when a diagnostic is not as it should be."""
    return {COMPONENTS: "samples in unconnected parts", UNIFORMITY: f"uniformity above {HEALTHY[UNIFORMITY]:g}"}.get(
        variable, DIAGNOSTIC_NAMES.get(variable, variable)
    )


def remarks(variable: str, diagnostics: xr.Dataset) -> list[str]:
    """Say where a diagnostic exceeds what a healthy operator has."""
    values = diagnostics[variable].transpose(MODEL, STEP).values.astype(float)
    bad = np.isfinite(values) & (values > HEALTHY[variable])
    if not bad.any():
        return []
    models = [name for name, row in zip(names_of(diagnostics, MODEL), bad, strict=True) if row.any()]
    steps = diagnostics[STEP].values[bad.any(axis=0)]
    worst = "" if variable in {COLLAPSED, FAILED} else f", at most {_number(values[bad].max())}"
    worst += " parts" if variable == COMPONENTS else ""
    return [
        f"{diagnostic(variable)}: in {bad.sum()} of {np.isfinite(values).sum()} operators{worst} "
        f"({', '.join(models)}; steps {int(steps.min()):,} to {int(steps.max()):,})"
    ]


def span(summary: Mapping[str, Any]) -> str:
    """Say how many steps there are, and from which to which."""
    steps = summary.get("steps") or []
    if isinstance(steps, Mapping):
        steps = sorted({int(step) for values in steps.values() for step in values})
    if not steps:
        return ""
    return (
        f"{len(steps)} steps, {int(steps[0]):,} to {int(steps[-1]):,}" if len(steps) > 1 else f"step {int(steps[0]):,}"
    )


def about(results: xr.DataTree, summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the last sections of the page: what was left out, the parameters, the probe set, the versions."""
    attrs: dict[str, Any] = {str(name): value for name, value in results.attrs.items()}
    attrs |= {name: value for name, value in summary.items() if value is not None}
    noted = attrs.get("left_out", ())
    matched = [note for note in noted if str(note).startswith(BY_DEPTH)]
    if matched:
        attrs |= {BY_DEPTH: matched, "left_out": [note for note in noted if note not in matched]}
    titles = {
        "left_out": "Left out", BY_DEPTH: "Matched by depth", PARAMETERS: "Parameters",
        FINGERPRINT: "Fingerprint of the probe set", VERSIONS: "Versions", "store": "Store",
    }  # fmt: skip
    return [(title, plain(_decoded(attrs[name]))) for name, title in titles.items() if name in attrs]


def plain(value: Any) -> Any:
    """Return nested mappings and sequences with every leaf as the text to show.

    Examples
    --------
    >>> plain({"knn": 15, "bandwidth": None, "layers": ["a"]})
    {'knn': '15', 'bandwidth': 'none', 'layers': ['a']}
    """
    if isinstance(value, Mapping):
        return {style.visible(str(name)): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return "none" if value is None else style.visible(str(value))


def _decoded(value: Any) -> Any:
    """Return an attribute with its nested values, which are JSON on disk."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return f" [{low:.2f}, {high:.2f}]" if _finite(low) and _finite(high) else ""


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: Any) -> str:
    number = float(value)
    if not math.isfinite(number):
        return "–"
    return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"
