"""A repair reports each kind of damage by name, and makes every file whole of which a good copy is known."""

from __future__ import annotations

import asyncio
import filecmp
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key, manifest_key
from filestore.format.chunking import CHUNKING_VERSION
from filestore.repository.index.protocol import Index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import ReadPlan
from filestore.repository.maintenance.collect import Collection
from filestore.repository.maintenance.findings import FindingKind
from filestore.repository.maintenance.repair import Donor, RepairReport, RepositoryDonor, repair
from filestore.repository.stores.protocol import ChunkStore
from filestore.transfer.donor import PathDonor
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.commands import Home
from tests.support.damage import DAMAGES, BadSectors, empty, flip, grow, make_folder, shorten
from tests.support.generator import octets
from tests.support.repair_crashes import repair_from

PROJECT = Path(__file__).parents[2]
KINDS = {
    "deleted": "frame-missing",
    "short": "frame-short",
    "empty": "frame-short",
    "zeroed": "frame-changed",
    "flipped": "frame-changed",
    "grown": "frame-grown",
    "replaced": "frame-grown",
    "folder": "frame-no-file",
    "dangling-link": "frame-no-file",
    "loop": "frame-no-file",
    "pipe": "frame-no-file",
    "bad-content": "frame-unreadable",
    "bad-inode": "frame-unreadable",
}
"""What a check calls each kind of damage."""


class Stored(NamedTuple):
    """A repository of a file, and its source."""

    root: Path
    source: Path
    store: ChunkStore
    catalog: Index
    repository: LocalRepository
    digests: list[Digest]
    manifest_path: Path

    def path(self, place: int = 0) -> Path:
        """Return the path of a frame."""
        return self.root / chunk_key(DEFAULT_NAMESPACE, self.digests[place])

    async def repair(self, *donors: Donor, read: bool = True) -> RepairReport:
        """Repair the repository, and read all frames for it."""
        return await repair(self.store, self.catalog, donors=donors, read=ReadPlan() if read else None)

    async def check_whole(self) -> None:
        """Check that the file reads back."""
        await fetch(self.repository, "source", target=self.root.parent / "target")
        assert filecmp.cmp(self.source, self.root.parent / "target", shallow=False)

    def donor(self) -> Donor:
        """Give the source as a good copy."""
        return PathDonor(self.source, chunking_version=CHUNKING_VERSION)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file and a repository that holds it, which each test copies."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "source").write_bytes(octets(1, 3_000_000) + b"compressible " * 100_000)

    async def make() -> None:
        async with connect(folder / "root", create=True) as repository:
            await push(repository, folder / "source")

    asyncio.run(make())
    return folder


@pytest.fixture
async def stored(template: Path, tmp_path: Path) -> AsyncIterator[Stored]:
    """A repository of a file."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "root"
    store, index = await open_backend(root)
    repository = LocalRepository(store, index, location="here")
    (record,) = await repository.records()
    manifest = Manifest.parse(await repository.manifest(record.digest))
    digests = [chunk.digest for chunk in manifest.chunks]
    assert 3 <= len(digests)
    path = root / manifest_key(DEFAULT_NAMESPACE, record.digest)
    yield Stored(root, tmp_path / "source", store, index, repository, digests, path)
    await repository.close()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [kind for kind in DAMAGES if not kind.startswith("bad-")])
async def test_damage_is_named_and_repaired_from_a_good_copy(stored: Stored, tmp_path: Path, damage: str) -> None:
    """Without a good copy, the file is listed as lost, and its chunk is forgotten. With one, it is whole again."""
    DAMAGES[damage](stored.path(), BadSectors(tmp_path))
    lost = await stored.repair()
    assert [KINDS[damage]] == [finding.kind for finding in lost.damage]
    assert ["source"] == [file.record.name for file in lost.lost.values()]
    assert [] == lost.whole_again
    assert stored.digests[:1] == await stored.repository.missing(stored.digests)
    # Nothing that may be the only copy of something is removed.
    assert (0 if damage == "deleted" else 1) == len(lost.set_aside) == len(list(stored.root.glob("damaged/*")))
    again = await stored.repair(stored.donor())
    assert (["source"], {}, 0) == ([file.record.name for file in again.whole_again], again.lost, again.remaining_count)
    await stored.check_whole()
    assert (0, {}) == ((await stored.repair()).damage_count, again.lost)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bad-content", "bad-inode"])
def test_command_repairs_from_a_path_while_a_server_runs(template: Path, home: Home, tmp_path: Path, damage: str) -> None:
    """The server that found nothing before serves the file afterwards, and needs no restart."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    root, source = tmp_path / "root", tmp_path / "source"
    bad_sectors = BadSectors(tmp_path)
    environ = {**bad_sectors.environ, "FILESTORE_ROOT": str(root)}
    frame = max(root.glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size)
    with home.server(root=root, environ=bad_sectors.environ) as server:
        DAMAGES[damage](frame, bad_sectors)
        lost = home.run("check", "--read-data", "--repair", "--json", environ=environ)
        assert 1 == lost.returncode
        assert f'"kind": "{KINDS[damage]}"' in lost.stdout
        assert "1 file is still damaged; push what you have of them again, or name a good copy by --from" in lost.stderr
        assert frame.name in "".join(path.name for path in (root / "damaged").iterdir())
        done = home.run("check", "--repair", "--from", source, environ=environ)
        assert (0, "") == (done.returncode, done.stderr)
        assert "restored 1 chunk and 0 manifests; everything is whole" in done.stdout
        assert "whole     file_" in done.stdout
        home.result("fetch", "source", "-o", tmp_path / "target", environ=server.environ)
    assert filecmp.cmp(source, tmp_path / "target", shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["chunks", "manifests"])
