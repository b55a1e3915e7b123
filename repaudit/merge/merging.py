"""Merging the operators of several models into one consensus operator P*."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from repaudit import __version__
from repaudit.errors import OperatorError, WeightError
from repaudit.gauge.spectrum import DiffusionOperator
from repaudit.merge.means import weighted_mean

Strategy = Literal["weighted", "frobenius"]
Merged = tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class DiffusionMerging:
    """Merge diffusion operators on the same samples, one a model, into P*.

    ``"weighted"``: row-normalised ``Σ w_i P_i``. ``"frobenius"``: ``(1/N) Σ P_i``, the minimiser of the summed squared
    Frobenius distance; equal to ``"weighted"`` at equal weights.

    Parameters
    ----------
    strategy
        How to merge.
    weights
        Weight of each model by name, not negative; equal if not given. Names must be those of the operators.

    Examples
    --------
    >>> operators = {"a": np.eye(2), "b": np.full((2, 2), 0.5)}
    >>> DiffusionMerging("weighted", weights={"a": 1, "b": 3}).merge(operators).matrix.tolist()
    [[0.625, 0.375], [0.375, 0.625]]
    """

    strategy: Strategy = "frobenius"
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.strategy not in _STRATEGIES:
            raise ValueError(f"strategy is one of {', '.join(map(repr, _STRATEGIES))}; found {self.strategy!r}")
        if self.strategy == "frobenius" and self.weights is not None:
            raise WeightError("strategy='frobenius' weighs all operators equally; for weights use strategy='weighted'")
        for name, weight in (self.weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise WeightError(f"expected weights that are finite and not negative, found {weight!r} for {name!r}")

    def merge(self, operators: Mapping[str, Any]) -> DiffusionOperator:
        """Merge operators, arrays, tensors or DataArrays ``(sample, neighbor)``, by model name.

        The operators are left as they are, and their order does not matter.

        Raises
        ------
        OperatorError
            No operator, one that is not row-stochastic, different numbers of samples or different sample ids.
        WeightError
            Weights for unknown models, none for some, or all zero.
        """
        names = _names(operators)
        taken = {name: _operator(name, operators[name]) for name in names}
        ids = _same_samples(taken)
        weights = self._weights(names)
        matrices = [taken[name].matrix for name in names]
        merged, found = _STRATEGIES[self.strategy](self, matrices, weights)
        wide = any(matrix.dtype == torch.float64 for matrix in matrices)
        attrs = {
            "merge": self.strategy,
            "models": names,
            "weights": dict(zip(names, weights, strict=True)),
            "repaudit_version": __version__,
            **_shared([taken[name].attrs for name in names]),
            **found,
        }
        return DiffusionOperator(merged if wide else merged.float(), attrs=attrs, samples=ids)

    def _weights(self, names: list[str]) -> list[float]:
        if self.weights is None:
            return [1 / len(names)] * len(names)
        unknown, missing = sorted(set(self.weights) - set(names)), sorted(set(names) - set(self.weights))
        if unknown or missing:
            what = [f"no operator named {unknown}"] * bool(unknown) + [f"no weight for {missing}"] * bool(missing)
            raise WeightError(f"weights and operators differ: {' and '.join(what)}; the operators are {names}")
        total = sum(self.weights.values())
        if total <= 0:
            raise WeightError("all weights are zero; at least one model must count")
        return [self.weights[name] / total for name in names]


def _mean(merging: DiffusionMerging, matrices: list[Tensor], weights: list[float]) -> Merged:
    return weighted_mean(matrices, weights), {}


_STRATEGIES: Final[dict[str, Callable[[DiffusionMerging, list[Tensor], list[float]], Merged]]] = {
    "weighted": _mean,
    "frobenius": _mean,
}


def _names(operators: Mapping[str, Any]) -> list[str]:
    if not isinstance(operators, Mapping):
        raise OperatorError(
            f"expected operators by model name, {{'seed0': operator}}; found {type(operators).__name__}"
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


def _same_samples(operators: Mapping[str, DiffusionOperator]) -> Any:
    counts = {name: operator.n_samples for name, operator in operators.items()}
    if len(set(counts.values())) > 1:
        raise OperatorError(f"expected operators on the same samples, found these numbers of samples: {counts}")
    known = {name: operator.samples for name, operator in operators.items() if operator.samples is not None}
    first = next(iter(known), "")
    for name, ids in known.items():
        differ = np.flatnonzero(ids != known[first])
        if len(differ):
            at = int(differ[0])
            raise OperatorError(
                f"expected the same samples in the same order, found {known[first][at].item()!r} in {first!r} "
                f"and {ids[at].item()!r} in {name!r} at position {at}"
            )
    return known.get(first)


def _shared(attrs: list[dict[str, Any]]) -> dict[str, Any]:
    """Gauge parameters on which all operators agree."""
    first, *others = attrs
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}
