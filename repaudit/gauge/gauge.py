"""The gauge: activations in, diffusion operator out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral
from typing import Any, Final, Literal, get_args

import torch
import xarray as xr
from torch import Tensor

from repaudit.distance.points import Metric, cloud
from repaudit.distance.precision import full_precision
from repaudit.distance.squared import squared_distances_
from repaudit.errors import ActivationError
from repaudit.gauge.bandwidth import bandwidth
from repaudit.gauge.differentiable import Comparison, differentiable_kernel_operator, differentiable_perplexity_operator
from repaudit.gauge.kernel import Kernel
from repaudit.gauge.labelled import Activations, read
from repaudit.gauge.landmarks import landmark_operator
from repaudit.gauge.normalize import markov_, refuse_isolated
from repaudit.gauge.perplexity import neighbors_within
from repaudit.gauge.perplexity_operator import Scale, perplexity_operators
from repaudit.gauge.sparse_operator import sparse_operator
from repaudit.gauge.trees import map_tree
from repaudit.names import __version__
from repaudit.operators.landmark import LandmarkDiffusionOperator
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator

KernelName = Literal["gaussian", "alpha_decay"]
PERPLEXITY: Final = 15.0
KNN: Final = {"gaussian": 15, "alpha_decay": 5}


@dataclass(frozen=True)
class DiffusionGauge:
    """Turn activations ``(sample, feature)`` into a diffusion operator ``P (sample, neighbor)``.

    By default every sample has the same effective number of neighbours ``u``, its perplexity, so that operators of
    different models, widths and training steps look at the same scale:
    ``p_j|i = exp(-b_i d_ij²) / Σ_k exp(-b_i d_ik²)`` over the ``3 u`` nearest others, with ``b_i`` such that
    ``exp(entropy of p_i) = u``, and ``K = (p_j|i + p_i|j) / 2``.

    ``knn=``, ``bandwidth=`` and ``kernel="alpha_decay"`` choose kernels with a local or fixed bandwidth instead:
    ``K = exp(-d_ij² / (s_i s_j))`` for ``"gaussian"``, with ``s_i`` the distance to the ``knn``-th neighbour, or
    ``exp(-d² / (2 s²))`` with a ``bandwidth``; ``K = 1/2 [exp(-(d/s_i)^decay) + exp(-(d/s_j)^decay)]`` for
    ``"alpha_decay"``.

    Then ``K <- K_ij / (q_i q_j)^alpha`` with ``q`` the row sums, and ``P = D^-1 K``.

    Parameters
    ----------
    kernel : {"gaussian", "alpha_decay"}
    knn : int, optional
        The neighbour, the sample itself excluded, whose distance is the local scale. For ``"alpha_decay"`` 5 if not
        given, or all others where there are fewer; the attrs tell which. A given ``knn`` that the number of samples
        does not allow is an error.
    bandwidth : float or "median", optional
        One scale for all samples, a distance, or the median distance between samples; takes the place of knn.
    decay : float
        Exponent of the alpha-decay kernel.
    alpha : float
        Density correction, 0 (none) to 1 (only geometry).
    metric : {"euclidean", "cosine"}
        "cosine" is the Euclidean distance of unit vectors.
    standardize : bool
        Divide each feature by its standard deviation first. This changes the metric.
    self_loops : bool, optional
        Whether a sample is its own neighbour: not with a perplexity, where the loop would outweigh all else; True by
        default with the other kernels.
    neighbors : int, optional
        Number of nearest neighbours that a row is made of, ties for the last place included (an entry stays where
        either side has it). With a perplexity 3 u by default; with the other kernels all, and a number gives a sparse
        operator.
    perplexity : float, optional
        Effective number of neighbours, 15 by default. A row that cannot have it is counted under ``unheld`` in the
        diagnostics: with at most ``u`` other samples it is uniform over all of them, with at least ``u`` nearest ties
        (duplicates) uniform over these. The operator is sparse where the samples are at least eight times as many as
        the neighbours of a row (360 for 15).
    landmarks : int, optional
        Walk from samples to this many of them, drawn by ``seed``, and back: ``P = (D^-1 A) (Λ^-1 A')`` with ``A`` the
        kernel ``(sample, landmark)`` and local scales among the landmarks, kept in memory of the size of ``A``. It
        approximates two transitions, and with all samples as landmarks it is ``P²`` exactly. Goes with ``knn``,
        ``bandwidth`` or ``kernel="alpha_decay"``.
    seed : int
        Of the landmarks.

    See Also
    --------
    repaudit.DiffusionMerging : Merge the operators of several models.
    repaudit.spread : Measure how far the operators of several models are apart.

    References
    ----------
    Hinton and Roweis, Stochastic neighbor embedding (2002), and van der Maaten and Hinton, t-SNE (2008), for the
    perplexity and its symmetric affinities; Coifman and Lafon, Diffusion maps (2006); Moon et al., PHATE (2019), for
    the alpha-decay kernel and for landmarks.

    Examples
    --------
    The default: every sample has 15 effective neighbours.

    >>> points = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    >>> operator = DiffusionGauge()(points)
    >>> operator.diagnostics["unheld"], operator.matrix.is_sparse
    (0, True)

    A fixed bandwidth, by hand.

    >>> operator = DiffusionGauge(bandwidth=1.0, alpha=0.0)(torch.tensor([[0.0], [1.0], [3.0]]))
    >>> [f"{p:.4f}" for p in operator.matrix[0]]
    ['0.6182', '0.3749', '0.0069']
    """

    kernel: KernelName = "gaussian"
    knn: int | None = None
    bandwidth: float | Literal["median"] | None = None
    decay: float = 40.0
    alpha: float = 1.0
    metric: Metric = "euclidean"
    standardize: bool = False
    self_loops: bool | None = None
    neighbors: int | None = None
    perplexity: float | None = field(default=None, kw_only=True)
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
        self._settle_perplexity()

    def _settle_perplexity(self) -> None:
        """Fill in the perplexity where no other kernel is chosen, and refuse it beside one."""
        others = {"knn": self.knn, "bandwidth": self.bandwidth}
        named = [f"{name}={value!r}" for name, value in others.items() if value is not None]
        named += [f"kernel={self.kernel!r}"] * (self.kernel != "gaussian")
        given = self.perplexity
        if self.landmarks is not None and (given is not None or not named):
            raise ValueError("landmarks goes with knn, bandwidth or kernel='alpha_decay', not with a perplexity")
        if given is not None and named:
            raise ValueError(f"perplexity={given!r} is one kernel, {', '.join(named)} another; give one of them")
        if not named:
            value = PERPLEXITY if given is None else given
            if isinstance(value, bool | str) or not 1 < float(value) < float("inf"):
                raise ValueError(f"perplexity is an effective number of neighbours, more than 1; found {value!r}")
            if self.neighbors is not None and self.neighbors < value:
                raise ValueError(f"perplexity={value:g} needs as many neighbors; found neighbors={self.neighbors}")
            if self.self_loops:
                raise ValueError("a perplexity counts other samples; give self_loops=False, or knn, or a bandwidth")
            object.__setattr__(self, "perplexity", float(value))

    def __call__(self, X: Any) -> DiffusionOperator:
        """Compute the operator of activations ``(sample, feature)``: ndarray, tensor (CPU, CUDA) or DataArray.

        The matrix is float32 for what float32 holds exactly (float32, float16, bfloat16, integers up to 2^24), else
        float64. A tensor that requires a gradient gives a dense operator that carries it.

        Raises
        ------
        ActivationError
            The activations are not finite, too few for ``knn``, or not ``(sample, feature)``.
        """
        activations = read(X)
        if self.perplexity is not None:
            return self._at_scales(activations, [self.perplexity])[0]
        samples = activations.samples
        knn = self._neighbourhood(activations)
        if self.landmarks is not None and not _needs_gradient(samples):
            return self._through_landmarks(activations, knn, self.landmarks)
        if _needs_gradient(samples):
            if not self._every_pair:
                raise ValueError(
                    "kNN-sparse and landmark operators carry no gradient; use neighbors=None and landmarks=None, or "
                    "detach the tensor"
                )
            matrix, degrees, counts = differentiable_kernel_operator(
                samples, Comparison(self.metric, self.standardize), self._kernel, self.bandwidth, knn
            )
        else:
            with torch.no_grad(), full_precision(samples.device):
                matrix, degrees, counts = (self._dense if self.neighbors is None else self._sparse)(samples, knn)
        attrs = self._attrs(activations, {"knn": knn if self.bandwidth is None else None})
        return _operator(matrix, degrees, counts, attrs, activations)

    def operators(self, X: Any, perplexities: Sequence[float]) -> list[DiffusionOperator]:
        """Compute operators of the same activations at several perplexities, from one computation of the distances.

        Raises
        ------
        ActivationError
            As when called.
        ValueError
            The gauge has another kernel than that of a perplexity.

        Examples
        --------
        >>> points = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> near, far = DiffusionGauge().operators(points, (5, 16))
        >>> near.attrs["perplexity"], far.attrs["perplexity"]
        (5.0, 16.0)
        """
        if self.perplexity is None:
            raise ValueError("several perplexities need a gauge with a perplexity, not knn, bandwidth or alpha_decay")
        return self._at_scales(read(X), [replace(self, perplexity=value).perplexity or 0.0 for value in perplexities])

    def map(self, tree: xr.DataTree) -> xr.DataTree:
        """Lazily turn every layer of a tree (``ra.open_store(url)``) into operators ``(step, sample, neighbor)``.

        One task per model, layer and step, computed when it is asked for. Layers that keep their tokens have no
        operator and are left out; the root's attrs name them under ``left_out``.
        """
        if not self._every_pair:
            raise ValueError(
                "a tree holds dense operators, as those of all steps share their dims; use neighbors=None, "
                "landmarks=None"
            )
        return map_tree(lambda activations: self(activations).to_numpy(), asdict(self), tree)

    def _at_scales(self, activations: Activations, perplexities: Sequence[float]) -> list[DiffusionOperator]:
        samples = activations.samples
        count = len(samples)
        scales = [Scale(u, min(count - 1, self.neighbors or neighbors_within(u, count))) for u in perplexities]
        if _needs_gradient(samples):
            comparison = Comparison(self.metric, self.standardize)
            made = [differentiable_perplexity_operator(samples, comparison, scale, self.alpha) for scale in scales]
        else:
            with torch.no_grad(), full_precision(samples.device):
                points = cloud(samples, self.metric, self.standardize)
                made = perplexity_operators(points, scales, self.alpha)
        return [
            _operator(
                one.matrix,
                one.degrees,
                one.counts,
                self._attrs(activations, {"perplexity": scale.perplexity, "neighbors": scale.neighbors}),
                activations,
            )
            for one, scale in zip(made, scales, strict=True)
        ]

    def _dense(self, samples: Tensor, knn: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        points = cloud(samples, self.metric, self.standardize)
        matrix = torch.empty(len(samples), len(samples), dtype=samples.dtype, device=samples.device)
        squared_distances_(matrix, points)
        local = bandwidth(matrix, knn, points.scaled(self.bandwidth), points.spread)
        sums = self._kernel.all_pairs_(matrix, local.scale)
        if not self._kernel.self_loops:
            refuse_isolated(sums, matrix.dtype)
        degrees = markov_(matrix, sums, self.alpha)
        return matrix, degrees, {"duplicates": local.duplicates, "collapsed": local.collapsed, "floored": local.floored}

    def _sparse(self, samples: Tensor, knn: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
        points = cloud(samples, self.metric, self.standardize)
        return sparse_operator(points, self._kernel, points.scaled(self.bandwidth), knn, self.neighbors or knn)

    def _through_landmarks(self, activations: Activations, knn: int, count: int) -> LandmarkDiffusionOperator:
        samples = activations.samples
        drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))[:count]
        landmarks = drawn.sort().values.to(samples.device)
        with torch.no_grad(), full_precision(samples.device):
            points = cloud(samples, self.metric, self.standardize)
            fixed = points.scaled(self.bandwidth)
            factor, degrees, counts = landmark_operator(points, self._kernel, fixed, knn, landmarks)
        attrs = {**self._attrs(activations, {"knn": knn if self.bandwidth is None else None}), "t": 2}
        return LandmarkDiffusionOperator(
            factor, degrees, landmarks, attrs=attrs, diagnostics=counts, samples=activations.ids
        )

    @property
    def _every_pair(self) -> bool:
        return self.neighbors is None and self.landmarks is None

    @property
    def _kernel(self) -> Kernel:
        decay = self.decay if self.kernel == "alpha_decay" else None
        return Kernel(decay, self.alpha, self.bandwidth is None, self._loops)

    @property
    def _loops(self) -> bool:
        return self.perplexity is None if self.self_loops is None else self.self_loops

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

    def _attrs(self, activations: Activations, used: dict[str, Any]) -> dict[str, Any]:
        versions = {"repaudit_version": __version__, "torch_version": str(torch.__version__)}
        return {**asdict(self), "self_loops": self._loops, **used, **versions, **activations.place}


def _operator(
    matrix: Tensor, degrees: Tensor, counts: dict[str, Any], attrs: dict[str, Any], activations: Activations
) -> DiffusionOperator:
    form = DiffusionOperator if matrix.layout == torch.strided else SparseDiffusionOperator
    return form(matrix, degrees, attrs=attrs, diagnostics=counts, samples=activations.ids)


def _needs_gradient(samples: Tensor) -> bool:
    return samples.requires_grad and torch.is_grad_enabled()


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(map(repr, known))}; found {value!r}")
