"""The command that records pretrained models and finished runs: record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from repaudit.cli.console import AsJson, one_line_errors, say
from repaudit.cli.progress import shown_progress
from repaudit.errors import RepauditError, StoreError

Pooling = Literal["mean", "last_token", "cls", "all", "own"]


def record(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Folders, hub ids, adapters, .gguf or .ckpt files, folders of checkpoints."
        ),
    ],
    layers: Annotated[
        list[str],
        typer.Option(
            help="Layers separated by commas, e.g. 'layers[*],norm', 'last=layers[-1]', 'depth:0.5'; "
            "'MODEL:last=...' for one model alone; repeatable."
        ),
    ],
    store: Annotated[str, typer.Option(help="Path or URL of the store; created if missing.")],
    probe: Annotated[
        Path | None, typer.Option(help="Probe file: .txt (one text per line), .jsonl or .csv (text, label, id).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images instead; the names of subfolders are their labels.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="Data set of images, sounds or texts instead: saved by datasets' save_to_disk, or parquet."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The data set's column of labels, if it is not 'label'.")] = None,
    revision: Annotated[list[str] | None, typer.Option(help="Revision to record, e.g. step1000; repeatable.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name in the store, one per model; repeatable.")] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="Path or id with the config (and tokenizer) of Lightning checkpoints, or the base model of an adapter."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Path or id of the tokenizer, instead of the models' tokenizers.")
    ] = None,
    pooling: Annotated[
        Pooling, typer.Option(help="How tokens are pooled; own: as each sentence-transformers model does itself.")
    ] = "mean",
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
    with one_line_errors(goes_on=True), shown_progress(f"reading {', '.join(models)}") as progress:
        from repaudit.capture.extract.layer_text import split_layer_texts
        from repaudit.capture.pretrained.record_pretrained import record_pretrained

        texts = [text for several in layers for text in split_layer_texts(several)]
        known = _recorded(store)
        with _in_options():
            recorded = record_pretrained(
                models, _samples(probe, images, dataset, label), texts, store, revisions=revision or (), names=name,
                config=config, tokenizer=tokenizer, max_length=max_length, pooling=pooling, batch_size=batch_size,
                trust_remote_code=trust_remote_code, store_texts=store_texts, progress=progress,
            )  # fmt: skip
        from repaudit.store.read import catalog
        from repaudit.store.read.reader import open_store

        tree = open_store(store)
        read = {model: _encoded(catalog.encoding(tree, model)) for model in recorded}
    if as_json:
        typer.echo(json.dumps(recorded, indent=2))
        return
    for model, steps in recorded.items():
        there = "already in the store" if known.get(model) == steps else "recorded"
        say(f"{model}: {there} at step {', '.join(map(str, steps))}{read[model]}")


@contextmanager
def _in_options() -> Iterator[None]:
    """Say in this command's options what an error advises in the library's keywords."""
    try:
        yield
    except RepauditError as error:
        if "if_exists" in str(error):
            error.add_note(
                "here, --name gives this model another name in the store, --store records it in another store"
            )
        raise
    except ValueError as error:
        if not str(error).startswith("model_name"):  # what --name gives
            raise
        raise typer.BadParameter(str(error)) from error


def _recorded(store: str) -> dict[str, list[int]]:
    """Return the steps of each model in a store, if there is one yet."""
    from repaudit.store.read import catalog
    from repaudit.store.read.reader import open_store

    try:
        tree = open_store(store)
    except StoreError:  # what cannot be written is refused when it is opened to be written
        return {}
    return {model: catalog.steps(tree, model) for model in catalog.models(tree)}


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


def _samples(probe: Path | None, images: Path | None, dataset: Path | None, label: str | None) -> Any:
    """Return what is recorded of each model: a probe file, or the samples in a folder or a data set."""
    given = [name for name, value in (("--probe", probe), ("--images", images), ("--dataset", dataset)) if value]
    if len(given) != 1:
        raise typer.BadParameter(
            f"expected one of --probe, --images and --dataset, found {' and '.join(given) or 'none'}"
        )
    if label is not None and dataset is None:
        raise typer.BadParameter(f"--label names a column of a --dataset, found {given[0]}")
    if images is not None:
        from repaudit.capture.pretrained.samples import read_images

        return read_images(images)
    if dataset is not None:
        from repaudit.capture.pretrained.dataset_files import read_dataset

        return read_dataset(dataset, label)
    return probe
