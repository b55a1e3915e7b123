"""Where all features of a student lie together, which no operator tells, and the cost of moving it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_FOLLOWS: Final = 0.1
"""Share by which the running mean follows the mean at each step."""


class RunningOffset:
    """The running mean of the features of batches: once a step, however many batches it has.

    Attributes
    ----------
    state : (running mean, latest mean, step), of which the first two are None before the first batch

    Examples
    --------
    >>> offset, features = RunningOffset(), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> offset(features, 0).item(), offset(features + 1, 0).item()
    (0.0, 2.0)
    """

    def __init__(self) -> None:
        self.state: tuple[Tensor | None, Tensor | None, int] = (None, None, -1)

    def __call__(self, features: Tensor, step: int) -> Tensor:
        """Return ``|m - m_0|^2 / mean |f - m|^2`` of a batch ``(sample, feature)``; 0 where all features are equal."""
        if not len(features):
            return torch.zeros((), dtype=torch.float64, device=features.device)
        mean = features.double().mean(0)
        running, latest, last = self.state
        if running is None or latest is None:
            running = mean.detach()
        elif step != last:
            running = torch.lerp(running.to(mean.device), latest.to(mean.device), _FOLLOWS)
        self.state = (running, mean.detach(), step)
        way = (mean - running.to(mean.device)).square().sum()
        variance = features.detach().double().var(0, correction=0).sum()
        return way / variance if variance > 0 else 0.0 * way
