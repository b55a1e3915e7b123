"""The grammar of layer texts: a layer path, its name in the record, and the model it is meant for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from repaudit.errors import LayerPathError

_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]")
_DEPTH: Final = re.compile(r"(.*\.)?depth")


@dataclass(frozen=True)
class LayerText:
    """A layer text taken apart; without a name or a model there is None."""

    path: str
    name: str | None = None
    model: str | None = None


def parse_layer_text(text: str) -> LayerText:
    """Take a layer text ``[MODEL:][NAME=]PATH`` apart.

    A name or model that holds ``=``, ``:``, ``,`` or brackets goes in quotes, single or double.

    Raises
    ------
    LayerPathError
        When there is no path, an empty name, or more than one model.

    Examples
    --------
    >>> parse_layer_text("penultimate=encoder.layer[-2]")
    LayerText(path='encoder.layer[-2]', name='penultimate', model=None)
    >>> parse_layer_text("smol:penultimate=model.layers[-2]")
    LayerText(path='model.layers[-2]', name='penultimate', model='smol')
    >>> parse_layer_text("'my model: 2':depth:0.5")
    LayerText(path='depth:0.5', name=None, model='my model: 2')
    """
    if not isinstance(text, str):
        raise LayerPathError(f"expected a layer as a text such as 'model.layers[-1]', found {text!r}")
    head, *rest = _split(text, "=", most=1)
    if rest:
        return LayerText(rest[0].strip(), *_name_and_model(text, _split(head, ":")))
    pieces = _split(text, ":")
    if len(pieces) > 1 and _DEPTH.fullmatch(pieces[-2].strip()):
        pieces[-2:] = [f"{pieces[-2].strip()}:{pieces[-1].strip()}"]
    if len(pieces) > 2:
        raise _too_many(text)
    return LayerText(pieces[-1].strip(), model=_unquoted(text, pieces[0]) if len(pieces) == 2 else None)


def split_layer_texts(text: str) -> list[str]:
    """Split layer texts at commas, those inside quotes and brackets excepted.

    Examples
    --------
    >>> split_layer_texts("model.layers[*], 'a, b'=model.norm")
    ['model.layers[*]', "'a, b'=model.norm"]
    """
    return [piece.strip() for piece in _split(text, ",") if piece.strip()]


def _name_and_model(text: str, pieces: list[str]) -> tuple[str, str | None]:
    if len(pieces) > 2:
        raise _too_many(text)
    return _unquoted(text, pieces[-1]), _unquoted(text, pieces[0]) if len(pieces) == 2 else None


def _too_many(text: str) -> LayerPathError:
    return LayerPathError(
        f"layer {text!r}: expected [MODEL:][NAME=]PATH, found more than one colon before the path: put a name that "
        "holds one in quotes"
    )


def _unquoted(text: str, piece: str) -> str:
    piece = piece.strip()
    if len(piece) > 1 and piece[0] == piece[-1] and piece[0] in "'\"":
        piece = piece[1:-1]
    if not piece:
        raise LayerPathError(f"layer {text!r}: expected a name before the sign, found none")
    return piece


def _split(text: str, sign: str, most: int = -1) -> list[str]:
    """Split a text at a sign, where it is neither in quotes nor in brackets."""
    masked = _QUOTED.sub(lambda match: "_" * len(match[0]), text)
    pieces, start = [], 0
    for piece in masked.split(sign, most):
        pieces.append(text[start : start + len(piece)])
        start += len(piece) + 1
    return pieces
