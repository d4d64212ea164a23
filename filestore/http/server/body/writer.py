"""Write the body of an answer to its connection, under a stall timer."""

from __future__ import annotations

import io
import os
import select
import socket
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from filestore.core.digest import Buffer
from filestore.errors import Stalled
from filestore.http.server.body.connection import PATIENCE_MILLISECONDS, PEER, PIECE, writable
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

    def __init__(self, connection: socket.socket, *, stall_seconds: float) -> None:
        """Write to `connection`, which the caller closes. Nobody else may write to it meanwhile."""
        self._connection = connection
        self._timer = StallTimer(stall_seconds, connection=connection)

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
            if not taken and not await writable(self._connection, seconds=PATIENCE_SECONDS):
                break
            sent += taken
        return sent

    async def wait(self) -> None:
        """Wait until the client takes more. Raises Stalled."""
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
        socket_writer = _SocketWriter(self._connection, parts)
        counted = 0
        while not await in_disk_thread(socket_writer.write_timed_slice):
            self._timer.count(socket_writer.sent - counted)
            counted = socket_writer.sent
            if socket_writer.is_held_up:
                await self.wait()
        return socket_writer.sent

    def _send(self, view: memoryview) -> int:
        """Send the bytes that the kernel takes without a wait. Return their number."""
        try:
            sent = self._connection.send(view)
        except BlockingIOError:
            return 0
        self._timer.count(sent)
        return sent


class _SocketWriter:
    """Send files in threads, in one thread at a time."""

    def __init__(self, connection: socket.socket, parts: Sequence[FilePart]) -> None:
        self.sent = 0
        self.is_held_up = False
        self._connection = connection
        self._parts = [part for part in parts if part.size]
        self._place = 0
        self._offset = 0
        self._is_unreadable = False

    def write_timed_slice(self) -> bool:
        """Call `write_slice`, measured as a stage."""
        before = self.sent
        with span(Stage.SEND) as sending:
            is_whole = self.write_slice()
            sending.add(self.sent - before)
        return is_whole

    def write_slice(self) -> bool:
        """Send up to about `SLICE_SIZE` bytes while the client takes them. Return whether everything was sent. Blocks.

        It runs in a thread, not in the event loop, because `sendfile` waits for the disk.
        """
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        self.is_held_up = False
        end = self.sent + SLICE_SIZE
        while self._place < len(self._parts):
            if self.sent >= end:
                return False
            try:
                sent = self._send(self._parts[self._place])
            except BlockingIOError:
                if poll.poll(PATIENCE_MILLISECONDS):
                    continue
                self.is_held_up = True
                return False
            self.sent += sent
            self._offset += sent
            if self._offset == self._parts[self._place].size:
                self._place, self._offset, self._is_unreadable = self._place + 1, 0, False
        return True

    def _send(self, part: FilePart) -> int:
        size = part.size - self._offset
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
        return self._connection.send(_ZEROS[:size])

    def _send_content(self, part: FilePart, size: int) -> int:
        try:
            descriptor = part.file.fileno()
        except io.UnsupportedOperation:
            part.file.seek(self._offset)
            content = part.file.read(min(size, PIECE))
            return self._connection.send(content) if content else 0
        return os.sendfile(self._connection.fileno(), descriptor, self._offset, size)
