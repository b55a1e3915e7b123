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
        What is wrong; of a problem that :func:`repaudit.repair` mended, what was done.
    lost : list of int
        Steps that were lost by mending it.
    remedy : mapping, optional
        The document that must stand there, where the rest of the store tells it for certain.
    """

    location: str
    kind: Kind
    message: str
    lost: list[int] = field(default_factory=list)
    remedy: Mapping[str, Any] | None = field(default=None, repr=False)
