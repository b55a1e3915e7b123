"""What to record: a place in the network, what is taken there, and how its tokens are pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from repaudit.capture.extract.path_grammar import parse_path

ExtractionPoint = Literal["output", "input", "hidden_states"]


Reduction = Literal["mean", "last_token", "cls", "all"]


@dataclass(frozen=True)
class LayerSpec:
    """A place in the network, what is taken there, and how its tokens are pooled.

    Parameters
    ----------
    path
        Dotted path from the network: names, ``[i]``, ``[-1]``, slices ``[::4]`` and globs (``layers[*]``, ``layer_*``).
    extraction_point
        ``"output"`` of the layer, its ``"input"``, or the entry of the model's own ``"hidden_states"`` that belongs to
        it: entry i + 1 for block i, entry 0 for the embedding layer.
    reduce
        ``"mean"`` over unmasked tokens, the ``"last_token"`` that is not masked, ``"cls"`` (the first one that is not
        masked), or ``"all"`` tokens.
    name
        The layer's name in the record. With a path that matches several layers it must hold ``{path}``.

    Raises
    ------
    LayerPathError
        When the path does not parse.

    Examples
    --------
    >>> LayerSpec("layers[-1]", reduce="cls").name_for("layers.3")
    'layers.3:cls'
    """

    path: str
    extraction_point: ExtractionPoint = "output"
    reduce: Reduction = "mean"
    name: str | None = None

    def __post_init__(self) -> None:
        for field, value, allowed in (
            ("extraction_point", self.extraction_point, get_args(ExtractionPoint)),
            ("reduce", self.reduce, get_args(Reduction)),
        ):
            if value not in allowed:
                raise ValueError(f"{field}: expected one of {', '.join(allowed)}, found {value!r}")
        if self.name is not None and not self.name:
            raise ValueError(f"name: expected a layer's name or None, found {self.name!r}")
        parse_path(self.path)

    def name_for(self, resolved: str) -> str:
        """The record's name of the layer at a resolved path."""
        if self.name is not None:
            return self.name.replace("{path}", resolved)
        point = "" if self.extraction_point == "output" else f"@{self.extraction_point}"
        return resolved + point + ("" if self.reduce == "mean" else f":{self.reduce}")


def as_spec(spec: LayerSpec | str) -> LayerSpec:
    """Take a plain string for the spec of that path."""
    return LayerSpec(spec) if isinstance(spec, str) else spec
