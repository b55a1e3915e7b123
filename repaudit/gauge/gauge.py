"""The gauge: activations in, diffusion operator out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import Any, Final, Literal, get_args

import torch
import xarray as xr
from torch import Tensor

from repaudit.distance.points import Cloud, Metric, cloud
from repaudit.distance.squared import full_precision, squared_distances_
from repaudit.errors import ActivationError
from repaudit.gauge.bandwidth import bandwidth
from repaudit.gauge.differentiable import Comparison, differentiable_operator
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.labelled import Activations, read
from repaudit.gauge.landmarks import landmark_operator
from repaudit.gauge.neighbors import sparse_operator
from repaudit.gauge.normalize import markov_, refuse_isolated
from repaudit.gauge.trees import map_tree
from repaudit.names import __version__
from repaudit.operators.landmark import LandmarkDiffusionOperator
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator

KNN: Final = {"gaussian": 15, "alpha_decay": 5}


@dataclass(frozen=True)
class DiffusionGauge:
    """Turn activations ``(sample, feature)`` into a diffusion operator ``P (sample, neighbor)``.

    ``K = exp(-d_ij² / (s_i s_j))`` for ``kernel="gaussian"``, with ``s_i`` the distance to the ``knn``-th neighbour, or
    ``exp(-d² / (2 s²))`` with a ``bandwidth``; ``K = 1/2 [exp(-(d/s_i)^decay) + exp(-(d/s_j)^decay)]`` for
    ``"alpha_decay"``. Then ``K <- K_ij / (q_i q_j)^alpha`` with ``q`` the row sums, and ``P = D^-1 K``.

    Parameters
    ----------
    kernel
        "gaussian" or "alpha_decay".
    knn
        The neighbour, the sample itself excluded, whose distance is the local scale. ``None``: 15 (gaussian) or 5
        (alpha_decay), or all others where there are fewer; the attrs tell which. A given ``knn`` that the number of
        samples does not allow is an error.
    bandwidth
        One scale for all samples, a distance, or "median", the median distance between samples; takes the place of knn.
    decay
        Exponent of the alpha-decay kernel.
    alpha
        Density correction, 0 (none) to 1 (geometry alone).
    metric
        "euclidean", or "cosine", the Euclidean distance of unit vectors.
    standardize
        Divide each feature by its standard deviation first. This changes the metric.
    self_loops
        Whether a sample is its own neighbour.
    neighbors
        Keep this many nearest neighbours a sample (an entry stays where either side has it): a sparse operator.
    landmarks
        Walk from samples to this many of them, drawn by ``seed``, and back: ``P = (D^-1 A) (Λ^-1 A')`` with ``A`` the
        kernel ``(sample, landmark)`` and local scales among the landmarks, kept in memory of the size of ``A``. It
        approximates two transitions, and with all samples as landmarks it is ``P²`` exactly.

    Source: Coifman and Lafon, Diffusion maps (2006); Moon et al., PHATE (2019), for the alpha-decay kernel and for
    landmarks.

    Examples
    --------
    >>> points = torch.tensor([[0.0], [1.0], [3.0]])
    >>> operator = DiffusionGauge(bandwidth=1.0, alpha=0.0)(points)
    >>> [f"{p:.4f}" for p in operator.matrix[0]]
    ['0.6182', '0.3749', '0.0069']
    """

    kernel: Literal["gaussian", "alpha_decay"] = "gaussian"
    knn: int | None = None
    bandwidth: float | Literal["median"] | None = None
    decay: float = 40.0
    alpha: float = 1.0
    metric: Metric = "euclidean"
    standardize: bool = False
    self_loops: bool = True
    neighbors: int | None = None
    landmarks: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _one_of("kernel", self.kernel, KNN)
        _one_of("metric", self.metric, get_args(Metric))
        for name, least in (("knn", 1), ("neighbors", 1), ("landmarks", 2)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
                raise ValueError(f"{name} is a number of samples, {least} or more; found {value!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha lies between 0 and 1; found {self.alpha!r}")
        if not 0 < self.decay < float("inf"):
            raise ValueError(f"decay is a positive number; found {self.decay!r}")
        if self.bandwidth not in {None, "median"} and not (
            not isinstance(self.bandwidth, str) and 0 < float(self.bandwidth or 0) < float("inf")
        ):
            raise ValueError(f"bandwidth is a positive distance, 'median' or None; found {self.bandwidth!r}")
        if self.landmarks is not None and self.neighbors is not None:
            raise ValueError("neighbors keeps near samples, landmarks a few for all; give one of them")
        if self.bandwidth == "median" and not self._every_pair:
            raise ValueError(
                "bandwidth='median' needs all distances, which neighbors= and landmarks= leave out; "
                "give a number or knn"
            )

    def __call__(self, X: Any) -> DiffusionOperator:
        """Compute the operator of activations ``(sample, feature)``: ndarray, tensor (CPU, CUDA) or DataArray.

        The matrix has the dtype of float64 input, else float32. A tensor that requires a gradient gives an operator
        that carries it.

        Raises
        ------
        ActivationError
            The activations are not finite, too few for ``knn``, or not ``(sample, feature)``.
        """
        activations = read(X)
        samples = activations.samples
        knn = self._neighbourhood(activations)
        if self.landmarks is not None and not (samples.requires_grad and torch.is_grad_enabled()):
            return self._through_landmarks(activations, knn, self.landmarks)
        if samples.requires_grad and torch.is_grad_enabled():
            if not self._every_pair:
                raise ValueError(
                    "kNN-sparse and landmark operators carry no gradient; use neighbors=None and landmarks=None, or "
                    "detach the tensor"
                )
            matrix, degrees, counts = differentiable_operator(
                samples, Comparison(self.metric, self.standardize, self.bandwidth, knn), self._kernel
            )
        else:
            with torch.no_grad(), full_precision(samples.device):
                matrix, degrees, counts = (self._dense if self.neighbors is None else self._sparse)(samples, knn)
        attrs = self._attrs(activations, knn)
        kind = DiffusionOperator if self.neighbors is None else SparseDiffusionOperator
        return kind(matrix, degrees, attrs=attrs, diagnostics=counts, samples=activations.ids)

    def map(self, tree: xr.DataTree) -> xr.DataTree:
        """Lazily turn every layer of a tree (``ra.open_store(url)``) into operators ``(step, sample, neighbor)``.

        One task a model, layer and step, computed when it is asked for. Layers that keep their tokens have no operator
        and are left out; the root's attrs name them under ``left_out``.
        """
        if not self._every_pair:
            raise ValueError(
                "a tree holds dense operators, as those of all steps share their dims; use neighbors=None, "
                "landmarks=None"
            )
        return map_tree(lambda activations: self(activations).to_numpy(), asdict(self), tree)

    def _dense(self, samples: Tensor, knn: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        points = cloud(samples, self.metric, self.standardize)
        matrix = torch.empty(len(samples), len(samples), dtype=samples.dtype, device=samples.device)
        squared_distances_(matrix, points)
        fixed = self.bandwidth * points.scaling if isinstance(self.bandwidth, int | float) else self.bandwidth
        local = bandwidth(matrix, knn, fixed, points.spread)
        sums = self._kernel.all_pairs_(matrix, local.scale)
        if not self.self_loops:
            refuse_isolated(sums, matrix.dtype)
        degrees = markov_(matrix, sums, self.alpha)
        return matrix, degrees, {"duplicates": local.duplicates, "collapsed": local.collapsed, "floored": local.floored}

    def _sparse(self, samples: Tensor, knn: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        points, kernel, fixed = self._pairwise(samples)
        return sparse_operator(points, kernel, fixed, knn, self.neighbors or knn)

    def _through_landmarks(self, activations: Activations, knn: int, count: int) -> LandmarkDiffusionOperator:
        samples = activations.samples
        drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))[:count]
        landmarks = drawn.sort().values.to(samples.device)
        with torch.no_grad(), full_precision(samples.device):
            points, kernel, fixed = self._pairwise(samples)
            factor, degrees, counts = landmark_operator(points, kernel, fixed, knn, landmarks)
        attrs = {**self._attrs(activations, knn), "t": 2}
        return LandmarkDiffusionOperator(
            factor, degrees, landmarks, attrs=attrs, diagnostics=counts, samples=activations.ids
        )

    def _pairwise(self, samples: Tensor) -> tuple[Cloud, Kernel, float | None]:
        """What makes a kernel of some pairs alone: the samples, the kernel and the fixed bandwidth in scaled units."""
        points = cloud(samples, self.metric, self.standardize)
        fixed = None if self.bandwidth is None else float(self.bandwidth) * points.scaling
        return points, self._kernel, fixed

    @property
    def _every_pair(self) -> bool:
        return self.neighbors is None and self.landmarks is None

    @property
    def _kernel(self) -> Kernel:
        decay = self.decay if self.kernel == "alpha_decay" else None
        return Kernel(decay, self.alpha, self.bandwidth is None, self.self_loops)

    def _neighbourhood(self, activations: Activations) -> int:
        count = len(activations.samples)
        at = f" at {activations.where()}" if activations.place else ""
        if self.landmarks is not None and self.landmarks > count:
            raise ActivationError(
                f"landmarks={self.landmarks} needs as many samples, found {count}{at}; give {count} or less"
            )
        for name, value in (("knn", self.knn if self.bandwidth is None else None), ("neighbors", self.neighbors)):
            among, what = (count, "samples") if self.landmarks is None else (self.landmarks, "landmarks")
            if value is not None and value >= among:
                raise ActivationError(
                    f"{name}={value} needs at least {value + 1} {what}, found {among}{at}; "
                    f"give {name}={among - 1} or less, or more {what}"
                )
        return min(self.knn or KNN[self.kernel], (self.landmarks or count) - 1)

    def _attrs(self, activations: Activations, knn: int) -> dict[str, Any]:
        used = {**asdict(self), "knn": knn if self.bandwidth is None else None}
        versions = {"repaudit_version": __version__, "torch_version": str(torch.__version__)}
        return {**used, **versions, **activations.place}


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(map(repr, known))}; found {value!r}")
