"""One thing that is wrong with a store, and what was done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal[
    "missing_chunk", "damaged_chunk", "damaged_metadata", "misaligned", "unknown_version", "foreign", "leftover"
]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a store: where, of what kind, and in words.

    Attributes
    ----------
    location : str
        Key of the document, chunk or model within the store.
    kind : str
        One of :data:`Kind`.
    message : str
        What is wrong, or what :func:`repaudit.repair` did about it.
    lost : list of int
        Steps that the repair dropped.
    remedy : mapping, optional
        The document that belongs there, where the rest of the store determines it.

    Examples
    --------
    >>> Problem("models/seed0/step/c.0", "missing_chunk", "chunk c.0 is missing").kind
    'missing_chunk'
    """

    location: str
    kind: Kind
    message: str
    lost: list[int] = field(default_factory=list)
    remedy: Mapping[str, Any] | None = field(default=None, repr=False)
