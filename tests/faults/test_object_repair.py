"""A repository in an object store and PostgreSQL is repaired: what could not be read for a time, and what is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.records import Record
from filestore.errors import ChunksMissing
from filestore.format.chunking import CHUNKING_VERSION
from filestore.repository.index.postgres.index import PostgresIndex
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import ReadPlan
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.findings import FindingKind
from filestore.repository.maintenance.namespaces import remove_namespace
from filestore.repository.maintenance.repair import Donor, RepairReport, repair
from filestore.transfer.donor import PathDonor
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket, Gateway
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.object_repositories import PREFIX, object_repository, sweep

CONTENT = octets(1, 6_000_000)


@dataclass(frozen=True, slots=True)
class Stored:
    """A repository with one file."""

    repository: LocalRepository
    bucket: Bucket
    folder: Path
    record: Record

    @property
    def index(self) -> PostgresIndex:
        """The index of the repository."""
        index = self.repository._index
        assert isinstance(index, PostgresIndex)
        return index

    def objects(self, kind: str = "frames") -> list[str]:
        """The keys of the objects of a kind."""
        return self.bucket.list_keys(f"{PREFIX}/{kind}/")

    def take_frames(self) -> dict[str, bytes]:
        """Remove the objects of all frames, and return them."""
        taken = {key: self.bucket.read(key) for key in self.objects()}
        for key in taken:
            self.bucket.delete(key)
        return taken

    def give(self, objects: dict[str, bytes]) -> None:
        """Put objects."""
        for key, content in objects.items():
            self.bucket.put(key, content)

    async def digests(self) -> list[Digest]:
        """The chunks of the file."""
        return list(dict.fromkeys(chunk.digest for chunk in (await self.manifest()).chunks))

    async def manifest(self) -> Manifest:
        """The manifest of the file."""
        return Manifest.parse(await self.repository.manifest(self.record.digest))

    async def lost(self) -> list[ObjectName]:
        """What is remembered as lost."""
        return await self.index.lost_frames(DEFAULT_NAMESPACE, limit=1000)

    async def repair(self, *donors: Donor, read: bool = True) -> RepairReport:
        """Repair it."""
        plan = ReadPlan() if read else None
        return await repair(self.repository._store, self.index, donors=donors, read=plan)

    async def read_in_vain(self) -> None:
        """Have a reader notice that frames are missing."""
        with pytest.raises(ChunksMissing):
            await fetch(self.repository, self.record.id, target=self.folder / "fetched")

    async def check_whole(self) -> None:
        """Check that the file can be read, and that a repair finds nothing more."""
        fetched = await fetch(self.repository, self.record.id, target=self.folder / "fetched", force=True)
        assert CONTENT == fetched.path.read_bytes()
        report = await self.repair()
        assert ([], []) == (report.damage, report.remaining)

    def donor(self) -> PathDonor:
        """The file itself."""
        return PathDonor(self.folder / "model.bin", chunking_version=CHUNKING_VERSION)


@pytest.fixture
async def stored(bucket: Bucket, postgres_url: str, tmp_path: Path) -> AsyncIterator[Stored]:
    """A file in a repository."""
    async with object_repository(bucket, postgres_url, tmp_path / "server") as repository:
        path = tmp_path / "model.bin"
        path.write_bytes(CONTENT)
        yield Stored(repository, bucket, tmp_path, (await push(repository, path)).record)


async def collect(stored: Stored) -> None:
    """Remove what no record needs."""
    await Collection(stored.repository._store, stored.index, DEFAULT_NAMESPACE, grace_seconds=0).run()


# Frames that could not be read for a time.


async def test_frames_that_are_there_again_get_their_rows_back(stored: Stored) -> None:
    """Such as after an hour behind a wrong address. Nothing has to be sent, and no object is put."""
    frames = stored.take_frames()
    await stored.read_in_vain()
    assert len(frames) == len(await stored.lost())
    missing = await stored.repair()
    assert (1, 0, len(frames)) == (len(missing.lost), missing.rows_written, len(await stored.lost()))
    stored.give(frames)
    report = await stored.repair()
    assert (len(frames), {}, 0) == (report.rows_written, report.lost, report.remaining_count)
    assert [stored.record.id] == [file.record.id for file in report.whole_again]
    assert ([], sorted(frames)) == (await stored.lost(), stored.objects())
    await stored.check_whole()


async def test_a_repair_that_finds_frames_missing_does_not_forget_where_they_were(stored: Stored) -> None:
    """It may be the repair that meets the wrong address."""
    frames = stored.take_frames()
    report = await stored.repair(read=False)
    assert (len(frames), 1) == (report.rows_forgotten, len(report.lost))
    stored.give(frames)
    assert len(frames) == (await stored.repair(read=False)).rows_written
    await stored.check_whole()


async def test_chunks_that_were_put_again_need_no_old_object(stored: Stored) -> None:
    """A push forgets them, and they go with the next sweep."""
    frames = stored.take_frames()
    await stored.read_in_vain()
    await push(stored.repository, stored.folder / "model.bin")
    assert [] == await stored.lost()
    stored.give(frames)
    assert 0 == (await stored.repair()).rows_written
    await sweep(stored.repository)
    assert (len(frames), set()) == (len(stored.objects()), {*stored.objects()} & {*frames})
    await stored.check_whole()


@pytest.mark.parametrize("what", ["record", "namespace"])
async def test_what_no_record_needs_is_not_remembered(stored: Stored, what: str) -> None:
    """The collection after a removal forgets it and removes the object, although the namespace has nothing else."""
    frames = stored.take_frames()
    await stored.read_in_vain()
    stored.give(frames)
    await collect(stored)
    assert len(frames) == len(await stored.lost())
    if what == "record":
        await stored.repository.remove(stored.record.id)
    else:
        await remove_namespace(stored.index, DEFAULT_NAMESPACE)
    assert [DEFAULT_NAMESPACE] == await stored.index.namespaces()
    await collect(stored)
    assert ([], [], []) == (await stored.lost(), stored.objects(), await stored.index.namespaces())


async def test_writers_do_not_wait_while_a_frame_is_read(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object store may take a minute to say that it has none. What was put again meanwhile stays."""
    store, index = stored.repository._store, stored.index
    (first, *others) = await stored.digests()
    frames = stored.take_frames()
    again = encoded(CONTENT[: (await stored.manifest()).chunks[0].size])
    assert first == again.digest
    read_into = store.read_into

    async def read_slowly(namespace: str, digests: Sequence[Digest], buffer: memoryview) -> Any:
        found = await read_into(namespace, digests, buffer)
        async with index.transaction(namespace) as transaction:
            await transaction.forget_chunks(namespace, [first])
        await stored.repository.put([again])
        return found

    monkeypatch.setattr(store, "read_into", read_slowly)
    assert sorted(others) == sorted(await stored.repository.verify_chunks([first, *others]))
    monkeypatch.undo()
    assert [] == await index.missing(DEFAULT_NAMESPACE, [first])
    stored.give(frames)
    await stored.repair()
    await stored.check_whole()


