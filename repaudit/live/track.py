"""The spread against other models while a model trains, in a thread of its own."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, Final

from repaudit.analysis.execution import side_by_side
from repaudit.errors import ActivationError, AuditWarning
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.live.stored_operators import stored_operator
from repaudit.measure.spread import Spread, spread
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step
from repaudit.store.read.reader import open_store
from repaudit.store.read.stand_ins import stand_ins_by_layer
from repaudit.store.storage.place import location, open_storage

WAITING: Final = 2
"""Audits that may wait for their spread; of more, the oldest ones are left out."""
_END: Final = None


class Track:
    """Compare a model in training with the other models of a store: ``track=ra.Track("runs.zarr")`` of a callback.

    After every audit the spread of this model and of all others that have the same step, layer by layer, is computed
    in a thread of its own: the training does not wait for it. The trainer's loggers get it as ``spread/<layer>`` at the
    step at which it is known, or at the end; audits that come faster than their spreads are left out and counted.

    Parameters
    ----------
    store : path or URL
        Of models on the same samples; may be the one that is being written.
    gauge : DiffusionGauge, optional
        ``DiffusionGauge()`` by default; that of their sketches, where the other models keep these.
    storage_options : mapping, optional
        Passed to fsspec.

    Attributes
    ----------
    latest : dict of layer to (step, Spread)
        The last spread of each layer that is known.
    left_out : int
        Audits without a spread, since others were still being computed.

    See Also
    --------
    repaudit.GeometryMetrics : numbers of one model alone.

    Examples
    --------
    >>> track = Track("runs.zarr")
    >>> track.latest
    {}
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        gauge: DiffusionGauge | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(store, str | os.PathLike):
            raise TypeError(f"store: expected a path or URL, found {type(store).__name__}")
        self.store, self._options = store, storage_options
        self.gauge = DiffusionGauge() if gauge is None else gauge
        self.latest: dict[str, tuple[int, Spread]] = {}
        self.left_out, self._told = 0, False
        self._new: list[tuple[int, dict[str, float]]] = []
        self._failed: list[str] = []
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: the thread stays in its process."""
        gone = ("_queue", "_thread", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._queue: Queue[Any] = Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def prepare(self, writing: str | os.PathLike[str]) -> None:
        """Try before a training, which is written to a store, whether the one to compare with is there.

        Raises
        ------
        StoreError
            It is not there, or cannot be read, and is not the one that is about to be written.
        """
        here, there = (open_storage(place, self._options) for place in (writing, self.store))
        if location(here) != location(there):
            open_store(self.store, self._options)

    def __repr__(self) -> str:
        return f"Track({os.fspath(self.store)!r})"

    def audited(self, model: str, step: int, activations: Mapping[str, Any]) -> None:
        """Take an audit to compare; return at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="repaudit-track", daemon=True)
            self._thread.start()
        while True:
            try:
                self._queue.put_nowait((model, step, activations))
                return
            except Full:
                try:
                    self._queue.get_nowait()
                    self.left_out += 1
                except Empty:
                    continue

    def news(self) -> list[tuple[int, dict[str, float]]]:
        """Return the spreads that have become known since the last call: step, and numbers by name.

        What failed since then is warned of.
        """
        with self._lock:
            news, self._new = self._new, []
            failed, self._failed = self._failed, []
        for reason in failed:
            warnings.warn(reason, AuditWarning, stacklevel=2)
        return news

    def close(self) -> None:
        """Wait until all spreads are known, and end the thread; another audit starts it again."""
        if self._thread is not None:
            while self._thread.is_alive():
                with suppress(Full):
                    self._queue.put(_END, timeout=0.1)
                    break
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        try:
            while (audit := self._queue.get()) is not _END:
                with side_by_side(1, own=1) as workplace:
                    for _ in workplace.run(self._compare, [audit]):
                        pass
        except RuntimeError as error:  # no thread can be had: the interpreter ends, or the machine has none left
            with self._lock:
                self._failed.append(f"track: no further spreads: {error}")

    def _compare(self, audit: tuple[str, int, Mapping[str, Any]]) -> None:
        model, step, activations = audit
        try:
            tree = stand_ins_by_layer(open_store(self.store, self._options))
            others = [name for name in catalog.models(tree) if name != model and step in catalog.steps(tree, name)]
            numbers, compared = {}, not others
            for layer, values in activations.items():
                having = [name for name in others if layer in catalog.layers(tree, name)]
                if not having:
                    continue
                compared = True
                found = self._spread(tree, model, step, layer, values, having)
                if found is not None:
                    self.latest[layer] = step, found
                    numbers[f"spread/{layer}"] = found.value
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            with self._lock:
                self._failed.append(f"track: no spread at step {step} of model {model!r}: {error}")
            return
        if not compared and not self._told:  # as of records of other layers
            self._told = True
            with self._lock:
                self._failed.append(
                    f"track: nothing to compare model {model!r} with: {', '.join(others)} have step {step}, but none "
                    f"of the layers {', '.join(activations)} with activations, operators or sketches"
                )
        if numbers:
            with self._lock:
                self._new.append((step, {**numbers, "spread/at_step": float(step)}))

    def _spread(self, tree: Any, model: str, step: int, layer: str, values: Any, others: list[str]) -> Spread | None:
        """Return the spread of those that have an operator: not of tokens, too few samples, or values not finite."""
        operators = {}
        for name in (model, *others):
            with suppress(ActivationError):
                stored = None if name == model else read_step(tree, name, layer, step)
                operators[name] = self.gauge(values) if stored is None else stored_operator(stored, self.gauge)
        return spread(operators) if model in operators and len(operators) > 1 else None
