"""The records that recorders of this process hold open, so that one which nobody uses any more can be taken over."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from repaudit.errors import StoreError
from repaudit.names import at_home
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
    process: int


_LOGGER = logging.getLogger(__name__)
_HELD: Final[dict[tuple[str, str], _Held]] = {}


def hold(
    store: str | os.PathLike[str], model_name: str, holder: Holder, writer: TrajectoryWriter, *, in_trainer: bool
) -> None:
    """Note that `holder` has opened a record."""
    thread = threading.get_ident() if in_trainer else None
    _HELD[_key(store, model_name)] = _Held(weakref.ref(holder), writer, thread, os.getpid())


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


def _end() -> None:
    """Close what is open at the end of the process, and say what is recorded: an exception is not told to callbacks."""
    for held in list(_HELD.values()):
        holder = held.holder()
        if holder is not None and held.process == os.getpid():  # a forked child has none of its threads
            try:
                holder.track = None  # what has not been compared no longer can be: no thread begins at the end
                holder.lose()
            except Exception as error:  # noqa: BLE001 - the others are closed too
                _LOGGER.error("at the end of the process: %s", error)


atexit.register(_end)


def _key(store: str | os.PathLike[str], model_name: str) -> tuple[str, str]:
    place = os.fspath(store)
    return place if "://" in place else os.path.realpath(at_home(place)), model_name
