"""Whether the results of an analysis keep the contract of ``results.zarr``, and what each variable is called there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr

from repaudit.results import CONTRACT, Variable
from repaudit.store.format.schema import violations

_KINDS: Final = {"f": "float", "i": "integer", "u": "integer", "b": "boolean"}


def labelled(name: str, dataset: xr.Dataset) -> xr.Dataset:
    """Return a group whose variables carry the ``long_name`` and ``units`` of the contract.

    Examples
    --------
    >>> spread = xr.Dataset({"spread": (("layer", "step"), [[0.5]])})
    >>> labelled("spread", spread)["spread"].attrs["units"]
    '1'
    """
    entries = {**CONTRACT[name].coords, **CONTRACT[name].variables}
    result = dataset.copy()
    for key in map(str, dataset.variables):
        variable = entries.get(key, Variable((), key.replace("_", " ")))  # diagnostics of a gauge that has more
        result[key].attrs.update(variable.attrs)
    return result


def describe(results: xr.DataTree) -> dict[str, Any]:
    """Return the groups of a tree with their dims, coordinates, variables and attributes, as the JSON Schema has it."""
    groups = {path: _described(_alone(path, node)) for path, node in results.subtree_with_keys if path != "."}
    return {"attrs": _described_attrs(results.attrs), "groups": groups}


def contract_violations(results: xr.DataTree) -> list[str]:
    """List every way in which a tree breaks the contract of ``results.zarr``, each with the place within the tree.

    Examples
    --------
    >>> contract_violations(xr.DataTree())[0]
    "attrs: 'parameters' is a required property"
    """
    return violations("results", describe(results))


def _alone(path: str, node: xr.DataTree) -> xr.Dataset:
    """Return a group with the coordinates that it shares with the group above, but only its own."""
    dataset = node.to_dataset()
    if "/" not in path or path not in CONTRACT:
        return dataset
    return dataset.drop_vars([name for name in dataset.coords if name not in CONTRACT[path].coords])


def _described(dataset: xr.Dataset) -> dict[str, Any]:
    return {
        "dims": {str(name): size for name, size in dataset.sizes.items()},
        "coords": {str(name): _described_variable(array) for name, array in dataset.coords.items()},
        "variables": {str(name): _described_variable(array) for name, array in dataset.data_vars.items()},
        "attrs": _described_attrs(dataset.attrs),
    }


def _described_attrs(attrs: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): _KINDS.get(np.asarray(attrs[name]).dtype.kind, "text") for name in sorted(map(str, attrs))}


def _described_variable(array: xr.DataArray) -> dict[str, Any]:
    kind = _KINDS.get(array.dtype.kind, "text")
    attrs = {name: array.attrs[name] for name in ("long_name", "units") if name in array.attrs}
    return {"dims": list(map(str, array.dims)), "dtype": kind, **attrs}
