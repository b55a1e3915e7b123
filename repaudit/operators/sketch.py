"""Count sketches: an operator's distances to others from a few thousand numbers, whatever its number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from repaudit.errors import OperatorError
from repaudit.operators.stack import Operator, entries_of, side_of

SIZE: Final = 4096
"""Numbers of a sketch: the relative standard error of a squared distance is 2.2 %."""

_MIX: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Constants of SplitMix64 (Steele, Lea and Flood, 2014), whose output bits are as good as random."""


@dataclass(frozen=True)
class OperatorSketch:
    """A count sketch of one operator, and its exact moments.

    Its numbers are of single precision: of operators that differ by less than about 1e-5 of their size, the difference
    of two sketches is partly rounding.

    Attributes
    ----------
    values : (size), float32
        ``S_b = sum of s(i, j) P_ij over the entries with h(i, j) = b``.
    samples : int
    seed : int
        Of the hashes ``h`` and ``s``: only sketches of one seed and size can be compared.
    trace, total, square : float
        Trace, sum and squared norm of ``P - 1 / N``, in float64 from all entries.

    See Also
    --------
    sketch : makes one.
    repaudit.measure.sketched.sketch_distances : compares many.
    """

    values: NDArray[np.float32]
    samples: int
    seed: int
    trace: float
    total: float
    square: float

    def __repr__(self) -> str:
        numbers = len(self.values)
        return f"{type(self).__name__}({numbers} numbers, samples={self.samples}, seed={self.seed})"

    @property
    def error(self) -> float:
        """Relative standard error of a squared distance between this sketch and another one, ``sqrt(2 / size)``."""
        return math.sqrt(2 / len(self.values))


def sketch(operator: Operator, size: int = SIZE, *, seed: int = 0) -> OperatorSketch:
    """Compute the count sketch of an operator: its entries, with random signs, summed in ``size`` random buckets.

    For two operators ``E|S(P) - S(Q)|^2 = |P - Q|_F^2``, with a variance of at most ``2 / size |P - Q|_F^4``. It is
    linear: the sketch of a weighted mean is the mean of the sketches.

    Parameters
    ----------
    operator : operator (sample, neighbor)
        Dense or sparse; a sparse one is not made dense.
    size : int
        A square number, 4 at least.
    seed : int

    Raises
    ------
    OperatorError
        The operator is not square, or not finite.
    TypeError, ValueError
        ``size`` is not a whole number, or not a square one.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> p, q = rng.dirichlet(np.ones(50), size=(2, 50))
    >>> apart = sketch(p).values - sketch(q).values
    >>> round(float(apart @ apart / ((p - q) ** 2).sum()), 1)
    1.0

    References
    ----------
    Charikar, Chen and Farach-Colton (2002), Finding frequent items in data streams, ICALP. Weinberger et al. (2009),
    Feature hashing for large scale multitask learning, ICML.
    """
    check_size(size)
    samples = side_of(operator)
    matrix = entries_of(operator)
    if issparse(matrix):
        rows = np.repeat(np.arange(samples, dtype=np.uint64), np.diff(matrix.indptr))
        entries = matrix.data.astype(np.float64)
        bucket, negative = hashed(rows * np.uint64(samples) + matrix.indices.astype(np.uint64), size, seed)
        trace = float(matrix.diagonal().sum(dtype=np.float64))
    else:
        entries = matrix.ravel()
        bucket, negative = _of_all(samples, size, seed)
        trace = float(np.trace(matrix))
    values = in_single(np.bincount(bucket, np.where(negative, -entries, entries), minlength=size))
    total = float(entries.sum())
    square = float(np.einsum("i,i->", entries, entries)) - 2 * total / samples + 1  # BLAS's threads take longer
    return OperatorSketch(values, samples, seed, trace - 1, total - samples, max(square, 0.0))


