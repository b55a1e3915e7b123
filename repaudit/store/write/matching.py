"""Whether a writer fits the record that it is to continue: the same inputs, layers, dtypes and codecs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repaudit.errors import FingerprintError, LayoutError
from repaudit.names import ATTRS, LAYER
from repaudit.store.format.layer_layout import LayerLayout
from repaudit.store.format.layout import INPUTS_FINGERPRINT


def check_inputs(where: str, document: Mapping[str, Any], fingerprint: str | None) -> None:
    """Refuse to continue a model with other inputs than it was recorded with."""
    recorded = document["attributes"][ATTRS].get(INPUTS_FINGERPRINT)
    if recorded != fingerprint:
        raise FingerprintError(
            f"{where} was recorded with inputs of the fingerprint "
            f"{recorded}, these are {fingerprint}: encode the samples as before (tokenizer, max_length), or use "
            "another model name"
        )


def matched_layers(
    model: str, url: str, document: Mapping[str, Any], layers: Sequence[LayerLayout], committed: int
) -> list[LayerLayout]:
    """Return a writer's layers in the order of the record; refuse layers that differ from it."""
    arrays = document["consolidated_metadata"]["metadata"]
    stored = {array["attributes"][LAYER]: array for array in arrays.values() if LAYER in array["attributes"]}
    wanted = {layer.name: layer.document(committed) for layer in layers}
    if set(stored) != set(wanted):
        raise LayoutError(
            f"{model} in {url} has the layers {sorted(stored)}, this writer has "
            f"{sorted(wanted)}: a model keeps its layers; use another model name, or if_exists='replace'"
        )
    for name, array in stored.items():
        _check_layer(f"layer {name!r} of {model}", url, array, wanted[name])
    order = list(stored)
    return sorted(layers, key=lambda layer: order.index(layer.name))


def _check_layer(where: str, url: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for part in ("shape", "data_type", "codecs"):
        if stored[part] != wanted[part]:
            raise LayoutError(f"{where} has {part} {stored[part]} in {url}, this writer has {wanted[part]}")
    for part in ("source_dtype", "codec", "keepbits"):
        recorded, here = stored["attributes"].get(part), wanted["attributes"].get(part)
        if recorded != here:
            raise LayoutError(
                f"{where} has {part} {recorded!r} in {url}, this writer has {here!r}: a layer keeps it; pass "
                "the same, or use another model name"
            )
