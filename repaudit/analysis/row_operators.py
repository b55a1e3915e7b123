"""Operators of the rows that a model shows an analysis: of all of them, or the mean of those within each sample."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from repaudit.analysis.sources import Source
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.operators.operator import DiffusionOperator

_COUNTS: Final = ("duplicates", "collapsed", "floored", "unheld")
"""What a gauge counts in each sample, summed over the samples."""


def row_operators(source: Source, values: Any, gauges: Sequence[DiffusionGauge]) -> list[DiffusionOperator]:
    """Compute the operators of rows (sample, feature) by several gauges that differ in their perplexity alone.

    Raises
    ------
    ActivationError
        The gauge refuses the activations.
    """
    if source.within and source.tokens is not None:
        return operators_of_positions(values, source.tokens.of_sample, gauges)
    return _operators(values, gauges)


def operators_of_positions(
    values: Any, of_sample: NDArray[np.int64], gauges: Sequence[DiffusionGauge]
) -> list[DiffusionOperator]:
    """Compute an operator of each sample's own tokens, and average them position by position.

    ``P_i. = mean over the samples s with a position i of P^s_i.``, where a sample without a position j moves nothing
    there; rows sum to 1.

    Parameters
    ----------
    values : (token, feature)
        The tokens of all samples, sample by sample.
    of_sample : (token)
    gauges : sequence of DiffusionGauge
        That differ in their perplexity alone.

    Examples
    --------
    >>> tokens = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    >>> (mean,) = operators_of_positions(tokens, np.array([0, 0, 0, 1, 1, 1, 1]), [DiffusionGauge(knn=2)])
    >>> own = DiffusionGauge(knn=2)(tokens[3:])
    >>> mean.n_samples, bool(np.allclose(mean.matrix[3], own.matrix[3]))
    (4, True)
    """
    ends = [0, *(np.flatnonzero(np.diff(of_sample)) + 1).tolist(), len(of_sample)]
    longest = int(np.diff(ends).max())
    sums, having = np.zeros((len(gauges), longest, longest)), np.zeros(longest)
    counts = [dict.fromkeys(_COUNTS, 0) for _ in gauges]
    for start, end in pairwise(ends):
        length = end - start
        having[:length] += 1
        for index, operator in enumerate(_operators(values[start:end], gauges)):
            sums[index, :length, :length] += operator.to_numpy()
            for name in counts[index]:
                counts[index][name] += int(operator.diagnostics.get(name, 0))
    means = sums / having[:, None]
    means /= means.sum(2, keepdims=True)
    return [
        DiffusionOperator(torch.from_numpy(mean), diagnostics=found) for mean, found in zip(means, counts, strict=True)
    ]


def _operators(values: Any, gauges: Sequence[DiffusionGauge]) -> list[DiffusionOperator]:
    if len(gauges) > 1:
        return gauges[0].operators(values, [gauge.perplexity or 0.0 for gauge in gauges])
    return [gauges[0](values)]
