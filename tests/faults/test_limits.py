"""A server refuses what exceeds a limit, before anything is written. The error names the setting, and reading goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.references import Reference
from filestore.errors import LimitExceeded
from filestore.http.client.repository import RemoteRepository
from filestore.transfer.push import push
from tests.support.frames import contents, frames, manifest
from tests.support.generator import octets
from tests.support.server import RunningServer, eventually, running_server
from tests.support.uploads import PARTS, PartsUpload

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with small limits."""
    root = tmp_path_factory.mktemp("served") / "root"
    with running_server(root, upload_limit=20 * MIB, chunks_limit=100, request_limit=8 * MIB, uploads_limit=2) as server:
        yield server


async def test_size_of_a_file(server: RunningServer, tmp_path: Path) -> None:
    """It is the same limit for a push and for a form. A push is refused before it sends anything."""
    source = tmp_path / "large.bin"
    source.write_bytes(bytes(21 * MIB))
    async with connect(server.url, token=server.token) as repository:
        with pytest.raises(LimitExceeded) as caught:
            await push(repository, source)
    assert (21 * MIB, 20 * MIB, "upload_limit") == (caught.value.found, caught.value.limit, caught.value.setting)
    assert not any((server.root / "chunks").rglob("*"))
    answer = server.upload("large.bin", bytes(21 * MIB))
    assert (413, "limit-exceeded", "upload_limit") == (answer.status, answer.slug, answer.json["setting"])
    assert [] == [
        path for path in (server.root / "tmp").rglob("*") if path.is_file() and not path.parent.name.startswith("uploads-")
    ]


def test_number_of_chunks(server: RunningServer) -> None:
    """A manifest of one chunk more is refused."""
    assert 200 == server.put(frames(101)).status
    for count, status in ((100, 201), (101, 413)):
        answer = server.commit(manifest(contents(count)).encoded, name="chunks.bin")
        assert status == answer.status
    assert ("limit-exceeded", 101, 100, "chunks_limit") == (
        answer.slug,
        answer.json["found"],
        answer.json["limit"],
        answer.json["setting"],
    )


async def test_size_of_a_request(server: RunningServer) -> None:
    """A batch that is too large is refused, and a client sends smaller ones."""
    batch = frames(3, size=3 * MIB, seed=1)
    answer = server.put(batch)
    assert (413, "limit-exceeded", "request_limit") == (answer.status, answer.slug, answer.json["setting"])
    repository = RemoteRepository(server.url, token=server.token)
    repository._rate = 1e9  # what a fast link has shown
    await repository.put(batch)
    assert [] == await repository.missing([frame.digest for frame in batch])
    await repository.close()


@pytest.mark.slow
async def test_number_of_uploads(server: RunningServer) -> None:
    """One more waits for the end of another one. Files can be read meanwhile."""
    one, two = PartsUpload(server, "one.bin"), PartsUpload(server, "two.bin")
    answer = server.ask("POST", f"{PARTS}/initiate-multipart-upload", b'{"name": "three.bin"}')
    assert (429, "too-many-uploads", 3, 2, "uploads_limit") == (
        answer.status,
        answer.slug,
        answer.json["found"],
        answer.json["limit"],
        answer.json["setting"],
    )
    for upload in (one, two):
        assert 201 == upload.finish([upload.put(1, octets(1, 1000))]).status
    async with connect(server.url, token=server.token) as repository:
        assert "one.bin" == (await repository.record(Reference(name="one.bin"))).name
    eventually(lambda: 201 == server.ask("POST", f"{PARTS}/initiate-multipart-upload", b'{"name": "three.bin"}').status)
