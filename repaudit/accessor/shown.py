"""Stores and results as tables, for a terminal and for a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import xarray as xr

from repaudit.accessor.kinds import is_results, is_store, neither
from repaudit.markup import Rows
from repaudit.names import SAMPLE
from repaudit.results import SUMMARY
from repaudit.store.read import catalog

Table: TypeAlias = tuple[str, Sequence[str], Rows]
"""A caption, the names of the columns, and the rows."""


def table_of(tree: xr.DataTree) -> Table:
    """Return what is in a store, or what came out of an analysis; of any other tree, what was expected."""
    if is_results(tree):
        return _results_table(json.loads(tree.attrs.get(SUMMARY, "{}")))
    return _store_table(tree) if is_store(tree) else (str(neither(tree)), (), [])


def _store_table(tree: xr.DataTree) -> Table:
    models = catalog.models(tree)
    rows = [(model, _few(catalog.layers(tree, model)), _steps(catalog.steps(tree, model))) for model in models]
    caption = f"store of {_count(len(models), 'model')} on {_count(tree.sizes.get(SAMPLE, 0), 'sample')}"
    lost = catalog.lost(tree)
    return caption + (f"; lost: {', '.join(lost)}" if lost else ""), ("model", "layers", "steps"), rows


def _results_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        (layer, scale, str(entry.get("verdict") or ""), _value(entry, "start"), _value(entry, "end"), _interval(entry))
        for layer, whole in (summary.get("layers") or {}).items()
        for scale, entry in (whole.get("scales") or {"": whole}).items()
    ]
    header = ("layer", "scale", "verdict", "spread at the start", "at the end", "95% interval")
    return str(summary.get("headline") or "results of an analysis"), header, rows


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ... {names[-1]} ({len(names)})"


def _steps(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 4 else f"{len(steps):,} from {steps[0]:,} to {steps[-1]:,}"


def _value(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return "" if value is None else f"{value:.2f}"


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = _value(entry, "low"), _value(entry, "high")
    return f"[{low}, {high}]" if low and high else ""
