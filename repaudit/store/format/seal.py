"""The checksum of a whole document: it tells that a byte of it is damaged, wherever that byte is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from repaudit.names import ATTRS
from repaudit.store.format.documents import dump
from repaudit.store.format.encoding import checksum
from repaudit.store.format.layout import INPUTS_FINGERPRINT

SEAL: Final = "crc32c"
"""The attribute of the root and of each model that holds the checksum of its document."""


def unsealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without its checksum.

    Examples
    --------
    >>> unsealed({"attributes": {"crc32c": 7}})
    {'attributes': {}}
    """
    attributes = {name: value for name, value in document["attributes"].items() if name != SEAL}
    return {**document, "attributes": attributes}


def document_checksum(document: Mapping[str, Any]) -> int:
    """Return the CRC-32C of a document as JSON without spaces, its keys sorted, without the checksum itself.

    Examples
    --------
    >>> document_checksum({"b": 1, "attributes": {}}) == document_checksum({"attributes": {"crc32c": 7}, "b": 1})
    True
    """
    text = json.dumps(unsealed(document), allow_nan=False, sort_keys=True, separators=(",", ":"))
    return checksum(text.encode())


def seal(document: Mapping[str, Any]) -> bytes:
    """Write a document with its checksum."""
    bare = unsealed(document)
    return dump({**bare, "attributes": {**bare["attributes"], SEAL: document_checksum(bare)}})


def model_bytes(document: Mapping[str, Any]) -> bytes:
    """Write the document of a model; those of version 1, which name no inputs, stay without a checksum."""
    sealed = INPUTS_FINGERPRINT in document["attributes"][ATTRS]
    return seal(document) if sealed else dump(document)


def broken_seal(document: Mapping[str, Any]) -> str | None:
    """Return in words that a document does not match its checksum; None where it does, or has none.

    Examples
    --------
    >>> document = json.loads(seal({"attributes": {"a": 1}}))
    >>> document["attributes"]["a"] = 2
    >>> broken_seal(document)
    'it does not match its checksum'
    """
    attributes = document.get("attributes")
    if not isinstance(attributes, dict) or SEAL not in attributes:
        return None
    try:
        found = document_checksum(document)
    except (ValueError, RecursionError) as error:
        return f"its checksum cannot be computed ({error})"
    return None if found == attributes[SEAL] else "it does not match its checksum"
