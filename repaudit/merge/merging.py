"""Merging the operators of several models into one consensus operator P*."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from repaudit.errors import OperatorError, WeightError
from repaudit.merge.barycenter import SMALLEST_REG, Barycenter, Settings, barycenter, exact_barycenter
from repaudit.merge.cost import SparseCost, scaled_cost
from repaudit.merge.flows import mixed_walks
from repaudit.merge.gromov import gromov_barycenter
from repaudit.merge.means import weighted_mean
from repaudit.merge.supports import sparse_barycenter
from repaudit.names import __version__, in_natural_order
from repaudit.operators.convert import is_sparse
from repaudit.operators.labels import check_samples, warn_of_scales
from repaudit.operators.operator import DiffusionOperator
from repaudit.operators.sparse import SparseDiffusionOperator

Strategy = Literal["weighted", "frobenius", "reversible", "ot_barycenter", "gromov"]
Operators = dict[str, DiffusionOperator]


@dataclass(frozen=True)
class DiffusionMerging:
    """Merge diffusion operators, one per model, into one consensus operator P*.

    ``"weighted"``: row-normalised ``Σ w_k P_k``. ``"frobenius"``: ``(1/N) Σ P_k``, the minimiser of the summed squared
    Frobenius distance. ``"reversible"``: ``D^-1 Σ w_k Π_k P_k``, the mixture of the random walks, with a real spectrum.
    ``"ot_barycenter"``: each row the Wasserstein barycenter of the rows; of sparse operators it is sparse, on the union
    of their supports in each row. ``"gromov"``: the Gromov-Wasserstein barycenter, for operators on different
    samples. Sources: Zhou and Burges (2007) for ``reversible``; Benamou et al. (2015) and Janati et al. (2020) for
    ``ot_barycenter``; Peyré, Cuturi and Solomon (2016) for ``gromov``; the modules of :mod:`repaudit.merge` say more.

    Parameters
    ----------
    strategy
        How to merge.
    weights
        Weight per model name, not negative; equal by default. The names must be those of the operators.
    reg
        For ``ot_barycenter``: entropic regularisation, in units of the cost's scale, that is of the cost of a typical
        transition; 0 for the exact linear programme (a few hundred samples at most), else at least 1e-4. Over 24 sets
        of 3 operators of 30 samples (random rows of five kinds, gauges) the rows of P* cost .004 to .009 more transport
        than the exact ones at .05, .002 to .004 more at .03 with 1.5 to 3 times the iterations, and the rows of the
        mean .08 to .14 more. Where costs reach 600 times ``reg``, iterations are slower, and many more are needed.
    cost
        For ``ot_barycenter``: cost of moving mass between samples, symmetric; by default the squared diffusion distance
        of the mean operator, at most 10 times its scale. The scale, ``cost_scale`` in the attrs, is the median over
        samples of the mean cost of a transition of the mean operator to another sample: one outlying sample does not
        set it.
    debiased
        For ``ot_barycenter``: whether to remove the blur of the regularisation. Without it, the barycenter of identical
        operators is not that operator.
    tolerance, max_iterations
        For ``ot_barycenter``: largest L1 error of a marginal of a row, and the iterations after which a row ends
        anyway. The attrs ``marginal_error`` and ``iterations`` say what was reached; it warns if the error is more than
        ten times the tolerance. A tolerance of 1e-3 takes about a third of the time to nearly the same transport cost.
    n_samples, seed
        For ``gromov``: number of samples of P*, by default the smallest number of the operators, and the start of
        the search.

    Examples
    --------
    >>> import numpy as np
    >>> operators = {"a": np.eye(2), "b": np.full((2, 2), 0.5)}
    >>> DiffusionMerging("weighted", weights={"a": 1, "b": 3}).merge(operators).matrix.tolist()
    [[0.625, 0.375], [0.375, 0.625]]

    See Also
    --------
    DiffusionGauge : computes the operators to merge.
    phate_embedding : draws the merged operator.
    spread : says how far the operators are from each other.
    """

    strategy: Strategy = "frobenius"
    weights: Mapping[str, float] | None = None
    reg: float = field(default=0.05, kw_only=True)
    cost: Any = field(default=None, kw_only=True)
    debiased: bool = field(default=True, kw_only=True)
    tolerance: float = field(default=1e-4, kw_only=True)
    max_iterations: int = field(default=2000, kw_only=True)
    n_samples: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.strategy not in _STRATEGIES:
            raise ValueError(f"expected a strategy among {', '.join(map(repr, _STRATEGIES))}, found {self.strategy!r}")
        if self.strategy == "frobenius" and self.weights is not None:
            raise WeightError(
                "strategy='frobenius' weights all operators equally; for other weights use strategy='weighted'"
            )
        if not isinstance(self.weights, Mapping | None):
            raise WeightError(
                f"expected weights by model name, such as {{'seed0': 1.0}}, found {type(self.weights).__name__}"
            )
        given: Mapping[str, Any] = self.weights or {}
        for name, weight in given.items():
            if isinstance(weight, str) or not (math.isfinite(weight) and weight >= 0):
                raise WeightError(f"expected weights that are finite and not negative, found {weight!r} for {name!r}")
        if not (self.reg == 0 or SMALLEST_REG <= self.reg < math.inf):
            raise ValueError(
                f"expected reg=0 (exact) or at least {SMALLEST_REG} of the cost's scale, found {self.reg!r}"
            )
        if self.max_iterations < 1 or self.tolerance <= 0:
            raise ValueError(
                f"expected a positive tolerance and at least 1 iteration, found tolerance={self.tolerance!r} and "
                f"max_iterations={self.max_iterations!r}"
            )

    def merge(self, operators: Mapping[str, Any]) -> DiffusionOperator:
        """Merge operators, arrays, tensors or DataArrays ``(sample, neighbor)``, by model name.

        The operators are not changed, and their order does not matter.

        Parameters
        ----------
        operators
            Operator per model name, all on the same samples (except for ``gromov``).

        Returns
        -------
        DiffusionOperator
            P*, with the parameters on which the operators agree, the strategy and the weights in its attrs.

        Raises
        ------
        OperatorError
            No operator, one that is not row-stochastic, different numbers of samples or different sample ids.
        WeightError
            Weights for unknown models, none for some, or all zero.

        Warns
        -----
        OperatorWarning
            Their attributes tell of different perplexities.

        Examples
        --------
        >>> import numpy as np
        >>> DiffusionMerging().merge({"a": np.eye(2), "b": np.full((2, 2), 0.5)}).matrix.tolist()
        [[0.75, 0.25], [0.25, 0.75]]
        """
        names = _names(operators)
        taken = {name: _operator(name, operators[name]) for name in names}
        warn_of_scales(taken)
        ids = None if self.strategy == "gromov" else _same_samples(taken)
        weights = self._weights(names)
        merged, degrees, reached = _STRATEGIES[self.strategy](self, taken, weights)
        if all(operator.matrix.dtype == torch.float32 for operator in taken.values()):
            merged = merged.float()
        attrs = {
            **_shared([operator.attrs for operator in taken.values()]),
            "merge": self.strategy,
            "models": names,
            "weights": dict(zip(names, weights, strict=True)),
            "repaudit_version": __version__,
            **reached,
        }
        if is_sparse(merged):
            return SparseDiffusionOperator(merged.coalesce(), degrees, attrs=attrs, samples=ids)
        return DiffusionOperator(merged, degrees, attrs=attrs, samples=ids)

    def _weights(self, names: list[str]) -> list[float]:
        if self.weights is None:
            return [1 / len(names)] * len(names)
        unknown, missing = (
            sorted(one, key=in_natural_order)
            for one in (set(self.weights) - set(names), set(names) - set(self.weights))
        )
        if unknown or missing:
            what = [f"no operator named {unknown}"] * bool(unknown) + [f"no weight for {missing}"] * bool(missing)
            raise WeightError(f"weights and operators differ: {' and '.join(what)}; the operators are {names}")
        total = sum(self.weights.values())
        if total <= 0:
            raise WeightError("expected at least one weight above zero, found all weights zero")
        return [self.weights[name] / total for name in names]


Merged = tuple[Tensor, Tensor | None, dict[str, Any]]


def _mean(merging: DiffusionMerging, operators: Operators, weights: list[float]) -> Merged:
    if all(is_sparse(operator.matrix) for operator in operators.values()):
        return weighted_mean([operator.matrix for operator in operators.values()], weights), None, {}
    return weighted_mean([operator.wide for operator in operators.values()], weights), None, {}


def _reversible(merging: DiffusionMerging, operators: Operators, weights: list[float]) -> Merged:
    return *mixed_walks(operators, weights), {}


def _barycenter(merging: DiffusionMerging, operators: Operators, weights: list[float]) -> Merged:
    if any(operator.matrix.requires_grad for operator in operators.values()):
        raise OperatorError("strategy='ot_barycenter' has no gradient: detach the operators")
    sparse = all(is_sparse(operator.matrix) for operator in operators.values())
    matrices = [operator.matrix if sparse else operator.wide for operator in operators.values()]
    settings = Settings(merging.reg, merging.debiased, merging.tolerance, merging.max_iterations)
    with torch.no_grad():
        solved, scale = (_of_sparse if sparse else _of_dense)(matrices, weights, merging.cost, settings)
    if solved.marginal_error > 10 * merging.tolerance:
        warnings.warn(
            f"the barycenter's marginals are off by {solved.marginal_error:.1e} after {solved.iterations} iterations, "
            f"against a tolerance of {merging.tolerance:.1e}; raise max_iterations or reg",
            stacklevel=3,
        )
    given = "given" if merging.cost is not None else "diffusion distance of the mean operator"
    reached = {"marginal_error": solved.marginal_error, "iterations": solved.iterations}
    about = {"reg": merging.reg, "debiased": merging.debiased, "cost": given, "cost_scale": scale}
    return solved.rows, None, {**about, **reached}


def _of_dense(matrices: list[Tensor], weights: list[float], cost: Any, settings: Settings) -> tuple[Barycenter, float]:
    scaled, scale = scaled_cost(matrices, weights, cost)
    if scale == 0:
        # moving mass is free within every row, and every mean of the rows is a barycenter
        return Barycenter(weighted_mean(matrices, weights), 0.0, 0), scale
    if settings.reg == 0:
        return exact_barycenter(matrices, weights, scaled), scale
    return barycenter(matrices, weights, scaled, **asdict(settings)), scale


def _of_sparse(matrices: list[Tensor], weights: list[float], cost: Any, settings: Settings) -> tuple[Barycenter, float]:
    scaled = SparseCost.of(matrices, weights, cost)
    if scaled.scale == 0:
        return Barycenter(weighted_mean(matrices, weights), 0.0, 0), scaled.scale
    return sparse_barycenter(matrices, weights, scaled, settings), scaled.scale


def _gromov(merging: DiffusionMerging, operators: Operators, weights: list[float]) -> Merged:
    count = merging.n_samples or min(operator.n_samples for operator in operators.values())
    return gromov_barycenter(list(operators.values()), weights, count, merging.seed)


_STRATEGIES: Final[dict[str, Callable[[DiffusionMerging, Operators, list[float]], Merged]]] = {
    "weighted": _mean,
    "frobenius": _mean,
    "reversible": _reversible,
    "ot_barycenter": _barycenter,
    "gromov": _gromov,
}


def _names(operators: Mapping[str, Any]) -> list[str]:
    if not isinstance(operators, Mapping):
        raise OperatorError(
            f"expected operators by model name, such as {{'seed0': operator}}, found {type(operators).__name__}"
        )
    if not operators:
        raise OperatorError("expected at least one operator to merge, found none")
    # sums in floating point depend on order; a fixed one makes the result independent of the caller's
    return sorted(operators)


def _operator(name: str, operator: Any) -> DiffusionOperator:
    if isinstance(operator, DiffusionOperator):
        return operator
    try:
        return DiffusionOperator.from_matrix(operator)
    except OperatorError as error:
        raise OperatorError(f"operator {name!r}: {error}") from None


def _same_samples(operators: Operators) -> Any:
    counts = {name: operator.n_samples for name, operator in operators.items()}
    if len(set(counts.values())) > 1:
        raise OperatorError(
            f"expected operators on the same samples, found numbers of samples {counts}; "
            "strategy='gromov' merges operators on different samples"
        )
    return check_samples(operators)


def _shared(attrs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the gauge parameters on which all operators agree."""
    first, *others = attrs
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}
