"""Layers named by their role: at a relative depth, or as an entry of the model's own hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from torch import nn

from repaudit.capture.extract.blocks import Blocks, Trunk, find_blocks, find_trunk
from repaudit.capture.extract.layer import Layer, StatesEntry
from repaudit.capture.extract.layer_spec import LayerSpec
from repaudit.capture.extract.module_tree import join
from repaudit.capture.extract.path_grammar import Depth, Part, write_path
from repaudit.errors import LayerPathError

HIDDEN_STATES: Final = "hidden_states"


def split_role(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Split the parts of a path into those that name modules, and a role at their end, if any.

    Examples
    --------
    >>> split_role(["encoder", "hidden_states", -1]), split_role(["encoder", "layer", -1])
    ((['encoder'], ['hidden_states', -1]), (['encoder', 'layer', -1], []))
    """
    n_role = 0
    if isinstance(parts[-1], Depth) or parts[-1] == HIDDEN_STATES:
        n_role = 1
    elif parts[-2:-1] == [HIDDEN_STATES] and isinstance(parts[-1], int | slice):
        n_role = 2
    return list(parts[: len(parts) - n_role]), list(parts[len(parts) - n_role :])


def in_role(path: str, network: nn.Module, role: Sequence[Part], spec: LayerSpec) -> list[Layer]:
    """Return the layers of a network, which is at ``path``, that have a role.

    Raises
    ------
    LayerPathError
        When the network has no blocks, several lists of them, or no such entry.

    Examples
    --------
    >>> from fractions import Fraction
    >>> net = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(4))})
    >>> [layer] = in_role("", net, [Depth(Fraction("0.5"))], LayerSpec("depth:0.5"))
    >>> layer.name, layer.path
    ('depth:0.5', 'layers.1')
    """
    text = write_path(role)
    if spec.extraction_point == "input" or (isinstance(role[0], Depth) and spec.extraction_point != "output"):
        raise LayerPathError(
            f"layer path {spec.path!r} says itself what is recorded: leave out extraction_point="
            f"{spec.extraction_point!r}, or name the layer by its path"
        )
    if role == [HIDDEN_STATES]:
        raise LayerPathError(
            f"layer path {spec.path!r}: expected an index behind hidden_states, such as [0], [-1] or [*]"
        )
    if isinstance(role[0], Depth):
        return [_at_depth(path, find_blocks(network, text), role[0], spec)]
    trunk = find_trunk(network, text)
    if not trunk.models:
        raise LayerPathError(
            f"layer path {spec.path!r}: hidden_states are those of a Hugging Face model, and "
            f"{type(network).__name__} is none and holds none: name a layer by its path or by its relative depth"
        )
    named = replace(spec, extraction_point="output")  # the path says that it is an entry of the hidden states
    return [_states(named.name_for, path, entry, spec) for entry in _entries(trunk, role[1], spec.path)]


def _at_depth(path: str, blocks: Blocks, depth: Depth, spec: LayerSpec) -> Layer:
    name, number = spec.name_for(join(path, str(depth))), blocks.number(depth.value)
    if blocks.shared and blocks.models:  # its hook would fire for every one
        return _states(lambda _: name, path, StatesEntry(number, blocks.count + 1, blocks.models), spec)
    block = list(blocks.modules)[max(number - 1, 0)]
    where = ".".join(part for part in (path, blocks.path, block) if part)
    return Layer(name, where, blocks.modules[block], spec, "output" if number else "input")


def _entries(trunk: Trunk, index: Part, path: str) -> list[StatesEntry]:
    if isinstance(index, int) and index >= 0:
        return [StatesEntry(index, models=trunk.models)]
    n_states, name = trunk.n_states, type(trunk.models[0]).__name__
    if n_states is None:
        raise LayerPathError(f"layer path {path!r}: {name} does not say how many hidden_states it has: count from 0")
    numbers = range(n_states)
    chosen = list(numbers[index]) if isinstance(index, slice) else [i for i in numbers if i - n_states == index]
    if not chosen:
        raise LayerPathError(f"layer path {path!r} matches no layer: {name} has {n_states} hidden_states")
    return [StatesEntry(i, n_states, trunk.models) for i in chosen]


def _states(name_for: Callable[[str], str], path: str, entry: StatesEntry, spec: LayerSpec) -> Layer:
    where = join(path, f"{HIDDEN_STATES}.{entry.index}")
    return Layer(name_for(where), where, entry.models[-1], spec, "hidden_states", entry)
