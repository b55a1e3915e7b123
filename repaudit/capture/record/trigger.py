"""When an audit is due."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar

AT_START: Final = "at_start"
EVERY_N_STEPS: Final = "every_n_steps"
EVERY_N_EPOCHS: Final = "every_n_epochs"
AT_STEPS: Final = "at_steps"
LOG_SPACED: Final = "log_spaced"
ON_CHECKPOINT: Final = "on_checkpoint"
ON_VALIDATION_END: Final = "on_validation_end"

_Class = TypeVar("_Class", bound=type)


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """Give a number as an int: 2.0 is 2, and 2.7 is refused.

    Raises
    ------
    ValueError
        When it is no whole number, or less than ``least``.
    """
    try:
        number = None if isinstance(value, bool | str | bytes) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value or number < least:
        raise ValueError(f"{name}: expected a whole number from {least} on, found {value!r}")
    return number


def _by_keyword(cls: _Class) -> _Class:
    """Tell which keyword may be meant by a value without one."""
    make = cls.__init__  # type: ignore[misc]

    @wraps(make)
    def checked(self: Any, *values: Any, **options: Any) -> None:
        if values:
            raise TypeError(f"{cls.__name__} takes keywords alone: is {EVERY_N_STEPS}={values[0]!r} meant?")
        make(self, **options)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@_by_keyword
@dataclass(frozen=True, kw_only=True)
class AuditTrigger:
    """The moments at which a model is audited; several may be combined, and a step is audited once.

    Parameters
    ----------
    every_n_steps
        After every n-th optimizer step.
    every_n_epochs
        At the end of every n-th epoch.
    on_checkpoint
        Whenever a checkpoint is saved.
    on_validation_end
        After every validation.
    at_start
        The untouched model, before its first step.
    at_steps
        After these steps (0 means at the start).
    log_spaced
        Audits a decade: after steps round(10^(k / log_spaced)) for k = 0, 1, 2, ...

    Raises
    ------
    ValueError
        When a number is not whole or not positive, or nothing would ever trigger.
    TypeError
        For a value without its keyword.

    Examples
    --------
    >>> trigger = AuditTrigger(every_n_steps=100, at_start=True, log_spaced=3)
    >>> [step for step in range(251) if trigger.due_at(step)]
    [0, 1, 2, 5, 10, 22, 46, 100, 200, 215]
    >>> trigger.due_at(100)
    ('every_n_steps', 'log_spaced')
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    on_checkpoint: bool = False
    on_validation_end: bool = False
    at_start: bool = False
    at_steps: Iterable[int] | None = None
    log_spaced: int | None = None

    def __post_init__(self) -> None:
        for name in (EVERY_N_STEPS, EVERY_N_EPOCHS, LOG_SPACED):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name, least=1))
        if self.at_steps is not None:
            object.__setattr__(self, AT_STEPS, frozenset(whole_number(step, AT_STEPS) for step in self.at_steps))
        if not any(getattr(self, name) for name in self.__dataclass_fields__):
            raise ValueError(
                "this trigger would never audit: set at least one of " + ", ".join(self.__dataclass_fields__)
            )

    def due_at(self, step: int, previous: int | None = None) -> tuple[str, ...]:
        """The triggers that ask for an audit after optimizer step ``step``.

        ``previous`` is the last step that was asked about (``step - 1`` by default): where several optimizer steps
        are taken at once, a schedule that falls between the two is due as well.
        """
        if step == 0:
            return self._at_zero()
        last = step - 1 if previous is None else max(previous, 0)
        due = []
        if self.every_n_steps and step // self.every_n_steps > last // self.every_n_steps:
            due.append(EVERY_N_STEPS)
        if self.at_steps is not None and any(last < s <= step for s in self.at_steps):
            due.append(AT_STEPS)
        if self.log_spaced and any(_is_log_spaced(s, self.log_spaced) for s in range(last + 1, step + 1)):
            due.append(LOG_SPACED)
        return tuple(due)

    def due_at_epoch(self, epochs_done: int) -> tuple[str, ...]:
        """The trigger that asks for an audit after that many whole epochs."""
        due = bool(self.every_n_epochs) and epochs_done > 0 and epochs_done % (self.every_n_epochs or 1) == 0
        return (EVERY_N_EPOCHS,) if due else ()

    def _at_zero(self) -> tuple[str, ...]:
        asked = self.at_steps is not None and 0 in self.at_steps
        return ((AT_START,) if self.at_start else ()) + ((AT_STEPS,) if asked else ())


def _is_log_spaced(step: int, per_decade: int) -> bool:
    k = 0
    while (value := round(10 ** (k / per_decade))) < step:
        k += 1
    return value == step
