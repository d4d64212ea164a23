"""A disk returns wrong bytes. The damage is reported, never served, and repaired by the next push."""

from __future__ import annotations

import filecmp
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key, manifest_key
from filestore.errors import ChunksMissing, DamagedChunk, InvalidManifest
from filestore.http.server.body.frames import OPEN_TOGETHER
from filestore.repository import lost_frames
from filestore.repository.protocol import Repository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from filestore.transfer.sources.push_cache import PushCache
from tests.support.commands import Home, Server
from tests.support.damage import DAMAGES, BadSectors
from tests.support.frames import contents, encoded
from tests.support.frames import manifest as manifest_of
from tests.support.generator import octets
from tests.support.server import RunningServer, running_server

SIZE = 5 << 20


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["fetch", "curl"])
def test_damage_is_said_and_the_next_push_mends_it(home: Home, tmp_path: Path, reader: str) -> None:
    """A read finds it, and the repository forgets the frame.

    The push cache does not keep the next push from sending it.
    """
    source, target = tmp_path / "model.bin", tmp_path / "back.bin"
    source.write_bytes(random.Random(9).randbytes(SIZE))
    with home.server(root=tmp_path / "root", complains=reader == "curl") as server:
        pushed = home.result("push", source, environ=server.environ)
        damage(max((tmp_path / "root").glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size))
        if reader == "fetch":
            assert "is damaged in the repository" in home.failure("fetch", pushed["id"], "-o", target, environ=server.environ)
            assert not target.exists()
        else:
            assert curl(server, pushed["path"], target) != 0
        again = home.result("push", source, environ=server.environ)
        assert 0 < again["bytes_sent"] < pushed["bytes_sent"]
        if reader == "fetch":
            home.result("fetch", pushed["id"], "-o", target, environ=server.environ)
        else:
            assert curl(server, pushed["path"], target) == 0
    assert filecmp.cmp(source, target, shallow=False)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    frame = bytearray(path.read_bytes())
    frame[len(frame) // 2] ^= 1
    path.write_bytes(frame)


def curl(server: Server, path: str, target: Path) -> int:
    """Return the exit status of a plain GET that treats an error status and a short answer as failures."""
    command = ["curl", "-sf", "-H", f"Authorization: Bearer {server.token}", "-o", str(target), f"{server.url}/{path}"]
    return subprocess.run(command, check=False).returncode


@pytest.fixture(scope="module")
def bad_sectors(tmp_path_factory: pytest.TempPathFactory) -> BadSectors:
    """The bad sectors of the disk under `server`."""
    return BadSectors(tmp_path_factory.mktemp("bad-sectors"))


@pytest.fixture(scope="module")
def server(bad_sectors: BadSectors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on a disk that has bad sectors."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bad_sectors.environ.items():
            patch.setenv(name, value)
        # It logs the damage that it finds.
        with running_server(tmp_path_factory.mktemp("server") / "root", check=False) as server:
            patch.undo()
            yield server
            status, log = server.stop()
    assert (0, False) == (status, "Traceback" in log)


def make_source(folder: Path, name: str) -> Path:
    """Make a file with its own content."""
    source = folder / "source"
    source.write_bytes(octets(sum(name.encode()), 300_000))
    return source


async def first_chunk(repository: Repository, source: Path, root: Path) -> Path:
    """Push a file. Return the path of the frame of its first chunk."""
    pushed = await push(repository, source)
    manifest = await repository.manifest(pushed.record.digest)
    return root / chunk_key(DEFAULT_NAMESPACE, Manifest.parse(manifest).chunks[0].digest)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_fetch_reports_a_damaged_frame_and_the_next_push_sends_it(
    server: RunningServer, bad_sectors: BadSectors, tmp_path: Path, damage: str
) -> None:
    """Whatever is wrong with a frame, a client learns that a chunk is damaged or missing, and that a push helps."""
    source = make_source(tmp_path, damage)
    async with connect(server.url, token=server.token) as repository:
        frame = await first_chunk(repository, source, server.root)
        DAMAGES[damage](frame, bad_sectors)
        with pytest.raises((DamagedChunk, ChunksMissing), match="push the file") as caught:
            await fetch(repository, "source", target=tmp_path / "target")
        assert frame.name in str(caught.value)
        assert not (tmp_path / "target").exists()
        assert 0 < (await push(repository, source)).bytes_sent
        await fetch(repository, "source", target=tmp_path / "target")
    assert filecmp.cmp(source, tmp_path / "target", shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_fetch_of_many_chunks_reports_the_damaged_one(
    server: RunningServer, bad_sectors: BadSectors, tmp_path: Path, damage: str
) -> None:
    """A server does not open all frames of a large batch before it begins to send. What follows the damaged one is right."""
    chunks = contents(2 * OPEN_TOGETHER, size=500, seed=sum(damage.encode()))
    sent = [encoded(content) for content in chunks]
    async with connect(server.url, token=server.token) as repository:
        await repository.put(sent)
        await repository.commit(manifest_of(chunks).encoded, name="many")
        frame = server.root / chunk_key(DEFAULT_NAMESPACE, sent[OPEN_TOGETHER + 3].digest)
        DAMAGES[damage](frame, bad_sectors)
        with pytest.raises((DamagedChunk, ChunksMissing), match="push the file") as caught:
            await fetch(repository, "many", target=tmp_path / "target")
        assert frame.name in str(caught.value)
        assert [sent[OPEN_TOGETHER + 3].digest] == await repository.missing([each.digest for each in sent])


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
async def test_plain_get_reports_a_damaged_frame_and_the_next_push_sends_it(
    server: RunningServer, bad_sectors: BadSectors, tmp_path: Path, damage: str
) -> None:
    """Whatever is wrong with a frame, a plain GET is answered with the damage, which names the chunk."""
    source = make_source(tmp_path, f"{damage} plain")
    async with connect(server.url, token=server.token) as repository:
        frame = await first_chunk(repository, source, server.root)
        path = (await repository.record("source")).path
        DAMAGES[damage](frame, bad_sectors)
        reply = server.ask("GET", f"/{path}")
        assert (500, "damaged-chunk", frame.name) == (reply.status, reply.slug, reply.json.get("digest", reply.json))
        assert 0 < (await push(repository, source)).bytes_sent
    assert source.read_bytes() == server.ask("GET", f"/{path}").body


@pytest.mark.slow
@pytest.mark.parametrize("damage", [kind for kind in DAMAGES if not kind.startswith("bad-")])
async def test_local_fetch_reports_a_damaged_frame_and_the_next_push_sends_it(
    local_repository: Repository, tmp_path: Path, damage: str
) -> None:
    """A repository in a folder reports the same as a server."""
    source = make_source(tmp_path, damage)
    frame = await first_chunk(local_repository, source, Path(local_repository.location))
    DAMAGES[damage](frame, BadSectors(tmp_path))
    with pytest.raises((DamagedChunk, ChunksMissing), match="push the file") as caught:
        await fetch(local_repository, "source", target=tmp_path / "target")
    assert frame.name in str(caught.value)
    assert 0 < (await push(local_repository, source)).bytes_sent
    await fetch(local_repository, "source", target=tmp_path / "target")
    assert filecmp.cmp(source, tmp_path / "target", shallow=False)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [kind for kind in DAMAGES if kind != "deleted"])
async def test_fetch_reports_a_damaged_manifest_and_the_next_push_sends_it(
    server: RunningServer, bad_sectors: BadSectors, tmp_path: Path, damage: str
) -> None:
    """Whatever is in the place of a manifest, the error says that it is damaged and that a push helps."""
    source = make_source(tmp_path, f"{damage} manifest")
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, source)
        DAMAGES[damage](server.root / manifest_key(DEFAULT_NAMESPACE, pushed.record.digest), bad_sectors)
        with pytest.raises(InvalidManifest, match="is damaged; push the file again"):
            await fetch(repository, "source", target=tmp_path / "target")
        await push(repository, source)
        await fetch(repository, "source", target=tmp_path / "target")
    assert filecmp.cmp(source, tmp_path / "target", shallow=False)


SAME_SIZE = {"zeroed", "flipped", "bad-content"}
"""The kinds of damage after which a frame has the size that its row states."""


@pytest.mark.slow
@pytest.mark.parametrize("damage", [kind for kind in DAMAGES if kind not in SAME_SIZE])
async def test_push_looks_at_the_frames_that_it_shares(
    server: RunningServer, bad_sectors: BadSectors, tmp_path: Path, damage: str
) -> None:
    """A push sends a lost chunk again that nobody has read since, also if the push cache says that nothing has changed."""
    source = make_source(tmp_path, f"{damage} shared")
    stack = ExitStack()
    push_cache = stack.enter_context(PushCache(tmp_path / "pushes"))
    async with connect(server.url, token=server.token) as repository:
        frame = await first_chunk(repository, source, server.root)
        for cache in (None, push_cache):
            await push(repository, source, push_cache=push_cache)
            size = frame.stat().st_size
            DAMAGES[damage](frame, bad_sectors)
            assert size == (await push(repository, source, push_cache=cache)).bytes_sent
            assert 0 == (await push(repository, source, push_cache=cache)).bytes_sent
        await fetch(repository, "source", target=tmp_path / "target")
    stack.close()


@pytest.mark.parametrize("damage", ["zeroed", "flipped"])
async def test_push_reads_some_of_the_frames_that_it_shares(
    local_repository: Repository, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that is read, and has its size but other bytes, is sent again."""
    source = make_source(tmp_path, damage)
    frame = await first_chunk(local_repository, source, Path(local_repository.location))
    DAMAGES[damage](frame, BadSectors(tmp_path))
    monkeypatch.setattr(lost_frames, "READ_ONE_IN", 1e9)
    assert 0 == (await push(local_repository, source)).bytes_sent
    monkeypatch.setattr(lost_frames, "READ_ONE_IN", 1)
    assert frame.stat().st_size == (await push(local_repository, source)).bytes_sent
    assert 0 == (await push(local_repository, source)).bytes_sent


@pytest.mark.parametrize("damage", ["folder", "dangling-link", "loop", "pipe"])
async def test_removal_of_what_is_not_a_frame(local_repository: Repository, tmp_path: Path, damage: str) -> None:
    """A removal with chunks completes. What was in the place of a frame and holds something is set aside."""
    source = make_source(tmp_path, damage)
    root = Path(local_repository.location)
    frame = await first_chunk(local_repository, source, root)
    DAMAGES[damage](frame, BadSectors(tmp_path))
    await local_repository.remove((await local_repository.record("source")).id, with_chunks=True)
    assert not frame.is_symlink()
    assert not frame.exists()
    assert (["something"] if damage == "folder" else []) == [path.name for path in root.glob("damaged/*/*")]
