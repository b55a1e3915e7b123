"""``.repaudit`` on trees: a store's models, layers, steps and operators by name, or what came out of an analysis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr

from repaudit.accessor import kinds
from repaudit.accessor.shown import table_of
from repaudit.accessor.tree_plots import TreePlots
from repaudit.errors import AnalysisError
from repaudit.markup import html_table, text_table
from repaudit.names import ATTRS, LAYER, MODEL, OPERATOR, SAMPLE, SHA256, SKETCH, STEP, meant_layer
from repaudit.results import FINGERPRINT, SUMMARY
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step

if TYPE_CHECKING:
    from repaudit.operators.grouped_sketch import GroupedSketch
    from repaudit.operators.operator import DiffusionOperator


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

    def __repr__(self) -> str:
        return text_table(*table_of(self._tree))

    def _repr_html_(self) -> str:
        return html_table(*table_of(self._tree))

    @property
    def models(self) -> list[str]:
        """Names of the models: of a store, sorted; of an analysis, in the order of its results."""
        if kinds.is_results(self._tree):
            return kinds.result_models(self._tree)
        if not kinds.is_store(self._tree):
            raise kinds.neither(self._tree)
        return catalog.models(self._tree)

    @property
    def plot(self) -> TreePlots:
        """Figures of the results of an analysis."""
        return TreePlots(self._tree)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the probe set of a store, or of that which was analysed."""
        found = self._tree.attrs.get(FINGERPRINT) if kinds.is_results(self._tree) else None
        if kinds.is_store(self._tree):
            found = self._tree.attrs[ATTRS][FINGERPRINT]
        if found is None:
            raise kinds.neither(self._tree)
        return str(found)

    @property
    def summary(self) -> dict[str, Any]:
        """Summary of an analysis, as in ``summary.json``."""
        text = self._tree.attrs.get(SUMMARY)
        if not isinstance(text, str):
            raise AnalysisError("expected the results of an analysis, found a tree without a summary in its attributes")
        summary: dict[str, Any] = json.loads(text)
        return summary

    def layers(self, model: str) -> list[str]:
        """Return the names of a model's layers, in the order in which they were recorded, or of those analysed.

        Raises
        ------
        NotInStoreError
            There is no such model.
        """
        if kinds.is_results(self._tree):
            return kinds.result_layers(self._tree, model)
        return catalog.layers(self._tree, model)

    def steps(self, model: str) -> list[int]:
        """Return the committed steps of a model, or those at which it was analysed.

        Raises
        ------
        NotInStoreError
            There is no such model.
        """
        if kinds.is_results(self._tree):
            return kinds.result_steps(self._tree, model)
        return catalog.steps(self._tree, model)

    def facts(self, model: str) -> dict[str, Any]:
        """Return what was recorded of a model of a store: versions, the steps that are missing, metadata of the run.

        Raises
        ------
        NotInStoreError
            The store has no such model.
        """
        return catalog.facts(self._tree, model)

    def activations(self, model: str, layer: str) -> xr.DataArray:
        """Return lazy activations (step, sample[, token], feature) of one layer of one model, with both as coordinates.

        Raises
        ------
        NotInStoreError
            The store has no such model or layer.
        AnalysisError
            The tree holds the results of an analysis.
        """
        if kinds.is_results(self._tree):
            raise kinds.needs_activations(self._tree)
        layer = meant_layer(layer, catalog.layers(self._tree, model))
        activations = catalog.activations(self._tree, model, layer)
        known = {*activations.coords, SHA256}
        columns = self._tree.coords.items() if SAMPLE in activations.dims else ()
        samples = {name: array for name, array in columns if name not in known}
        return activations.assign_coords({MODEL: model, LAYER: layer, **samples})

    def operators(
        self, layer: str, step: int, *, models: Sequence[str] | None = None, **gauge: Any
    ) -> dict[str, DiffusionOperator]:
        """Compute the diffusion operators of one layer at one step, by model: for ``spread`` and ``DiffusionMerging``.

        Models that recorded operators in place of activations (``record="operators"``) give these.

        Parameters
        ----------
        layer
            Name of the layer; ``<layer>@operator`` are the recorded ones of models that keep both.
        step
            A committed step. Models that lack it are left out, unless they are named in ``models``.
        models
            Names of the models; all when None.
        gauge
            Parameters of :class:`repaudit.DiffusionGauge`; of recorded operators, only those that they were made with.

        Returns
        -------
        dict of model name to DiffusionOperator

        Raises
        ------
        AnalysisError
            No model has the step, or a named one lacks it; or recorded operators were made with another gauge; or the
            tree holds the results of an analysis.
        """
        if kinds.is_results(self._tree):
            raise kinds.needs_activations(self._tree)
        return {name: self._operator(name, layer, step, gauge) for name in self._having(layer, step, models)}

    def _operator(self, model: str, layer: str, step: int, gauge: dict[str, Any]) -> DiffusionOperator:
        from repaudit.gauge.gauge import DiffusionGauge
        from repaudit.gauge.recorded import gauge_of, recorded_operator

        layer = layer.removesuffix(f"@{SKETCH}")
        known, suffix = catalog.layers(self._tree, model), f"@{OPERATOR}"
        recorded = meant_layer(layer if layer.endswith(suffix) else layer + suffix, known)
        kept = recorded in known and catalog.holds_operators(catalog.activations(self._tree, model, recorded))
        if not kept or (recorded != layer and meant_layer(layer, known) in known):
            return DiffusionGauge(**gauge)(self.activations(model, layer).sel({STEP: step}))
        values = read_step(self._tree, model, recorded, step)
        if gauge and DiffusionGauge(**gauge) != (made_with := gauge_of(values)):
            raise AnalysisError(
                f"model {model}, layer {recorded}: expected the gauge that made the recorded operators, {made_with}, "
                f"found {gauge}: give none"
            )
        return recorded_operator(values)

    def sketches(self, layer: str, step: int, *, models: Sequence[str] | None = None) -> dict[str, GroupedSketch]:
        """Return the recorded sketches of the operators of one layer at one step, by model: for ``spread``.

        Parameters
        ----------
        layer
            Name of the layer; that of its sketches ends in ``@sketch``.
        step, models
            As for :meth:`operators`.

        Raises
        ------
        NotInStoreError
            A model has no sketches of this layer.
        AnalysisError
            No model has the step, or a named one lacks it; or the tree holds the results of an analysis.
        """
        from repaudit.operators.grouped_sketch import GroupedSketch

        if kinds.is_results(self._tree):
            raise kinds.needs_activations(self._tree)
        suffix = f"@{SKETCH}"
        name = layer.removesuffix(suffix).removesuffix(f"@{OPERATOR}") + suffix
        found = {}
        for model in self._having(layer, step, models):
            values = read_step(self._tree, model, name, step)
            found[model] = GroupedSketch.of_numbers(values.values, values.attrs[SKETCH])
        return found

    def _having(self, layer: str, step: int, models: Sequence[str] | None) -> list[str]:
        """Return the models that have a step, of those asked for, which all must have it."""
        names = self.models if models is None else list(models)
        having = [name for name in names if step in self.steps(name)]
        if not having or (models is not None and having != names):
            lacking = ", ".join(name for name in names if name not in having) or "the store, which has no models"
            known = sorted({one for name in names for one in self.steps(name)})
            hint = f"; recorded are {', '.join(map(str, known))}" if known else ""
            raise AnalysisError(f"expected step {step} of layer {layer!r}, not found in {lacking}{hint}")
        return having
