"""What is checked of a step before it is queued."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from repaudit.errors import LayoutError, StepOrderError


def check_order(model_name: str, steps: Sequence[int], step: int) -> None:
    """Refuse a step that is not greater than all before.

    Raises
    ------
    StepOrderError
        Naming both.
    """
    if step < 0 or (steps and step <= steps[-1]):
        last = f"the last one is {steps[-1]}" if steps else "it must not be negative"
        raise StepOrderError(
            f"step {step} of model {model_name!r}: {last}, and steps must increase; to go back to an older "
            f"checkpoint, pass truncate_after"
        )


def check_gap(model_name: str, steps: Sequence[int], step: int) -> None:
    """Refuse to note as a gap what is none.

    Raises
    ------
    StepOrderError
        If the step is negative, or in the record.
    """
    if step < 0 or step in steps:
        why = "it must not be negative" if step < 0 else "it is in the record"
        raise StepOrderError(f"step {step} of model {model_name!r} cannot be noted as a gap: {why}")


def check_layers(model_name: str, declared: Collection[str], given: Collection[str]) -> None:
    """Refuse a step with other layers than those declared.

    Raises
    ------
    LayoutError
        Naming the layers that are missing and those that are unknown.
    """
    missing, unknown = set(declared) - set(given), set(given) - set(declared)
    if missing or unknown:
        raise LayoutError(
            f"model {model_name!r}: expected the layers {sorted(declared)}, "
            f"missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
