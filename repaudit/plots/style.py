"""How results look, whatever draws them: colours, markers, the axis of steps, groups of labels, lines of text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from repaudit.markup import printable
from repaudit.names import in_natural_order
from repaudit.results import FROM_INPUTS, FROM_UNTRAINED, SPREAD

VERDICTS: Final = {
    "converging": "#0f7fc0",
    "diverging": "#d55e00",
    "unrelated": "#b0609a",
    "unchanged": "#6f7780",
    "undecided": "#8a8f96",
}
"""Colour of each verdict in figures; each keeps a contrast of 3 or more on white and on near-black."""

VERDICT_WORDS: Final = {
    "converging": ("#0b6aa2", "#3d9fda"),
    "diverging": ("#ad4c00", "#e0761f"),
    "unrelated": ("#984a83", "#c98ab7"),
    "unchanged": ("#5f676f", "#a3abb3"),
    "undecided": ("#696e75", "#949aa1"),
}
"""Colours of each verdict as a word, on white and on near-black: a contrast of 4.5 or more (WCAG AA)."""

VERDICT_OF: Final = {"falls": "converging", "rises": "diverging", "flat": "unchanged"}
"""The verdict that each phase of a spread curve would give alone, and the colours of the phases."""
DIRECTIONS: Final = {direction: VERDICTS[verdict] for direction, verdict in VERDICT_OF.items()}

LABEL_COLORS: Final = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"),
    *("#56b4e9", "#999933", "#a0446a", "#44aa99", "#8c6bb1"),
)
"""Colours that stay apart for colour-blind readers (after Okabe and Ito, and Tol)."""

OTHER: Final = "#9aa0a6"
MATPLOTLIB_MARKERS: Final = (
    *("o", "s", "D", "^", "v", "P", "X", "*"),
    *("<", ">", "p", "h", "d", (4, 1, 0), (6, 1, 0), "8"),
)
PLOTLY_SYMBOLS: Final = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"),
    *("triangle-left", "triangle-right", "pentagon", "hexagon2", "diamond-tall", "star-diamond", "hexagram", "octagon"),
)
"""Markers of models, in their order, the same in both; the first eight stand for groups of labels too."""
STEP_COLORS: Final = ("#6a4ba3", "#4a64a8", "#2a788e", "#22a884", "#5ec962", "#a5db36")
"""Early to late: viridis with less extreme ends, which would vanish on black and on white."""
DEPTH_COLORS: Final = ("#7350c8", "#9a46bd", "#c03a83", "#e06a52", "#e0912a")
"""First to last layer: another sequence, so that depth is not mistaken for time."""


SPREAD_COLORS: Final = (VERDICTS["converging"], "#e9e6df", VERDICTS["diverging"])
"""Spread from 0 (identical) to 1 (unrelated): the same hues as the verdicts that end there."""


SIMILARITY_COLORS: Final = ("#14305c", "#3f4c6b", "#6b6d6f", "#97906f", "#c8b45f", "#f5dc4d")
"""Similarity from 0 to 1: one hue to another over growing lightness, the same for colour-blind readers (cividis)."""

COMPARISONS: Final = {FROM_UNTRAINED: "#17997a", FROM_INPUTS: "#4a8fc2"}
"""Colours of the distances from the untrained networks and from the inputs, different from those of all depths."""
MATPLOTLIB_DASHES: Final = {SPREAD: (0, ()), FROM_UNTRAINED: (0, (4, 2)), FROM_INPUTS: (0, (1, 1.5))}
PLOTLY_DASHES: Final = {SPREAD: "solid", FROM_UNTRAINED: "dash", FROM_INPUTS: "dot"}


DENSE: Final = 60
"""Curves over more steps than this have no markers."""


@dataclass(frozen=True)
class StepAxis:
    """An axis of training steps: linear, or asinh(step / unit) where the steps are spaced like logarithms.

    asinh is linear near 0 and logarithmic far from it, so that step 0 has its place on the axis; ``unit`` is the
    smallest step above 0.

    Examples
    --------
    >>> StepAxis.of([0, 10, 20, 30]).log, StepAxis.of([0, 1, 2, 4, 8, 16, 32]).log
    (False, True)
    """

    steps: tuple[int, ...]
    log: bool
    unit: float

    @classmethod
    def of(cls, steps: ArrayLike) -> StepAxis:
        """Choose the axis on which the gaps between these steps are more even."""
        known = np.unique(np.asarray(steps, dtype=np.int64))
        positive = known[known > 0]
        unit = float(positive[0]) if positive.size else 1.0
        linear, logarithmic = np.diff(known.astype(float)), np.diff(np.arcsinh(known / unit))
        log = known.size > 3 and _unevenness(logarithmic) < 0.8 * _unevenness(linear)
        return cls(tuple(int(step) for step in known), bool(log), unit)

    def position(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Return where these steps lie on the axis."""
        values = np.asarray(steps, dtype=np.float64)
        return np.arcsinh(values / self.unit) if self.log else values

    def fraction(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Return where these steps lie between the first (0) and the last (1)."""
        if not self.steps or self.steps[0] == self.steps[-1]:
            return np.zeros(np.shape(steps))
        first, last = self.position([self.steps[0], self.steps[-1]])
        return np.asarray((self.position(steps) - first) / (last - first))

    def growth(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Return the same as the share of the largest size of a point, which that of a single step has."""
        return np.ones(np.shape(steps)) if len(set(self.steps)) < 2 else self.fraction(steps)

    @property
    def title(self) -> str:
        """What the axis is called."""
        return "step (log scale)" if self.log else "step"

    @property
    def dense(self) -> bool:
        """Whether there are too many steps to mark each of them."""
        return len(self.steps) > DENSE

    def edges(self) -> NDArray[np.float64]:
        """Return the bounds of cells around the steps, one more than there are steps, halfway between neighbours."""
        where = self.position(self.steps)
        if len(where) < 2:
            return np.array([where[0] - 0.5, where[0] + 0.5]) if len(where) else where
        between = (where[1:] + where[:-1]) / 2
        return np.array([2 * where[0] - between[0], *between, 2 * where[-1] - between[-1]])

    def ticks(self, count: int = 7) -> list[int]:
        """Return at most ``count`` ticks: the steps, where they are few or spaced like logarithms, else round numbers.

        Examples
        --------
        >>> StepAxis.of([0, 1, 2, 4, 8, 16, 32, 64]).ticks(4), StepAxis.of(range(0, 995, 5)).ticks(6)
        ([0, 2, 16, 64], [0, 200, 400, 600, 800])
        """
        if len(self.steps) <= 2:
            return list(self.steps)
        if not self.log and len(self.steps) > count:
            values = MaxNLocator(count - 1, integer=True).tick_values(self.steps[0], self.steps[-1])
            return [int(tick) for tick in values if self.steps[0] <= tick <= self.steps[-1]]
        where, gap = self.fraction(self.steps), 1 / max(1, count - 1)
        nearest = {int(np.abs(where - k * gap).argmin()) for k in range(1, count - 1)}
        chosen = [0]
        for index in sorted(nearest):
            if min(where[index] - where[chosen[-1]], 1 - where[index]) > 0.6 * gap:
                chosen.append(index)
        return [self.steps[index] for index in [*chosen, len(self.steps) - 1]]


def _unevenness(gaps: NDArray[np.float64]) -> float:
    return float(gaps.std() / gaps.mean()) if gaps.size else 0.0


@dataclass(frozen=True)
class LabelGroup:
    """Samples drawn alike: those of one label, or of all labels too rare for a separate colour."""

    name: str
    index: NDArray[np.int64]
    color: str
    marker: int


def label_groups(labels: Sequence[str] | None, n_samples: int) -> list[LabelGroup]:
    """Group samples by label; the twenty most frequent labels have different colours or markers.

    Examples
    --------
    >>> [(group.name, len(group.index)) for group in label_groups(["b", "a", "b"], 3)]
    [('b', 2), ('a', 1)]
    """
    everything = np.arange(n_samples)
    counts = Counter(labels or [])
    if len(counts) <= 1 or len(counts) == n_samples:
        return [LabelGroup(f"{n_samples} samples", everything, LABEL_COLORS[0], 0)]
    most = 2 * len(LABEL_COLORS)
    ranked = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], in_natural_order(item[0])))]
    names = np.asarray(labels, dtype=object)
    groups = [
        LabelGroup(name, np.flatnonzero(names == name), LABEL_COLORS[i % 10], 2 * (i // 10))
        for i, name in enumerate(ranked[:most])
    ]
    rest = ranked[most:]
    if rest:
        groups.insert(0, LabelGroup(f"{len(rest)} other labels", np.flatnonzero(np.isin(names, rest)), OTHER, 0))
    return groups


def blend(colors: Sequence[str], fraction: float) -> str:
    """Return the colour at a fraction, 0 to 1, of a sequence of colours.

    Examples
    --------
    >>> blend(["#000000", "#ffffff"], 0.5)
    '#808080'
    """
    rgb = np.array([[int(color[k : k + 2], 16) for k in (1, 3, 5)] for color in colors], dtype=float)
    where = np.linspace(0, 1, len(colors))
    return "#" + "".join(f"{round(float(np.interp(fraction, where, rgb[:, k]))):02x}" for k in range(3))


def depth_color(index: int, count: int) -> str:
    """Return the colour of the layer ``index`` of ``count``, in the order of the results."""
    return blend(DEPTH_COLORS, index / (count - 1) if count > 1 else 0.0)


def group_color(group: int, other: int) -> str:
    """Return the colour of a group of models, or of a pair of groups: the mean of the two colours.

    Examples
    --------
    >>> group_color(0, 0), group_color(0, 1) == group_color(1, 0)
    ('#0072b2', True)
    """
    first, second = (LABEL_COLORS[index % len(LABEL_COLORS)] for index in (group, other))
    return blend([first, second], 0.5)


def translucent(color: str, opacity: float) -> str:
    """Return a colour with an opacity, as CSS and plotly write it.

    Examples
    --------
    >>> translucent("#0f7fc0", 0.25)
    'rgba(15,127,192,0.25)'
    """
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def visible(text: str, limit: int | None = None) -> str:
    r"""Return a text with control and direction characters as escapes, cut in the middle if longer than ``limit``.

    Examples
    --------
    >>> visible("a\nb", None), visible("model.layers.12.mlp", 11)
    ('a\\nb', 'model…2.mlp')
    """
    shown = printable(text)
    if limit is None or len(shown) <= limit:
        return shown
    half = (limit - 1) // 2
    return f"{shown[: limit - 1 - half]}…{shown[-half:]}"


def shortened(names: Sequence[str], limit: int) -> list[str]:
    """Return names of at most ``limit`` characters: without the parts that all share, where any is longer, then cut.

    Parts are what dots separate. Names are cut where this leaves most of them different, as near to their middle as
    possible.

    Examples
    --------
    >>> shortened([f"base_model.model.model.layers.{k}.self_attn.o_proj" for k in (0, 11)], 24)
    ['…layers.0…', '…layers.11…']
    """
    shown = [visible(name) for name in names]
    if all(len(name) <= limit for name in shown):
        return shown
    bare = _without_shared_parts(shown)
    middle = limit // 2
    heads = sorted(range(limit), key=lambda head: abs(head - middle))
    cuts = [[_cut(name, head, limit) for name in bare] for head in heads]
    return max(cuts, key=lambda cut: len(set(cut)))


def _cut(name: str, head: int, limit: int) -> str:
    tail = limit - 1 - head
    return name if len(name) <= limit else f"{name[:head]}…{name[len(name) - tail :]}"


def _without_shared_parts(names: Sequence[str]) -> list[str]:
    """Return names without the parts that all of them begin and end with; a number keeps the part before it."""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts))
    first = next((k for k in range(shortest) if len({each[k] for each in parts}) > 1), shortest)
    if first == shortest:
        return list(names)
    last = next((k for k in range(shortest - first) if len({each[-1 - k] for each in parts}) > 1), 0)
    start = first - 1 if first and all(each[first].isdigit() for each in parts) else first
    before, after = "…" * (start > 0), "…" * (last > 0)
    return [f"{before}{'.'.join(each[start : len(each) - last])}{after}" for each in parts]


def wrapped(text: str, width: int = 64, lines: int = 6) -> list[str]:
    """Return the lines of a text, wrapped, with a mark where some were left out."""
    parts = [
        part
        for line in text.expandtabs(4).splitlines()
        for part in textwrap.wrap(visible(line), width, drop_whitespace=False, replace_whitespace=False) or [""]
    ]
    return parts if len(parts) <= lines else [*parts[: lines - 1], "…"]
