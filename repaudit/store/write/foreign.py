"""What in the place of a store or a model no writer of repaudit has made: it is never deleted."""

from __future__ import annotations

import os
from pathlib import Path

from repaudit.errors import NotAStoreError, StoreError
from repaudit.names import ATTRS, MODELS, PROBE
from repaudit.store.format.documents import DOCUMENT, is_of_array, read_document
from repaudit.store.format.layout import COLUMNS, LEASE
from repaudit.store.format.root_document import store_attributes
from repaudit.store.storage.local import LOCK, LocalStorage
from repaudit.store.storage.storage import Storage, is_staged


def foreign_models(storage: Storage) -> list[str]:
    """Return what is among the models of a folder without a root document, which come after it."""
    return [
        f"{MODELS}/{name}" for name in storage.children(MODELS) if name != DOCUMENT and not _is_model(storage, name)
    ]


def foreign_parts(storage: Storage) -> list[str]:
    """Return the files among the samples and inputs of a folder without a root document that no writer has made."""
    found = []
    for home in (*COLUMNS, PROBE):
        if isinstance(storage, LocalStorage) and (storage.root / home).is_file():
            found.append(home)
        for key in storage.keys(home):
            path = key.lstrip("/").removeprefix(home).lstrip("/")  # at the root of a file system keys begin with /
            own = _is_of_inputs(path) if home == PROBE else _is_own(f"{home}/{path}")
            found += [f"{home}/{path}"] * (path != "" and not own)
    return found


def _is_of_inputs(path: str) -> bool:
    """Whether a writer has put a file there: of one encoding of the inputs, or in version 1 of the only one."""
    return _is_own(path) or _is_own(path.partition("/")[2])


def _is_model(storage: Storage, name: str) -> bool:
    document = read_document(storage, f"{MODELS}/{name}/{DOCUMENT}") or {}
    attributes = document.get("attributes")
    return isinstance(attributes, dict) and ATTRS in attributes


def refuse_inside(storage: Storage) -> None:
    """Refuse to create a store inside another one, which could not be opened any more.

    Raises
    ------
    NotAStoreError
        Naming the outer store.
    """
    for folder in Path(os.path.realpath(storage.url)).parents if isinstance(storage, LocalStorage) else ():
        try:
            outer = store_attributes(LocalStorage(folder))
        except (StoreError, OSError):
            continue
        if outer is not None:
            raise NotAStoreError(f"{storage.url} is inside the store {folder}: expected a place of its own")


def refuse_foreign(storage: Storage, key: str, model_name: str) -> None:
    """Refuse to replace a model whose folder has files of others.

    Raises
    ------
    NotAStoreError
        Naming some of them.
    """
    foreign = [path for path in storage.keys(key) if not _is_own(path.removeprefix(f"{key}/"))]
    if foreign:
        raise NotAStoreError(
            f"{storage.url}: model {model_name!r} would take the place of {', '.join(foreign[:3])}, which no writer "
            f"made; move it away, or use another model name"
        )


def delete_arrays(storage: Storage, key: str) -> None:
    """Delete the arrays of a model's group: its folders with nothing but documents and chunks."""
    for name in storage.children(key):
        below = f"{key}/{name}"
        if all(_is_own(path.removeprefix(f"{key}/")) for path in storage.keys(below)) and not _is_own(name):
            storage.delete_prefix(below)


def _is_own(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    first, *_ = path.split("/")
    if is_staged(first):
        return True
    if not folder:
        return name in {DOCUMENT, LOCK} or name.startswith(LEASE)
    return "/" not in folder and is_of_array(name)
