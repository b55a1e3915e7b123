"""Repair the root of a store: the documents of its groups and inputs, and what crashed writers left there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from repaudit.names import ATTRS, PROBE
from repaudit.store.check.lost_parts import damaged_inputs, empty_chunk, replaced_columns
from repaudit.store.check.problem import Problem
from repaudit.store.check.rebuilt_root import is_lost, rebuilt_root
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, group_document, read_document
from repaudit.store.format.layout import COLUMNS, LEASE, LOST
from repaudit.store.format.root_document import root_seal
from repaudit.store.format.schema import violations
from repaudit.store.format.seal import seal
from repaudit.store.storage.lease import Holder, Lease, abandoned
from repaudit.store.storage.storage import Storage, is_staged


def mend_root(storage: Storage) -> Iterator[Problem]:
    """Rewrite what the rest of the store determines, and remove what no commit refers to; yield what was done."""
    lost = is_lost(storage)
    document = {} if lost else read_document(storage, DOCUMENT) or {}
    if document.pop("consolidated_metadata", None) is not None:
        storage.put(DOCUMENT, [dump(document)])
        yield Problem(DOCUMENT, "misaligned", "the consolidated metadata that hid later steps was removed")
    facts = {} if lost else document["attributes"][ATTRS]
    if lost or root_seal(document) or (facts["version"] > 1 and violations("root", document, facts["version"])):
        document = rebuilt_root(storage, facts)
        storage.put(DOCUMENT, [seal(document)])
        wrong = "is lost" if lost else "does not match its checksum or the format"
        told = "it was made again from the samples and inputs; when and with what the store was created is unconfirmed"
        yield Problem(DOCUMENT, "damaged_metadata", f"{DOCUMENT} {wrong}; {told}")
    attributes, coordinates = document["attributes"][ATTRS], document["attributes"].get("coordinates")
    for _ in range(2):  # the inputs' documents are repaired after the group that lists them
        for problem in list(RootInspection(storage, attributes, coordinates, certain=True).problems()):
            if problem.remedy is not None:
                storage.put(problem.location, [dump(problem.remedy)])
                yield Problem(problem.location, problem.kind, f"{problem.message}; it was rewritten from the store")
    yield from _mend_columns(storage, document)
    yield from _mend_inputs(RootInspection(storage, attributes, coordinates, certain=True))
    for key in RootInspection(storage, attributes, coordinates, certain=True).leftover_inputs():
        storage.delete_prefix(key)
        yield Problem(key, "leftover", "inputs that were never added whole were removed")
    for name in storage.children(PROBE):
        if is_staged(name) and abandoned(name):
            storage.delete_prefix(f"{PROBE}/{name}")
            storage.delete(f"{PROBE}/{name}")
            yield Problem(f"{PROBE}/{name}", "leftover", "a write that never finished was removed")
    for problem in stale_lease(storage, f"{PROBE}/{LEASE}"):
        Lease(storage, f"{PROBE}/{LEASE}", f"the inputs of {storage.url}").release()
        yield problem


def _mend_columns(storage: Storage, document: dict[str, Any]) -> Iterator[Problem]:
    """Write damaged hashes of texts again, and damaged labels and texts as missing; the root says which are lost."""
    facts = document["attributes"][ATTRS]
    root = RootInspection(storage, facts, document["attributes"].get("coordinates"), certain=True)
    replaced = replaced_columns(root, facts)
    lost = {name for name, (_, is_gone) in replaced.items() if is_gone}
    if lost:  # before they are empty
        facts[LOST] = sorted(lost | set(facts.get(LOST, [])))
        storage.put(DOCUMENT, [seal(document) if facts["version"] > 1 else dump(document)])
    for name, (data, is_gone) in replaced.items():
        storage.put(f"{name}/{chunk_key(0)}", data)
        done = "is lost; it is missing from now on" if is_gone else "was computed again from the texts"
        yield Problem(f"{name}/{chunk_key(0)}", "damaged_chunk", f"the {COLUMNS[name]} of every sample {done}")


def _mend_inputs(root: RootInspection) -> Iterator[Problem]:
    """Write damaged chunks of inputs as missing, which their documents say first."""
    storage, listed = root.storage, root.listed_inputs()
    damaged = damaged_inputs(root, every=True)
    if not damaged:
        return
    marked: Any = copy.deepcopy(root.read(f"{PROBE}/{DOCUMENT}"))
    arrays = marked["consolidated_metadata"]["metadata"]
    for key in damaged:
        arrays[key]["attributes"][LOST] = True
    storage.put(f"{PROBE}/{DOCUMENT}", [dump(marked)])
    for key in damaged:
        storage.put(f"{PROBE}/{key}/{DOCUMENT}", [dump(arrays[key])])
    for group in dict.fromkeys(key.partition("/")[0] for key in damaged if "/" in key):
        own = {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{group}/")}
        storage.put(f"{PROBE}/{group}/{DOCUMENT}", [dump(group_document(arrays[group]["attributes"], own))])
    for key, chunks in damaged.items():
        for chunk in chunks:
            storage.put(f"{PROBE}/{key}/{chunk}", empty_chunk(listed[key]))
            message = "a chunk of these inputs is lost; they are marked, until somebody records with them again"
            yield Problem(f"{PROBE}/{key}/{chunk}", "damaged_chunk", message)


def stale_lease(storage: Storage, key: str) -> Iterator[Problem]:
    """Tell of a lease whose holder is gone, which is about to be taken over and released."""
    holder = Holder.read(storage, key)
    if holder is not None and holder.stale:
        yield Problem(key, "leftover", "a lease whose holder is gone was removed")
