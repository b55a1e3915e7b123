"""``.repaudit`` on xarray objects: a store's models, layers, steps and operators by name.

``import repaudit`` registers the accessors, also for trees opened with plain xarray. torch is imported with the first
operator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from repaudit.errors import AnalysisError
from repaudit.names import ATTRS, LAYER, MODEL, SHA256, STEP
from repaudit.results import FINGERPRINT, SUMMARY
from repaudit.store.read import catalog

if TYPE_CHECKING:
    from repaudit.operators.operator import DiffusionOperator


@xr.register_datatree_accessor("repaudit")  # type: ignore[no-untyped-call]
class TreeAccessor:
    """What is in a store, or in the results of an analysis.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import numpy as np
    >>> import repaudit as ra
    >>> url = Path(mkdtemp(), "store.zarr")
    >>> probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(24).reshape(12, 2)})
    >>> points = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    >>> for name in ("seed0", "seed1"):
    ...     layers = {"model.norm": ((12, 4), "float32")}
    ...     with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers) as writer:
    ...         _ = writer.append(600, {"model.norm": points})
    >>> tree = ra.open_store(url)
    >>> tree.repaudit.models, tree.repaudit.layers("seed0"), tree.repaudit.steps("seed0")
    (['seed0', 'seed1'], ['model.norm'], [600])
    >>> tree.repaudit.activations("seed0", "model.norm").sizes["sample"]
    12
    >>> ra.spread(tree.repaudit.operators("model.norm", step=600, knn=5)).value
    0.0

    See Also
    --------
    open_store : opens a store as such a tree.
    analyze : returns results as such a tree.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    @property
    def models(self) -> list[str]:
        """Names of the models; empty if the tree is not a store."""
        return catalog.models(self._tree)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the probe set of a store."""
        attributes = self._tree.attrs.get(ATTRS)
        if not isinstance(attributes, dict) or FINGERPRINT not in attributes:
            raise AnalysisError(f"expected the root of a store, found a tree without {ATTRS!r} in its attributes")
        return str(attributes[FINGERPRINT])

    @property
    def summary(self) -> dict[str, Any]:
        """Summary of an analysis, as in ``summary.json``."""
        text = self._tree.attrs.get(SUMMARY)
        if not isinstance(text, str):
            raise AnalysisError("expected the results of an analysis, found a tree without a summary in its attributes")
        summary: dict[str, Any] = json.loads(text)
        return summary

    def layers(self, model: str) -> list[str]:
        """Return the names of a model's layers, in the order in which they were recorded.

        Raises
        ------
        NotInStoreError
            The store has no such model.
        """
        return catalog.layers(self._tree, model)

    def steps(self, model: str) -> list[int]:
        """Return the committed steps of a model.

        Raises
        ------
        NotInStoreError
            The store has no such model.
        """
        return catalog.steps(self._tree, model)

    def activations(self, model: str, layer: str) -> xr.DataArray:
        """Return lazy activations (step, sample[, token], feature) of one layer of one model, with both as coordinates.

        Raises
        ------
        NotInStoreError
            The store has no such model or layer.
        """
        activations = catalog.activations(self._tree, model, layer)
        known = {*activations.coords, SHA256}
        samples = {name: array for name, array in self._tree.coords.items() if name not in known}
        return activations.assign_coords({MODEL: model, LAYER: layer, **samples})

    def operators(
        self, layer: str, step: int, *, models: Sequence[str] | None = None, **gauge: Any
    ) -> dict[str, DiffusionOperator]:
        """Compute the diffusion operators of one layer at one step, by model: for ``spread`` and ``DiffusionMerging``.

        Parameters
        ----------
        layer
            Name of the layer.
        step
            A committed step. Models that lack it are left out, unless they are named in ``models``.
        models
            Names of the models; all when None.
        gauge
            Parameters of :class:`repaudit.DiffusionGauge`.

        Returns
        -------
        dict of model name to DiffusionOperator

        Raises
        ------
        AnalysisError
            No model has the step, or a named one lacks it.
        """
        names = self.models if models is None else list(models)
        having = [name for name in names if step in self.steps(name)]
        if not having or (models is not None and having != names):
            lacking = ", ".join(name for name in names if name not in having) or "the store, which has no models"
            raise AnalysisError(f"expected step {step} of layer {layer!r}, not found in {lacking}")
        return {name: self.activations(name, layer).sel({STEP: step}).repaudit.gauge(**gauge) for name in having}


@xr.register_dataarray_accessor("repaudit")  # type: ignore[no-untyped-call]
class ArrayAccessor:
    """What can be computed from activations.

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
        """Compute the diffusion operator of activations (sample, feature).

        Parameters
        ----------
        parameters
            Parameters of :class:`repaudit.DiffusionGauge`.

        Returns
        -------
        DiffusionOperator

        Raises
        ------
        ActivationError
            The array has other dims, or values that are not finite; the message names model, layer and step if known.
        """
        from repaudit.gauge.gauge import DiffusionGauge

        return DiffusionGauge(**parameters)(self._array)
