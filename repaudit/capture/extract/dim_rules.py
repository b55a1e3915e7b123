"""What operations do to the meaning of dims: which results have which, given those of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeAlias

import torch

SAMPLES, POSITIONS, FEATURES, UNKNOWN = "s", "p", "f", "?"
LEARNED, LOST = "l", "x"
"""Positions of parameters that are repeated for each sample, as learned queries, and ones of an unknown source."""
PLACES: Final = frozenset({POSITIONS, LEARNED, LOST})
Atom: TypeAlias = tuple[str, int]
Dims: TypeAlias = tuple[tuple[Atom, ...], ...]
"""For each dim what it is a product of, the slowest first; nothing for a dim of size 1."""


@dataclass(frozen=True)
class Operation:
    """A call of an operation, and the shape of one of its results.

    Parameters
    ----------
    func, args, kwargs
        The call.
    tensors
        The tensors among its arguments, each with its dims where they are known.
    shape
        The result's.
    n_samples
        How many samples there are.
    learned
        The tensors among its arguments that are computed from parameters alone.
    """

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    tensors: Sequence[tuple[torch.Tensor, Dims | None]]
    shape: tuple[int, ...]
    n_samples: int
    learned: Sequence[torch.Tensor] = ()

    @property
    def name(self) -> str:
        """The operation's name."""
        name = str(getattr(self.func, "__name__", ""))
        is_property = name == "__get__"
        return str(getattr(getattr(self.func, "__self__", None), "__name__", name)) if is_property else name

    @property
    def first(self) -> Dims | None:
        """The dims of the first tensor."""
        return self.tensors[0][1]

    @property
    def anchored(self) -> Dims | None:
        """The dims of the first tensor; where an operation lost them, as many rows as samples are the samples."""
        shape = self.tensors[0][0].shape
        if self.first is not None or len(shape) < 2 or shape[0] != self.n_samples:
            return self.first
        return (atom(SAMPLES, shape[0]), *(atom(UNKNOWN, size) for size in shape[1:]))


def dims_after(operation: Operation) -> Dims | None:
    """Return the dims of an operation's result, or None where they are not known.

    Examples
    --------
    >>> x = torch.zeros(2, 3, 5)
    >>> dims = (((SAMPLES, 2),), ((POSITIONS, 3),), ((FEATURES, 5),))
    >>> dims_after(Operation(torch.transpose, (x, 1, 2), {}, [(x, dims)], (2, 5, 3), 2))
    ((('s', 2),), (('f', 5),), (('p', 3),))
    """
    return _RULES.get(operation.name, _alike)(operation)


def atom(label: str, size: int) -> tuple[Atom, ...]:
    """Return a dim of one meaning."""
    return () if size == 1 else ((label, size),)


def size_of(dim: tuple[Atom, ...]) -> int:
    """Return the size of a dim."""
    return prod(size for _, size in dim)


def _as_positions(dims: Iterable[tuple[Atom, ...]], label: str = POSITIONS) -> Dims:
    """Return dims, positions for what had no meaning."""
    return tuple(tuple((label if known == UNKNOWN else known, n) for known, n in dim) for dim in dims)


def _embedded(op: Operation) -> Dims | None:
    ids = next((dims for value, dims in op.tensors if dims is not None and not value.is_floating_point()), None)
    return None if ids is None else (*_as_positions(ids), atom(FEATURES, op.shape[-1]))


def _features_last(op: Operation) -> Dims | None:
    first = op.anchored
    if first is None:
        return None
    last = first[-1]
    is_kept = bool(last) and size_of(last) == op.shape[-1] and all(label == FEATURES for label, _ in last)
    positions = _as_positions(first[:-1], LOST if op.first is None else POSITIONS)
    return (*positions, last if is_kept else _mixed(last, op.shape[-1]))


def _mixed(dim: tuple[Atom, ...], size: int) -> tuple[Atom, ...]:
    """Return what a dim becomes by a matrix of weights: positions that are mixed are positions, others features."""
    are_positions = bool(dim) and all(label in PLACES for label, _ in dim)
    return atom(dim[0][0] if are_positions else FEATURES, size)


def _features_second(op: Operation) -> Dims | None:
    first = op.anchored
    if first is None or len(first) < 2:
        return None
    second = _mixed(first[1], op.shape[1])
    if second and second[0][0] in PLACES and any(label == FEATURES for dim in first[2:] for label, _ in dim):
        return _resized((first[0], second, *first[2:]), op.shape)  # mixes tokens, feature by feature
    label = LOST if op.first is None else POSITIONS
    kinds = [dim[0][0] if dim and dim[0][0] in PLACES else label for dim in first[2:]]
    return (*_as_positions(first[:1]), atom(FEATURES, op.shape[1]), *map(atom, kinds, op.shape[2:]))


