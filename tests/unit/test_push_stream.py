from __future__ import annotations

import asyncio
import fcntl
import os
import random
import struct
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from filestore.core.progress import Progress
from filestore.errors import ChunksMissing, InvalidName, LimitExceeded, NotFound, SourceUnreadable
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Identity
from filestore.transfer.fetch import fetch
from filestore.transfer.push import manifest_of
from filestore.transfer.push_stream import push_stream
from tests.support.watched import WatchedRepository

MIB = 1 << 20
CONTENT = random.Random(1).randbytes(21 * MIB)
"""More than one window."""


@contextmanager
def piped(pieces: Sequence[bytes]) -> Iterator[int]:
    """A descriptor at which the pieces arrive, one after the other."""
    reads, writes = os.pipe()

    def write() -> None:
        for piece in pieces:
            _write_all(writes, piece)
        os.close(writes)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield reads
    finally:
        os.close(reads)
        thread.join()


@pytest.mark.parametrize("seed", range(3))
async def test_a_stream_is_stored_as_its_file_would_be(watched: WatchedRepository, tmp_path: Path, seed: int) -> None:
    """The same chunks, however the bytes arrive, and the same bytes back."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(len(CONTENT)), 40))
    pieces = [CONTENT[start:end] for start, end in zip([0, *cuts], [*cuts, len(CONTENT)], strict=True)]
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    reported: list[Progress] = []
    with piped(pieces) as descriptor:
        pushed = await push_stream(watched, descriptor, name="stream.bin", report=reported.append)

    assert pushed.record.digest == (await manifest_of(path)).digest
    assert (len(CONTENT), len(CONTENT), 0) == (pushed.record.size, pushed.bytes_read, pushed.bytes_shared)
    fetched = await fetch(watched, "stream.bin", target=tmp_path / "back.bin")
    assert fetched.path.read_bytes() == CONTENT
    assert not reported[0].is_total_known
    assert reported[-1].is_total_known
    assert reported[-1].total == reported[-1].done == len(CONTENT)


async def test_a_stream_in_a_file_is_one_too(repository: LocalRepository, tmp_path: Path) -> None:
    """`push - < FILE` reads a regular file."""
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT[:MIB])
    with path.open("rb") as file:
        pushed = await push_stream(repository, file.fileno(), name="stream.bin")
    assert pushed.record.digest == (await manifest_of(path)).digest


async def test_a_second_push_of_a_stream_sends_nothing(watched: WatchedRepository) -> None:
    """What the repository has is not sent again."""
    for sent in (len(CONTENT), 0):
        with piped([CONTENT]) as descriptor:
            pushed = await push_stream(watched, descriptor, name="stream.bin")
        assert pushed.bytes_shared == len(CONTENT) - sent
        assert (pushed.bytes_sent == 0) == (sent == 0)


async def test_an_empty_stream_is_refused(watched: WatchedRepository) -> None:
    """What should have written it has failed. Nothing is recorded."""
    with piped([]) as descriptor, pytest.raises(SourceUnreadable, match="no bytes arrived"):
        await push_stream(watched, descriptor, name="stream.bin")
    assert "commit" not in watched.calls


@pytest.mark.parametrize(("name", "branch", "error"), [("a/b/c", "main", InvalidName), ("x", "none", NotFound)])
async def test_what_is_refused_is_refused_before_it_is_read(
    watched: WatchedRepository, name: str, branch: str, error: type[Exception]
) -> None:
    """A stream can be read once only."""
    with piped([CONTENT[:1000]]) as descriptor:
        with pytest.raises(error):
            await push_stream(watched, descriptor, name=name, branch=branch)
        assert len(os.read(descriptor, 2000)) == 1000


async def test_a_stream_that_is_too_large_ends_early(repository: LocalRepository) -> None:
    """It is refused as soon as it has more bytes than the server takes, and not at its end."""

    class Limited(WatchedRepository):
        async def identity(self) -> Identity:
            return (await super().identity())._replace(upload_limit=9 * MIB)

    with piped([CONTENT]) as descriptor, pytest.raises(LimitExceeded):
        await push_stream(Limited(repository), descriptor, name="stream.bin")


async def test_a_push_that_is_cancelled_does_not_wait_for_the_writer(repository: LocalRepository) -> None:
    """The writer has written something and goes on later, or never."""
    reads, writes = os.pipe()
    try:
        os.write(writes, b"the beginning")
        pushing = asyncio.create_task(push_stream(repository, reads, name="stream.bin"))
        while not _is_read(reads):
            await asyncio.sleep(0)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
    finally:
        os.close(reads)
        os.close(writes)


async def test_an_error_of_the_repository_does_not_wait_for_the_writer(watched: WatchedRepository) -> None:
    """The push fails while the stream is open."""

    async def fail(verb: str) -> None:
        if verb == "put":
            raise LimitExceeded("the size", 2, 1)

    watched.before = fail
    reads, writes = os.pipe()
    writer = threading.Thread(target=_write_all, args=(writes, CONTENT))
    writer.start()
    try:
        with pytest.raises(LimitExceeded):
            await push_stream(watched, reads, name="stream.bin")
    finally:
        os.close(reads)
        writer.join()
        os.close(writes)


async def test_a_chunk_that_was_lost_cannot_be_sent_again(watched: WatchedRepository, tmp_path: Path) -> None:
    """The push says what to do, and records nothing."""
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    lost = (await manifest_of(path)).chunks[0].digest

    async def lose(verb: str) -> None:
        if verb == "commit":
            raise ChunksMissing(str(lost))

    watched.before = lose
    with piped([CONTENT]) as descriptor, pytest.raises(SourceUnreadable, match="it cannot be read again; push it once more"):
        await push_stream(watched, descriptor, name="stream.bin")


def _is_read(descriptor: int) -> bool:
    """Whether a pipe is empty now."""
    return bool(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0] == 0)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    with suppress(BrokenPipeError):
        while left:
            left = left[os.write(descriptor, left) :]
