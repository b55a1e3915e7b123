"""One writer per model: a lease taken by exclusive create, kept by a heartbeat, taken over when its holder is gone."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from repaudit.errors import LeaseError
from repaudit.store.storage.storage import ChangedError, Storage, TooLongError

TERM: Final = 60.0
"""Seconds after its last heartbeat for which a lease holds where its process cannot be looked up."""

_LONGEST_WRITE: Final = 3600.0
"""Seconds after which an unfinished file of another host counts as abandoned."""

_MARK_FIELDS: Final = 5

_LOOK: Final = 1.0
"""Seconds between two looks at a holder that seems to be gone."""

_RELEASED_IN, _BETWEEN_TRIES = 10.0, 0.02
"""Seconds for which a lease is tried again that is there when it is made and gone when read, and between tries."""

_LATEST: Final = 1e12
_MOST_BYTES: Final = 2**16
_TOKEN: Final = re.compile("[0-9a-f]{32}")

_SEEN: Final[dict[str, tuple[float, float]]] = {}
"""The last heartbeat seen of each holder elsewhere, by token, and when it came first, on our own clock."""

_HELD: Final[set[str]] = set()
"""Tokens of the leases that this process holds; a lease of this process that is not among them was lost on the way."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: enough to tell whether that process still lives."""

    token: str
    host: str
    pid: int
    process_start: str
    heartbeat: float
    term: float

    @classmethod
    def current(cls, term: float) -> Holder:
        """Return a new holder: this process, now."""
        return cls(uuid.uuid4().hex, _host(), os.getpid(), _process_start(os.getpid()) or "", time.time(), term)

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """Read a lease; one that cannot be read counts as held by nobody."""
        try:
            holder = cls(**json.loads(data))
            for field in fields(cls):
                if not _is(getattr(holder, field.name), str(field.type)):
                    raise TypeError(f"{field.name} is no {field.type}")
            if _TOKEN.fullmatch(holder.token):
                return holder
        except (ValueError, TypeError, RecursionError):
            pass
        return cls("", "", 0, "", 0.0, 0.0)

    @classmethod
    def read(cls, storage: Storage, key: str) -> Holder | None:
        """Return who holds a lease, or None where there is none."""
        try:
            data = storage.get_short(key, _MOST_BYTES)
        except TooLongError:
            return cls.parse(b"")
        return None if data is None else cls.parse(data)

    def dump(self) -> bytes:
        """Write the lease as JSON."""
        return json.dumps(asdict(self)).encode()

    @property
    def stale(self) -> bool:
        """Whether the holder is gone: its process, on this host; else it sent no heartbeat for a term of our own clock.

        The first look at a holder whose process cannot be looked up only starts that time: clocks of hosts differ.
        """
        lives = self._lives()
        return not self.token or lives is False or (lives is None and self._silent())

    @property
    def quiet(self) -> bool:
        """Whether the holder may be gone by the clocks of both hosts, of which one may be wrong."""
        return self._lives() is None and time.time() - self.heartbeat > self.term

    def _lives(self) -> bool | None:
        """Return whether the holder's process lives, or None where it cannot be looked up."""
        if self.host != _host():
            return None
        start = _process_start(self.pid)
        if self.pid == os.getpid() and self.process_start == start:
            return self.token in _HELD
        return None if start is None else start == self.process_start

    def _silent(self) -> bool:
        now = time.monotonic()
        heartbeat, since = _SEEN.get(self.token, (None, now))
        if heartbeat != self.heartbeat:
            _SEEN[self.token] = self.heartbeat, now
            return False
        return now - since > self.term

    @property
    def advice(self) -> str:
        """What to do about a living holder."""
        if self.token in _HELD:
            return (
                "it was opened in this process and is still open; close it first (a variable that was reassigned "
                "or deleted, as in a notebook, leaves its writer open)"
            )
        return "close it, wait, or pass force=True if that writer is known to be dead"

    def __str__(self) -> str:
        age = time.time() - self.heartbeat
        return f"process {self.pid} on {self.host.partition('/')[0] or 'an unknown host'}, {age:.0f} s ago"


