"""What a store looks like: array and group documents, dimension names, and what a probe set must provide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from repaudit.names import (
    ATTRS,
    CHECKSUM,
    EPOCH,
    LABEL,
    LAYER,
    LOSS,
    PROBE,
    SAMPLE,
    SHA256,
    STEP,
    TEXT,
    TRIGGER,
    WALL_TIME,
)
from repaudit.store.format.documents import column_document, group_document
from repaudit.store.format.encoding import COORDINATE_CHUNK
from repaudit.store.format.layer_layout import LayerLayout

COLUMNS: Final[Mapping[str, str]] = {
    SAMPLE: "sample",
    LABEL: "label",
    TEXT: "text",
    SHA256: "SHA-256 of the raw sample",
}
"""What a store knows of each sample, and its long name."""

LEASE: Final = ".lease"
REPAIR: Final = f"{PROBE}/.repair"
"""Where a repair prepares what it will put: in the consolidated probe group, which no reader lists."""

INPUTS_FINGERPRINT: Final = "inputs_fingerprint"
"""The attribute of a model, and of a group of inputs, that says which encoding of the samples the model read."""

ABSENT: Final = "absent_inputs"
"""The attribute, in memory, of opened inputs that names those of which chunks are missing."""

RECORDED_DTYPE: Final = "recorded_dtype"
"""The attribute, in memory, of a damaged input of whole numbers, which is read as NaN: the dtype that was recorded."""

UNREADABLE: Final = "unreadable_models"
"""The attribute, in memory, of an opened store that names the models left out because of damage."""

LOST: Final = "lost"
"""The attribute that names columns of the samples or steps, or says of an input, that values were lost to damage."""

ENCODING: Final = ("tokenizer", "tokenizer_sha256", "max_length", "truncated")
"""Attributes of a model that say how its texts became inputs: its tokenizer, and how many it cut at what length."""

OFFSETS: Final = "offset_mapping"
"""Beside the inputs, where a tokenizer tells them: the characters of its text that each token stands for."""

START_END: Final = "start_end"
"""The dim of the first character of a token and the one behind its last."""


class ProbeSetLike(Protocol):
    """What the store needs of a probe set.

    It may also have ``text_hashes``, the SHA-256 of each sample's text, without which the inputs themselves tell one
    sample from another; and ``encoding``, facts about how the texts became inputs, which each model's attributes keep.
    """

    @property
    def fingerprint(self) -> str:
        """What tells one set of inputs from another."""

    @property
    def ids(self) -> Sequence[str]:
        """One id per sample."""

    @property
    def labels(self) -> Sequence[str] | None:
        """One label per sample, or None."""

    @property
    def texts(self) -> Sequence[str] | None:
        """One text per sample, or None."""

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the inputs by name, samples along the first dim; the tokens' characters, if known, among them."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Column:
    """A coordinate of the steps: its dtype on disk, the fill of rows not written, and how xarray shows it."""

    dtype: str
    fill: Any
    attributes: Mapping[str, str]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype in memory, little-endian."""
        return np.dtype(object) if self.dtype == "string" else np.dtype(self.dtype).newbyteorder("<")

    @property
    def numpy_fill(self) -> Any:
        """The fill in memory."""
        return float(self.fill) if self.fill == "NaN" else self.fill

    @property
    def unknown(self) -> Any:
        """What stands for a value that is lost: NaN, an empty text, or the time that readers show as NaT."""
        return int(np.iinfo(np.int64).min) if self.dtype == "int64" else self.numpy_fill


STEP_COLUMNS: Final[Mapping[str, Column]] = {
    STEP: Column("int64", -1, {"long_name": "optimizer step", "units": "1"}),
    EPOCH: Column("float64", "NaN", {"long_name": "epoch of training", "units": "1"}),
    WALL_TIME: Column(
        "int64", 0, {"long_name": "time of the audit", "units": "microseconds since 1970-01-01", "calendar": "standard"}
    ),
    TRIGGER: Column("string", "", {"long_name": "what asked for the audit"}),
    LOSS: Column("float64", "NaN", {"long_name": "training loss", "units": "1"}),
}


def coordinate_arrays(steps: int, n_layers: int) -> dict[str, dict[str, Any]]:
    """Return the documents of a model's coordinates: those of its steps, the checksums, the names of its layers."""
    arrays = {
        name: column_document((steps,), column.dtype, (COORDINATE_CHUNK,), (STEP,), column.fill, column.attributes)
        for name, column in STEP_COLUMNS.items()
    }
    crc = {"long_name": "CRC-32C of a step's values in C order, little-endian"}
    arrays[CHECKSUM] = column_document((steps, n_layers), "uint32", (COORDINATE_CHUNK, n_layers), (STEP, LAYER), 0, crc)
    arrays[LAYER] = column_document((n_layers,), "string", (n_layers,), (LAYER,), "", {"long_name": "layer"})
    return arrays


def model_arrays(layers: Sequence[LayerLayout], steps: int) -> dict[str, dict[str, Any]]:
    """Return the documents of all arrays of a model with `steps` steps, by key."""
    return coordinate_arrays(steps, len(layers)) | {layer.key: layer.document(steps) for layer in layers}


def model_document(attributes: Mapping[str, Any], layers: Sequence[LayerLayout], steps: int) -> dict[str, Any]:
    """Return the document of a model, the one that a commit writes."""
    described = " ".join([*(name for name in STEP_COLUMNS if name != STEP), CHECKSUM])
    return group_document({ATTRS: dict(attributes), "coordinates": described}, model_arrays(layers, steps))
