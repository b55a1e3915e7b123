"""How much memory an analysis takes, told before it begins."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from repaudit.analysis.embeddings import MOST_LAID_OUT
from repaudit.gauge.perplexity_operator import SPARSE
from repaudit.measure.gram import BAND_BYTES, SPARSE_BYTES

BASE: Final = 150 * 2**20
"""Results, summary and report, and what is imported for them."""

OF_SAMPLES: Final = 12
"""Matrices (sample, sample) of 8 bytes that a comparison of operators holds at once."""

HELD: Final = 2
"""Such matrices that an analysis holds beside its comparisons, as often as these run."""

OF_AN_ENTRY: Final = 24
"""Bytes of an entry of a merged operator with its places: these are held until they are written."""

OF_OPERATORS: Final = 10
"""Matrices (operator, operator) of 8 bytes that distances and trajectories hold at once."""

OF_LANDMARKS: Final = 2
"""Matrices (landmark, operator) of 8 bytes that are held while very many operators are read, which one part does at a
time; and one more where the others are then placed among some."""

ENTRIES_OF_A_ROW: Final = 6
"""Entries of a row of one sparse operator for each effective neighbour."""

ENTRIES: Final = 32 * ENTRIES_OF_A_ROW
"""Bytes for a row of one sparse operator and effective neighbour, while distances are computed."""


def merged_memory(samples: int, models: int, perplexities: Sequence[float | None]) -> int:
    """Return about how many bytes the merged operators of one layer take, at one step and these scales.

    An operator at a scale without a perplexity, or at a large one, is dense; a merged one has the entries of all.

    Examples
    --------
    >>> merged_memory(1000, 3, [15, 100]), merged_memory(1000, 3, [None])
    (30480000, 24000000)
    """
    rows = [
        samples if u is None or 3 * u * SPARSE > samples else min(samples, ENTRIES_OF_A_ROW * u * models)
        for u in perplexities
    ]
    return int(OF_AN_ENTRY * samples * sum(rows))


def needed_memory(samples: int, operators: int, perplexity: float, at_once: int = 1, results: int = 0) -> int:
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
    results : int
        Bytes of large results, such as merged operators, and of what is held for them.

    Examples
    --------
    >>> round(needed_memory(256, 100, 15) / 2**20), round(needed_memory(256, 2000, 15) / 2**20)
    (176, 211)
    """
    sparse = 3 * perplexity * SPARSE <= samples
    band = min(SPARSE_BYTES, int(operators * samples * perplexity * ENTRIES)) if sparse else 3 * BAND_BYTES
    laid_out = min(operators, MOST_LAID_OUT)
    beside = 8 * laid_out * (operators - laid_out)
    reading = OF_LANDMARKS * beside + band
    each = 8 * OF_OPERATORS * laid_out**2 + (beside if beside else reading)
    kept = HELD * 8 * samples**2
    return BASE + results + kept + (reading if beside else 0) + at_once * max(OF_SAMPLES * 8 * samples**2, each)


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
