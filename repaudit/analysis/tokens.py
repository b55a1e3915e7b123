"""The tokens of all samples as one model read them, and how those of two models lie over each other in the texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import block_diag, csr_array

from repaudit.errors import AnalysisError
from repaudit.store.format.layout import OFFSETS

IDS, MASK = "input_ids", "attention_mask"

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """The unmasked tokens of all samples, sample by sample in the order of the text.

    Attributes
    ----------
    sample, column : (token)
        Which sample each is of, and where it lies along the stored dim ``token``.
    ids : (token), or None where a model read something else than token ids
    spans : (token, 2), or None
        First character of the text, and the one behind the last; an empty one for special tokens.
    tokenizer : str
        Hash of the tokenizer; empty where it is not known.
    """

    sample: Integers
    column: Integers
    ids: Integers | None = None
    spans: Integers | None = None
    tokenizer: str = ""

    @classmethod
    def of(cls, encoded: xr.Dataset, stored: tuple[int, int], tokenizer: str = "") -> Tokens:
        """Return the tokens of encoded inputs, for activations that were stored with so many (samples, tokens).

        Raises
        ------
        AnalysisError
            The activations have another number of tokens than the inputs.
        """
        inputs = {name: encoded[name].values for name in (IDS, MASK) if name in encoded and encoded[name].ndim == 2}
        for name, values in inputs.items():
            if values.shape != stored:
                raise AnalysisError(
                    f"it keeps {stored[1]} tokens of each sample, its {name} have {values.shape[1]}: which of them are "
                    "padding is not known; leave it out"
                )
        sample, column = np.nonzero(inputs.get(MASK, np.ones(stored)))
        ids = inputs[IDS][sample, column] if IDS in inputs else None
        spans = encoded[OFFSETS].values[sample, column].astype(np.int64) if OFFSETS in encoded else None
        return cls(sample, column, ids, spans, tokenizer)

    def __len__(self) -> int:
        return len(self.sample)

    @cached_property
    def position(self) -> Integers:
        """How many tokens of its sample come before each."""
        return np.arange(len(self)) - np.searchsorted(self.sample, self.sample)

    def same_as(self, other: Tokens) -> bool:
        """Whether another model read the same tokens, wherever its padding is."""
        unlike = self.tokenizer and other.tokenizer and self.tokenizer != other.tokenizer
        if unlike or not np.array_equal(self.sample, other.sample):
            return False
        if self.ids is None or other.ids is None:
            return self.ids is None and other.ids is None
        return np.array_equal(self.ids, other.ids)


def shared_characters(one: Tokens, other: Tokens) -> csr_array:
    """Return how many characters each token shares with each of another model, (token, other token).

    Examples
    --------
    >>> def tokens(*spans):
    ...     return Tokens(np.zeros(len(spans), int), np.arange(len(spans)), spans=np.array(spans))
    >>> shared_characters(tokens((0, 4), (4, 6)), tokens((0, 1), (1, 6))).toarray().tolist()
    [[1, 3], [0, 2]]
    """
    if one.spans is None or other.spans is None:
        raise ValueError("expected tokens with spans")
    count = 1 + max(int(tokens.sample.max(initial=-1)) for tokens in (one, other))
    ends = [np.searchsorted(tokens.sample, np.arange(count + 1)) for tokens in (one, other)]
    pairs = [[spans[i:j] for i, j in pairwise(end)] for spans, end in zip((one.spans, other.spans), ends, strict=True)]
    return csr_array(block_diag([csr_array(_overlaps(a, b)) for a, b in zip(*pairs, strict=True)], format="csr"))


def _overlaps(one: Integers, other: Integers) -> Integers:
    """Return the lengths of the overlaps of every two spans."""
    last = np.minimum(one[:, None, 1], other[None, :, 1])
    lengths: Integers = np.maximum(last - np.maximum(one[:, None, 0], other[None, :, 0]), 0)
    return lengths
