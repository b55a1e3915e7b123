"""The probe set: fixed inputs that are forwarded at every audit."""

from __future__ import annotations

import hashlib
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from repaudit.capture.probe_set.sample_names import as_texts, as_unicode
from repaudit.capture.probe_set.tokenizers import tokenizer_facts, truncated
from repaudit.errors import ProbeSetError
from repaudit.store.format.layout import OFFSETS
from repaudit.store.format.sample_set import text_hash

ATTENTION_MASK: Final = "attention_mask"

_PADDING: Final[dict[str, Any]] = {ATTENTION_MASK: 0, "token_type_ids": 0, OFFSETS: (0, 0)}


class ProbeSet:
    """Fixed inputs along dim ``sample``, with ids, labels and a fingerprint.

    Build one with :meth:`from_texts` or :meth:`from_tensors`. The inputs are copied, so later changes of the caller's
    tensors have no effect. Two probe sets with the same inputs have the same fingerprint, whatever their ids,
    labels, and the order of their inputs' names. Two of the same texts and ids are the same samples, whatever tokenizer
    read them: models recorded with them share a store.

    Parameters
    ----------
    inputs
        Names of the model's ``forward`` to tensors, samples along the first dim.
    ids, labels, texts
        One per sample; ids default to the position. Numbers, also those of NumPy and torch, and bytes in UTF-8 are
        taken for the texts they stand for.
    store_texts
        Whether a store keeps the texts; else it keeps their SHA-256, by which it knows the samples.

    Attributes
    ----------
    ids, labels, texts
        As given, as texts; None where labels or texts were not given or are not to be stored.
    text_hashes
        SHA-256 of each text; None without texts.
    encoding
        How :meth:`from_texts` made inputs of the texts: the tokenizer's name and hash, the length, and the number of
        texts cut.
    offsets
        ``(sample, token, 2)``: from which to which character of its text each token goes, where a fast tokenizer told
        :meth:`from_texts`; (0, 0) for padding and special tokens. A store keeps them; no model is given them.
    fingerprint
        SHA-256 of the inputs, in hexadecimal.

    Raises
    ------
    ProbeSetError
        When there is no sample, when lengths differ, when ids repeat, when a label is missing (None, NaN), when an
        input holds NaN, or when a sample has no unmasked token.

    See Also
    --------
    repaudit.Recorder : Forwards a probe set at every audit.

    Examples
    --------
    >>> probe_set = ProbeSet.from_tensors({"x": torch.eye(3)}, labels=["a", "b", "a"])
    >>> len(probe_set), probe_set.ids, probe_set.labels
    (3, ['0', '1', '2'], ['a', 'b', 'a'])
    """

    def __init__(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        ids: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        store_texts: bool = True,
    ) -> None:
        if not isinstance(inputs, Mapping):
            raise ProbeSetError(
                "inputs: expected a mapping of the names in the model's forward to tensors, such as "
                f"{{'input_ids': ids}}, found {type(inputs).__name__}"
            )
        for what, values in (("ids", ids), ("labels", labels), ("texts", texts)):
            if isinstance(values, str):
                raise ProbeSetError(f"{what}: expected a sequence, one per sample, found the string {values!r}")
        self._inputs = {name: _checked_input(name, value) for name, value in inputs.items()}
        n = _n_samples(self._inputs)
        _check_mask(self._inputs.get(ATTENTION_MASK))
        self.ids = as_texts(range(n) if ids is None else ids, "ids")
        self.labels = None if labels is None else as_texts(labels, "labels")
        whole = None if texts is None else [as_unicode(text, f"texts: sample {i}") for i, text in enumerate(texts)]
        self.text_hashes = None if whole is None else [text_hash(text) for text in whole]
        self.texts = whole if store_texts else None
        self.encoding: dict[str, Any] = {}
        self.offsets: torch.Tensor | None = None
        for what, values in (("ids", self.ids), ("labels", self.labels), ("texts", whole)):
            if values is not None and len(values) != n:
                raise ProbeSetError(f"{what}: expected one per sample, {n} in all, found {len(values)}")
        if len(set(self.ids)) != n:
            repeated = next(i for k, i in enumerate(self.ids) if i in self.ids[:k])
            raise ProbeSetError(f"ids: expected unique ones, {repeated!r} occurs more than once")
        self.fingerprint = _fingerprint(self._inputs)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        tokenizer: Callable[..., Any],
        max_length: int = 64,
        ids: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        *,
        store_texts: bool = True,
    ) -> ProbeSet:
        """Tokenize texts, cut them to ``max_length`` tokens and pad them to the longest, on the tokenizer's side.

        Parameters
        ----------
        texts
            One string per sample.
        tokenizer
            A Hugging Face tokenizer, which is not changed: without a padding token, its end token (or 0) pads, masked.
        max_length
            Tokens kept of each text.
        ids, labels
            One per sample; ids default to the position.
        store_texts
            Whether a store keeps the texts; else it keeps their SHA-256.

        Raises
        ------
        ProbeSetError
            When a text has no token, or something other than strings was given.

        Examples
        --------
        >>> def tokenizer(texts, **options):
        ...     return {"input_ids": [[len(word) for word in text.split()] for text in texts]}
        >>> probe_set = ProbeSet.from_texts(["one", "two words"], tokenizer)
        >>> probe_set.inputs["input_ids"].tolist(), probe_set.inputs["attention_mask"].tolist()
        ([[3, 0], [3, 5]], [[1, 0], [1, 1]])
        """
        several = isinstance(texts, Iterable) and not isinstance(texts, str | Mapping | UserDict)
        if not several or not all(isinstance(text, str) for text in texts):
            found = repr(texts[:40]) if isinstance(texts, str) else type(texts).__name__
            raise ProbeSetError(f"texts: expected a sequence of strings, one per sample, found {found}")
        if not callable(tokenizer):
            raise ProbeSetError(
                "tokenizer: expected a tokenizer, such as transformers.AutoTokenizer.from_pretrained(path), found "
                f"{tokenizer!r}"
            )
        texts = [as_unicode(text, f"texts: sample {index}") for index, text in enumerate(texts)]
        if not texts:
            raise ProbeSetError("texts: expected at least one sample, found no texts")
        if max_length < 1:
            raise ProbeSetError(f"max_length: expected at least 1 token, found {max_length}")
        inputs = _tokenized(texts, tokenizer, max_length)
        offsets = inputs.pop(OFFSETS, None)
        made = cls(inputs, ids=ids, labels=labels, texts=texts, store_texts=store_texts)
        made.offsets = None if offsets is None else offsets.int()
        made.encoding = {
            **tokenizer_facts(tokenizer),
            "max_length": max_length,
            "truncated": truncated(texts, tokenizer, max_length),
        }
        return made

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        ids: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
    ) -> ProbeSet:
        """Make a probe set of tensors (or arrays) by input name, samples along the first dim.

        The names are those of the model's ``forward``. ``attention_mask (sample, token)``, if given, also determines
        which tokens count when activations are pooled.

        Raises
        ------
        ProbeSetError
            When the inputs do not form a probe set.

        Examples
        --------
        >>> ProbeSet.from_tensors({"x": torch.zeros(2, 3)})
        ProbeSet(2 samples: x (2, 3); fingerprint dfb64f255951)
        """
        return cls(tensors, ids=ids, labels=labels)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self._inputs.items())
        cut = self.encoding.get("truncated")
        told = f"; {cut} text{'s' * (cut > 1)} cut to {self.encoding['max_length']} tokens" if cut else ""
        return f"ProbeSet({len(self)} samples: {inputs}{told}; fingerprint {self.fingerprint[:12]})"

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs by name, on the CPU."""
        return dict(self._inputs)

    @property
    def padding_side(self) -> str | None:
        """``"left"``, ``"right"``, or None where nothing is masked at an end."""
        mask = self._inputs.get(ATTENTION_MASK)
        if mask is None or bool(mask.all()):
            return None
        if not bool(mask[:, 0].all()):
            return "left"
        return "right" if not bool(mask[:, -1].all()) else None

    @property
    def most_left_padded(self) -> int:
        """The position of the sample with the most padding on the left; 0 where there is none."""
        mask = self._inputs.get(ATTENTION_MASK)
        return 0 if mask is None else int(mask.to(torch.uint8).argmax(1).argmax())

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what the store keeps: the inputs, where bfloat16 becomes float32, exactly, and the offsets."""
        offsets = {} if self.offsets is None else {OFFSETS: self.offsets}
        return {name: _to_numpy(value) for name, value in {**self._inputs, **offsets}.items()}

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the inputs in order, ``batch_size`` samples at a time (views, the last one may be smaller).

        Examples
        --------
        >>> [len(batch["x"]) for batch in ProbeSet.from_tensors({"x": torch.zeros(5, 3)}).batches(2)]
        [2, 2, 1]
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        for start in range(0, len(self), batch_size):
            yield {name: value[start : start + batch_size] for name, value in self._inputs.items()}

    def inputs_of(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the inputs of the samples at these positions, in this order.

        Examples
        --------
        >>> probe_set = ProbeSet.from_tensors({"x": torch.tensor([[1.0], [2.0], [3.0]])})
        >>> probe_set.inputs_of(torch.tensor([2, 0]))["x"].flatten().tolist()
        [3.0, 1.0]
        """
        return {name: value[places] for name, value in self._inputs.items()}

    def select(self, start: int, stop: int) -> ProbeSet:
        """Return the samples from ``start`` up to ``stop`` as another probe set.

        Examples
        --------
        >>> ProbeSet.from_tensors({"x": torch.zeros(5, 3)}).select(1, 3).ids
        ['1', '2']
        """
        cut = slice(start, stop)
        part = ProbeSet(
            {name: value[cut] for name, value in self._inputs.items()},
            ids=self.ids[cut],
            labels=None if self.labels is None else self.labels[cut],
        )
        part.texts = None if self.texts is None else self.texts[cut]
        part.text_hashes = None if self.text_hashes is None else self.text_hashes[cut]
        part.encoding = dict(self.encoding)
        part.offsets = None if self.offsets is None else self.offsets[cut]
        return part


def _checked_input(name: str, value: Any) -> torch.Tensor:
    if not isinstance(name, str) or not name:
        raise ProbeSetError(f"inputs: expected names, found the key {name!r}")
    try:
        tensor = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeSetError(f"input {name!r}: expected a tensor over samples, found {type(value).__name__}") from error
    if tensor.ndim == 0:
        raise ProbeSetError(f"input {name!r}: expected a first dim over samples, found a scalar")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        row = int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0]) if tensor.ndim > 1 else 0
        raise ProbeSetError(f"input {name!r}: sample {row} holds NaN or infinite values")
    return tensor


def _n_samples(inputs: Mapping[str, torch.Tensor]) -> int:
    lengths = {name: len(value) for name, value in inputs.items()}
    if not lengths or 0 in lengths.values():
        raise ProbeSetError(f"inputs: expected at least one sample, found {lengths or 'no inputs'}")
    if len(set(lengths.values())) > 1:
        raise ProbeSetError(f"inputs: expected one length over samples, found {lengths}")
    return next(iter(lengths.values()))


def _check_mask(mask: torch.Tensor | None) -> None:
    if mask is None:
        return
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ProbeSetError(
            f"{ATTENTION_MASK}: expected zeros and ones of shape (sample, token), found {tuple(mask.shape)}, "
            f"values {mask.min().item()} to {mask.max().item()}"
        )
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ProbeSetError(f"samples {empty[:10]} have no unmasked token (an empty text?): leave them out")


def _tokenized(texts: list[str], tokenizer: Callable[..., Any], max_length: int) -> dict[str, torch.Tensor]:
    offsets = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    encoded = dict(tokenizer(texts, truncation=True, max_length=max_length, **offsets))
    rows = [list(row)[:max_length] for row in encoded["input_ids"]]
    encoded.setdefault(ATTENTION_MASK, [[1] * len(row) for row in rows])
    pad_id = getattr(tokenizer, "pad_token_id", None)
    if pad_id is None:
        pad_id = getattr(tokenizer, "eos_token_id", None) or 0
    left = getattr(tokenizer, "padding_side", "right") == "left"
    length = max(len(row) for row in rows)
    inputs = {}
    for name in ("input_ids", ATTENTION_MASK, "token_type_ids", OFFSETS):
        if name in encoded:
            filler = _PADDING.get(name, pad_id)
            inputs[name] = _padded([list(row)[:max_length] for row in encoded[name]], length, filler, left=left)
    return inputs


def _padded(rows: list[list[Any]], length: int, filler: Any, *, left: bool) -> torch.Tensor:
    padding = [[filler] * (length - len(row)) for row in rows]
    joined = [p + row if left else row + p for row, p in zip(rows, padding, strict=True)]
    return torch.tensor(joined, dtype=torch.int64)


def _to_numpy(value: torch.Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _fingerprint(inputs: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        value = inputs[name]
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
