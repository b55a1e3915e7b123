"""What a layer looks like on disk: its dims, dtypes, chunks and codec, and what may not be stored as one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from repaudit.errors import LayoutError
from repaudit.names import (
    CHECKSUM,
    FEATURE,
    KIND,
    LAYER,
    NEIGHBOR,
    NUMBER,
    OPERATOR,
    OPERATOR_OF,
    SAMPLE,
    SKETCH,
    SKETCH_OF,
    SPARSE,
    STEP,
    TOKEN,
)
from repaudit.store.format.documents import array_document, chunk_key
from repaudit.store.format.encoding import STORED_DTYPES, Codec, CodecName, StepGrid
from repaudit.store.format.keys import check_name, safe_key
from repaudit.store.format.schema import unbelievable, violations

_SPECIAL: Final[Mapping[Any, tuple[str, ...]]] = {OPERATOR: (SAMPLE, NEIGHBOR), SKETCH: (NUMBER,)}
"""The dims of layers that do not hold activations, by their kind."""

_DECODING_ATTRIBUTES: Final = frozenset(
    {"_FillValue", "missing_value", "scale_factor", "add_offset", "dtype", "_Unsigned", "_Encoding"}
    | {"_ARRAY_DIMENSIONS", "calendar", "coordinates", "bounds", "grid_mapping", "ancillary_variables"}
)
"""Attributes by which CF readers decode values or find coordinates."""


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

    @property
    def _long_name(self) -> str:
        if of := self.attributes.get(OPERATOR_OF):
            return f"diffusion operator of {of}"
        of = self.attributes.get(SKETCH_OF)
        return f"sketch of the diffusion operator of {of}" if of else f"activation of {self.name}"

    def document(self, steps: int) -> dict[str, Any]:
        """Return the array's Zarr metadata with `steps` steps."""
        codec = {"codec": self.codec.preset} | ({"keepbits": self.codec.keepbits} if self.codec.keepbits else {})
        attributes = {"long_name": self._long_name, "units": "1", **self.attributes}
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
    ``(sample, neighbor)``; those of sparse operators are compressed, so that their zeros take no room. Those of
    sketches are ``(number)``, and never rounded.
    """
    if not layers:
        raise LayoutError("layers: expected at least one layer per model, found none")
    dtypes = {check_name(name, "layer"): dtype_name(dtype) for name, (_, dtype) in layers.items()}
    extra = attributes or {}
    kinds = {name: extra.get(name, {}).get(KIND) for name in layers}
    shapes = {
        name: _checked_shape(name, shape, dtypes[name], None if kinds[name] == SKETCH else n_samples)
        for name, (shape, _) in layers.items()
    }
    activations = [shape for name, shape in shapes.items() if kinds[name] not in _SPECIAL]
    widths = {shape[-1] for shape in activations}
    lengths = {shape[1] for shape in activations if len(shape) == 3}
    laid_out: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = []
    taken: set[str] = {STEP, SAMPLE, LAYER, CHECKSUM}
    for name, shape in shapes.items():
        if (dims := _SPECIAL.get(kinds[name])) is not None:
            laid_out.append((name, _checked_square(name, shape) if len(dims) == 2 else shape, dims))
            taken |= {*dims}
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
                Codec.choose(
                    _preset(codec, extra.get(name, {})),
                    dtypes[name],
                    None if kinds[name] == SKETCH or (kinds[name] == OPERATOR and codec == "lossy") else keepbits,
                ),
                dict(extra.get(name, {})),
            )
        )
        for name, shape, dimensions in laid_out
    ]


def _preset(codec: CodecName, attributes: Mapping[str, Any]) -> CodecName:
    """Return the codec of a layer: operators that are mostly zeros are compressed unless another one is asked for.

    Sketches always are: most of their numbers have 32 bits, and rounded ones would be of no use. Operators are not
    rounded either: their rows would no longer sum to 1.
    """
    if attributes.get(KIND) == SKETCH or (attributes.get(KIND) == OPERATOR and codec == "lossy"):
        return "compact"
    return "compact" if codec == "auto" and attributes.get(KIND) == OPERATOR and attributes.get(SPARSE) else codec


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


def _checked_shape(name: str, shape: Sequence[int], dtype: str, n_samples: int | None) -> tuple[int, ...]:
    """Return the shape of one step; that of sketches, which have no samples, is one number."""
    shape = tuple(int(size) for size in shape)
    if dtype not in STORED_DTYPES:
        raise LayoutError(f"layer {name!r} has dtype {dtype!r}: expected one of {', '.join(STORED_DTYPES)}")
    if n_samples is None and (len(shape) != 1 or shape[0] < 1):
        raise LayoutError(f"layer {name!r} has shape {shape}: sketches are (number,), not 0")
    if n_samples is None:
        return shape
    if len(shape) not in {2, 3} or min(shape) < 1:
        raise LayoutError(f"layer {name!r} has shape {shape}: expected (sample[, token], feature), none of them 0")
    if shape[0] != n_samples:
        raise LayoutError(f"layer {name!r} has {shape[0]} samples: the probe set has {n_samples}")
    return shape


def _checked_square(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if shape != (shape[0], shape[0]):
        raise LayoutError(f"layer {name!r} has shape {shape}: operators are (sample, neighbor), of equal sizes")
    return shape
