"""Frames that are received for an object store, and put into it before the transaction that makes them visible."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Container, Sequence
from concurrent.futures import wait
from typing import cast

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import NO_OBJECT_ID, OBJECT_ID_SIZE, ObjectName
from filestore.errors import Busy
from filestore.repository.stores.protocol import PUBLISHED_WITHIN_SECONDS, Staging
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_keys import frame_key
from filestore.repository.stores.staging_file import DiskStaging
from filestore.system.clock import elapsed_seconds
from filestore.system.metrics import Stage, span
from filestore.system.threads import thread_pool

PIECES_SIZE = 256 << 10
"""A frame that arrives in pieces is in a staging file when it has more bytes (I6). A whole one stays in memory."""
MEMORY_SIZE = 64 << 20
"""The most bytes of all frames in memory that are not put yet. Those that do not fit are in files too."""
_PUTS_COUNT = 32
"""How many frames a process puts at the same time."""
_PUTS_SIZE = 64 << 20
"""The most bytes of them in memory."""


class ByteLimit:
    """A number of bytes that threads share."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._changed = threading.Condition()

    def try_take(self, size: int) -> bool:
        """Take bytes if there are as many."""
        with self._changed:
            if size > self._left:
                return False
            self._left -= size
            return True

    def take(self, size: int) -> None:
        """Wait until there are so many bytes, and take them. `size` is not larger than the limit."""
        with self._changed:
            self._changed.wait_for(lambda: size <= self._left)
            self._left -= size

    def give_back(self, size: int) -> None:
        """Give bytes back that were taken."""
        with self._changed:
            self._left += size
            self._changed.notify_all()


