"""Commands on a store: info, verify, repair, copy, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from repaudit.cli import completion
from repaudit.cli.console import (
    PROBLEMS,
    AsJson,
    Layers,
    Models,
    PlainConsole,
    Steps,
    Store,
    brief,
    one_line_errors,
    parse_names,
    parse_steps,
    prose,
    say,
    visible,
    warn_of_lost,
    warn_of_what_is_lost,
)
from repaudit.cli.progress import shown_progress
from repaudit.names import at_home

Codec = Literal["auto", "raw", "compact", "lossy"]


def info(store: Store, as_json: AsJson = False) -> None:
    """Show what is in a store: models, layers, steps, the probe set."""
    with one_line_errors():
        from repaudit.store.read import catalog
        from repaudit.store.read.reader import open_store

        description = {"url": store, **catalog.describe(open_store(store))}
        warn_of_lost(store, description["lost"])
        if as_json:
            typer.echo(json.dumps(description, indent=2))
            return
        _print_info(description)


def _print_info(description: dict[str, Any]) -> None:
    console = PlainConsole()
    prose(
        console,
        f"[bold]{escape(description['url'])}[/]  format {description['version']}, {description['samples']} samples, "
        f"probe set {description['fingerprint'][:12]}",
    )
    if description["labels"]:
        prose(console, f"labels: {escape(brief(description['labels']))}")
    models = description["models"]
    encoded = any(model["encoding"] for model in models)
    rows = [("model", "steps", "first", "last", *(("tokenizer",) if encoded else ()))]
    for model in models:
        steps = model["steps"]
        ends = (str(steps[0]), str(steps[-1])) if steps else ("-", "-")
        rows.append((model["name"], str(len(steps)), *ends, *((_tokenizer(model["encoding"]),) if encoded else ())))
    widths = [max(len(visible(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(visible(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        prose(console, Text(line, "dim" if row is rows[0] else ""))
    _print_layers(models, console)


def _print_layers(models: list[dict[str, Any]], console: Console) -> None:
    """Print the layers of the models, once where all have the same."""
    of_layers: dict[str, list[str]] = {}
    for model in models:
        of_layers.setdefault(_layers(model["layers"]), []).append(model["name"])
    for layers, names in of_layers.items():
        whose = f" of {brief(names)}" if len(of_layers) > 1 else ""
        prose(console, f"layers{escape(whose)}: {escape(layers)}")


def _tokenizer(encoding: dict[str, Any]) -> str:
    if not encoding:
        return "-"
    name = Path(encoding.get("tokenizer", "")).name or "a tokenizer without a name"
    cut = f", {encoding['truncated']} texts cut to {encoding['max_length']}" if encoding.get("truncated") else ""
    return f"{name}{cut}"


def _layers(layers: list[dict[str, Any]]) -> str:
    return brief([f"{layer['name']} ({_size(layer)}{_of_gauge(layer.get('gauge'))})" for layer in layers])


def _size(layer: dict[str, Any]) -> str:
    return " x ".join(map(str, layer["shape"][2:] or layer["shape"][1:]))


def _of_gauge(gauge: dict[str, Any] | None) -> str:
    """Return what the gauge of recorded operators or sketches looks at, where it tells."""
    known = {
        name: value for name in ("perplexity", "knn", "bandwidth") if (value := (gauge or {}).get(name)) is not None
    }
    return "".join(
        f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}" for name, value in known.items()
    )


def verify(
    store: Store,
    data: Annotated[
        bool, typer.Option("--data", help="Also read every step and compare it with its checksum.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every problem of a store; exit code 1 if there is one."""
    with one_line_errors(), shown_progress(f"checking {store}"):
        from repaudit.store.check.verify import verify as check

        problems = [{"location": p.location, "kind": p.kind, "message": p.message} for p in check(store, data=data)]
    _print_problems(problems, as_json, none="no problem found")
    raise typer.Exit(PROBLEMS if problems else 0)


def repair(
    store: Store,
    force: Annotated[
        bool, typer.Option("--force", help="Repair also models whose writer seems to be running.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Repair what can be repaired, and say what was lost."""
    with one_line_errors(), shown_progress(f"repairing {store}"):
        from repaudit.store.check.repair import repair as run
        from repaudit.store.check.verify import verify as check

        done = [
            {"location": r.location, "kind": r.kind, "message": r.message, "lost": r.lost}
            for r in run(store, force=force)
        ]
        left = len(check(store))
    _print_problems(done, as_json, none="nothing that repair can mend" if left else "nothing to repair")
    if left and not as_json:
        say(f"{left} problem{'s' * (left > 1)} left: see repaudit verify")
    with one_line_errors():
        warn_of_what_is_lost(store)  # what cannot be opened all the same is an error


def _print_problems(rows: list[dict[str, Any]], as_json: bool, none: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = PlainConsole()
    for row in rows:
        console.print(
            f"[bold]{escape(row['kind'])}[/] {escape(row['location'])}: {escape(row['message'])}", highlight=False
        )
    if not rows:
        console.print(none)


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Path or URL of the store to copy.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Path or URL of the copy.")],
    models: Models = None,
    layers: Layers = None,
    steps: Steps = None,
    codec: Annotated[Codec, typer.Option(help="How the copy is encoded.")] = "auto",
    keepbits: Annotated[int | None, typer.Option(help="Mantissa bits to keep with --codec lossy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a store or a part of it, optionally with another codec.

    An interrupted copy continues where it stopped.
    """
    with one_line_errors(goes_on=True), shown_progress(f"copying {source} to {destination}") as progress:
        from repaudit.store.copying import copy_store

        warn_of_what_is_lost(source)
        chosen = parse_steps(steps, [source], parse_names(models))
        if chosen == []:
            raise typer.BadParameter(f"--steps: expected recorded steps, found none in {','.join(steps or ())}")
        copied = copy_store(
            source, destination, models=parse_names(models), layers=parse_names(layers), steps=chosen,
            codec=codec, keepbits=keepbits, progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(copied, indent=2))
        return
    for model, taken in copied.items():
        say(f"{model}: {len(taken)} step{'s' * (len(taken) != 1)}")


def export(
    store: Store,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model.", autocompletion=completion.models)],
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Name of the layer.", autocompletion=completion.layers)],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; ends in .npy or .safetensors.")],
    steps: Steps = None,
) -> None:
    """Write the activations of one layer to a file."""
    with one_line_errors(), shown_progress(f"reading {store}"):
        from repaudit.store.copying import export_layer

        warn_of_what_is_lost(store)
        shape = export_layer(store, model, layer, at_home(path), steps=parse_steps(steps, [store], [model]))
    say(f"{path}: {' x '.join(map(str, shape))}")
