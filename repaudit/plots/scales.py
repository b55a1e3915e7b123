"""The scales of an analysis one by one: what each is called, and what the summary says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, TypeAlias

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import SCALE, SCALE_NAME, encode_name
from repaudit.results import SPREAD

Found: TypeAlias = xr.Dataset | xr.DataTree
"""What a figure is drawn of: a group of the results at one scale, or all results, of which it takes the first scale."""


AT: Final = "at_scale"
"""The attribute of a group at one scale that names it, for titles."""


@dataclass(frozen=True)
class Scale:
    """One scale: its index in the results, its effective number of neighbours, its name (empty if there is none)."""

    index: int
    value: float
    name: str

    @property
    def suffix(self) -> str:
        """What the names of this scale's files end with: nothing for the first."""
        return f"-{encode_name(self.name or f'{self.value:g}')}" if self.index else ""


def scales_of(results: xr.DataTree) -> list[tuple[float, str]]:
    """Return the scales of an analysis, each with its name; one without a name where the results have none."""
    spread = results[SPREAD].to_dataset() if SPREAD in results.children else xr.Dataset()
    if SCALE not in spread.dims:
        return [(float("nan"), "")]
    return [
        (float(value), str(name)) for value, name in zip(spread[SCALE].values, spread[SCALE_NAME].values, strict=True)
    ]


def at_scale(results: xr.DataTree, index: int) -> xr.DataTree:
    """Return the results at one scale; what has no scale is as it was."""
    groups = {name: node.to_dataset(inherit=False) for name, node in results.children.items()}
    chosen = {name: _chosen(dataset, index) if SCALE in dataset.dims else dataset for name, dataset in groups.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), **chosen})


def scale_index(results: xr.DataTree, scale: float | str | None) -> int:
    """Return which of the scales of an analysis is meant, by name or by number; the first when None."""
    known = scales_of(results)
    if not isinstance(scale, str | Real | None):
        raise TypeError(f"scale: expected a name or a number of neighbours, found {scale!r}")
    for index, (value, name) in enumerate(known):
        if scale is None or (scale == name if isinstance(scale, str) else float(scale) == value):
            return index
    words = ", ".join(f"{name or 'unnamed'!r} ({value:g})" for value, name in known)
    raise AnalysisError(f"expected one of the scales of these results, {words}; found {scale!r}")


def at_one_scale(found: Found, name: str) -> xr.Dataset:
    """Return the group of this name at the first scale, or the one group that was given.

    Raises
    ------
    AnalysisError
        The results lack the group, or a group of several scales was given: one of them has to be chosen.

    Examples
    --------
    >>> results = xr.DataTree.from_dict({"spread": xr.Dataset({"spread": ("scale", [0.2, 0.4])})})
    >>> float(at_one_scale(results, "spread")["spread"])
    0.2
    """
    if not isinstance(found, xr.DataTree | xr.Dataset):
        raise TypeError(
            f"expected the results of an analysis (ra.analyze, or xr.open_datatree of results.zarr), or their group "
            f"{name!r}, found {type(found).__name__}"
        )
    if isinstance(found, xr.DataTree) and name in found.data_vars:  # the node of the group
        found = found.to_dataset()
    if isinstance(found, xr.DataTree):
        if name not in found.children:
            has = ", ".join(map(repr, found)) or "nothing"
            raise AnalysisError(
                f"expected the results of an analysis with the group {name!r}, or that group alone; "
                f"found a tree with {has} in it"
            )
        found = found[name].to_dataset()
        return _chosen(found, 0) if SCALE in found.dims else found
    if found.sizes.get(SCALE, 1) > 1:
        raise AnalysisError(
            f"expected the group {name!r} at one scale, found {found.sizes[SCALE]} scales: select one, "
            f"as in {name}.isel({SCALE}=0)"
        )
    return _chosen(found, 0) if SCALE in found.dims else found


def _chosen(dataset: xr.Dataset, index: int) -> xr.Dataset:
    """Return a group at one of its scales, which its attribute names."""
    name = str(dataset[SCALE_NAME].values[index]) if SCALE_NAME in dataset.coords else ""
    number = f"({float(dataset[SCALE].values[index]):g} neighbours)" if SCALE in dataset.coords else ""
    return dataset.isel({SCALE: index}, drop=True).assign_attrs({AT: " ".join(filter(None, (name, number)))})


def scales(results: xr.DataTree) -> list[Scale]:
    """Return the scales of an analysis in their order; one without a name where the results have none."""
    return [Scale(index, value, name) for index, (value, name) in enumerate(scales_of(results))]


def summary_at(summary: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """Return the summary at one scale: the layers' entries of this scale, and the order in which they settle there.

    A layer that knows nothing of this scale keeps its own entry at the first one, and has none at the others.

    Examples
    --------
    >>> entry = {"verdict": "undecided", "scales": {"shape": {"verdict": "converging", "settled": 40}}}
    >>> found = summary_at({"layers": {"norm": entry}}, Scale(1, 64.0, "shape"))
    >>> found["layers"]["norm"]["verdict"], found["settling"]
    ('converging', [{'layer': 'norm', 'settled': 40, 'below_start': None}])
    """
    layers = {}
    for layer, entry in (summary.get("layers") or {}).items():
        without = {} if scale.index else {key: value for key, value in entry.items() if key != "scales"}
        layers[layer] = (entry.get("scales") or {}).get(scale.name, without)
    told = [] if scale.index else list(summary.get("settling") or [])
    others = {layer: entry for layer, entry in layers.items() if layer not in {one["layer"] for one in told}}
    return {**summary, "layers": layers, "settling": [*told, *_settling(others)]}


def _settling(layers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return when each layer settles, the first in front and those that never do at the end."""
    entries = [
        {"layer": layer, "settled": entry.get("settled"), "below_start": entry.get("below_start")}
        for layer, entry in layers.items()
    ]
    return sorted(entries, key=lambda entry: (_late(entry["settled"]), _late(entry["below_start"])))


def _late(step: Any) -> float:
    return math.inf if step is None else float(step)
