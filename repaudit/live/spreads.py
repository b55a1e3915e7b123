"""The spread of models in training: what is new is computed, everything else is remembered."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from repaudit.analysis.execution import side_by_side
from repaudit.analysis.recorded_gauge import recorded_gauge, recorded_layers
from repaudit.analysis.selection import Selection, select
from repaudit.analysis.spreads import curve_band, spread_arrays
from repaudit.errors import ActivationError, AnalysisError, CorruptStoreError, OperatorError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.live.stored_operators import stored_operator
from repaudit.measure.curve import of_most_models
from repaudit.measure.phases import verdict
from repaudit.measure.settling import UNSETTLED, settled
from repaudit.measure.spread import NO_STRUCTURE_LEFT
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step, step_checksums
from repaudit.store.read.stand_ins import stand_ins_by_layer

MOST_KEPT: Final = 64
"""Operators that are kept for models which have not come to their step."""
_PRESENT: Final = "present"
"""With what is known of a step: the models that are compared there."""

Content = dict[str, int]
"""By model: the checksum of its activations."""


@dataclass(frozen=True)
class LiveCurve:
    """The spread of one layer so far, at the steps that at least two models share.

    Attributes
    ----------
    layer : str
    steps : tuple of int
    value, low, high : tuple of float, one per step
    verdict : str
        As in an analysis: it may change with every step. While earlier steps are being computed it is that of the last
        whole curve, and ``"computing"`` where there was none.
    settled : int or None
        Step from which the spread has stayed within its last interval.
    models : int
        Models at the last step.
    waiting : int
        Steps whose spread is not computed yet.
    judged : int or None
        Last of the steps that the verdict is of: those that most models share.
    now : int or None
        Last step of a model that is running, or where none is, the last one that the verdict is of.
    present : tuple of int, one per step
        Models that are compared.
    """

    layer: str
    steps: tuple[int, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    verdict: str
    settled: int | None
    models: int
    waiting: int
    judged: int | None = None
    now: int | None = None
    present: tuple[int, ...] = ()

    @property
    def place(self) -> int:
        """Index of the step that is now."""
        return self.steps.index(self.now) if self.now in self.steps else len(self.steps) - 1


class LiveSpreads:
    """Follow the spread of the models of a store, layer by layer.

    Parameters
    ----------
    models, layers : sequence of str, optional
        What to follow, names or patterns; everything by default.
    gauge : DiffusionGauge, optional
        ``DiffusionGauge()`` by default; where a layer has sketches, it is theirs.
    seed : int
        Of the resamples.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import repaudit as ra
    >>> url = Path(mkdtemp(), "store.zarr")
    >>> probe_set = ra.ProbeSet.from_tensors({"input_ids": np.arange(24).reshape(12, 2)})
    >>> points = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    >>> for name in ("seed0", "seed1"):
    ...     layers = {"model.norm": ((12, 4), "float32")}
    ...     with ra.TrajectoryWriter(url, model_name=name, probe_set=probe_set, layers=layers) as writer:
    ...         _ = writer.append(600, {"model.norm": points})
    >>> (curve,) = LiveSpreads(gauge=DiffusionGauge(perplexity=3)).update(ra.open_store(url))
    >>> curve.steps, curve.value
    ((600,), (0.0,))
    """

    def __init__(
        self,
        *,
        models: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        gauge: DiffusionGauge | None = None,
        seed: int = 0,
    ) -> None:
        self.models, self.layers, self.seed = models, layers, seed
        self.gauge, self._is_asked = DiffusionGauge() if gauge is None else gauge, gauge is not None
        self._found: dict[str, dict[int, tuple[Content, dict[str, Any]]]] = {}
        self._operators: dict[tuple[str, str, int, int], Any] = {}
        self._said: dict[str, tuple[str, int | None, int | None]] = {}
        self.perplexities: list[float] = []
        """The scales at which the layers are compared: the gauge's, or those of recorded operators and sketches."""
        self.failed: dict[tuple[str, int], str] = {}
        """Why the spread of a layer at a step could not be computed."""

    def update(self, tree: xr.DataTree, seconds: float | None = None, running: Collection[str] = ()) -> list[LiveCurve]:
        """Return the curve of every layer that models share, having computed what is new, the latest steps first.

        Parameters
        ----------
        tree : DataTree
            The store as :func:`repaudit.open_store` has just opened it.
        seconds : float, optional
            Stop computing after this time; the rest is done by the next calls.
        running : collection of str, optional
            Models that are being trained.

        Raises
        ------
        AnalysisError
            The store has no such models or layers, or none that can be compared.
        """
        if not any(catalog.steps(tree, model) for model in catalog.models(tree)):  # nothing to compare yet
            return []
        tree = stand_ins_by_layer(tree)
        selection = select(tree, self.models, self.layers)
        recorded = recorded_layers(tree, selection)
        gauges = {layer: recorded_gauge(tree, {layer: some}) for layer, some in recorded.items()}
        self._refuse_other(gauges)
        used = {getattr(gauges.get(layer, self.gauge), "perplexity", None) for layer in selection.layers}
        self.perplexities = sorted(one for one in used if one is not None)
        contents = {layer: _contents(tree, selection, layer) for layer in selection.layers}
        due = [
            (step, layer)
            for layer, steps in contents.items()
            for step, content in steps.items()
            if self._found.get(layer, {}).get(step, ({}, {}))[0] != content
        ]

        def compute(one: tuple[int, str]) -> None:
            step, layer = one
            gauge = gauges.get(layer, self.gauge)
            self._compute(tree, layer, step, contents[layer][step], len(selection.models), gauge)

        if due:
            with side_by_side(1, own=1) as workplace:  # one thread: the training needs the others
                for _ in workplace.run(compute, _until(sorted(due, key=lambda one: -one[0]), seconds)):
                    pass
        self._forget(contents, selection)
        curves = [(self._curve(layer, steps, {*running}), steps) for layer, steps in contents.items()]
        return [curve for curve, shared in curves if shared]

    def _refuse_other(self, recorded: Mapping[str, DiffusionGauge]) -> None:
        """Refuse a perplexity that is asked for where operators were recorded at another one."""
        for layer, gauge in recorded.items() if self._is_asked else ():
            if gauge.perplexity != self.gauge.perplexity:
                raise AnalysisError(
                    f"layer {layer}: expected the perplexity that its operators or sketches were recorded with, "
                    f"{gauge.perplexity}, found {self.gauge.perplexity}: leave it out (--perplexity), or the layer"
                )

    def _forget(self, contents: Mapping[str, Mapping[int, Content]], selection: Selection) -> None:
        """Forget what failed at steps that are no longer there, and operators that no model is to be compared with."""
        for layer, step in [place for place in self.failed if place[1] not in contents.get(place[0], {})]:
            del self.failed[layer, step]
        last = {model: max(steps, default=-1) for model, steps in selection.steps.items()}
        for key in [*self._operators]:
            _, layer, step, _ = key
            having = [model for model in selection.models if layer in selection.layers_of.get(model, ())]
            content = contents.get(layer, {}).get(step, {})
            if all(model in content or last[model] >= step for model in having):
                del self._operators[key]
        for key in [*self._operators][: max(0, len(self._operators) - MOST_KEPT)]:
            del self._operators[key]  # who comes so late is compared with what is computed once more

    def _compute(
        self, tree: xr.DataTree, layer: str, step: int, content: Content, every: int, gauge: DiffusionGauge
    ) -> None:
        found = self._found.setdefault(layer, {})
        self.failed.pop((layer, step), None)
        operators = {}
        for model, crc in content.items():
            try:
                operators[model] = self._operator(tree, (model, layer, step, crc), gauge)
            except (ActivationError, CorruptStoreError, OperatorError) as error:  # as in an analysis, without it
                self.failed[layer, step] = f"without {model}: {error}"
        found[step] = content, {"value": np.nan}
        if len(operators) > 1:
            arrays = spread_arrays(operators, self.seed)
            found[step] = content, {**arrays, _PRESENT: list(operators)}
            if not np.isfinite(arrays["value"]):
                self.failed[layer, step] = NO_STRUCTURE_LEFT
        if len(content) == every:  # nobody else is to be compared with these
            for model, crc in content.items():
                self._operators.pop((model, layer, step, crc), None)

    def _operator(self, tree: xr.DataTree, key: tuple[str, str, int, int], gauge: DiffusionGauge) -> Any:
        if key not in self._operators:
            self._operators[key] = stored_operator(read_step(tree, *key), gauge)
        return self._operators[key]

    def _curve(self, layer: str, contents: Mapping[int, Content], running: set[str]) -> LiveCurve:
        found = self._found.get(layer, {})
        for step in [step for step in found if step not in contents]:  # a record that was truncated
            del found[step]
        known = {step: found[step] for step in sorted(found) if np.isfinite(found[step][1]["value"])}
        arrays = [one for _, one in known.values()]
        present = [one[_PRESENT] for one in arrays]
        steps = tuple(known)
        value, low, high = (tuple(float(one[name]) for one in arrays) for name in ("value", "low", "high"))
        waiting = sum(1 for step, content in contents.items() if found.get(step, ({}, {}))[0] != content)
        if not waiting:
            models = sorted({model for models in present for model in models})
            self._said[layer] = _verdict(steps, value, low, high, curve_band(arrays, present, models).change, present)
        said, since, judged = self._said.get(layer, ("computing", None, None))
        of_running = [step for step, models in zip(steps, present, strict=True) if running.intersection(models)]
        now, counts = of_running[-1] if of_running else judged, tuple(map(len, present))
        last = counts[-1] if counts else 0
        return LiveCurve(layer, steps, value, low, high, said, since, last, waiting, judged, now, counts)


