"""What the dims of tensors mean, and which inputs they depend on, followed through the operations of one forward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from repaudit.capture.extract.dim_rules import (
    FEATURES,
    LEARNED,
    LOST,
    PLACES,
    POSITIONS,
    SAMPLES,
    UNKNOWN,
    Atom,
    Dims,
    Operation,
    atom,
    dims_after,
    size_of,
)
from repaudit.capture.extract.layout import SAMPLE, Layout

_SPREADING: Final = frozenset({"expand", "expand_as", "repeat", "tile", "broadcast_to", "repeat_interleave"})


class _Known(NamedTuple):
    """A tensor's dims, the inputs it depends on, and how many learned rows there are that it depends on."""

    tensor: weakref.ref[torch.Tensor]
    dims: Dims | None
    origins: frozenset[str]
    n_learned: frozenset[int]


class DimTracker(TorchFunctionMode):
    """Follow the dims of a forward's inputs: which are samples, positions, and features.

    A linear layer, an embedding and a layer norm put features last, a convolution and a batch norm second; transposed,
    reshaped, added and multiplied tensors take their meanings along. What passes an operation that is not known here
    has none. Rows of parameters that are repeated for each sample are no positions of the inputs.

    Parameters
    ----------
    positions
        Parameters whose rows stand for positions of the inputs also where they are repeated for each sample.

    Examples
    --------
    >>> x = torch.zeros(2, 3, 5)
    >>> with DimTracker() as tracker:
    ...     tracker.start({"x": x}, 2)
    ...     y = torch.relu(torch.nn.functional.conv1d(x, torch.zeros(4, 3, 1)))
    >>> str(tracker.layout_of(y)), str(tracker.layout_of(y.transpose(1, 2)))
    ('sample feature token', 'None')
    >>> sorted(tracker.origins_of(y))
    ['x']
    """

    def __init__(self, positions: Collection[torch.nn.Parameter] = ()) -> None:
        super().__init__()
        self._n = 0
        self._positions = {id(parameter) for parameter in positions}
        self._known: dict[int, _Known] = {}
        self._learned: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}

    def start(self, inputs: Mapping[str, Any], n_samples: int) -> None:
        """Take the first dim of these tensors for the samples, and forget others; on masks nothing depends."""
        self._known.clear()
        self._learned.clear()
        self._n = n_samples
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.ndim and len(value) == n_samples:
                dims = (atom(SAMPLES, n_samples), *(atom(UNKNOWN, size) for size in value.shape[1:]))
                self._keep(value, dims, frozenset() if "mask" in name else frozenset({name}))

    def layout_of(self, tensor: torch.Tensor) -> Layout | None:
        """Return what the dims of a tensor mean, or None where that is not known."""
        dims = self._of(tensor)
        if dims is None:
            return None
        has_features = any(dim and all(label == FEATURES for label, _ in dim) for dim in dims)
        words = [_words(dim, mixed="token" if has_features else "feature") for dim in dims]
        found = tuple(word for word in words if word is not None)
        return _checked(_singles_named(found)) if len(found) == len(dims) else None

    def origins_of(self, tensor: torch.Tensor) -> frozenset[str]:
        """Return the inputs that a tensor depends on; none where that is not known."""
        found = self._found(tensor)
        return frozenset() if found is None else found.origins

    def are_learned(self, tensor: torch.Tensor) -> bool | None:
        """Return whether the tokens of a tensor are learned ones; None where they may be, by their number."""
        found, dims = self._found(tensor), self._of(tensor)
        if found is None:
            return False
        labels = {label for dim in dims or () for label, _ in dim} & PLACES
        if POSITIONS in labels or labels == {LEARNED}:
            return POSITIONS not in labels
        lost = (
            tensor.shape[1:] if dims is None else [size_of(dim) for dim in dims if LOST in {label for label, _ in dim}]
        )
        return None if found.n_learned.intersection(lost) else False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it does to the dims."""
        kwargs = kwargs or {}
        before = [(value, self._of(value)) for value in _tensors((args, kwargs))]
        output = func(*args, **kwargs)
        origins = frozenset[str]().union(*(self.origins_of(value) for value, _ in before))
        values = [value for value, _ in before]
        if not origins and all(dims is None for _, dims in before):
            self._learn(getattr(func, "__name__", ""), values, output)
            return output
        n_learned = frozenset[int]().union(*(found.n_learned for value in values if (found := self._found(value))))
        learned = [value for value in values if self._label(value) is not None]
        if output is None and args and isinstance(args[0], torch.Tensor):  # written into
            self._keep(args[0], self._of(args[0]), origins, n_learned)
        for result in _tensors(output):
            try:
                dims = dims_after(Operation(func, args, kwargs, before, tuple(result.shape), self._n, learned))
            except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError):
                dims = None  # called in a way that is not known here
            self._keep(result, dims, origins, n_learned)
        return output

    def _found(self, tensor: Any) -> _Known | None:
        found = self._known.get(id(tensor))
        return found if found is not None and found.tensor() is tensor else None

    def _of(self, tensor: Any) -> Dims | None:
        found = self._found(tensor)
        dims = None if found is None else found.dims
        return dims if dims is not None and tuple(map(size_of, dims)) == tuple(tensor.shape) else None

    def _keep(
        self, tensor: torch.Tensor, dims: Dims | None, origins: frozenset[str], n_learned: frozenset[int] = frozenset()
    ) -> None:
        if not isinstance(tensor, torch.nn.Parameter):
            rows = {n for dim in dims or () for label, n in dim if label == LEARNED}
            self._known[id(tensor)] = _Known(weakref.ref(tensor), dims, origins, n_learned | rows)

    def _label(self, tensor: torch.Tensor) -> str | None:
        """Return what the rows of a tensor are that is computed from parameters alone; None for other tensors."""
        if isinstance(tensor, torch.nn.Parameter):
            return POSITIONS if id(tensor) in self._positions else LEARNED
        found = self._learned.get(id(tensor))
        return None if found is None or found[0]() is not tensor else found[1]

    def _learn(self, name: str, values: Sequence[torch.Tensor], output: Any) -> None:
        """Note what is computed from parameters alone, and when it is repeated for each sample."""
        labels = [self._label(value) for value in values if value.is_floating_point()]
        if not labels or None in labels:
            return
        label = POSITIONS if POSITIONS in labels else LEARNED
        for result in _tensors(output):
            dims = _repeated(values[0].shape, result.shape, self._n, label) if name in _SPREADING else None
            if dims is None:
                self._learned[id(result)] = weakref.ref(result), label
            else:
                self._keep(result, dims, frozenset())


def _repeated(source: Sequence[int], shape: Sequence[int], n_samples: int, label: str) -> Dims | None:
    """Return the dims of learned rows that are repeated for each sample; None for another repetition.

    Examples
    --------
    >>> _repeated((7, 4), (2, 7, 4), 2, LEARNED)
    ((('s', 2),), (('l', 7),), (('f', 4),))
    """
    before = [1] * (len(shape) - len(source)) + list(source)
    grown = [place for place, size in enumerate(shape) if size != before[place]]
    if len(shape) != 3 or grown not in ([0], [1]) or before[grown[0]] != 1 or shape[grown[0]] != n_samples:
        return None
    labels = (SAMPLES, label, FEATURES) if grown == [0] else (label, SAMPLES, FEATURES)
    return tuple(map(atom, labels, shape))


def _words(dim: tuple[Atom, ...], mixed: str) -> tuple[str, ...] | None:
    """Return the words of a dim; none for one of size 1, and None where it holds what no layout can say.

    Positions beside features are one or the other: frequencies that are flattened are features, tokens that are made
    of some features, where others are left, are tokens.
    """
    known = [POSITIONS if label in PLACES else label for label, _ in dim]
    labels = [label for at, label in enumerate(known) if at == 0 or label != known[at - 1]]
    if UNKNOWN in labels:
        return None
    if SAMPLES in labels:
        words = {SAMPLES: SAMPLE, POSITIONS: "token", FEATURES: "head"}
        return tuple(words[label] for label in labels) if len(labels) <= 2 else None
    if set(labels) == {FEATURES, POSITIONS}:
        return (mixed,)
    return ("feature" if FEATURES in labels else "token",) if labels else ()


def _singles_named(dims: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Take the first dim of size 1 for the only token where there is no other, and the others for heads."""
    named = []
    has_tokens = any("token" in dim for dim in dims)
    for dim in dims:
        named.append(dim or (("head",) if has_tokens else ("token",)))
        has_tokens = has_tokens or not dim
    return tuple(named)


def _checked(dims: tuple[tuple[str, ...], ...]) -> Layout | None:
    words = [word for dim in dims for word in dim]
    return Layout(dims) if words.count(SAMPLE) == 1 and {"feature", "head"} & set(words) else None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
