"""What the page about a file's chunks says: where each comes from, how it is stored, and how much was looked at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.object_names import ObjectName
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import NotFound
from filestore.format.codec import Codec
from filestore.http.server.descriptors import OpenFrames
from filestore.http.server.manifests import SharedManifests
from filestore.http.server.routes.page import chunk_candidates, chunk_report
from filestore.http.server.routes.page.chunk_cells import NOWHERE, PARTS_KEPT, ChunkCells, Encoding, Sharing
from filestore.http.server.routes.page.chunk_report import NAME_SHOWN, ChunkReport, ReportInputs, make_chunk_report
from filestore.http.server.stored_trees import SharedTrees
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from tests.support.frames import encoded, manifest
from tests.support.generator import octets


class Opened(LocalRepository):
    """A repository in memory, with what it is made of, that counts the manifests that are read."""

    async def store_file(self, *numbers: int, name: str) -> Record:
        """Store a file whose chunks are those of `numbers`."""
        chunks = [octets(number, 1000 + number) for number in numbers]
        await self.put([encoded(chunk) for chunk in chunks])
        return await self.commit(manifest(chunks).encoded, name=name)

    def seen_by(self, prefix: str) -> LocalRepository:
        """The same repository for a token with a prefix."""
        return LocalRepository(self._store, self._index, location="memory", prefix=prefix)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty repository."""
    repository = Opened(MemoryStore(), await open_index(tmp_path / "index.sqlite"), location="memory")
    yield repository
    await repository.close()


def report_inputs(*, open_frames: int = 100, reads_frames: bool = True) -> ReportInputs:
    """What a report reads with."""
    return ReportInputs(SharedManifests(wait_seconds=5), SharedTrees(wait_seconds=5), OpenFrames(open_frames), reads_frames)


async def report_on(repository: LocalRepository, record: Record) -> ChunkReport:
    """Return the report about a file."""
    return await make_chunk_report(repository, record, report_inputs())


def origins(report: ChunkReport) -> list[tuple[int, Sharing, str | None]]:
    """Return number, sharing and file of the runs of chunks with one origin."""
    found = []
    for row in report.rows:
        [part] = row.parts
        file_id = None if part.rank == NOWHERE else report.candidates.records[part.rank].id
        found.append((row.chunk_count, report.sharing[part.rank], file_id))
    return found


async def test_each_chunk_comes_from_the_first_file_that_had_it(repository: Opened) -> None:
    """An earlier version, another file, nobody, and one that was stored since."""
    other = await repository.store_file(*range(50, 60), name="other")
    first = await repository.store_file(*range(10), *range(50, 52), name="model")
    second = await repository.store_file(*range(5), *range(50, 55), *range(20, 30), name="model")
    third = await repository.store_file(*range(8), *range(20, 23), name="model")
    report = await report_on(repository, second)
    assert origins(report) == [
        (5, Sharing.VERSION, first.id),
        (5, Sharing.OTHER, other.id),
        (3, Sharing.SINCE, third.id),
        (7, Sharing.ONLY_HERE, None),
    ]
    assert {Sharing.VERSION: 5, Sharing.OTHER: 5, Sharing.SINCE: 3, Sharing.ONLY_HERE: 7} == {
        kind: each.chunk_count for kind, each in report.sums.items()
    }
    assert (20, 20, 3, 4) == (report.chunk_count, report.distinct_count, report.read_count, report.candidates.total)
    assert second.size == report.distinct_size


async def test_the_first_file_shares_nothing(repository: Opened) -> None:
    """Without any other file, all chunks are new. An empty file has none."""
    record = await repository.store_file(*range(5), *range(3), name="model")
    report = await report_on(repository, record)
    assert origins(report) == [(8, Sharing.ONLY_HERE, None)]
    assert (8, 5, 0, 1) == (report.chunk_count, report.distinct_count, report.read_count, report.candidates.total)
    empty = await repository.store_file(name="empty")
    report = await report_on(repository, empty)
    assert (0, [], {}, {}) == (report.chunk_count, report.rows, report.picture.boxes, report.encodings)


