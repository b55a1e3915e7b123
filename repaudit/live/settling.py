"""Whether a layer's geometry has settled while its model still trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from repaudit.analysis.execution import side_by_side
from repaudit.errors import ActivationError
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.measure.band import band
from repaudit.measure.settling import UNINFORMATIVE, settled
from repaudit.measure.spread import spread
from repaudit.names import matching_layers


class SettlingLayers:
    """Tell which layers have settled: whose last operators are those that an analysis calls settled.

    The curve is that of the squared calibrated distances from the present operator to those of the last ``patience``
    audits; :func:`repaudit.measure.settling.settled` judges it, with margins that hold over the whole curve. A layer
    has settled when it rests: none of them is farther than 0.01, or significantly away. Or when it wanders about one
    place, as at a constant learning rate: it is significantly nearer to the last audit than 0.5, and not significantly
    farther from those before. Only so many operators are kept.

    Parameters
    ----------
    layers : sequence of str, optional
        Names or patterns; all that are recorded by default.
    patience : int
        Audits, one at least.
    gauge : DiffusionGauge, optional

    Examples
    --------
    >>> import torch
    >>> layers = SettlingLayers(patience=2, gauge=DiffusionGauge(perplexity=3))
    >>> points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    >>> [layers.audited(step, {"top": points}) for step in (0, 10, 20)]
    [[], [], ['top']]
    """

    def __init__(
        self,
        layers: Sequence[str] | str | None = None,
        patience: int = 3,
        gauge: DiffusionGauge | None = None,
    ) -> None:
        number: Any = patience
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise ValueError(f"patience: expected a number of audits, 1 at least, found {patience!r}")
        if isinstance(layers, Real):
            raise TypeError(
                f"layers: expected names or patterns of layers, found {layers!r}: is it patience={layers!r}?"
            )
        self.patterns = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
        if not all(isinstance(one, str) for one in self.patterns or ()):
            raise TypeError(f"layers: expected names or patterns of layers, found {self.patterns!r}")
        self.patience = int(patience)
        self.gauge = DiffusionGauge() if gauge is None else gauge
        self.since: dict[str, int] = {}
        """Layers that have settled, each with the step from which it has stayed."""
        self._last: dict[str, deque[tuple[int, Any]]] = {}

    def audited(self, step: int, activations: Mapping[str, Any]) -> list[str]:
        """Take the activations of one more audit, and return the layers that have settled with it.

        Raises
        ------
        ValueError
            No layer is recorded under one of the names.
        """
        names = self.watched(activations)
        with side_by_side(1, own=1) as workplace:  # several threads would wait for those of the training
            now = dict(workplace.run(lambda name: self._first_settled(name, step, activations[name]), names))
        self.since = {name: self.since.get(name, now[name]) for name in names if now[name] is not None}
        return [name for name in names if now[name] is not None]

    def watched(self, names: Mapping[str, Any]) -> list[str]:
        """Return the layers to watch of those that are recorded."""
        if self.patterns is None:
            return list(names)
        meant = {pattern: matching_layers(pattern, names) for pattern in self.patterns}
        unknown = [pattern for pattern, some in meant.items() if not some]
        if unknown:
            raise ValueError(f"layers: {', '.join(unknown)} is not recorded; recorded are {', '.join(names)}")
        chosen = {name for some in meant.values() for name in some}
        return [name for name in names if name in chosen]

    def _first_settled(self, layer: str, step: int, values: Any) -> Any:
        """Return the step from which a layer has stayed, if that is over the whole of what is kept; else None."""
        kept = self._last.setdefault(layer, deque(maxlen=self.patience + 1))
        try:
            kept.append((step, self.gauge(values)))
        except ActivationError:
            kept.clear()
            return None
        if len(kept) <= self.patience:
            return None
        steps, operators = [known for known, _ in kept], [operator for _, operator in kept]
        apart = [spread({"then": operator, "end": operators[-1]}) for operator in operators]
        value = np.array([one.value for one in apart])
        margins = band(np.array([one.halves for one in apart]))
        change = margins.change
        curve = (value, value - margins.level, value + margins.level, change)
        rests = settled(steps, *curve)
        before = value[:-1], curve[1][:-1], curve[2][:-1], change[:-1, :-1]
        wanders = settled(steps[:-1], *before) if before[2][-1] <= UNINFORMATIVE else None
        return steps[0] if steps[0] in (rests, wanders) else None
