"""The frames that a peer gets from its origin: once for all who ask, and held no longer than somebody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.errors import Busy, Unreachable
from filestore.format.codec import Codec
from filestore.peers.frame_folder import FrameFolder
from filestore.peers.origin_frames import PULLED_TOGETHER, PULLS, OriginFrames
from filestore.repository.protocol import Repository
from tests.support.frames import contents, encoded

FRAMES = [encoded(content, codec=Codec.RAW) for content in contents(100, size=1000)]
DIGESTS = [frame.digest for frame in FRAMES]
SIZE = len(FRAMES[0].data)
ABSENT = chunk_digest(b"nobody has it")


class Origin:
    """A repository of these frames, which waits at a gate, and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[Digest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0
        self.is_away = False

    async def get(self, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        """Give frames, as `Repository.get` does."""
        self.asked += digests
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.is_away:
            raise Unreachable("http://server", "refused")
        known = {frame.digest: frame.data for frame in FRAMES}
        found: list[memoryview | None] = []
        for digest in digests:
            if digest not in known:
                found.append(None)
                continue
            buffer[: len(known[digest])] = known[digest]
            found.append(buffer[: len(known[digest])])
            buffer = buffer[len(known[digest]) :]
        return found


@pytest.fixture
async def origin() -> Origin:
    """The repository."""
    return Origin()


def folder_in(tmp_path: Path, *, size_limit: int = 1 << 30) -> FrameFolder:
    """The folder of the peer. Without a size, everything goes through its memory."""
    return FrameFolder(tmp_path / "peers", "0" * 32, "default", size_limit=size_limit, min_free=0)


@pytest.fixture
async def frames(origin: Origin, tmp_path: Path) -> AsyncIterator[OriginFrames]:
    """What is tested, with a disk that keeps all frames."""
    frames = OriginFrames(cast("Repository", origin), folder_in(tmp_path))
    yield frames
    await frames.close()


@pytest.fixture
async def unkept(origin: Origin, tmp_path: Path) -> AsyncIterator[OriginFrames]:
    """The same with a disk that keeps none, and memory for ten frames."""
    frames = OriginFrames(cast("Repository", origin), folder_in(tmp_path, size_limit=0), memory_limit=10 * SIZE)
    yield frames
    await frames.close()


async def contents_of(frames: OriginFrames, digests: Sequence[Digest]) -> list[bytes]:
    """Ask for frames as the server does, and read them. An absent one is empty."""
    async with frames.held(digests) as held:
        found = []
        for file in await held.open(digests):
            if file is None:
                found.append(b"")
                continue
            with file:
                found.append(file.read())
        assert [len(data) for data in found] == await held.frame_sizes(digests)
        return found


async def test_each_frame_is_asked_for_once(origin: Origin, frames: OriginFrames) -> None:
    """By all who ask at the same time, and afterwards. At most so many requests run side by side."""
    wanted = [bytes(frame.data) for frame in FRAMES]
    found = await asyncio.gather(*(contents_of(frames, DIGESTS) for _ in range(20)))
    assert [wanted] * 20 == found
    assert wanted == await contents_of(frames, DIGESTS)
    assert sorted(DIGESTS) == sorted(origin.asked)
    assert origin.most_at_once <= PULLS


async def test_an_absent_frame_is_asked_for_each_time(origin: Origin, frames: OriginFrames) -> None:
    """It may come."""
    for _ in range(2):
        assert [b"", FRAMES[0].data] == await contents_of(frames, [ABSENT, DIGESTS[0]])
    assert [ABSENT, DIGESTS[0], ABSENT] == origin.asked


async def test_one_who_leaves_does_not_end_the_request(origin: Origin, frames: OriginFrames) -> None:
    """The frame arrives, and is there for the next one."""
    origin.gate.clear()
    leaving = asyncio.create_task(contents_of(frames, DIGESTS[:1]))
    while not origin.asked:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    waiting = asyncio.create_task(contents_of(frames, DIGESTS[:1]))
    await asyncio.sleep(0)
    origin.gate.set()
    assert [FRAMES[0].data] == await waiting
    assert DIGESTS[:1] == origin.asked


async def test_what_everybody_has_left_before_its_turn_is_forgotten(origin: Origin, frames: OriginFrames) -> None:
    """Otherwise readers who come and go could fill the memory, while the origin is slow. Requests that have begun go on."""
    origin.gate.clear()
    begun = PULLS * PULLED_TOGETHER
    staying = asyncio.create_task(contents_of(frames, DIGESTS[:begun]))
    while len(origin.asked) < begun:
        await asyncio.sleep(0)
    leaving = asyncio.create_task(contents_of(frames, DIGESTS[begun:]))
    while len(frames._flights) < len(DIGESTS):
        await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(30):
        while len(frames._flights) > begun or len(frames._tasks) > PULLS:
            await asyncio.sleep(0)
    origin.gate.set()
    assert [frame.data for frame in FRAMES[:begun]] == await staying
    assert DIGESTS[:begun] == origin.asked
    assert [frame.data for frame in FRAMES] == await contents_of(frames, DIGESTS)
    assert sorted(DIGESTS) == sorted(origin.asked)


async def test_frames_that_the_disk_does_not_keep_are_in_memory_for_those_who_ask(origin: Origin, unkept: OriginFrames) -> None:
    """They share them, and nothing is left afterwards."""
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(unkept.held(DIGESTS[:PULLED_TOGETHER]))
        assert DIGESTS[:PULLED_TOGETHER] == origin.asked
        # The memory is for two more.
        with pytest.raises(Busy, match="memory is full"):
            await contents_of(unkept, DIGESTS[50:58])
        assert [frame.data for frame in FRAMES[60:62]] == await contents_of(unkept, DIGESTS[60:62])
    assert [frame.data for frame in FRAMES[50:58]] == await contents_of(unkept, DIGESTS[50:58])


async def test_an_origin_that_is_away_is_asked_again(origin: Origin, frames: OriginFrames) -> None:
    """Those who waited for it go elsewhere."""
    origin.is_away = True
    for _ in range(2):
        with pytest.raises(Busy, match="does not answer"):
            await contents_of(frames, DIGESTS[:3])
    origin.is_away = False
    assert [frame.data for frame in FRAMES[:3]] == await contents_of(frames, DIGESTS[:3])


async def test_a_frame_that_is_evicted_before_it_is_opened_is_got_again(
    origin: Origin, frames: OriginFrames, tmp_path: Path
) -> None:
    """The reader notices nothing."""
    async with frames.held(DIGESTS[:2]) as held:
        for path in (tmp_path / "peers").rglob(f"{DIGESTS[0]}"):
            path.unlink()
        files = await held.open(DIGESTS[:2])
        for file, frame in zip(files, FRAMES, strict=False):
            assert file is not None
            with file:
                assert frame.data == file.read()
    assert [*DIGESTS[:2], DIGESTS[0]] == origin.asked


async def test_files_are_closed_if_another_frame_cannot_be_had(origin: Origin, frames: OriginFrames, tmp_path: Path) -> None:
    """It was evicted, and the origin is away."""
    async with frames.held(DIGESTS[:8]) as held:
        before = open_descriptors()
        for path in (tmp_path / "peers").rglob(f"{DIGESTS[0]}"):
            path.unlink()
        origin.is_away = True
        with pytest.raises(Busy, match="does not answer") as raised:
            await held.open(DIGESTS[:8])
        # The error still has the variables of all who passed it on.
        assert raised.value.__traceback__ is not None
        assert before == open_descriptors()


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_end_of_a_peer_ends_those_who_wait(origin: Origin, frames: OriginFrames) -> None:
    """They are told that it stops."""
    origin.gate.clear()
    waiting = asyncio.create_task(contents_of(frames, DIGESTS[:20]))
    while not origin.asked:
        await asyncio.sleep(0)
    await frames.close()
    with pytest.raises(Busy, match="stopping"):
        await waiting
