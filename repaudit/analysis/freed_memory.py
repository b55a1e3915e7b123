"""Freed memory goes back to the system: glibc keeps pages of arrays that are gone between small ones that stay."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final

SECONDS_BETWEEN: Final = 0.25
"""A return takes about 2 ms, and what is freed within that time is used again."""


class FreedMemory:
    """Returns what was freed, now and then; nothing where the C library has no such call.

    Without it an analysis of many steps grows with each of them, though it holds nothing of the earlier ones.

    Parameters
    ----------
    seconds : float
        Least time between two returns.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN) -> None:
        self._seconds, self._last = seconds, time.monotonic()
        self._trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)

    def give_back(self, *, at_once: bool = False) -> None:
        """Return it, if the last return is long enough ago, or at once, where much has been freed."""
        now = time.monotonic()
        if self._trim is not None and (at_once or now - self._last >= self._seconds):
            self._last = now
            self._trim(0)
