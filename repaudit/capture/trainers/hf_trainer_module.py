"""A Lightning module that trains a Hugging Face model on its own loss."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from torch import nn

_WITH_TASK: Final = ("For", "LMHead")
"""Parts of the names of classes that have a loss; of a bare model there is none to train."""

_OF_TOKENS: Final = ("ForCausalLM", "LMHead", "ForMaskedLM")

_OF_OTHERS: Final = ("ForMaskedLM", "Classification", "QuestionAnswering", "MultipleChoice")
"""Parts of the names of classes whose labels are not the tokens themselves."""

_NOTHING_TO_LEARN: Final = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""Inputs in which an encoder with a decoder finds no target."""

_WHERE: Final = ("trust_remote_code", "revision", "cache_dir", "token", "subfolder")
_AUTO_CLASSES: Final = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForCTC",
)


class HFTrainerModule(pl.LightningModule):
    """Train a Hugging Face model on its own loss; :attr:`network` is the model.

    Parameters
    ----------
    config_or_model_or_path
        A config (a new model, randomly initialised), a model, or a path or hub id of a pretrained one.
    learning_rate, weight_decay
        Those of AdamW.
    auto_class
        The ``AutoModelFor...`` class that builds the model; by default the class that a saved model's config names,
        and a causal language model where it names none.
    model_options
        Keywords for ``from_config`` or ``from_pretrained``.

    Raises
    ------
    TypeError
        When the first argument is something else, or ``auto_class`` is a text.
    ValueError
        When ``auto_class`` has no model for the config.
    FileNotFoundError
        When a path does not exist.
    ValueError, TypeError
        In training, when the labels are not those of the model's task, or it has none.

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
        inputs = _with_labels(self.network, batch)
        _check_labels(self.network, inputs)
        loss = getattr(self.network(**inputs), "loss", None)
        if not isinstance(loss, torch.Tensor):
            raise TypeError(
                f"{type(self.network).__name__}: expected a model that returns a loss, found none with "
                f"{', '.join(inputs)}: pass auto_class= of a model with a task, such as "
                "transformers.AutoModelForSequenceClassification, and labels that it takes"
            )
        size = len(next(iter(batch.values())))
        self.log(name, loss, prog_bar=True, batch_size=size)
        return loss


def _with_labels(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = dict(batch)
    if "labels" not in inputs and "input_ids" in inputs and not _learns_others(model):
        labels = inputs["input_ids"]
        if "attention_mask" in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
        inputs["labels"] = labels
    return inputs


def _encodes(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _learns_others(model: nn.Module) -> bool:
    """Return whether a model learns something else than the next of its own tokens, which a copy does not teach."""
    return _encodes(model) or any(part in type(model).__name__ for part in _OF_OTHERS)


def _check_labels(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse labels that are not there, or those of samples for a model of tokens: its own error speaks of others."""
    if _encodes(model) and inputs.keys() <= _NOTHING_TO_LEARN:
        raise ValueError(f"{type(model).__name__}: expected labels in every batch, found none with {', '.join(inputs)}")
    dims = [getattr(inputs.get(name), "ndim", 0) for name in ("input_ids", "labels")]
    if dims == [2, 1] and any(part in type(model).__name__ for part in _OF_TOKENS):
        raise ValueError(
            f"{type(model).__name__}: expected a label per token, (sample, token) as input_ids, found one per sample: "
            "to classify samples pass auto_class=transformers.AutoModelForSequenceClassification"
        )


def _build(source: Any, auto_class: Any, options: dict[str, Any]) -> nn.Module:
    from transformers import PretrainedConfig

    if "lr" in options:
        raise TypeError("unexpected keyword 'lr': pass learning_rate")
    if isinstance(auto_class, str):
        raise TypeError(f"auto_class: expected a class, such as transformers.{_AUTO_CLASSES[0]}, found {auto_class!r}")
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, PretrainedConfig):
        auto = auto_class or _named_class(source)
        _check_class(auto, source)
        built: nn.Module = getattr(auto, "from_config", auto)(source, **options)
        return built
    if isinstance(source, str | PathLike):
        return _from_path(source, auto_class, options)
    raise TypeError(
        f"config_or_model_or_path: expected a Hugging Face config, a model, or a path or hub id, found "
        f"{type(source).__name__}"
    )


def _named_class(config: Any) -> Any:
    """Return the class with a task that a config names, as a saved one does; else that of causal language models."""
    import transformers

    name = next(iter(getattr(config, "architectures", None) or []), "")
    named = getattr(transformers, name, None) if any(part in name for part in _WITH_TASK) else None
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    return named if is_model else transformers.AutoModelForCausalLM


def _config_of(source: str | PathLike[str], options: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    where = {name: options[name] for name in _WHERE if name in options}
    return options.get("config") or AutoConfig.from_pretrained(source, **where)


def _from_path(source: str | PathLike[str], auto_class: Any, options: dict[str, Any]) -> nn.Module:
    path = Path(source).expanduser()
    is_local = not isinstance(source, str) or path.is_absolute() or source.startswith(".") or source.endswith("/")
    if is_local and not path.exists():
        raise FileNotFoundError(f"{source}: expected a folder with a pretrained model, or a hub id, found nothing")
    auto = auto_class or _named_class(_config_of(source, options))
    try:
        loaded: nn.Module = auto.from_pretrained(source, **options)
    except ValueError as error:
        if "configuration class" in str(error):
            _check_class(auto, _config_of(source, options))
        raise
    return loaded


def _check_class(auto: Any, config: Any) -> None:
    """Refuse a config that the auto class has no model for, and name those that do."""
    import transformers

    mapping = getattr(auto, "_model_mapping", None)
    if mapping is None or type(config) in mapping or getattr(config, "auto_map", None):
        return
    fitting = [name for name in _AUTO_CLASSES if type(config) in getattr(transformers, name)._model_mapping]
    hint = f"transformers.{' or transformers.'.join(fitting)}" if fitting else "the class of the model"
    raise ValueError(f"{auto.__name__} has no model for a {type(config).__name__}: pass auto_class={hint}")
