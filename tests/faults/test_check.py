"""A check finds each kind of damage, names the files that it affects, and takes nothing for damage that is none."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from filestore.backends import connect, open_backend
from filestore.core.digest import Digest, chunk_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key, manifest_key
from filestore.core.records import Record
from filestore.errors import Busy
from filestore.format.codec import FRAME_LIMIT, Codec, Frame
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import CHECK_TASK, CheckCounts, ReadPlan, check
from filestore.repository.maintenance.findings import AffectedFile, Finding, FindingKind
from filestore.repository.maintenance.passes import Pass
from filestore.repository.stores.protocol import ChunkStore, FrameState
from tests.support.frames import contents, encoded, manifest

T = TypeVar("T")

N = DEFAULT_NAMESPACE
SIZE = 2000
COUNT = 6


class Stored(NamedTuple):
    """A repository of two files that share chunks. The first chunk is in the first file only."""

    root: Path
    store: ChunkStore
    catalog: Index
    repository: LocalRepository
    frames: list[Frame]
    first: Record
    second: Record

    def path(self, place: int = 0) -> Path:
        """Return the path of a frame."""
        return self.root / chunk_key(N, self.frames[place].digest)


def content(place: int) -> bytes:
    """Return a chunk: text, which is compressed, or bytes at random, which stay raw."""
    return b"%04d " % place * (SIZE // 5) if place % 2 == 0 else contents(1, size=SIZE, seed=place)[0]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two files, which each test copies."""
    root = tmp_path_factory.mktemp("template") / "root"

    async def make() -> None:
        async with connect(root, create=True) as repository:
            chunks = [content(place) for place in range(COUNT)]
            await repository.put([encoded(each) for each in chunks])
            await repository.commit(manifest(chunks[:4]).encoded, name="first.bin")
            await repository.commit(manifest(chunks[1:]).encoded, name="second.bin")

    asyncio.run(make())
    return root


@pytest.fixture
async def stored(template: Path, tmp_path: Path) -> AsyncIterator[Stored]:
    """A repository of two files."""
    root = tmp_path / "root"
    shutil.copytree(template, root)
    store, index = await open_backend(root)
    repository = LocalRepository(store, index, location="here")
    frames = [encoded(content(place)) for place in range(COUNT)]
    second, first = await repository.records()
    yield Stored(root, store, index, repository, frames, first, second)
    await repository.close()


async def results(
    stored: Stored, *, read: ReadPlan | None = None, store: ChunkStore | None = None, counts: CheckCounts | None = None
) -> tuple[list[Finding], list[AffectedFile]]:
    """Check a repository. Return the findings and the affected files."""
    found = [each async for each in check(store or stored.store, stored.catalog, read=read, counts=counts)]
    return [each for each in found if isinstance(each, Finding)], [each for each in found if isinstance(each, AffectedFile)]


