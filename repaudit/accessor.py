"""``.repaudit`` on xarray objects: a store's models, layers, steps and operators by their own names.

``import repaudit`` registers the accessors, also for trees opened with xarray alone. torch is imported by the first
operator, not before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import ATTRS, LAYER, MODEL, STEP
from repaudit.results import SUMMARY
from repaudit.store.read import catalog

if TYPE_CHECKING:
    from repaudit.operators.operator import DiffusionOperator


@xr.register_datatree_accessor("repaudit")  # type: ignore[no-untyped-call]
class TreeAccessor:
    """What a store holds, or what an analysis found.

    Examples
    --------
    >>> import repaudit as ra
    >>> tree = ra.open_store("store.zarr")  # doctest: +SKIP
    >>> tree.repaudit.models  # doctest: +SKIP
    ['seed0', 'seed1', 'seed2']
    >>> ra.spread(tree.repaudit.operators("model.norm", step=600)).value  # doctest: +SKIP
    0.06
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    @property
    def models(self) -> list[str]:
        """Names of the models; none where the tree is no store."""
        return catalog.models(self._tree)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the probe set of a store."""
        own = self._tree.attrs.get(ATTRS)
        if not isinstance(own, dict) or "fingerprint" not in own:
            raise AnalysisError(f"expected the root of a store, found a tree without {ATTRS!r} in its attributes")
        return str(own["fingerprint"])

    @property
    def summary(self) -> dict[str, Any]:
        """What an analysis found, as in ``summary.json``."""
        found = self._tree.attrs.get(SUMMARY)
        if not isinstance(found, str):
            raise AnalysisError("expected the results of an analysis, found a tree without a summary in its attributes")
        summary: dict[str, Any] = json.loads(found)
        return summary

    def layers(self, model: str) -> list[str]:
        """Names of a model's layers, in the order in which they were recorded."""
        return catalog.layers(self._tree, model)

    def steps(self, model: str) -> list[int]:
        """Committed steps of a model."""
        return catalog.steps(self._tree, model)

    def activations(self, model: str, layer: str) -> xr.DataArray:
        """Lazy activations (step, sample[, token], feature) of one layer of one model, which its coordinates name."""
        found = catalog.activations(self._tree, model, layer)
        samples = {name: array for name, array in self._tree.coords.items() if name not in found.coords}
        return found.assign_coords({MODEL: model, LAYER: layer, **samples})

    def operators(
        self, layer: str, step: int, *, models: Sequence[str] | None = None, **gauge: Any
    ) -> dict[str, DiffusionOperator]:
        """Diffusion operators of one layer at one step, by model: what ``spread`` and ``DiffusionMerging`` take.

        Parameters
        ----------
        layer
            Name of the layer.
        step
            A committed step. Models that lack it are left out, unless they were named.
        models
            Names of the models; all when None.
        gauge
            Parameters of :class:`repaudit.DiffusionGauge`.

        Raises
        ------
        AnalysisError
            No model has the step, or one that was named lacks it.
        """
        names = self.models if models is None else list(models)
        having = [name for name in names if step in self.steps(name)]
        if not having or (models is not None and having != names):
            lacking = ", ".join(name for name in names if name not in having) or "the store, which has no models"
            raise AnalysisError(f"expected step {step} of layer {layer!r}, not found in {lacking}")
        return {name: self.activations(name, layer).sel({STEP: step}).repaudit.gauge(**gauge) for name in having}


@xr.register_dataarray_accessor("repaudit")  # type: ignore[no-untyped-call]
class ArrayAccessor:
    """What can be made of activations.

    Examples
    --------
    >>> import numpy as np
    >>> points = xr.DataArray(np.random.default_rng(0).normal(size=(20, 3)), dims=("sample", "feature"))
    >>> points.repaudit.gauge(knn=5).n_samples
    20
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def gauge(self, **parameters: Any) -> DiffusionOperator:
        """Diffusion operator of activations (sample, feature).

        Parameters
        ----------
        parameters
            Those of :class:`repaudit.DiffusionGauge`.

        Raises
        ------
        ActivationError
            The array has other dims, or values that are not finite; model, layer and step are named where known.
        """
        from repaudit.gauge.gauge import DiffusionGauge

        return DiffusionGauge(**parameters)(self._array)
