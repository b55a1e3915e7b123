"""The gauge over a whole tree of activations: lazy, one task a model, layer and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.flat import flat
from repaudit.names import ATTRS, KIND, LAYER, MODEL, NEIGHBOR, NUMBER, OPERATOR, SAMPLE, SKETCH, STEP

Matrix: TypeAlias = Callable[[xr.DataArray], NDArray[Any]]
"""From labelled activations ``(sample, feature)`` to the matrix of their operator."""


def map_tree(matrix_of: Matrix, parameters: Mapping[str, Any], tree: xr.DataTree) -> xr.DataTree:
    """Return a tree of the same groups with lazy operators ``(step, sample, neighbor)`` in place of activations."""
    groups: dict[str, xr.Dataset] = {}
    left_out: list[str] = []
    for node in tree.subtree:
        model = node.attrs.get(MODEL) or _recorded_name(node)
        operators = {}
        for key, array in node.data_vars.items():
            if STEP not in array.dims or not {SAMPLE, NUMBER} & set(array.dims):
                continue
            if array.ndim == 3 and array.attrs.get(KIND) not in {OPERATOR, SKETCH}:
                operators[key] = operators_of(matrix_of, parameters, array, model)
            else:
                left_out.append(f"{node.path}/{key}")
        if operators:
            groups[node.path] = xr.Dataset(operators, attrs=node.attrs)
    result = xr.DataTree.from_dict(groups)
    result.attrs["left_out"] = left_out
    return result


def operators_of(
    matrix_of: Matrix, parameters: Mapping[str, Any], activations: xr.DataArray, model: str | None = None
) -> xr.DataArray:
    """Return the lazy operators of one layer ``(step, sample, feature)`` of one model."""
    (feature,) = set(activations.dims) - {STEP, SAMPLE}
    place = {MODEL: model, LAYER: activations.attrs.get(LAYER, activations.name)}
    whole = {STEP: 1, SAMPLE: -1, feature: -1}
    dtype = np.float64 if activations.dtype == np.float64 else np.float32

    def one(samples: NDArray[Any], step: Any) -> NDArray[Any]:
        labelled = xr.DataArray(samples, dims=(SAMPLE, feature), attrs={**place, STEP: int(step)})
        return matrix_of(labelled)

    steps = activations[STEP].reset_coords(drop=True)
    plain = activations.reset_coords(drop=True).chunk(whole)
    found: xr.DataArray = xr.apply_ufunc(
        one,
        plain,
        xr.DataArray(steps.values, dims=(STEP,)).chunk({STEP: 1}),
        input_core_dims=[[SAMPLE, feature], []],
        output_core_dims=[[SAMPLE, NEIGHBOR]],
        dask="parallelized",
        vectorize=True,
        output_dtypes=[dtype],
        dask_gufunc_kwargs={"output_sizes": {NEIGHBOR: activations.sizes[SAMPLE]}},
    )
    if SAMPLE in activations.coords:
        found = found.assign_coords({NEIGHBOR: (NEIGHBOR, activations[SAMPLE].values)})
    return found.assign_attrs(flat({"long_name": "diffusion operator", "units": "1", **place, **parameters}))


def _recorded_name(node: xr.DataTree) -> Any:
    """Return the name in the facts that plain xarray gives as a dict; else that of the group."""
    facts = node.attrs.get(ATTRS)
    return facts.get("name", node.name) if isinstance(facts, dict) else node.name
