"""What a model's document says of the record itself: under which epoch it was written, and which steps it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repaudit.names import ATTRS


def epoch_of(document: Mapping[str, Any]) -> int:
    """Return how many writers have had a model; 0 where its document tells none.

    Examples
    --------
    >>> epoch_of({"attributes": {"repaudit": {"epoch": 3}}}), epoch_of({})
    (3, 0)
    """
    epoch = _facts(document).get("epoch", 0)
    return epoch if type(epoch) is int else 0


def _facts(document: Mapping[str, Any]) -> Mapping[str, Any]:
    attributes = document.get("attributes")
    facts = attributes.get(ATTRS) if isinstance(attributes, dict) else None
    return facts if isinstance(facts, dict) else {}