def _recurrent(op: Operation) -> Dims | None:
    if op.first is None or len(op.first) != 3 or op.shape[:2] != tuple(op.tensors[0][0].shape[:2]):
        return None
    return (*_as_positions(op.first[:2]), atom(FEATURES, op.shape[2]))


def _permuted(op: Operation) -> Dims | None:
    """Permute the meanings as the operation permutes a tensor whose dims all differ in size."""
    if op.first is None:
        return None
    example = torch.empty(list(range(2, 2 + len(op.first))), device="meta")
    return tuple(op.first[size - 2] for size in op.func(example, *op.args[1:], **op.kwargs).shape)


def _regrouped(op: Operation) -> Dims | None:
    """Group the parts of all dims, in their order, into dims of the result's sizes."""
    if op.first is None:
        return None
    waiting = [part for dim in op.first for part in dim][::-1]
    dims = []
    for size in op.shape:
        taken, left = [], size
        while left > 1 and waiting:
            label, n = waiting.pop()
            if n > left and n % left == 0:
                waiting.append((label, n // left))
                n = left
            if left % n:
                return None
            taken.append((label, n))
            left //= n
        if left > 1:
            return None
        dims.append(tuple(taken))
    return None if waiting else tuple(dims)


def _indexed(op: Operation) -> Dims | None:
    index = op.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if op.first is None or any(isinstance(part, torch.Tensor | list | bool) for part in parts):
        return None
    used = sum(part is not None and part is not Ellipsis for part in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts[at : at + 1] = [slice(None)] * (len(op.first) - used)
    rest = iter(op.first)
    dims = [() if part is None else next(rest) for part in parts]
    return _resized([dim for dim, part in zip(dims, parts, strict=True) if not isinstance(part, int)], op.shape)


def _resized(dims: Sequence[tuple[Atom, ...]], shape: Sequence[int]) -> Dims | None:
    """Return the dims at new sizes, where each that changes has one meaning."""
    found = []
    for dim, size in zip(dims, shape, strict=True):
        labels = {label for label, _ in dim}
        if size_of(dim) == size:
            found.append(dim)
        elif len(labels) == 1 and SAMPLES not in labels:
            found.append(atom(labels.pop(), size))
        else:
            return None
    return tuple(found)


def _product(op: Operation) -> Dims | None:
    (left, rows), (right, columns) = op.tensors[-2:]
    if rows is not None and columns is not None:
        return (*rows[:-1], columns[-1]) if len(rows) == len(op.shape) > 1 else None
    if rows is not None and right.ndim == 2 and len(rows) == len(op.shape) > 1:
        return (*_as_positions(rows[:-1]), _mixed(rows[-1], op.shape[-1]))
    if columns is not None and left.ndim == 2 and len(columns) == len(op.shape) > 1:
        return (*columns[:-2], _mixed(columns[-2], op.shape[-2]), columns[-1])
    return None


def _einsum(op: Operation) -> Dims | None:
    inputs, _, output = str(op.args[0]).replace(" ", "").partition("->")
    terms = list(zip(inputs.split(","), op.tensors, strict=True))
    letters = {
        letter: dims[place] for term, (_, dims) in terms if dims is not None for place, letter in enumerate(term)
    }
    summed = [dim for letter, dim in letters.items() if letter not in output]
    sizes = {letter: value.shape[place] for term, (value, _) in terms for place, letter in enumerate(term)}
    new = [letter for letter in output if letter not in letters]
    if new and (len(summed) != 1 or len(new) > 1):
        return None
    return tuple(letters[letter] if letter in letters else _mixed(summed[0], sizes[letter]) for letter in output)


def _stacked(op: Operation) -> Dims | None:
    """Return the dims of a stack: rows of features that are stacked are positions, as the states of a loop."""
    known = [dims for _, dims in op.tensors]
    if any(dims is None or len(dims) != 2 or {label for label, _ in dims[1]} != {FEATURES} for dims in known):
        return None
    place = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else 0) % len(op.shape)
    first = list(known[0] or ())
    return (*first[:place], atom(POSITIONS, op.shape[place]), *first[place:])


def _repeated(op: Operation) -> Dims | None:
    return _alike(op) if op.first is not None and len(op.first) == len(op.shape) else None


def _attended(op: Operation) -> Dims | None:
    return None if op.first is None else (*op.first[:-1], atom(FEATURES, op.shape[-1]))


def _attended_by_heads(op: Operation) -> Dims | None:
    return op.first if op.first is not None and tuple(map(size_of, op.first)) == op.shape else None


def _unfolded(op: Operation) -> Dims | None:
    if op.first is None or len(op.first) != 4 or len(op.shape) != 3:
        return None
    return (op.first[0], atom(FEATURES, op.shape[1]), atom(POSITIONS, op.shape[2]))


def _reduced(op: Operation) -> Dims | None:
    if op.first is not None and len(op.first) == len(op.shape):
        return _alike(op)
    given = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else None)
    if op.first is None or given is None or isinstance(given, torch.Tensor):
        return None
    gone = {at % len(op.first) for at in (given if isinstance(given, tuple | list) else (given,))}
    return tuple(dim for at, dim in enumerate(op.first) if at not in gone)


def _unbound(op: Operation) -> Dims | None:
    place = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else 0)
    return None if op.first is None else tuple(d for at, d in enumerate(op.first) if at != place % len(op.first))


