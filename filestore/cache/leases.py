"""Record which entries of a cache are in use, and how many bytes are reserved for entries that are being fetched.

    ROOT/leases/<holder>/<key>              the entry is in use
    ROOT/leases/<holder>/<key>+<bytes>      the entry is being fetched, and this many bytes are reserved for it
    ROOT/leases/.taking, .room              locks: a process is removing an entry, a process is reserving bytes

All these files are empty, so that they can be made on a full disk. All functions block.

A holder is a process. The name of its folder identifies it: boot, namespace of process ids, process id, start time. So
a lease ends with its process, and nobody has to remove it. Some processes cannot be seen from here: those on another
host of a network file system, or in another container. Such a process counts as alive as long as the mtime of its
folder is recent.

A process that uses an entry first writes the lease, and then looks whether the entry exists. A process that removes an
entry first moves it away, then looks for leases again, and moves it back if there is one. With this order no process
loses an entry that it uses, even where locks do not work. Where they work, no entry that is in use is ever moved.
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
from filestore.system.owners import PRIVATE_FILE, PRIVATE_FOLDER
from filestore.system.threads import ProcessLock

T = TypeVar("T")

BEAT_SECONDS = 10
STALE_SECONDS = 180
"""A process that cannot be seen counts as ended after this time. A network file system may show an mtime a minute
late."""
LOCK_SECONDS = 1
"""A process that holds the lock for longer is assumed to be suspended, and is not waited for any more."""

_HOLDER = re.compile(r"([0-9a-f]{32}-[0-9]{1,20})-([1-9][0-9]{0,8})-([0-9]{1,20})-[0-9a-f]{8}\Z")
_SIZE = re.compile(r"[0-9]{1,18}\Z")
_NOWHERE = "0" * 32 + "-0"


class Leases:
    """Write the leases of this process, and read the leases of all other processes. Several threads may use it."""

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        """Set fields only: no file is touched."""
        self._lock_seconds = lock_seconds
        self._folder = root / "leases"
        self._lock = ProcessLock()
        self._counts: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._holder: Path | None = None
        self._pid = 0

    def hold(self) -> LeaseSet:
        """Return a new, empty set of leases."""
        return LeaseSet(self)

    @property
    def quota_lock_path(self) -> Path:
        """The path of the lock file that a process holds while it reserves bytes."""
        return self._folder / ".room"

    def pin(self, key: str) -> None:
        """Add one use of an entry. Only the first use writes a file.

        If nothing can be written, because the disk is full or read-only, the entry can be used all the same, without a
        lease.
        """
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._counts[key] == 1:
                with suppress(OSError), self._locked_briefly(is_shared=True):
                    self._write(key)

    def unpin(self, key: str) -> None:
        """End one use of an entry. The last one removes its files."""
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
        """Reserve bytes for an entry that is pinned. A `size` of 0 ends the reservation. Raises OSError."""
        with self._lock:
            before = self._reserved.get(key, 0)
            self._reserved[key] = size
            self._write(key)
            holder = self._own_holder
            if before not in {0, size} and holder is not None:
                (holder / f"{key}+{before}").unlink(missing_ok=True)

    def held(self) -> dict[str, int]:
        """Return the keys that running processes use, with the bytes that are reserved for each.

        The leases of processes that have ended are removed.
        """
        found: dict[str, int] = {}
        for holder in self._holders():
            if self._is_alive(holder):
                for key, size in _leases(holder):
                    found[key] = found.get(key, 0) + size
            else:
                remove_if_possible(holder)
        return found

    def is_held(self, key: str) -> bool:
        """Return whether a live process uses an entry."""
        return any((holder / key).exists() and self._is_alive(holder) for holder in self._holders())

    @contextmanager
    def evicting(self) -> Iterator[None]:
        """Keep other processes from pinning an entry during the block, if locks work."""
        with self._locked_briefly(is_shared=False):
            yield

    @contextmanager
    def _locked_briefly(self, *, is_shared: bool) -> Iterator[None]:
        """Hold a lock that others hold for less than a millisecond.

        The lock is not required, and is waited for only for a moment. Without it, the order that the module describes
        is enough.
        """
        path = self._folder / ".taking"
        open_lock = partial(FileLock.of_file, path, is_required=False)
        try:
            lock = open_lock()
        except FileNotFoundError:
            path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
            lock = open_lock()
        with lock:
            lock.acquire(limit_seconds=self._lock_seconds, is_shared=is_shared)
            yield

    def close(self) -> None:
        """End all leases of this process. Another call does nothing."""
        _heart.forget(self)
        with self._lock:
            self._counts.clear()
            self._reserved.clear()
            holder = self._own_holder
            if holder is not None:
                remove_if_possible(holder)
            self._holder = None

    def beat(self) -> None:
        """Show that this process is alive.

        Write its leases again if another process has removed them after a long pause.
        """
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
        """The folder with the leases of this process, or None. A forked child must not touch its parent's folder."""
        return self._holder if self._pid == os.getpid() else None

    def _write(self, key: str) -> None:
        holder = self._own_holder
        if holder is None:
            self._pid = os.getpid()
            holder = self._holder = self._folder / f"{_identity(self._pid)}-{uuid.uuid4().hex[:8]}"
            _heart.beat_for(self)
        for folder in (self._folder, holder):
            folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
        (holder / key).touch(PRIVATE_FILE)
        if self._reserved.get(key):
            (holder / f"{key}+{self._reserved[key]}").touch(PRIVATE_FILE)

    def _holders(self) -> list[Path]:
        try:
            return [self._folder / name for name in os.listdir(self._folder) if _HOLDER.match(name)]  # noqa: PTH208  # names are enough
        except OSError:
            return []

    def _is_alive(self, holder: Path) -> bool:
        match = _HOLDER.match(holder.name)
        if match is None:
            raise AssertionError(f"{holder} is not the folder of a holder")
        here, _, _ = _identity(os.getpid()).rpartition("-")[0].rpartition("-")
        if match[1] == here != _NOWHERE:
            return _is_running(int(match[2]), int(match[3]))
        try:
            return self._now() - holder.stat().st_mtime < STALE_SECONDS
        except OSError:
            return False

    def _now(self) -> float:
        """Return the time of the clock that sets mtimes. On a network file system this is the server's clock."""
        clock = self._folder / ".clock"
        try:
            clock.touch(PRIVATE_FILE)
            return clock.stat().st_mtime
        except OSError:
            return time.time()


