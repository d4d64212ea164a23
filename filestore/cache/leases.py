"""Leases: which entries of a cache are in use, and how many bytes are promised to those that are being fetched. All blocks.

    ROOT/leases/<holder>/<key>              the entry is in use
    ROOT/leases/<holder>/<key>+<bytes>      it is being fetched, and that much is reserved
    ROOT/leases/.taking, .room              locks: who is about to remove an entry, and who is about to reserve

All are empty, so that a full disk takes them.

A holder is a process; the name of its folder says which one: boot, namespace of process ids, process id, start time. So a
lease dies with its process, and nobody has to clear up behind it. A process that cannot be looked at from here, on another
host of a network file system or in another container, lives as long as the mtime of its folder is fresh.

Whoever uses an entry writes the lease first and looks whether the entry is there afterwards. Whoever removes one looks for
leases again once it is out of sight, and puts it back where one has come: in that order nobody loses what he uses, even where
locks do not work. Where they do, none is ever out of sight.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from filestore.system.files import remove_if_possible
from filestore.system.locks import FileLock
from filestore.system.threads import ProcessLock

T = TypeVar("T")

BEAT_SECONDS = 10
STALE_SECONDS = 180
"""A process that cannot be looked at counts as ended after this time. A network file system may show an mtime a minute late."""
LOCK_SECONDS = 1
"""Who holds the lock for longer is stopped, and is passed by."""

_HOLDER = re.compile(r"([0-9a-f]{32}-[0-9]+)-([0-9]+)-([0-9]+)-[0-9a-f]{8}\Z")
_NOWHERE = "0" * 32 + "-0"


class Leases:
    """The leases of this process, and a look at those of all others. Safe to use in several threads."""

    def __init__(self, root: Path) -> None:
        """Touches nothing yet."""
        self._folder = root / "leases"
        self._lock = ProcessLock()
        self._counts: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._holder: Path | None = None
        self._pid = 0

    def hold(self) -> LeaseSet:
        """Something that uses entries, and none so far."""
        return LeaseSet(self)

    @property
    def quota_lock_path(self) -> Path:
        """The file whose lock says that bytes are about to be reserved."""
        return self._folder / ".room"

    def pin(self, key: str) -> None:
        """Say that an entry is in use, once more. Writes only the first time.

        Where nothing can be written, the disk being full or read-only, what is in the cache can be used all the same, unpinned.
        """
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] == 1:
                with suppress(OSError), _locked_briefly(self._folder / ".taking", is_shared=True):
                    self._write(key)

    def unpin(self, key: str) -> None:
        """Say that it is in use once less."""
        with self._lock:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                reserved = self._reserved.pop(key, 0)
                holder = self._own_holder
                if holder is not None:
                    with suppress(OSError):
                        (holder / f"{key}+{reserved}").unlink(missing_ok=True)
                        (holder / key).unlink(missing_ok=True)

    def reserve(self, key: str, size: int) -> None:
        """Promise bytes to an entry that is pinned; 0 takes them back. Raises OSError."""
        with self._lock:
            before = self._reserved.get(key, 0)
            self._reserved[key] = size
            self._write(key)
            holder = self._own_holder
            if before not in {0, size} and holder is not None:
                (holder / f"{key}+{before}").unlink(missing_ok=True)

    def held(self) -> dict[str, int]:
        """What is in use by whatever living process, and the bytes that are reserved for it. What ended ones held is cleared."""
        found: dict[str, int] = {}
        for holder in self._holders():
            if self._is_alive(holder):
                for key, size in _leases(holder):
                    found[key] = found.get(key, 0) + size
            else:
                remove_if_possible(holder)
        return found

    def is_held(self, key: str) -> bool:
        """Whether an entry is in use by whatever living process."""
        return any((holder / key).exists() and self._is_alive(holder) for holder in self._holders())

    @contextmanager
    def evicting(self) -> Iterator[None]:
        """While an entry is taken away: no other process pins one meanwhile, if locks work."""
        with _locked_briefly(self._folder / ".taking", is_shared=False):
            yield

    def close(self) -> None:
        """Give all leases back; safe to call again."""
        _heart.forget(self)
        with self._lock:
            self._counts.clear()
            self._reserved.clear()
            holder = self._own_holder
            if holder is not None:
                remove_if_possible(holder)
            self._holder = None

    def beat(self) -> None:
        """Say that this process goes on; where it was taken for ended, after a long pause, write all leases anew."""
        with self._lock, suppress(OSError):
            holder = self._own_holder
            if holder is None:
                return
            try:
                os.utime(holder)
            except FileNotFoundError:
                for key in self._counts:
                    self._write(key)

    @property
    def _own_holder(self) -> Path | None:
        """The folder with the leases of this process, if it has one. A forked child must not touch that of its parent."""
        return self._holder if self._pid == os.getpid() else None

    def _write(self, key: str) -> None:
        holder = self._own_holder
        if holder is None:
            self._pid = os.getpid()
            holder = self._holder = self._folder / f"{_identity(self._pid)}-{uuid.uuid4().hex[:8]}"
            _heart.beat_for(self)
        for folder in (self._folder, holder):
            folder.mkdir(exist_ok=True)
        (holder / key).touch()
        if self._reserved.get(key):
            (holder / f"{key}+{self._reserved[key]}").touch()

    def _holders(self) -> list[Path]:
        try:
            return [self._folder / name for name in os.listdir(self._folder) if _HOLDER.match(name)]  # noqa: PTH208  # names are enough
        except OSError:
            return []

    def _is_alive(self, holder: Path) -> bool:
        match = _HOLDER.match(holder.name)
        if match is None:
            raise AssertionError(f"{holder} is no holder")
        here, _, _ = _identity(os.getpid()).rpartition("-")[0].rpartition("-")
        if match[1] == here != _NOWHERE:
            return _is_running(int(match[2]), int(match[3]))
        try:
            return self._now() - holder.stat().st_mtime < STALE_SECONDS
        except OSError:
            return False

    def _now(self) -> float:
        """The time by the clock that mtimes are of, which on a network file system is the server's."""
        clock = self._folder / ".clock"
        try:
            clock.touch()
            return clock.stat().st_mtime
        except OSError:
            return time.time()


