"""The record of one model: grown metadata in memory, chunks first, one atomic put as the commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from repaudit.errors import (
    CorruptStoreError,
    LayoutError,
    LeaseError,
    ModelExistsError,
    StepOrderError,
)
from repaudit.names import ATTRS, CHECKSUM, LAYER, STEP
from repaudit.store.format.documents import DOCUMENT, chunk_key, dump, read_document
from repaudit.store.format.encoding import COORDINATE_CHUNK, encode_column, encode_step
from repaudit.store.format.keys import model_key
from repaudit.store.format.layer_layout import LayerLayout
from repaudit.store.format.layout import INPUTS_FINGERPRINT, LEASE, LOST, REPAIR, STEP_COLUMNS, model_document
from repaudit.store.format.model_facts import epoch_of, truncations_of
from repaudit.store.format.provenance import now, package_versions
from repaudit.store.format.schema import unbelievable
from repaudit.store.format.seal import broken_seal, model_bytes
from repaudit.store.format.step_columns import column_objects
from repaudit.store.format.values import stored_coordinate
from repaudit.store.storage.fenced import Fenced
from repaudit.store.storage.lease import Lease
from repaudit.store.storage.storage import ChangedError, Parts, Storage
from repaudit.store.write.columns import Columns, load_columns
from repaudit.store.write.foreign import delete_arrays, refuse_foreign
from repaudit.store.write.matching import check_inputs, matched_layers

ADOPTIONS: Final = 5
"""Attempts to take a record over while requests of its earlier writer still arrive."""

IfExists: TypeAlias = Literal["resume", "error", "replace"]
"""What to do with a model that is already in the store."""

StepRow = Mapping[str, Any]
"""The coordinates of one step: step, epoch, wall_time (s), trigger, loss."""


class ModelRecord:
    """A model's committed steps, and the only code that changes them.

    Not safe to call from several threads at once.
    """

    def __init__(self, storage: Storage, model_name: str, layers: Sequence[LayerLayout], lease: Lease) -> None:
        self.storage, self.model_name, self.layers, self.lease = Fenced(storage, lease), model_name, list(layers), lease
        self.key = model_key(model_name)
        self.document: dict[str, Any] = {}
        self.columns: dict[str, list[Any]] = {}
        self.checksums: list[list[int]] = []
        self.lost: frozenset[str] = frozenset()
        self.uncertain = False
        self.epoch = 0

    @classmethod
    def claim(
        cls,
        storage: Storage,
        model_name: str,
        layers: Sequence[LayerLayout],
        attributes: Mapping[str, Any],
        *,
        if_exists: IfExists = "resume",
        force: bool = False,
    ) -> ModelRecord:
        """Take the model's lease, and load or create its record."""
        if if_exists not in {"resume", "error", "replace"}:
            raise LayoutError(f"if_exists={if_exists!r}: expected 'resume', 'error' or 'replace'")
        key = model_key(model_name)
        if if_exists == "replace":
            refuse_foreign(storage, key, model_name)
        if if_exists != "replace" and storage.size(f"{key}/{DOCUMENT}") is None:
            present = [name for name in storage.children(key) if not name.startswith(".")]
            if present and storage.size(f"{key}/{DOCUMENT}") is None:  # not one that another writer is creating
                refuse_foreign(storage, key, model_name)
                raise CorruptStoreError(
                    f"{storage.url}: the document of model {model_name!r} is lost, its arrays are not: run "
                    f"`repaudit repair`, or pass if_exists='replace' to drop them"
                )
        facts = {"name": model_name, "committed": 0, "gaps": [], "created": now(), "versions": package_versions()}
        fresh = model_document({**attributes, **facts}, layers, 0)
        try:
            fresh = json.loads(dump(fresh))  # as it will be read: tuples are lists, and keys texts
        except (TypeError, ValueError) as error:
            raise LayoutError(f"model {model_name!r}: expected attributes that JSON can hold ({error})") from error
        # The group comes before its lease, so that no reader ever meets a directory that is not a Zarr group.
        created = storage.create(f"{key}/{DOCUMENT}", model_bytes(fresh))
        if not created and if_exists == "error":
            raise ModelExistsError(
                f"model {model_name!r} is already in {storage.url}, expected a new one: pass if_exists='resume' to "
                f"continue it, or 'replace' to drop it"
            )
        record = cls(
            storage, model_name, layers, Lease(storage, f"{key}/{LEASE}", f"model {model_name!r}", force=force)
        )
        try:
            record._start(fresh, replace=if_exists == "replace")
        except BaseException:
            record.lease.release()
            raise
        return record

    def _start(self, fresh: dict[str, Any], *, replace: bool) -> None:
        staged = f"{REPAIR}/{self.key.partition('/')[2]}"
        if replace:
            self.storage.delete(f"{staged}/{DOCUMENT}")
            self.storage.delete_prefix(staged)
            self.storage.note(f"{self.key}/{DOCUMENT}")
            self._reset(fresh)
            return
        if self.storage.size(f"{staged}/{DOCUMENT}") is not None:
            raise CorruptStoreError(
                f"{self.storage.url}: a repair of model {self.model_name!r} was interrupted: run `repaudit repair`"
            )
        Retrying(stop=stop_after_attempt(ADOPTIONS), retry=retry_if_exception_type(ChangedError), reraise=True)(
            self._adopt, fresh
        )

    def _adopt(self, fresh: dict[str, Any]) -> None:
        """Go on with the record under an epoch of this writer: no commit of an earlier one fits it any more."""
        self.reload()
        if self.committed == 0:
            self._reset(fresh)
            return
        model, url = f"model {self.model_name!r}", self.storage.url
        check_inputs(f"{model} in {url}", self.document, fresh["attributes"][ATTRS].get(INPUTS_FINGERPRINT))
        self.layers = matched_layers(model, url, self.document, self.layers, self.committed)
        self._commit(self._grown(self.committed, epoch=self._next_epoch(), steps=self.columns[STEP]))
        self.epoch = epoch_of(self.document)
        self._follow_up(only_larger=True)

    def _next_epoch(self) -> int:
        try:
            return epoch_of(read_document(self.storage, f"{self.key}/{DOCUMENT}") or {}) + 1
        except CorruptStoreError:  # it is being replaced
            return 1

    @property
    def committed(self) -> int:
        """Number of committed steps."""
        return int(self.document["attributes"][ATTRS]["committed"])

    @property
    def steps(self) -> list[int]:
        """The committed steps."""
        return list(self.columns[STEP])

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """The steps that were asked for and not stored, each with its reason."""
        return list(self.document["attributes"][ATTRS]["gaps"])

    def reload(self, *, secure: bool = False) -> None:
        """Read the state from the store, which is the only truth."""
        try:
            self.storage.note(f"{self.key}/{DOCUMENT}")
            document = read_document(self.storage, f"{self.key}/{DOCUMENT}")
            if document is None:
                raise ValueError("its document is gone: was the store deleted, or moved away?")
            if (wrong := broken_seal(document)) is not None:
                raise ValueError(wrong)
            self.document = document
            count = self.committed
            loaded = load_columns(self.storage, self.key, document, count) if count else Columns()
            self.columns, self.checksums, self.lost = loaded.values, loaded.checksums, loaded.lost
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(
                f"{self.storage.url}: the record of model {self.model_name!r} cannot be read ({error}): "
                f"run `repaudit verify`, then `repaudit repair`"
            ) from error
        if self.epoch and epoch_of(self.document) != self.epoch:
            raise LeaseError(f"model {self.model_name!r} was taken over by another writer; this writer stops")
        if secure:
            self.uncertain = True
            self.storage.secure(f"{self.key}/{DOCUMENT}")
        self.uncertain = False

    def _reset(self, fresh: dict[str, Any]) -> None:
        """Commit an empty record with this writer's layout, then delete what the earlier one left."""
        fresh["attributes"][ATTRS]["epoch"] = self._next_epoch()
        self._put(fresh)
        self.reload()
        self.epoch = epoch_of(self.document)
        delete_arrays(self.storage, self.key)
        names = np.array([layer.name for layer in self.layers], dtype=object)
        self.storage.put_many({f"{self.key}/{LAYER}/{chunk_key(0)}": encode_column(names, len(names), "")})
        self._follow_up()

    def settle(self) -> bool:
        """After a commit that may have failed, look at what the store holds, and make it safe; return if it was so."""
        if unsure := self.uncertain:
            self.reload(secure=True)
        return unsure

    def append(self, row: StepRow, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write one step of every layer and commit it; `arrays` hold the values as stored, by layer."""
        if self.settle() and self.columns[STEP][-1:] == [row[STEP]]:
            return  # the commit that seemed to fail had reached the store
        if self.columns[STEP] and row[STEP] <= self.columns[STEP][-1]:
            raise StepOrderError(f"step {row[STEP]} is not greater than the committed step {self.columns[STEP][-1]}")
        index = self.committed
        columns = {name: [*self._tail(name, index), stored_coordinate(name, row)] for name in STEP_COLUMNS}
        objects: dict[str, Parts] = {}
        crcs = []
        for layer in self.layers:
            parts, crc = encode_step(arrays[layer.name], layer.grid, layer.codec)
            objects[f"{self.key}/{layer.step_key(index)}"] = parts
            crcs.append(crc)
        sums = [*self.checksums[index - index % COORDINATE_CHUNK : index], crcs]
        objects |= column_objects(self.key, index // COORDINATE_CHUNK, columns, sums)
        self.storage.put_many(objects)
        gaps = [gap for gap in self.gaps if gap[STEP] != row[STEP]]  # a stored step is no longer missing
        self._commit(self._grown(index + 1, gaps=gaps, steps=[*self.columns[STEP], int(row[STEP])]))
        for name, values in columns.items():
            self.columns[name].append(values[-1])
        self.checksums.append(crcs)

    def _tail(self, name: str, index: int) -> list[Any]:
        return self.columns[name][index - index % COORDINATE_CHUNK : index]

    def _grown(self, count: int, **changes: Any) -> dict[str, Any]:
        """Return the model's document with `count` steps."""
        attributes = self.document["attributes"]
        consolidated = self.document["consolidated_metadata"]
        if self.lost:
            changes[LOST] = sorted(self.lost | set(attributes[ATTRS].get(LOST, [])))
        arrays = {
            name: {**array, "shape": [count, *array["shape"][1:]]} if array["dimension_names"][0] == STEP else array
            for name, array in consolidated["metadata"].items()
        }
        return {
            **self.document,
            "attributes": {**attributes, ATTRS: {**attributes[ATTRS], "committed": count, **changes}},
            "consolidated_metadata": {**consolidated, "metadata": arrays},
        }

    def _commit(self, document: dict[str, Any]) -> None:
        self._put(document)
        self.document = document

    def _put(self, document: dict[str, Any]) -> None:
        # Until the put returns, it is unknown whether it reached the store.
        self.uncertain = True
        self.storage.swap(f"{self.key}/{DOCUMENT}", [model_bytes(document)])
        self.uncertain = False

    def record_gap(self, step: int, reason: str) -> None:
        """Commit the note that a step is not in the record, and why."""
        self.settle()
        if any(gap[STEP] == step for gap in self.gaps):
            return  # an earlier attempt had reached the store
        gap = {STEP: step, "reason": reason[:500], "time": now()}
        self._commit(self._grown(self.committed, gaps=[*self.gaps, gap]))

    def truncate(self, after_step: int) -> list[int]:
        """Commit a record that ends at `after_step`, then remove the chunks beyond it; return the steps dropped."""
        self.settle()
        old = self.committed
        keep = int(np.searchsorted(np.array(self.columns[STEP], dtype=np.int64), after_step, side="right"))
        dropped = self.columns[STEP][keep:]
        gaps = [gap for gap in self.gaps if gap[STEP] <= after_step]
        if not dropped and gaps == self.gaps:
            return []
        number = truncations_of(self.document) + 1
        self._commit(self._grown(keep, gaps=gaps, steps=self.columns[STEP][:keep], truncations=number))
        self.columns = {name: values[:keep] for name, values in self.columns.items()}
        self.checksums = self.checksums[:keep]
        self._follow_up(only_larger=True)
        for index in range(keep, old):
            for layer in self.layers:
                self.storage.delete(f"{self.key}/{layer.step_key(index)}")
        for chunk in range(-(-keep // COORDINATE_CHUNK), -(-old // COORDINATE_CHUNK)):
            for name in STEP_COLUMNS:
                self.storage.delete(f"{self.key}/{name}/{chunk_key(chunk)}")
            self.storage.delete(f"{self.key}/{CHECKSUM}/{chunk_key(chunk, 0)}")
        return dropped

    def _follow_up(self, *, only_larger: bool = False) -> None:
        """Bring each array's own document up to date, for readers that know no consolidated metadata."""
        documents = {}
        for key, wanted in self.document["consolidated_metadata"]["metadata"].items():
            path = f"{self.key}/{key}/{DOCUMENT}"
            if only_larger and self._lags(path, wanted):
                continue
            documents[path] = [dump(wanted)]
        self.storage.put_many(documents)

    def _lags(self, path: str, wanted: Mapping[str, Any]) -> bool:
        """Return whether an array's own document is an earlier state of the one wanted, which readers may meet."""
        try:
            present = read_document(self.storage, path)
        except CorruptStoreError:
            return False
        if present is None or unbelievable(present) is not None:
            return False
        return {**present, "shape": wanted["shape"]} == wanted and present["shape"][0] <= wanted["shape"][0]

    def finalise(self) -> None:
        """Bring the arrays' own documents up to date and release the lease."""
        try:
            self.lease.check()  # first: where the store was deleted, there is nothing to settle
            self.settle()
            self.lease.check()
            self._follow_up()
        finally:
            self.lease.release()
