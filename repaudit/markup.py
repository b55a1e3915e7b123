"""Tables of text for terminals and notebooks: names are shown literally, whatever is in them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

MOST_ROWS: Final = 20
"""A table of more rows is cut, and says so."""

_STYLE: Final = "text-align:left;padding:0.1em 0.8em 0.1em 0"

Rows = Sequence[Sequence[str]]


def printable(text: str) -> str:
    r"""Return a text with control and direction characters as escapes.

    Examples
    --------
    >>> printable("a\nb")
    'a\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_table(caption: str, header: Sequence[str], rows: Rows) -> str:
    """Return a table for a terminal.

    Examples
    --------
    >>> print(text_table("2 models", ("model", "steps"), [("seed0", "4"), ("a", "12")]))
    2 models
      model  steps
      seed0  4
      a      12
    """
    shown = [[printable(cell) for cell in row] for row in ([header] if header else []) + list(rows[:MOST_ROWS])]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in shown]
    return "\n".join([printable(caption), *lines, *_cut(rows, "  ")])


def html_table(caption: str, header: Sequence[str], rows: Rows) -> str:
    """Return a table for a notebook: every cell escaped, no script, nothing loaded.

    Examples
    --------
    >>> "<b>" in html_table("<b>", ("model",), [("<b>",)])
    False
    """
    head = f"<thead><tr>{_cells('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows[:MOST_ROWS])
    more = "".join(f"<div>{escape(line)}</div>" for line in _cut(rows, ""))
    return (
        f'<div class="repaudit"><strong>{escape(printable(caption))}</strong>'
        f"<table>{head}<tbody>{body}</tbody></table>{more}</div>"
    )


def _cells(tag: str, cells: Sequence[str]) -> str:
    return "".join(f'<{tag} style="{_STYLE}">{escape(printable(cell))}</{tag}>' for cell in cells)


def _cut(rows: Rows, indent: str) -> list[str]:
    return [f"{indent}... and {len(rows) - MOST_ROWS} more"] if len(rows) > MOST_ROWS else []
