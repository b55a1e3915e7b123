"""When an audit is due."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar

AT_START: Final = "at_start"
AT_END: Final = "at_end"
EVERY_N_STEPS: Final = "every_n_steps"
EVERY_N_EPOCHS: Final = "every_n_epochs"
AT_STEPS: Final = "at_steps"
LOG_SPACED: Final = "log_spaced"
ON_CHECKPOINT: Final = "on_checkpoint"
ON_VALIDATION_END: Final = "on_validation_end"

_Class = TypeVar("_Class", bound=type)


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """Return a number as an int, if it is whole.

    Raises
    ------
    ValueError
        When it is not a whole number, or less than ``least``.

    Examples
    --------
    >>> whole_number(2.0, "step")
    2
    """
    try:
        number = None if isinstance(value, bool | str | bytes) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value or number < least:
        raise ValueError(f"{name}: expected a whole number from {least} on, found {value!r}")
    return number


def _by_keyword(cls: _Class) -> _Class:
    """Make a class refuse positional values, and suggest the keyword."""
    make = cls.__init__  # type: ignore[misc]

    @wraps(make)
    def checked(self: Any, *values: Any, **options: Any) -> None:
        if values:
            raise TypeError(f"{cls.__name__} takes keywords only: did you mean {EVERY_N_STEPS}={values[0]!r}?")
        make(self, **options)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


@_by_keyword
@dataclass(frozen=True, kw_only=True)
class AuditTrigger:
    """The moments at which a model is audited; several may be combined, and each step is audited once.

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
        Before the first step, on the untrained model.
    at_end
        When the training ends by itself or is stopped, at whatever step; not where an error ends it.
    at_steps
        After these steps (0 means at the start).
    log_spaced
        Audits per decade: after steps round(10^(k / log_spaced)) for k = 0, 1, 2, ...

    Raises
    ------
    ValueError
        When a number is not whole or not positive, or nothing would ever be audited.
    TypeError
        For a value without its keyword.

    See Also
    --------
    repaudit.Recorder : Asks a trigger in a training loop.
    repaudit.RepresentationAuditCallback : Asks it in Lightning.

    Examples
    --------
    The steps at which a trigger is due, up to some last one:

    >>> def due(trigger, last=30):
    ...     return [step for step in range(last + 1) if trigger.due_at(step)]

    The simplest trigger audits at equal distances:

    >>> due(AuditTrigger(every_n_steps=10))
    [10, 20, 30]

    Step 0 is the model before its training, and has its own keyword:

    >>> due(AuditTrigger(every_n_steps=10, at_start=True))
    [0, 10, 20, 30]

    Steps may also be listed; 0 again means the start:

    >>> due(AuditTrigger(at_steps=[0, 3, 17]))
    [0, 3, 17]

    Training changes most at its beginning: logarithmic spacing audits often there, here three times per decade.

    >>> due(AuditTrigger(log_spaced=3), last=100)
    [1, 2, 5, 10, 22, 46, 100]

    Keywords add up. A step that two of them ask for is audited once, and the record says why:

    >>> trigger = AuditTrigger(every_n_steps=50, log_spaced=1)
    >>> due(trigger, last=100)
    [1, 10, 50, 100]
    >>> trigger.due_at(100)
    ('every_n_steps', 'log_spaced')

    A loop that takes several optimizer steps at once asks with the step of its last question, and misses none:

    >>> trigger.due_at(53, previous=47)
    ('every_n_steps',)

    Epochs are counted apart from steps:

    >>> epochs = AuditTrigger(every_n_epochs=2)
    >>> [epoch for epoch in range(1, 7) if epochs.due_at_epoch(epoch)]
    [2, 4, 6]

    Checkpoints, validations and the end of the training come from the trainer, so no step is due by itself:

    >>> due(AuditTrigger(on_checkpoint=True, on_validation_end=True, at_end=True))
    []

    A number without its keyword would be ambiguous:

    >>> AuditTrigger(5)
    Traceback (most recent call last):
        ...
    TypeError: AuditTrigger takes keywords only: did you mean every_n_steps=5?
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    on_checkpoint: bool = False
    on_validation_end: bool = False
    at_start: bool = False
    at_end: bool = False
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
            raise ValueError(f"this trigger never audits: set at least one of {', '.join(self.__dataclass_fields__)}")

    def due_at(self, step: int, previous: int | None = None) -> tuple[str, ...]:
        """Return the triggers that ask for an audit after an optimizer step.

        Parameters
        ----------
        step
            Optimizer steps taken so far.
        previous
            The last step asked about (``step - 1`` by default): where several optimizer steps are taken at once, a
            schedule that falls between the two is due as well.

        Returns
        -------
        tuple of str
            Keywords of this class; empty where no audit is due.

        Examples
        --------
        >>> AuditTrigger(every_n_steps=10).due_at(20)
        ('every_n_steps',)
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
        """Return the trigger that asks for an audit after that many whole epochs.

        Examples
        --------
        >>> AuditTrigger(every_n_epochs=2).due_at_epoch(4)
        ('every_n_epochs',)
        """
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


DEFAULT_TRIGGER: Final = AuditTrigger(at_start=True, every_n_epochs=1, at_end=True)
"""What the trainers' callbacks audit unasked: the start, each epoch's end, and the end of the training."""
