"""What the dims of tensors mean, and which inputs they depend on, followed through the operations of one forward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from repaudit.capture.extract.dim_rules import (
    FEATURES,
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


class DimTracker(TorchFunctionMode):
    """Follow the dims of a forward's inputs: which are samples, positions, and features.

    A linear layer, an embedding and a layer norm put features last, a convolution and a batch norm second; transposed,
    reshaped, added and multiplied tensors take their meanings along. What passes an operation that is not known here
    has none.

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

    def __init__(self) -> None:
        super().__init__()
        self._n = 0
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], Dims | None, frozenset[str]]] = {}

    def start(self, inputs: Mapping[str, Any], n_samples: int) -> None:
        """Take the first dim of these tensors for the samples, and forget others; on masks nothing depends."""
        self._known.clear()
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
        found = self._known.get(id(tensor))
        return frozenset() if found is None or found[0]() is not tensor else found[2]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it does to the dims."""
        kwargs = kwargs or {}
        before = [(value, self._of(value)) for value in _tensors((args, kwargs))]
        output = func(*args, **kwargs)
        origins = frozenset[str]().union(*(self.origins_of(value) for value, _ in before))
        if not origins and all(dims is None for _, dims in before):
            return output
        if output is None and args and isinstance(args[0], torch.Tensor):  # written into
            self._keep(args[0], self._of(args[0]), origins)
        for result in _tensors(output):
            try:
                dims = dims_after(Operation(func, args, kwargs, before, tuple(result.shape), self._n))
            except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError):
                dims = None  # called in a way that is not known here
            self._keep(result, dims, origins)
        return output

    def _of(self, tensor: Any) -> Dims | None:
        found = self._known.get(id(tensor))
        if found is None or found[0]() is not tensor or not isinstance(tensor, torch.Tensor):
            return None
        dims = found[1]
        return dims if dims is not None and tuple(map(size_of, dims)) == tuple(tensor.shape) else None

    def _keep(self, tensor: torch.Tensor, dims: Dims | None, origins: frozenset[str]) -> None:
        if not isinstance(tensor, torch.nn.Parameter):
            self._known[id(tensor)] = weakref.ref(tensor), dims, origins


def _words(dim: tuple[Atom, ...], mixed: str) -> tuple[str, ...] | None:
    """Return the words of a dim; none for one of size 1, and None where it holds what no layout can say.

    Positions beside features are one or the other: frequencies that are flattened are features, tokens that are made
    of some features, where others are left, are tokens.
    """
    labels = [label for at, (label, _) in enumerate(dim) if at == 0 or label != dim[at - 1][0]]
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
