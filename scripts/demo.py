"""Do three language models that differ in their seed alone come to represent Python the same way?

Trains three replicas of a small Llama on the standard library's own source, audits every layer on passages from
modules that none of them is trained on, then runs ``repaudit analyze`` on the store.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import torch
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, PreTrainedTokenizerFast

import repaudit as ra
from repaudit import errors as ra_errors

SEEDS = (0, 1, 2)
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

console = Console()


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


def train_replica(
    seed: int, blocks: torch.Tensor, probe_set: ra.ProbeSet, store: Path, steps: int
) -> tuple[float, float]:
    """Train one replica and give its loss over the first and last ten steps."""
    lightning.seed_everything(seed, verbose=False)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=BLOCK_LENGTH,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = ra.HFTrainerModule(config, learning_rate=3e-3)
    loader = DataLoader(
        TensorDataset(blocks),
        batch_size=BATCH_SIZE,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=as_batch,
    )
    callback = ra.RepresentationAuditCallback(
        store=store,
        model_name=f"seed{seed}",
        probe_set=probe_set,
        layer_specs=["model.embed_tokens", "model.layers[*]", "model.norm"],
        trigger=ra.AuditTrigger(at_start=True, log_spaced=5, at_steps=[steps]),
    )
    losses = LossCurve()
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[callback, losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return float(np.mean(losses.values[:10])), float(np.mean(losses.values[-10:]))


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


def remove_earlier(store: Path, probe_set: ra.ProbeSet) -> None:
    """Remove the store of an earlier demo, known by its probe set; leave anything else alone."""
    if not store.exists():
        return
    try:
        found = ra.open_store(store).attrs["repaudit"]["fingerprint"]
    except ra_errors.StoreError as error:
        sys.exit(f"{error} Choose another --out.")
    if found != probe_set.fingerprint:
        sys.exit(f"{store} holds another probe set than this demo's: choose another --out, or remove it.")
    console.print(f"Removing the store of an earlier demo: {store}")
    shutil.rmtree(store)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parents[1] / "demo-run"
    parser.add_argument("--out", type=Path, default=default, help="folder for the store and the report")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each replica")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for unhelpful in ("does not have many workers", "have no `val_dataloader`", "LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=f".*{unhelpful}")

    source = training_source()
    tokenizer = train_tokenizer(source)
    tokens = torch.tensor(tokenizer(source, verbose=False)["input_ids"])
    blocks = tokens[: len(tokens) // BLOCK_LENGTH * BLOCK_LENGTH].view(-1, BLOCK_LENGTH)
    texts, labels = held_out_passages(tokenizer)
    probe_set = ra.ProbeSet.from_texts(texts, tokenizer, max_length=BLOCK_LENGTH, labels=labels)
    store = args.out / "store.zarr"
    remove_earlier(store, probe_set)
    console.print(
        f"{len(tokens):,} training tokens; {len(probe_set)} passages of {len(HELD_OUT)} held-out modules to audit on"
    )

    for seed in SEEDS:
        with console.status(f"training replica {seed + 1} of {len(SEEDS)}, {args.steps} steps"):
            first, last = train_replica(seed, blocks, probe_set, store, args.steps)
        console.print(f"seed {seed}: loss {first:.2f} -> {last:.2f} after {args.steps} steps")

    sys.exit(subprocess.run([Path(sys.executable).with_name("repaudit"), "analyze", store], check=False).returncode)


if __name__ == "__main__":
    main()
