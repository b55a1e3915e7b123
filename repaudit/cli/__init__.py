"""The ``repaudit`` command: progress on stderr, ``--json`` on stdout, one clear line for bad input.

Exit codes: 0 done, 1 problems found, 2 wrong usage or a missing path, 3 not a repaudit store, damaged, or of an unknown
version.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Final

import typer

from repaudit.cli import analysis, recording, store, watch
from repaudit.cli.console import visible
from repaudit.errors import AlignmentWarning, AuditWarning, OperatorWarning, StoreWarning
from repaudit.names import __version__

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
_PLAIN: Final = warnings.formatwarning
_EXAMPLES: Final[dict[Callable[..., None], str]] = {
    recording.record: "repaudit record my-model/ --probe texts.txt --layers 'layers[*],norm' --store pretrained.zarr",
    store.info: "repaudit info runs.zarr",
    watch.watch: "repaudit watch runs.zarr --layers 'model.layers[*]' --once",
    analysis.analyze: "repaudit analyze runs.zarr --models 'seed*' --scales 15,N/4 --figures none",
    analysis.report: "repaudit report runs.analysis --figures all",
    store.verify: "repaudit verify runs.zarr --data",
    store.repair: "repaudit repair runs.zarr",
    store.copy: "repaudit copy runs.zarr fewer.zarr --models seed0,seed1 --steps 0:100 --codec compact",
    store.export: "repaudit export runs.zarr seed0 model.layers.1 activations.npy",
}
"""The commands, each with the example at the end of its help."""

for _command, _example in _EXAMPLES.items():
    _class = analysis.AnalyzeCommand if _command is analysis.analyze else None
    app.command(cls=_class, epilog=f"\b\nExample:\n  {_example}")(_command)


def _in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this library as its commands do an error; others as Python does."""
    if not issubclass(category, AuditWarning | StoreWarning | AlignmentWarning | OperatorWarning):
        return _PLAIN(message, category, filename, lineno, line)
    return f"warning: {visible(' '.join(str(message).split()))}\n"


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Audit what neural networks represent while they train.

    Exit codes: 0 done, 1 problems found, 2 wrong usage or a missing path, 3 not a repaudit store, damaged, or of an
    unknown version.
    """
    warnings.filterwarnings("ignore", "model .* is left out", StoreWarning)  # every command says so in one line
    warnings.formatwarning = _in_one_line
    for stream in (sys.stdout, sys.stderr):  # not every terminal or pipe has every letter
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    if version:
        typer.echo(__version__)
        raise typer.Exit
