"""Commands that compute: analyze, and report, which writes the report again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.markup import escape
from typer.core import TyperCommand

from repaudit.cli.answer import print_answer
from repaudit.cli.console import (
    PROBLEMS,
    AsJson,
    Layers,
    Models,
    PlainConsole,
    Steps,
    Stores,
    one_line_errors,
    parse_names,
    parse_steps,
    prose,
    say,
    warn_of_what_is_lost,
)
from repaudit.cli.earlier_results import EarlierResults
from repaudit.cli.progress import shown_progress
from repaudit.names import BY_DEPTH, at_home

MOST_LEFT_OUT = 8

Match = Literal["name", "depth"]
Merge = Literal["frobenius", "weighted", "reversible", "ot_barycenter"]
KeepMerged = Literal["last", "all"]
Figures = Literal["main", "all", "none"]


class AnalyzeCommand(TyperCommand):
    """The command whose option ``--tokens`` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with ``samples`` behind a ``--tokens`` that has no value."""
        named = [*args, ""]
        alone = [arg == "--tokens" and named[index + 1] not in ("samples", "within") for index, arg in enumerate(args)]
        return super().parse_args(
            ctx, [f"{arg}=samples" if bare else arg for arg, bare in zip(args, alone, strict=True)]
        )


def analyze(
    stores: Stores,
    out: Annotated[
        str | None,  # no Path: that of an empty text is the working directory
        typer.Option(
            metavar="PATH",
            help="Folder for the results; earlier ones are replaced; <store>.analysis by default, needed for several.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with any of the settings of repaudit.analyze; flags override it.")
    ] = None,
    models: Models = None,
    layers: Layers = None,
    match: Annotated[
        Match | None, typer.Option(help="How layers of models are paired: by name, the default, or by relative depth.")
    ] = None,
    steps: Steps = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="[samples|within]",
            help="Analyse tokens: each as a sample of its own, the default, or those within samples.",
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens that are samples, 2000 by default.")] = None,
    merge: Annotated[Merge | None, typer.Option(help="Merge strategy, frobenius by default.")] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODELS", help="A group of models to compare, e.g. small='s*,t*'; repeatable."),
    ] = None,
    gauge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A parameter of the gauge: a number for knn, bandwidth, decay, alpha, neighbors, perplexity, "
            "landmarks or seed, kernel=gaussian|alpha_decay, bandwidth=median, metric=euclidean|cosine, "
            "standardize=true|false, self_loops=true|false; repeatable.",
        ),
    ] = None,
    scales: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Effective numbers of neighbours, separated by commas; repeatable; 15,N/4 by default."
        ),
    ] = None,
    keep_merged: Annotated[
        KeepMerged | None, typer.Option(help="Steps whose merged operators are kept, the last by default.")
    ] = None,
    similarity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURES",
            help="Similarity measures, separated by commas: cka, cka_debiased, cka_rbf, mutual_knn, procrustes, rsa; "
            "cka_debiased,mutual_knn by default; none for no maps; repeatable.",
        ),
    ] = None,
    similarity_steps: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Steps of the similarity maps, like --steps.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Most steps at which to embed the samples, 12 by default; 0 for none.")
    ] = None,
    units: Annotated[
        int | None, typer.Option(help="Most units per layer whose trajectories are drawn, 32 by default; 0 for none.")
    ] = None,
    figures: Annotated[Figures | None, typer.Option(help="Which PNG files to write; the main ones by default.")] = None,
    no_figures: Annotated[bool, typer.Option("--no-figures", help="Write no PNG files.")] = False,
    memory: Annotated[str | None, typer.Option(help="Memory budget, 2GB by default.")] = None,
    workers: Annotated[int | None, typer.Option(help="Start this many Dask workers on this machine.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, e.g. tcp://host:8786.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where operators are computed: cpu, the default, cuda, or one such as cuda:1.")
    ] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Keep operators for the next run; kept by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of resampling and embeddings.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether models converge, and write a report.

    Results go next to the store, which is never written to. Another run computes only what is new.
    """
    with (
        one_line_errors(goes_on=cache is not False),
        shown_progress(f"reading {', '.join(stores)}") as report,
        _readable(stores),
    ):
        flags: dict[str, Any] = {
            "models": parse_names(models),
            "layers": parse_names(layers),
            "match": match,
            "tokens": tokens,
            "max_tokens": max_tokens,
            "merge": merge,
            "groups": _parse_groups(groups),
            "similarity": parse_names(similarity),
            "scales": parse_names(scales),
            "keep_merged": keep_merged,
            "frames": frames,
            "units": units,
            "figures": _which_figures(figures, none=no_figures),
            "memory": memory,
            "workers": workers,
            "scheduler": scheduler,
            "device": device,
            "cache": cache,
            "seed": seed,
        }
        from repaudit.analysis.folder import default_folder
        from repaudit.analysis.pipeline import run
        from repaudit.analysis.settings import Settings, read_config
        from repaudit.operators.written import local_path
        from repaudit.results import SUMMARY

        given = {name: value for name, value in flags.items() if value is not None}
        choices = {**(read_config(config) if config else {}), **given}
        if gauge:
            choices["gauge"] = _parse_parameters(gauge, choices.get("gauge") or {})
        for name, some in (("steps", steps), ("similarity_steps", similarity_steps)):
            if some:  # of the models in the config too, once these are known to be models
                choices[name] = parse_steps(some, stores, Settings.of(choices).models)
        settings = Settings.of(choices)
        if out is None and len(stores) > 1:
            raise typer.BadParameter("several stores need --out, the folder for their results")
        folder = (local_path(out) or Path(out)) if out else default_folder(stores[0])
        earlier = EarlierResults.of(folder)
        arguments = [*stores, *(("--out", out) if out else ())]

        def answered(summary: Mapping[str, Any]) -> None:
            if not as_json:
                with report.aside():
                    _print_alone(summary["alone"], summary["models"], arguments)
                    print_answer(summary)

        def planned(needed: int, study: Any) -> None:
            with report.aside():
                _tell_of_others(folder)  # which is one to write to
                earlier.tell_before(study)
                _tell_needed(needed, settings)

        with earlier.told_of_when_interrupted():
            results = run(stores, folder if out is None else out, settings, report, answered, planned)
    summary = json.loads(results.attrs[SUMMARY])
    earlier.tell_after(summary)
    if as_json:
        typer.echo((folder / "summary.json").read_text(encoding="utf-8"))
    else:
        _print_rest(summary, folder)
    if len(summary["models"]) > 1 and not _compared_any(summary):
        raise typer.Exit(PROBLEMS)


