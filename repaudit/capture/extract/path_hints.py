"""What a layer path that does not resolve may have meant: another prefix, or another spelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Final

from torch import nn

from repaudit.capture.extract.module_tree import children, leads_somewhere, matching, walk
from repaudit.capture.extract.path_grammar import Exact, Part, write_path

_MOST: Final = 3


def did_you_mean(root: nn.Module, parts: Sequence[Part], role: Sequence[Part] = ()) -> str:
    """Return ``"; did you mean ...?"`` with up to three paths that resolve, or an empty text.

    Parameters
    ----------
    parts
        The path that does not resolve.
    role
        What follows it, and is no module: a relative depth, or an entry of the hidden states.

    Examples
    --------
    >>> net = nn.ModuleDict({"body": nn.ModuleList([nn.Linear(2, 2)]), "head": nn.Linear(2, 2)})
    >>> did_you_mean(net, ["model", "head"]), did_you_mean(net, ["model", "body", -1])
    ("; did you mean 'head'?", "; did you mean 'body[-1]'?")
    >>> did_you_mean(net, ["haed"]), did_you_mean(net, ["x"])
    ("; did you mean 'head'?", '')
    """
    found = dict.fromkeys(write_path([*path, *role]) for path in islice(_meant(root, parts, bool(role)), _MOST))
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _meant(root: nn.Module, parts: Sequence[Part], has_role: bool) -> Iterator[list[Part]]:
    """Yield the paths that keep most of this one: less of its beginning, more before it, another spelling."""
    shorter = [list(parts[n:]) for n in range(len(parts) + has_role)]
    fitting = [path for path in shorter[1:] if leads_somewhere(root, path) and not _is_index_alone(path)]
    if fitting:
        yield fitting[0]
        return
    respelled = _respelled(root, parts)
    if respelled is not None:
        yield respelled
        return
    for path in shorter:
        if not path or _is_index_alone(path):
            continue
        longer = [[*_exact(at), *path] for at, part in walk(root) if at and leads_somewhere(part, path)]
        if longer:
            yield from (path for path in longer if len(path) == len(longer[0]))
            return


def _respelled(root: nn.Module, parts: Sequence[Part]) -> list[Part] | None:
    """Return the path with every name that no child has replaced by the closest one, or None."""
    module, spelled = root, []
    for part in parts:
        inner = children(module)
        name = part
        if isinstance(part, str) and not matching(module, part):
            name = next(iter(get_close_matches(part, inner, 1, cutoff=0.7)), part)
        names = matching(module, name)
        if not names:
            return None
        spelled.append(name)
        module = inner[names[0]]
    return spelled


def _exact(path: str) -> list[Part]:
    return [Exact(name) for name in path.split(".")]


def _is_index_alone(path: Sequence[Part]) -> bool:
    return bool(path) and not any(isinstance(part, str) for part in path)