def test_a_check_goes_on_after_a_folder_that_the_disk_cannot_list(template: Path, home: Home, tmp_path: Path, what: str) -> None:
    """It is damage, and what the other steps find is reported too."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "root"
    bad_sectors = BadSectors(tmp_path)
    bad_sectors.add(next((root / what / "default").iterdir()), "read")
    empty(max(root.glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size), bad_sectors)
    done = home.run("check", "--root", root, environ=bad_sectors.environ)
    assert 1 == done.returncode
    assert "(frame-short)" in done.stdout
    assert "affected  file_" in done.stdout
    assert f"the disk cannot list all folders of {'frames' if what == 'chunks' else what}, such as {root / what}" in done.stdout
    assert "damage was found in 2 places" in done.stdout


@pytest.mark.slow
def test_command_repairs_from_a_server_and_goes_on_after_a_source_that_fails(template: Path, home: Home, tmp_path: Path) -> None:
    """A source that cannot be reached or has other content is named. The next source gives the copy."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "root"
    other = tmp_path / "other"
    other.write_bytes(b"other content")
    empty(max(root.glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size), BadSectors(tmp_path))
    with home.server(root=tmp_path / "healthy") as server:
        home.result("push", tmp_path / "source", environ=server.environ)
        sources = ("--from", "http://127.0.0.1:1", "--from", other, "--from", server.url)
        done = home.run("check", "--root", root, "--repair", *sources, environ={"FILESTORE_TOKEN": server.token})
    assert (0, "") == (done.returncode, done.stderr)
    assert "unusable  http://127.0.0.1:1: " in done.stdout
    assert "everything is whole" in done.stdout


async def test_rows_are_written_again_for_intact_frames(stored: Stored) -> None:
    """I5: an index that has lost all rows of chunks gets them from the store. A damaged frame gets none."""
    async with stored.catalog.transaction() as transaction:
        await transaction.forget_chunks(DEFAULT_NAMESPACE, stored.digests)
    flip(stored.path(), BadSectors.__new__(BadSectors))
    report = await stored.repair(read=False)
    assert (len(stored.digests) - 1, 0, 1) == (report.rows_written, report.rows_forgotten, report.set_aside_count)
    assert ["source"] == [file.record.name for file in report.lost.values()]
    report = await stored.repair(stored.donor(), read=False)
    assert 1 == report.chunks_restored
    assert ["source"] == [file.record.name for file in report.whole_again]
    await stored.check_whole()


async def test_row_of_a_frame_that_is_there_and_a_row_of_none(stored: Stored) -> None:
    """A row without a frame is forgotten. A frame without a row gets one, so that its file is whole."""
    stored.path(0).unlink()
    async with stored.catalog.transaction() as transaction:
        await transaction.forget_chunks(DEFAULT_NAMESPACE, stored.digests[1:2])
    report = await stored.repair(read=False)
    assert ["chunk-without-row", "frame-missing"] == sorted(finding.kind for finding in report.damage)
    assert (1, 1) == (report.rows_forgotten, report.rows_written)
    assert stored.digests[:1] == await stored.repository.missing(stored.digests)
    assert 0 < (await push(stored.repository, stored.source)).bytes_sent
    await stored.check_whole()


