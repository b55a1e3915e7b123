"""What a store looks like: array and group documents, dimension names, and what a probe set must provide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from repaudit.errors import LayoutError
from repaudit.names import (
    ATTRS,
    CHECKSUM,
    EPOCH,
    FEATURE,
    KIND,
    LABEL,
    LAYER,
    LOSS,
    MODELS,
    NEIGHBOR,
    OPERATOR,
    OPERATOR_OF,
    PROBE,
    SAMPLE,
    SHA256,
    SPARSE,
    STEP,
    TEXT,
    TOKEN,
    TRIGGER,
    WALL_TIME,
    encode_name,
)
from repaudit.store.format.documents import array_document, chunk_key, column_document, group_document
from repaudit.store.format.encoding import COORDINATE_CHUNK, STORED_DTYPES, Codec, CodecName, StepGrid
from repaudit.store.format.schema import unbelievable, violations

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

LOST: Final = "lost"
"""The attribute that names columns of the samples or steps, or says of an input, that values were lost to damage."""

ENCODING: Final = ("tokenizer", "tokenizer_sha256", "max_length", "truncated")
"""Attributes of a model that say how its texts became inputs: its tokenizer, and how many it cut at what length."""

OFFSETS: Final = "offset_mapping"
"""Beside the inputs, where a tokenizer tells them: the characters of its text that each token stands for."""

START_END: Final = "start_end"
"""The dim of the first character of a token and the one behind its last."""

_LONGEST_KEY: Final = 180

_DECODING_ATTRIBUTES: Final = frozenset(
    {"_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "_Unsigned", "_Encoding"}
    | {"_ARRAY_DIMENSIONS", "calendar", "coordinates", "bounds", "grid_mapping", "ancillary_variables"}
)
"""Attributes by which CF readers decode values or find coordinates."""


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


def safe_key(name: str) -> str:
    """Return the key of a model or layer; one too long for a file system ends in a hash instead."""
    key = encode_name(name)
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:100].rstrip('%. ')}~{sha256(name.encode()).hexdigest()[:32]}"


def model_key(model_name: str) -> str:
    """Return the group of a model.

    Examples
    --------
    >>> model_key("seed0")
    'models/seed0'
    """
    return f"{MODELS}/{safe_key(check_name(model_name, 'model'))}"


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


@dataclass(frozen=True)
class LayerLayout:
    """One layer of a model: its key on disk, the shape of one step, its dtypes and codec."""

    name: str
    key: str
    shape: tuple[int, ...]
    source_dtype: str
    dimensions: tuple[str, ...]
    codec: Codec
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype on disk, little-endian."""
        return np.dtype(STORED_DTYPES[self.source_dtype]).newbyteorder("<")

    @property
    def grid(self) -> StepGrid:
        """The chunks of one step."""
        return StepGrid.fit(self.shape, self.dtype.itemsize)

    def step_key(self, index: int) -> str:
        """Return the key, below the model, of the object that holds the step at `index`."""
        return f"{self.key}/{chunk_key(index, *(0 for _ in self.shape))}"

    def document(self, steps: int) -> dict[str, Any]:
        """Return the array's Zarr metadata with `steps` steps."""
        codec = {"codec": self.codec.preset} | ({"keepbits": self.codec.keepbits} if self.codec.keepbits else {})
        of = self.attributes.get(OPERATOR_OF)
        long_name = f"diffusion operator of {of}" if of else f"activation of {self.name}"
        attributes = {"long_name": long_name, "units": "1", **self.attributes}
        return array_document(
            (steps, *self.shape),
            self.dtype.name,
            self.grid.object_shape,
            (STEP, *self.dimensions),
            fill="NaN",
            codecs=self.grid.metadata(self.codec, self.dtype.itemsize),
            attributes={**attributes, LAYER: self.name, "source_dtype": self.source_dtype, **codec},
        )


