"""The repository's door for frames that arrive piece by piece."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from filestore.backends import open_backend
from filestore.core.digest import chunk_digest
from filestore.errors import InvalidFrame, StorageFull
from filestore.format.codec import Codec, Frame
from filestore.repository.index.sqlite import open_index_for_reading
from filestore.repository.ingest import Ingest
from filestore.repository.local import LocalRepository
from filestore.repository.stores.staging_file import DiskStaging
from filestore.system.buffers import Budget
from filestore.system.threads import in_disk_thread
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import buffer_for, encoded, frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the repository."""
    return tmp_path / "repository"


@pytest.fixture
async def repository(root: Path) -> AsyncIterator[LocalRepository]:
    """One that lets 1 MiB in at a time."""
    store, index = await open_backend(root, create=True)
    repository = LocalRepository(store, index, location=str(root), budget=Budget(1 << 20))
    yield repository
    await repository.close()


async def send(ingest: Ingest, sent: list[Frame], *, piece: int = 1 << 20) -> None:
    """Write frames in pieces of this size, as a server does: in threads, while whole frames are verified."""
    for frame in sent:
        await in_disk_thread(_write, ingest, frame, piece)
        ingest.submit()


def _write(ingest: Ingest, frame: Frame, piece: int) -> None:
    ingest.start(frame.digest, len(frame.data))
    for start in range(0, len(frame.data), piece):
        ingest.write(frame.data[start : start + piece])


def staging_files(root: Path) -> list[Path]:
    """Return the files in `tmp`, without the folders themselves."""
    return [path for path in (root / "tmp").rglob("*") if path.is_file()]


async def test_whole_frames_are_verified_together(repository: LocalRepository) -> None:
    """Those that are wrong are refused, in whichever way, and all others are stored."""
    sent = frames(4)
    wrong = [Frame(sent[1].digest, sent[0].data), Frame(sent[2].digest, b"no header")]
    async with repository.ingest() as ingest:
        together = [sent[0], *wrong, sent[3]]
        await in_disk_thread(ingest.write_whole, [(frame.digest, memoryview(frame.data)) for frame in together])
        ingest.submit()
        with pytest.raises(InvalidFrame, match=str(sent[1].digest)):
            await ingest.commit()
    assert [sent[1].digest, sent[2].digest] == await repository.missing([frame.digest for frame in sent])


@pytest.mark.slow
@pytest.mark.parametrize("piece", [1, 7, 1000, 100_000, 1 << 20])
async def test_any_split_keeps_the_same_frames(repository: LocalRepository, piece: int) -> None:
    """Frames may be smaller or larger than a verify group, and come in pieces of any size."""
    sent = frames(20, size=300) if piece < 1000 else [*frames(20, size=300), *frames(5, size=700_000, seed=1)]
    async with repository.ingest() as ingest:
        await send(ingest, sent, piece=piece)
        assert len(sent) == await ingest.commit()
    digests = [frame.digest for frame in sent]
    assert [frame.data for frame in sent] == await repository.get(digests, buffer_for(len(sent)))


async def test_frame_that_is_not_whole_is_not_kept(repository: LocalRepository, root: Path) -> None:
    """A connection that is cut loses one frame; those before it are kept."""
    whole, cut = frames(2, size=300_000)
    async with repository.ingest() as ingest:
        await send(ingest, [whole])
        ingest.start(cut.digest, len(cut.data))
        ingest.write(cut.data[:-1])
        assert 1 == await ingest.commit()
    assert [cut.digest] == await repository.missing([whole.digest, cut.digest])
    assert [] == staging_files(root)


async def test_ingest_that_is_left_without_commit_keeps_nothing(repository: LocalRepository, root: Path) -> None:
    """Also frames that were whole and verified are discarded."""
    sent = frames(5, size=300_000)
    async with repository.ingest() as ingest:
        await send(ingest, sent)
    assert [frame.digest for frame in sent] == await repository.missing([frame.digest for frame in sent])
    assert [] == staging_files(root)


async def test_error_in_the_block_is_raised_as_it_is(repository: LocalRepository, root: Path) -> None:
    """The caller's own error comes out, not a group that holds it, and nothing is left."""
    async with repository.ingest() as ingest:
        await send(ingest, frames(3, size=300_000))
        with pytest.raises(KeyError):
            async with repository.ingest() as inner:
                await send(inner, frames(3, size=300_000))
                raise KeyError
    assert [] == staging_files(root)


async def test_cancelled_ingest_is_whole_or_nothing(repository: LocalRepository, root: Path) -> None:
    """After a cancel at any await, a stored frame is whole, and no staging file is left."""
    seed = 0
    sent: list[Frame] = []

    async def deliver() -> None:
        nonlocal seed, sent
        seed += 1
        sent = frames(4, size=200_000, seed=seed)
        async with repository.ingest() as ingest:
            await send(ingest, sent, piece=64 << 10)
            await ingest.commit()

    async for _ in cancelled_at_every_await(deliver):
        digests = [frame.digest for frame in sent]
        missing = await repository.missing(digests)
        assert missing in ([], digests)
        if not missing:
            assert [frame.data for frame in sent] == await repository.get(digests, buffer_for(4))
        assert [] == staging_files(root)


