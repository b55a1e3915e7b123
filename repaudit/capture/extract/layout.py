"""What the dims of an activation mean, in words, and the activation in the order that pooling takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Final

import torch

from repaudit.errors import CaptureError

SAMPLE: Final = "sample"
POSITIONS: Final = ("token", "position", "height", "width")
FEATURES: Final = ("feature", "head", "channel")
_WORDS: Final = (SAMPLE, *POSITIONS, *FEATURES)
_GROUP: Final = re.compile(r"\(([^()]*)\)|(\S+)")


@dataclass(frozen=True)
class Layout:
    """The meaning of each dim: one word, or several where a dim holds the product of several.

    Parameters
    ----------
    dims
        For each dim its words, the slowest first.

    Examples
    --------
    >>> str(Layout.parse("(sample token) feature"))
    '(sample token) feature'
    """

    dims: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read a layout as einops writes dims: words in order, parentheses around those of one dim.

        Raises
        ------
        ValueError
            When a word is unknown, or there is not one ``sample`` and at least one dim of features.

        Examples
        --------
        >>> Layout.parse("sample head token feature").dims
        (('sample',), ('head',), ('token',), ('feature',))
        """
        dims = tuple(tuple((group or word).split()) for group, word in _GROUP.findall(text))
        words = [word for dim in dims for word in dim]
        unknown = [word for word in words if word not in _WORDS]
        if unknown:
            raise ValueError(f"layout: expected the words {', '.join(_WORDS)}, found {unknown[0]!r} in {text!r}")
        if words.count(SAMPLE) != 1 or not any(word in FEATURES for word in words):
            raise ValueError(
                f"layout: expected one 'sample' and a 'feature', 'head' or 'channel', as in 'sample token head "
                f"feature', found {text!r}"
            )
        mixed = [dim for dim in dims if len(dim) > 1 and len(dim) != 2 and SAMPLE in dim]
        if mixed or any(_mixed(dim) for dim in dims):
            raise ValueError(
                f"layout: expected 'sample' and one other word, or only positions, or only features in one pair of "
                f"parentheses, found {text!r}"
            )
        return cls(dims)

    @property
    def n_positions(self) -> int:
        """How many words are positions."""
        return sum(word in POSITIONS for dim in self.dims for word in dim)

    @property
    def samples_first(self) -> bool:
        """Whether the samples are the slowest part of the first dim."""
        return bool(self.dims) and self.dims[0][:1] == (SAMPLE,)

    def __str__(self) -> str:
        return " ".join(dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in self.dims)

    def arrange(self, activation: torch.Tensor, n_samples: int) -> torch.Tensor:
        """Return ``(sample, token, feature)``, or ``(sample, feature)`` where there are no positions.

        Raises
        ------
        ValueError
            When the activation has another number of dims or samples.

        Examples
        --------
        >>> Layout.parse("sample head token feature").arrange(torch.zeros(2, 4, 9, 8), 2).shape
        torch.Size([2, 9, 32])
        """
        if activation.ndim != len(self.dims):
            raise ValueError(f"expected {self}, found {tuple(activation.shape)}")
        if self.dims == ((SAMPLE,), ("token",), ("feature",)) and len(activation) == n_samples:
            return activation
        words, shape = self._split(activation, n_samples)
        order = [kind for names in ((SAMPLE,), POSITIONS, FEATURES) for kind, word in enumerate(words) if word in names]
        arranged = activation.reshape(shape).permute(order)
        n_positions, sizes = self.n_positions, arranged.shape
        features = prod(sizes[1 + n_positions :])
        return (
            arranged.reshape(n_samples, prod(sizes[1 : 1 + n_positions]), features)
            if n_positions
            else (arranged.reshape(n_samples, features))
        )

    def _split(self, activation: torch.Tensor, n_samples: int) -> tuple[list[str], list[int]]:
        """Return one word and one size per dim, the samples taken out of dims that hold others beside them."""
        words: list[str] = []
        shape: list[int] = []
        for dim, size in zip(self.dims, activation.shape, strict=True):
            if SAMPLE in dim and len(dim) == 1 and size != n_samples:
                raise ValueError(f"expected {self} of {n_samples} samples, found {tuple(activation.shape)}")
            if SAMPLE in dim and len(dim) > 1:
                if size % n_samples:
                    raise ValueError(f"expected {self} of {n_samples} samples, found {tuple(activation.shape)}")
                words += dim
                shape += [n_samples if word == SAMPLE else size // n_samples for word in dim]
            else:
                words.append(dim[0])
                shape.append(size)
        return words, shape


def _mixed(dim: tuple[str, ...]) -> bool:
    return any(word in POSITIONS for word in dim) and any(word in FEATURES for word in dim)


def unclear(layer: str, kind: str, shape: tuple[int, ...]) -> CaptureError:
    """Return the error of an activation whose dims could mean several things."""
    words = {3: "sample feature token", 4: "sample token head feature"}.get(len(shape), "sample token feature")
    return CaptureError(
        f"layer {layer!r} ({kind}): it is unclear which dims of {tuple(shape)} hold the features: say so, as in "
        f"LayerSpec(..., layout={words!r})"
    )
