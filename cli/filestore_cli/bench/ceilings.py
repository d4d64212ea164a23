"""Measure the highest rates of this machine: bytes a second of single, simple steps."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

PIECE = 1 << 20


def ceilings(folder: Path, *, size: int) -> dict[str, float]:
    """Return the rate of each step with `size` bytes, at least some MiB. A file is written in `folder`, and removed."""
    memory = memoryview(mmap.mmap(-1, size))
    # Not zeros, since some disks do not write them.
    block = os.urandom(PIECE)
    for start in range(0, size, PIECE):
        memory[start : start + PIECE] = block[: size - start]
    target = folder / "ceiling"
    steps: dict[str, Callable[[], object]] = {
        "memory_copy": lambda: copy(memory),
        "blake3": lambda: _hash(memory),
        "loopback": lambda: _over_loopback(memory),
        "disk_write_sync": lambda: write(target, memory, synced=True),
    }
    try:
        return {name: size / seconds(step) for name, step in steps.items()}
    finally:
        target.unlink(missing_ok=True)


def seconds(step: Callable[[], object]) -> float:
    """Return how long a step takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def copy(memory: memoryview) -> None:
    """Copy `memory`, piece by piece, to one place in memory again and again."""
    place = memoryview(bytearray(PIECE))
    for start in range(0, len(memory), PIECE):
        piece = memory[start : start + PIECE]
        place[: len(piece)] = piece


def _hash(memory: memoryview) -> None:
    """Hash `memory` on one core, piece by piece, as chunks are hashed."""
    for start in range(0, len(memory), PIECE):
        blake3(memory[start : start + PIECE]).digest()


def write(path: Path, memory: memoryview, *, synced: bool) -> None:
    """Write `memory` to a new file, piece by piece."""
    path.unlink(missing_ok=True)
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(memory), PIECE):
            file.write(memory[start : start + PIECE])
        if synced:
            os.fsync(file.fileno())


def _over_loopback(memory: memoryview) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send, args=(listener.getsockname(), memory))
        sender.start()
        connection, _ = listener.accept()
        place = memoryview(bytearray(PIECE))
        with connection:
            while connection.recv_into(place):
                pass
        sender.join()


def _send(address: tuple[str, int], memory: memoryview) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(memory)
