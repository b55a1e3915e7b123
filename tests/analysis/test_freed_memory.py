"""What an analysis no longer holds does not stay in the process."""

from __future__ import annotations

import psutil
import pytest

from repaudit.analysis.freed_memory import FreedMemory


def resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


def fragmented(megabytes: int) -> list[bytearray]:
    """Fill the heap with large pieces between small ones, and keep the small ones."""
    small, large = [], []
    for _ in range(megabytes * 10):
        large.append(bytearray(b"x" * 100_000))  # written, so that its pages are there
        small.append(bytearray(2000))
    return small


@pytest.mark.skipif(FreedMemory()._trim is None, reason="the C library has no malloc_trim")
def test_pages_between_what_stays_are_given_back_no_more_often_than_asked() -> None:
    rare, often = FreedMemory(seconds=3600), FreedMemory(seconds=0)
    often.give_back()
    kept = fragmented(300)
    rare.give_back()
    held = resident()
    often.give_back()
    assert held - resident() > 100, "the small pieces held the pages of the large ones"
    assert len(kept) == 3000