def lay_out_layers(
    layers: Mapping[str, tuple[Sequence[int], str]],
    n_samples: int,
    *,
    codec: CodecName = "auto",
    keepbits: int | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[LayerLayout]:
    """Settle keys, dimension names and codecs of a model's layers.

    `feature` (and `token`) are the dimensions where all layers share one width (one length), else each layer has
    ``feature_<width>`` (``token_<length>``). Layers whose attributes say that they hold operators are
    ``(sample, neighbor)``; those of sparse operators are compressed, so that their zeros take no room.
    """
    if not layers:
        raise LayoutError("layers: expected at least one layer per model, found none")
    dtypes = {check_name(name, "layer"): dtype_name(dtype) for name, (_, dtype) in layers.items()}
    shapes = {name: _checked_shape(name, shape, dtypes[name], n_samples) for name, (shape, _) in layers.items()}
    extra = attributes or {}
    operators = {name for name in shapes if extra.get(name, {}).get(KIND) == OPERATOR}
    activations = [shape for name, shape in shapes.items() if name not in operators]
    widths = {shape[-1] for shape in activations}
    lengths = {shape[1] for shape in activations if len(shape) == 3}
    laid_out: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = []
    taken: set[str] = {STEP, SAMPLE, LAYER, CHECKSUM} | ({NEIGHBOR} if operators else set())
    for name, shape in shapes.items():
        if name in operators:
            laid_out.append((name, _checked_square(name, shape), (SAMPLE, NEIGHBOR)))
            continue
        feature = FEATURE if len(widths) == 1 else f"{FEATURE}_{shape[-1]}"
        token = [TOKEN if len(lengths) == 1 else f"{TOKEN}_{shape[1]}"] if len(shape) == 3 else []
        taken |= {feature, *token}
        laid_out.append((name, shape, (SAMPLE, *token, feature)))
    return [
        _checked_document(
            LayerLayout(
                name,
                _layer_key(name, taken),
                shape,
                dtypes[name],
                dimensions,
                Codec.choose(_preset(codec, extra.get(name, {})), dtypes[name], keepbits),
                dict(extra.get(name, {})),
            )
        )
        for name, shape, dimensions in laid_out
    ]


def _preset(codec: CodecName, attributes: Mapping[str, Any]) -> CodecName:
    """Return the codec of a layer: operators that are mostly zeros are compressed unless another one is asked for."""
    return "compact" if codec == "auto" and attributes.get(KIND) == OPERATOR and attributes.get(SPARSE) else codec


def check_name(name: Any, what: str) -> str:
    """Return the name of a model or layer if it can be one: text, not empty, without lone surrogates."""
    if not isinstance(name, str) or not name or name != name.encode(errors="ignore").decode():
        raise LayoutError(f"name of a {what}: expected a text of one or more characters, found {name!r}")
    return name


def dtype_name(dtype: Any) -> str:
    """Return the name of a NumPy or torch dtype, or of its name.

    Examples
    --------
    >>> dtype_name("torch.bfloat16"), dtype_name(np.float32)
    ('bfloat16', 'float32')
    """
    text = str(dtype).removeprefix("torch.")
    try:
        return text if text in STORED_DTYPES else str(np.dtype(dtype).name)
    except TypeError:
        return text


def _checked_document(layer: LayerLayout) -> LayerLayout:
    """Refuse what a reader would refuse, or read as instructions to decode the values."""
    reserved = sorted(layer.attributes.keys() & _DECODING_ATTRIBUTES)
    if reserved or " since " in str(layer.attributes.get("units", "")):
        attributes = ", ".join(reserved) or f"units={layer.attributes['units']!r}"
        raise LayoutError(f"layer {layer.name!r}: readers would decode its values by {attributes}, rename it")
    document = layer.document(0)
    try:
        json.dumps(document, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LayoutError(f"layer {layer.name!r}: expected attributes that JSON can hold ({error})") from error
    wrong = unbelievable(document) or "; ".join(violations("layer", document))
    if wrong:
        raise LayoutError(f"layer {layer.name!r} cannot be stored: {wrong}")
    return layer


def _layer_key(name: str, taken: set[str]) -> str:
    """Keep a layer that is called like a dimension from being read as that dimension's coordinate."""
    key = safe_key(name)
    return "".join(f"%{byte:02X}" for byte in key.encode()) if key in taken else key


def _checked_shape(name: str, shape: Sequence[int], dtype: str, n_samples: int) -> tuple[int, ...]:
    shape = tuple(int(size) for size in shape)
    if dtype not in STORED_DTYPES:
        raise LayoutError(f"layer {name!r} has dtype {dtype!r}: expected one of {', '.join(STORED_DTYPES)}")
    if len(shape) not in {2, 3} or min(shape) < 1:
        raise LayoutError(f"layer {name!r} has shape {shape}: expected (sample[, token], feature), none of them 0")
    if shape[0] != n_samples:
        raise LayoutError(f"layer {name!r} has {shape[0]} samples: the probe set has {n_samples}")
    return shape


def _checked_square(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if shape != (shape[0], shape[0]):
        raise LayoutError(f"layer {name!r} has shape {shape}: operators are (sample, neighbor), of equal sizes")
    return shape


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
