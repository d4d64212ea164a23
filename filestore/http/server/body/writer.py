"""Write the body of an answer to its connection, under a stall timer."""

from __future__ import annotations

import asyncio
import io
import select
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from filestore.core.digest import Buffer
from filestore.core.unlocked import unlocked
from filestore.errors import Stalled
from filestore.http.server.body.connection import (
    PATIENCE_MILLISECONDS,
    PEER,
    PIECE,
    Connection,
    held,
    send,
    send_file,
    socket_of,
    writable,
)
from filestore.http.server.throttle import Throttle
from filestore.system.files import is_unreadable
from filestore.system.metrics import Stage, span
from filestore.system.stalls import StallTimer
from filestore.system.threads import in_disk_thread

SLICE_SIZE = 8 << 20
"""Bytes of files that a thread sends in one slice, if the client takes them without a pause."""
OFFER_SIZE = 1 << 20
"""Bytes that the event loop copies to the kernel in one call, which takes 0.2 ms."""
_ZEROS = memoryview(bytes(PIECE))
PATIENCE_SECONDS = 0.25
"""How long decoded bytes wait for a client. After that, their memory is given to other requests."""


class FilePart(NamedTuple):
    """The first `size` bytes of an open file, which are to be sent."""

    file: BinaryIO
    size: int


class BodyWriter:
    """Send the bytes of a body. When a call returns, the kernel has them, and none waits in this process."""

    def __init__(self, connection: Connection, *, stall_seconds: float, throttle: Throttle | None = None) -> None:
        """Write to `connection`, which the caller closes. Nobody else may write to it meanwhile.

        `throttle` limits the rate. To this object, a client that may get nothing now is one that takes nothing now.
        """
        self.sent = 0
        """The bytes that the kernel has taken."""
        self._connection = connection
        self._throttle = throttle
        self._timer = StallTimer(stall_seconds, connection=socket_of(connection))

    async def send(self, piece: Buffer) -> None:
        """Send a piece of at most 256 KiB (I6). Raises Stalled, ConnectionError."""
        view = memoryview(piece)
        while view := view[self._send(view) :]:
            await self.wait()

    async def offer(self, piece: Buffer) -> int:
        """Send as much of a piece as the client takes soon. Return the number of bytes. Raises ConnectionError."""
        view = memoryview(piece)
        sent = 0
        while sent < len(view):
            taken = self._send(view[sent : sent + OFFER_SIZE])
            if not taken and not (await self._soon_permitted() and await writable(self._connection, seconds=PATIENCE_SECONDS)):
                break
            sent += taken
        return sent

    async def wait(self) -> None:
        """Wait until the client takes more. Raises Stalled."""
        if self._throttle is not None:
            await self._throttle.wait()
        while (left := self._timer.left()) > 0:
            began = self._timer.began()
            is_writable = await writable(self._connection, seconds=left)
            self._timer.ended(began)
            if is_writable:
                return
        raise Stalled(PEER, self._timer.seconds)

    async def send_files(self, parts: Sequence[FilePart]) -> int:
        """Send files one after the other, by `sendfile` where possible. Return the number of bytes.

        If a part of a file cannot be read, zeros are sent in its place. The receiver then finds out that the frame is
        damaged, and receives the other frames. Raises Stalled, ConnectionError.
        """
        sending = FileWriter(self._connection, parts)
        while not await self.offer_files(sending):
            await self.wait()
        return sending.sent

    def files(self, parts: Sequence[FilePart]) -> FileWriter:
        """Return an object that sends the files of frames, for `offer_files`, measured. It closes each one when it is sent."""
        return FileWriter(self._connection, parts, stage=Stage.SEND)

    async def offer_files(self, sending: FileWriter) -> bool:
        """Send as much of files as the client takes soon. Return whether all was sent. Raises ConnectionError."""
        began_at = sending.sent
        try:
            return await self._offer_files(sending)
        finally:
            self.sent += sending.sent - began_at

    async def _offer_files(self, sending: FileWriter) -> bool:
        while True:
            before = sending.sent
            limit = None if self._throttle is None else self._throttle.take(SLICE_SIZE)
            if limit == 0:
                if not await self._soon_permitted():
                    return False
                continue
            is_whole = await self._write_slice(sending, limit)
            if self._throttle is not None and limit is not None:
                self._throttle.give_back(limit - (sending.sent - before))
            if is_whole:
                return True
            self._timer.count(sending.sent - before)
            if sending.is_held_up and not await self._soon_writable():
                return False

    async def _soon_permitted(self) -> bool:
        """Wait until bytes may be moved, if that is soon. Return whether they may be."""
        delay = 0.0 if self._throttle is None else self._throttle.delay()
        if 0 < delay <= PATIENCE_SECONDS:
            await asyncio.sleep(delay)
        return delay <= PATIENCE_SECONDS

    async def _write_slice(self, sending: FileWriter, limit: int | None) -> bool:
        with held(self._connection):
            return await in_disk_thread(sending.write_timed_slice, limit)

    async def _soon_writable(self) -> bool:
        began = self._timer.began()
        is_writable = await writable(self._connection, seconds=PATIENCE_SECONDS)
        self._timer.ended(began)
        return is_writable

    def _send(self, view: memoryview) -> int:
        """Send the bytes that the kernel takes without a wait. Return their number."""
        limit = len(view) if self._throttle is None else self._throttle.take(len(view))
        try:
            sent = send(self._connection, view[:limit]) if limit else 0
        except BlockingIOError:
            sent = 0
        if self._throttle is not None:
            self._throttle.give_back(limit - sent)
        self._timer.count(sent)
        self.sent += sent
        return sent


