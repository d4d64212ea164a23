"""Servers die, restart, refuse and use TLS; tasks of the client are cancelled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.digest import chunk_digest
from filestore.errors import Unauthorized
from filestore.format.codec import Codec, Frame
from tests.support.daemons import lasting_port
from tests.support.frames import buffer_for, encoded
from tests.support.generator import octets
from tests.support.links import PIECE, as_it_is, running_link, slowly
from tests.support.server import TOKEN, running_server
from tests.support.tls import CERTIFICATE, behind_tls, client_of


@pytest.fixture(params=["http", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Return how a client reaches a server: without TLS, or with it."""
    assert isinstance(request.param, str)
    return request.param


def large_frames(seed: int) -> list[Frame]:
    """16 MB: more than the buffers of both ends of a connection hold, and as much as a push puts at once."""
    return [encoded(octets(1000 * seed + number, 1_000_000), codec=Codec.RAW) for number in range(16)]


def sockets() -> list[str]:
    """Return the sockets that this process has open."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            links.append(str(path.readlink()))
    return sorted(link for link in links if link.startswith("socket:"))


@pytest.mark.slow
async def test_a_large_batch_without_a_token_is_refused_by_that_name(tmp_path: Path, scheme: str) -> None:
    """The server answers and closes before it has read the batch. The client raises the error of that answer."""
    with running_server(tmp_path / "root") as server:
        async with client_of(server.port, scheme, token="of-nobody") as repository:
            for _ in range(3):
                with pytest.raises(Unauthorized):
                    await repository.put(large_frames(1))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["put", "get"])
async def test_a_server_that_dies_and_comes_back(tmp_path: Path, verb: str, scheme: str) -> None:
    """A kill in the middle of a batch does not stop it: it continues at the next server, and the counts are right."""
    frames = large_frames(2)
    digests = [frame.digest for frame in frames]
    moved: list[int] = []
    with running_server(tmp_path / "root", check=False, port=lasting_port()) as first:
        async with running_link(first.port, buffer_size=PIECE) as link, client_of(link.port, scheme, token=TOKEN) as repository:
            await repository.put(frames[:4] if verb == "put" else frames)
            link.up = link.down = slowly

            def kill(size: int) -> None:
                if not moved:
                    first.process.kill()
                moved.append(size)

            asking = asyncio.create_task(
                repository.put(frames, moved=kill) if verb == "put" else repository.get(digests, buffer_for(16), moved=kill)
            )
            while not moved:
                await asyncio.sleep(0)
            assert not asking.done()
            first.process.wait()
            link.up = link.down = as_it_is
            with running_server(tmp_path / "root", port=first.port):
                got = await asking
                if got is None:
                    got = await repository.get(digests, buffer_for(16))
                assert [frame.data for frame in frames] == got
                assert sum(len(frame.data) for frame in frames) == sum(moved)


@pytest.mark.slow
async def test_connections_of_a_server_that_was_restarted_are_left(tmp_path: Path) -> None:
    """A connection that is found closed does not count as an attempt."""
    frame = encoded(b"content")
    with running_server(tmp_path / "root", check=False, port=lasting_port()) as first:
        async with connect(first.url, token=TOKEN, retry_seconds=0) as repository:
            await asyncio.gather(*(repository.put([frame]) for _ in range(4)))
            assert (0, "") == first.stop()
            with running_server(tmp_path / "root", port=first.port):
                await repository.put([frame])
                assert [frame.data] == await repository.get([frame.digest], buffer_for(1))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["put", "get"])
async def test_a_cancelled_batch_lets_go_of_its_memory(tmp_path: Path, verb: str, scheme: str) -> None:
    """After a cancel, nobody uses its memory any more. The next batch works."""
    frames = large_frames(3)
    digests = [frame.digest for frame in frames]
    buffer = buffer_for(16)
    before = sockets()
    with running_server(tmp_path / "root") as server:
        async with running_link(server.port, buffer_size=PIECE) as link, client_of(link.port, scheme, token=TOKEN) as repository:
            await repository.put(frames[:8] if verb == "put" else frames)
            link.up = link.down = slowly
            moved: list[int] = []
            asking = asyncio.create_task(
                repository.put(frames, moved=moved.append)
                if verb == "put"
                else repository.get(digests, buffer, moved=moved.append)
            )
            while not moved:
                await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            link.up = link.down = as_it_is
            buffer[:] = bytes(len(buffer))
            await repository.put(frames)
            assert not any(buffer)
            assert [frame.data for frame in frames] == await repository.get(digests, buffer)
        assert before == sockets()


_OVER_TLS = """
import asyncio, sys
from filestore.backends import connect
from tests.faults.test_client_faults import large_frames
from tests.support.frames import buffer_for

async def main():
    frames = large_frames(4)
    async with connect(sys.argv[1], token=sys.argv[2]) as repository:
        await repository.put(frames)
        got = await repository.get([frame.digest for frame in frames], buffer_for(16))
        assert [frame.data for frame in frames] == got

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_server_behind_tls(tmp_path: Path, *, is_trusted: bool) -> None:
    """It gives the same repository. An untrusted certificate is an error for every verb."""
    with running_server(tmp_path / "root") as server:
        async with behind_tls(server.port) as url:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-c", _OVER_TLS, url, TOKEN),
                env=os.environ | ({"SSL_CERT_FILE": str(CERTIFICATE)} if is_trusted else {}),
                cwd=Path(__file__).parents[2],
                stderr=subprocess.PIPE,
            )
            _, errors = await process.communicate()
    if is_trusted:
        assert (0, b"") == (process.returncode, errors)
    else:
        assert b"Unreachable" in errors
        assert b"certificate" in errors


@pytest.mark.slow
async def test_an_absent_chunk_among_large_ones(tmp_path: Path, scheme: str) -> None:
    """An absent chunk takes no space in the buffer. The other chunks come."""
    frames = large_frames(5)
    with running_server(tmp_path / "root") as server:
        async with client_of(server.port, scheme, token=TOKEN) as repository:
            await repository.put(frames)
            asked = [frames[0].digest, chunk_digest(b"absent"), frames[1].digest]
            assert [frames[0].data, None, frames[1].data] == await repository.get(asked, buffer_for(3))
