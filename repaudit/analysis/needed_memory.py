"""How much memory an analysis takes, told before it begins."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

from repaudit.analysis.embeddings import MOST_LAID_OUT
from repaudit.gauge.perplexity_operator import SPARSE
from repaudit.measure.gram import BAND_BYTES, SPARSE_BYTES

BASE: Final = 150 * 2**20
"""Results, summary and report, and what is imported for them."""

OF_SAMPLES: Final = 10
"""Matrices (sample, sample) of 8 bytes that a comparison of operators holds at once."""

KEPT: Final = 13
"""Such matrices that an analysis holds beside its comparisons, as often as these run."""

OF_OPERATORS: Final = 10
"""Matrices (operator, operator) of 8 bytes that distances and trajectories hold at once."""

OF_LANDMARKS: Final = 2
"""Matrices (landmark, operator) of 8 bytes that are held while very many operators are read, which one part does at a
time; and one more where the others are then placed among some."""

ENTRIES: Final = 32 * 6
"""Bytes for a row of one sparse operator and effective neighbour, while distances are computed."""


def needed_memory(samples: int, operators: int, perplexity: float, at_once: int = 1) -> int:
    """Return about how many bytes an analysis takes beside its imports: those of the largest part, as often as it runs.

    Its constants were measured (``scripts/bench scale`` prints what was told beside what was seen).

    Parameters
    ----------
    samples : int
    operators : int
        Of one layer: all models at all steps.
    perplexity : float
        The smallest one.
    at_once : int
        Parts that are computed at the same time.

    Examples
    --------
    >>> round(needed_memory(256, 100, 15) / 2**20), round(needed_memory(256, 2000, 15) / 2**20)
    (181, 217)
    """
    sparse = 3 * perplexity * SPARSE <= samples
    band = min(SPARSE_BYTES, int(operators * samples * perplexity * ENTRIES)) if sparse else 3 * BAND_BYTES
    laid_out = min(operators, MOST_LAID_OUT)
    beside = 8 * laid_out * (operators - laid_out)
    reading = OF_LANDMARKS * beside + band
    each = 8 * OF_OPERATORS * laid_out**2 + (beside if beside else reading)
    kept = KEPT * 8 * samples**2
    return BASE + kept + (reading if beside else 0) + at_once * max(OF_SAMPLES * 8 * samples**2, each)


def held_by_process() -> int:
    """Return how many bytes this process holds: Python and its libraries, before an analysis begins.

    Examples
    --------
    >>> held_by_process() > 2**20
    True
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # no Linux: the most that it has held
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return pages * resource.getpagesize()
