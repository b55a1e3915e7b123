"""Completion of the names that a store holds, for shells."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Final

import typer

_STORES = ("stores", "store", "source")
"""What commands call the stores that they read."""

_PLAIN: Final = frozenset("_./:@%+=,-")
"""Beside letters and digits, what no shell takes for more than itself, once a word has begun."""


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the models of the stores on the command line, behind the commas of a list."""
    return _completed(incomplete, _held(ctx, lambda catalog, tree: catalog.models(tree)))


def layers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the layers of the model on the command line, or of all models, behind the commas of a list."""

    def of(catalog: Any, tree: Any) -> list[str]:
        model = ctx.params.get("model")
        return [name for one in ([model] if model else catalog.models(tree)) for name in catalog.layers(tree, one)]

    return _completed(incomplete, _held(ctx, of))


def _held(ctx: typer.Context, names: Callable[[Any, Any], Iterable[str]]) -> list[str]:
    """Return names that the stores hold; none where one cannot be read, since a shell shows no errors."""
    from repaudit.errors import RepauditError
    from repaudit.store.read import catalog
    from repaudit.store.read.reader import open_store

    # of a list of stores that an option follows, the words are left over
    given = next((ctx.params[name] for name in _STORES if ctx.params.get(name)), ctx.args)
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a shell shows no warnings either, least of all with a stranger's names
        for store in [given] if isinstance(given, str) else given:
            try:
                found += names(catalog, open_store(store))
            except (RepauditError, OSError):
                continue
    return list(dict.fromkeys(found))


def _completed(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, begun = incomplete.rpartition(",")
    chosen = before.split(",")
    words = [f"{before}{comma}{name}" for name in names if name.startswith(begun) and name not in chosen]
    return [word for word in words if _is_plain(word)]


def _is_plain(word: str) -> bool:
    """Return whether every shell takes a word as it is: completions go onto the command line without quotes.

    What a name of another's store would start there, such as ``$(...)``, must not be offered. A pattern can name it.
    """
    letters = all(char in _PLAIN or unicodedata.category(char)[0] in "LMN" for char in word)
    return letters and (word[:1].isalnum() or word[:1] in {"_", ".", "/"})
