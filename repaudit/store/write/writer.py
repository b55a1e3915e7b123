"""The trajectory writer: takes steps from the training thread and commits them from its own."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

from repaudit.errors import LayoutError, StoreWarning, WriterClosedError
from repaudit.interrupts import Shield
from repaudit.names import EPOCH, LOSS, STEP, TRIGGER, WALL_TIME
from repaudit.store.format.encoding import CodecName, checksum
from repaudit.store.format.keys import check_name
from repaudit.store.format.layer_layout import lay_out_layers
from repaudit.store.format.layout import INPUTS_FINGERPRINT, ProbeSetLike
from repaudit.store.format.values import number, point_in_time, step_before, step_number, stored_values, text
from repaudit.store.storage.place import open_storage
from repaudit.store.storage.storage import Storage
from repaudit.store.write.checks import check_gap, check_layers, check_order
from repaudit.store.write.commit import IfExists, ModelRecord
from repaudit.store.write.retrying import OnStoreError
from repaudit.store.write.root import ensure_root
from repaudit.store.write.shutdown import forget, watch
from repaudit.store.write.waiting import SLICE, has_ended, in_slices, is_worked_off, offered
from repaudit.store.write.writer_thread import (
    Queued,
    QueuedGap,
    QueuedStep,
    QueuedTrigger,
    QueuedTruncation,
    WriterThread,
)


class TrajectoryWriter:
    """Append a model's activations, step by step, to a trajectory store.

    `append` returns as soon as the step is queued; a background thread writes the chunks and then makes all layers
    of the step visible at once, by one atomic put of the model's ``zarr.json``. Readers, plain
    ``xarray.open_datatree`` included, only see committed steps, also after a crash. Several threads may share a
    writer; their steps must increase in the order in which they are appended.

    Parameters
    ----------
    store : path, URL or Storage
        Where the store is, or where to create it.
    model_name : str
        The model's name in the store; one writer per model at a time.
    probe_set : ProbeSetLike
        The inputs that were forwarded. A store holds one sample set; models may read it in encodings of their own.
    layers : mapping
        Layer name to ``((sample[, token], feature), dtype)`` of one step.
    durable : bool
        Whether each commit is forced to the device before it counts.
    if_exists : {"resume", "error", "replace"}
        What to do with a model that is already in the store.
    truncate_after : int, optional
        First drop all committed steps beyond this one: needed by a run that resumes from an older checkpoint.
    force : bool
        Take the model over from another writer that is known to be dead.
    codec : {"auto", "raw", "compact", "lossy"}
        How chunks are encoded, see :class:`repaudit.store.format.encoding.Codec`.
    keepbits : int, optional
        Mantissa bits kept by ``lossy`` (default 10).
    layer_attrs, model_attrs : mapping, optional
        More attributes of the layers and of the model.
    on_store_error : {"raise", "warn"}
        What to do when a step cannot be stored after several attempts: raise at the next call, or warn, record the
        gap and go on.
    storage_options : mapping, optional
        Passed to fsspec.

    Raises
    ------
    LeaseError
        If another writer holds the model.
    FingerprintError
        If the store is about other samples, or the model was recorded with other inputs.
    LayoutError
        If layers or options are invalid, or differ from those of the model in the store.
    ModelExistsError
        If the model is in the store and ``if_exists="error"``.
    NotAStoreError, UnknownVersionError
        If the path or URL holds something else.

    See Also
    --------
    repaudit.Recorder : Takes the activations from a model and writes them.
    repaudit.open_store : Reads what was written.

    Examples
    --------
    >>> import numpy as np
    >>> from repaudit.store.read.stored_probe_set import StoredProbeSet
    >>> probe_set = StoredProbeSet("abc", ["s0", "s1"], {"input_ids": np.array([[1, 2], [3, 4]])})
    >>> with TrajectoryWriter("memory://example.zarr", model_name="seed0", probe_set=probe_set,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     writer.append(10, {"layer.0": np.ones((2, 3), "float32")}, loss=1.5)
    ...     writer.flush()
    ...     writer.committed
    [10]

    A run that goes back to an older checkpoint drops the later steps first:

    >>> with TrajectoryWriter("memory://example.zarr", model_name="seed0", probe_set=probe_set, truncate_after=5,
    ...                       layers={"layer.0": ((2, 3), "float32")}) as writer:
    ...     writer.note_gap(7, "out of memory")
    ...     writer.append(8, {"layer.0": np.ones((2, 3), "float32")})
    >>> writer.committed, [gap["reason"] for gap in writer.gaps]
    ([8], ['out of memory'])
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Storage,
        *,
        model_name: str,
        probe_set: ProbeSetLike,
        layers: Mapping[str, tuple[Sequence[int], str]],
        durable: bool = True,
        if_exists: IfExists = "resume",
        truncate_after: int | None = None,
        force: bool = False,
        codec: CodecName = "auto",
        keepbits: int | None = None,
        layer_attrs: Mapping[str, Mapping[str, Any]] | None = None,
        model_attrs: Mapping[str, Any] | None = None,
        on_store_error: OnStoreError = "raise",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if on_store_error not in {"raise", "warn"}:
            raise LayoutError(f"on_store_error={on_store_error!r}: expected 'raise' or 'warn'")
        back = None if truncate_after is None else step_before(truncate_after, "truncate_after")
        self.on_store_error, self.model_name = on_store_error, check_name(model_name, "model")
        read = {INPUTS_FINGERPRINT: probe_set.fingerprint}
        attrs = {name: {**(layer_attrs or {}).get(name, {}), **read} for name in layers}
        laid_out = lay_out_layers(layers, len(probe_set), codec=codec, keepbits=keepbits, attributes=attrs)
        storage = store if isinstance(store, Storage) else open_storage(store, storage_options, durable=durable)
        facts = dict(model_attrs or {})
        if ensure_root(storage, probe_set)["version"] > 1:
            facts |= {**(getattr(probe_set, "encoding", None) or {}), **read}
        with Shield():  # else the lease might have no writer
            self._record = ModelRecord.claim(storage, model_name, laid_out, facts, if_exists=if_exists, force=force)
            self._layers = {layer.name: layer for layer in self._record.layers}
            try:
                if back is not None:
                    self._record.truncate(back)
            except BaseException:
                self._record.lease.release()
                raise
            self._steps = self._record.steps
            self._closed = self._ended = False
            self._process = os.getpid()
            self._lock = threading.RLock()
            self._committer = WriterThread(self._record, on_store_error)
            watch(self)

    @property
    def steps(self) -> list[int]:
        """The steps committed and queued, without those that could not be stored."""
        return sorted({*self._steps} - ({gap["step"] for gap in self.gaps} - {*self.committed}))

    @property
    def committed(self) -> list[int]:
        """The steps that every reader sees."""
        return list(self._committer.committed)

    def checksums(self, step: int) -> dict[str, int]:
        """Return the CRC-32C of each layer's values at a committed step."""
        sums = self._record.checksums[self.committed.index(step)]
        return dict(zip((layer.name for layer in self._record.layers), sums, strict=True))

    def would_be(self, arrays: Mapping[str, Any]) -> dict[str, int]:
        """Return the CRC-32C that each layer's values would have if stored, rounded where its codec rounds."""
        return {name: checksum(stored_values(layer, arrays[name], copy=False)) for name, layer in self._layers.items()}

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the thread that stores the steps."""
        return self._committer.cpu_seconds

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """The steps that could not be stored, each with its reason."""
        return self._committer.gaps

    def append(
        self,
        step: int,
        arrays: Mapping[str, Any],
        *,
        epoch: float | None = None,
        loss: float | None = None,
        trigger: str | None = None,
        wall_time: float | None = None,
        copy: bool = True,
    ) -> None:
        """Queue one step; blocks only while the queue is full.

        Parameters
        ----------
        step : int, greater than all before
        arrays : mapping
            Layer name to array or CPU tensor (sample[, token], feature), in the declared shape and dtype.
        epoch, loss, trigger : optional
            Recorded where known.
        wall_time : float, optional
            Seconds since 1970-01-01 UTC; the present time if not given.
        copy : bool
            False passes the arrays on: the caller must never write into them again.

        Raises
        ------
        StepOrderError
            If the step is not greater than the last one.
        LayoutError
            If layers, shapes or dtypes are not the declared ones.
        WriterClosedError
            If the writer is closed, failed earlier, or belongs to another process.
        TypeError, ValueError
            If the step is no integer of 64 bits, or a coordinate no number, time or text that a store can hold.
        StoreError
            If an earlier step could not be stored and ``on_store_error="raise"``.
        """
        self._check_open()
        step = step_number(step)
        check_order(self.model_name, self._steps, step)  # before the arrays are copied, and again under the lock
        check_layers(self.model_name, self._layers, arrays.keys())
        values = {name: stored_values(layer, arrays[name], copy=copy) for name, layer in self._layers.items()}
        row = {
            STEP: step,
            EPOCH: number(epoch, EPOCH),
            LOSS: number(loss, LOSS),
            TRIGGER: text(trigger, TRIGGER),
            WALL_TIME: time.time() if wall_time is None else point_in_time(wall_time, WALL_TIME),
        }
        in_slices(lambda: self._queue(QueuedStep(row, values)))

    def _queue(self, item: Queued) -> bool:
        """Queue an item under the lock; return False while the queue is full."""
        with self._lock:
            self._check_open()
            if isinstance(item, QueuedStep):
                check_order(self.model_name, self._steps, item.row[STEP])
            elif isinstance(item, QueuedGap):
                check_gap(self.model_name, self._steps, item.step)
            if not offered(self._committer.queue, item):
                return False
            if isinstance(item, QueuedStep):
                self._steps.append(item.row[STEP])  # only now: an append that was interrupted may be made again
            return True

    def note_gap(self, step: int, reason: str) -> None:
        """Note that a step was due and is not in the record, and why.

        The note is committed in order with the queued steps, like that of a step which could not be stored.

        Raises
        ------
        StepOrderError
            If the step is negative, or in the record.
        WriterClosedError, StoreError, TypeError
            As for :meth:`append`.
        """
        gap = QueuedGap(step_number(step), str(reason))
        in_slices(lambda: self._queue(gap))

    def amend_trigger(self, step: int, trigger: str) -> None:
        """Replace what asked for the last step appended, where more is known later."""
        in_slices(lambda: self._queue(QueuedTrigger(step, text(trigger, TRIGGER) or "")))

    def flush(self) -> None:
        """Wait until every queued step is committed, or noted as a gap.

        Raises
        ------
        StoreError
            If a step could not be stored and ``on_store_error="raise"``.
        """
        self._check_process()
        in_slices(lambda: is_worked_off(self._committer.queue))
        self._surface()

    def truncate(self, after_step: int) -> None:
        """Commit a record that ends at `after_step`; later steps are dropped and may be recorded again."""
        request = QueuedTruncation(step_before(after_step, "step"))
        with self._lock:
            in_slices(lambda: self._queue(request))
            in_slices(lambda: request.done.wait(SLICE))
            self._surface()
            self._steps = [step for step in self._steps if step <= after_step]

    def close(self) -> None:
        """Flush, finalise, and release the model's lease; a second call does nothing."""
        if self._ended:
            return
        if self._process != os.getpid():  # a forked child has none of the writer's threads
            self._closed = self._ended = True
            return
        in_slices(self._end)  # also when a first call was interrupted here
        in_slices(lambda: has_ended(self._committer.thread))
        self._ended = True
        forget(self)
        self._surface()

    def _end(self) -> bool:
        with self._lock:
            self._closed = self._closed or offered(self._committer.queue, None)
            return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.close()
        except Exception as problem:
            if error is None:
                raise
            error.add_note(f"the writer of model {self.model_name!r} failed as well: {problem}")

    def _check_open(self) -> None:
        self._surface()
        self._check_process()
        failed = self._committer.failed
        if self._closed or failed:
            why = "failed earlier: close it and open another" if failed else "is closed: open another"
            raise WriterClosedError(f"the writer of model {self.model_name!r} {why}")

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise WriterClosedError(
                f"the writer of model {self.model_name!r} belongs to process {self._process}, this is process "
                f"{os.getpid()}, forked from it: append there, or open a writer of another model here"
            )

    def _surface(self) -> None:
        """Raise or warn in the caller's thread what went wrong in the writer's."""
        committer = self._committer
        with self._lock:
            while committer.warnings:
                warnings.warn(committer.warnings.pop(0), StoreWarning, stacklevel=3)
            if committer.error is not None:
                error, committer.error = committer.error, None
                committer.failed = True
                raise error
