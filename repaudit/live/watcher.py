"""A store in use, looked at again and again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repaudit.analysis.folder import nulls_for_nan
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.live.runs import Run, runs
from repaudit.live.spreads import LiveCurve, LiveSpreads
from repaudit.names import matching_models
from repaudit.store.read import catalog
from repaudit.store.read.reader import open_store
from repaudit.store.storage.place import open_storage


@dataclass(frozen=True)
class Look:
    """What a store showed at one moment.

    Attributes
    ----------
    url : str
    runs : tuple of Run, one per model
    curves : tuple of LiveCurve, one per layer that at least two models share at a step
    failed : what could not be computed, by layer and step
    lost : what of the store is read as missing, because it is damaged
    perplexities : the effective neighbours at which layers are compared; more than one where sketches have theirs
    """

    url: str
    runs: tuple[Run, ...]
    curves: tuple[LiveCurve, ...]
    failed: Mapping[tuple[str, int], str]
    lost: tuple[str, ...] = ()
    perplexities: tuple[float, ...] = ()

    @property
    def waiting(self) -> int:
        """How many spreads are not computed yet."""
        return sum(curve.waiting for curve in self.curves)

    @property
    def missing(self) -> dict[tuple[str, int], str]:
        """What could not be computed at all."""
        return {place: why for place, why in self.failed.items() if place not in self.partial}

    @property
    def partial(self) -> dict[tuple[str, int], str]:
        """What was computed without a model that has no operator there."""
        known = {(curve.layer, step) for curve in self.curves for step in curve.steps}
        return {place: why for place, why in self.failed.items() if place in known}

    def plain(self) -> dict[str, Any]:
        """Return everything in types that JSON has; it has no NaN."""
        failed = [{"layer": layer, "step": step, "reason": why} for (layer, step), why in self.failed.items()]
        plain = {
            "url": self.url,
            "models": [asdict(run) for run in self.runs],
            "layers": [asdict(curve) for curve in self.curves],
            "failed": failed,
            "lost": list(self.lost),
            "perplexities": list(self.perplexities),
        }
        found: dict[str, Any] = nulls_for_nan(plain)
        return found


class Watcher:
    """Look at the models in a store: how their recordings stand, and the spread of each layer so far.

    Parameters
    ----------
    url : path or URL of the store
    models, layers : sequence of str, optional
        Names or patterns; everything by default.
    gauge : DiffusionGauge, optional
    storage_options : mapping, optional
        Passed to fsspec.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        models: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        gauge: DiffusionGauge | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.url, self._options = url, storage_options
        self._storage = open_storage(url, storage_options)
        self._spreads = LiveSpreads(models=models, layers=layers, gauge=gauge)

    def look(self, seconds: float | None = None) -> Look:
        """Open the store as it is now, and compute what is new, for some seconds at most.

        Raises
        ------
        StoreError
            There is no store, or it is damaged.
        """
        tree = open_store(self.url, self._options)
        every = runs(tree, self._storage)
        curves = self._spreads.update(tree, seconds, [run.model for run in every if run.state == "running"])
        lost, failed = tuple(catalog.lost(tree)), dict(self._spreads.failed)
        scales, asked = tuple(self._spreads.perplexities), self._spreads.models
        names = [run.model for run in every]
        chosen = {name for pattern in asked or names for name in matching_models(pattern, names)}
        shown = tuple(run for run in every if run.model in chosen)
        return Look(os.fspath(self.url), shown, tuple(curves), failed, lost, scales)