class LeaseSet:
    """Entries that are in use together, each pinned once, until `release`. Its methods block."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._keys: set[str] = set()
        self._is_released = False
        self._lock = ProcessLock()

    def pin(self, key: str) -> None:
        """Say that an entry is in use; not after `release`, which may come while a fetch goes on for others."""
        with self._lock:
            if key not in self._keys and not self._is_released:
                self._keys.add(key)
                self._leases.pin(key)

    def pin_found(self, key: str, look: Callable[[], T | None]) -> T | None:
        """What `look` finds of an entry: it is pinned before it is looked at, and stays so where something is found."""
        self._leases.pin(key)
        try:
            found = look()
            if found is not None:
                self.pin(key)
            return found
        finally:
            self._leases.unpin(key)

    def reserve(self, key: str, size: int) -> None:
        """Pin an entry, and promise bytes to it; 0 takes them back. Raises OSError."""
        self.pin(key)
        self._leases.reserve(key, size)

    def hand_over(self, key: str, other: LeaseSet) -> None:
        """Have `other` pin an entry that is pinned here, without a moment in between; what was reserved for it is taken back."""
        with suppress(OSError):  # where nothing can be written, nothing is reserved either
            self._leases.reserve(key, 0)
        other.pin(key)

    def unpin(self, key: str) -> None:
        """Say that an entry is not in use; safe to call again."""
        with self._lock:
            if key in self._keys:
                self._keys.remove(key)
                self._leases.unpin(key)

    def release(self) -> None:
        """Say so of all; safe to call again."""
        with self._lock:
            self._is_released = True
            for key in list(self._keys):
                self.unpin(key)


class _Heart:
    """Lets others see that this process goes on: one thread for all of its leases, whatever its event loops do meanwhile."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._leases: set[Leases] = set()
        self._thread: threading.Thread | None = None

    def beat_for(self, leases: Leases) -> None:
        """Keep these fresh until they are forgotten, or the process ends."""
        with self._lock:
            self._leases.add(leases)
            # Of a fork, the thread has stayed with the parent.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="filestore-leases", daemon=True)
                self._thread.start()

    def forget(self, leases: Leases) -> None:
        """They need not be kept fresh any more."""
        with self._lock:
            self._leases.discard(leases)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._lock:
                all_of_them = list(self._leases)
            for leases in all_of_them:
                leases.beat()


_heart = _Heart()


@contextmanager
def _locked_briefly(path: Path, *, is_shared: bool) -> Iterator[None]:
    """Hold a lock that others hold for less than a millisecond.

    It is not required, and not waited for longer than LOCK_SECONDS: without it the order that the top describes is enough.
    """
    open_lock = partial(FileLock.of_file, path, is_required=False, mode=0o666)
    try:
        lock = open_lock()
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        lock = open_lock()
    with lock:
        lock.acquire(limit_seconds=LOCK_SECONDS, is_shared=is_shared)
        yield


def _leases(holder: Path) -> Iterator[tuple[str, int]]:
    """What a holder uses, and the bytes that are reserved."""
    with suppress(OSError):
        for name in os.listdir(holder):  # noqa: PTH208  # names are enough
            key, _, size = name.partition("+")
            yield key, int(size) if size.isdecimal() else 0


def _identity(pid: int) -> str:
    """This process, as the first part of the name of a holder. Nowhere, where the system does not tell enough of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        # Containers that share a disk and a kernel do not share process ids.
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # beside its neighbours
        known_as, _, _ = Path("/proc/self/stat").read_text().partition(" ")
        started = _started(pid)
    except OSError:
        started = None
    if started is None or int(known_as) != pid or not re.fullmatch("[0-9a-f]{32}", boot):
        return f"{_NOWHERE}-{pid}-0"
    return f"{boot}-{namespace}-{pid}-{started}"


def _is_running(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    try:
        return _started(pid) == started
    except OSError:
        return True  # it is hidden from us, and there


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the boot; None of one that has ended and that nobody has taken note of."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    # Behind the name, which may hold anything.
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in {"Z", "X"} else int(fields[18])
