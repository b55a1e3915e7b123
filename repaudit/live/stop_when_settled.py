"""A callback of both trainers that ends a training, or freezes layers, whose geometry has settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from transformers import TrainerCallback

from repaudit.capture.extract.wrappers import network
from repaudit.capture.record.cost import say
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.session import AuditSession
from repaudit.capture.trainers.huggingface import calling_callbacks
from repaudit.gauge.gauge import DiffusionGauge
from repaudit.live.settling import SettlingLayers


class StopWhenSettled(pl.Callback, TrainerCallback):
    """Stop a training when the geometry of its layers has settled, or freeze each layer when its own has.

    It stands beside an audit callback in the list of callbacks of Lightning's or transformers' trainer, and looks at
    the audits that this one takes. A layer has settled when by the statistic of the analysis its operator is where it
    was over the last ``patience`` audits, or wanders about one place, no farther from the earlier of them than from the
    last; of one audit only the first can be told. Audits that are too near to each other take a slow drift for a rest.

    Parameters
    ----------
    layers : sequence of str, optional
        Paths as the audit callback has them in ``layer_specs``, or names or patterns of recorded layers, with or
        without the path of the model's base (``layers[*]`` for ``model.layers[*]``, ``layers[-1]`` for the last one
        that is recorded); all of them by default.
    patience : int
        Audits over which a layer must have stayed.
    action : "stop" or "freeze"
        Stop when all layers have settled; or freeze each, so that its parameters get no gradient any more, and stop
        when no parameter is left. Running statistics, as of a BatchNorm, go on. A checkpoint does not keep what is
        frozen: a training that resumes in another process begins with all layers.
    gauge : DiffusionGauge, optional
        ``DiffusionGauge()`` by default.

    Attributes
    ----------
    settled : dict of layer to the step from which it has stayed
        What moves again is no longer among them. A further training begins anew.
    stopped_at : int or None
        The step after which the training was stopped. Both are logged as they happen, as information.
    frozen : list of str
        Layers that were frozen, in that order; they stay so.

    Raises
    ------
    ValueError
        When the training begins: there is no audit callback, or no such layer, or one to be frozen has no parameters,
        or the training has several processes, of which only one sees the audits. Or an option is invalid.

    See Also
    --------
    repaudit.RepresentationAuditCallback, repaudit.AuditTrainerCallback

    Examples
    --------
    >>> stop = StopWhenSettled(layers=["model.layers[*]"], patience=4)
    >>> stop.settled, stop.stopped_at
    ({}, None)
    """

    def __init__(
        self,
        layers: Sequence[str] | str | None = None,
        patience: int = 3,
        *,
        action: Literal["stop", "freeze"] = "stop",
        gauge: DiffusionGauge | None = None,
    ) -> None:
        if action not in ("stop", "freeze"):
            raise ValueError(f"action: expected 'stop' or 'freeze', found {action!r}")
        self._layers = SettlingLayers(layers, patience, gauge)
        self._asked = self._layers.patterns
        self.action = action
        self.stopped_at: int | None = None
        self.frozen: list[str] = []
        self._recorder: Recorder | None = None
        self._is_due = False
        self._newly: list[str] = []
        self._watched: list[str] = []

    def __repr__(self) -> str:
        return f"StopWhenSettled({self._asked!r}, patience={self._layers.patience}, action={self.action!r})"

    @property
    def settled(self) -> dict[str, int]:
        """Layers that have settled, each with the step from which it has stayed."""
        return dict(self._layers.since)

    def audited(self, step: int, activations: Mapping[str, Any]) -> None:
        """Look at an audit; the audit callback calls it."""
        if not self._watched:
            self._layers.patterns = self._by_specs(self._layers.patterns)
            self._refuse_what_cannot_freeze(self._layers.watched(activations))
        now = self._layers.audited(step, activations)
        self._newly = [name for name in now if name not in self.frozen]
        self._watched = self._layers.watched(activations)
        self._is_due = len(now) == len(self._watched)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the audits of a Lightning trainer."""
        if stage == "fit":
            self._attach(self._audits(trainer.callbacks, trainer.world_size))  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop Lightning's training, or freeze, if that is due."""
        if self._decide(pl_module, trainer.global_step):
            trainer.should_stop = True

    def on_audits_begin(self, args: Any) -> None:
        """Find the audits of a transformers trainer; their callback calls it before the first one."""
        self._attach(self._audits(calling_callbacks(), args.world_size))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a transformers training without audits."""
        recorder = self._audits(calling_callbacks(), args.world_size)
        if not self._watched:
            self._attach(recorder)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any = None, **kwargs: Any) -> None:
        """Stop a transformers training, or freeze, if that is due."""
        if self._decide(model, state.global_step):
            control.should_training_stop = True

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Look at no further audits, and tell what still moved: both trainers call it."""
        if self._recorder is not None:
            moving = [name for name in self._watched if name not in self.settled and name not in self.frozen]
            if moving and self.stopped_at is None:
                say(f"repaudit: at the end of the training still moving: {', '.join(moving)}")
            self._recorder.listeners.remove(self.audited)
            self._recorder = None

    @staticmethod
    def _audits(callbacks: Sequence[Any], processes: int) -> Recorder:
        if processes > 1:
            raise ValueError(f"StopWhenSettled: expected a training of one process, found {processes}")
        sessions: list[AuditSession] = [
            one.session for one in callbacks if isinstance(getattr(one, "session", None), AuditSession)
        ]
        if len(sessions) != 1:
            raise ValueError(
                f"StopWhenSettled: expected one audit callback beside it, whose audits tell what has settled, found "
                f"{len(sessions)}: add a RepresentationAuditCallback or an AuditTrainerCallback"
            )
        return sessions[0].recorder

    def _attach(self, recorder: Recorder) -> None:
        if self._recorder is not None and self.audited in self._recorder.listeners:
            self._recorder.listeners.remove(self.audited)  # a training that ended by an exception
        self._begin()
        self._recorder = recorder
        self._recorder.listeners.append(self.audited)

    def _begin(self) -> None:
        """Know nothing of the audits of another training."""
        self._layers = SettlingLayers(self._asked, self._layers.patience, self._layers.gauge)
        self.stopped_at, self.frozen = None, []
        self._is_due, self._newly, self._watched = False, [], []

    def _by_specs(self, asked: Sequence[str] | None) -> list[str] | None:
        """Put for what is the path of a spec the layers that it is recorded as, such as one with a name of its own."""
        if asked is None or self._recorder is None:
            return None if asked is None else list(asked)
        recorded: dict[str, list[str]] = {}
        for name, layer in self._recorder.auditor.extractor.layers.items():
            recorded.setdefault(layer.spec.path, []).append(name)
        return [name for one in asked for name in recorded.get(one, [one])]

    def _refuse_what_cannot_freeze(self, names: Sequence[str]) -> None:
        """Refuse at the first audit to freeze what is no module, or one without parameters."""
        if self.action != "freeze" or self._recorder is None:
            return
        known = self._recorder.auditor.extractor.layers
        states = [name for name in names if name in known and known[name].entry is not None]
        if states:
            raise ValueError(
                f"layers: expected modules, to freeze them, found {', '.join(states)}: name the layers to freeze"
            )
        empty = [name for name in names if name in known and not any(True for _ in known[name].module.parameters())]
        if empty and self._asked is not None:
            raise ValueError(
                f"layers: expected modules with parameters, to freeze them, found {', '.join(empty)} without any: name "
                "the layers to freeze"
            )

    def _decide(self, model: Any, step: int) -> bool:
        """Freeze what has settled, and return whether to stop."""
        if self.action == "freeze":
            for name in self._newly:
                self._freeze(model, name)
            froze, self._newly = bool(self._newly), []
            if froze and not any(parameter.requires_grad for parameter in model.parameters()):
                self.stopped_at = step  # another step would have no gradient
                say(f"repaudit: stopped after step {step}: every parameter is frozen")
            return self.stopped_at is not None
        if self._is_due and self.stopped_at is None:
            self.stopped_at = step
            say(f"repaudit: stopped after step {step}: {_listed(self.settled)}")
        return self._is_due

    def _freeze(self, model: Any, name: str) -> None:
        """Let a layer's parameters get no gradient any more."""
        if self._recorder is None:
            return
        path = self._recorder.auditor.extractor.layers[name].path
        parameters = list(network(model).get_submodule(path).parameters())
        if not parameters:  # of all that are recorded, an activation function
            return
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        self.frozen.append(name)
        say(f"repaudit: froze {name}, settled since step {self.settled[name]}")


def _listed(settled: Mapping[str, int]) -> str:
    return ", ".join(f"{name} settled since step {since}" for name, since in settled.items())
