"""What asked for a step that is already committed, where more is known later."""

from __future__ import annotations

import numpy as np

from repaudit.names import STEP, TRIGGER
from repaudit.store.format.documents import chunk_key
from repaudit.store.format.encoding import COORDINATE_CHUNK, encode_column
from repaudit.store.format.layout import STEP_COLUMNS
from repaudit.store.write.commit import ModelRecord


def amend_trigger(record: ModelRecord, step: int, trigger: str) -> None:
    """Replace the trigger of the last committed step, by one put of its chunk; nothing happens for another step.

    No commit is needed: readers see the old text or the new one.
    """
    record.settle()
    if record.columns[STEP][-1:] != [step]:  # it could not be stored, and is a gap
        return
    index = record.committed - 1
    triggers = [*record.columns[TRIGGER][index - index % COORDINATE_CHUNK : index], trigger]
    column = STEP_COLUMNS[TRIGGER]
    data = encode_column(np.array(triggers, dtype=column.numpy_dtype), COORDINATE_CHUNK, column.fill)
    record.storage.put(f"{record.key}/{TRIGGER}/{chunk_key(index // COORDINATE_CHUNK)}", data)
    record.columns[TRIGGER][index] = trigger
