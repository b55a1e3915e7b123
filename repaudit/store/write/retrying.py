"""What is done about a store that fails: how often to try again, and how to tell."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from tenacity import (
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_fixed,
    wait_random_exponential,
)

from repaudit.errors import LeaseError, RepauditError, StoreError
from repaudit.store.storage.lease import Lease
from repaudit.store.storage.storage import Storage

ATTEMPTS: Final = 5
"""Attempts at one step before it counts as lost."""

LONGEST_WAIT: Final = 5.0
"""Seconds between two attempts at most; they start at a tenth and double, at random."""


OnStoreError: TypeAlias = Literal["raise", "warn"]
"""What to do when a step cannot be stored: raise at the next call, or warn, record the gap and go on."""


def as_store_error(error: Exception, model_name: str, what: int | str) -> BaseException:
    """Return an error that says where the store failed; errors of repaudit say so already."""
    if isinstance(error, RepauditError):
        return error
    at = what if isinstance(what, str) else f"step {what}"
    wrapped = StoreError(f"model {model_name!r}, {at}: the store failed ({type(error).__name__}: {error})")
    wrapped.__cause__ = error
    return wrapped


def retrying() -> Retrying:
    """Return a policy that tries again after errors that may pass; those of repaudit will not."""
    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, RepauditError)),
        reraise=True,
    )


def lease_within(seconds: float, storage: Storage, key: str, what: str) -> Lease:
    """Take a lease, waiting for the one who has it now.

    Raises
    ------
    LeaseError
        It is still held after so many seconds.
    """
    policy = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.05), retry=retry_if_exception_type(LeaseError), reraise=True
    )
    return policy(Lease, storage, key, what)
