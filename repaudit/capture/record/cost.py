"""What the audits of a training cost: seconds, bytes, and their share of the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from shlex import quote
from typing import Any, Final, Self, TypeVar

from dask.utils import format_bytes

from repaudit.capture.record.audit import Audit
from repaudit.store.write.writer import TrajectoryWriter

ENOUGH: Final = 31
"""Samples up to which the 15 neighbours of the default scale are half of all others, or more."""

FEWEST: Final = 3
"""Samples that an analysis needs."""

WORTH_TELLING: Final = 0.01
"""Share of the time that the CPU time of storing is told from."""

R = TypeVar("R")

_LOGGER = logging.getLogger(__name__)


@dataclass
class Cost:
    """The audits since a record was opened, and the opening.

    Attributes
    ----------
    steps : list of int
        Those given to the store.
    stored : list of int, optional
        The steps of the record, once it is closed: of those given some may not have come there.
    layers : int
    opening : float
        Seconds that it took to open the record.
    seconds : float
        In which the training waited for audits and, where the store was slower, for that.
    storing : float
        Seconds of CPU time of the thread that stores them, beside the training.
    sizes : dict of int to int
        Bytes of each of these steps, before compression.
    samples : int
        Of the last audit.
    told : bool
        Whether they have been told, or are told by who called.

    Examples
    --------
    >>> Cost().describe("runs.zarr", "seed0")
    ''
    """

    steps: list[int] = field(default_factory=list)
    layers: int = 0
    opening: float = 0.0
    seconds: float = 0.0
    storing: float = 0.0
    sizes: dict[int, int] = field(default_factory=dict)
    samples: int = 0
    began: float = field(default_factory=time.perf_counter)
    told: bool = False
    stored: list[int] | None = None
    _waits: bool = False

    @property
    def audits(self) -> int:
        """Audits that are in the record, or on their way there."""
        return len(self.steps if self.stored is None else {*self.steps}.intersection(self.stored))

    @property
    def nbytes(self) -> int:
        """Bytes of these audits, before compression."""
        return sum(size for step, size in self.sizes.items() if self.stored is None or step in self.stored)

    def add(self, audit: Audit) -> None:
        """Count an audit that the store has taken."""
        self.steps.append(audit.step)
        self.layers = max(self.layers, len(audit.layers))
        self.sizes[audit.step] = audit.nbytes
        self.samples = max((len(values) for values in audit.activations.values()), default=0)
        if not audit.layers.keys() <= audit.activations.keys():  # operators and sketches have the scale of their gauge
            self.samples = 0

    def closed(self, writer: TrajectoryWriter) -> list[int]:
        """Take the steps that came into the record, and return them, and what it took to store them."""
        self.stored, self.storing = writer.steps, writer.cpu_seconds
        return self.stored

    def waited(self, call: Callable[[], R]) -> Callable[[], R]:
        """Return a call whose time counts as one in which the training waits."""

        def counted() -> R:
            with self.waiting():
                return call()

        return counted

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a block as one in which the training waits, once where one is in another."""
        if self._waits:
            yield
            return
        self._waits, began = True, time.perf_counter()
        try:
            yield
        finally:
            self._waits = False
            self.seconds += time.perf_counter() - began

    def opened(self) -> Self:
        """Count the time so far as that of opening the record."""
        self.opening = time.perf_counter() - self.began
        return self

    @property
    def share(self) -> float:
        """Share of the time since the record began to be opened."""
        return (self.opening + self.seconds) / max(time.perf_counter() - self.began, 1e-9)

    def describe(self, store: Any, model: str) -> str:
        """Return one line for the end of a training, with the command to look at it; empty without an audit."""
        if not self.steps:
            return ""
        each, lost = 1e3 * self.seconds / len(self.steps), len(self.steps) - self.audits
        audits, layers = _count(self.audits, "audit"), _count(self.layers, "layer")
        return (
            f"repaudit: {audits} of model {model!r} in {store}{f' ({lost} more could not be stored)' if lost else ''}, "
            f"{layers}, "
            f"{format_bytes(self.nbytes)} before compression; {each:.0f} ms each and {1e3 * self.opening:.0f} ms to "
            f"open the record, {self.share:.1%} of the time since{self._beside()}. {_of_few(self.samples)}"
            f"Next: repaudit analyze {quote(str(store))}"
        )

    def _beside(self) -> str:
        """Return what storing takes of the CPU, which a training on the CPU shares with it."""
        if self.storing < WORTH_TELLING * (time.perf_counter() - self.began):
            return ""
        return f", and {1e3 * self.storing / len(self.steps):.0f} ms of CPU each to store them, beside the training"

    def tell(self, store: Any, model: str) -> None:
        """Log that line once, as information; on stderr where the program has set up no logging."""
        line = "" if self.told else self.describe(store, model)
        self.told = True
        if line:
            say(line)


def say(line: str) -> None:
    """Log a line as information; on stderr where the program has set up no logging."""
    if _LOGGER.hasHandlers():
        _LOGGER.info(line)
    else:
        logging.StreamHandler().handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))


def _of_few(samples: int) -> str:
    """Return the scale that an analysis of few samples needs, and why; nothing for enough of them."""
    if 0 < samples < FEWEST:
        return f"{_count(samples, 'sample')} cannot be analyzed: record {ENOUGH + 1} or more. "
    if not 4 < samples <= ENOUGH:
        return ""
    return f"{samples} samples are few for the default scales: analyze them with --scales {max(2, samples // 4)}. "


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
