"""A lying client, or one of another namespace, sends to a local repository (I4)."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.backends import open_backend
from filestore.core.digest import chunk_digest, manifest_digest
from filestore.core.manifest import CHUNK_LIMIT, MANIFEST_LIMIT, Chunk, Manifest
from filestore.core.references import Reference
from filestore.errors import ChunksMissing, InvalidFrame, InvalidManifest, InvalidName, LimitExceeded, NotFound
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import Frame
from filestore.repository.local import LocalRepository
from tests.support.frames import buffer_for, contents, encoded, frames, manifest
from tests.support.generator import prose


class Tenants(NamedTuple):
    """Two namespaces of one repository."""

    a: LocalRepository
    b: LocalRepository


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[Tenants]:
    """Two namespaces over one store and index."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    a, b = (LocalRepository(store, index, location="here", namespace=namespace) for namespace in ("a", "b"))
    yield Tenants(a, b)
    await a.close()


@pytest.fixture
def repository(tenants: Tenants) -> LocalRepository:
    """The repository of one namespace."""
    return tenants.a


async def check_refused(repository: LocalRepository, encoded_manifest: bytes, *, because: str) -> None:
    """Check that the commit is refused, and leaves neither a record nor a manifest."""
    with pytest.raises(InvalidManifest, match=because):
        await repository.commit(encoded_manifest, name="name")
    assert [] == await repository.records()
    with pytest.raises(NotFound):
        await repository.manifest(manifest_digest(encoded_manifest))


async def test_manifest_that_names_chunks_that_are_not_there(repository: LocalRepository) -> None:
    """It leaves neither a record nor a manifest."""
    wanted = manifest(contents(2))
    with pytest.raises(ChunksMissing):
        await repository.commit(wanted.encoded, name="name")
    assert [] == await repository.records()
    with pytest.raises(NotFound):
        await repository.manifest(wanted.digest)


async def test_manifest_whose_sizes_do_not_add_up(repository: LocalRepository) -> None:
    """The file's size is the sum of its chunks'."""
    await repository.put(frames(2))
    raw = bytearray(manifest(contents(2)).encoded)
    struct.pack_into("<Q", raw, 16, 1999)
    await check_refused(repository, bytes(raw), because="add up to 2000 bytes, it says 1999")


async def test_manifest_that_is_not_canonical(repository: LocalRepository) -> None:
    """One file has one manifest. Another one with extra or missing bytes is refused."""
    await repository.put(frames(2))
    raw = manifest(contents(2)).encoded
    await check_refused(repository, raw + b"\0", because="not the length")
    await check_refused(repository, raw[:-1], because="not the length")


async def test_manifest_whose_chunk_sizes_are_not_the_chunks(repository: LocalRepository) -> None:
    """The sizes add up and are wrong. A reader would look for bytes at the wrong offsets."""
    await repository.put(frames(2))
    one, two = (chunk_digest(content) for content in contents(2))
    lying = Manifest.build([Chunk(one, 999), Chunk(two, 1001)], chunking_version=CHUNKING_VERSION)
    await check_refused(repository, lying.encoded, because="has 1000 bytes, but the manifest states 999")
    twice = Manifest.build([Chunk(one, 1000), Chunk(one, 999), Chunk(two, 1000)], chunking_version=CHUNKING_VERSION)
    await check_refused(repository, twice.encoded, because="has 1000 bytes, but the manifest states 999")


async def test_manifest_of_another_chunking_version(repository: LocalRepository) -> None:
    """A repository has one chunking version, so that all pushes share chunks."""
    await repository.put(frames(1))
    await check_refused(repository, manifest(contents(1), chunking_version=7).encoded, because="its cutting version is 7")


async def test_manifest_beyond_the_limit(repository: LocalRepository) -> None:
    """It is refused by its length, before it is read."""
    with pytest.raises(LimitExceeded):
        await repository.commit(bytes(MANIFEST_LIMIT + 1), name="name")


async def test_chunk_that_is_a_manifest_is_not_a_manifest(repository: LocalRepository) -> None:
    """The two kinds of digest differ for the same bytes. A chunk cannot be read as a manifest."""
    content = manifest(contents(1)).encoded
    await repository.put([encoded(content)])
    with pytest.raises(NotFound):
        await repository.manifest(chunk_digest(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"\0\0\0\0",
        bytes(8),
        encoded(prose(1, 1000)).data,
        bytes(encoded(b"the chunk").data) + b"\0",
        bytes(encoded(b"the chunk").data)[:-1],
        b"\x09" + bytes(encoded(b"the chunk").data)[1:],
        struct.pack("<B3xI", 0, CHUNK_LIMIT + 1) + bytes(CHUNK_LIMIT + 1),
        struct.pack("<B3xI", 1, 0xFFFFFFFF) + bytes(100),
    ],
    ids=["empty", "short", "zeros", "another chunk", "longer", "cut", "unknown codec", "too large", "terabyte"],
)
@pytest.mark.parametrize("way", ["put", "ingest"])
async def test_frame_that_is_not_its_chunks(repository: LocalRepository, lie: bytes, way: str) -> None:
    """The error names its digest. Nothing of it is kept, and the frames before and after it are kept."""
    lying = Frame(chunk_digest(b"the chunk"), lie)
    before, behind = frames(2)
    with pytest.raises(InvalidFrame) as caught:
        if way == "put":
            await repository.put([before, lying, behind])
        else:
            await deliver(repository, [before, lying, behind])
    assert str(lying.digest) == caught.value.digest
    assert [lying.digest] == await repository.missing([before.digest, lying.digest, behind.digest])
    assert [before.data, None, behind.data] == await repository.get([before.digest, lying.digest, behind.digest], buffer_for(3))


async def deliver(repository: LocalRepository, sent: list[Frame]) -> None:
    """Send frames as a connection does. A frame of no bytes is whole when it is begun."""
    async with repository.ingest() as ingest:
        for frame in sent:
            ingest.start(frame.digest, len(frame.data))
            ingest.write(frame.data)
        await ingest.commit()


async def test_chunk_of_another_namespace_is_missing(tenants: Tenants) -> None:
    """A client that knows a digest learns neither whether the chunk exists, nor any of its bytes."""
    chunks = contents(2)
    put = frames(2)
    digests = [frame.digest for frame in put]
    await tenants.a.put(put)
    record = await tenants.a.commit(manifest(chunks).encoded, name="secret")
    assert digests == await tenants.b.missing(digests)
    assert [None, None] == await tenants.b.get(digests, buffer_for(2))
    assert [None, None] == await tenants.b.open(digests)
    with pytest.raises(ChunksMissing):
        await tenants.b.commit(manifest(chunks).encoded, name="mine")
    for reference in (Reference(id=record.id), Reference(digest=record.digest), Reference(name="secret")):
        with pytest.raises(NotFound):
            await tenants.b.record(reference)
    with pytest.raises(NotFound):
        await tenants.b.manifest(record.digest)
    with pytest.raises(NotFound):
        await tenants.b.remove(record.id)
    assert [] == await tenants.b.records()


async def test_namespace_that_leaves_its_folder(tmp_path: Path) -> None:
    """A namespace becomes a part of paths, so bad ones are refused."""
    store, index = await open_backend(tmp_path / "repository", create=True)
    for namespace in ("..", "a/b", "", "A"):
        with pytest.raises(InvalidName):
            LocalRepository(store, index, location="here", namespace=namespace)
    await store.close()
    await index.close()
