"""The gauge over a whole tree of activations: lazy, one task a model, layer and step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.names import ATTRS, KIND, LAYER, MODEL, NEIGHBOR, OPERATOR, SAMPLE, STEP

if TYPE_CHECKING:
    from repaudit.gauge.diffusion import DiffusionGauge


def map_tree(gauge: DiffusionGauge, tree: xr.DataTree) -> xr.DataTree:
    """A tree of the same groups with lazy operators ``(step, sample, neighbor)`` in place of activations."""
    if gauge.neighbors is not None or gauge.landmarks is not None:
        raise ValueError(
            "a tree holds dense operators, as those of all steps share their dims; use neighbors=None, landmarks=None"
        )
    groups: dict[str, xr.Dataset] = {}
    left_out: list[str] = []
    for node in tree.subtree:
        model = node.attrs.get(ATTRS, {}).get("name", node.name)
        operators = {}
        for key, array in node.data_vars.items():
            if not {STEP, SAMPLE} <= set(array.dims):
                continue
            if array.ndim == 3 and array.attrs.get(KIND) != OPERATOR:
                operators[key] = operators_of(gauge, array, model)
            else:
                left_out.append(f"{node.path}/{key}")
        if operators:
            groups[node.path] = xr.Dataset(operators, attrs=node.attrs)
    result = xr.DataTree.from_dict(groups)
    result.attrs["left_out"] = left_out
    return result


def operators_of(gauge: DiffusionGauge, activations: xr.DataArray, model: str | None = None) -> xr.DataArray:
    """Lazy operators of one layer ``(step, sample, feature)`` of one model."""
    (feature,) = set(activations.dims) - {STEP, SAMPLE}
    place = {MODEL: model, LAYER: activations.attrs.get(LAYER, activations.name)}
    whole = {STEP: 1, SAMPLE: -1, feature: -1}
    dtype = np.float64 if activations.dtype == np.float64 else np.float32

    def one(samples: NDArray[Any], step: Any) -> NDArray[Any]:
        labelled = xr.DataArray(samples, dims=(SAMPLE, feature), attrs={**place, STEP: int(step)})
        return gauge(labelled).to_numpy()

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
    parameters = {key: value for key, value in vars(gauge).items() if not key.startswith("_")}
    return found.assign_attrs({"long_name": "diffusion operator", "units": "1", **place, **parameters})