class FrameMemory(ByteLimit):
    """Memory for whole frames, which is used again: to get new pages of memory costs more than the copy of a frame.

    What is in use and what waits to be used are never more than the limit.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._free: deque[bytearray] = deque()

    def try_copy(self, data: Buffer) -> memoryview | None:
        """Return a copy of `data` if there is room for it. Give it back by `free`."""
        size = _whole_pieces(len(data))
        if not self.try_take(size):
            return None
        with self._changed:
            place = next((place for place, free in enumerate(self._free) if len(free) == size), None)
            found = None
            if place is not None:
                found = self._free[place]
                del self._free[place]
            self._drop()
        part = memoryview(bytearray(size) if found is None else found)[: len(data)]
        part[:] = data
        return part

    def free(self, part: memoryview) -> None:
        """Take memory back. It is used again only if nobody else can read it any more."""
        buffer = cast(bytearray, part.obj)  # of `try_copy`
        self.give_back(_whole_pieces(len(part)))
        try:
            part.release()
            # It cannot change its size while anybody has a view of it.
            buffer.append(buffer.pop())
        except BufferError:
            return  # obstore has it still, after a request that failed
        with self._changed:
            self._free.append(buffer)
            self._drop()

    def _drop(self) -> None:
        while sum(map(len, self._free)) > self._left:
            self._free.popleft()


def _whole_pieces(size: int) -> int:
    return -(-size // PIECES_SIZE) * PIECES_SIZE


class S3Staging:
    """A frame that is being received: in memory if it is small or arrives whole, and if there is room; else in a staging file."""

    def __init__(self, memory: FrameMemory, new_file: Callable[[], DiskStaging]) -> None:
        self.size = 0
        self.object_id = NO_OBJECT_ID
        self.put_at = 0.0
        """When its object was begun to be put, by `elapsed_seconds`."""
        self._memory = memory
        self._new_file = new_file
        self._content = bytearray()
        self._whole: memoryview | None = None
        """A frame of more than PIECES_SIZE that has arrived whole."""
        self._file: DiskStaging | None = None

    def write(self, data: Buffer) -> None:
        if self._file is None:
            if not self.size and len(data) > PIECES_SIZE:
                self._whole = self._memory.try_copy(data)
                if self._whole is not None:
                    self.size = len(data)
                    return
            elif self.size + len(data) <= PIECES_SIZE and self._memory.try_take(len(data)):
                self._content += data
                self.size += len(data)
                return
            self._file = self._new_file()
            self._file.write(self._in_memory())
            self._forget_content()
        self._file.write(data)
        self.size = self._file.size

    def rest(self) -> None:
        if self._file is not None:
            self._file.rest()

    def read_into(self, buffer: memoryview) -> None:
        if self._file is None:
            buffer[: self.size] = self._in_memory()
        else:
            self._file.read_into(buffer)

    def put(self, client: S3Client, key: str, limit: ByteLimit) -> None:
        """Put the bytes that were written. Blocks."""
        if self._file is None:
            client.put_blocking(key, self._in_memory())
            return
        taken = min(self.size, _PUTS_SIZE)
        limit.take(taken)
        try:
            content = bytearray(self.size)
            self._file.read_into(memoryview(content))
            client.put_blocking(key, content)
        finally:
            limit.give_back(taken)

    def become(self, object_id: bytes, put_at: float) -> None:
        """Note the object that was made of the frame, and free everything else."""
        self.object_id, self.put_at = object_id, put_at
        self.discard()

    def discard(self) -> None:
        self._forget_content()
        if self._file is not None:
            self._file.discard()

    def _in_memory(self) -> memoryview:
        return memoryview(self._content) if self._whole is None else self._whole

    def _forget_content(self) -> None:
        if self._whole is not None:
            self._memory.free(self._whole)
            self._whole = None
        self._memory.give_back(len(self._content))
        # Not emptied: obstore may still read it.
        self._content = bytearray()


class Puts:
    """Puts frames side by side."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._limit = ByteLimit(_PUTS_SIZE)

    def put_all(self, namespace: str, staged: Sequence[tuple[Digest, S3Staging]]) -> None:
        """Put frames, each under a new key. Blocks until all calls have ended, and raises the error of the first that failed."""
        # Not the threads of the caller: one of them waits here.
        pool = thread_pool("puts", _PUTS_COUNT)
        calls = [pool.submit(self._put, namespace, *frame) for frame in staged if frame[1].object_id == NO_OBJECT_ID]
        wait(calls)
        for call in calls:
            call.result()

    def _put(self, namespace: str, digest: Digest, staging: S3Staging) -> None:
        object_id = new_object_id()
        put_at = elapsed_seconds()
        with span(Stage.SYNC, staging.size):
            staging.put(self._client, frame_key(namespace, ObjectName(digest, object_id)), self._limit)
        staging.become(object_id, put_at)


class S3Placement:
    """Frames that get their rows. Nothing is renamed: the row names the object."""

    def __init__(self, where: str, staged: Sequence[tuple[Digest, S3Staging]]) -> None:
        self._where = where
        self._staged = staged

    def prepare(self) -> None:
        """Raise ValueError for a frame that was not synced: its row would name no object."""
        if not all(staging.object_id for _, staging in self._staged):
            raise ValueError("a frame was not put before it is published")

    def rename(self, digests: Container[Digest]) -> None:
        """Check that no sweep can remove the objects before their rows are committed. Raises Busy."""
        oldest = min((staging.put_at for digest, staging in self._staged if digest in digests), default=elapsed_seconds())
        if elapsed_seconds() - oldest > PUBLISHED_WITHIN_SECONDS:
            raise Busy(self._where, "the frames waited for so long that they must be sent again")

    def sync(self) -> None:
        """Do nothing: the store has answered that it keeps the objects."""

    def close(self) -> None:
        """Do nothing, because no resources are held."""


def new_object_id() -> bytes:
    """Return an id that no object has had."""
    return secrets.token_bytes(OBJECT_ID_SIZE)


def staged_here(staged: Sequence[tuple[Digest, Staging]]) -> list[tuple[Digest, S3Staging]]:
    """Return frames as what `S3Store.new_staging` made of them. Raises TypeError for those of another store."""
    found = [(digest, staging) for digest, staging in staged if isinstance(staging, S3Staging)]
    if len(found) < len(staged):
        raise TypeError("a frame is staged for another store")
    return found
