"""Distances and neighbours of very many operators from their sketches."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations_with_replacement
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse

from repaudit.errors import OperatorError
from repaudit.measure.calibrated import calibrated_distances
from repaudit.measure.gram import Progress, stream_gram
from repaudit.measure.null import NO_STRUCTURE, null_inner
from repaudit.operators.sketch import SIZE, OperatorSketch, check_size, refuse_different, sketch, stacked
from repaudit.operators.stack import Operator, OperatorStack, entries_of, side_of

Array = NDArray[np.float64]
SketchedMetric: TypeAlias = Literal["frobenius", "calibrated"]
"""Distances that are sums over entries, which sketches keep."""

FEW: Final = 2000
"""Operators up to which all pairs are compared: products of matrices, which the pairs of candidates are not."""
MORE: Final = 2
"""Candidates that are compared exactly, as a multiple of the neighbours wanted: sketches order close ones wrongly."""
_BLOCK: Final = 2048
_HELD: Final = 2**26
"""Bytes of operators that are kept for the pairs to come."""


def sketch_distances(
    sketches: Sequence[OperatorSketch],
    metric: SketchedMetric = "frobenius",
    *,
    first: int | None = None,
    memory: str | int = "2GB",
    progress: Progress | None = None,
) -> Array:
    """Estimate the distances of all pairs of operators from their sketches, or of some first ones from all.

    Squared distances are unbiased, with a relative standard error of ``sqrt(2 / size)``; the null of the calibrated
    ones is exact.

    Parameters
    ----------
    sketches : sequence of T OperatorSketch, of one size and seed
    metric : "frobenius" or "calibrated"
        As in :func:`repaudit.operator_distances`.
    first : int, optional
        How many operators are compared with all; all of them by default.
    memory, progress
        As in :func:`repaudit.operator_distances`.

    Returns
    -------
    ndarray (T, T), float64, symmetric with a zero diagonal; or (first, T)

    Raises
    ------
    OperatorError
        The sketches do not go together.
    ValueError
        The metric is another.

    Examples
    --------
    >>> sketches = [sketch(np.roll(np.eye(64), shift, axis=1)) for shift in (0, 0, 1)]
    >>> sketch_distances(sketches, "calibrated").round(1)[0].tolist()
    [0.0, 0.0, 1.0]
    """
    check_metric(metric)
    sketches = list(sketches)
    values = stacked(sketches)
    if first is not None and (not hasattr(first, "__index__") or not 1 <= first <= len(sketches)):
        raise ValueError(f"expected first from 1 to {len(sketches)}, as there are as many sketches; found {first}")
    side = math.isqrt(values.shape[1])
    gram = stream_gram(OperatorStack(values.reshape(-1, side, side)), memory=memory, first=first, progress=progress)
    squares = gram.squared_distances
    if metric == "calibrated":
        null = _null(_moments(sketches[:first])[:, :, None], _moments(sketches)[:, None], sketches[0].samples)
        squares = np.divide(squares, null, out=np.zeros_like(squares), where=null > NO_STRUCTURE)
    distances: Array = np.sqrt(squares)
    return distances


def nearest_operators(
    operators: Sequence[Operator],
    k: int = 10,
    metric: SketchedMetric = "calibrated",
    *,
    sketches: Sequence[OperatorSketch] | None = None,
    size: int = SIZE,
    seed: int = 0,
    memory: str | int = "2GB",
    progress: Progress | None = None,
) -> tuple[NDArray[np.int64], Array]:
    """Find the nearest other operators of every one.

    Of up to 2,000 operators all pairs are compared. Of more, or where sketches are given, the sketches choose
    ``2 k + 2`` candidates for each, whose distances are then computed: these are exact, but of several operators within
    a few percent of the same distance others may be found than the nearest.

    Memory beyond `memory` is that of the sketches (``4 size`` bytes per operator), whatever the operators' size.

    Parameters
    ----------
    operators : sequence of T operators (sample, neighbor)
        On the same samples; items of a lazy sequence are read once per band of rows, or once for the sketches and
        then for the exact distances.
    k : int
        Neighbours of each, fewer than T.
    metric : "frobenius" or "calibrated"
    sketches : sequence of T OperatorSketch, optional
        Made where they are needed if not given.
    size, seed
        Of the sketches that are made.
    memory : bytes, or text such as "2GB"
        As in :func:`repaudit.operator_distances`, for all pairs.
    progress : function of (done, all), optional
        Of blocks of sketches, and then of pairs of operators.

    Returns
    -------
    neighbors, distances : (T, k) each, nearest first

    Raises
    ------
    OperatorError
        The operators or sketches do not go together, are fewer than two, or are not finite.
    ValueError
        ``k`` is not from 1 to T - 1, or the metric is another.

    Examples
    --------
    >>> rings = [np.roll(np.eye(64), shift, axis=1) * 0.5 + 0.5 / 64 for shift in (0, 0, 1)]
    >>> nearest_operators(rings, k=1)[0].ravel().tolist()[:2]
    [1, 0]
    """
    check_metric(metric)
    if isinstance(operators, Mapping):
        raise OperatorError("expected a sequence of operators, found a mapping: pass list(operators.values())")
    refuse_sketches(operators, "pass them as sketches= beside their operators; ")
    count = len(operators)
    if count < 2:
        raise OperatorError(f"expected two operators at least, found {count}")
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k < count:
        raise ValueError(f"expected k from 1 to {count - 1}, as there are {count} operators; found {k}")
    check_size(size)
    side = side_of(operators[0])
    if sketches is None and count <= FEW:
        return _nearest_of_all(operators, k, metric, memory, progress)
    entries = _Entries(operators, side)
    made = list(sketches) if sketches is not None else [entries.sketched(i, size, seed) for i in range(count)]
    refuse_different(made)
    if made[0].samples != side:
        raise OperatorError(f"expected sketches of operators on {side} samples, found {made[0].samples}")
    if len(made) != count:
        raise ValueError(f"expected a sketch of each of {count} operators, found {len(made)}")
    near = _candidates(made, min(count - 1, MORE * k + 2), metric, progress)
    exact = _exact(entries, near, made, metric, progress)
    order = np.lexsort((near, exact))[:, :k]  # of equal ones the first
    distances: Array = np.sqrt(np.take_along_axis(exact, order, 1))
    return np.take_along_axis(near, order, 1), distances


def _nearest_of_all(
    operators: Sequence[Operator], k: int, metric: SketchedMetric, memory: str | int, progress: Progress | None
) -> tuple[NDArray[np.int64], Array]:
    stack = OperatorStack(operators)
    if metric == "calibrated":
        distances = calibrated_distances(stack, len(stack), memory=memory, progress=progress)
    else:
        distances = np.sqrt(stream_gram(stack, memory=memory, progress=progress).squared_distances)
    np.fill_diagonal(distances, math.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # of equal ones the first
    return order, np.take_along_axis(distances, order, 1)


def refuse_sketches(operators: Any, how: str = "") -> None:
    """Raise an OperatorError where there are sketches in the place of operators."""
    if isinstance(operators, list | tuple) and any(isinstance(one, OperatorSketch) for one in operators):
        raise OperatorError(
            f"expected operators, found sketches: {how}repaudit.sketch_distances estimates the distances of sketches"
        )


def check_metric(metric: str) -> None:
    """Raise a ValueError unless sketches keep this distance."""
    if metric not in ("frobenius", "calibrated"):
        raise ValueError(f"sketches keep the metrics frobenius and calibrated, found {metric!r}")


def _candidates(
    sketches: Sequence[OperatorSketch], most: int, metric: SketchedMetric, progress: Progress | None
) -> NDArray[np.int64]:
    """Return the nearest others of every sketch, (T, most): two blocks are compared at a time, and each pair once."""
    count, samples, size = len(sketches), sketches[0].samples, len(sketches[0].values)
    refuse_different(sketches)
    moments = _moments(sketches)
    blocks = [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    mean = torch.zeros(size, dtype=torch.float64)
    for some in blocks:
        mean += torch.from_numpy(stacked(sketches[some])).sum(0, dtype=torch.float64) / count
    held = torch.empty((2, min(_BLOCK, count), size), dtype=torch.float64)

    def centred(some: slice, place: int) -> torch.Tensor:
        """Return sketches less their mean, in float64, since close ones cancel, where another block was."""
        return held[place, : some.stop - some.start].copy_(torch.from_numpy(stacked(sketches[some]))).sub_(mean)

    own = held[0]
    norms = torch.cat([centred(some, 0).square_().sum(1) for some in blocks])
    if not torch.isfinite(norms).all():
        bad = [index for index, one in enumerate(sketches) if not np.isfinite(one.values).all()]
        raise OperatorError(f"expected finite sketches, found others of operators {bad[:8]} of {count}: leave them out")
    near = torch.zeros((count, most), dtype=torch.int64)
    apart = torch.full((count, most), math.inf, dtype=torch.float64)
    together = list(combinations_with_replacement(blocks, 2))
    for done, (rows, columns) in enumerate(together, 1):
        own = centred(rows, 0) if columns is rows else own
        others = own if columns is rows else centred(columns, 1)
        squares = torch.addmm(norms[rows, None] + norms[columns], own, others.T, alpha=-2)
        if metric == "calibrated":
            null = _null(moments[:, rows, None], moments[:, None, columns], samples)
            squares /= torch.from_numpy(np.maximum(null, NO_STRUCTURE))
        if columns is rows:
            squares.fill_diagonal_(math.inf)
        else:
            _keep_nearest(near[columns], apart[columns], squares.T, rows.start)
        _keep_nearest(near[rows], apart[rows], squares, columns.start)
        if progress is not None:
            progress(done, len(together))
    return near.numpy()


def _keep_nearest(near: torch.Tensor, apart: torch.Tensor, squares: torch.Tensor, start: int) -> None:
    """Put those of a block that are nearer than what is kept, (T, most), in its place."""
    some = (squares.amin(1) < apart.amax(1)).nonzero().ravel()  # far blocks have few, and sorting takes its time
    best, place = squares[some].topk(min(near.shape[1], squares.shape[1]), dim=1, largest=False)
    kept, order = torch.cat([apart[some], best], dim=1).topk(near.shape[1], dim=1, largest=False)
    apart[some] = kept
    near[some] = torch.cat([near[some], place + start], dim=1).gather(1, order)


class _Entries:
    """Entries of operators in float64, of which the last ones are kept: neighbours are compared with the same ones."""

    def __init__(self, operators: Sequence[Operator], samples: int) -> None:
        self._operators, self._samples = operators, samples
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._bytes = 0

    def sketched(self, index: int, size: int, seed: int) -> OperatorSketch:
        """Return the sketch of one operator, made of it."""
        with self._named(index):
            return sketch(self._operators[index], size, seed=seed)

    def __call__(self, index: int) -> Any:
        """Return the entries of one operator, read or kept."""
        if index not in self._kept:
            with self._named(index):
                found = self._kept[index] = entries_of(self._operators[index])
            if found.shape[0] != self._samples:
                raise OperatorError(f"expected operators on {self._samples} samples, found {found.shape[0]} in {index}")
            self._bytes += _size(found)
            while self._bytes > _HELD and len(self._kept) > 2:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(index)
        return self._kept[index]

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Say of which operator an error is."""
        try:
            yield
        except OperatorError as error:
            raise OperatorError(f"operator {index} of {len(self._operators)}: {error}") from None


