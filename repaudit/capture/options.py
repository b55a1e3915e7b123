"""The options of a recorder, checked before anything is forwarded or written."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final

from repaudit.capture.trigger import EVERY_N_EPOCHS, ON_CHECKPOINT, ON_VALIDATION_END, AuditTrigger

_TOLD_BY_TRAINERS: Final = (EVERY_N_EPOCHS, ON_CHECKPOINT, ON_VALIDATION_END)


def check_choices(
    model_name: str, trigger: AuditTrigger | None, batch_size: int, gauge: Any, on_store_error: str
) -> None:
    """Refuse what no audit could be made with.

    Raises
    ------
    ValueError, TypeError
        Naming the option, what was expected, and what was found.
    """
    if on_store_error not in {"warn", "raise"}:
        raise ValueError(f"on_store_error: expected 'warn' or 'raise', found {on_store_error!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    if not model_name:
        raise ValueError("model_name: expected a name, found an empty one")
    if gauge is not None and not callable(gauge):
        raise TypeError(f"gauge: expected a DiffusionGauge or another callable, found {gauge!r}")
    asked = [name for name in _TOLD_BY_TRAINERS if trigger is not None and getattr(trigger, name)]
    if asked:
        raise ValueError(
            f"trigger: a Recorder knows steps alone, and {', '.join(asked)} would never fire: call audit(model, step) "
            "where they occur in your loop, or audit by steps (every_n_steps, at_steps, log_spaced, at_start)"
        )


def check_names(options: Mapping[str, Any], takers: Iterable[type]) -> None:
    """Refuse keywords that none of the classes takes, with the one that may have been meant.

    Raises
    ------
    TypeError
        For the first unknown keyword.
    """
    known = [name for taker in takers for name in inspect.signature(taker).parameters]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f": is {close[0]!r} meant?" if close else ""
            raise TypeError(f"unexpected keyword {name!r}{hint}")
