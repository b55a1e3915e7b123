"""The match of a student's features with coordinates of the target, through a head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from repaudit.align.features import through, usable
from repaudit.align.target import AlignmentTarget, Coordinates, check_target


class CoordinateMatch(nn.Module):
    """The squared error with which a head finds a sample's coordinates in P* from a student's features.

    ``loss = mean |head(f_i) - y_i|² / mean |y_i|²``, where the coordinates ``y`` are centred, each with a variance of
    1: 0 for a perfect fit, 1 for a head that says the same of all samples. It moves a student's geometry less than
    :class:`repaudit.OperatorMatch` does, since a head can hide what the features lack, and two PHATE coordinates
    hardly move it at all.

    Parameters
    ----------
    target : AlignmentTarget
    k : int
        Coordinates; see :meth:`repaudit.AlignmentTarget.coordinates`.
    head : Module, optional
        From features ``(batch, feature)`` to ``(batch, k)``; a linear map by default, which takes the width of the
        first batch that it sees.
    t : int or "auto"
        Diffusion time.
    method : {"diffusion", "phate"}

    See Also
    --------
    repaudit.OperatorMatch : Matches the operator itself.

    Examples
    --------
    >>> from repaudit import DiffusionGauge
    >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> target = AlignmentTarget.from_operator(DiffusionGauge(perplexity=5)(points))
    >>> match = CoordinateMatch(target, k=2, head=nn.Linear(3, 2))
    >>> match(points, torch.arange(40)).shape
    torch.Size([])
    """

    coordinates: Tensor

    def __init__(
        self,
        target: AlignmentTarget,
        k: int = 16,
        head: nn.Module | None = None,
        *,
        t: int | str = "auto",
        method: Coordinates = "diffusion",
    ) -> None:
        super().__init__()
        check_target(target)
        self.target = target
        self.head = nn.LazyLinear(k) if head is None else head
        self.register_buffer("coordinates", _standardised(target.coordinates(k, t, method)), persistent=False)

    def forward(self, features: Tensor, sample_index: Tensor) -> Tensor:
        """Return the loss of a batch's features, a scalar in float32 or wider.

        Parameters
        ----------
        features : (batch, feature)
        sample_index : (batch), int64
            The row of each in the target; -1 for what is not in it, which is ignored, as are repeated samples.

        Raises
        ------
        ValueError
            Features and indices do not go together, or the head gives another number of coordinates.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows, places = usable(features, sample_index, len(self.target))
            found = through(self.head, rows)
            wanted = self.coordinates[places].to(found.dtype)
            if found.shape != wanted.shape:
                raise ValueError(f"head: expected coordinates {tuple(wanted.shape)}, found {tuple(found.shape)}")
            if not len(places):
                return found.sum() * 0.0
            return (found - wanted).square().mean()


def _standardised(coordinates: np.ndarray) -> Tensor:
    centred = torch.from_numpy(np.array(coordinates)).double()
    centred = centred - centred.mean(0)
    deviation = centred.std(0, correction=0)
    return centred / torch.where(deviation > 0, deviation, 1.0)