def _size(entries: Any) -> int:
    return int(entries.data.nbytes + entries.indices.nbytes if issparse(entries) else entries.nbytes)


def _exact(
    entries: _Entries,
    near: NDArray[np.int64],
    sketches: Sequence[OperatorSketch],
    metric: SketchedMetric,
    progress: Progress | None,
) -> Array:
    """Return the squared distance of every operator from each of its candidates; each pair is compared once."""
    first = np.broadcast_to(np.arange(len(near))[:, None], near.shape)
    pairs, place = np.unique(np.minimum(first, near) * len(near) + np.maximum(first, near), return_inverse=True)
    low, high = np.divmod(pairs, len(near))
    starts = np.flatnonzero(np.diff(low, prepend=-1))
    squares = np.empty(len(pairs))
    for start, stop in zip(starts, [*starts[1:], len(pairs)], strict=True):
        one = entries(int(low[start]))
        squares[start:stop] = [_squared(one - entries(other)) for other in high[start:stop].tolist()]
        if progress is not None:
            progress(int(stop), len(pairs))
    if metric == "calibrated":
        moments = _moments(sketches)
        top = _null(moments[:, low], moments[:, high], sketches[0].samples)
        squares = np.divide(squares, top, out=np.zeros_like(squares), where=top > NO_STRUCTURE)
    return squares[place].reshape(near.shape)


def _squared(apart: Any) -> float:
    """Return the squared norm of a matrix without BLAS, whose threads would take longer than so short a sum."""
    entries = apart.data if issparse(apart) else np.asarray(apart).ravel()
    return float(np.einsum("i,i->", entries, entries))


def _moments(sketches: Sequence[OperatorSketch]) -> Array:
    """Return trace, sum and squared norm of every operator less ``1 / N``, (3, T)."""
    return np.array([[one.trace, one.total, one.square] for one in sketches]).T


def _null(rows: Array, columns: Array, samples: int) -> Array:
    """Return the expected squared distances of unrelated operators, by their moments (3, ...)."""
    (trace, total, square), (others, sums, norms) = rows, columns
    null: Array = square + norms - 2 * null_inner(trace, total, others, sums, samples)
    return null
