"""Waiting for another thread, so that a signal neither leaves a lock taken nor waits long for its handler."""

from __future__ import annotations

import queue
from collections.abc import Callable
from threading import Thread
from typing import Any, Final

from repaudit.interrupts import Shield

SLICE: Final = 0.1
"""Seconds for which one attempt may wait."""


def in_slices(attempt: Callable[[], bool]) -> None:
    """Repeat an attempt, which waits for a slice at most, until it succeeds; signals are handled between attempts.

    Inside one, Ctrl-C would leave a queue's lock taken for good.
    """
    done = False
    while not done:
        with Shield():
            done = attempt()


def offered(waiting: queue.Queue[Any], item: Any) -> bool:
    """Put an item into a queue that nobody else puts items into now; return False if it is full for a slice."""
    with waiting.not_full:
        if not waiting.not_full.wait_for(lambda: len(waiting.queue) < waiting.maxsize, SLICE):
            return False
    waiting.put(item)
    return True


def is_worked_off(waiting: queue.Queue[Any]) -> bool:
    """Wait for a slice at most until every item of a queue is done with, and return whether it is."""
    with waiting.all_tasks_done:
        if waiting.unfinished_tasks:
            waiting.all_tasks_done.wait(SLICE)
        return not waiting.unfinished_tasks


def has_ended(thread: Thread) -> bool:
    """Wait for a slice at most until a thread ends, and return whether it has."""
    thread.join(SLICE)
    return not thread.is_alive()
