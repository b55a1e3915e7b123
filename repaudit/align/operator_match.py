"""The match of a student's operator with the target, row by row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from repaudit.align.features import mean_square, steady, usable
from repaudit.align.losses import ROW_LOSSES, RowLoss, check_loss, span
from repaudit.align.rows import Carried, Geometry, log_rows, settle
from repaudit.align.target import AlignmentTarget, check_target
from repaudit.errors import AlignmentWarning, OperatorError

Rows = Literal["full", "minibatch"]
_CARRIED = ("scale", "log_norm", "near", "log_density")

FEW: Final = 12
"""Neighbours that a batch must have of a sample to tell its geometry."""


class OperatorMatch(nn.Module):
    r"""The loss between the rows of a student's operator and those of P*, in units of the target's information.

    ``loss = mean_i KL(P*_i || P_i) / mean_i KL(P*_i || 1/N)``: 0 for a student with the geometry of the target, 1 for
    one that tells no samples apart, so that one weight means the same for every gauge; with ``loss="frobenius"``
    ``|P* - P|^2 / |P* - 1/N|^2``.

    With ``rows="full"`` a row goes over all samples: those of the batch with a gradient, the others from a bank of
    their last features. Bandwidths and densities are those of the whole bank, so that a perfect student has a loss
    of 0 (below 1e-6 at both scales of an analysis). Until every sample was seen once, rows go over those that were,
    at a perplexity reduced in proportion.

    With ``rows="minibatch"`` there is no bank, and the gauge looks at the batch alone, at a perplexity reduced in
    proportion. That is biased: at a perplexity of a quarter of the samples a perfect student keeps up to .09 of the
    loss with 64 samples a batch and .035 with 128; at 15 neighbours the batch has too few of them, which is warned
    about.

    Unless the bandwidth is a number, the loss does not change when all features are scaled, nor does its gradient
    shrink or grow them. Draw batches anew at each pass: samples that always come together keep the size, beside the
    others, that they had at first.

    Parameters
    ----------
    target : AlignmentTarget
    loss : {"kl", "frobenius", "hellinger"}
    rows : {"full", "minibatch"}
    refresh : int, optional
        After how many batches the bandwidths and densities of the bank are computed anew; by default once as many
        samples went by as there are. It takes time and memory of the order of N².

    Raises
    ------
    OperatorError
        The gauge of the target has a kernel that is not supported: alpha decay, landmarks, or a number of neighbours
        beside a bandwidth.

    See Also
    --------
    repaudit.JointObjective : Adds it to the loss of a task.
    repaudit.CoordinateMatch, repaudit.FeatureMatch : Other matches.

    References
    ----------
    Hinton and Roweis, Stochastic neighbor embedding (2002), for the divergence of neighbourhoods.

    Examples
    --------
    >>> from repaudit import DiffusionGauge
    >>> points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> target = AlignmentTarget.from_operator(DiffusionGauge(perplexity=5)(points))
    >>> match = OperatorMatch(target)
    >>> float(match(points @ torch.tensor([[0., 2, 0], [2, 0, 0], [0, 0, 2]]), torch.arange(60))) < 1e-6
    True
    >>> other = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    >>> match(other, torch.arange(60)).requires_grad
    True
    """

    bank: Tensor
    seen: Tensor
    age: Tensor

    def __init__(
        self, target: AlignmentTarget, loss: RowLoss = "kl", rows: Rows = "full", refresh: int | None = None
    ) -> None:
        super().__init__()
        check_loss(loss)
        if rows not in {"full", "minibatch"}:
            raise ValueError(f"rows is 'full' or 'minibatch'; found {rows!r}")
        if refresh is not None and refresh < 1:
            raise ValueError(f"refresh: expected a number of batches, 1 or more, found {refresh!r}")
        _check_gauge(target)
        self.target, self.loss, self.rows, self.refresh = target, loss, rows, refresh
        dense = torch.from_numpy(target.matrix.toarray())
        self.unit = span(loss, dense)
        self.register_buffer("wanted", dense.float(), persistent=False)
        self.register_buffer("bank", torch.zeros(len(target), 0, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(len(target), dtype=torch.bool))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        for name in _CARRIED:
            self.register_buffer(name, torch.zeros(0, dtype=torch.bool if name == "near" else torch.float64))
        self._biased_warned = False

    def forward(self, features: Tensor, sample_index: Tensor) -> Tensor:
        """Return the loss of a batch's features ``(batch, feature)``, a scalar in float64.

        Parameters
        ----------
        features : (batch, feature)
        sample_index : (batch), int64
            The row of each in the target; -1 for what is not in it, which is ignored, as are repeated samples.

        Raises
        ------
        ValueError
            Features and indices do not go together, or an index is not a row of the target.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows, places = usable(features.double(), sample_index, len(self.target))
            if not bool(torch.isfinite(rows.detach()).all()):
                return features.double().sum() * torch.nan  # as any loss of such features; the bank stays as it is
            if self.rows == "minibatch":
                return self._of_batch(rows, places, features)
            return self._of_bank(rows, places, features)

    def _of_batch(self, rows: Tensor, places: Tensor, features: Tensor) -> Tensor:
        if len(places) < 3:
            return rows.sum() * 0.0
        gauge, count = self.target.gauge, len(self.target)
        self._warn_of_bias(len(places))
        rows = steady(rows, self._centre(rows)) if self._scales_itself else rows
        points = Geometry.of(rows, gauge).place(rows)
        with torch.no_grad():
            carried = settle(points.detach(), gauge, count)
            carried.near.fill_diagonal_(False)
        target = self._target(places)[:, places].fill_diagonal_(0.0)
        everyone = torch.arange(len(places), device=places.device)
        return self._compared(points, points.detach(), everyone, carried, target, None)

    def _of_bank(self, rows: Tensor, places: Tensor, features: Tensor) -> Tensor:
        if not len(places):
            return rows.sum() * 0.0
        if self.target.gauge.metric == "cosine":
            Geometry.of(rows, self.target.gauge).place(rows)  # a row without a direction must not come into the bank
        rows = self._remember(rows, places)
        columns = self.seen.nonzero()[:, 0]
        if len(columns) < 3:
            return rows.sum() * 0.0
        geometry = Geometry.of(self.bank[columns], self.target.gauge)
        with torch.no_grad():
            points = geometry.place(self.bank[columns])
            if self._is_due(len(places), len(columns)):
                self._keep(settle(points, self.target.gauge, len(self.target)))
        place_of = torch.full_like(self.seen, -1, dtype=torch.int64)
        place_of[columns] = torch.arange(len(columns), device=columns.device)
        target = self._target(places)[:, columns]
        return self._compared(geometry.place(rows), points, place_of[places], self._carried(), target, self.unit)

    def _compared(
        self, points: Tensor, columns: Tensor, places: Tensor, carried: Carried, target: Tensor, unit: float | None
    ) -> Tensor:
        """Return the loss of a batch's rows, in a unit or that of the target given; rows without any are left out."""
        held = target.sum(1) > 0
        if not bool(held.any()):
            return points.sum() * 0.0
        wanted = target / torch.where(held, target.sum(1), 1.0)[:, None]
        found = log_rows(points, columns, places, carried, self.target.gauge, wanted > 0)[held]
        return ROW_LOSSES[self.loss](found, wanted[held]) / (unit or span(self.loss, wanted[held]))

    def _remember(self, rows: Tensor, places: Tensor) -> Tensor:
        """Put a batch's features into the bank, at the bank's scale, and return them so, with their gradient."""
        if self.bank.shape[1] != rows.shape[1]:
            if bool(self.seen.any()):
                raise ValueError(f"expected {self.bank.shape[1]} features as before, found {rows.shape[1]}")
            self.bank = torch.zeros(len(self.target), rows.shape[1], dtype=torch.float64, device=rows.device)
        known = self.seen[places]
        if bool(known.any()):
            rows = self._as_large_as_before(rows, rows[known], self.bank[places[known]])
        elif self._scales_itself and len(rows) > 1:  # one alone has no size, and would be left no slope
            rows = steady(rows, self._centre(rows))
        self.bank = self.bank.index_copy(0, places, rows.detach())
        self.seen = self.seen.index_fill(0, places, True)
        return rows

    def _as_large_as_before(self, rows: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """Scale a batch as the spread of its known samples tells that all features have grown since."""
        if not self._scales_itself:
            return rows
        old, new = (mean_square(some - self._centre(some)) for some in (before, now))
        known = bool((old > 0) & (new > 0))  # of one sample, or equal ones, nothing is told
        return rows * (old / new).sqrt() if known else rows

    def _centre(self, rows: Tensor) -> Tensor:
        """Return the point about which rows can be scaled, and with which be moved, without a trace in the operator."""
        return torch.zeros_like(rows[0]) if self.target.gauge.metric == "cosine" else rows.mean(0)

    @property
    def _scales_itself(self) -> bool:
        """Whether the gauge's bandwidths grow with the features."""
        return not isinstance(self.target.gauge.bandwidth, int | float)

    def _is_due(self, batch: int, columns: int) -> bool:
        """Count a batch, and return whether the scales of the bank must be computed anew."""
        self.age = self.age + 1
        every = self.refresh or max(1, len(self.target) // batch)
        due = self._carried().scale.numel() != columns or int(self.age) >= every
        self.age = torch.zeros_like(self.age) if due else self.age
        return due

    def _keep(self, carried: Carried) -> None:
        for name in _CARRIED:
            setattr(self, name, getattr(carried, name))

    def _carried(self) -> Carried:
        return Carried(*(getattr(self, name) for name in _CARRIED))

    def _target(self, places: Tensor) -> Tensor:
        target: Tensor = self.wanted[places].double()  # type: ignore[index]
        return target

    def _warn_of_bias(self, batch: int) -> None:
        gauge = self.target.gauge
        size = gauge.perplexity or gauge.knn or len(self.target)
        if not self._biased_warned and size * batch / len(self.target) < FEW:
            self._biased_warned = True
            warnings.warn(
                f"rows='minibatch': a batch of {batch} has {size * batch / len(self.target):.1f} of the {size:g} "
                f"neighbours of a sample, too few to tell its geometry: use rows='full', a wider scale, or larger "
                "batches",
                AlignmentWarning,
                stacklevel=3,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OperatorMatch:
        """Move to a device; the precision stays, also where a whole model is cast."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Return what tells the target that the bank belongs to."""
        return {"target": self.target.digest, "gauge": repr(self.target.gauge)}

    def set_extra_state(self, state: Any) -> None:
        """Refuse a state that belongs to another target.

        Raises
        ------
        OperatorError
            The state was saved with another target.
        """
        if state["target"] != self.target.digest:
            raise OperatorError("expected a state saved with this target, found one of another operator or samples")
        gauge = repr(self.target.gauge)
        if state.get("gauge", gauge) != gauge:
            raise OperatorError(f"expected a state saved with {gauge}, found one of {state['gauge']}")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("bank", *_CARRIED):  # as large as they were when they were saved
            if prefix + name in state_dict:
                saved = state_dict[prefix + name]
                setattr(self, name, torch.empty(saved.shape, dtype=saved.dtype, device=self.seen.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check_gauge(target: AlignmentTarget) -> None:
    check_target(target)
    gauge = target.gauge
    beside = gauge.perplexity is None and gauge.neighbors is not None
    if gauge.kernel != "gaussian" or gauge.landmarks is not None or beside:
        raise OperatorError(
            "expected a target whose gauge has a perplexity, or knn or bandwidth without neighbors, found "
            f"kernel={gauge.kernel!r}, landmarks={gauge.landmarks}, neighbors={gauge.neighbors}"
        )
