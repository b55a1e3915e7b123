"""What is told of a tokenizer beside the inputs it made: its name, a hash of its rules, how many texts it cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any


def tokenizer_facts(tokenizer: Callable[..., Any]) -> dict[str, str]:
    """Return the name of a tokenizer and the SHA-256 of its vocabulary and rules, as far as it has them.

    Examples
    --------
    >>> tokenizer_facts(lambda texts: {})
    {}
    """
    facts = {}
    name = getattr(tokenizer, "name_or_path", None)
    if isinstance(name, str) and name:
        facts["tokenizer"] = name
    rules = _rules(tokenizer)
    if rules is not None:
        facts["tokenizer_sha256"] = hashlib.sha256(rules.encode("utf-8", "surrogatepass")).hexdigest()
    return facts


def _rules(tokenizer: Any) -> str | None:
    """Return what a tokenizer does as a text: all of it where it is a fast one, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("padding", None)  # set by each call
        rules.pop("truncation", None)
        return json.dumps(rules, sort_keys=True)
    vocabulary = getattr(tokenizer, "get_vocab", None)
    return None if vocabulary is None else json.dumps(vocabulary(), sort_keys=True)


def truncated(texts: Sequence[str], tokenizer: Callable[..., Any], max_length: int) -> int:
    """Return how many texts have more tokens than ``max_length``.

    Examples
    --------
    >>> truncated(["a b c", "a"], lambda texts, **options: {"input_ids": [text.split() for text in texts]}, 2)
    1
    """
    quiet = {"verbose": False} if hasattr(tokenizer, "name_or_path") else {}
    whole = tokenizer(list(texts), truncation=False, **quiet)["input_ids"]
    return sum(len(row) > max_length for row in whole)
