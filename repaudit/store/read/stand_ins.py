"""Operators and sketches in the place of activations, under the names of the layers that they were computed of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from repaudit.names import KIND, LAYER, MODELS, OPERATOR, OPERATOR_OF, SKETCH, SKETCH_OF


def holds_sketches(array: xr.DataArray) -> bool:
    """Return whether a layer holds sketches of operators (step, number) in the place of activations.

    Examples
    --------
    >>> holds_sketches(xr.DataArray(0.0, attrs={"kind": "sketch"}))
    True
    """
    return bool(array.attrs.get(KIND) == SKETCH)


def stands_in(array: xr.DataArray) -> bool:
    """Return whether a layer holds what was computed of activations, and no longer the name that it was recorded by.

    Examples
    --------
    >>> stands_in(xr.DataArray(0.0, attrs={"kind": "operator", "operator_of": "norm", "layer": "norm"}))
    True
    """
    of = computed_of(array.attrs)
    return bool(of) and array.attrs.get(LAYER) != f"{of}@{array.attrs[KIND]}"


def stand_ins_by_layer(tree: xr.DataTree) -> xr.DataTree:
    """Give, in an opened store, every layer of operators or sketches the name of its layer, unless the model has that.

    So a layer has one name over models that keep its activations and models that keep what was computed of them. The
    tree is changed, and returned.
    """
    for node in tree[MODELS].children.values() if MODELS in tree.children else ():
        dataset = node.to_dataset(inherit=False)
        names = _names(dataset)
        if not names:
            continue
        for array in dataset.data_vars.values():
            array.attrs[LAYER] = names.get(str(array.attrs.get(LAYER)), array.attrs.get(LAYER))
        layers = np.array([names.get(str(name), str(name)) for name in dataset[LAYER].values], dtype=object)
        node.dataset = dataset.assign_coords({LAYER: (LAYER, layers, dataset[LAYER].attrs)})
    return tree


def _names(dataset: xr.Dataset) -> dict[str, str]:
    """Return the name of the layer of everything computed of one, where the model has no layer of that name."""
    taken = {str(array.attrs.get(LAYER)) for array in dataset.data_vars.values() if not computed_of(array.attrs)}
    names = {}
    for array in dataset.data_vars.values():
        of = computed_of(array.attrs)
        if of and of not in taken:
            names[str(array.attrs[LAYER])] = of
            taken.add(of)
    return names


def computed_of(attributes: Mapping[str, Any]) -> str:
    """Return the name of the layer that operators or sketches were computed of; an empty one for activations.

    Examples
    --------
    >>> computed_of({"kind": "operator", "operator_of": "norm"})
    'norm'
    """
    kind = attributes.get(KIND)
    return (
        str(attributes.get({SKETCH: SKETCH_OF, OPERATOR: OPERATOR_OF}[kind], "")) if kind in (SKETCH, OPERATOR) else ""
    )
