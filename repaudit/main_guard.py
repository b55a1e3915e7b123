"""Scripts without a main guard: a process that they start imports them, and would run all of them again."""

from __future__ import annotations

from multiprocessing import current_process
from typing import Final

UNGUARDED: Final = (
    "A worker process imports the script that it was started from, and would record, train and analyze there once "
    'more: a script that gives workers=, or starts processes otherwise, has its calls under if __name__ == "__main__":'
)


def refuse_without_guard(what: str) -> None:
    """End a process that only imports the script of the one that started it, with one line.

    Raises
    ------
    SystemExit
        In such a process, and for as long as it imports the script.

    Examples
    --------
    >>> refuse_without_guard("recording model 'seed0'")
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(f"repaudit: {what} is left out in process {current_process().name}. {UNGUARDED}")
