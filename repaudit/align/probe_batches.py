"""Batches of the probe set, in an order of their own: the task's data and randomness know nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from repaudit.store.format.values import step_number


class ProbeBatches:
    """Draw samples without replacement, all of them before any comes again.

    Parameters
    ----------
    count : int
        Samples that there are.
    size : int
        Samples of a batch; all of them where there are fewer.
    seed : int

    Examples
    --------
    >>> batches = ProbeBatches(5, 2, seed=0)
    >>> first, second = batches.draw(), batches.draw()
    >>> len(set(first.tolist()) | set(second.tolist()))
    4
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size: expected a whole number, at least 1, found {size!r}")
        self.count, self.size = count, min(size, count)
        self._generator = torch.Generator().manual_seed(step_number(seed, "seed"))
        self._left = torch.zeros(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        """Return the positions of the next batch, ``(size)``."""
        while len(self._left) < self.size:
            order = torch.randperm(self.count, generator=self._generator)
            self._left = torch.cat([self._left, order[~torch.isin(order, self._left)]])
            if len(self._left) < self.size:  # the rest of the last pass was the whole set
                self._left = torch.cat([self._left, order])
        batch, self._left = self._left[: self.size], self._left[self.size :]
        return batch

    def seed(self) -> int:
        """Draw a seed for the random numbers of a forward."""
        return int(torch.randint(2**62, (), generator=self._generator))

    def state_dict(self) -> dict[str, Tensor]:
        """Return what makes the draws go on as they would have."""
        return {"generator": self._generator.get_state(), "left": self._left.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        self._generator.set_state(state["generator"].cpu())
        self._left = state["left"].cpu().clone()


def share_of_rank(batch: Tensor) -> Tensor:
    """Return what this process forwards of a batch: all of it, or with several an equal part (samples may repeat)."""
    if not is_distributed():
        return batch
    rank, world = dist.get_rank(), dist.get_world_size()
    repeated = batch[torch.arange(-(-len(batch) // world) * world) % len(batch)]
    return repeated[rank::world]


def gathered(features: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features and places of all processes, on each of them; the gradient goes back to where it is from.

    Every process computes the same loss of all features, and the mean over processes that DDP takes of the gradients
    is then the gradient of that loss.
    """
    if not is_distributed():
        return features, places
    both = [torch.empty_like(places) for _ in range(dist.get_world_size())]
    dist.all_gather(both, places.contiguous())
    parts: tuple[Tensor, ...] = _Gather.apply(features.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat(parts), torch.cat(both)


class _Gather(torch.autograd.Function):
    """Gather a tensor of all processes; each gets back the sum of all gradients of its own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = torch.stack(gradients)
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