class LeaseSet:
    """A set of entries that are used together. Each is pinned once, until `release`. All methods block."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._keys: set[str] = set()
        self._is_released = False
        self._lock = ProcessLock()

    def pin(self, key: str) -> None:
        """Pin an entry. After `release`, this does nothing: a caller may leave while others wait for the same fetch."""
        with self._lock:
            if key not in self._keys and not self._is_released:
                self._keys.add(key)
                self._leases.pin(key)

    def pin_found(self, key: str, look: Callable[[], T | None]) -> T | None:
        """Pin an entry, call `look`, and return its result. The entry stays pinned if the result is not None."""
        self._leases.pin(key)
        try:
            found = look()
            if found is not None:
                self.pin(key)
            return found
        finally:
            self._leases.unpin(key)

    def reserve(self, key: str, size: int) -> None:
        """Pin an entry, and reserve bytes for it. A `size` of 0 ends the reservation. Raises OSError."""
        self.pin(key)
        self._leases.reserve(key, size)

    def hand_over(self, key: str, other: LeaseSet) -> None:
        """Let `other` pin an entry that is pinned here too, and end its reservation.

        So the entry is pinned at every moment.
        """
        with suppress(OSError):  # if nothing can be written, nothing was reserved
            self._leases.reserve(key, 0)
        other.pin(key)

    def unpin(self, key: str) -> None:
        """End the use of an entry. Another call does nothing."""
        with self._lock:
            if key in self._keys:
                self._keys.remove(key)
                self._leases.unpin(key)

    def release(self) -> None:
        """End the use of all entries. Another call does nothing."""
        with self._lock:
            self._is_released = True
            for key in list(self._keys):
                self.unpin(key)


class _Heart:
    """Show other processes that this one is alive, by one thread for all leases, even while the event loops are busy."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._leases: set[Leases] = set()
        self._thread: threading.Thread | None = None

    def beat_for(self, leases: Leases) -> None:
        """Keep these leases fresh until `forget`, or until the process ends."""
        with self._lock:
            self._leases.add(leases)
            # After a fork, the thread exists only in the parent.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._beat, name="filestore-leases", daemon=True)
                self._thread.start()

    def forget(self, leases: Leases) -> None:
        """Stop keeping these leases fresh."""
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


def _leases(holder: Path) -> Iterator[tuple[str, int]]:
    """Yield the keys of a holder, with the bytes that are reserved for each."""
    with suppress(OSError):
        for name in os.listdir(holder):  # noqa: PTH208  # names are enough
            key, _, size = name.partition("+")
            yield key, int(size) if _SIZE.match(size) else 0


def _identity(pid: int) -> str:
    """Return the part of a holder's name that identifies this process.

    Boot and namespace are zeros if the system says too little about processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        # Containers that share a disk and a kernel do not share process ids.
        namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116  # like the lines around it
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
        pass  # the process belongs to another user
    try:
        return _started(pid) == started
    except OSError:
        return True  # it exists, but the system hides it from us


def _started(pid: int) -> int | None:
    """Return the start time of a process in ticks since the boot, or None if the process has ended. Raises OSError."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The fields follow the name of the program, which may contain any character.
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in {"Z", "X"} else int(fields[18])