def _which_figures(figures: str | None, *, none: bool) -> str | None:
    if none and figures not in (None, "none"):
        raise typer.BadParameter(f"--no-figures writes none, --figures {figures} some: give one of them")
    return "none" if none else figures


def _tell_needed(needed: int, settings: Any) -> None:
    """Say on stderr how much memory it takes: the process with its libraries, and what the analysis comes to hold."""
    from repaudit.analysis.needed_memory import held_by_process

    console = PlainConsole(stderr=True)
    held, workers = held_by_process(), settings.workers or 0
    of_workers = f", {workers} worker process{'es' * (workers > 1)} included" if workers else ""
    total = round((needed + held * (1 + workers)) / 1e7) * 10
    console.print(f"needs about {total:,} MB of memory{of_workers}", highlight=False)
    if needed > settings.budget:
        said = f"memory={settings.memory} bounds the operators that are held at once; an analysis takes more than these"
        prose(console, escape(said))


def _tell_of_others(folder: Path) -> None:
    """Say on stderr what a folder holds that no analysis wrote: results come among it, and replace nothing of it."""
    from repaudit.analysis.folder import CACHE
    from repaudit.analysis.moving import PIECES
    from repaudit.operators.written import FIGURES

    try:
        found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return
    others = [name for name in found if name not in {*PIECES, FIGURES, CACHE}]
    if others and not {*PIECES}.intersection(found):
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        said = f"{folder} holds {named}: the results go beside, and replace none of it"
        prose(PlainConsole(stderr=True), escape(said))


