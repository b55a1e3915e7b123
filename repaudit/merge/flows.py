"""Mixture of random walks: the merge that keeps reversibility, and with it a real spectrum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from repaudit.errors import OperatorError
from repaudit.operators.operator import DiffusionOperator


def mixed_walks(operators: Mapping[str, DiffusionOperator], weights: list[float]) -> tuple[Tensor, Tensor]:
    """Return ``P* = D^-1 Σ w_k Π_k P_k``, ``Π_k`` the stationary distributions, and its degrees ``N Σ w_k π_k``.

    The stationary flow ``Π P`` of a reversible operator is symmetric, and so is a mean of such flows: ``P*`` is
    reversible, with stationary distribution ``Σ w_k π_k``. Where an operator's walk rarely comes, it has little weight.

    Source: Zhou and Burges, Spectral clustering and transductive learning with multiple views (2007), section 3.
    """
    first = next(iter(operators.values())).wide
    flow, mass = torch.zeros_like(first), torch.zeros_like(first[0])
    for (name, operator), weight in zip(operators.items(), weights, strict=True):
        if not operator.reversible:
            raise OperatorError(
                f"strategy='reversible' expects reversible operators, found {name!r}, whose flow circulates; "
                "use operators of the gauge, or strategy='frobenius'"
            )
        stationary = operator.stationary
        flow = flow + weight * stationary[:, None] * operator.wide
        mass = mass + weight * stationary
    if bool((mass <= 0).any()):
        raise OperatorError(
            "expected every sample to be recurrent in some operator, found samples that are transient in all"
        )
    return flow / mass[:, None], mass * len(mass)