async def test_the_same_content_under_another_name_is_told(repository: Opened) -> None:
    """Then nothing is new, also if the content has an earlier version of this name."""
    copied = await repository.store_file(*range(5), name="original")
    record = await repository.store_file(*range(5), name="copy")
    assert [(5, Sharing.OTHER, copied.id)] == origins(await report_on(repository, record))
    assert [(5, Sharing.SINCE, record.id)] == origins(await report_on(repository, copied))


async def test_a_token_with_a_prefix_learns_nothing_of_other_names(repository: Opened) -> None:
    """Neither the names nor how many there are."""
    await repository.store_file(*range(10), name="secret")
    record = await repository.store_file(*range(10), name="public-model")
    report = await report_on(repository.seen_by("public"), record)
    assert [(10, Sharing.ONLY_HERE, None)] == origins(report)
    assert ([record], None) == (report.candidates.records, report.candidates.total)


async def test_a_codec_is_that_of_the_frame(repository: Opened) -> None:
    """The header of a frame has it. Where frames are not opened, their sizes tell which are raw."""
    contents = [octets(0, 9000), b"abc" * 3000, bytes(range(256)) * 20, octets(0, 9000)]
    frames = [encoded(contents[0]), encoded(contents[1]), encoded(contents[2], codec=Codec.ZSTD)]
    await repository.put(frames)
    record = await repository.commit(manifest(contents).encoded, name="model")
    report = await report_on(repository, record)
    assert {Encoding.RAW: 2, Encoding.ZSTD: 2} == report.encodings
    assert sum(len(frame.data) for frame in frames) == sum(each.stored_size for each in report.sums.values())
    for way in (report_inputs(reads_frames=False), report_inputs(open_frames=0)):
        report = await make_chunk_report(repository, record, way)
        assert {Encoding.RAW: 2, Encoding.ENCODED: 2} == report.encodings


async def test_a_lost_frame_is_told(repository: Opened) -> None:
    """It takes no space, and the others are told as they are."""
    record = await repository.store_file(*range(3), name="model")
    await repository._store.remove(repository.namespace, [ObjectName(chunk_digest(octets(1, 1001)))])
    report = await report_on(repository, record)
    assert {Encoding.RAW: 2, Encoding.MISSING: 1} == report.encodings
    assert 1000 + 1002 + 2 * 8 == sum(each.stored_size for each in report.sums.values())


async def test_a_removed_file_is_not_found(repository: Opened) -> None:
    """Also if it was removed between two looks."""
    record = await repository.store_file(*range(3), name="model")
    await repository.remove(record.id, with_chunks=True)
    with pytest.raises(NotFound):
        await report_on(repository, record)


