"""Small language models of Python's standard library: its source as data, passages to audit on, and their training.

What ``scripts/demo.py`` and ``scripts/experiments`` share.
"""

from __future__ import annotations

import logging
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, PreTrainedTokenizerFast

import repaudit as ra

HELD_OUT = ("argparse", "asyncio", "_pydecimal", "email", "tarfile", "typing", "unittest", "xml")
PASSAGES = 32  # of each held-out module: 256 in all
SHORTEST_PASSAGE = 16  # tokens
BLOCK_LENGTH = 64
BATCH_SIZE = 32
NOT_SOURCE = {
    "test",
    "tests",
    "site-packages",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "pydoc_data",
    "encodings",
    "__pycache__",
}


def module_source(name: str) -> str:
    """Source of one module or package of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [root / f"{name}.py"] if (root / f"{name}.py").exists() else sorted((root / name).rglob("*.py"))
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)


def training_source() -> str:
    """Source of all modules that are not held out."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        file
        for file in sorted(root.rglob("*.py"))
        if not NOT_SOURCE & set(file.relative_to(root).parts)
        and file.relative_to(root).parts[0].removesuffix(".py") not in HELD_OUT
        and not file.name.startswith(("_sysconfigdata", "_pydatetime"))
    ]
    return "\n".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)


def train_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,024 pieces, learned on the training source."""
    bpe = ByteLevelBPETokenizer()
    lines = source[:2_000_000].splitlines(keepends=True)
    bpe.train_from_iterator(lines, vocab_size=1024, special_tokens=["<pad>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>")


def held_out_passages(tokenizer: PreTrainedTokenizerFast) -> tuple[list[str], list[str]]:
    """Evenly spaced passages of every held-out module, as its authors set them apart, and the module as the label."""
    texts, labels = [], []
    for module in HELD_OUT:
        blocks = [block.strip("\n") for block in module_source(module).split("\n\n")]
        lengths = [len(ids) for ids in tokenizer(blocks, verbose=False)["input_ids"]]
        passages = [block for block, length in zip(blocks, lengths, strict=True) if length >= SHORTEST_PASSAGE]
        texts += [passages[i] for i in np.linspace(0, len(passages) - 1, PASSAGES).astype(int)]
        labels += [module.removeprefix("_py")] * PASSAGES
    return texts, labels


class Corpus:
    """The tokenizer, the training tokens in blocks, and the probe set; each made when it is first used."""

    @cached_property
    def source(self) -> str:
        return training_source()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return train_tokenizer(self.source)

    @cached_property
    def blocks(self) -> torch.Tensor:
        return self.in_blocks(self.source)

    @cached_property
    def held_out_blocks(self) -> torch.Tensor:
        return self.in_blocks("\n".join(map(module_source, HELD_OUT)))

    @cached_property
    def probe_set(self) -> ra.ProbeSet:
        texts, labels = held_out_passages(self.tokenizer)
        return ra.ProbeSet.from_texts(texts, self.tokenizer, max_length=BLOCK_LENGTH, labels=labels)

    def in_blocks(self, source: str) -> torch.Tensor:
        """Tokens of a source in rows of one length; what is left over is dropped."""
        tokens = torch.tensor(self.tokenizer(source, verbose=False)["input_ids"])
        return tokens[: len(tokens) // BLOCK_LENGTH * BLOCK_LENGTH].view(-1, BLOCK_LENGTH)


@dataclass(frozen=True)
class Replica:
    """One model to train: its size, its learning rate, and the seed of its weights and of its order of the data."""

    width: int
    depth: int
    learning_rate: float
    seed: int
    steps: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=1024,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=BLOCK_LENGTH,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )

    def train(self, blocks: torch.Tensor, callbacks: Sequence[lightning.Callback]) -> Trained:
        """Train the replica, and give it with its loss at every step."""
        lightning.seed_everything(self.seed, verbose=False)
        module = ra.HFTrainerModule(self.config(), learning_rate=self.learning_rate)
        shuffled = torch.Generator().manual_seed(self.seed)
        losses = LossCurve()
        trainer(max_steps=self.steps, callbacks=[*callbacks, losses]).fit(module, loader(blocks, shuffled))
        return Trained(module, losses.values)


@dataclass(frozen=True)
class Trained:
    """A replica after its training, and its loss at every step."""

    module: ra.HFTrainerModule
    losses: list[float]

    def first_and_last_loss(self) -> tuple[float, float]:
        """Mean loss over the first and over the last ten steps, or over each half of fewer than twenty."""
        some = max(1, min(10, len(self.losses) // 2))
        return float(np.mean(self.losses[:some])), float(np.mean(self.losses[-some:]))


def validation_loss(module: ra.HFTrainerModule, blocks: torch.Tensor) -> float:
    """Mean loss on blocks that are not trained on."""
    (losses,) = trainer().validate(module, loader(blocks), verbose=False)
    return float(losses["val_loss"])


def loader(blocks: torch.Tensor, shuffled: torch.Generator | None = None) -> DataLoader[tuple[torch.Tensor]]:
    """Batches of blocks, in an order drawn by a generator, or as they come."""
    rows = TensorDataset(blocks)
    return DataLoader(
        rows, batch_size=BATCH_SIZE, shuffle=shuffled is not None, generator=shuffled, collate_fn=as_batch
    )


def trainer(max_steps: int = -1, callbacks: Sequence[lightning.Callback] = ()) -> lightning.Trainer:
    """A trainer on the CPU that writes and shows nothing of its own."""
    return lightning.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def as_batch(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack blocks into what a causal language model takes."""
    input_ids = torch.stack([row[0] for row in rows])
    return {"input_ids": input_ids, "labels": input_ids}


class LossCurve(lightning.Callback):
    """Keeps the training loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.values.append(float(outputs["loss"]))


def quieten() -> None:
    """Silence what the trainer says about loggers, workers and validations: none of it helps here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for unhelpful in ("does not have many workers", "have no `val_dataloader`", "LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=f".*{unhelpful}")
