"""The scales of an analysis, and its results at one of them."""

from __future__ import annotations

import xarray as xr

from repaudit.names import SCALE, SCALE_NAME
from repaudit.results import SPREAD


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
    chosen = {
        name: dataset.isel({SCALE: index}, drop=True) if SCALE in dataset.dims else dataset
        for name, dataset in groups.items()
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=results.attrs), **chosen})
