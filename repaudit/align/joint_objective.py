"""The joint objective: the loss of a task, and the match to what a student is taught."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from repaudit.align.held_frame import HeldFrame
from repaudit.align.operator_match import OperatorMatch
from repaudit.align.probe_batches import ProbeBatches, gathered, is_distributed, share_of_rank
from repaudit.align.schedule import Schedule  # noqa: F401 - its public address
from repaudit.align.student import StudentLayer, has_lazy_parameters
from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.extract.wrappers import network
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.options import step_of
from repaudit.errors import AlignmentWarning, kind_of

Result = TypeVar("Result")
FAR: Final = 100.0
"""Cost of a frame, ten deviations squared, that is warned about where it is not held."""

TIMES_FAR: Final = 10
"""Batches in a row at that cost, so that it is no matter of which samples a batch has."""

SAMPLE_INDEX = "sample_index"
"""The key of a task's batch under which each of its samples has its row in the target, or -1."""


class JointObjective(nn.Module):
    """Add a match to the loss of a task: ``task + weight * schedule(step) * (match + hold * frame)``.

    Where the features are from: with a `probe_set`, from a forward of a batch of it beside that of the task, drawn by
    a generator of its own, as the numbers of its dropout are, so that the task sees the same data and the same random
    numbers as without. Without one,
    from the task's own forward, whose batches then have a ``sample_index``: the row of each sample in the target, or
    -1. With a weight of 0 nothing is done.

    Parameters
    ----------
    match : Module
        :class:`repaudit.OperatorMatch`, :class:`repaudit.CoordinateMatch`, :class:`repaudit.FeatureMatch`, or a module
        of your own that is called with features ``(batch, feature)`` and the rows of the samples ``(batch)``.
    weight : float
        Of a match in units of its range: .3 to 3 for classification, .03 to .1 for language models.
    layer : LayerSpec or str, optional
        The student's layer; not needed by a loop that passes features itself.
    probe_set : ProbeSet, optional
        Inputs of the student for the samples of the target, by their ids; others in it are not drawn.
    batch_size : int
        Samples of the probe set per step; their forward is most of the cost.
    schedule : function of the step, optional
        Share of the weight; see :class:`repaudit.align.joint_objective.Schedule`.
    seed : int
        Of the draws, and of heads that take the student's width.
    hold : float
        Of ``frame``, the cost of moving or scaling all features together, away from those of the first batch
        (:class:`repaudit.align.held_frame.HeldFrame`). An operator says nothing of either, and Adam lets go what no
        gradient holds: of a language model from scratch, whose layers add to a stream without a norm, features grew a
        thousandfold in 300 steps, and the task was not learned. There 1 holds them, with batches drawn at random that
        are large enough to tell where all features lie; that features have moved by ten of their deviations is warned
        about once.

    Raises
    ------
    FingerprintError
        The probe set lacks a sample of the target, or holds another text under its id.
    ValueError
        A weight is negative or not finite, or the layer keeps its tokens.

    See Also
    --------
    repaudit.AlignedFineTuning : Trains a Hugging Face model with it.
    repaudit.AlignmentCallback : Adds it to a LightningModule of your own.
    repaudit.AlignedTrainerMixin : Adds it to a transformers Trainer.

    Examples
    --------
    In a loop of one's own:

    >>> from repaudit import AlignmentTarget, DiffusionGauge, OperatorMatch
    >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> target = AlignmentTarget.from_operator(DiffusionGauge(perplexity=5)(points))
    >>> student = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> objective = JointObjective(OperatorMatch(target), layer="[1]", probe_set=ProbeSet.from_tensors({"x": points}))
    >>> task, match = objective.joined(student, 0, lambda: student(points).square().mean())
    >>> (task + match).backward()
    >>> objective.metrics["match_weight"]
    1.0
    """

    def __init__(
        self,
        match: nn.Module,
        weight: float = 1.0,
        *,
        layer: LayerSpec | str | None = None,
        probe_set: ProbeSet | None = None,
        batch_size: int = 64,
        schedule: Callable[[int], float] | None = None,
        seed: int = 0,
        hold: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(match, nn.Module):
            raise TypeError(f"match: expected one such as OperatorMatch(target), found {kind_of(match)}")
        numbers: Mapping[str, Any] = {"weight": weight, "hold": hold}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                raise ValueError(f"{name}: expected a number, 0 or more, found {value!r}")
        if not isinstance(probe_set, ProbeSet | None):
            raise TypeError(f"probe_set: expected a ProbeSet of the student, found {type(probe_set).__name__}")
        if not (schedule is None or callable(schedule)):
            raise TypeError(f"schedule: expected a function of the step such as Schedule(warmup=9), found {schedule!r}")
        self.match, self.weight, self.schedule, self.seed = match, weight, schedule, seed
        self._taught: weakref.ref[nn.Module] | None = None
        self._student, self.probe_set = None if layer is None else StudentLayer(layer), probe_set
        self.metrics: dict[str, float] = {}
        self.hold, self._frame, self._times_far = hold, HeldFrame(), 0
        self._batches: ProbeBatches | None = None
        if probe_set is not None:
            rows = _check(match, probe_set)
            self._positions = (rows >= 0).nonzero()[:, 0]
            self._rows = rows
            self._batches = ProbeBatches(len(self._positions), batch_size, seed)

    def weight_at(self, step: int) -> float:
        """Return the weight of the match at a step.

        Raises
        ------
        ValueError
            The schedule gives a share below 0, or not a finite one.
        """
        share = 1.0 if self.schedule is None else float(self.schedule(step))
        if not 0 <= share < float("inf"):
            raise ValueError(f"schedule: expected a share of the weight, 0 or more, found {share!r} at step {step}")
        return self.weight * share

    @property
    def student(self) -> StudentLayer:
        """The layer that is taught.

        Raises
        ------
        ValueError
            None was given.
        """
        if self._student is None:
            raise ValueError("layer: expected the student's layer, found none: give JointObjective(..., layer=...)")
        return self._student

    def forward(self, task: Tensor, features: Tensor, sample_index: Tensor, step: int = 0) -> Tensor:
        """Return the joint loss of features that a loop has at hand.

        Parameters
        ----------
        task : scalar
        features : (batch, feature)
        sample_index : (batch), int64
            The row of each in the target; -1 for what is not in it.
        step : int
            The optimizer step, for the schedule.

        Examples
        --------
        >>> from repaudit import AlignmentTarget, DiffusionGauge, OperatorMatch
        >>> points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> target = AlignmentTarget.from_operator(DiffusionGauge(perplexity=5)(points))
        >>> objective = JointObjective(OperatorMatch(target))
        >>> round(objective(torch.tensor(2.0), points, torch.arange(40)).item(), 5)
        2.0
        """
        weight = self.weight_at(step)
        if not weight:
            self.metrics = {"match_weight": 0.0}
            return task
        match: Tensor = self.match(features, sample_index)
        self.metrics = {"match": float(match.detach()), "match_weight": weight}
        return task + weight * self._held(match, features, sample_index).to(task.dtype)

    def joined(
        self, model: nn.Module, step: int, task: Callable[[], Result], sample_index: Tensor | None = None
    ) -> tuple[Result, Tensor | None]:
        """Run the task's forward; return what it returned, and the weighted match, or None where its weight is 0.

        Parameters
        ----------
        model : Module
            The student, wrapped or not.
        step : int
            The optimizer step, from 0.
        task : function
            Forwards the student.
        sample_index : (batch), int64, optional
            Without a probe set: the rows of the task's samples in the target, -1 for others.

        Raises
        ------
        ValueError
            There is neither a probe set nor a sample index.
        CaptureError, LayerPathError
            The student's layer is not to be had.
        """
        step = step_of(model, step, "joined(model, step, task)")
        if not callable(task):
            raise TypeError(f"task: expected a function that forwards the student, found {type(task).__name__}")
        weight = self.weight_at(step)
        if not weight:
            self.metrics = {"match_weight": 0.0}
            return task(), self._idle()
        self._meet(model, teaches=True)
        if self.probe_set is None:
            if sample_index is None:
                raise ValueError(
                    f"expected {SAMPLE_INDEX!r} in the task's batch, the row of each sample in the target or -1, found "
                    "none: add it to the data set, or give the objective a probe_set"
                )
            with self.student.watching(model) as seen:
                result = task()
            features, rows = gathered(seen[0], sample_index.to(seen[0].device))
        else:
            result = task()
            features, rows = self._probe(model)
        match = self.match(features, rows)
        self.metrics = {"match": float(match.detach()), "match_weight": weight}
        return result, weight * self._held(match, features, rows)

    def _held(self, match: Tensor, features: Tensor, rows: Tensor) -> Tensor:
        """Return the match with the cost of a frame that moves, or warn of one that leaves and is not held."""
        if self.hold:
            return match + self.hold * self._frame(features[rows >= 0])
        if isinstance(self.match, OperatorMatch) and self._times_far < TIMES_FAR:
            with torch.no_grad():
                far = float(self._frame(features[rows >= 0]))
            self._times_far = self._times_far + 1 if far > FAR else 0
            if self._times_far == TIMES_FAR:
                warnings.warn(
                    f"the student's features have moved or grown together by {far**0.5:.0f} of their deviations since "
                    "the first batch, of which an operator tells nothing: if its task is not learned any more, give "
                    "JointObjective(..., hold=1)",
                    AlignmentWarning,
                    stacklevel=3,
                )
        return match

    def _idle(self) -> Tensor | None:
        """Return nothing, or where DDP waits for the gradients of heads, a zero that depends on them."""
        trained = [parameter for parameter in self.match.parameters() if parameter.requires_grad]
        return torch.stack([one.sum() * 0.0 for one in trained]).sum() if trained and is_distributed() else None

    def _meet(self, model: nn.Module, *, teaches: bool = False) -> None:
        """Warn where another model has been taught before, and note the one that is."""
        net = network(model)
        if self._taught is not None and self._taught() is not net:
            warnings.warn(
                "this JointObjective has taught another model, and its draws, heads and frame go on: make one for each",
                AlignmentWarning,
                stacklevel=4,
            )
            self._taught = None
        if teaches:
            self._taught = weakref.ref(net)

    def note_gradients(self, task: Tensor, match: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Put the ratio of the gradients' norms, of the weighted match over the task's, into :attr:`metrics`."""
        trained = [one for one in parameters if one.requires_grad]
        norms = []
        if not match.grad_fn or not task.grad_fn:
            return
        for loss in (match, task):
            try:
                found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
            except RuntimeError as error:  # reentrant checkpoints have no such gradient: a number less, not a run
                if "use_reentrant" not in str(error):
                    raise
                return
            squares = [one.detach().double().square().sum() for one in found if one is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()) if squares else 0.0)
        self.metrics["gradient_ratio"] = norms[0] / norms[1] if norms[1] else float("inf")

    def prepare(self, model: nn.Module) -> JointObjective:
        """Find what is wrong before the first step, and give heads without a width the student's.

        Raises
        ------
        CaptureError, LayerPathError
            The student's layer is not to be had.

        Warns
        -----
        AlignmentWarning
            Another model has been taught before: draws, heads and the frame go on (in :meth:`joined`, too).
        """
        self._meet(model)
        if self.probe_set is None:
            if has_lazy_parameters(self.match):
                raise ValueError("expected heads of a known width where there is no probe_set, found lazy ones")
            return self
        with torch.no_grad():
            few = self._positions[:2]
            features = self.student.features(model, self.probe_set.inputs_of(few))
            if has_lazy_parameters(self.match):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    self.match(features, self._rows[few].to(features.device))
        return self

    def _probe(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Forward the next batch of the probe set, and return its features and rows, of all processes."""
        if self._batches is None or self.probe_set is None:
            raise ValueError("expected a probe_set, found none")
        places = share_of_rank(self._positions[self._batches.draw()])
        features = self.student.features(model, self.probe_set.inputs_of(places), self._batches.seed())
        return gathered(features, self._rows[places].to(features.device))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: in another process there is no such model."""
        return {**self.__dict__, "_taught": None}

    def get_extra_state(self) -> dict[str, Any]:
        """Return where the draws stand, and the frame that is held."""
        draws = {} if self._batches is None else self._batches.state_dict()
        return draws if self._frame.state is None else {**draws, "frame": self._frame.state}

    def set_extra_state(self, state: Any) -> None:
        """Go on from a state."""
        draws = dict(state or {})
        self._frame.state = draws.pop("frame", None)
        if self._batches is not None and draws:
            self._batches.load_state_dict(draws)


def check_objective(objective: Any) -> None:
    """Refuse what is no joint objective, such as the match alone, with a TypeError."""
    if not isinstance(objective, JointObjective):
        raise TypeError(f"objective: expected a JointObjective(match, ...), found {type(objective).__name__}")


def _check(match: nn.Module, probe_set: ProbeSet) -> Tensor:
    """Return the rows of a probe set's samples in what is taught; of a match that knows no samples their positions."""
    knows = getattr(match, "check", None) or getattr(getattr(match, "target", None), "check", None)
    return torch.arange(len(probe_set)) if knows is None else knows(probe_set)
