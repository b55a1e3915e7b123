"""Numbers of every audit for the trainer's loggers: how sharp each layer's geometry is, and how far it has moved."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from repaudit.analysis.execution import side_by_side
from repaudit.errors import ActivationError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.distances import operator_distances
from repaudit.results import EFFECTIVE_NEIGHBORS


class GeometryMetrics:
    """Measure every audit for the trainer's loggers: ``metrics=ra.GeometryMetrics()`` of a callback or recorder.

    For each layer ``audit/<layer>/effective_neighbors``, and the calibrated distances of its operator,
    ``audit/<layer>/from_start`` from that of the model's first audit, and ``audit/<layer>/from_last`` from that of the
    audit before: 0 the same, 1 unrelated. Where a training resumes, these are read from its record, unless that keeps
    operators or sketches alone: then the first audit after it counts as the start. Each model has its own. A layer
    without an operator (tokens, fewer samples than the gauge needs, values that are not finite) has no numbers.

    Parameters
    ----------
    gauge : DiffusionGauge, optional
        ``DiffusionGauge()`` by default.

    See Also
    --------
    repaudit.Track : the spread against the other models of a store.

    Examples
    --------
    >>> import torch
    >>> measure = GeometryMetrics(DiffusionGauge(perplexity=3))
    >>> points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    >>> first, second = measure({"top": points}), measure({"top": points * 2})
    >>> sorted(first), second["audit/top/from_start"] < 1e-3
    (['audit/top/effective_neighbors'], True)
    """

    def __init__(self, gauge: DiffusionGauge | None = None) -> None:
        self.gauge = DiffusionGauge() if gauge is None else gauge
        self._first: dict[str, Any] = {}
        self._last: dict[str, Any] = {}

    def of_record(self, recorded: Sequence[Mapping[str, Any]]) -> GeometryMetrics:
        """Return one that goes on from a model's first and last audit, of which there may be none.

        Examples
        --------
        >>> import torch
        >>> points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        >>> resumed = GeometryMetrics(DiffusionGauge(perplexity=3)).of_record([{"top": points}])
        >>> sorted(resumed({"top": points}))[1:]
        ['audit/top/from_last', 'audit/top/from_start']
        """
        made = copy.copy(self)  # also of a subclass
        made._first, made._last = {}, {}
        for activations in recorded:
            made(activations)
        return made

    def __call__(self, activations: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of one audit, by name."""
        with side_by_side(1, own=1) as workplace:  # several threads would wait for those of the training
            found = dict(workplace.run(lambda layer: self._of(layer, activations[layer]), activations))
        return {name: value for layer in activations for name, value in found[layer].items()}

    def _of(self, layer: str, values: Any) -> dict[str, float]:
        try:
            operator = self.gauge(values)
        except ActivationError:
            return {}
        numbers = {EFFECTIVE_NEIGHBORS: float(operator.diagnostics[EFFECTIVE_NEIGHBORS])}
        for name, known in (("from_start", self._first), ("from_last", self._last)):
            if layer in known:
                numbers[name] = float(operator_distances([known[layer], operator], "calibrated")[0, 1])
        self._first.setdefault(layer, operator)
        self._last[layer] = operator
        return {f"audit/{layer}/{name}": value for name, value in numbers.items()}
