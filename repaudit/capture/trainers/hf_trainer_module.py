"""A Lightning module that trains a Hugging Face model on its own loss."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn


class HFTrainerModule(pl.LightningModule):
    """Train a Hugging Face model on its own loss; :attr:`network` is the model.

    Parameters
    ----------
    config_or_model_or_path
        A config (a new model, randomly initialised), a model, or a path or hub id of a pretrained one.
    learning_rate, weight_decay
        Those of AdamW.
    auto_class
        The ``AutoModelFor...`` class that builds the model; causal language models by default.
    model_options
        Keywords for ``from_config`` or ``from_pretrained``.

    Raises
    ------
    TypeError
        When the first argument is something else.

    See Also
    --------
    repaudit.RepresentationAuditCallback : Audits it while it trains.

    Notes
    -----
    A batch is what the model's ``forward`` takes. Without ``labels`` in it, a causal language model learns its own
    ``input_ids``, masked tokens left out. The loss is logged as ``train_loss`` (and ``val_loss``).

    Examples
    --------
    >>> from transformers import GPT2Config
    >>> module = HFTrainerModule(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    >>> type(module.network).__name__
    'GPT2LMHeadModel'
    """

    def __init__(
        self,
        config_or_model_or_path: Any,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.01,
        auto_class: Any = None,
        **model_options: Any,
    ) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.network: nn.Module = _build(config_or_model_or_path, auto_class, model_options)
        self.network.train()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Forward the network."""
        return self.network(*args, **kwargs)

    def training_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the network's loss, logged as ``train_loss``."""
        return self._logged_loss("train_loss", batch)

    def validation_step(self, batch: Mapping[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the network's loss, logged as ``val_loss``."""
        return self._logged_loss("val_loss", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the parameters that are trained."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def _logged_loss(self, name: str, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = self.network(**_with_labels(batch)).loss
        size = len(next(iter(batch.values())))
        self.log(name, loss, prog_bar=True, batch_size=size)
        return loss


def _with_labels(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = dict(batch)
    if "labels" not in inputs and "input_ids" in inputs:
        labels = inputs["input_ids"]
        if "attention_mask" in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        inputs["labels"] = labels
    return inputs


def _build(source: Any, auto_class: Any, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM, PretrainedConfig

    auto = auto_class or AutoModelForCausalLM
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, PretrainedConfig):
        built: nn.Module = auto.from_config(source, **options)
        return built
    if isinstance(source, str | PathLike):
        loaded: nn.Module = auto.from_pretrained(source, **options)
        return loaded
    raise TypeError(
        f"config_or_model_or_path: expected a Hugging Face config, a model, or a path or hub id, found "
        f"{type(source).__name__}"
    )