async def test_collection_keeps_frames_that_a_repair_needs(stored: Stored) -> None:
    """A row may be lost, or forgotten because its frame could not be read once. The frame may be the only copy."""
    async with stored.catalog.transaction() as transaction:
        await transaction.forget_chunks(DEFAULT_NAMESPACE, stored.digests)
    await Collection(stored.store, stored.catalog, DEFAULT_NAMESPACE, grace_seconds=0).run()
    assert {} == (await stored.repair(read=False)).lost
    await stored.check_whole()


async def test_wrong_counts_of_a_namespace_are_corrected(stored: Stored) -> None:
    """A quota depends on them. A check finds that they differ from the rows, and a repair counts again."""
    right = await stored.catalog.usage(DEFAULT_NAMESPACE)
    with closing(sqlite3.connect(stored.root / "index.sqlite")) as connection, connection:
        connection.execute("UPDATE usage SET stored_size = stored_size - 1")
    assert right != await stored.catalog.usage(DEFAULT_NAMESPACE)
    assert [FindingKind.INDEX_DAMAGED] == [finding.kind for finding in (await stored.repair(read=False)).damage]
    assert right == await stored.catalog.usage(DEFAULT_NAMESPACE)
    assert 0 == (await stored.repair(read=False)).damage_count


async def test_index_that_is_gone_gets_the_rows_of_all_frames(stored: Stored) -> None:
    """I5: names are lost with it. A push of the file sends nothing, and records it again."""
    await stored.repository.close()
    for path in stored.root.glob("index.sqlite*"):
        path.unlink()
    store, index = await open_backend(stored.root, accepts_index=True)
    report = await repair(store, index)
    assert len(stored.digests) == report.rows_written
    repository = LocalRepository(store, index, location="here")
    assert 0 == (await push(repository, stored.source)).bytes_sent
    await repository.close()


@pytest.mark.parametrize("damage", ["deleted", "flipped", "folder"])
@pytest.mark.parametrize("source", ["path", "repository"])
async def test_manifest_is_restored(stored: Stored, tmp_path: Path, template: Path, damage: str, source: str) -> None:
    """A record without its manifest is listed as lost, until a source gives the manifest."""
    DAMAGES[damage](stored.manifest_path, BadSectors.__new__(BadSectors))
    lost = await stored.repair(read=False)
    assert ["source"] == [file.record.name for file in lost.lost.values()]
    if source == "path":
        report = await stored.repair(stored.donor(), read=False)
    else:
        async with connect(template / "root", read_only=True) as repository:
            report = await stored.repair(RepositoryDonor(repository), read=False)
    assert (1, {}, 0) == (report.manifests_restored, report.lost, report.remaining_count)
    await stored.check_whole()


async def test_what_a_source_gives_is_verified(stored: Stored, tmp_path: Path, template: Path) -> None:
    """A damaged copy of another repository is not stored, and the next source is asked."""
    stored.path(0).unlink()
    other = tmp_path / "other"
    shutil.copytree(template / "root", other)
    flip(other / stored.path(0).relative_to(stored.root), BadSectors.__new__(BadSectors))
    async with connect(other, read_only=True) as repository:
        report = await stored.repair(RepositoryDonor(repository), read=False)
        assert (0, 1) == (report.chunks_restored, len(report.lost))
        report = await stored.repair(RepositoryDonor(repository), stored.donor(), read=False)
    assert (1, {}) == (report.chunks_restored, report.lost)
    await stored.check_whole()


@pytest.mark.slow
def test_kill_at_any_call_leaves_a_state_that_a_second_repair_completes(template: Path, tmp_path: Path) -> None:
    """After `kill -9` at any call of a repair, the next one makes the file whole."""
    shutil.copytree(template / "root", tmp_path / "damaged")
    shutil.copytree(template / "root", tmp_path / "donor")
    frames = sorted((tmp_path / "damaged").glob("chunks/*/*/*/*"))
    for damage, frame in zip((make_folder, shorten, grow), frames, strict=False):
        damage(frame, BadSectors.__new__(BadSectors))
    command = [sys.executable, "-m", "tests.support.repair_crashes", str(tmp_path)]
    places = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT, timeout=300).stdout)
    assert places > 8

    async def repair_again() -> None:
        for place in range(1, places + 1):
            report = await repair_from(tmp_path / str(place), tmp_path / "donor")
            assert ({}, 0) == (report.lost, report.remaining_count)

    asyncio.run(repair_again())
