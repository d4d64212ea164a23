"""What a copy refuses, and what it leaves: the rules of both repositories are in tests/contracts/test_copy.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.core.commits import Commit
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key
from filestore.core.progress import Progress
from filestore.core.records import Record
from filestore.errors import (
    ChunksMissing,
    DamagedChunk,
    FilestoreError,
    Interrupted,
    InvalidFrame,
    InvalidInput,
    InvalidReference,
    LabelExists,
    LimitExceeded,
    NotFound,
    StorageFull,
)
from filestore.format.codec import Frame
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Moved, Repository
from filestore.transfer.copy import copy, plan_copy
from tests.support.ceph import Bucket
from tests.support.frames import contents, encoded, manifest
from tests.support.object_repositories import object_repository
from tests.support.watched import WatchedRepository

CHUNKS = contents(40, size=1 << 20)


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[WatchedRepository]:
    """A repository that has a file of 40 MiB, which are several batches."""
    async with connect(tmp_path / "source", create=True) as repository:
        await store(repository, CHUNKS)
        yield WatchedRepository(repository)


async def store(repository: Repository, chunks: Sequence[bytes], *, name: str = "model") -> Record:
    """Store chunks as a file."""
    await repository.put([encoded(chunk) for chunk in chunks])
    return await repository.commit(manifest(chunks).encoded, name=name)


def frame_path(folder: Path, number: int) -> Path:
    """The file of the frame of a chunk."""
    return folder / chunk_key(DEFAULT_NAMESPACE, encoded(CHUNKS[number]).digest)


async def test_progress_is_that_of_the_content(source: WatchedRepository, watched: WatchedRepository) -> None:
    """It never moves back, and ends with all bytes; with a plan too."""
    size = sum(map(len, CHUNKS))
    for verb in (plan_copy, copy):
        seen: list[Progress] = []
        await verb(source, "model", to=watched, report=seen.append)
        done = [progress.done for progress in seen]
        assert (sorted(done), size, size) == (done, done[-1], seen[-1].total)
    assert (40, 40) == (source.chunks_got, watched.chunks_put)


async def test_an_interrupted_copy_sends_only_the_rest(source: WatchedRepository, watched: WatchedRepository) -> None:
    """Nothing is recorded, and what arrived stays."""

    class Failing(WatchedRepository):
        first_is_there = asyncio.Event()

        async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
            self.calls.append("put")
            if self.calls.count("put") > 1:
                await self.first_is_there.wait()
                raise Interrupted(self.location, "the connection was cut")
            await super().put(frames, moved=moved)
            self.first_is_there.set()

    with pytest.raises(Interrupted):
        await copy(source, "model", to=Failing(watched))
    with pytest.raises(NotFound):
        await watched.record("model")
    left = len(await watched.missing([encoded(chunk).digest for chunk in CHUNKS]))
    assert 0 < left < 40
    source.chunks_got = 0
    await copy(source, "model", to=watched)
    assert left == source.chunks_got


async def test_a_cancelled_copy_records_nothing(source: WatchedRepository, watched: WatchedRepository) -> None:
    """It may be cancelled before any step at the target."""
    for step in ("missing", "put", "commit"):
        reached = asyncio.Event()

        async def stop(verb: str, step: str = step, reached: asyncio.Event = reached) -> None:
            if verb == step:
                reached.set()
                await asyncio.Event().wait()

        watched.before = stop
        copying = asyncio.create_task(copy(source, "model", to=watched))
        await reached.wait()
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        with pytest.raises(NotFound):
            await watched.inner.record("model")


@pytest.mark.parametrize("damage", ["flipped", "removed", "other"])
async def test_a_damaged_frame_is_refused(
    source: WatchedRepository, watched: WatchedRepository, tmp_path: Path, damage: str
) -> None:
    """Nothing is recorded at the target, and the source forgets the frame, so that a push mends it."""
    path = frame_path(tmp_path / "source", 7)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    other = frame_path(tmp_path / "source", 8).read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(bytes(content) if damage == "flipped" else other)
    with pytest.raises(ChunksMissing if damage == "removed" else DamagedChunk, match=path.name):
        await copy(source, "model", to=watched)
    with pytest.raises(NotFound):
        await watched.record("model")
    assert [encoded(CHUNKS[7]).digest] == await source.missing([encoded(chunk).digest for chunk in CHUNKS])
    await store(source, CHUNKS)
    assert 40 == (await copy(source, "model", to=watched)).record.size >> 20


class LyingRepository(WatchedRepository):
    """Gives other bytes than it says, a number of times."""

    lies = 0

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        frames = await super().get(digests, buffer, moved=moved)
        if self.lies and frames[0] is not None:
            self.lies -= 1
            frames[0][-1] ^= 1
        return frames


async def test_a_bit_that_flips_on_the_way_is_sent_again(source: WatchedRepository, watched: WatchedRepository) -> None:
    """A frame that arrives damaged once is received once more, and the copy goes on."""
    lying = LyingRepository(source.inner)
    lying.lies = 1
    await copy(lying, "model", to=watched)
    assert 41 == lying.chunks_got


async def test_a_source_that_lies_is_refused(source: WatchedRepository, watched: WatchedRepository) -> None:
    """The target verifies every frame."""
    lying = LyingRepository(source.inner)
    lying.lies = 1000
    with pytest.raises(DamagedChunk):
        await copy(lying, "model", to=watched)
    with pytest.raises(NotFound):
        await watched.record("model")


async def test_a_history_without_end_is_refused(source: WatchedRepository, watched: WatchedRepository) -> None:
    """Whichever of the two has it."""
    commit = await source.find_commit("model")

    class Endless(WatchedRepository):
        async def history(self, *_: object, limit: int = 1000, before: int | None = None, **__: object) -> list[Commit]:
            newest = 1 << 40 if before is None else before
            return [commit._replace(number=newest - place) for place in range(1, limit + 1)]

    for repository, to in ((Endless(source), watched), (source, Endless(watched))):
        with pytest.raises(LimitExceeded, match="the number of versions"):
            await copy(repository, "model", to=to, all_versions=True)


async def test_a_target_that_refuses_a_right_frame_is_named(source: WatchedRepository, watched: WatchedRepository) -> None:
    """An older server may not know how a chunk is encoded. The source is not said to be damaged."""

    async def refuse(verb: str) -> None:
        if verb == "put":
            raise InvalidFrame("a chunk", "its codec 9 is unknown")

    watched.before = refuse
    with pytest.raises(InvalidFrame, match="codec 9"):
        await copy(source, "model", to=watched)
    assert "verify_chunks" not in source.calls


async def test_a_target_that_asks_for_other_chunks_gets_none(source: WatchedRepository, watched: WatchedRepository) -> None:
    """It learns nothing of other files in the source, and the copy ends."""
    secret = encoded(b"secret")
    await source.put([secret])

    class Asking(WatchedRepository):
        async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
            return [secret.digest, *await super().missing(digests)]

    await copy(source, "model", to=Asking(watched))
    assert [secret.digest] == await watched.missing([secret.digest])


async def test_chunks_that_are_collected_meanwhile_are_sent_again(
    source: WatchedRepository, watched: WatchedRepository, tmp_path: Path
) -> None:
    """The commit names what is missing, and the copy sends it."""
    inner = watched.inner
    assert isinstance(inner, LocalRepository)
    attempts = 0

    async def lose_one(verb: str) -> None:
        nonlocal attempts
        attempts += verb == "commit"
        if verb == "commit" and attempts == 1:
            path = frame_path(tmp_path / "repository", 3)
            path.write_bytes(b"")
            await inner.verify_chunks([encoded(CHUNKS[3]).digest])

    watched.before = lose_one
    copied = await copy(source, "model", to=watched)
    assert (2, 41, 40 << 20) == (attempts, watched.chunks_put, copied.record.size)
    assert 0 == copied.bytes_shared


async def test_a_full_disk_at_the_target_ends_a_copy(source: WatchedRepository, tmp_path: Path) -> None:
    """The error says so, and nothing is recorded."""
    async with connect(tmp_path / "full", create=True, min_free=1 << 60) as full:
        with pytest.raises(StorageFull):
            await copy(source, "model", to=full)
        with pytest.raises(NotFound):
            await full.record("model")


async def test_what_contradicts_itself_is_refused(source: WatchedRepository, watched: WatchedRepository) -> None:
    """It is refused before anything is sent."""
    attempts: list[tuple[type[FilestoreError], dict[str, Any]]] = [
        (InvalidReference, {"wanted": "model:config.json"}),
        (NotFound, {"wanted": "other"}),
        (InvalidInput, {"all_versions": True, "message": "Why."}),
        (InvalidInput, {"all_versions": True, "wanted": "model@~0"}),
        (InvalidInput, {"all_versions": True, "to": None}),
        (InvalidInput, {"to": "http://127.0.0.1"}),
        (InvalidInput, {"message": "\x1b"}),
    ]
    for error, arguments in attempts:
        given = {"wanted": "model", "to": watched, **arguments}
        with pytest.raises(error):
            await copy(source, given.pop("wanted"), **given)
    assert 0 == watched.chunks_put


async def test_a_tag_of_another_version_is_not_moved(source: WatchedRepository, watched: WatchedRepository) -> None:
    """The user decides what becomes of it."""
    await store(watched, CHUNKS[:1])
    await watched.set_label("model", "v1")
    await source.set_label("model", "v1")
    with pytest.raises(LabelExists):
        await copy(source, "model", to=watched, all_versions=True)
    assert (1 << 20) == (await watched.record("model@v1")).size


async def test_between_a_folder_and_an_object_store(
    source: WatchedRepository, bucket: Bucket, postgres_index_url: str, tmp_path: Path
) -> None:
    """There and back: the frames are the same."""
    async with object_repository(bucket, postgres_index_url, tmp_path / "server") as objects:
        copied = await copy(source, "model", to=objects)
        assert copied.bytes_shared == 0
        async with connect(tmp_path / "back", create=True) as back:
            assert copied.bytes_sent == (await copy(objects, "model", to=back)).bytes_sent
            encoded_manifest = await back.manifest(copied.record.digest)
            assert Manifest.parse(encoded_manifest).size == 40 << 20
    for number in range(40):
        assert frame_path(tmp_path / "source", number).read_bytes() == frame_path(tmp_path / "back", number).read_bytes()