def check_size(size: int) -> None:
    """Raise a TypeError or ValueError unless a sketch may have so many numbers."""
    if isinstance(size, bool) or not isinstance(size, int | np.integer):
        raise TypeError(f"expected a whole number as the size of a sketch, found {size!r}")
    if size < 4 or math.isqrt(size) ** 2 != size:
        raise ValueError(f"expected a square number of at least 4 as the size of a sketch, found {size}")


def in_single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return the numbers of a sketch in single precision, or raise an OperatorError where that does not hold them."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        raise OperatorError(
            "expected entries whose sums single precision holds, found larger ones: scale all by one number"
        )
    return found


def mean_sketch(sketches: Sequence[OperatorSketch], weights: Sequence[float] | None = None) -> OperatorSketch:
    """Return the sketch of the weighted mean of operators from theirs; its squared norm is an estimate.

    Raises
    ------
    OperatorError
        No sketches, or of different operators' sizes, seeds or lengths.

    Examples
    --------
    >>> import numpy as np
    >>> p, q = np.eye(4), np.full((4, 4), 0.25)
    >>> both, mean = mean_sketch([sketch(p), sketch(q)]), sketch((p + q) / 2)
    >>> bool(np.allclose(both.values, mean.values)), round(both.square / mean.square, 1)
    (True, 1.0)
    """
    values = stacked(sketches).astype(np.float64)
    share = np.full(len(sketches), 1 / len(sketches)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = share / share.sum()
    square = np.array([one.square for one in sketches])
    apart = ((values[:, None] - values[None]) ** 2).sum(2)
    inner = (square[:, None] + square[None] - apart) / 2
    trace, total = (float(share @ [getattr(one, name) for one in sketches]) for name in ("trace", "total"))
    first = sketches[0]
    mean = (share @ values).astype(np.float32)
    return OperatorSketch(mean, first.samples, first.seed, trace, total, max(float(share @ inner @ share), 0.0))


def stacked(sketches: Sequence[OperatorSketch]) -> NDArray[np.float32]:
    """Return the values of sketches that can be compared, (T, size).

    Raises
    ------
    OperatorError
        No sketches, or of different operators' sizes, seeds or lengths.
    """
    refuse_different(sketches)
    return np.stack([one.values for one in sketches])


def refuse_different(sketches: Sequence[OperatorSketch]) -> None:
    """Raise an OperatorError unless these are sketches that can be compared, one at least."""
    strange = [type(one).__name__ for one in sketches if not isinstance(one, OperatorSketch)]
    if strange or not len(sketches):
        found = strange[0] if strange else "none"
        raise OperatorError(f"expected sketches, one at least, found {found}: repaudit.sketch makes one of an operator")
    kinds = {(len(one.values), one.seed, one.samples, type(one).__name__) for one in sketches}
    if len(kinds) != 1:
        several = len({kind for *_, kind in kinds}) > 1  # recorded ones keep groups of samples, which others do not
        found = ", ".join(
            f"{size} numbers of seed {seed} of {n} samples{f' ({kind})' if several else ''}"
            for size, seed, n, kind in sorted(kinds)
        )
        raise OperatorError(f"expected sketches of one size and seed, of operators on the same samples, found {found}")


@lru_cache(maxsize=2)
def _of_all(samples: int, size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the hashes of all entries of a dense operator, row by row: they are the same for all of a stack."""
    return hashed(np.arange(samples * samples, dtype=np.uint64), size, seed)


def hashed(entry: NDArray[np.uint64], size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the bucket of each entry by its number ``i N + j``, and whether its sign is negative."""
    step, first, second = (np.uint64(constant) for constant in _MIX)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        z = (entry + np.uint64(seed % 2**64) * first + np.uint64(1)) * step
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        z ^= z >> np.uint64(31)
        bucket = ((z >> np.uint64(33)) * np.uint64(size)) >> np.uint64(31)
    return bucket.astype(np.int64), (z & np.uint64(1)).astype(bool)
