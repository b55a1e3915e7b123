"""Inspect the root of a store without trusting it: the documents of its groups, its samples and their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from repaudit.errors import CorruptStoreError, ForeignPathError
from repaudit.names import ATTRS, FORMAT_VERSION, MODELS, PROBE, SAMPLE, SHA256
from repaudit.store.check.expected import deviations, sound_input
from repaudit.store.check.problem import Problem
from repaudit.store.format.chunk_limits import most_of_texts
from repaudit.store.format.documents import (
    DOCUMENT,
    chunk_key,
    column_document,
    group_document,
    is_chunk,
    is_of_array,
    read_document,
)
from repaudit.store.format.encoding import decode_column
from repaudit.store.format.layout import COLUMNS, INPUTS_FINGERPRINT, LEASE
from repaudit.store.format.sample_set import inputs_key
from repaudit.store.format.schema import MOST_SAMPLES, violations
from repaudit.store.storage.lease import Holder
from repaudit.store.storage.storage import Storage, TooLongError

_CHECKSUM_BYTES = 4
_DEPTH = 2
"""Levels below a folder of inputs: its arrays, and their files."""


def _path(key: str) -> str:
    """Return the key of the document of an input, or of a group of them."""
    return f"{PROBE}/{key}/{DOCUMENT}"


class RootInspection:
    """The root's groups and arrays, read leniently.

    Parameters
    ----------
    storage : Storage
    attributes : mapping
        The root's repaudit attributes.
    coordinates : str
        The root's attribute ``coordinates``: which arrays belong to ``sample``.
    certain : bool
        Whether what cannot be read at the moment raises, for who acts on what is found; else it is told like damage.
    """

    def __init__(
        self, storage: Storage, attributes: Mapping[str, Any], coordinates: Any, *, certain: bool = False
    ) -> None:
        self.storage, self.certain = storage, certain
        self.fingerprint = attributes.get("fingerprint")
        self.version = 1 if attributes.get("version") == 1 else FORMAT_VERSION
        samples = attributes.get("samples")
        self.samples = samples if type(samples) is int and 0 < samples <= MOST_SAMPLES else None
        named = coordinates.split() if isinstance(coordinates, str) else ()
        optional = [name for name in COLUMNS if name != SAMPLE and (self.version > 1 or name != SHA256)]
        self.coordinates = [SAMPLE, *(n for n in optional if n in named or storage.children(n))]
        self._documents: dict[str, dict[str, Any] | str] = {}

    def read(self, path: str) -> dict[str, Any] | str:
        """Return a document, or what is wrong with it."""
        if path not in self._documents:
            try:
                document = read_document(self.storage, path)
                self._documents[path] = f"{path} is missing" if document is None else document
            except (CorruptStoreError, ForeignPathError) as error:
                self._documents[path] = str(error)
            except OSError as error:
                self._documents[path] = self._unread(path, error)
        return self._documents[path]

    def assume(self, problem: Problem) -> None:
        """Go on as if what is wrong with a document were repaired."""
        self._documents[problem.location] = dict(problem.remedy or {})

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong with the documents that readers use, then with those of the inputs."""
        yield from self.visible_problems()
        yield from self._unlisted_problems()
        yield from self._own_input_problems()

    def visible_problems(self) -> Iterator[Problem]:
        """Find what is wrong with the documents that readers use."""
        yield from self._models_problems()
        if self.samples is not None:
            for name in self.coordinates:
                yield from self._coordinate_problems(name, self.samples)
            yield from (found := list(self._probe_problems(self.samples)))
            if not found or not list(self._probe_problems(self.samples)):  # else the list says nothing about groups
                yield from self._group_problems()

    def _models_problems(self) -> Iterator[Problem]:
        path, empty = f"{MODELS}/{DOCUMENT}", group_document({})
        document = self.read(path)
        if isinstance(document, str):
            yield Problem(path, "damaged_metadata", document, remedy=empty)
        elif "consolidated_metadata" in document:
            message = f"{path} has consolidated metadata, which hides models and steps committed later"
            yield Problem(path, "misaligned", message, remedy=empty)
        elif wrong := deviations(document, empty):
            message = f"{path} is not what the format says: {', '.join(wrong)}"
            yield Problem(path, "damaged_metadata", message, remedy=empty)

    def _coordinate_problems(self, name: str, samples: int) -> Iterator[Problem]:
        path = f"{name}/{DOCUMENT}"
        expected = column_document((samples,), "string", (samples,), (SAMPLE,), "", {"long_name": COLUMNS[name]})
        document = self.read(path)
        wrong = [] if isinstance(document, str) else deviations(document, expected)
        if isinstance(document, str) or wrong:
            remedy = expected if isinstance(self.texts(name), list) else None  # only what its chunk confirms
            reason = document if isinstance(document, str) else f"{', '.join(wrong)} are not those of {samples} texts"
            yield Problem(path, "damaged_metadata", f"the metadata of {name}: {reason}", remedy=remedy)

    def texts(self, name: str) -> list[str] | str:
        """Return the strings of a coordinate, or what is wrong with its chunk."""
        path = f"{name}/{chunk_key(0)}"
        try:
            data = self.storage.get_short(path, most_of_texts(self.samples or 1))
        except TooLongError as error:
            return str(error)
        except (OSError, MemoryError) as error:
            return self._unread(path, error)
        try:
            texts = decode_column(data or b"", np.dtype(object))
        except MemoryError as error:
            return self._unread(path, error)
        except Exception as error:  # noqa: BLE001 - a damaged chunk may fail anywhere in the decoder
            return "it is missing" if data is None else f"it cannot be decoded ({error})"
        return texts if len(texts) == self.samples else f"it holds {len(texts)} texts, expected {self.samples}"

    def _unread(self, path: str, error: OSError | MemoryError) -> str:
        if self.certain:
            raise OSError(f"{path} cannot be read now ({error})") from error
        return f"it cannot be read now ({error})"

    def _probe_problems(self, samples: int) -> Iterator[Problem]:
        path = f"{PROBE}/{DOCUMENT}"
        group = self.read(path)
        reasons = [group] if isinstance(group, str) else violations("probe", group, self.version)
        if not reasons and not isinstance(group, str):
            listed = group["consolidated_metadata"]["metadata"]
            arrays = {key: document for key, document in listed.items() if document["node_type"] == "array"}
            reasons += [f"{part} is not that of the format" for part in deviations(group, group_document({}, listed))]
            reasons += [
                f"impossible metadata of {key}" for key, array in arrays.items() if self._outdone(key, array, samples)
            ]
            reasons += [
                f"impossible metadata of {key}"
                for key, document in listed.items()
                if document["node_type"] == "group" and self._outdone_group(key, document)
            ]
            if self.version == 1:
                reasons += [f"no metadata of {key}" for key in self.input_keys() if key not in arrays]
        if reasons:
            yield Problem(path, "damaged_metadata", f"{path}: {'; '.join(reasons)}", remedy=self._mended_probe(samples))

    def _outdone(self, key: str, array: dict[str, Any], samples: int) -> bool:
        """Return whether a listed input cannot be right, or its own document is and its chunks say so."""
        if sound_input(array, samples, key) is None:
            return True
        own = self.read(_path(key))
        if own == array or self._confirmed(key, array):
            return False
        sound = sound_input(own, samples, key)
        return sound is not None and self._confirmed(key, sound)

    def _outdone_group(self, key: str, group: dict[str, Any]) -> bool:
        """Return whether a listed encoding cannot be right, or is one that nobody names, unlike its own document."""
        fingerprint = group["attributes"][INPUTS_FINGERPRINT]
        if inputs_key(fingerprint) != key or group != group_document({INPUTS_FINGERPRINT: fingerprint}):
            return True
        own = self._group(key)
        named = self._named_fingerprints()
        return own is not None and fingerprint not in named and own["attributes"][INPUTS_FINGERPRINT] in named

    def _mended_probe(self, samples: int) -> dict[str, Any] | None:
        """Return the probe's group rebuilt from the documents of its inputs, if their chunks confirm all of them."""
        arrays = {key: sound_input(self.read(_path(key)), samples, key) for key in self.input_keys()}
        sound = {key: array for key, array in arrays.items() if array is not None and self._confirmed(key, array)}
        groups = {key: self._group(key) for key in self._group_keys()}
        whole = {key: document for key, document in groups.items() if document is not None}
        if self.version > 1:  # inputs that were being added are listed when they are whole, and not before
            sound = {key: array for key, array in sound.items() if key.partition("/")[0] in whole}
            return group_document({}, whole | sound) if whole and self._read_by_models() <= whole.keys() else None
        return group_document({}, sound) if len(sound) == len(arrays) else None

    def _group_keys(self) -> list[str]:
        names = [key for key in self.storage.children(PROBE) if not key.startswith(".") and key != DOCUMENT]
        return names if self.version > 1 else []

    def _group(self, key: str) -> dict[str, Any] | None:
        """Return the document of one encoding as the list of all holds it, if all its inputs are whole."""
        document = self.read(_path(key))
        attributes = None if isinstance(document, str) else document.get("attributes")
        fingerprint = attributes.get(INPUTS_FINGERPRINT) if isinstance(attributes, dict) else None
        if not isinstance(fingerprint, str) or inputs_key(fingerprint) != key or isinstance(document, str):
            return None
        consolidated = document.get("consolidated_metadata")
        named = consolidated.get("metadata") if isinstance(consolidated, dict) else None
        if not isinstance(named, dict):
            return None
        arrays = {name: sound_input(self.read(_path(f"{key}/{name}")), self.samples or 0, name) for name in named}
        whole = all(array is not None and self._confirmed(f"{key}/{name}", array) for name, array in arrays.items())
        return group_document({INPUTS_FINGERPRINT: fingerprint}) if whole else None

    def _unlisted(self) -> list[str]:
        """Return the encodings that no list has, and that no living process is adding."""
        holder = Holder.read(self.storage, f"{PROBE}/{LEASE}")
        if holder is not None and not holder.stale:
            return []
        listed = {key.partition("/")[0] for key in self.listed_inputs()}
        return [key for key in self._group_keys() if listed and key not in listed]

    def _read_by_models(self) -> set[str]:
        """Return the keys of the encodings that models name, which nothing may drop."""
        return {inputs_key(fingerprint) for fingerprint in self._fingerprints_of_models()}

    def _named_fingerprints(self) -> set[str]:
        return {str(self.fingerprint), *self._fingerprints_of_models()}

    def _fingerprints_of_models(self) -> set[str]:
        found = set()
        for name in self.storage.children(MODELS):
            document = self.read(f"{MODELS}/{name}/{DOCUMENT}")
            attributes = None if isinstance(document, str) else document.get("attributes")
            facts = attributes.get(ATTRS) if isinstance(attributes, dict) else None
            fingerprint = facts.get(INPUTS_FINGERPRINT) if isinstance(facts, dict) else None
            found |= {fingerprint} if isinstance(fingerprint, str) else set()
        return found

    def leftover_inputs(self) -> list[str]:
        """Return the encodings whose adding was interrupted before they were whole, and that no model names."""
        kept = self._read_by_models()
        unlisted = [key for key in self._unlisted() if key not in kept and not self._group(key)]
        return [f"{PROBE}/{key}" for key in unlisted if self._is_own(f"{PROBE}/{key}")]

    def foreign_inputs(self) -> list[str]:
        """Return what lies among the inputs and was made by no writer."""
        kept = self._read_by_models()
        return [f"{PROBE}/{key}" for key in self._unlisted() if key not in kept and not self._is_own(f"{PROBE}/{key}")]

    def _is_own(self, key: str) -> bool:
        """Return whether a folder has documents and chunks of arrays, and nothing else."""
        paths = [path.removeprefix(f"{key}/") for path in self.storage.keys(key)]
        return bool(paths) and all(path.count("/") < _DEPTH and is_of_array(path.rpartition("/")[2]) for path in paths)

    def _unlisted_problems(self) -> Iterator[Problem]:
        whole = [key for key in self._unlisted() if self._group(key)]
        if whole:
            path = f"{PROBE}/{DOCUMENT}"
            message = f"{path} does not list the inputs {', '.join(whole)}, which are whole"
            yield Problem(path, "misaligned", message, remedy=self._with_listed(whole))

    def _with_listed(self, groups: list[str]) -> dict[str, Any]:
        """Return the probe's group with further encodings; what it lists stays, also where chunks of it are lost."""
        listed: Any = self.read(f"{PROBE}/{DOCUMENT}")
        added = {group: self._group(group) for group in groups}
        arrays = {key: self.read(_path(key)) for key in self.input_keys() if key.partition("/")[0] in added}
        return group_document({}, {**listed["consolidated_metadata"]["metadata"], **added, **arrays})  # type: ignore[dict-item]

    def _group_problems(self) -> Iterator[Problem]:
        for key, group in self._listed_groups().items():
            if self.read(_path(key)) != group:
                message = f"{_path(key)} is missing, or is not what {PROBE}/{DOCUMENT} lists"
                yield Problem(_path(key), "damaged_metadata", message, remedy=group)

    def _own_input_problems(self) -> Iterator[Problem]:
        for key, array in self.listed_inputs().items():
            path = _path(key)
            document = self.read(path)
            if isinstance(document, str) or document != array:
                message = document if isinstance(document, str) else f"{path} and {PROBE}/{DOCUMENT} differ"
                yield Problem(path, "damaged_metadata", message, remedy=array if self._confirmed(key, array) else None)

    def _listed_groups(self) -> dict[str, dict[str, Any]]:
        """Return the documents that the listed encodings have, each with its own inputs."""
        own: dict[str, dict[str, Any]] = {}
        for key, array in self.listed_inputs().items():
            group, below, name = key.partition("/")
            if below:
                own.setdefault(group, {})[name] = array
        listed: Any = self.read(f"{PROBE}/{DOCUMENT}")
        metadata = listed["consolidated_metadata"]["metadata"] if own else {}
        return {
            key: group_document(metadata[key]["attributes"], arrays) for key, arrays in own.items() if key in metadata
        }

    def input_keys(self) -> list[str]:
        """Return the keys of the inputs that have a folder; since version 2, below that of their encoding."""
        if self.version == 1:
            return [key for key in self.storage.children(PROBE) if not key.startswith(".") and key != DOCUMENT]
        return [
            f"{group}/{key}"
            for group in self._group_keys()
            for key in self.storage.children(f"{PROBE}/{group}")
            if not key.startswith(".") and key != DOCUMENT
        ]

    def listed_inputs(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of the inputs that the probe's group lists and that can be right."""
        group = self.read(f"{PROBE}/{DOCUMENT}")
        if isinstance(group, str) or self.samples is None or violations("probe", group, self.version):
            return {}
        listed = group["consolidated_metadata"]["metadata"]
        return {
            key: array
            for key, array in listed.items()
            if array["node_type"] == "array" and sound_input(array, self.samples, key)
        }

    @staticmethod
    def chunk_bytes(array: Mapping[str, Any]) -> int:
        """Return the size of one stored chunk of an input, which is not compressed."""
        shape: list[int] = array["chunk_grid"]["configuration"]["chunk_shape"]
        return prod(shape) * int(np.dtype(array["data_type"]).itemsize) + _CHECKSUM_BYTES

    def _confirmed(self, key: str, array: Mapping[str, Any]) -> bool:
        """Return whether an input's chunks have the number and size that its document gives."""
        rows, chunk_rows = array["shape"][0], array["chunk_grid"]["configuration"]["chunk_shape"][0]
        present = [name for name in self.storage.children(f"{PROBE}/{key}") if is_chunk(name)]
        sizes = {self.storage.size(f"{PROBE}/{key}/{name}") for name in present}
        return len(present) == -(-rows // chunk_rows) and sizes == {self.chunk_bytes(array)}
