"""Distances between operators: one matrix (T, T) for T operators, read in bands under a memory budget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from repaudit.errors import OperatorError
from repaudit.measure.calibrated import calibrated_distances
from repaudit.measure.gram import Progress, bytes_of, stream_gram
from repaudit.measure.invariants import diffusion_distances, spectrum, standardized
from repaudit.measure.sketched import SketchedMetric, check_metric, refuse_sketches, sketch_distances
from repaudit.operators.labels import check_samples
from repaudit.operators.sketch import sketch as count_sketch
from repaudit.operators.stack import Operator, OperatorStack

Array = NDArray[np.float64]
Metric: TypeAlias = Literal["frobenius", "calibrated", "hellinger", "bhattacharyya", "spectrum", "rsa"]


def operator_distances(
    operators: Sequence[Operator] | Any,
    metric: Metric = "frobenius",
    *,
    memory: str | int = "2GB",
    sketch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Array:
    """Compute the distances of all pairs of operators on the same samples.

    ============= ==========================================================================================
    metric        distance of P and Q
    ============= ==========================================================================================
    frobenius     ``|P - Q|_F``
    calibrated    ``sqrt(|P - Q|_F^2 / E|P - R Q R'|_F^2)``, R a random relabelling: 0 identical, 1 unrelated
    hellinger     ``sqrt(1 - BC)``, BC the mean over rows of ``sum_j sqrt(P_ij Q_ij)``: 0 to 1
    bhattacharyya ``-log BC``, infinite where no row of P and Q overlaps
    spectrum      Euclidean distance of the sorted eigenvalues; blind to the order of the samples
    rsa           ``1 - r``, Pearson's r of the off-diagonal diffusion distances at t = 8: 0 to 2
    ============= ==========================================================================================

    Parameters
    ----------
    operators : sequence of T operators (sample, neighbor), or array (T, sample, neighbor)
        Operators, arrays or tensors; every item of a lazy sequence is read once per band of rows. A memory map is
        read as a file, so that its pages do not add up in memory.
    metric : str
        One of the table above.
    memory : bytes, or text such as "2GB"
        Bound on the memory used in addition to the operators; it does not depend on T except for the (T, T) results.
        "rsa" keeps what does not fit in a temporary file.
    sketch : int, optional
        Estimate the distances from a sketch of each operator, of so many numbers, such as 4096: each operator is read
        once. Squared distances are unbiased, with a relative standard error of ``sqrt(2 / sketch)``; "frobenius" and
        "calibrated" alone.
    seed : int
        Of the sketches.
    progress : function of (done, all), optional
        Called as the work goes on.

    Returns
    -------
    ndarray (T, T), float64, symmetric with a zero diagonal

    Raises
    ------
    OperatorError
        Operators have different sizes, are not square, have NaN, or tell of different samples; or not even one row of
        each fits in the budget.
    ValueError
        The metric is unknown, or not one that sketches keep; or `sketch` is not a square number.

    Examples
    --------
    >>> import numpy as np
    >>> operator_distances([np.eye(2), np.full((2, 2), 0.5)])
    array([[0., 1.],
           [1., 0.]])

    See Also
    --------
    nearest_operators : the nearest ones of very many operators.
    phate_trajectories : draws operators as points from these distances.
    spread : mean calibrated distance of several models, with an interval.

    References
    ----------
    Kriegeskorte, Mur and Bandettini (2008), Representational similarity analysis, Front. Syst. Neurosci. 2.
    """
    if metric not in METRICS:
        raise ValueError(f"expected a metric among {', '.join(METRICS)}, found {metric!r}")
    if isinstance(operators, Mapping):
        raise OperatorError("expected a sequence of operators, found a mapping: pass list(operators.values())")
    refuse_sketches(operators)
    if isinstance(operators, list | tuple):  # items of others may be read when they are asked for
        check_samples({str(index): operator for index, operator in enumerate(operators)})
    stack = OperatorStack(operators)
    if sketch is None:
        return METRICS[metric](stack, memory, progress)
    check_metric(metric)
    made = [count_sketch(stack[index], sketch, seed=seed) for index in range(len(stack))]
    return sketch_distances(made, cast(SketchedMetric, metric), memory=memory, progress=progress)


def _frobenius(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    distances: Array = np.sqrt(stream_gram(stack, memory=memory, progress=progress).squared_distances)
    return distances


def _calibrated(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    return calibrated_distances(stack, len(stack), memory=memory, progress=progress)


def _apart(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    """Return ``1 - BC = |sqrt P - sqrt Q|_F^2 / 2N`` of row-stochastic operators."""
    # roots of close operators differ by less than single precision holds of a root
    gram = stream_gram(stack.wide(), memory=memory, progress=progress, transform=lambda band: band.sqrt_())
    return np.clip(gram.squared_distances / (2 * stack.samples), 0, 1)


def _hellinger(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    distances: Array = np.sqrt(_apart(stack, memory, progress))
    return distances


def _bhattacharyya(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    with np.errstate(divide="ignore"):
        distances: Array = -np.log1p(-_apart(stack, memory, progress))
    return distances


def _spectrum(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    values = np.empty((len(stack), stack.samples), dtype=np.complex128)
    for index in range(len(stack)):
        values[index] = spectrum(stack[index])
        if progress is not None:
            progress(index + 1, len(stack))
    distances: Array = squareform(pdist(np.concatenate([values.real, values.imag], axis=1)))
    return distances


def _rsa(stack: OperatorStack, memory: str | int, progress: Progress | None) -> Array:
    shape = (len(stack), stack.samples, stack.samples)
    held = 4 * int(np.prod(shape)) <= bytes_of(memory) // 2
    with tempfile.TemporaryDirectory(prefix="repaudit-") as folder:
        name = Path(folder, "distances.npy")
        cube = np.empty(shape, np.float32) if held else np.lib.format.open_memmap(name, "w+", np.float32, shape)
        flat = []
        for index in range(len(stack)):
            profile = standardized(diffusion_distances(stack[index]))
            cube[index] = profile
            flat += [] if profile.any() else [index]
            if isinstance(cube, np.memmap):
                cube.flush()
                cube = np.load(name, mmap_mode="r+")  # a fresh map holds no pages
            if progress is not None:
                progress(index + 1, len(stack))
        if flat:
            raise OperatorError(
                f"metric 'rsa' expects distances that differ: all samples are equally far in operators {flat[:8]}"
            )
        gram = stream_gram(OperatorStack(cube), memory=bytes_of(memory) // 2)
        del cube
    return gram.squared_distances / 2


METRICS: dict[str, Callable[[OperatorStack, str | int, Progress | None], Array]] = {
    "frobenius": _frobenius,
    "calibrated": _calibrated,
    "hellinger": _hellinger,
    "bhattacharyya": _bhattacharyya,
    "spectrum": _spectrum,
    "rsa": _rsa,
}
