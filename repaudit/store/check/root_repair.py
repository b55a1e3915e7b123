"""Repair the root of a store: the documents of its groups and inputs, and what crashed writers left there."""

from __future__ import annotations

from collections.abc import Iterator

from repaudit.names import ATTRS, PROBE
from repaudit.store.check.problem import Problem
from repaudit.store.check.rebuilt_root import rebuilt_root
from repaudit.store.check.root_inspection import RootInspection
from repaudit.store.format.documents import DOCUMENT, dump, read_document
from repaudit.store.format.layout import LEASE
from repaudit.store.format.root_document import root_seal
from repaudit.store.format.schema import violations
from repaudit.store.format.seal import seal
from repaudit.store.storage.lease import Holder, Lease, abandoned
from repaudit.store.storage.storage import TEMPORARY, Storage


def mend_root(storage: Storage) -> Iterator[Problem]:
    """Rewrite what the rest of the store determines, and remove what no commit refers to; yield what was done."""
    document = read_document(storage, DOCUMENT) or {}
    if document.pop("consolidated_metadata", None) is not None:
        storage.put(DOCUMENT, [dump(document)])
        yield Problem(DOCUMENT, "misaligned", "the consolidated metadata that hid later steps was removed")
    version = document["attributes"][ATTRS]["version"]
    if root_seal(document) or (version > 1 and violations("root", document, version)):
        document = rebuilt_root(storage, document)
        storage.put(DOCUMENT, [seal(document)])
        told = "it was made again from the samples and inputs; when and with what the store was created is unconfirmed"
        yield Problem(DOCUMENT, "damaged_metadata", f"{DOCUMENT} does not match its checksum or the format; {told}")
    attributes, coordinates = document["attributes"][ATTRS], document["attributes"].get("coordinates")
    for _ in range(2):  # the inputs' documents are repaired after the group that lists them
        for problem in list(RootInspection(storage, attributes, coordinates).problems()):
            if problem.remedy is not None:
                storage.put(problem.location, [dump(problem.remedy)])
                yield Problem(problem.location, problem.kind, f"{problem.message}; it was rewritten from the store")
    for key in RootInspection(storage, attributes, coordinates).leftover_inputs():
        storage.delete_prefix(key)
        yield Problem(key, "leftover", "inputs that were never added whole were removed")
    for name in storage.children(PROBE):
        if name.endswith(TEMPORARY) and abandoned(name):
            storage.delete_prefix(f"{PROBE}/{name}")
            storage.delete(f"{PROBE}/{name}")
            yield Problem(f"{PROBE}/{name}", "leftover", "a write that never finished was removed")
    for problem in stale_lease(storage, f"{PROBE}/{LEASE}"):
        Lease(storage, f"{PROBE}/{LEASE}", f"the inputs of {storage.url}").release()
        yield problem


def stale_lease(storage: Storage, key: str) -> Iterator[Problem]:
    """Tell of a lease whose holder is gone, which is about to be taken over and released."""
    data = storage.get(key)
    if data is not None and Holder.parse(data).stale:
        yield Problem(key, "leftover", "a lease whose holder is gone was removed")
