"""The objective in a transformers ``Trainer``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from repaudit.align.joint_objective import SAMPLE_INDEX, JointObjective, check_objective

STATE: Final = "alignment.pt"
"""The objective's state, beside the optimizer's in a checkpoint."""


class AlignedTrainerMixin:
    """Add a joint objective to a transformers ``Trainer``, or to any subclass of it.

    It goes through ``compute_loss``, so that losses of your own, label smoothing and gradient accumulation stay as
    they are; each of the forwards that make up one optimizer step adds its share of the match. While training, the
    logged ``loss`` is the sum of both; the match, its weight and the ratio of gradient norms are logged beside it.
    Heads are trained by the Trainer's optimizer; the bank, the draws and the heads are in every checkpoint.

    Parameters
    ----------
    args, kwargs
        As for the Trainer.
    objective : JointObjective

    See Also
    --------
    repaudit.AlignedFineTuning, repaudit.AlignmentCallback : The same for Lightning.

    Examples
    --------
    >>> import transformers
    >>> class AlignedTrainer(AlignedTrainerMixin, transformers.Trainer):
    ...     pass
    >>> AlignedTrainer(model, arguments, train_dataset=data, objective=objective).train()  # doctest: +SKIP
    """

    model: Any
    args: Any
    state: Any
    accelerator: Any
    model_accepts_loss_kwargs: bool
    compute_loss_func: Any
    current_gradient_accumulation_steps: int
    _signature_columns: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[1 : cls.__mro__.index(AlignedTrainerMixin)]
        theirs = [base for base in before if base.__module__.startswith("transformers.")]
        hiding = [base for base in theirs if "compute_loss" in vars(base)]  # others may pass on what is behind them
        if hiding:
            raise TypeError(
                f"{cls.__name__}: expected AlignedTrainerMixin before {hiding[0].__name__} among the base classes, "
                "whose own loss hides it"
            )

    def __init__(self, *args: Any, objective: JointObjective, **kwargs: Any) -> None:
        check_objective(objective)
        super().__init__(*args, **kwargs)
        self.objective = objective.prepare(self.model).to(self.args.device)
        self._seen: dict[str, list[float]] = {}
        self._is_new = True

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the Trainer's step; heads' gradients, which ``model.zero_grad`` forgets, begin anew after an update."""
        if self._is_new:
            self.objective.zero_grad(set_to_none=True)
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._is_new = bool(self.accelerator.sync_gradients)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the task's loss, and while training the weighted match with it."""
        rest = {name: value for name, value in inputs.items() if name != SAMPLE_INDEX}

        def task() -> Any:
            return super(AlignedTrainerMixin, self).compute_loss(  # type: ignore[misc]
                model, rest, return_outputs=True, num_items_in_batch=num_items_in_batch
            )

        if not model.training:
            loss, outputs = task()
            return (loss, outputs) if return_outputs else loss
        step = self.state.global_step
        (loss, outputs), match = self.objective.joined(model, step, task, inputs.get(SAMPLE_INDEX))
        if match is not None:
            if self.args.logging_steps and step % max(1, int(self.args.logging_steps)) == 0:
                self.objective.note_gradients(loss, match, list(model.parameters()))
            loss = loss + (match / self._share(num_items_in_batch)).to(loss.dtype)
        for name, value in self.objective.metrics.items():
            self._seen.setdefault(name, []).append(value)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict without the samples' places in the target, which a network need not take."""
        rest = {name: value for name, value in inputs.items() if name != SAMPLE_INDEX}
        return super().prediction_step(model, rest, *args, **kwargs)  # type: ignore[misc]

    def _share(self, num_items_in_batch: Any) -> int:
        """Return by what the match must be divided: the Trainer does it where it has not scaled the task's loss."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            normalised = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = normalised or self.compute_loss_func is not None
        return int(self.current_gradient_accumulation_steps) if scaled else 1

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's optimizer, with the heads as a group of their own."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        heads = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [parameter for parameter in heads if id(parameter) not in held]
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": 0.0})
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with a training loss, the means of the match's numbers since the last time."""
        if "loss" in logs and self._seen:
            logs |= {name: sum(values) / len(values) for name, values in self._seen.items()}
            self._seen = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if SAMPLE_INDEX not in self._signature_columns:  # else remove_unused_columns drops it
            self._signature_columns += [SAMPLE_INDEX]

    def _save_optimizer_and_scheduler(self, output_dir: str | None) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save and output_dir is not None:
            torch.save(self.objective.state_dict(), Path(output_dir, STATE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and Path(checkpoint, STATE).is_file():
            state = torch.load(Path(checkpoint, STATE), map_location=self.args.device, weights_only=True)
            self.objective.load_state_dict(state)
