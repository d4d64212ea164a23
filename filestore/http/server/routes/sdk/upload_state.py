"""Keep what servers observed of uploads: since when each is unused, and how the last ones were finished.

    state.json      one JSON object, which is replaced as a whole
    state.lock      the lock of the process that replaces it

Both are in the folder of the uploads, so that all processes of a server, and of the next one, share them. The clock
here counts the seconds that pass by the monotonic clock of the machine. A restart of the machine begins that clock at
zero again; then only the time since the restart counts. So the clock here may be slow, and it never jumps: a change of
the machine's time removes nothing. All functions block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from filestore.errors import Busy
from filestore.http.server.context import spooling
from filestore.system.files import write_atomic
from filestore.system.locks import FileLock

FINISHED_LIMIT = 1000
"""How many finished uploads are remembered. Each takes about 350 bytes."""
BUSY_SECONDS = 30.0
"""How long a process that changes the state of uploads waits for others that do. Each needs only a moment."""

_STATE, _LOCK = "state.json", "state.lock"


class FinishedUpload(NamedTuple):
    """How an upload was finished."""

    tags_digest: str
    """64 hexadecimal digits that identify the list of its parts."""
    record_id: str

    @classmethod
    def of(cls, tags: Iterable[str], record_id: str) -> FinishedUpload:
        """Make one from the tags of the parts, in their order."""
        return cls(blake3("\n".join(tags).encode()).hexdigest(), record_id)

    @classmethod
    def parse(cls, text: bytes) -> FinishedUpload:
        """Return what `encode` encoded. Earlier versions wrote all tags."""
        tags, record_id = json.loads(text)
        return cls(tags, record_id) if isinstance(tags, str) else cls.of(tags, record_id)

    def encode(self) -> bytes:
        """Return this as JSON."""
        return json.dumps(self).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedUpload:
    """A finished upload whose folder is removed."""

    id: str
    file_id: str
    name: str
    namespace: str
    tags_digest: str
    record_id: str
    at: float
    """When it was finished, in seconds of the clock here."""


@dataclass(slots=True)
class _Values:
    monotonic: float
    """The time of the machine's monotonic clock at the last change."""
    seconds: float = 0.0
    """The time of the clock here at the last change."""
    uses: dict[str, tuple[str, float]] = field(default_factory=dict)
    """What the last use of each upload left, and when it was first seen."""
    begun: dict[str, float] = field(default_factory=dict)
    """When each upload was first seen."""
    finished: list[RememberedUpload] = field(default_factory=list)

    def advance(self, monotonic: float) -> None:
        # After a restart of the machine, all of its monotonic time has passed since the last change.
        self.seconds += monotonic - self.monotonic if monotonic >= self.monotonic else monotonic
        self.monotonic = monotonic


class UploadState:
    """The state of the uploads in one folder. Its methods raise Busy, StorageFull, StorageError."""

    def __init__(self, folders: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._folders = folders
        self._monotonic = monotonic

    def expired(self, uses: Callable[[], dict[str, str]], *, idle_seconds: float, limit_seconds: float) -> list[str]:
        """Return the ids of the uploads that expired. Forget old finished uploads.

        An upload expires when it was not used for longer than `idle_seconds`, and in any case when it is older than
        `limit_seconds`. `uses` returns, for each upload, a text that every use of the upload changes. It is called under
        the lock.
        """
        with self._changed() as values:
            seen = {}
            for upload_id, use in uses().items():
                known = values.uses.get(upload_id)
                seen[upload_id] = known if known is not None and known[0] == use else (use, values.seconds)
            values.uses = seen
            values.begun = {upload_id: values.begun.get(upload_id, values.seconds) for upload_id in seen}
            values.finished = [upload for upload in values.finished if values.seconds - upload.at <= idle_seconds]
            return [
                upload_id
                for upload_id, (_, since) in seen.items()
                if values.seconds - since > idle_seconds or values.seconds - values.begun[upload_id] > limit_seconds
            ]

    def remember(self, upload_id: str, finished: FinishedUpload, *, file_id: str, name: str, namespace: str) -> None:
        """Remember durably how an upload was finished. A second time does nothing. The oldest ones are forgotten."""
        with self._changed() as values:
            if any(known.id == upload_id for known in values.finished):
                return
            remembered = RememberedUpload(
                id=upload_id, file_id=file_id, name=name, namespace=namespace, at=values.seconds, **finished._asdict()
            )
            values.finished = [*values.finished, remembered][-FINISHED_LIMIT:]

    def find(self, upload_id: str) -> RememberedUpload | None:
        """Return a finished upload that is remembered, or None."""
        return next((known for known in self._load().finished if known.id == upload_id), None)

    @contextmanager
    def _changed(self) -> Iterator[_Values]:
        """Give the values, with the time of now, and write them at the end of the block."""
        with spooling(), FileLock.of_file(self._folders / _LOCK, is_required=False) as lock:
            if not lock.acquire(limit_seconds=BUSY_SECONDS):
                raise Busy(str(self._folders), f"{lock.holder()} of the server holds it")
            values = self._load()
            values.advance(self._monotonic())
            yield values
            write_atomic(self._folders / _STATE, json.dumps(asdict(values)).encode())

    def _load(self) -> _Values:
        """Return the values. They are empty if there are none yet, or if they cannot be read."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads((self._folders / _STATE).read_bytes())
            uses = {upload_id: (str(use), float(since)) for upload_id, (use, since) in found["uses"].items()}
            # Earlier versions did not note this.
            begun = {upload_id: float(since) for upload_id, since in found.get("begun", {}).items()}
            finished = [RememberedUpload(**known) for known in found["finished"]]
            return _Values(float(found["monotonic"]), float(found["seconds"]), uses, begun, finished)
        return _Values(self._monotonic())
