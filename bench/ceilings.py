"""The limits of this machine, measured together with what is compared: GB/s of single, simple steps."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.data import bf16
from filestore.core.digest import chunk_digest
from filestore.format.chunking import Chunker
from filestore_cli.bench.ceilings import PIECE, copy, seconds, write

SIZE = 256 << 20


def ceilings(folder: Path) -> dict[str, float]:
    """Return the GB/s of each step. Files are written below `folder`."""
    source = folder / "ceiling-source"
    content = bf16(0, 32 << 20) * (SIZE >> 25)
    source.write_bytes(content)
    target = folder / "ceiling-target"
    memory = memoryview(mmap.mmap(-1, SIZE))
    memory[:] = content
    steps: dict[str, Callable[[], object]] = {
        "BLAKE3, one core": lambda: [chunk_digest(memory[start : start + PIECE]) for start in range(0, SIZE, PIECE)],
        "FastCDC, one core": lambda: Chunker().cut(memory, final=True),
        "copy of memory": lambda: copy(memory),
        "copy into fresh memory": lambda: bytearray(memory),
        "loopback, send to receive": lambda: _over_loopback(source, None, send=_send_copies),
        "loopback, sendfile to receive": lambda: _over_loopback(source, None, send=_send_file),
        "loopback, sendfile to a new file": lambda: _over_loopback(source, target, send=_send_file),
        "write to a new file": lambda: write(target, memory, synced=False),
        "write to a new file and sync": lambda: write(target, memory, synced=True),
    }
    try:
        return {name: SIZE / seconds(step) / 1e9 for name, step in steps.items()}
    finally:
        for path in (source, target):
            path.unlink(missing_ok=True)


def _over_loopback(source: Path, target: Path | None, *, send: Callable[[Path, socket.socket], None]) -> None:
    if target is not None:
        target.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send_to, args=(listener.getsockname(), source, send))
        sender.start()
        connection, _ = listener.accept()
        with connection:
            _receive(connection, target)
        sender.join()


def _send_to(address: tuple[str, int], source: Path, send: Callable[[Path, socket.socket], None]) -> None:
    with socket.create_connection(address) as connection:
        send(source, connection)


def _send_copies(source: Path, connection: socket.socket) -> None:
    place = memoryview(bytearray(PIECE))
    with source.open("rb", buffering=0) as file:
        while size := file.readinto(place):
            connection.sendall(place[:size])


def _send_file(source: Path, connection: socket.socket) -> None:
    with source.open("rb") as file, suppress(BrokenPipeError):
        connection.sendfile(file)


def _receive(connection: socket.socket, target: Path | None) -> None:
    place = memoryview(bytearray(PIECE))
    descriptor = os.open(target or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while size := connection.recv_into(place):
            if target is not None:
                os.write(descriptor, place[:size])
    finally:
        os.close(descriptor)
