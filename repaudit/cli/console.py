"""What all commands share: one line per error, exit codes, text for terminals, lists as text."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import dropwhile, zip_longest
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from repaudit.cli import completion
from repaudit.errors import CorruptStoreError, NotAStoreError, RepauditError, UnknownVersionError
from repaudit.names import matching

_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
PROBLEMS, USAGE, BAD_STORE = 1, 2, 3

Store = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of the store.")]
Stores = Annotated[
    list[str], typer.Argument(metavar="STORE...", help="Path or URL of the store, or several of the same samples.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Models or patterns with `*` and `?` such as `seed*`, separated by commas (one with a comma in double "
        "quotes); repeatable.",
        autocompletion=completion.models,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Layers as `repaudit info` names them, or patterns such as `model.layers[*]`, with commas; repeatable.",
        autocompletion=completion.layers,
    ),
]
Steps = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Steps and ranges, e.g. 0,10,100:200; repeatable.")
]


@contextmanager
def one_line_errors(*, goes_on: bool = False) -> Iterator[None]:
    """Turn errors raised on purpose into one line on stderr and an exit code.

    Where running an interrupted command again goes on, the line says so.
    """
    try:
        yield
    except (NotAStoreError, UnknownVersionError, CorruptStoreError) as error:
        _fail(error, BAD_STORE)
    except BrokenPipeError:  # who reads has seen enough, and the command ends without a word
        raise
    except (RepauditError, OSError) as error:
        _fail(error, USAGE)
    except KeyboardInterrupt as interrupt:
        notes = "".join(f"; {note}" for note in getattr(interrupt, "__notes__", ()))
        _fail("interrupted" + ("; the same command goes on from here" if goes_on else "") + notes, 130)


class PlainConsole(Console):
    """A console on which names from a store or a file system are text, and never instructions to the terminal.

    Line breaks count as such: a name must not forge a line. An empty line is a call without text.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, soft_wrap=True, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text and markup, with whatever a terminal would obey made visible."""
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    r"""Return the text with escapes for control characters, line breaks, and what turns the direction of writing.

    Examples
    --------
    >>> visible("seed\x1b[2J0")
    'seed\\x1b[2J0'
    """
    return "".join(char.encode("unicode_escape").decode() if _commands(char) else char for char in text)


def _commands(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in _DIRECTIONS


def say(text: str) -> None:
    """Print one line on stdout."""
    typer.echo(visible(text))


def prose(console: Console, text: str | Text) -> None:
    """Print markup or a text; on a terminal its lines break between words, elsewhere they are as long as it is."""
    whole = console.render_str(text, highlight=False) if isinstance(text, str) else text
    for line in _broken(whole, console.width) if console.is_terminal else [whole]:
        console.print(line, soft_wrap=True)


def _broken(text: Text, width: int) -> Iterator[Text]:
    """Break a text between words, with further lines indented as the first; a word that is too long stays whole."""
    indent = " " * (len(text.plain) - len(text.plain.lstrip(" ")))
    line = Text(indent)
    for word in text.split(" "):
        if not word.plain and line.plain == indent:
            continue
        if line.plain != indent and line.cell_len + 1 + word.cell_len > width:
            yield line
            line = Text(indent)
        line = line.append(" ").append_text(word) if line.plain != indent else line.append_text(word)
    yield line


def shortened(name: str, room: int) -> str:
    """Return a dotted name without as many of its first parts as it takes to fit.

    Examples
    --------
    >>> shortened("model.layers.3.mlp", 18), shortened("model.layers.3.mlp", 14), shortened("model.layers.3.mlp", 2)
    ('model.layers.3.mlp', '…layers.3.mlp', '…mlp')
    """
    if len(name) <= room:
        return name
    rest = name
    while len(rest) >= room and "." in rest:
        rest = rest.partition(".")[2]
    return f"…{rest}"


def last_parts(first: str, last: str) -> str:
    """Return a dotted name without the parts in front that it shares with another one.

    Examples
    --------
    >>> last_parts("model.layers.0.mlp", "model.layers.11.mlp")
    '11.mlp'
    """
    pairs = zip_longest(first.split("."), last.split("."))
    return ".".join(theirs for _, theirs in dropwhile(lambda pair: pair[0] == pair[1], pairs) if theirs)


def warn_of_what_is_lost(store: str) -> None:
    """Open a store, and say what of it is read as missing."""
    from repaudit.store.read import catalog
    from repaudit.store.read.reader import open_store

    warn_of_lost(store, catalog.lost(open_store(store)))


def warn_of_lost(store: str, lost: Sequence[str]) -> None:
    """Print one line on stderr that says what of a store is read as missing."""
    if lost:
        what = f"{store}: read as missing, because damaged or lost: {', '.join(lost)} (see repaudit verify --data)"
        PlainConsole(stderr=True).print(f"[bold yellow]warning:[/] {escape(what)}", highlight=False)


def _fail(error: object, code: int) -> None:
    console = PlainConsole(stderr=True)
    console.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", highlight=False)
    for note in getattr(error, "__notes__", ()):
        console.print(f"  {escape(note)}", highlight=False)
    raise typer.Exit(code)


def parse_steps(
    texts: str | Sequence[str] | None, stores: Sequence[str], models: Sequence[str] | str | None = None
) -> list[int] | None:
    """Parse ``0,10,100:200``: single steps, and inclusive ranges of the steps of the chosen models in some stores."""
    text = _joined(texts)
    if text is None:
        return None
    from repaudit.store.read import catalog
    from repaudit.store.read.reader import open_store

    every = [(tree, model) for tree in map(open_store, stores) for model in catalog.models(tree)]
    asked = [models] if isinstance(models, str) else models or ()
    meant = [one for one in every if any(_is_meant(str(text), one[1]) for text in asked)]
    recorded = sorted({step for tree, model in meant or every for step in catalog.steps(tree, model)})
    chosen: list[int] = []
    empty: list[str] = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            if not colon:
                chosen.append(int(first))
                continue
            low, high = int(first or 0), int(last) if last else max(recorded, default=0)
        except ValueError:
            raise typer.BadParameter(f"expected steps like 0,10,100:200, found {text!r}") from None
        within = [step for step in recorded if low <= step <= high]
        chosen += within
        empty += [] if within else [part.strip()]
    if empty:
        known = brief(recorded) or "none"
        raise typer.BadParameter(f"expected recorded steps within {', '.join(empty)}, found {known}")
    return chosen


def brief(words: Sequence[object], most: int = 8) -> str:
    """Return names or numbers in one line: of many the first three, the last, and how many there are.

    Examples
    --------
    >>> brief(range(20))
    '0, 1, 2 ... 19 (20 in all)'
    """
    shown = [str(word) for word in words]
    return ", ".join(shown) if len(shown) <= most else f"{', '.join(shown[:3])} ... {shown[-1]} ({len(shown)} in all)"


def _is_meant(text: str, model: str) -> bool:
    """Return whether a model is asked for by name or pattern, which may have its store's name in front."""
    return bool(matching(text, [model]) or matching(text.partition(":")[2], [model]))


def parse_names(texts: str | Sequence[str] | None) -> list[str] | None:
    """Parse names separated by commas, of an option that may be given several times; a name with a comma is in quotes.

    Examples
    --------
    >>> parse_names(["seed0,seed1", '"a,b"'])
    ['seed0', 'seed1', 'a,b']
    """
    text = _joined(texts)
    if text is None:
        return None
    names = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) or [""]]
    if not all(names):
        raise typer.BadParameter(f"expected names separated by commas, found {text!r}")
    return names


def _joined(texts: str | Sequence[str] | None) -> str | None:
    return texts if isinstance(texts, str) else ",".join(texts) if texts else None