async def test_first_refused_frame_is_named_and_the_others_are_kept(repository: LocalRepository) -> None:
    """By the order in which they arrived, however long each took to verify."""
    good = frames(3, size=300_000)
    lies = [Frame(chunk_digest(b"%d" % number), frame.data) for number, frame in enumerate(frames(2, size=300_000))]
    async with repository.ingest() as ingest:
        await send(ingest, [good[0], lies[0], good[1], lies[1], good[2]])
        with pytest.raises(InvalidFrame) as caught:
            await ingest.commit()
    assert str(lies[0].digest) == caught.value.digest
    assert [lie.digest for lie in lies] == await repository.missing([frame.digest for frame in (*good, *lies)])


async def test_a_frame_that_comes_in_one_piece_is_verified_at_once(repository: LocalRepository, root: Path) -> None:
    """A bad frame in one piece never reaches the disk; one in several pieces is refused when it is whole."""
    (good,) = frames(1, size=300_000)
    lie = Frame(chunk_digest(b"other"), good.data)
    async with repository.ingest() as ingest:
        await in_disk_thread(_write, ingest, lie, 1 << 20)
        assert [] == staging_files(root)
        await in_disk_thread(_write, ingest, lie, 100_000)
        assert [len(good.data)] == [path.stat().st_size for path in staging_files(root)]
        await in_disk_thread(_write, ingest, good, 1 << 20)
        with pytest.raises(InvalidFrame):
            await ingest.commit()
    assert [lie.digest] == await repository.missing([good.digest, lie.digest])
    assert [] == staging_files(root)


@pytest.mark.parametrize("piece", [100, 1 << 20], ids=["in pieces", "in one piece"])
async def test_rows_keep_the_digest_of_each_encoded_frame(repository: LocalRepository, root: Path, piece: int) -> None:
    """A check verifies a frame by this digest. A raw frame has none, because its content is as fast to verify."""
    compressed, raw = encoded(b"text " * 1000), encoded(b"text " * 1000 + b"x", codec=Codec.RAW)
    async with repository.ingest() as ingest:
        await send(ingest, [compressed, raw], piece=piece)
        await ingest.commit()
    index = await open_index_for_reading(root / "index.sqlite")
    found = {row.digest: row.frame_digest for row, *_ in await index.chunk_rows("default", limit=2)}
    assert {compressed.digest: blake3(compressed.data).digest(), raw.digest: None} == found
    await index.close()


async def test_slow_peer_holds_nothing_of_the_budget(repository: LocalRepository) -> None:
    """I6: a frame that is all but whole lets others through."""
    slow, *others = frames(10, size=1_000_000)
    async with repository.ingest() as ingest:
        ingest.start(slow.digest, len(slow.data))
        ingest.write(slow.data[:-1])
        await asyncio.wait_for(repository.put(others), timeout=60)
        ingest.write(slow.data[-1:])
        assert 1 == await ingest.commit()


async def test_bytes_that_belong_to_no_frame(repository: LocalRepository) -> None:
    """More than a frame was said to have, or before one was begun: the caller's mistake."""
    (frame,) = frames(1)
    async with repository.ingest() as ingest:
        with pytest.raises(ValueError, match="a frame that was not started"):
            ingest.write(b"x")
        ingest.start(frame.digest, 10)
        with pytest.raises(ValueError, match="a frame that was not started"):
            ingest.write(bytes(11))


async def test_failing_disk_ends_the_ingest(repository: LocalRepository, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised as itself as soon as it is known, and nothing is kept."""

    def fail(_: DiskStaging) -> None:
        raise StorageFull(str(root), "no space")

    monkeypatch.setattr(DiskStaging, "sync", fail)
    sent = frames(6, size=300_000)
    with pytest.raises(StorageFull):
        async with repository.ingest() as ingest:
            await send(ingest, sent)
            await ingest.commit()
    assert 6 == len(await repository.missing([frame.digest for frame in sent]))
    assert [] == staging_files(root)


async def test_failing_disk_ends_a_block_that_waits_for_more(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of whole frames is not a task. Its failure still cancels whoever receives the next frame."""

    def fail(_: DiskStaging) -> None:
        raise StorageFull("a disk", "no space")

    monkeypatch.setattr(DiskStaging, "sync", fail)
    (frame,) = frames(1, size=300_000)
    with pytest.raises(StorageFull):
        async with repository.ingest() as ingest:
            await send(ingest, [frame])
            ingest._start_verify_group()
            await asyncio.Event().wait()


async def test_block_ends_only_after_its_syncs(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its staging files are discarded after that, so no thread may use them any more."""
    began, may_end, calls = threading.Event(), threading.Event(), list[str]()

    def sync(_: DiskStaging) -> None:
        began.set()
        may_end.wait(60)
        calls.append("synced")

    monkeypatch.setattr(DiskStaging, "sync", sync)
    monkeypatch.setattr(DiskStaging, "discard", lambda _: calls.append("discarded"))
    (frame,) = frames(1, size=300_000)

    async def receive() -> None:
        async with repository.ingest() as ingest:
            await send(ingest, [frame])
            ingest._start_verify_group()
            await asyncio.Event().wait()

    task = asyncio.create_task(receive())
    await in_disk_thread(began.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert ["synced", "discarded"] == calls
