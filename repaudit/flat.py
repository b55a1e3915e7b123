"""Attributes that every file format takes: text and numbers as they are, everything else as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

JSON: Final = "json"
"""The attribute that names those whose text is JSON."""


def flat(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as text and numbers; what is neither becomes JSON text, and ``json`` names it.

    Examples
    --------
    >>> flat({"knn": None, "metric": "cosine", "alpha": 1.0})
    {'knn': 'null', 'metric': 'cosine', 'alpha': 1.0, 'json': '["knn"]'}
    """
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()}
    encoded = {name: json.dumps(value, default=_listed) for name, value in values.items() if not _plain(value)}
    return {**values, **encoded, **({JSON: json.dumps(list(encoded))} if encoded else {})}


def nested(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`flat` was given, also from a file, which gives numbers and lists types of its own.

    Examples
    --------
    >>> nested(flat({"knn": None, "diagnostics": {"isolated": 0}}))
    {'knn': None, 'diagnostics': {'isolated': 0}}
    """
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in attrs.items()}
    encoded = json.loads(values.pop(JSON, "[]"))
    return values | {name: json.loads(values[name]) for name in encoded if isinstance(values.get(name), str)}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _listed(value: Any) -> Any:
    """Return arrays and tensors as lists; others, which JSON cannot hold, as the text that shows them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