def zeroed(path: Path) -> None:
    """Replace all bytes of a file by zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def short(path: Path) -> None:
    """Cut a file in the middle."""
    os.truncate(path, path.stat().st_size // 2)


def grown(path: Path) -> None:
    """Add a byte to a file."""
    path.write_bytes(path.read_bytes() + b"\0")


def huge(path: Path) -> None:
    """Make a file larger than any frame."""
    os.truncate(path, FRAME_LIMIT + 1)


def folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    """Put a link in the place of a file that leads nowhere."""
    path.unlink()
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    """Put a pipe in the place of a file, at which an open without care waits for ever."""
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    """Cut a file to nothing."""
    os.truncate(path, 0)


DAMAGE: list[tuple[Callable[[Path], None], FindingKind, bool]] = [
    (Path.unlink, FindingKind.FRAME_MISSING, False),
    (short, FindingKind.FRAME_SHORT, False),
    (empty, FindingKind.FRAME_SHORT, False),
    (grown, FindingKind.FRAME_GROWN, False),
    (huge, FindingKind.FRAME_GROWN, False),
    (folder, FindingKind.FRAME_NO_FILE, False),
    (dangling, FindingKind.FRAME_NO_FILE, False),
    (pipe, FindingKind.FRAME_NO_FILE, False),
    (zeroed, FindingKind.FRAME_CHANGED, True),
    (flipped, FindingKind.FRAME_CHANGED, True),
]


async def test_a_sound_repository_has_no_damage(stored: Stored) -> None:
    """Nothing that a push makes is reported, with and without reading the data."""
    counts = CheckCounts()
    assert ([], []) == await results(stored, read=ReadPlan(), counts=counts)
    assert (2, 2, COUNT, COUNT) == (counts.record_count, counts.manifest_count, counts.chunk_count, counts.read_count)
    assert counts.stored_size == counts.read_size == sum(len(frame.data) for frame in stored.frames)


@pytest.mark.parametrize("place", [0, 1], ids=["compressed", "raw"])
@pytest.mark.parametrize(("damage", "kind", "needs_reading"), DAMAGE, ids=[each[0].__name__ for each in DAMAGE])
async def test_damaged_frame_is_found_with_its_files(
    stored: Stored, damage: Callable[[Path], None], kind: FindingKind, place: int, *, needs_reading: bool
) -> None:
    """Each kind of damage of a frame is one finding, and every file with that chunk is named with a count."""
    damage(stored.path(place))
    if needs_reading:
        assert ([], []) == await results(stored)
    findings, files = await results(stored, read=ReadPlan() if needs_reading else None)
    assert [(kind, N, stored.frames[place].digest, True)] == [(f.kind, f.namespace, f.digest, f.is_damage) for f in findings]
    affected = [stored.first] if place == 0 else [stored.first, stored.second]
    assert [(record, 1) for record in affected] == [(file.record, file.damaged_count) for file in files]


async def test_link_to_the_frame_is_not_damage(stored: Stored) -> None:
    """Someone who moves frames to another disk and leaves links can still read them."""
    moved = stored.root.parent / "elsewhere"
    shutil.move(stored.path(), moved)
    stored.path().symlink_to(moved)
    assert ([], []) == await results(stored, read=ReadPlan())


async def test_damage_that_was_read_is_found_again_without_reading(stored: Stored) -> None:
    """What a read found stays in the report of every later check, until it is repaired."""
    damaged = stored.path()
    sound = damaged.read_bytes()
    flipped(damaged)
    await results(stored, read=ReadPlan())
    assert [FindingKind.FRAME_CHANGED] == [finding.kind for finding in (await results(stored))[0]]
    damaged.write_bytes(sound)
    assert ([], []) == await results(stored)


@pytest.mark.parametrize("changed", ["size", "stored_size", "frame_digest"])
async def test_row_with_a_wrong_value_is_found(stored: Stored, changed: str) -> None:
    """If the frame is intact, the row is wrong: no file is lost, and it is still damage."""
    frame = stored.frames[0]
    right = {"size": SIZE, "stored_size": len(frame.data), "frame_digest": None}
    wrong = right | {changed: chunk_digest(b"other") if changed == "frame_digest" else 77}
    async with stored.catalog.transaction() as transaction:
        await transaction.add_chunks(N, [ChunkRow(frame.digest, **wrong)])  # type: ignore[arg-type]  # one of each
    findings, files = await results(stored, read=ReadPlan())
    assert {(FindingKind.ROW_WRONG, frame.digest)} == {(finding.kind, finding.digest) for finding in findings}
    assert [] == files


async def test_frame_without_a_row_can_be_reclaimed(stored: Stored) -> None:
    """What an interrupted push leaves is counted with its size, and is not damage."""
    lost = encoded(contents(1, seed=50)[0])
    path = stored.root / chunk_key(N, lost.digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(lost.data)
    (finding,), files = await results(stored)
    assert (FindingKind.FRAME_WITHOUT_ROW, lost.digest, len(lost.data)) == (finding.kind, finding.digest, finding.stored_size)
    assert (False, []) == (finding.is_damage, files)


async def test_manifest_without_a_record_can_be_reclaimed(stored: Stored) -> None:
    """What a removed record leaves is not damage."""
    unused = manifest([content(0)])
    await stored.store.put_manifest(N, unused.digest, unused.encoded)
    (finding,), files = await results(stored)
    assert (FindingKind.MANIFEST_WITHOUT_RECORD, unused.digest, False) == (finding.kind, finding.digest, finding.is_damage)
    assert [] == files


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (Path.unlink, FindingKind.MANIFEST_MISSING),
        (flipped, FindingKind.MANIFEST_DAMAGED),
        (short, FindingKind.MANIFEST_DAMAGED),
        (folder, FindingKind.MANIFEST_DAMAGED),
    ],
    ids=["deleted", "flipped", "short", "folder"],
)
async def test_record_without_its_manifest_is_found(stored: Stored, damage: Callable[[Path], None], kind: FindingKind) -> None:
    """A file whose manifest cannot be used is named; other files are not affected."""
    damage(stored.root / manifest_key(N, stored.first.digest))
    (finding,), (file,) = await results(stored)
    assert (kind, stored.first.digest, stored.first) == (finding.kind, finding.digest, finding.record)
    assert (stored.first, 0) == (file.record, file.chunk_count)


async def test_manifest_that_names_a_chunk_without_a_row_is_found(stored: Stored) -> None:
    """The chunk is one finding, also if two files need it; its frame can be reclaimed or get a row again."""
    digest = stored.frames[1].digest
    async with stored.catalog.transaction() as transaction:
        await transaction.forget_chunks(N, [digest])
    findings, files = await results(stored)
    assert [FindingKind.FRAME_WITHOUT_ROW, FindingKind.CHUNK_WITHOUT_ROW] == [finding.kind for finding in findings]
    assert [digest, digest] == [finding.digest for finding in findings]
    assert [(stored.first, 1), (stored.second, 1)] == [(file.record, file.damaged_count) for file in files]


class Meddling:
    """A store that lets something happen just before one of its methods runs for the first time."""

    def __init__(self, store: ChunkStore, method: str, happen: Callable[[], object]) -> None:
        self._store = store
        self._method = method
        self._happen = happen

    def __getattr__(self, name: str) -> object:
        method = getattr(self._store, name)
        if name != self._method:
            return method

        async def after(*args: object) -> object:
            happen, self._happen = self._happen, lambda: asyncio.sleep(0)
            await happen()  # type: ignore[misc]  # it is a coroutine function
            return await method(*args)

        return after


@pytest.mark.parametrize("method", ["inspect", "read_each", "manifest"])
async def test_what_is_removed_meanwhile_is_not_damage(stored: Stored, method: str) -> None:
    """A removal and a collection between two steps of a check leave nothing that it reports as damage."""

    async def remove() -> None:
        await stored.repository.remove(stored.first.id, with_chunks=True)

    meddling = Meddling(stored.store, method, remove)
    findings, files = await results(stored, read=ReadPlan(), store=meddling)  # type: ignore[arg-type]  # by its methods
    assert ([], []) == ([finding for finding in findings if finding.is_damage], files)


async def test_what_is_stored_again_meanwhile_is_not_damage(stored: Stored) -> None:
    """A push that replaces a removed frame by another encoding, while a check reads, is not damage."""
    raw = encoded(content(0), codec=Codec.RAW)

    async def replace() -> None:
        await stored.repository.remove(stored.first.id, with_chunks=True)
        await stored.repository.put([raw])

    meddling = Meddling(stored.store, "read_each", replace)
    findings, files = await results(stored, read=ReadPlan(), store=meddling)  # type: ignore[arg-type]  # by its methods
    assert ([], []) == ([finding for finding in findings if finding.is_damage], files)


async def test_frame_of_a_push_in_progress_is_not_reported(stored: Stored) -> None:
    """A push renames frames before it commits their rows. A check waits for that commit before it calls them unused."""
    frame = encoded(contents(1, seed=60)[0])
    waits = asyncio.Event()

    class Watched:
        """The index, which notes that a transaction is wanted."""

        def __getattr__(self, name: str) -> object:
            if name == "transaction":
                waits.set()
            return getattr(stored.catalog, name)

    staging = stored.store.new_staging()
    staging.write(frame.data)
    stored.store.sync(N, [(frame.digest, staging)])
    async with asyncio.TaskGroup() as group, stored.catalog.transaction() as transaction:
        await stored.store.publish(N, [(frame.digest, staging)])
        task = group.create_task(results(stored._replace(catalog=Watched())))  # type: ignore[arg-type]  # by its methods
        waiting = group.create_task(waits.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        await transaction.add_chunks(N, [ChunkRow(frame.digest, 1000, len(frame.data))])
    assert ([], []) == task.result()


class Reads:
    """A store that notes which frames are read."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self.read: list[Digest] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def read_each(  # as of the store
        self, namespace: str, digests: Sequence[Digest], buffer: memoryview, visit: Callable[[Digest, memoryview], T]
    ) -> list[T | FrameState]:
        self.read += digests
        return await self._store.read_each(namespace, digests, buffer, visit)


