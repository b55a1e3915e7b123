"""Keys that stand for the names of models and layers."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from repaudit.errors import LayoutError
from repaudit.names import MODELS, encode_name

_LONGEST_KEY: Final = 180


def safe_key(name: str) -> str:
    """Return the key of a model or layer; one too long for a file system ends in a hash instead."""
    key = encode_name(name)
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:100].rstrip('%. ')}~{sha256(name.encode()).hexdigest()[:32]}"


def model_key(model_name: str) -> str:
    """Return the group of a model.

    Examples
    --------
    >>> model_key("seed0")
    'models/seed0'
    """
    return f"{MODELS}/{safe_key(check_name(model_name, 'model'))}"


def check_name(name: Any, what: str) -> str:
    """Return the name of a model or layer if it can be one: text, not empty, without lone surrogates."""
    if not isinstance(name, str) or not name or name != name.encode(errors="ignore").decode():
        raise LayoutError(f"name of a {what}: expected a text of one or more characters, found {name!r}")
    return name
