"""The command that records pretrained models and finished runs: record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from repaudit.cli.console import AsJson, one_line_errors


def record(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Local folders, hub ids, .gguf files, or folders of checkpoints."),
    ],
    probe: Annotated[
        Path, typer.Option(help="Probe file: .txt (one text per line), .jsonl or .csv (text, label, id).")
    ],
    layers: Annotated[str, typer.Option(help="Layer paths separated by commas, e.g. 'layers[*],norm'.")],
    store: Annotated[str, typer.Option(help="Path or URL of the store; created if missing.")],
    revision: Annotated[list[str] | None, typer.Option(help="Revision to record, e.g. step1000; repeatable.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name in the store, one per model; repeatable.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Path or id with the config (and tokenizer) of Lightning checkpoints.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Path or id of the tokenizer, instead of the models' tokenizers.")
    ] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Most tokens per text; longer texts are cut.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per forward.")] = 32,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let a model run the code that comes with it.")
    ] = False,
    store_texts: Annotated[
        bool, typer.Option("--store-texts/--no-store-texts", help="Keep the texts in the store, or only their hashes.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Record pretrained models, or series of their checkpoints, without training."""
    with one_line_errors():
        from repaudit.capture.pretrained.record_pretrained import record_pretrained

        recorded = record_pretrained(
            models, probe, split_paths(layers), store, revisions=revision or (), names=name, config=config,
            tokenizer=tokenizer, max_length=max_length, batch_size=batch_size, trust_remote_code=trust_remote_code,
            store_texts=store_texts,
        )  # fmt: skip
        from repaudit.store.read import catalog
        from repaudit.store.read.reader import open_store

        tree = open_store(store)
        read = {model: _encoded(catalog.encoding(tree, model)) for model in recorded}
    if as_json:
        typer.echo(json.dumps(recorded, indent=2))
        return
    for model, steps in recorded.items():
        typer.echo(f"{model}: recorded at step {', '.join(map(str, steps))}{read[model]}")


def _encoded(encoding: dict[str, Any]) -> str:
    """Say which tokenizer made a model's inputs, and how many texts it cut."""
    if "max_length" not in encoding:
        return ""
    cut = (
        f"{encoding['truncated']} texts cut to {encoding['max_length']} tokens"
        if encoding["truncated"]
        else "no text cut"
    )
    return f" (tokenizer {Path(encoding.get('tokenizer', '?')).name}, {cut})"


def split_paths(text: str) -> list[str]:
    """Split layer paths at commas."""
    return [path.strip() for path in text.split(",") if path.strip()]
