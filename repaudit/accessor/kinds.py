"""What a tree is: a store, the results of an analysis, or neither; the models, layers and steps of results."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from repaudit.errors import AnalysisError, NotInStoreError
from repaudit.names import ATTRS, LAYER, MODEL, STEP
from repaudit.results import CONTRACT, DIAGNOSTICS, FINGERPRINT, PARAMETERS, SUMMARY, names_of

_WITH_MODELS = (DIAGNOSTICS, *(name for name, group in CONTRACT.items() if MODEL in group.coords))


def is_store(tree: xr.DataTree) -> bool:
    """Return whether this is the root of a store."""
    facts = tree.attrs.get(ATTRS)
    return isinstance(facts, dict) and FINGERPRINT in facts


def is_results(tree: xr.DataTree) -> bool:
    """Return whether this is the root of the results of an analysis.

    Examples
    --------
    >>> is_results(xr.DataTree(xr.Dataset(attrs={"summary": "{}"}))), is_results(xr.DataTree())
    (True, False)
    """
    return isinstance(tree.attrs.get(SUMMARY), str) or (not is_store(tree) and not CONTRACT.keys().isdisjoint(tree))


def neither(tree: xr.DataTree) -> AnalysisError:
    """Return the error for a tree that is not the root of a store or of results."""
    return AnalysisError(
        f"expected the root of a store (ra.open_store(url)) or the results of an analysis (ra.analyze(url)), "
        f"found the node {tree.path!r} with {', '.join(map(repr, tree)) or 'nothing in it'}"
    )


def needs_activations(tree: xr.DataTree) -> AnalysisError:
    """Return the error for results where activations are asked for; it names the store that they are of."""
    parameters = json.loads(tree.attrs.get(PARAMETERS, "{}"))
    url = parameters.get("url", "store.zarr")
    return AnalysisError(f"expected a store, found the results of an analysis, without activations: open {url!r}")


def result_models(results: xr.DataTree) -> list[str]:
    """Return the models of an analysis, in the order of its results."""
    for name in _WITH_MODELS:
        if name in results.children and (names := names_of(results[name].to_dataset(), MODEL)):
            return names
    return []


def result_layers(results: xr.DataTree, model: str) -> list[str]:
    """Return the layers of which an analysis has an operator of this model."""
    known = _known(results, model)
    return [str(name) for name in known[LAYER].values[known.any(STEP).values]]


def result_steps(results: xr.DataTree, model: str) -> list[int]:
    """Return the steps at which an analysis has an operator of this model."""
    known = _known(results, model)
    return [int(step) for step in known[STEP].values[known.any(LAYER).values]]


def _known(results: xr.DataTree, model: str) -> xr.DataArray:
    """Return where, on (layer, step), any diagnostic of the model's operators is known."""
    models = result_models(results)
    if model not in models:
        raise NotInStoreError(f"the results have no model {model!r}: they have {', '.join(models) or 'none'}")
    diagnostics = results[DIAGNOSTICS].to_dataset()
    floats = [array for array in diagnostics.data_vars.values() if np.issubdtype(array.dtype, np.floating)]
    counts: Any = sum(array.notnull() for array in floats)
    of_model = counts.isel({MODEL: models.index(model)}) > 0
    known: xr.DataArray = of_model.any([dim for dim in of_model.dims if dim not in (LAYER, STEP)])
    return known.transpose(LAYER, STEP)
