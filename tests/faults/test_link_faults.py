"""The link between client and server flips bits, cuts connections, and is slow. A transfer continues, and sends nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.commits import NewCommit
from filestore.core.manifest import Chunk, Manifest
from filestore.core.progress import Progress
from filestore.errors import InvalidFrame, InvalidManifest
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import Codec, Frame
from filestore.http.client import concurrency
from filestore.http.client import repository as remote
from filestore.http.client.concurrency import Concurrency
from filestore.http.client.repository import RemoteRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.daemons import lasting_port
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.links import cut_once, flip_once, running_link
from tests.support.server import SECONDS, TOKEN, RunningServer, running_server
from tests.support.tls import behind_tls, trusting

FRAME_SIZE = 1_000_000
SMALL_FRAME_SIZE = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server that the tests share. Each test has content of its own."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as running:
        yield running


def frames(seed: int) -> list[Frame]:
    """Return eight frames that are as large as their content."""
    return [encoded(octets(100 * seed + number, FRAME_SIZE), codec=Codec.RAW) for number in range(8)]


def is_large(piece: bytes) -> bool:
    """Return whether a piece is a part of frames."""
    return len(piece) > 10_000


async def test_bit_that_flips_in_a_push_costs_one_frame(server: RunningServer) -> None:
    """The server refuses the frame. The client sends this one again, and no other one."""
    sent = frames(1)
    moved: list[int] = []
    async with running_link(server.port) as link:
        link.up = flip_once(is_large)
        async with connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
            await repository.put(sent, moved=moved.append)
            assert [] == await repository.missing([frame.digest for frame in sent])
        assert link.up_size < 9.1 * FRAME_SIZE
    assert sum(len(frame.data) for frame in sent) == sum(moved)


async def test_frame_that_is_wrong_at_its_source_is_refused(server: RunningServer) -> None:
    """A second try tells a flipped bit from a frame that was wrong before it was sent."""
    wrong = Frame(frames(2)[0].digest, frames(2)[1].data)
    async with connect(server.url, token=TOKEN) as repository:
        with pytest.raises(InvalidFrame):
            await repository.put([wrong])


async def test_bit_that_flips_in_a_fetch_costs_one_frame(server: RunningServer, tmp_path: Path) -> None:
    """The frame is received once more. The store is not accused of damage, and the fetch succeeds."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(octets(300, 8 * FRAME_SIZE))
    async with running_link(server.port) as link:
        link.down = flip_once(is_large)
        async with connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
            pushed = await push(repository, source, codec="raw")
            fetched = await fetch(repository, pushed.record, target=target)
    assert source.read_bytes() == target.read_bytes()
    assert 8 * FRAME_SIZE < fetched.bytes_received < 13 * FRAME_SIZE


async def test_bit_that_flips_in_a_manifest_is_not_an_error(server: RunningServer) -> None:
    """In both directions, the manifest is transferred once more."""
    frame = frames(4)[0]
    manifest = Manifest.build([Chunk(frame.digest, FRAME_SIZE)], chunking_version=CHUNKING_VERSION)
    async with running_link(server.port) as link, connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
        await repository.put([frame])
        link.up = flip_once(lambda piece: piece.endswith(manifest.encoded))
        record = await repository.commit(manifest.encoded, name="flipped")
        link.down = flip_once(lambda piece: piece.endswith(manifest.encoded))
        assert manifest.encoded == await repository.manifest(record.digest)


async def test_a_commit_whose_answer_is_lost_is_made_once(server: RunningServer) -> None:
    """The client sends it again, and its parent is not the newest commit any more. It gets the record."""
    async with running_link(server.port) as link, connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
        parent = ""
        for number in range(2):
            frame = encoded(b"%d of a lost answer" % number)
            manifest = Manifest.build([Chunk(frame.digest, 18)], chunking_version=CHUNKING_VERSION)
            await repository.put([frame])
            link.down = cut_once(1)
            record = await repository.commit(manifest.encoded, name="lost", commit=NewCommit("said", parent=parent))
            commits = await repository.history("lost")
            assert (number + 1, record.id) == (len(commits), commits[0].file_id)
            parent = commits[0].id


async def test_manifest_that_is_wrong_at_its_source_is_refused(server: RunningServer) -> None:
    """It is refused a second time."""
    async with connect(server.url, token=TOKEN) as repository:
        with pytest.raises(InvalidManifest):
            await repository.commit(b"not a manifest", name="wrong")


