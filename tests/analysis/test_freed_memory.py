"""What an analysis no longer holds does not stay in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from repaudit.analysis.freed_memory import FreedMemory

SCRIPT = """
import psutil
from repaudit.analysis.freed_memory import FreedMemory

def resident():
    return psutil.Process().memory_info().rss / 2**20

rare, often = FreedMemory(seconds=3600), FreedMemory(seconds=0)
small, large = [], []
for _ in range(3000):  # small pieces, which stay, between large ones, written so that their pages are there
    large.append(bytearray(b"x" * 100_000))
    small.append(bytearray(2000))
large.clear()
rare.give_back()
held = resident()
often.give_back()
print(held - resident(), len(small))
"""


@pytest.mark.skipif(FreedMemory()._trim is None, reason="the C library has no malloc_trim")
def test_pages_between_what_stays_are_given_back_no_more_often_than_asked() -> None:
    """In a process of its own, whose heap no other test has left holes in."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    given_back, kept = run.stdout.split()
    assert float(given_back) > 100, "the small pieces held the pages of the large ones"
    assert int(kept) == 3000