async def test_shares_add_up_to_all(stored: Stored) -> None:
    """Each call reads the next share, so that three calls with 1/3 read every frame once."""
    reads = Reads(stored.store)
    for _ in range(3):
        await results(stored, read=ReadPlan(fraction=Fraction(1, 3)), store=reads)  # type: ignore[arg-type]  # by its methods
    assert sorted(frame.digest for frame in stored.frames) == sorted(reads.read)


async def test_interrupted_read_is_continued(stored: Stored) -> None:
    """The same call again reads what is left; a call with another fraction begins there, too."""
    ordered = sorted(frame.digest for frame in stored.frames)
    state = Pass()
    state.begin(Fraction(1), now=1)
    state.left = [(int.from_bytes(ordered[2], "big"), state.left[0][1])]
    async with stored.catalog.transaction() as transaction:
        await transaction.set_task_state(N, CHECK_TASK, state.as_json())
    reads, counts = Reads(stored.store), CheckCounts()
    await results(stored, read=ReadPlan(), store=reads, counts=counts)  # type: ignore[arg-type]  # by its methods
    assert ordered[2:] == sorted(reads.read)
    assert counts.continued
    counts = CheckCounts()
    await results(stored, read=ReadPlan(), counts=counts)
    assert (False, COUNT) == (counts.continued, counts.read_count)


