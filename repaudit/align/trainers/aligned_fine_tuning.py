"""A Lightning module that fine-tunes a Hugging Face model with a joint objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from repaudit.align.joint_objective import SAMPLE_INDEX, JointObjective
from repaudit.capture.trainers.hf_trainer_module import HFTrainerModule
from repaudit.errors import kind_of


class AlignedFineTuning(HFTrainerModule):
    """Train a Hugging Face model on its own loss and the match to a target.

    ``train_loss`` is the task's loss alone; beside it are logged ``match`` (in units of its range), ``match_weight``
    and, at every logged step, ``gradient_ratio``: the norm of the match's weighted gradient over the task's. The
    bank, the draws and the heads are part of a checkpoint: a resumed training is bit-identical.

    Parameters
    ----------
    config_or_model_or_path, learning_rate, weight_decay, auto_class, model_options
        As for :class:`repaudit.HFTrainerModule`.
    objective : JointObjective

    See Also
    --------
    repaudit.AlignmentCallback : The same for a LightningModule of your own.

    Examples
    --------
    >>> import repaudit as ra
    >>> from transformers import GPT2Config
    >>> target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=3)(torch.randn(20, 4)))
    >>> ids = torch.arange(80).reshape(20, 4) % 16
    >>> probe_set = ra.ProbeSet.from_tensors({"input_ids": ids})
    >>> objective = ra.JointObjective(
    ...     ra.OperatorMatch(target), weight=0.1, layer="transformer.h[-1]", probe_set=probe_set)
    >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    >>> AlignedFineTuning(config, objective).objective.weight
    0.1
    """

    def __init__(
        self,
        config_or_model_or_path: Any,
        objective: JointObjective,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.01,
        auto_class: Any = None,
        **model_options: Any,
    ) -> None:
        if not isinstance(objective, JointObjective):
            raise TypeError(f"objective: expected a JointObjective behind the student, found {kind_of(objective)}")
        super().__init__(config_or_model_or_path, learning_rate, weight_decay, auto_class, **model_options)
        self.objective = objective.prepare(self.network)

    def training_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the task's loss and the weighted match."""
        rest = {name: value for name, value in batch.items() if name != SAMPLE_INDEX}
        step = self.trainer.global_step if self._trainer is not None else 0
        task, match = self.objective.joined(
            self.network, step, lambda: self._logged_loss("train_loss", rest), batch.get(SAMPLE_INDEX)
        )
        every = 0 if self._trainer is None else self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if match is not None and every and step % every == 0:
            self.objective.note_gradients(task, match, list(self.network.parameters()))
        if self._trainer is not None:
            self.log_dict(self.objective.metrics, batch_size=len(next(iter(rest.values()))))
        return task if match is None else task + match.to(task.dtype)

    def validation_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the task's loss, logged as ``val_loss``."""
        return super().validation_step(
            {name: value for name, value in batch.items() if name != SAMPLE_INDEX}, batch_idx
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the parameters that are trained, the heads among them."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