def _compared_any(summary: Mapping[str, Any]) -> bool:
    """Return whether there is a spread of any layer at any scale."""
    return any(one["peak"] is not None for entry in summary["layers"].values() for one in entry["scales"].values())


@contextmanager
def _readable(stores: list[str]) -> Iterator[None]:
    """Open the stores before anything heavy is imported, so that what is no store is told at once."""
    for store in stores:
        warn_of_what_is_lost(store)
    yield


def _parse_parameters(parameters: list[str], configured: Any) -> dict[str, Any]:
    """Parse ``knn=10``, which overrides a config; values are YAML's, so that numbers are numbers and null is None."""
    if not isinstance(configured, dict):
        raise typer.BadParameter(f"expected names and values for gauge in the config, found {configured!r}")
    parsed: dict[str, Any] = {}
    for text in parameters:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in parsed:
            raise typer.BadParameter(f"expected parameters of the gauge like knn=10, each once, found {text!r}")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"expected a number, a word or null for {name}, found {value!r}") from None
    return {**configured, **parsed}


def _parse_groups(groups: list[str] | None) -> dict[str, list[str]] | None:
    """Parse groups such as ``small=seed0,seed1``."""
    parsed: dict[str, list[str]] = {}
    for text in groups or ():
        name, equals, models = text.partition("=")
        if not (name and equals and models) or name in parsed:
            raise typer.BadParameter(f"expected groups like small=seed0,seed1, each once, found {text!r}")
        parsed[name.strip()] = [model.strip() for model in models.split(",")]
    return parsed or None


def _print_alone(alone: dict[str, str], models: list[str], arguments: list[str]) -> None:
    """Say which layers were compared with none, and what would pair them."""
    if not alone:
        return
    console = PlainConsole()
    shown = ", ".join(f"{layer} ({model})" for layer, model in list(alone.items())[:MOST_LEFT_OUT])
    more = f" and {len(alone) - MOST_LEFT_OUT} more" if len(alone) > MOST_LEFT_OUT else ""
    prose(console, f"[bold yellow]compared with no other model:[/] {escape(shown)}{more}")
    last = dict.fromkeys(models, "ITS-LAYER") | {model: layer for layer, model in alone.items()}
    named = yaml.safe_dump({"layers": {"last": last}}, default_flow_style=True, width=10_000).strip()
    command = f"repaudit analyze {' '.join(map(quote, arguments))}"
    console.print("  to pair layers by relative depth:", highlight=False)
    console.print(f"    {escape(command)} --match depth", highlight=False)
    console.print("  to give one name to a layer of each model:", highlight=False)
    console.print(f"    printf '%s\\n' {escape(quote(named))} > layers.yaml", highlight=False)
    console.print(f"    {escape(command)} --config layers.yaml", highlight=False)


def _print_rest(summary: dict[str, Any], folder: Path) -> None:
    console = PlainConsole()
    for line in summary["left_out"][:MOST_LEFT_OUT]:
        prose(console, f"  {'matched by ' if line.startswith(BY_DEPTH) else 'left out: '}{escape(line)}")
    if len(summary["left_out"]) > MOST_LEFT_OUT:
        console.print(f"  and {len(summary['left_out']) - MOST_LEFT_OUT} more in summary.json", highlight=False)
    console.print()
    console.print(f"report: {escape(str(folder / 'report.html'))}", highlight=False)


def report(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="An analysis folder, <store>.analysis.")],
    figures: Annotated[Figures, typer.Option(help="Which PNG files to write.")] = "main",
) -> None:
    """Write a report and figures again from its results."""
    with one_line_errors(), shown_progress(f"reading {folder}") as progress:
        from repaudit.analysis.folder import rewrite_report

        if not folder:
            raise typer.BadParameter("expected an analysis folder, found an empty text")
        page = rewrite_report(at_home(folder), figures, progress)
    say(str(page))