async def test_damaged_state_of_a_read_is_ignored(stored: Stored) -> None:
    """A state that no program of ours wrote makes a read begin at the start."""
    async with stored.catalog.transaction() as transaction:
        await transaction.set_task_state(N, CHECK_TASK, {"left": [["x", 3]], "damaged": 5})
    counts = CheckCounts()
    assert ([], []) == await results(stored, read=ReadPlan(), counts=counts)
    assert COUNT == counts.read_count


async def test_second_read_at_the_same_time_is_refused(stored: Stored) -> None:
    """Two reads would both save where they are."""
    async with stored.catalog.try_lock(CHECK_TASK) as is_ours:
        assert is_ours
        with pytest.raises(Busy):
            await results(stored, read=ReadPlan())
        assert ([], []) == await results(stored)


async def test_frames_of_earlier_versions_get_their_digests(stored: Stored) -> None:
    """A read decodes a frame without a digest, and keeps the digest. A raw frame needs none."""
    rows = [state.row for state in await stored.catalog.chunk_rows(N, limit=COUNT)]
    async with stored.catalog.transaction() as transaction:
        await transaction.add_chunks(N, [row._replace(frame_digest=None) for row in rows])
    await results(stored, read=ReadPlan())
    assert rows == [state.row for state in await stored.catalog.chunk_rows(N, limit=COUNT)]
    assert {None} < {row.frame_digest for row in rows}


async def test_nothing_is_written_by_a_check_that_may_not_write(stored: Stored) -> None:
    """A check of a folder that belongs to someone else keeps no state there."""
    async for _ in check(stored.store, stored.catalog, read=ReadPlan(), writes=False):
        pass
    assert None is await stored.catalog.task_state(N, CHECK_TASK)
