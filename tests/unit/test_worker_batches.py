"""What worker processes get of a batch, without a process."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk
from filestore.repository.protocol import Repository
from filestore.transfer.places import Place
from filestore.transfer.receive_job import WriteFailed
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.sinks.protocol import FilePart, Sink, Staging
from filestore.transfer.worker_batches import WorkerBatches
from filestore.transfer.workers import WorkerPool

CHUNK = Chunk(chunk_digest(b"chunk"), 1 << 20)


class FakeSink:
    """A sink of files of 1 MiB."""

    needs_checksums = False

    def __init__(self, folder: Path) -> None:
        self.opened: list[int] = []
        self.staging = Staging(folder, 0, 0)

    def file_at(self, offset: int, size: int) -> FilePart:
        return FilePart(offset // size, 0)

    def open_file(self, number: int) -> int:
        self.opened.append(number)
        return os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def note_written(self, offset: int, size: int, checksum: int) -> None:
        pass

    def write_error(self, offset: int, error: OSError) -> Exception:
        return ValueError(f"at {offset}: {error.errno}")


class FullDisk:
    """A pool whose process cannot do the second write of a job."""

    is_ready = True

    async def run(self, *_: Any, **__: Any) -> None:
        raise WriteFailed(1, errno.ENOSPC, "no space")


def batches_of(sink: FakeSink, pool: object, *, processes: int = 1, slots: int = 1) -> WorkerBatches:
    """The batches of a download from a repository that is never used."""
    options = TransferOptions(batch_count=40)
    repository = cast("Repository", None)
    return WorkerBatches(
        repository, cast("Sink", sink), cast("WorkerPool", pool), processes=processes, slots=slots, options=options
    )


def places_of(*counts: int) -> list[Place]:
    """One place for each count, whose chunk is the content of so many files."""
    places, start = [], 0
    for count in counts:
        places.append(Place(CHUNK, [number * CHUNK.size for number in range(start, start + count)]))
        start += count
    return places


def test_a_job_has_few_files(tmp_path: Path) -> None:
    """A place that would make them more than 32 is received by the process of the fetch. Smaller ones after it are not."""
    places = places_of(30, 3, 41, 2)
    shared, own = batches_of(FakeSink(tmp_path), FullDisk()).divide(places, {})
    assert ([places[0], places[3]], [places[1], places[2]]) == ([place for place, _ in shared], own)


async def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    """The one of those files that a chunk is written to."""
    with closing(batches_of(FakeSink(tmp_path), FullDisk())) as batches:
        shared, _ = batches.divide(places_of(3), {})
        with pytest.raises(ValueError, match=f"at {CHUNK.size}: {errno.ENOSPC}"):
            await batches.receive(shared, lambda _: None)


async def test_a_file_that_is_open_is_not_opened_again(tmp_path: Path) -> None:
    """Another batch has the same file and one more."""
    sink = FakeSink(tmp_path)
    with closing(batches_of(sink, FullDisk())) as batches:
        for count in (2, 3):
            shared, _ = batches.divide(places_of(count), {})
            with pytest.raises(ValueError, match="at"):
                await batches.receive(shared, lambda _: None)
    assert sink.opened == [0, 1, 2]


def test_files_of_all_jobs_leave_half_of_the_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job of 32 gets its share of them, and no more than a batch needs."""
    places = places_of(*[1] * 40)
    for limit, share in ((1024, 16), (60, 0), (1 << 20, 32), (resource.RLIM_INFINITY, 32)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        with closing(batches_of(FakeSink(tmp_path), FullDisk(), processes=4, slots=8)) as batches:
            shared, own = batches.divide(places, {})
        assert (share, 40 - share) == (len(shared), len(own))