# Damage.


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["lost", "short", "zeroed", "grown", "another"])
async def test_damaged_frames_are_set_aside_and_taken_from_a_copy(stored: Stored, damage: str) -> None:
    """Each object that is not the frame of its row has another key afterwards, and no reader finds it."""
    frames = {key: stored.bucket.read(key) for key in stored.objects()}
    for key, content in frames.items():
        stored.bucket.delete(key)
        if damage != "lost":
            damaged = {
                "short": content[:-1],
                "zeroed": bytes(len(content)),
                "grown": content + b"1",
                "another": octets(7, len(content)),
            }
            stored.bucket.put(key, damaged[damage])
    report = await stored.repair()
    assert (len(frames), 1) == (report.rows_forgotten, len(report.lost))
    aside = 0 if damage == "lost" else len(frames)
    assert (aside, aside, []) == (report.set_aside_count, len(stored.objects("damaged")), stored.objects())
    assert len(frames) - aside == len(await stored.lost())
    report = await stored.repair(stored.donor())
    assert (len(frames), {}) == (report.chunks_restored, report.lost)
    assert [] == await stored.lost()
    await stored.check_whole()


async def test_a_damaged_object_that_cannot_be_copied_stays(stored: Stored, gateway: Gateway, postgres_url: str) -> None:
    """Such as for a user who may not put. It is remembered, and a repair that may put sets it aside."""
    key = stored.objects()[0]
    stored.bucket.put(key, b"damaged")
    reading = gateway.permit(stored.bucket, gateway.new_user(), "s3:GetObject", "s3:ListBucket")
    async with object_repository(reading, postgres_url, stored.folder / "reader") as repository:
        report = await repair(repository._store, repository._index)
    assert (1, 0, 1) == (report.rows_forgotten, report.set_aside_count, len(await stored.lost()))
    assert b"damaged" == stored.bucket.read(key)
    await sweep(stored.repository)
    report = await stored.repair(stored.donor(), read=False)
    assert (1, 1, []) == (report.set_aside_count, report.chunks_restored, await stored.lost())
    assert key not in stored.objects()
    await stored.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("column", ["stored_size = stored_size + 1", "size = size + 1", "frame_digest = digest"])
async def test_wrong_rows_are_written_again(stored: Stored, column: str) -> None:
    """The objects stay, and are named by the right rows."""
    keys = stored.objects()
    async with stored.index._connections.lend() as connection:
        await connection.execute(f"UPDATE chunks SET {column}")
    report = await stored.repair()
    assert (len(keys), {}, 0) == (report.rows_written, report.lost, report.set_aside_count)
    assert (keys, []) == (stored.objects(), await stored.lost())
    await stored.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, b"", b"another content"], ids=["lost", "empty", "damaged"])
async def test_a_manifest_is_taken_from_a_copy(stored: Stored, damage: bytes | None) -> None:
    """The old object has no name afterwards, and goes with the next sweep."""
    (key,) = stored.objects("manifests")
    stored.bucket.delete(key)
    if damage is not None:
        stored.bucket.put(key, damage)
    lost = await stored.repair()
    assert [FindingKind.MANIFEST_MISSING if damage is None else FindingKind.MANIFEST_DAMAGED] == [
        finding.kind for finding in lost.damage
    ]
    report = await stored.repair(stored.donor())
    assert (1, {}) == (report.manifests_restored, report.lost)
    await sweep(stored.repository)
    assert key not in stored.objects("manifests")
    await stored.check_whole()


async def test_wrong_counts_are_corrected(stored: Stored) -> None:
    """A quota depends on them."""
    right = await stored.index.usage(DEFAULT_NAMESPACE)
    async with stored.index._connections.lend() as connection:
        await connection.execute("UPDATE usage SET stored_size = stored_size - 1")
    assert [FindingKind.INDEX_DAMAGED] == [finding.kind for finding in (await stored.repair(read=False)).damage]
    assert right == await stored.index.usage(DEFAULT_NAMESPACE)