def _verdict(
    steps: Sequence[int],
    value: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    margins: NDArray[np.float64],
    present: Sequence[Sequence[str]],
) -> tuple[str, int | None, int | None]:
    """Return the verdict of a curve, the step from which it has settled, and the last one that both are of."""
    here = of_most_models([len(models) for models in present])
    at, level, below, above = (np.array(numbers)[here] for numbers in (steps, value, low, high))
    apart = margins[np.ix_(here, here)]
    said = verdict(at, level, below, above, apart)
    since = None if said in UNSETTLED else settled(at, level, below, above, apart)
    return said, since, int(at[-1]) if len(at) else None


def _until(items: Sequence[tuple[int, str]], seconds: float | None) -> Iterator[tuple[int, str]]:
    """Iterate over items for some seconds, over one at least."""
    started = time.monotonic()
    for index, item in enumerate(items):
        if seconds is not None and index and time.monotonic() - started > seconds:
            return
        yield item


def _contents(tree: xr.DataTree, selection: Selection, layer: str) -> dict[int, Content]:
    """Return the steps of a layer that at least two models have, with each one's checksum."""
    having = [model for model in selection.models if layer in selection.layers_of[model]]
    sums = {model: step_checksums(tree, model, layer) for model in having}
    steps = sorted({step for known in sums.values() for step in known})
    contents = {step: {model: known[step] for model, known in sums.items() if step in known} for step in steps}
    return {step: content for step, content in contents.items() if len(content) > 1}
