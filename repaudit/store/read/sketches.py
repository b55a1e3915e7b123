"""Sketches of operators under the names of the layers that the operators were computed of."""

from __future__ import annotations

import numpy as np
import xarray as xr

from repaudit.names import KIND, LAYER, MODELS, SKETCH, SKETCH_OF


def holds_sketches(array: xr.DataArray) -> bool:
    """Return whether a layer holds sketches of operators (step, number) in the place of activations.

    Examples
    --------
    >>> holds_sketches(xr.DataArray(0.0, attrs={"kind": "sketch"}))
    True
    """
    return bool(array.attrs.get(KIND) == SKETCH)


def sketches_by_layer(tree: xr.DataTree) -> xr.DataTree:
    """Give, in an opened store, every layer of sketches the name of its layer, unless the model has that itself.

    So a layer has one name over models that keep its activations and models that keep sketches. The tree is changed,
    and returned.
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
    """Return the name of the layer of every layer of sketches, where the model has no layer of that name."""
    arrays = dataset.data_vars.values()
    own = {str(array.attrs.get(LAYER)) for array in arrays if not holds_sketches(array)}
    return {
        str(array.attrs[LAYER]): str(array.attrs[SKETCH_OF])
        for array in arrays
        if holds_sketches(array) and array.attrs[SKETCH_OF] not in own
    }
