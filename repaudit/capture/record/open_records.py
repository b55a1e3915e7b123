"""The records that recorders of this process hold open, so that one which nobody uses any more can be taken over."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import xarray as xr

from repaudit.errors import StoreError
from repaudit.names import KIND, at_home
from repaudit.store.read import catalog
from repaudit.store.read.activations import read_step
from repaudit.store.read.reader import open_store
from repaudit.store.write.writer import TrajectoryWriter


class Holder(Protocol):
    """What holds a record open."""

    def lose(self) -> None:
        """Close the record, since another one takes it over."""


@dataclass(frozen=True)
class _Held:
    holder: weakref.ref[Any]
    writer: TrajectoryWriter
    trainer_thread: int | None


_HELD: Final[dict[tuple[str, str], _Held]] = {}


def hold(
    store: str | os.PathLike[str], model_name: str, holder: Holder, writer: TrajectoryWriter, *, in_trainer: bool
) -> None:
    """Note that `holder` has opened a record."""
    thread = threading.get_ident() if in_trainer else None
    _HELD[_key(store, model_name)] = _Held(weakref.ref(holder), writer, thread)


def let_go(writer: TrajectoryWriter) -> None:
    """Forget a record that is closed."""
    for key in [key for key, held in list(_HELD.items()) if held.writer is writer]:
        _HELD.pop(key, None)


def take_over(store: str | os.PathLike[str], model_name: str, *, in_trainer: bool) -> None:
    """Close a record of this process that a dropped recorder left open, or a trainer that an exception ended.

    A trainer's callback is not told of an exception. Once another training begins in its thread, it has ended.
    """
    held = _HELD.get(_key(store, model_name))
    if held is None:
        return
    ended = in_trainer and held.trainer_thread == threading.get_ident()
    if not ended:
        gc.collect()
    holder = held.holder()
    if holder is None:
        let_go(held.writer)
        with suppress(StoreError):  # what it could not store is in its gaps
            held.writer.close()
    elif ended:
        holder.lose()


@dataclass(frozen=True, eq=False)
class RecordedStep(Mapping[str, Any]):
    """The activations of a recorded step by layer, each read when it is asked for."""

    tree: xr.DataTree
    model: str
    step: int
    layers: Sequence[str]

    def __getitem__(self, layer: str) -> xr.DataArray:
        return read_step(self.tree, self.model, layer, self.step)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def first_and_last(
    store: str | os.PathLike[str], model: str, steps: Sequence[int], storage_options: Mapping[str, Any] | None
) -> list[RecordedStep]:
    """Return the activations of a model's first and last recorded step; of one step once, and none of operators."""
    if not steps:
        return []
    tree = open_store(store, storage_options)
    layers = [
        name for name in catalog.layers(tree, model) if not catalog.activations(tree, model, name).attrs.get(KIND)
    ]
    return [RecordedStep(tree, model, step, layers) for step in sorted({steps[0], steps[-1]})]


def _key(store: str | os.PathLike[str], model_name: str) -> tuple[str, str]:
    place = os.fspath(store)
    return place if "://" in place else os.path.realpath(at_home(place)), model_name
