"""What a network is built on: the Hugging Face model below its head, or the only part of it that is trained."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from repaudit.capture.extract.module_tree import children, join
from repaudit.capture.extract.wrappers import trained_parts


def base_models(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the models that a network is built on, the outermost first, each with its path.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    >>> [(path, type(base).__name__) for path, base in base_models(model)]
    [('transformer', 'GPT2Model')]
    """
    path = ""
    while name := _base_of(network):
        network, path = children(network)[name], join(path, name)
        yield path, network


def _base_of(network: nn.Module) -> str:
    """Return the name of the child that a network is built on, or an empty text."""
    if is_pretrained(network):
        name = str(getattr(network, "base_model_prefix", ""))
        return name if is_pretrained(children(network).get(name)) else ""
    parts = trained_parts(network)
    return parts[0] if len(parts) == 1 else ""


def without_head(network: nn.Module) -> tuple[nn.Module, str]:
    """Return a Hugging Face model without its head, and where it is; another network as it is."""
    name = _base_of(network) if is_pretrained(network) else ""
    return (children(network)[name], name) if name else (network, "")


def is_pretrained(module: nn.Module | None) -> bool:
    """Return whether a module is a Hugging Face model."""
    return any(base.__name__ == "PreTrainedModel" for base in type(module).__mro__)
