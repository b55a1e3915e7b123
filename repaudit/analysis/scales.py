"""The scales at which an analysis looks: how many neighbours an operator is held to, and what that is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from repaudit.errors import AnalysisError
from repaudit.gauge.gauge import DiffusionGauge

NEIGHBOURHOODS: Final = "neighbourhoods"
SHAPE: Final = "shape"
DEFAULT: Final[tuple[float | str, ...]] = (15.0, "N/4")
SHAPE_ALONE: Final[tuple[float | str, ...]] = ("N/4",)
"""The default within samples, whose tokens are too few for two scales."""


@dataclass(frozen=True)
class Scale:
    """A scale by its number, the perplexity, and its name, and the gauge that looks at it."""

    value: float
    name: str
    gauge: DiffusionGauge


def resolve_scales(
    scales: Sequence[float | str] | None,
    gauge: DiffusionGauge,
    samples: int,
    default: Sequence[float | str] = DEFAULT,
    *,
    of_all: bool = True,
) -> list[Scale]:
    """Return the scales of an analysis on so many samples.

    By default *neighbourhoods*, the gauge's perplexity of 15, and *shape*, a quarter of the samples, where that is
    wider. A gauge with another perplexity or another kernel has one scale, its own. Where the operators are not all of
    so many samples (`of_all`), each tells for itself whether a scale is too large for it.

    Raises
    ------
    AnalysisError
        Scales for a gauge that has its own, or one that is not more than 1, or is all other samples.

    Examples
    --------
    >>> [(scale.value, scale.name) for scale in resolve_scales(None, DiffusionGauge(), 256)]
    [(15.0, 'neighbourhoods'), (64.0, 'shape')]
    """
    if gauge.perplexity is None:
        if scales is not None:
            raise AnalysisError(
                "scales: expected a gauge with a perplexity, found one with knn, bandwidth or alpha_decay"
            )
        value = float(gauge.knn or 0)
        return [Scale(value, _of_kernel(gauge), gauge)]
    if scales is not None and gauge.perplexity != DEFAULT[0]:
        raise AnalysisError(
            f"scales: the gauge has perplexity={gauge.perplexity:g}, which scales would override; give one of them"
        )
    chosen = scales or (default if gauge.perplexity == DEFAULT[0] else (gauge.perplexity,))
    found: list[Scale] = []
    for text in chosen:
        value = samples / float(str(text).partition("/")[2]) if str(text).startswith("N/") else float(text)
        if value <= 1 and scales is None:
            continue
        if value <= 1:
            raise AnalysisError(f"scales: expected perplexities of more than 1, found {text} of {samples} samples")
        if value >= samples - 1 and scales is not None and of_all:  # all rows would be uniform
            raise AnalysisError(
                f"scales: expected perplexities below {samples - 1}, which is how many neighbours each of {samples} "
                f"samples has, found {text}"
            )
        wider = not found or value > found[-1].value
        if value not in [scale.value for scale in found] and (scales is not None or wider):
            found.append(Scale(value, _name(value, samples), replace(gauge, perplexity=value)))
    if not found:
        raise AnalysisError(f"scales: expected a perplexity of more than 1, found none for {samples} samples")
    return found


def of_perplexity(gauge: DiffusionGauge, samples: int) -> Scale:
    """Return the scale of a gauge with a perplexity.

    Examples
    --------
    >>> of_perplexity(DiffusionGauge(perplexity=64), 256).name
    'shape'
    """
    value = float(gauge.perplexity or 0)
    return Scale(value, _name(value, samples), gauge)


def _name(value: float, samples: int) -> str:
    if value == DEFAULT[0]:
        return NEIGHBOURHOODS
    return SHAPE if value == samples / 4 else f"perplexity {value:g}"


def _of_kernel(gauge: DiffusionGauge) -> str:
    if gauge.bandwidth is not None:
        return f"bandwidth {gauge.bandwidth}"
    return gauge.kernel if gauge.knn is None else f"{gauge.kernel}, knn {gauge.knn}"
