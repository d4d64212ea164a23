"""Where a server keeps uploads in parts, and the LFS objects that no commit names yet.

`disk_uploads` keeps them in a folder that the processes of one server share, `object_uploads` in an object store that any server
shares. Here all methods are coroutines. They raise StorageError, StorageFull, Busy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.digest import Buffer
from filestore.core.manifest import Manifest
from filestore.http.server.lfs_objects import LfsObject
from filestore.http.server.routes.sdk.parts import UploadPart
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.repository.local import LocalRepository

PART_LIMIT = 10_000
"""Parts that an upload may have. S3 has the same limit."""
FILE_ID_START = "file_"


class Cut(NamedTuple):
    """The chunks of an upload that are cut and stored so far."""

    tags: list[str]
    """The tags of the parts from which these chunks were cut, from the first part on."""
    chunks: bytearray
    """The chunks, packed."""


class ArrivingPart(Protocol):
    """A part that is arriving. Its methods block."""

    @property
    def size(self) -> int:
        """Bytes that have arrived."""

    @property
    def tag(self) -> str:
        """64 hexadecimal digits that identify them: their BLAKE3."""

    def write(self, piece: Buffer) -> None:
        """Append the next bytes. Raises UploadNotFound if the upload was removed meanwhile, StorageFull, StorageError."""

    def check_quota(self) -> None:
        """Raise UploadsTooLarge if the unfinished uploads of the namespace are larger than its limit."""


class ServedUpload(Protocol):
    """One upload. Its methods raise UploadNotFound if it is gone."""

    id: str
    file_id: str
    name: str
    """The full name that the file will have, with its owner if it has one."""
    namespace: str
    path: Path
    """By what messages name its content."""

    def arriving(self, size: int) -> AbstractAsyncContextManager[ArrivingPart]:
        """Receive a part during the block, of which `size` bytes are announced. What was not kept is dropped at its end.

        Raises UploadsTooLarge.
        """

    async def keep(self, part: ArrivingPart, number: int, *, check_size: Callable[[int], None]) -> UploadPart:
        """Store a part that arrived, durably. Call it inside the block of `arriving`.

        `check_size` is called with the size of all parts together, and may raise LimitExceeded. Raises PartRefused if a
        part of that number is there with other bytes.
        """

    async def arrived(self, number: int) -> UploadPart | None:
        """Return the part of this number if it arrived whole."""

    async def parts(self) -> Sequence[UploadPart]:
        """Return all parts that arrived, in order. Where nothing is locked, a number may have two."""

    async def whole_parts(self) -> Sequence[UploadPart]:
        """Return each part for which `arrived` returns one, in order."""

    async def cut(self) -> Cut:
        """Return the saved cut, or an empty one if it cannot be read."""

    async def save_cut(self, tags: Sequence[str], chunks: Buffer) -> None:
        """Save the chunks that are cut so far."""

    async def finished(self) -> FinishedUpload | None:
        """Return how the upload was finished, or None while it is in progress."""

    async def save_first(self, finished: FinishedUpload) -> FinishedUpload:
        """Save how the upload was finished, unless it was finished before. Return what is saved.

        No part is accepted after that.
        """

    async def retire(self) -> None:
        """Remove what a finished upload has. How it was finished is remembered. The caller holds the lock."""

    async def request_stop(self) -> None:
        """Ask the process that cuts what arrived of the upload to stop, so that the lock becomes free."""

    async def withdraw_stop(self) -> None:
        """Take `request_stop` back, also if nobody has requested it."""

    async def is_stop_requested(self) -> bool:
        """Return whether somebody asks for a stop, or the upload is gone."""

    async def cancel(self) -> None:
        """Remove all of an upload that is not finished. No part is accepted after that. The caller holds the lock."""

    def locked(self, *, limit_seconds: float) -> AbstractAsyncContextManager[bool]:
        """Try to hold the lock for cutting and finishing during the block, which all servers share.

        The block learns whether it has it. It only saves work: with two that cut at once, both write the same.
        """


class UploadStore(Protocol):
    """The uploads of a repository."""

    @property
    def place(self) -> Path | None:
        """The folder that is written to. None if it is not one of this machine."""

    async def begin(self, repository: LocalRepository, *, name: str | None, upload_id: str | None) -> ServedUpload:
        """Begin an upload. Its name is its file id if `name` is None, and has its owner if it has one.

        `upload_id` is what `new_id` gave for it; None means a new one. If the namespace has begun it already, it is returned.

        Raises UploadNotFound if nothing can have this id here, TooManyUploads, MinFreeReached.
        """

    async def find(self, upload_id: str, *, namespace: str) -> ServedUpload:
        """Return the upload with this id in a namespace, also one that was finished a short time ago. Raises UploadNotFound."""

    async def discard(self, upload: ServedUpload) -> None:
        """Remove an upload that is not finished, unless a process cuts it."""

    async def expire(self, *, idle_seconds: float, limit_seconds: float) -> None:
        """Remove all uploads of which no byte arrived for `idle_seconds`, or that are older than `limit_seconds`.

        LFS objects that arrived more than `idle_seconds` ago are forgotten too. Raises OSError.
        """

    async def unfinished(self, namespace: str | None, *, prefix: str = "", limit: int) -> UnfinishedUploads:
        """Return the uploads of a namespace, or of all, that are not finished: at most `limit`, those used last first.

        Only those whose names begin with `prefix`.
        """

    async def remove_all(self, namespaces: Collection[str]) -> None:
        """Remove all uploads of these namespaces, except those that are locked. Raises OSError."""

    async def keep_object(self, namespace: str, lfs_object: LfsObject, manifest: bytes) -> None:
        """Remember an LFS object and its encoded manifest, durably."""

    async def find_object(self, namespace: str, sha256: bytes) -> LfsObject | None:
        """Return an object that is remembered, or None. One that cannot be read is not remembered."""

    async def find_object_with_manifest(self, namespace: str, sha256: bytes) -> tuple[LfsObject, Manifest] | None:
        """Return an object that is remembered, and its manifest, or None."""
