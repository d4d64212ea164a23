"""The job of a worker process in a fetch, without a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Chunk
from filestore.errors import DamagedChunk
from filestore.format.zip.checksum import crc32
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Moved, Repository
from filestore.transfer.receive_job import ReceiveJob, Write, WriteFailed
from filestore.transfer.sinks.protocol import OvertakenError, Staging
from tests.support.frames import contents, encoded
from tests.support.watched import WatchedRepository

T = TypeVar("T")


class FlippedBits(WatchedRepository):
    """Frames lose a bit on the way, the first `times` times."""

    def __init__(self, inner: Repository, times: int) -> None:
        super().__init__(inner)
        self.times = times

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        frames = await super().get(digests, buffer, moved=moved)
        if self.times:
            self.times -= 1
            frame = frames[-1]
            assert frame is not None
            frame[-1] ^= 1
        return frames


class FakeWorker:
    """What a job has in a worker process."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.size_moved = 0

    async def ask(self, question: object) -> Any:
        raise NotImplementedError

    def moved(self, size: int) -> None:
        self.size_moved += size

    def kept(self, key: str, make: Callable[[], T]) -> T:  # noqa: ARG002  # the protocol's
        return make()


PIECES = contents(3, size=50_000, seed=3)
FRAMES = [encoded(piece) for piece in PIECES]
SENT = sum(len(frame.data) for frame in FRAMES)


@pytest.fixture
async def stored(repository: LocalRepository) -> LocalRepository:
    """A repository with three chunks."""
    await repository.put(FRAMES)
    return repository


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    """Two open files. The first one is the staging."""
    descriptors = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("staging", "other")]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def job_of(files: Sequence[int], tmp_path: Path, *, is_summed: bool = True) -> ReceiveJob:
    """The first chunk goes to both files, the others to the first one."""
    return ReceiveJob.of(
        [Chunk(frame.digest, len(piece)) for frame, piece in zip(FRAMES, PIECES, strict=True)],
        [Write(0, 0, 0), Write(0, 1, 7), Write(1, 0, 50_000), Write(2, 0, 200_000)],
        staging=Staging.of(files[0], tmp_path / "staging"),
        is_summed=is_summed,
        buffer_size=1 << 20,
        buffer_count=1,
    )


@pytest.mark.parametrize("flipped", [0, 1])
async def test_a_batch_is_written(stored: LocalRepository, files: list[int], tmp_path: Path, flipped: int) -> None:
    """Each chunk to each of its places. What was damaged on the way is received once more."""
    worker = FakeWorker(FlippedBits(stored, flipped))
    received = await job_of(files, tmp_path).run(worker, files)

    content = (tmp_path / "staging").read_bytes()
    assert PIECES[0] + PIECES[1] == content[:100_000]
    assert PIECES[2] == content[200_000:]
    assert bytes(7) + PIECES[0] == (tmp_path / "other").read_bytes()
    assert [crc32(piece) for piece in PIECES] == list(received.checksums)
    assert SENT + flipped * len(FRAMES[2].data) == received.stored_size == worker.size_moved


async def test_checksums_are_computed_only_if_needed(stored: LocalRepository, files: list[int], tmp_path: Path) -> None:
    """They cost a pass over the content."""
    received = await job_of(files, tmp_path, is_summed=False).run(FakeWorker(stored), files)
    assert [] == list(received.checksums)


async def test_damage_that_comes_again(stored: LocalRepository, files: list[int], tmp_path: Path) -> None:
    """The repository is asked to verify the chunks of the batch. Chunks before the damage are written."""
    repository = FlippedBits(stored, 2)
    with pytest.raises(DamagedChunk):
        await job_of(files, tmp_path).run(FakeWorker(repository), files)
    assert ["get", "get", "verify_chunks"] == repository.calls
    assert 100_000 == (tmp_path / "staging").stat().st_size


@pytest.mark.parametrize("state", ["published", "removed", "replaced"])
async def test_nothing_is_written_when_the_staging_is_not_ours(
    stored: LocalRepository, files: list[int], tmp_path: Path, state: str
) -> None:
    """Another process has published it between the start of the job and its first write."""
    job = job_of(files, tmp_path)
    if state == "removed":
        (tmp_path / "staging").unlink()
    else:
        (tmp_path / "staging").rename(tmp_path / "published")
    if state == "replaced":
        (tmp_path / "staging").touch()
    with pytest.raises(OvertakenError):
        await job.run(FakeWorker(stored), files)
    assert [0, 0] == [os.fstat(descriptor).st_size for descriptor in files]


async def test_a_write_that_fails(stored: LocalRepository, files: list[int], tmp_path: Path) -> None:
    """The error says which write it was, since only the process of the fetch knows the names of files."""
    other = os.open(tmp_path / "other", os.O_RDONLY)
    try:
        with pytest.raises(WriteFailed) as caught:
            await job_of(files, tmp_path).run(FakeWorker(stored), [files[0], other])
    finally:
        os.close(other)
    assert (1, 9) == (caught.value.place, caught.value.number)
