"""The ``repaudit`` command: progress on stderr, ``--json`` on stdout, one clear line for bad input.

Exit codes: 0 done, 1 problems found, 2 wrong usage or a missing path, 3 not a repaudit store, damaged, or of an unknown
version.
"""

from __future__ import annotations

from typing import Annotated

import typer

from repaudit.cli import analysis, recording, store, watch
from repaudit.names import __version__

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _command in (
    recording.record,
    store.info,
    watch.watch,
    analysis.analyze,
    analysis.report,
    store.verify,
    store.repair,
    store.copy,
    store.export,
):
    app.command(cls=analysis.AnalyzeCommand if _command is analysis.analyze else None)(_command)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Audit what neural networks represent while they train.

    Exit codes: 0 done, 1 problems found, 2 wrong usage or a missing path, 3 not a repaudit store, damaged, or of an
    unknown version.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