class Lease:
    """The right to write one model, held until :meth:`release`.

    Parameters
    ----------
    storage : Storage
    key : str
        Key of the lease within the store.
    what : str
        What is held, for messages.
    term : float
        Seconds for which a heartbeat counts.
    force : bool
        Take the lease from any holder, who fails at the next commit.

    Raises
    ------
    LeaseError
        If a living writer holds it.
    """

    def __init__(self, storage: Storage, key: str, what: str, *, term: float = TERM, force: bool = False) -> None:
        self.storage, self.key, self.what = storage, key, what
        self.home = key.rpartition("/")[0]
        self.holder = Holder.current(term)
        self._lost = False
        self._stop = threading.Event()
        _HELD.add(self.holder.token)  # before the store has it: others in this process must not think it lost
        try:
            with storage.exclusive(self.home):
                self._acquire(force)
                storage.discard_staged(self.home)  # what an earlier holder had prepared must not appear any more
        except BaseException:
            _HELD.discard(self.holder.token)
            raise
        self._thread = threading.Thread(target=self._beat, name="repaudit-lease", daemon=True)
        self._thread.start()

    def _acquire(self, force: bool) -> None:
        end = time.monotonic() + _RELEASED_IN
        while True:
            if self.storage.create(self.key, self.holder.dump()):
                return
            self.storage.note(self.key)
            other = Holder.read(self.storage, self.key)
            if other is not None:
                break
            if time.monotonic() > end:
                raise LeaseError(f"{self.what}: its lease can be neither made nor read; try again")
            time.sleep(_BETWEEN_TRIES)  # released between the two, or refused while others make it
        if other.token == self.holder.token:  # a client that lost the answer to its put has tried it again
            return
        if not force and not gone(self.storage, self.key):
            raise LeaseError(f"{self.what} is being written by another writer ({other}): {other.advice}")
        self._take_over(other, force)

    def _take_over(self, other: Holder, force: bool) -> None:
        """Replace a stale lease; the marker lets only one of several writers through."""
        marker = f"{self.key}.{other.token or 'unreadable'}"
        if not self.storage.create(marker, self.holder.dump()):
            successor = Holder.read(self.storage, marker)
            if not force and (successor is None or not gone(self.storage, marker)):
                raise LeaseError(
                    f"{self.what} is being taken over by another writer ({successor or 'already done'}): wait, or pass "
                    "force=True"
                )
        try:
            current = Holder.read(self.storage, self.key) or Holder.parse(b"")
            if not force and current.token != other.token:
                raise LeaseError(f"{self.what} was just taken over by another writer ({current}): close that one first")
            self.storage.swap(self.key, [self.holder.dump()])
        except ChangedError as error:
            raise LeaseError(f"{self.what} was just taken over by another writer: close that one first") from error
        finally:
            self.storage.delete(marker)

    def check(self) -> None:
        """Raise LeaseError if this writer no longer holds the lease."""
        taker = Holder.read(self.storage, self.key)
        if taker is None or taker.token != self.holder.token:
            self._lost = True
            if taker is None:
                raise LeaseError(f"{self.what}: its lease is gone, as when the store was deleted; this writer stops")
            raise LeaseError(f"{self.what} was taken over by another writer ({taker}); this writer stops")

    def _beat(self) -> None:
        while not self._stop.wait(self.holder.term / 3):
            try:
                self.holder = Holder(**{**asdict(self.holder), "heartbeat": time.time()})
                self.storage.put(self.key, [self.holder.dump()], self)
            except LeaseError:
                return
            except Exception:  # noqa: BLE001, S112 - the store may be back at the next beat
                continue

    def release(self) -> None:
        """Release the lease, if this writer still holds it."""
        self._stop.set()
        self._thread.join()
        _HELD.discard(self.holder.token)
        if self._lost:
            return
        with contextlib.suppress(LeaseError):
            self.storage.delete(self.key, self)


def gone(storage: Storage, key: str) -> bool:
    """Return whether no living writer holds a lease, watching for a term one whose last heartbeat seems to be old."""
    first = None
    while (holder := Holder.read(storage, key)) is not None:
        if holder.stale:
            return True
        look = holder.token, holder.heartbeat
        if not holder.quiet or look != (first or look):
            return False
        first = look
        time.sleep(min(_LOOK, holder.term / 10))
    return True


def mark() -> str:
    """Return part of a file's name with this process and time, so that others can tell if its writer is gone."""
    host, start = _host_mark(os.getpid())
    return f"{host}-{os.getpid()}-{start or 0}-{int(time.time())}"


def abandoned(name: str) -> bool:
    """Return whether the writer of a file ``.<mark>-<unique>...`` is gone; a name without a mark has no writer."""
    fields = name.strip(".").split("-")
    if len(fields) != _MARK_FIELDS or not (fields[1].isdigit() and fields[3].isdigit()):
        return True
    host, pid, start, moment = fields[0], int(fields[1]), fields[2], int(fields[3])
    if host == _host_mark(os.getpid())[0]:
        found = _process_start(pid)
        return found is not None and (found or "0") != start
    return time.time() - moment > _LONGEST_WRITE


@cache
def _host_mark(pid: int) -> tuple[str, str]:
    return sha256(_host().encode()).hexdigest()[:12], _process_start(pid) or ""


def _host() -> str:
    """Return this machine, boot and process namespace: a process number is unique only within all three."""
    parts = [platform.node()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts.append(boot.read_text(encoding="ascii").strip())
    if namespace.exists():
        parts.append(str(namespace.stat().st_ino))
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """Return what tells a process from a later one with the same number.

    It is empty where there is no such process, and None where there is one that may not be looked at: the process table
    may hide the processes of other users.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, ValueError):
        pass
    if pid <= 0:
        return ""
    try:
        os.kill(pid, 0)  # finds also what the table hides
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    return None if Path("/proc/self/stat").exists() else "alive"


def _is(value: Any, kind: str) -> bool:
    if kind == "float":
        return type(value) in (int, float) and abs(value) < _LATEST  # neither is NaN
    return type(value).__name__ == kind
