"""How much memory an analysis takes, told before it begins."""

from __future__ import annotations

from typing import Final

from repaudit.gauge.perplexity_operator import SPARSE
from repaudit.measure.gram import BAND_BYTES, SPARSE_BYTES

BASE: Final = 60 * 2**20
"""Results, summary and report."""

OF_SAMPLES: Final = 28
"""Matrices (sample, sample) of 8 bytes that embeddings and comparisons of operators hold at once."""

OF_OPERATORS: Final = 10
"""Matrices (operator, operator) of 8 bytes that distances and trajectories hold at once."""

ENTRIES: Final = 32 * 6
"""Bytes for a row of one sparse operator and effective neighbour, while distances are computed."""


def needed_memory(samples: int, operators: int, perplexity: float) -> int:
    """Return about how many bytes an analysis takes beside its imports: the largest of what it does one by one.

    Its constants were measured (``scripts/bench scale`` prints what was told beside what was seen).

    Parameters
    ----------
    samples : int
    operators : int
        Of one layer: all models at all steps.
    perplexity : float
        The smallest one.

    Examples
    --------
    >>> round(needed_memory(256, 100, 15) / 2**20), round(needed_memory(256, 2000, 15) / 2**20)
    (109, 413)
    """
    sparse = 3 * perplexity * SPARSE <= samples
    band = min(SPARSE_BYTES, int(operators * samples * perplexity * ENTRIES)) if sparse else BAND_BYTES * 3 // 2
    together = OF_OPERATORS * 8 * operators**2 + band
    return BASE + max(OF_SAMPLES * 8 * samples**2, together)