class FileWriter:
    """Send files in threads, in one thread at a time."""

    def __init__(self, connection: Connection, parts: Sequence[FilePart], *, stage: Stage | None = None) -> None:
        """`stage` is the one to which the time and the bytes are counted. With it, the files are closed."""
        self.sent = 0
        self.is_held_up = False
        self.place = 0
        """The number of the part that is sent now."""
        self._connection = connection
        self._stage = stage
        self._parts = list(parts)
        self._offset = 0
        self._is_unreadable = False

    def end_after_this_part(self) -> None:
        """Send no part after the one that is sent now. The caller may close the files of the others."""
        del self._parts[self.place + 1 :]

    def write_timed_slice(self, limit: int | None = None) -> bool:
        """Call `write_slice`, measured if it belongs to a stage."""
        if self._stage is None:
            return self.write_slice(limit)
        before = self.sent
        with span(self._stage) as sending:
            is_whole = self.write_slice(limit)
            sending.add(self.sent - before)
        return is_whole

    def write_slice(self, limit: int | None = None) -> bool:
        """Send up to `limit` bytes, or about `SLICE_SIZE`, while the client takes them. Return whether everything was sent.

        It blocks.

        It runs in a thread, not in the event loop, because `sendfile` waits for the disk.
        """
        poll = select.poll()
        poll.register(socket_of(self._connection), select.POLLOUT)
        self.is_held_up = False
        end = self.sent + (SLICE_SIZE if limit is None else limit)
        while self.place < len(self._parts):
            if self.sent >= end:
                return False
            if self._offset == self._parts[self.place].size:
                if self._stage is not None and self._offset:
                    # Here, because it may block, and the next frames need a thread anyway.
                    unlocked(self._parts[self.place].file.close)
                self.place, self._offset, self._is_unreadable = self.place + 1, 0, False
                continue
            try:
                part = self._parts[self.place]
                sent = self._send(part, part.size if limit is None else end - self.sent)
            except BlockingIOError:
                if unlocked(poll.poll, PATIENCE_MILLISECONDS):
                    continue
                self.is_held_up = True
                return False
            self.sent += sent
            self._offset += sent
        return True

    def _send(self, part: FilePart, limit: int) -> int:
        size = min(part.size - self._offset, limit)
        if not self._is_unreadable:
            try:
                sent = self._send_content(part, size)
            except OSError as error:
                if not is_unreadable(error):
                    raise
                sent = 0
            if sent:
                return sent
            # The rest of the file is on a bad sector, or the file has become shorter.
            self._is_unreadable = True
        return send(self._connection, _ZEROS[:size])

    def _send_content(self, part: FilePart, size: int) -> int:
        try:
            descriptor = part.file.fileno()
        except io.UnsupportedOperation:
            part.file.seek(self._offset)
            content = part.file.read(min(size, PIECE))
            return send(self._connection, content) if content else 0
        return send_file(self._connection, descriptor, self._offset, size)