@pytest.mark.parametrize("verb", ["put", "get"])
async def test_frames_that_arrived_before_a_cut_are_not_transferred_again(server: RunningServer, verb: str) -> None:
    """Only the frame in which the connection was cut is transferred twice."""
    sent = frames(5 if verb == "put" else 6)
    digests = [frame.digest for frame in sent]
    moved: list[int] = []
    async with running_link(server.port) as link, connect(f"http://127.0.0.1:{link.port}", token=TOKEN) as repository:
        if verb == "put":
            assert digests == await repository.missing(digests)
            link.up = cut_once(3 * FRAME_SIZE + FRAME_SIZE // 2)
            await repository.put(sent, moved=moved.append)
            size = link.up_size
            assert [] == await repository.missing(digests)
        else:
            await repository.put(sent)
            link.down = cut_once(3 * FRAME_SIZE + FRAME_SIZE // 2)
            got = await repository.get(digests, buffer_for(8), moved=moved.append)
            size = link.down_size
            assert [frame.data for frame in sent] == got
    assert size < 9.1 * FRAME_SIZE + 500_000
    assert 8 * len(sent[0].data) == sum(moved)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["push", "fetch"])
async def test_server_that_is_killed_and_started_again_is_waited_for(tmp_path: Path, verb: str) -> None:
    """The transfer continues at the next server without any action of the user."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(octets(700, 40 * FRAME_SIZE))
    with running_server(tmp_path / "root", check=False, port=lasting_port()) as first:
        async with connect(first.url, token=TOKEN) as repository:
            record = (await push(repository, source, codec="raw")).record if verb == "fetch" else None
            is_killed = False

            def kill(progress: Progress) -> None:
                nonlocal is_killed
                if progress.moved > 10 * FRAME_SIZE and not is_killed:
                    is_killed = True
                    first.process.kill()

            if record is None:
                moving: asyncio.Task[object] = asyncio.create_task(push(repository, source, codec="raw", report=kill))
            else:
                moving = asyncio.create_task(fetch(repository, record, target=target, report=kill))
            async with asyncio.timeout(SECONDS):
                while repository.waited_seconds is None:
                    await asyncio.sleep(0.01)
            first.process.wait()
            with running_server(tmp_path / "root", port=first.port):
                await moving
                if verb == "push":
                    await fetch(repository, (await repository.records())[0], target=target)
    assert source.read_bytes() == target.read_bytes()


SLOW_SIZE = 1_600_000
SLOW_RATE = 150_000


async def slowly(piece: bytes) -> bytes:
    """Let bytes pass at `SLOW_RATE`."""
    await asyncio.sleep(len(piece) / SLOW_RATE)
    return piece


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_slow_link_with_deep_buffers_does_not_stall(tmp_path: Path, scheme: str) -> None:
    """The kernel takes a whole batch at once, and the link needs several times the time limit for it. It is sent once."""
    frame = encoded(octets(900, SLOW_SIZE), codec=Codec.RAW)
    with running_server(tmp_path / "root", stall_seconds=3) as server:
        async with AsyncExitStack() as stack:
            port = server.port
            if scheme == "https":
                port = int((await stack.enter_async_context(behind_tls(port))).rpartition(":")[2])
            link = await stack.enter_async_context(running_link(port, buffer_size=1 << 14))
            client = connect(f"{scheme}://localhost:{link.port}", token=TOKEN, stall_seconds=3)
            repository = await stack.enter_async_context(client)
            assert isinstance(repository, RemoteRepository)
            if scheme == "https":
                trusting(repository)
            assert [frame.digest] == await repository.missing([frame.digest])
            link.up = slowly
            await repository.put([frame])
            assert link.up_size < 1.1 * SLOW_SIZE


@pytest.mark.slow
@pytest.mark.parametrize("connections", [4, 8])
async def test_link_that_collapses_under_many_connections_is_given_fewer(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    """Each connection beyond two costs the link much of its rate. In the end, most bytes pass while at most two share it."""
    # The time in which goodput is measured passes only with the bytes, so a busy machine changes nothing.
    seconds = 0.0
    sharing = 0
    passed: list[tuple[int, bool]] = []

    class OnTheLink(Concurrency):
        @asynccontextmanager
        async def place(self) -> AsyncIterator[None]:
            nonlocal sharing
            async with super().place():
                sharing += 1
                try:
                    yield
                finally:
                    sharing -= 1

    async def collapse(piece: bytes) -> bytes:
        nonlocal seconds
        if is_large(piece):
            passed.append((len(piece), sharing > 2))
            seconds += len(piece) / (16e6 * min(1, 2 / max(1, sharing)) ** 2)
        return piece

    monkeypatch.setattr(concurrency, "EPOCH_SECONDS", 0.5)
    monkeypatch.setattr(remote, "Concurrency", partial(OnTheLink, clock=lambda: seconds))
    small = [encoded(octets(2000 + 200 * connections + number, SMALL_FRAME_SIZE), codec=Codec.RAW) for number in range(160)]
    async with (
        running_link(server.port, buffer_size=1 << 14) as link,
        connect(f"http://127.0.0.1:{link.port}", token=TOKEN, connections=connections) as repository,
    ):
        await repository.identity()
        link.up = collapse
        await asyncio.gather(*(repository.put([frame]) for frame in small))
        assert [] == await repository.missing([frame.digest for frame in small])
    # A step down needs an epoch in which all batches beyond the limit have ended: the first half is the time to find out.
    late = passed[len(passed) // 2 :]
    assert sum(size for size, is_crowded in late if is_crowded) < sum(size for size, _ in late) / 2
