"""Ids and labels of samples as texts, whatever kind of value they were given as."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

import numpy as np
import torch

from repaudit.errors import ProbeSetError

_MISSING: Final = {"NoneType", "NAType", "NaTType"}


def as_texts(values: Iterable[Any], what: str) -> list[str]:
    """Return ids or labels as texts: numbers of any library by their value, bytes in UTF-8.

    Raises
    ------
    ProbeSetError
        When one is missing (None, NaN), or is no single value.

    Examples
    --------
    >>> as_texts([torch.tensor(0), np.int64(1), b"two", "three"], "labels")
    ['0', '1', 'two', 'three']
    """
    return [_as_text(value, f"{what}: sample {index}") for index, value in enumerate(values)]


def _as_text(value: Any, where: str) -> str:
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise ProbeSetError(f"{where}: expected one value, found one of shape {tuple(value.shape)}")
        value = value.item()
    if type(value).__name__ in _MISSING or (isinstance(value, float | Decimal) and math.isnan(value)):
        raise ProbeSetError(f"{where} has none ({value}): give every sample one, or leave that sample out")
    if not isinstance(value, bytes):
        return as_unicode(str(value), where)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ProbeSetError(f"{where}: expected a text or bytes in UTF-8, found {value[:40]!r}") from error


def as_unicode(text: str, where: str) -> str:
    """Return a text that can be written, which one with half of a surrogate pair cannot.

    Raises
    ------
    ProbeSetError
        Where it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ProbeSetError(
            f"{where}: character {error.start} is {text[error.start]!r}, half of a surrogate pair, which no Unicode "
            "text has: leave it out"
        ) from error
    return text