def _lost(_: Operation) -> Dims | None:
    return None


def _alike(op: Operation) -> Dims | None:
    """Return the dims of an operation that keeps their order, as sums and poolings do."""
    candidates = [dims for _, dims in op.tensors if dims is not None and len(dims) == len(op.shape)]
    found = []
    for place, size in enumerate(op.shape):
        dim = _common([dims[place] for dims in candidates], size) or _from_learned(op, place)
        if dim is None:
            return None
        found.append(dim)
    return tuple(found) if candidates else None


def _from_learned(op: Operation, place: int) -> tuple[Atom, ...] | None:
    """Return the dim that single rows get where learned ones are added to them; nothing for one of size 1."""
    size, at = op.shape[place], place - len(op.shape)
    if size == 1:
        return ()
    if at == -1 or any(dims is not None and dims[place] for _, dims in op.tensors if len(dims or ()) == len(op.shape)):
        return None
    return atom(LEARNED, size) if any(-at <= value.ndim and value.shape[at] == size for value in op.learned) else None


def _joined(op: Operation) -> Dims | None:
    """Return the dims of tensors one behind another: learned rows beside others are no longer learned ones alone."""
    dims = _alike(op)
    if dims is None or all(known == op.tensors[0][1] and known is not None for _, known in op.tensors):
        return dims
    are_all = all(any(label == LEARNED for dim in known or () for label, _ in dim) for _, known in op.tensors)
    return dims if are_all else tuple(tuple((LOST if label == LEARNED else label, n) for label, n in d) for d in dims)


def _common(dims: Sequence[tuple[Atom, ...]], size: int) -> tuple[Atom, ...] | None:
    """Return what several tensors say of one dim of their result; None where they say different things.

    Positions of the inputs go before learned ones, which are added to them, and both before those of unknown source.
    """
    dims = sorted(
        dims, key=lambda dim: max(((POSITIONS, LEARNED, LOST).index(x) for x, _ in dim if x in PLACES), default=0)
    )
    fitting = [dim for dim in dims if size_of(dim) == size]
    told = [dim for dim in fitting if all(label != UNKNOWN for label, _ in dim)] or fitting
    if any(_meanings(dim) != _meanings(told[0]) for dim in told):
        return None
    resized = (_resized([dim], [size]) for dim in dims)
    return told[0] if told else next((found[0] for found in resized if found is not None), None)


def _meanings(dim: tuple[Atom, ...]) -> set[str]:
    return {POSITIONS if label in PLACES else label for label, _ in dim}


_RULES: Final[dict[str, Callable[[Operation], Dims | None]]] = {
    "embedding": _embedded,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attended,
    "multi_head_attention_forward": _attended_by_heads,
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    "unfold": _unfolded,
    "__getitem__": _indexed,
    **dict.fromkeys(("linear", "bilinear", "layer_norm", "rms_norm"), _features_last),
    **dict.fromkeys([f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)], _features_second),
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm"), _features_second),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(
        ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "transpose_"), _permuted
    ),
    **dict.fromkeys(("T", "mT", "H", "mH", "adjoint"), _permuted),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as", "ravel"), _regrouped),
    **dict.fromkeys(("squeeze", "unsqueeze", "squeeze_", "unsqueeze_"), _regrouped),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "norm", "var", "std", "logsumexp"), _reduced),
    **dict.fromkeys(("repeat", "tile", "repeat_interleave"), _repeated),
    **dict.fromkeys(("cdist", "kron", "outer", "tensordot", "rot90"), _lost),
    "stack": _stacked,
    **dict.fromkeys(("unbind", "select"), _unbound),
}
"""By the names of operations; all others keep the order of dims, or their results have no known dims."""
