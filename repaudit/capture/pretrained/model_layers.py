"""Which layers are recorded of which model, where several models share a command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from repaudit.capture.extract.layer_spec import LayerSpec, Reduction
from repaudit.capture.extract.layer_text import parse_layer_text
from repaudit.errors import LayerPathError


def layers_of_models(
    layers: Iterable[LayerSpec | str] | str, names: Sequence[str], pooling: Mapping[str, Reduction] | None = None
) -> dict[str, list[LayerSpec]]:
    """Return the layers of each model: its own ``MODEL:...`` and, unless it has one of that name, those of all.

    Parameters
    ----------
    pooling
        How each model's tokens are pooled where a layer is given as a text; the mean by default.

    Raises
    ------
    LayerPathError
        When a layer is meant for a model that is not recorded, when no layer is left for a model, or when a text does
        not parse.

    Examples
    --------
    >>> texts = ["penultimate=encoder.layer[-2]", "smol:penultimate=model.layers[-2]"]
    >>> layers = layers_of_models(texts, ["bert", "smol"])
    >>> [spec.path for spec in layers["bert"]], [spec.path for spec in layers["smol"]]
    (['encoder.layer[-2]'], ['model.layers[-2]'])
    """
    given = [layers] if isinstance(layers, str | LayerSpec) else list(layers)
    specs = [_spec_and_model(layer, names) for layer in given]
    is_text = {id(spec) for layer, (spec, _) in zip(given, specs, strict=True) if not isinstance(layer, LayerSpec)}
    chosen = {name: _layers_of(name, specs) for name in names}
    for name, reduce in (pooling or {}).items():
        chosen[name] = [replace(spec, reduce=reduce) if id(spec) in is_text else spec for spec in chosen[name]]
    for name, found in chosen.items():
        if not found:
            raise LayerPathError(f"model {name!r}: expected at least one layer, found layers for other models alone")
    return chosen


def _spec_and_model(layer: LayerSpec | str, names: Sequence[str]) -> tuple[LayerSpec, str | None]:
    if isinstance(layer, LayerSpec):
        return layer, None
    text = parse_layer_text(layer)
    if text.model is not None and text.model not in names:
        close = get_close_matches(text.model, names, 1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise LayerPathError(
            f"layer {layer!r} is meant for a model {text.model!r}, but the models are {', '.join(map(repr, names))}"
            f"{hint}{'' if hint else ': a name that holds a colon goes in quotes'}"
        )
    return LayerSpec(text.path, name=text.name), text.model


def _layers_of(name: str, specs: Sequence[tuple[LayerSpec, str | None]]) -> list[LayerSpec]:
    own = {_name(spec) for spec, model in specs if model == name}
    return [spec for spec, model in specs if model == name or (model is None and _name(spec) not in own)]


def _name(spec: LayerSpec) -> str:
    return spec.name or spec.path
