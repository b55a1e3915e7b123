"""Lightning: a callback that audits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.probe_set.probe_set import ProbeSet
from repaudit.capture.record.options import AuditOptions
from repaudit.capture.record.recorder import Recorder
from repaudit.capture.record.session import AuditSession
from repaudit.capture.record.trigger import ON_CHECKPOINT, ON_VALIDATION_END, AuditTrigger


class RepresentationAuditCallback(pl.Callback):
    """Record the representations of a model while Lightning trains it, without changing the training.

    Weights after training are bit-identical with and without it. Before the first step it tries everything once:
    layer paths, hooks, shapes and the store, and raises what is wrong.

    Parameters
    ----------
    store, model_name, probe_set, layer_specs
        As for :class:`repaudit.Recorder`. Layer paths start at the module's ``.network`` if it has one, at its only
        part with parameters if it has no ``forward``, else at the module. With ``{n}`` in the name (``"trial{n}"``),
        each further model that this callback sees trained gets the next number from 0 on; without, only the first one
        is recorded, and another is refused.
    trigger
        When to audit; without one, at the start, at the end of every epoch, and at the end of the training.
    options
        See :class:`repaudit.capture.record.options.AuditOptions`.

    Raises
    ------
    ValueError, TypeError
        When an option is unknown or invalid.

    See Also
    --------
    repaudit.AuditTrainerCallback : The same for the transformers ``Trainer``.
    repaudit.Recorder : The same for another training loop.

    Examples
    --------
    >>> from repaudit import AuditTrigger, ProbeSet
    >>> callback = RepresentationAuditCallback(
    ...     store="run.zarr", model_name="seed0", layer_specs=["model.layers[*]"],
    ...     probe_set=ProbeSet.from_tensors({"input_ids": torch.tensor([[1, 2], [3, 4]])}),
    ...     trigger=AuditTrigger(every_n_steps=10, at_start=True))
    >>> callback.trajectory
    []
    """

    def __init__(
        self,
        store: str | PathLike[str],
        model_name: str,
        probe_set: ProbeSet,
        layer_specs: Sequence[LayerSpec | str] | LayerSpec | str,
        trigger: AuditTrigger | None = None,
        **options: Unpack[AuditOptions],
    ) -> None:
        self.recorder = Recorder(store, model_name, probe_set, layer_specs, **options)
        self.session = AuditSession(self.recorder, trigger)
        self._is_resuming = True

    def on_init_end(self, *_: Any, **__: Any) -> None:
        """Refuse transformers' ``Trainer``, which calls this first of all."""
        raise TypeError(
            f"expected a Lightning trainer, found transformers' Trainer: {type(self).__name__} is for Lightning, "
            "use ra.AuditTrainerCallback"
        )

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; one per model, so that several callbacks do not collide."""
        return self._generate_state_key(store=str(self.recorder.store), model_name=self.session.name)

    @property
    def trajectory(self) -> list[tuple[int, dict[str, Any]]]:
        """With a ``gauge``: a list of (step, {layer: operator})."""
        return self.recorder.trajectory

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's state, unless a tuner or a validation loads it."""
        if self._is_resuming:
            self.session.load_state_dict(state_dict)
        self._is_resuming = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget what was loaded before this fit."""
        self.recorder.log = partial(_log, trainer)
        if stage == "fit":  # what a validation or a tuner loaded before is not what this fit resumes from
            self.session.forget_resumed()
            self._is_resuming = True

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note that the fit resumes from a checkpoint."""
        self._is_resuming = trainer.state.fn == "fit" and not _is_tuning(trainer)
        if self._is_resuming:
            self.session.mark_resumed()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try everything once, and audit the untrained model if that is due."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            with self._context(trainer)():
                self.recorder.dry_run(pl_module)
            return
        self.session.leave_out_others(trainer.callbacks)  # type: ignore[attr-defined]
        self.session.start(pl_module, trainer.global_step, epoch=trainer.current_epoch, context=self._context(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Audit the step if it is due."""
        self.session.after_step(
            pl_module,
            trainer.global_step,
            epoch=trainer.current_epoch,
            loss=_loss(outputs),
            context=self._context(trainer),
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Audit the end of a whole epoch if it is due."""
        if _epoch_is_whole(trainer):
            self._event(trainer, pl_module, self.session.trigger.due_at_epoch(trainer.current_epoch + 1))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Audit after a validation if the trigger says so."""
        if self.session.trigger.on_validation_end and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._event(trainer, pl_module, (ON_VALIDATION_END,))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Audit with a checkpoint if the trigger says so."""
        if self.session.trigger.on_checkpoint:
            self._event(trainer, pl_module, (ON_CHECKPOINT,))
        self.session.saved(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Audit the end of the training if that is due, and wait until every audit is committed."""
        self.session.end(pl_module, trainer.global_step, epoch=trainer.current_epoch, context=self._context(trainer))
        self.session.flush()
        self._tell()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Audit the untrained model if no step was trained."""
        if trainer.global_step == 0 and not self.recorder.is_open:  # no step was trained, and nothing started
            self.on_train_start(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Commit what was audited, and release the model."""
        self.session.close()
        self._tell()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Commit what was audited, and release the model."""
        if stage == "fit":
            self.session.close()

    def close(self) -> None:
        """Commit what was audited, and release the model, where a fit has ended without doing so."""
        self.session.close()

    def _tell(self) -> None:
        cost = self.recorder.cost
        if not cost.told and (said := cost.describe(self.recorder.store, self.recorder.model_name)):
            cost.told = True
            rank_zero_info(said)

    def _event(self, trainer: pl.Trainer, pl_module: pl.LightningModule, triggers: tuple[str, ...]) -> None:
        self.session.event(
            pl_module,
            trainer.global_step,
            triggers,
            epoch=trainer.current_epoch,
            loss=_loss(trainer.callback_metrics.get("train_loss")),
            context=self._context(trainer),
        )

    @staticmethod
    def _context(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[Any]]:
        """Return the precision context that the model is trained in."""
        context: Callable[[], AbstractContextManager[Any]] = trainer.precision_plugin.forward_context
        return context


def _log(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    """Pass an audit's metrics to the trainer's loggers, and show them beside its own."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)


def _epoch_is_whole(trainer: pl.Trainer) -> bool:
    """Return whether the epoch has seen all its batches: the hook also fires where the training stops inside it."""
    loop = trainer.fit_loop.epoch_loop
    return loop.batch_progress.is_last_batch or loop.batch_idx + 1 >= trainer.num_training_batches


def _is_tuning(trainer: pl.Trainer) -> bool:
    """Return whether a tuner restores what it saved before it tried learning rates or batch sizes."""
    return Path(str(trainer.ckpt_path or "")).name.startswith((".lr_find_", ".scale_batch_size_"))


def _loss(outputs: Any) -> torch.Tensor | None:
    """Return the loss as a tensor: only an audit reads its value, which on a device waits for the step to end."""
    value = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return value.detach() if isinstance(value, torch.Tensor) and value.numel() == 1 else None
