"""LoRA and other PEFT adapters: their base model, and the model with them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import nn

from repaudit.errors import PretrainedError

ADAPTER: Final = "adapter_config.json"
_AUTO_CLASSES: Final = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "FEATURE_EXTRACTION": "AutoModel",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
"""What each of PEFT's task types loads its base as."""


def base_of(folder: Path) -> str:
    """Return the path or hub id of the model that an adapter was trained on; a relative path may start at the adapter.

    Raises
    ------
    PretrainedError
        When the adapter does not say, or its base was a path at which nothing is.
    """
    base = _read(folder).get("base_model_name_or_path")
    if not base:
        raise PretrainedError(f"{folder}: its {ADAPTER} names no base model: pass the one it was trained on (--config)")
    places = [Path(base), folder / base]
    found = next((place for place in places if place.exists()), None)
    if found is None and (Path(base).is_absolute() or base.startswith(".")):
        raise PretrainedError(
            f"{folder}: its base model was at {base}, where nothing is now: pass where it is (--config)"
        )
    return str(base if found is None else found)


def base_class(folder: Path) -> Any:
    """Return the transformers class that an adapter's base was loaded as, or None where the adapter does not say."""
    import transformers

    about = _read(folder)
    name = (about.get("auto_mapping") or {}).get("base_model_class") or _AUTO_CLASSES.get(str(about.get("task_type")))
    return getattr(transformers, name, None) if isinstance(name, str) else None


def n_labels(folder: Path) -> int | None:
    """Return the number of classes of the head that an adapter brings for a classification, or None without one."""
    about = _read(folder)
    path = folder / "adapter_model.safetensors"
    if about.get("task_type") not in {"SEQ_CLS", "TOKEN_CLS"} or not path.exists():
        return None
    heads = tuple(about.get("modules_to_save") or ())
    with safe_open(path, framework="pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys() if set(key.split(".")) & set(heads)]  # noqa: SIM118 - no mapping
    return min((shape[0] for shape in shapes if len(shape) == 2), default=None)


def with_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """Put an adapter onto its base model.

    Raises
    ------
    PretrainedError
        When peft is not installed, or the adapter does not fit the base.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise PretrainedError(f"{folder}: adapters need peft: pip install 'repaudit[peft]'") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            model: Any = PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        first = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:2])
        raise PretrainedError(f"{folder}: does not fit {type(base).__name__}: {first[:300]}") from error
    return model.eval()  # type: ignore[no-any-return]


def still_unset(model: nn.Module, unset: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return which tensors of a base are still unset with its adapter, which may bring modules of its own for them."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    renamed = {names[id(tensor)]: tensor for tensor in unset.values() if id(tensor) in names}
    return {name: tensor for name, tensor in renamed.items() if "original_module" not in name.split(".")}


def _read(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"{folder / ADAPTER}: is not JSON ({error})") from error
    if not isinstance(about, dict):
        raise PretrainedError(f"{folder / ADAPTER}: expected a JSON object, found {type(about).__name__}")
    return about
