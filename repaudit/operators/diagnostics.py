"""What makes a diffusion operator doubtful: counted and reported, never repaired.

``isolated``: samples that keep all but 1e-6 of their mass to themselves. ``duplicates``: samples with an exact
duplicate. ``collapsed``: all samples equal. ``components``: connected components by transitions above rounding.
``effective_neighbors``: median over samples of ``exp(-Σ_j P_ij log P_ij)``. ``uniformity``: the same divided by N, 1
for an operator that tells nothing apart. ``floored``: samples whose bandwidth was raised to the floor.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from repaudit.distance.points import row_panels

ALONE: Final = 1e-6
_PANEL: Final = 256


def diagnose(matrix: Tensor) -> dict[str, Any]:
    """Return the diagnostics that a matrix ``(sample, neighbor)`` tells by itself."""
    count = len(matrix)
    neighbors = float(row_entropy(matrix).exp().quantile(0.5))
    kept = matrix.diagonal().double()
    return {
        "isolated": int((kept >= 1 - ALONE).sum()) if count > 1 else 0,
        "components": components(matrix),
        "effective_neighbors": neighbors,
        "uniformity": neighbors / count,
    }


def row_entropy(matrix: Tensor) -> Tensor:
    """Return entropy of each row in nats, ``(sample)``, float64."""
    rows = (matrix[panel] for panel in row_panels(len(matrix), _PANEL))
    return torch.cat([-torch.special.xlogy(part, part).sum(1, dtype=torch.float64) for part in rows])


def components(matrix: Tensor) -> int:
    """Return the number of connected components, by links with ``P_ij P_ji`` above the square of the rounding error."""
    weakest = torch.finfo(matrix.dtype).eps ** 2
    waiting = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    found = 0
    while bool(waiting.any()):
        found += 1
        front = waiting.nonzero()[:1, 0]
        waiting[front] = False
        while len(front):
            reached = torch.zeros_like(waiting)
            for panel in row_panels(len(front), _PANEL):
                part = front[panel]
                linked = matrix[part] * matrix[:, part].mT > weakest  # a product that vanishes is no link either
                reached |= linked.any(0)
            front = (reached & waiting).nonzero()[:, 0]
            waiting[front] = False
    return found
