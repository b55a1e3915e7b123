"""Where all features of a student lie together and how large they are, which no operator tells: held where it began."""

from __future__ import annotations

from torch import Tensor


class HeldFrame:
    """The cost of moving or scaling all features together, away from those of the first batch.

    Attributes
    ----------
    state : (mean, logarithm of the deviation) of the first batch, or None before it

    Examples
    --------
    >>> import torch
    >>> frame, features = HeldFrame(), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> frame(features).item(), frame(features + 1).item(), round(frame(features * 2).item(), 3)
    (0.0, 2.0, 0.48)
    """

    def __init__(self) -> None:
        self.state: tuple[Tensor, Tensor] | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return ``|m - m_0|² / s² + log²(s / s_0)`` of a batch ``(sample, feature)``; 0 where all are equal.

        ``m`` is their mean and ``s`` the root of their mean squared way from it; the first ``s`` has no slope.
        """
        wide = features.double()
        if not len(wide):
            return wide.sum()
        mean = wide.mean(0)
        variance = (wide - mean).square().sum(1).mean()
        if not bool(variance.detach() > 0):
            return 0.0 * wide.sum()
        size = variance.log() / 2
        if self.state is None:
            self.state = mean.detach(), size.detach()
        where, large = (part.to(mean.device) for part in self.state)
        return (mean - where).square().sum() / variance.detach() + (size - large).square()
