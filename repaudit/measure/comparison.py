"""Spread between groups of models, departure from a reference, approach to an end, and of halves of the features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repaudit.errors import ActivationError, OperatorError
from repaudit.measure.distances import operator_distances
from repaudit.measure.spread import Spread, named_operators, spread, spread_of_pairs
from repaudit.measure.tally import Tallies
from repaudit.operators.stack import Operator


@dataclass(frozen=True)
class GroupSpread:
    """Spread within every group, and between every pair of groups."""

    within: dict[str, Spread]
    between: dict[tuple[str, str], Spread]


def group_spread(operators: Mapping[str, Operator], groups: Mapping[str, str], *, seed: int = 0) -> GroupSpread:
    """Compute the calibrated spread within groups of models, and between them: over pairs with one model in each.

    Groups that agree with each other as much as with themselves have ``between`` about equal to ``within``.

    Parameters
    ----------
    operators : mapping of model name to operator (sample, neighbor)
    groups : mapping of model name to group, for example its size or recipe
    seed : int

    Raises
    ------
    OperatorError
        A model has no group, or the operators do not go together.

    Examples
    --------
    >>> import numpy as np
    >>> ring, chain = np.roll(np.eye(8), 1, axis=1), np.roll(np.eye(8), 2, axis=1)
    >>> result = group_spread({"a": ring, "b": ring, "c": chain, "d": chain}, {"a": "s", "b": "s", "c": "l", "d": "l"})
    >>> result.within["s"].value, result.within["l"].value, round(result.between["s", "l"].value, 2)
    (0.0, 0.0, 1.17)
    """
    missing = [model for model in operators if model not in groups]
    if missing:
        raise OperatorError(f"expected a group for every model, found none for {missing}")
    members: dict[str, dict[str, Any]] = {}
    for model, matrix in named_operators(operators).items():
        members.setdefault(groups[model], {})[model] = matrix
    within = {name: spread(models, seed=seed) for name, models in members.items()}
    between = {(a, b): spread_between(members[a], members[b], seed=seed) for a, b in combinations(members, 2)}
    return GroupSpread(within, between)


def spread_between(first: Mapping[str, Operator], second: Mapping[str, Operator], *, seed: int = 0) -> Spread:
    """Compute the spread over pairs of one model of `first` and one of `second`; jackknife over all models."""
    operators = [*named_operators(first).items(), *named_operators(second).items()]
    pairs = list(product(range(len(first)), range(len(first), len(operators))))
    return spread_of_pairs(operators, pairs, len(operators), seed)


def departure(
    operators: Mapping[str, Operator],
    reference: Operator | Mapping[str, Operator],
    *,
    seed: int = 0,
    tallies: Tallies | None = None,
) -> Spread:
    """Compute the mean calibrated squared distance of models from a reference: 0 is the reference, 1 unrelated to it.

    With the untrained networks as reference (one per model) it says how much of the geometry was learned, with the
    geometry of the inputs (one operator for all, such as the embedding layer's) how much was inherited. The jackknife
    is over the models; the reference is fixed.

    Parameters
    ----------
    operators : mapping of model name to operator (sample, neighbor)
    reference : operator, or mapping of model name to operator
    seed : int
    tallies : Tallies, optional
        Keeps what was summed over the reference for the next call.

    Raises
    ------
    OperatorError
        A model has no reference, or the operators do not go together.

    Examples
    --------
    >>> import numpy as np
    >>> ring = np.roll(np.eye(8), 1, axis=1)
    >>> round(departure({"seed0": ring, "seed1": np.eye(8)}, reference=ring).value, 3)
    0.5
    """
    models = named_operators(operators)
    if not isinstance(reference, Mapping):
        others = named_operators({"reference": reference})
        pairs = [(k, len(models)) for k in range(len(models))]
    else:
        missing = [model for model in models if model not in reference]
        if missing:
            raise OperatorError(f"expected a reference for every model, found none for {missing}")
        others = named_operators({model: reference[model] for model in models})
        pairs = [(k, len(models) + k) for k in range(len(models))]
    return spread_of_pairs([*models.items(), *others.items()], pairs, len(models), seed, tallies)


def approach(operators: Sequence[Operator], *, seed: int = 0) -> list[Spread]:
    """Compute the calibrated squared distance of every operator of one model from its last one.

    Parameters
    ----------
    operators : sequence of T operators of one model, in the order of steps; read one at a time
    seed : int

    Returns
    -------
    list of T Spread
        The last one is 0; intervals are over samples.

    Examples
    --------
    >>> import numpy as np
    >>> [round(step.value, 3) for step in approach([np.eye(8), np.roll(np.eye(8), 1, axis=1)])]
    [1.0, 0.0]
    """
    if not len(operators):
        raise OperatorError("expected at least one operator, found none")
    last = operators[len(operators) - 1]
    return [spread({"then": operators[index], "end": last}, seed=seed) for index in range(len(operators))]


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Return p-values adjusted for their number, so that all of them hold together; NaN stays NaN.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(pvalues, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted


def feature_halves(X: Any, gauge: Callable[[Any], Operator], *, splits: int = 5, seed: int = 0) -> float:
    """Compute the spread of one representation with itself: operators of random halves of its features, averaged.

    Halves have more noise than the whole, so this is an upper bound: models with a spread below it agree as closely as
    a model with itself. For a model recorded twice, ``spread([first, second]).value`` is the floor.

    Parameters
    ----------
    X : (sample, feature)
    gauge : function of activations, such as :class:`repaudit.DiffusionGauge`
    splits, seed : int

    Raises
    ------
    ActivationError
        Fewer than two features.

    Examples
    --------
    >>> from repaudit.gauge.gauge import DiffusionGauge
    >>> points = np.random.default_rng(0).normal(size=(40, 2))
    >>> 0 < feature_halves(np.repeat(points, 16, axis=1), DiffusionGauge(knn=5)) < 0.5
    True
    """
    activations = np.asarray(X.detach().cpu() if hasattr(X, "detach") else X)
    if activations.ndim != 2 or activations.shape[1] < 2:
        raise ActivationError(f"expected (sample, feature) with at least 2 features, found {activations.shape}")
    rng = np.random.default_rng(seed)
    spreads = []
    for _ in range(splits):
        order = rng.permutation(activations.shape[1])
        halves = np.array_split(order, 2)
        operators = [gauge(np.ascontiguousarray(activations[:, half])) for half in halves]
        spreads.append(operator_distances(operators, "calibrated")[0, 1] ** 2)  # the spread, without its intervals
    return float(np.mean(spreads))
