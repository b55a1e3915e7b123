"""An operator in a line of text, and as a table in a notebook; nothing is computed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from repaudit.markup import html_table, printable
from repaudit.names import LAYER, MODEL, SCALE, STEP

_IN_A_LINE: Final = (MODEL, LAYER, SCALE, STEP, "merge", "kernel", "perplexity", "knn", "t")


def text_of(n_samples: int, form: str, attrs: Mapping[str, Any]) -> str:
    """Return an operator in a line: its size, how it is kept, where it is from, its scale.

    Examples
    --------
    >>> text_of(400, "dense", {"layer": "norm", "knn": None, "alpha": 1.0})
    'DiffusionOperator(400 samples, dense, layer=norm)'
    """
    known = [f"{name}={printable(_said(attrs[name]))}" for name in _IN_A_LINE if attrs.get(name) is not None]
    return f"DiffusionOperator({', '.join([f'{n_samples} samples', form, *known])})"


def html_of(n_samples: int, form: str, attrs: Mapping[str, Any], diagnostics: Mapping[str, Any]) -> str:
    """Return a table of an operator's parameters, and of the diagnostics that are known of it already."""
    known = {name: value for name, value in {**attrs, **diagnostics}.items() if value is not None}
    caption = f"Diffusion operator of {n_samples:,} samples, {form}"
    return html_table(caption, (), [(name, _said(value)) for name, value in known.items()])


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_said(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
