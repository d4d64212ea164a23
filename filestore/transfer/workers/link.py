"""Send messages and open files between two processes of one transfer.

A message is a pickle. Both ends are processes of this program, which trust each other: nobody else has the socket.
"""

from __future__ import annotations

import asyncio
import os
import pickle  # between processes of one transfer
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

_HEAD = struct.Struct("<IB")
"""Bytes of the message, and how many open files come with it."""
_RECEIVE_SIZE = 64 << 10
_FILES_LIMIT = 250
"""The most open files that one message may have; Linux takes 253."""
_DESCRIPTOR = struct.Struct("i")
_FILES_SIZE = socket.CMSG_LEN(_FILES_LIMIT * _DESCRIPTOR.size)
_IS_CUT = int(socket.MSG_CTRUNC)
"""A number: an operation on a flag of `enum` takes longer than to receive a message."""

Received = Callable[[Any, list[int]], None]
"""A function that is called with a message and the descriptors that came with it, which it must close."""


class _Waiting(NamedTuple):
    content: memoryview
    descriptors: Sequence[int]


class Link:
    """One end of a connection between two processes. For one event loop, whose thread alone uses it."""

    def __init__(self, connected: socket.socket, *, received: Received, lost: Callable[[], None]) -> None:
        """Take over `connected`, one end of a `socketpair`. Call it in the event loop.

        `lost` is called once, when the other process has closed its end or has ended, or when a message cannot be read.
        """
        connected.setblocking(False)  # noqa: FBT003
        self._socket = connected
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._content = bytearray()
        self._files: deque[list[int]] = deque()
        """The open files of each message that has some. The system gives those of two messages in two calls."""
        self._waiting: deque[_Waiting] = deque()
        self._is_sent = asyncio.Event()
        self._is_sent.set()
        self.is_open = True
        self._loop.add_reader(connected, self._read)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message. The other process gets duplicates of `descriptors`. To a closed end nothing is sent.

        The files are duplicated at once, so the caller may close them.
        """
        if not self.is_open:
            return
        content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        if len(descriptors) > _FILES_LIMIT:
            raise ValueError(f"a message has {len(descriptors)} open files")
        data = memoryview(_HEAD.pack(len(content), len(descriptors)) + content)
        if self._waiting:
            # They are sent later, when the caller may have closed them.
            self._waiting.append(_Waiting(data, [os.dup(each) for each in descriptors]))
            return
        sent = self._send_some(data, descriptors)
        if sent < len(data) and self.is_open:
            self._waiting.append(_Waiting(data[sent:], [] if sent else [os.dup(each) for each in descriptors]))
            self._is_sent.clear()
            self._loop.add_writer(self._socket, self._write)

    async def sent(self) -> None:
        """Wait until the other process has taken all messages, or the link is lost."""
        await self._is_sent.wait()

    def close(self) -> None:
        """Close this end. The other process then loses the link. `lost` is not called for this end."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for waiting in self._waiting:
            close_all(waiting.descriptors)
        for files in self._files:
            close_all(files)
        self._waiting.clear()
        self._files.clear()
        self._is_sent.set()

    def forget(self) -> None:
        """Close the socket of this end in a forked child, and leave the rest to the parent. Without an event loop."""
        self.is_open = False
        # The descriptor alone: the event loop of the parent may share its list of files with the child.
        with suppress(OSError):
            os.close(self._socket.detach())

    def _send_some(self, data: memoryview, descriptors: Sequence[int]) -> int:
        """Return how many bytes the other process can take now. The open files go with the first of them."""
        try:
            return socket.send_fds(self._socket, [data], list(descriptors)) if descriptors else self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._lose()
            return len(data)

    def _write(self) -> None:
        while self._waiting:
            data, descriptors = self._waiting.popleft()
            sent = self._send_some(data, descriptors)
            if not self.is_open:
                close_all(descriptors)
                return
            if not sent:
                self._waiting.appendleft(_Waiting(data, descriptors))
                return
            close_all(descriptors)
            if sent < len(data):
                self._waiting.appendleft(_Waiting(data[sent:], ()))
                return
        self._loop.remove_writer(self._socket)
        self._is_sent.set()

    def _read(self) -> None:
        try:
            content, others, flags, _ = self._socket.recvmsg(_RECEIVE_SIZE, _FILES_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            content, others, flags = b"", [], 0
        if others:
            self._take_files(others)
        if not content or flags & _IS_CUT:  # the end, or this process may open no more files
            self._lose()
            return
        self._content += content
        while self.is_open and len(self._content) >= _HEAD.size:
            size, file_count = _HEAD.unpack_from(self._content)
            end = _HEAD.size + size
            if len(self._content) < end:
                return
            files = self._files.popleft() if file_count and self._files else []
            if len(files) != file_count:
                close_all(files)
                self._lose()
                return
            try:
                message = pickle.loads(memoryview(self._content)[_HEAD.size : end])  # noqa: S301  # as above
            except Exception:  # noqa: BLE001  # a pickle may raise anything
                close_all(files)
                self._lose()
                return
            del self._content[:end]
            self._received(message, files)

    def _take_files(self, others: list[tuple[int, int, bytes]]) -> None:
        """Keep the open files that came with a message, as `socket.recv_fds` finds them."""
        files = []
        for level, kind, data in others:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = data[: len(data) // _DESCRIPTOR.size * _DESCRIPTOR.size]
                files += [each for (each,) in _DESCRIPTOR.iter_unpack(whole)]
        for each in files:
            os.set_inheritable(each, False)  # noqa: FBT003
        if files:
            self._files.append(files)

    def _lose(self) -> None:
        if self.is_open:
            self.close()
            self._lost()


def close_all(descriptors: Iterable[int]) -> None:
    """Close these descriptors."""
    for each in descriptors:
        os.close(each)
