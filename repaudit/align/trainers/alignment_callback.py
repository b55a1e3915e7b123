"""The objective in a LightningModule of somebody else's, by a callback."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from repaudit.align.joint_objective import SAMPLE_INDEX, JointObjective, check_objective
from repaudit.align.trainers.aligned_fine_tuning import AlignedFineTuning


class AlignmentCallback(pl.Callback):
    """Add a joint objective to what any LightningModule's ``training_step`` returns.

    For the time of a fit the module's ``training_step`` is replaced by one that adds the weighted match. Heads are
    trained by an AdamW of the callback's own. The bank, the draws and the heads are in the callback's part of a
    checkpoint.

    Parameters
    ----------
    objective : JointObjective
        Its layer path starts at the module's ``.network`` if it has one, else at the module.
    head_learning_rate : float
        Of the heads, where the match has any.

    Raises
    ------
    TypeError
        At the start of a fit, where the module optimizes by hand, or its step returns no loss.

    See Also
    --------
    repaudit.AlignedFineTuning : A module that has it built in.

    Examples
    --------
    >>> import repaudit as ra
    >>> points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    >>> target = ra.AlignmentTarget.from_operator(ra.DiffusionGauge(perplexity=3)(points))
    >>> objective = ra.JointObjective(ra.OperatorMatch(target), layer="trunk",
    ...                               probe_set=ra.ProbeSet.from_tensors({"x": points}))
    >>> callback = AlignmentCallback(objective)
    >>> callback.objective.weight
    1.0
    """

    def __init__(self, objective: JointObjective, head_learning_rate: float = 1e-3) -> None:
        check_objective(objective)
        self.objective, self.head_learning_rate = objective, head_learning_rate
        self._heads: torch.optim.Optimizer | None = None
        self._of_instance: Any = None
        self._is_in_place = False

    def on_init_end(self, *_: Any, **__: Any) -> None:
        """Refuse transformers' ``Trainer``, which calls this first of all."""
        raise TypeError(
            "expected a Lightning trainer, found transformers' Trainer: AlignmentCallback is for Lightning, use "
            "ra.AlignedTrainerMixin"
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find what is wrong before the first step."""
        if stage != "fit":
            return
        if isinstance(pl_module, AlignedFineTuning):
            raise TypeError("expected a module of your own, found AlignedFineTuning, which has an objective already")
        if not pl_module.automatic_optimization:
            raise TypeError(
                f"{type(pl_module).__name__} optimizes by hand (automatic_optimization=False): add the objective in "
                "its training_step, by JointObjective.joined"
            )
        self.objective.prepare(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the objective where the module is, and into its steps."""
        self.objective.to(pl_module.device)
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        if trained and self._heads is None:
            self._heads = torch.optim.AdamW(trained, lr=self.head_learning_rate)
        step_of_task = pl_module.training_step
        self._of_instance = pl_module.__dict__.get("training_step")

        @wraps(step_of_task)  # Lightning passes the arguments that it finds in the signature
        def training_step(batch: Any, *args: Any, **kwargs: Any) -> Any:
            return self._joined(trainer, pl_module, batch, lambda rest: step_of_task(rest, *args, **kwargs))

        pl_module.training_step = training_step  # type: ignore[method-assign]
        self._is_in_place = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the module its own step back."""
        if stage == "fit":
            self._give_back(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the module its own step back."""
        self._give_back(pl_module)

    def _give_back(self, pl_module: pl.LightningModule) -> None:
        if not self._is_in_place:
            return
        own, self._of_instance, self._is_in_place = self._of_instance, None, False
        pl_module.__dict__.pop("training_step", None)
        if own is not None:  # one that was set on this module, and not by its class
            pl_module.training_step = own  # type: ignore[method-assign]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Train the heads."""
        if self._heads is not None:
            self._heads.step()
            self._heads.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        heads = None if self._heads is None else self._heads.state_dict()
        return {"objective": self.objective.state_dict(), "heads": heads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was taken."""
        self.objective.load_state_dict(state_dict["objective"])
        if state_dict["heads"] is not None:
            trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
            self._heads = torch.optim.AdamW(trained, lr=self.head_learning_rate)
            self._heads.load_state_dict(state_dict["heads"])

    def _joined(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, task: Any) -> Any:
        index, rest = None, batch
        if isinstance(batch, Mapping) and SAMPLE_INDEX in batch:
            index, rest = batch[SAMPLE_INDEX], {name: value for name, value in batch.items() if name != SAMPLE_INDEX}
        step = trainer.global_step
        returned, match = self.objective.joined(module, step, lambda: task(rest), index)
        if match is None or returned is None:  # a step that is skipped
            return returned
        loss = returned["loss"] if isinstance(returned, Mapping) else returned
        if not isinstance(loss, Tensor):
            raise TypeError(f"expected a loss from training_step, found {type(returned).__name__}")
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            self.objective.note_gradients(loss, match, list(module.parameters()))
        module.log_dict(self.objective.metrics, batch_size=1)
        total = loss + match.to(loss.dtype)
        return {**returned, "loss": total} if isinstance(returned, Mapping) else total
