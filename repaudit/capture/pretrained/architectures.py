"""Which class of model a config stands for, and which of several fits a set of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

_CAUSAL: Final = ("CausalLM", "LMHead")


def model_classes(config: Any) -> list[Any]:
    """Return the classes that a config's weights may be of: the one it names first, the bare model last.

    Examples
    --------
    >>> from transformers import BertConfig
    >>> [found.__name__ for found in model_classes(BertConfig(architectures=["BertForMaskedLM"]))]
    ['BertForMaskedLM', 'AutoModel']
    """
    from transformers import AutoModel, AutoModelForCausalLM

    names = list(getattr(config, "architectures", None) or [])
    named = [found for name in names if (found := _named(config, name)) is not None]
    if not named and (not names or any(part in name for name in names for part in _CAUSAL)):
        named = [AutoModelForCausalLM] if type(config) in AutoModelForCausalLM._model_mapping else []
    return [*named[:1], AutoModel]


def _named(config: Any, name: str) -> Any:
    """Return the class of that name: from transformers, or through the auto class that the config gives for it."""
    import transformers

    for auto, reference in (getattr(config, "auto_map", None) or {}).items():
        if isinstance(reference, str) and reference.rsplit(".", 1)[-1] == name and hasattr(transformers, auto):
            return getattr(transformers, auto)
    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def load_fitting(classes: Iterable[Any], load: Callable[[Any], tuple[nn.Module, dict[str, Any]]]) -> Any:
    """Load weights as the first class that needs no others, or else as the one that needs the fewest.

    Returns
    -------
    tuple
        The model, and its tensors that were not among the weights, by name.
    """
    best: tuple[nn.Module, set[str]] | None = None
    for model_class in classes:
        model, info = load(model_class)
        missing = set(info["missing_keys"])
        if best is None or len(missing) < len(best[1]):
            best = model, missing
        if not missing:
            break
    assert best is not None, "there is always the bare model"  # noqa: S101
    tensors = dict(best[0].state_dict(keep_vars=True))
    return best[0], {name: tensors[name] for name in sorted(best[1]) if name in tensors}


def build(model_class: Any, config: Any) -> nn.Module:
    """Build a model of a class, or of an auto class, with new weights.

    Examples
    --------
    >>> from transformers import AutoModel, BertConfig
    >>> config = BertConfig(vocab_size=8, hidden_size=4, num_attention_heads=1, num_hidden_layers=1)
    >>> type(build(AutoModel, config)).__name__
    'BertModel'
    """
    made: nn.Module = model_class.from_config(config) if hasattr(model_class, "from_config") else model_class(config)
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting what it loads: what matters is said by repaudit's own errors."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