async def test_limits_hold(repository: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many files are read, the nearest versions first, and only so many frames are looked at."""
    versions = [await repository.store_file(number, *range(100, 110), name="model") for number in range(10)]
    monkeypatch.setattr(chunk_candidates, "READ_LIMIT", 1)
    monkeypatch.setattr(chunk_report, "SIZES_LIMIT", 4)
    report = await report_on(repository, versions[5])
    assert (1, 10, 10) == (report.read_count, report.candidates.total, len(report.candidates.records))
    assert [(1, Sharing.ONLY_HERE, None), (10, Sharing.VERSION, versions[4].id)] == origins(report)
    assert report.looked_count == 11  # one of each cell
    monkeypatch.setattr(chunk_candidates, "CANDIDATES_LIMIT", 3)
    chosen = await chunk_candidates.choose_candidates(repository, versions[5])
    assert [versions[number].id for number in (2, 3, 4, 5)] == [each.id for each in chosen.records]
    assert ([2, 1, 0], 3) == (chosen.by_priority, chosen.rank)


async def test_similar_names_come_before_the_newest_ones(repository: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that differs only in a version is more likely to share something."""
    similar = await repository.store_file(1, name="model-v1.bin")
    for number in range(5):
        await repository.store_file(10 + number, name=f"something-{number}")
    record = await repository.store_file(1, 2, name="model-v2.bin")
    monkeypatch.setattr(chunk_candidates, "CANDIDATES_LIMIT", 1)
    chosen = await chunk_candidates.choose_candidates(repository, record)
    assert [similar.id, record.id] == [each.id for each in chosen.records]


async def test_a_damaged_manifest_is_counted(repository: Opened) -> None:
    """The others are compared all the same."""
    damaged = await repository.store_file(1, 2, name="model")
    await repository.store_file(3, name="model")
    record = await repository.store_file(1, 3, name="model")
    repository._store._manifests[(repository.namespace, damaged.digest)] = b"damaged"  # type: ignore[attr-defined]
    report = await report_on(repository, record)
    assert (1, 1) == (report.damaged_count, report.read_count)
    assert [Sharing.ONLY_HERE, Sharing.VERSION] == [sharing for _, sharing, _ in origins(report)]


async def test_a_name_that_promises_tensors_may_have_none(repository: Opened) -> None:
    """Whoever pushes a file chooses its name and its kind. The picture is drawn without the parts."""
    weights = await repository.store_file(1, 2, name="model.safetensors")
    assert ("", []) == ((report := await report_on(repository, weights)).regions_are, report.regions)
    chunks = [octets(5, 5000)]
    await repository.put([encoded(chunk) for chunk in chunks])
    folder = await repository.commit(manifest(chunks).encoded, name="folder.zip", kind=Kind.DIRECTORY)
    assert ("", []) == ((report := await report_on(repository, folder)).regions_are, report.regions)
    assert folder == await repository.record(Reference(id=folder.id))


async def test_readers_of_large_files_stop_a_comparison(repository: Opened) -> None:
    """Nobody waits for each of the other files, one after the other. The page says that they could not be read."""
    for number in range(3):
        await repository.store_file(number, *range(10, 400), name="model")
    record = await repository.store_file(5, name="small")
    # A manifest of one chunk fits, and one of 391 does not.
    manifests = SharedManifests(wait_seconds=0.01, limit=9_000)
    report = await make_chunk_report(
        repository, record, ReportInputs(manifests, report_inputs().trees, OpenFrames(100), reads_frames=True)
    )
    assert (0, 1, 4) == (report.read_count, report.damaged_count, report.candidates.total)
    assert [(1, Sharing.ONLY_HERE, None)] == origins(report)


async def test_a_report_takes_little_memory(repository: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell may have hundreds of origins, and a name of a tensor 16 MiB. Of the origins, the largest are told."""
    for number in range(20):
        await repository.store_file(number, name=f"other-{number}")
    name = "\N{CYRILLIC SMALL LETTER ZHE}" * 100_000
    header = json.dumps({name: {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]}}).encode()
    chunks = [len(header).to_bytes(8, "little") + header + bytes(10), *(octets(number, 1000 + number) for number in range(20))]
    await repository.put([encoded(chunk) for chunk in chunks])
    record = await repository.commit(manifest(chunks[1:]).encoded, name="model")
    monkeypatch.setattr(chunk_report, "ChunkCells", lambda chunks: ChunkCells(chunks, limit=2))
    report = await report_on(repository, record)
    assert (20, 20) == (sum(row.part_count for row in report.rows), len(report.origins))
    assert all(len(row.parts) == PARTS_KEPT for row in report.rows)
    assert [1019, 1018, 1017] == [origin.size for origin in report.origins][:3]
    weights = await repository.commit(manifest(chunks[:1]).encoded, name="model.safetensors")
    [region] = (await report_on(repository, weights)).regions
    assert name[:NAME_SHOWN] == region.name
