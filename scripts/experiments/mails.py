"""Labelled e-mails for teachers and students: two sets of samples, a tokenizer of the students' own, and batches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

import repaudit as ra

sys.path.insert(0, str(Path(__file__).parents[1]))

import pretrained

TRAIN, HELD_OUT, READ = "train", "held-out", "read"
MAX_LENGTH = 64
VOCABULARY = 2000
VALIDATION = 10
"""Which part of the other e-mails is kept to validate language models."""
FEW = 8
"""Labels of each class in the small task."""


@dataclass(frozen=True)
class Mails:
    """E-mails of all sets, others to learn language from, and how students read them.

    Those that a language model is taught on are among the others that it reads: they need no labels, so there are many.
    """

    sets: dict[str, list[dict[str, str]]]
    others: list[str]
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, samples: int, held_out: int, others: int, read: int) -> Mails:
        """Take so many e-mails to teach on, held out, and others, of which so many are taught on, too."""
        every = pretrained.emails(samples + held_out + others)
        rest = every[samples + held_out :]
        kept = len(rest) // VALIDATION
        sets = {TRAIN: every[:samples], HELD_OUT: every[samples : samples + held_out], READ: rest[kept : kept + read]}
        texts = [mail["text"] for mail in rest]
        return cls(sets, texts, _tokenizer([mail["text"] for mail in sets[TRAIN]] + texts))

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return sorted({mail["label"] for mail in self.sets[TRAIN]})

    def labels(self, name: str) -> np.ndarray:
        """Return the classes of a set's e-mails as numbers."""
        return np.array([self.classes.index(mail["label"]) for mail in self.sets[name]])

    def probe_set(self, name: str) -> ra.ProbeSet:
        """Return a set as students read it."""
        mails = self.sets[name]
        texts, ids, labels = ([mail[key] for mail in mails] for key in ("text", "id", "label"))
        return ra.ProbeSet.from_texts(texts, self.tokenizer, max_length=MAX_LENGTH, ids=ids, labels=labels)

    def inputs(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return texts as a student's inputs."""
        found = self.tokenizer(
            list(texts), truncation=True, max_length=MAX_LENGTH, padding="max_length", return_tensors="pt"
        )
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def task(self, labels_per_class: int | None, seed: int, batch_size: int = 32) -> DataLoader:
        """Return batches of the training e-mails with their classes, of some or all of them."""
        classes = self.labels(TRAIN)
        rng = np.random.default_rng(seed)
        chosen = np.arange(len(classes))
        if labels_per_class is not None:
            places = [np.flatnonzero(classes == one) for one in range(len(self.classes))]
            chosen = np.concatenate([rng.choice(some, labels_per_class, replace=False) for some in places])
        inputs = self.inputs([self.sets[TRAIN][index]["text"] for index in chosen])
        rows = _rows({**inputs, "labels": torch.from_numpy(classes[chosen])})
        return _endless(rows, min(batch_size, len(rows)), seed)

    def language(self, seed: int, batch_size: int = 16) -> tuple[DataLoader, list[dict[str, torch.Tensor]]]:
        """Return batches of the other e-mails, and those of a tenth of them that are kept for validation."""
        kept = len(self.others) // VALIDATION
        parts = [_language_rows(self.inputs(texts)) for texts in (self.others[kept:], self.others[:kept])]
        return _endless(parts[0], batch_size, seed), parts[1]


def _language_rows(inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return _rows({**inputs, "labels": labels})


def _rows(columns: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    count = len(next(iter(columns.values())))
    return [{name: value[index] for name, value in columns.items()} for index in range(count)]


def _endless(rows: list[dict[str, torch.Tensor]], batch_size: int, seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True, generator=generator)  # type: ignore[arg-type]


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, show_progress=False)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
