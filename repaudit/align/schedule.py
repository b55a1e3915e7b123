"""The share of a weight at a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The share of the weight at a step: rising over `warmup` steps, and 0 from `stop` on.

    Alignment that helps early can hurt late; whether stopping helps is to be tried.

    Examples
    --------
    >>> schedule = Schedule(warmup=4, stop=10)
    >>> [schedule(step) for step in (0, 1, 5, 10)]
    [0.25, 0.5, 1.0, 0.0]
    """

    warmup: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number of steps."""
        for name, value in (("warmup", self.warmup), ("stop", self.stop)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{name}: expected a number of steps, 0 or more, found {value!r}")

    def __call__(self, step: int) -> float:
        """Return the share at a step."""
        if self.stop is not None and step >= self.stop:
            return 0.0
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
