"""The blocks of a network: where they are, found from its config and its modules, for any architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from torch import nn

from repaudit.capture.extract.base_models import is_pretrained, without_head
from repaudit.capture.extract.module_tree import children, join
from repaudit.capture.extract.wrappers import config_of
from repaudit.errors import LayerPathError


@dataclass(frozen=True)
class Trunk:
    """The part of a network that holds its blocks.

    Parameters
    ----------
    models
        The Hugging Face models around the blocks, the outermost first; those that a forward passes through return the
        outputs of the blocks as ``hidden_states``.
    count
        How many blocks a forward goes through, as the config says; None where it does not.
    lists
        The lists of modules that may be the blocks.
    """

    network: nn.Module
    models: tuple[nn.Module, ...]
    count: int | None
    lists: tuple[_List, ...]

    @property
    def n_states(self) -> int | None:
        """The number of hidden states that its blocks let expect."""
        counts = {_runs(self, part) for part in _largest(self)}
        return counts.pop() + 1 if len(counts) == 1 else None


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network, and how often they run.

    Parameters
    ----------
    path
        Where their list is, from the network on.
    modules
        The blocks by name. Where they are shared, there are fewer than ``count``.
    count
        How many blocks a forward goes through.
    models
        See :class:`Trunk`.
    """

    path: str
    modules: dict[str, nn.Module]
    count: int
    models: tuple[nn.Module, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether a block runs several times in one forward."""
        return len(self.modules) != self.count

    def number(self, depth: Fraction) -> int:
        """Return how many blocks lie above a relative depth: the nearest number, the larger of two equally near.

        Examples
        --------
        >>> blocks = find_blocks(nn.ModuleList(nn.Linear(2, 2) for _ in range(6)), "depth:0.5")
        >>> [blocks.number(Fraction(depth)) for depth in ("0", "0.5", "0.75", "1")]
        [0, 3, 5, 6]
        """
        return floor(depth * self.count + Fraction(1, 2))


@dataclass(frozen=True)
class _List:
    """A list of modules, and the Hugging Face models around it, the outermost first, with their paths."""

    path: str
    modules: dict[str, nn.Module]
    owners: tuple[tuple[str, nn.Module], ...]

    @property
    def owner(self) -> nn.Module | None:
        return self.owners[-1][1] if self.owners else None

    @property
    def size(self) -> int:
        return sum(parameter.numel() for block in self.modules.values() for parameter in block.parameters())


def find_trunk(network: nn.Module, role: str) -> Trunk:
    """Find the part of a network that holds its blocks.

    A network of several parts with blocks of their own (an encoder and a decoder, a text and a vision model) has no
    blocks as a whole: name the part, as in ``encoder.depth:0.5``.

    Parameters
    ----------
    role
        What the blocks are looked for, quoted in errors.

    Raises
    ------
    LayerPathError
        When there is no list of modules, or when several parts could be meant, which are named.

    Examples
    --------
    >>> from transformers import BartConfig, BartModel
    >>> config = BartConfig(vocab_size=16, d_model=8, encoder_layers=2, decoder_layers=2, max_position_embeddings=8,
    ...                     encoder_attention_heads=2, decoder_attention_heads=2)
    >>> find_trunk(BartModel(config), "depth:0.5")
    Traceback (most recent call last):
        ...
    repaudit.errors.LayerPathError: 'depth:0.5': BartModel has several lists of blocks, name the part that is meant: \
'encoder.depth:0.5', 'decoder.depth:0.5'
    """
    start, path = without_head(network)
    lists = tuple(_lists(start, path, ((path, start),) if is_pretrained(start) else ()))
    own = tuple(part for part in lists if part.owner is (start if is_pretrained(start) else None))
    n_owners = len({id(part.owner) for part in lists})
    if n_owners == 1:
        own = lists
    models = tuple(model for _, model in own[0].owners) if own else ()
    count = _count(models or (start,))
    if not lists:
        raise LayerPathError(
            f"{role!r} is found among blocks, and {type(network).__name__} holds no list of modules: name the layer by "
            "its path"
        )
    if n_owners > 1 and not any(len(part.modules) == count for part in own):
        raise _several(role, network, _largest_of_each(lists))
    return Trunk(network, models, count, own)


def find_blocks(network: nn.Module, role: str) -> Blocks:
    """Find the blocks of a network: its list of ``num_hidden_layers`` modules, or else its largest list.

    Raises
    ------
    LayerPathError
        When there is no list of modules, or several that could be meant, which are named.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    >>> blocks = find_blocks(model, "depth:0.5")
    >>> blocks.path, blocks.count, [type(model).__name__ for model in blocks.models]
    ('transformer.h', 2, ['GPT2Model'])
    """
    if isinstance(network, nn.ModuleList | nn.Sequential):
        modules = children(network)
        return Blocks("", modules, len(modules))
    trunk = find_trunk(network, role)
    chosen, *others = _largest(trunk)
    if others:
        raise _several(role, network, [chosen, *others])
    return Blocks(chosen.path, chosen.modules, _runs(trunk, chosen), trunk.models)


def _lists(module: nn.Module, path: str, owners: tuple[tuple[str, nn.Module], ...]) -> Iterator[_List]:
    """Yield the lists of modules below a module, but those inside others."""
    for name, child in children(module).items():
        at = join(path, name)
        if isinstance(child, nn.ModuleList):
            if len(child):
                yield _List(at, children(child), owners)
        else:
            yield from _lists(child, at, (*owners, (at, child)) if is_pretrained(child) else owners)


def _count(models: Sequence[nn.Module]) -> int | None:
    """Return the number of blocks according to the configs of a trunk's models."""
    counts = (getattr(config_of(model), "num_hidden_layers", None) for model in models)
    return next((count for count in counts if isinstance(count, int)), None)


def _largest(trunk: Trunk) -> list[_List]:
    """Return the largest list of the right length, or of any length; several where they are equally large."""
    fitting = [part for part in trunk.lists if len(part.modules) == trunk.count] or trunk.lists
    largest = max(fitting, key=lambda part: part.size)
    beside = [part for part in fitting if _parent(part) == _parent(largest) and part.size >= largest.size / 4]
    if len(beside) > 1:  # attentions beside feed-forward layers: a block has some of each
        return beside
    return [part for part in fitting if part.size == largest.size]


def _parent(part: _List) -> str:
    return part.path.rpartition(".")[0]


def _runs(trunk: Trunk, blocks: _List) -> int:
    """Return how many blocks a forward goes through: more than there are where the config says that they are shared."""
    count, n = trunk.count or 0, len(blocks.modules)
    of_encoder = any(getattr(config_of(model), "is_encoder_decoder", False) for model in trunk.models)
    return count if count > n and count % n == 0 and not of_encoder else n


def _largest_of_each(lists: Sequence[_List]) -> list[_List]:
    owners = {id(part.owner): part.owner for part in lists}
    return [
        max((part for part in lists if part.owner is owner), key=lambda part: part.size) for owner in owners.values()
    ]


def _several(role: str, network: nn.Module, lists: Sequence[_List]) -> LayerPathError:
    paths = [(part.owners[-1][0] if part.owners else "") or part.path for part in lists]
    if len(set(paths)) < len(paths):
        paths = [part.path for part in lists]
    meant = ", ".join(repr(join(path, role)) for path in paths[:6])
    return LayerPathError(
        f"{role!r}: {type(network).__name__} has several lists of blocks, name the part that is meant: {meant}"
    )
