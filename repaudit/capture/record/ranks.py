"""Audits over several processes: who forwards, who writes, and how a failure ends the audit on all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist

from repaudit.errors import LostRankError, RankError, StateError

RANK_TIMEOUT: Final = timedelta(minutes=5)
"""How long a process waits for the others in an audit."""


@dataclass
class Ranks:
    """The processes of a training, and whether an audit needs them all.

    Where parameters are replicated, only the first rank audits and the others do not wait: nothing can hang. Where
    they are sharded, all ranks must forward; where the probe set is split, each forwards its share.
    """

    rank: int = 0
    size: int = 1
    together: bool = False
    split: bool = False
    group: Any = None

    @classmethod
    def of_training(cls, *, sharded: bool, split: bool) -> Ranks:
        """Find the processes; all of them must call this, at the same point."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        rank, size = dist.get_rank(), dist.get_world_size()
        if not (sharded or split):
            return cls(rank, size)
        # a separate group, so that an audit neither mixes with the training's collectives nor waits as long as they may
        group = dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)
        return cls(rank, size, together=True, split=split and not sharded, group=group)

    @property
    def writes(self) -> bool:
        """Whether this process holds the writer."""
        return self.rank == 0

    @property
    def takes_part(self) -> bool:
        """Whether this process does anything in an audit."""
        return self.writes or self.together

    def agree(self, error: Exception | None) -> None:
        """Raise on every process when one of them failed: its own error there, a :class:`RankError` elsewhere.

        Raises
        ------
        StateError
            On all, when the model of one could not be restored.
        LostRankError
            When a process did not answer in time: it failed in the middle of a sharded forward, or died.
        """
        if not self.together:
            if error is not None:
                raise error
            return
        failures: list[str | None] = [None] * self.size
        try:
            dist.all_gather_object(failures, None if error is None else _line(error), group=self.group)
        except (RuntimeError, ValueError) as lost:
            raise LostRankError(f"rank {self.rank}: another rank no longer answers ({_line(lost)})") from error or lost
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                kind = StateError if failure.startswith(f"{StateError.__name__}:") else RankError
                raise kind(f"the audit failed on rank {rank}: {failure}")

    def from_first(self, value: Any) -> Any:
        """Return the first rank's value, on all ranks."""
        if not self.together:
            return value
        box = [value]
        try:
            dist.broadcast_object_list(box, src=0, group=self.group)
        except (RuntimeError, ValueError) as lost:
            raise LostRankError(f"rank {self.rank}: the first rank no longer answers ({_line(lost)})") from lost
        return box[0]

    def share(self, n_samples: int, rank: int | None = None) -> tuple[int, int]:
        """Return the first sample that a rank forwards, and the one after its last.

        Examples
        --------
        >>> ranks = Ranks(size=3, split=True)
        >>> [ranks.share(10, rank) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
        """
        if not self.split:
            return 0, n_samples
        rank = self.rank if rank is None else rank
        return n_samples * rank // self.size, n_samples * (rank + 1) // self.size

    def gather(
        self, activations: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> dict[str, torch.Tensor]:
        """Join the shares on the first rank; the others get back what they passed."""
        if not self.split:
            return dict(activations)
        joined = {}
        for name, (shape, dtype) in shapes.items():
            if not self.writes:
                if name in activations:
                    dist.send(activations[name].contiguous(), 0, group=self.group)
                continue
            joined[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            for rank in range(self.size):
                start, stop = self.share(shape[0], rank)
                if start == stop:
                    continue
                if rank == 0:
                    joined[name][start:stop] = activations[name]
                else:
                    dist.recv(joined[name][start:stop], rank, group=self.group)
        return joined if self.writes else dict(activations)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
