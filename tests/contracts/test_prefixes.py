"""Rules of every repository that sees only the names with a prefix: in this process, and by a token at a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.backends import open_backend
from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import DamagedRecord, FilestoreError, NotFound, OutsidePrefix
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.repository.stores.memory import MemoryStore
from filestore.repository.stores.protocol import ChunkStore
from tests.support.frames import buffer_for, encoded, manifest
from tests.support.generator import octets
from tests.support.server import running_server
from tests.support.tls import client_of

pytestmark = pytest.mark.slow

PREFIX, LIMITED_TOKEN = "logs_", "a-token-for-logs"


class Sides(NamedTuple):
    """Two views of one namespace."""

    whole: Repository
    limited: Repository
    """It sees the names with `PREFIX`."""
    store: ChunkStore


@asynccontextmanager
async def _local(folder: Path) -> AsyncIterator[Sides]:
    store, index = MemoryStore(), await open_index(folder / "index.sqlite")
    whole = LocalRepository(store, index, location="memory")
    yield Sides(whole, LocalRepository(store, index, location="memory", prefix=PREFIX), store)
    await whole.close()


@asynccontextmanager
async def _remote(folder: Path) -> AsyncIterator[Sides]:
    # One of the tests has a damaged record, of which the server writes to its log.
    with running_server(folder / "repository", check=False) as server:
        store, index = await open_backend(server.root)
        async with index.transaction() as transaction:
            token = token_digest(LIMITED_TOKEN)
            await transaction.add_token(token, namespace=DEFAULT_NAMESPACE, label="", prefix=PREFIX)
        async with (
            client_of(server.port, "http", token=server.token) as whole,
            client_of(server.port, "http", token=LIMITED_TOKEN) as limited,
        ):
            yield Sides(whole, limited, store)
        await index.close()
        await store.close()


KINDS: dict[str, Callable[[Path], AbstractAsyncContextManager[Sides]]] = {"local": _local, "remote": _remote}


@pytest.fixture(params=KINDS)
async def sides(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Sides]:
    """An empty namespace."""
    async with KINDS[request.param](tmp_path) as sides:
        yield sides


async def push(repository: Repository, *chunks: bytes, name: str) -> Record:
    """Put chunks and commit them as a file."""
    await repository.put([encoded(content) for content in chunks])
    return await repository.commit(manifest(list(chunks)).encoded, name=name, kind=Kind.FILE)


async def error_of(call: Awaitable[object]) -> tuple[type[FilestoreError], str]:
    """The class and the message of the error that a call raises."""
    with pytest.raises(FilestoreError) as caught:
        await call
    return type(caught.value), str(caught.value)


async def test_a_name_outside_of_the_prefix_is_not_stored(sides: Sides) -> None:
    """The error says why. A name inside is stored, and is the same record for everybody."""
    content = octets(1, 1000)
    with pytest.raises(OutsidePrefix, match="only for names that begin with 'logs_', and not for the name 'other'"):
        await push(sides.limited, content, name="other")
    assert [] == await sides.whole.records()
    record = await push(sides.limited, content, name="logs_1")
    assert record == await sides.whole.record("logs_1")


async def test_a_record_outside_of_the_prefix_is_not_found(sides: Sides) -> None:
    """By its id, its name, its digest and its path, with the words of one that does not exist."""
    record = await push(sides.whole, octets(1, 1000), name="other")
    references = [record.id, str(record.digest), "other", "other@~0", record.path, record.run_path]
    for reference in references:
        assert record == await sides.whole.record(reference)
    found = [await error_of(sides.limited.record(reference)) for reference in references]
    await sides.whole.remove(record.id)
    assert found == [await error_of(sides.whole.record(reference)) for reference in references]


async def test_a_digest_means_the_record_inside_of_the_prefix(sides: Sides) -> None:
    """Also if a newer record of the same content is outside."""
    inside = await push(sides.whole, octets(1, 1000), name="logs_1")
    await push(sides.whole, octets(1, 1000), name="other")
    assert inside == await sides.limited.record(Reference(digest=inside.digest))
    assert [inside] == (await sides.limited.versions(Reference(digest=inside.digest))).records
    assert 1 == (await sides.limited.versions(Reference(digest=inside.digest))).total


async def test_lists_hold_the_names_inside_of_the_prefix(sides: Sides) -> None:
    """In pages, as a whole, and by versions. `_` stands for itself only."""
    for number, name in enumerate(("logs_1", "other", "logsx", "logs_2", "LOGS_3")):
        await push(sides.whole, octets(number, 100), name=name)
    assert ["logs_2", "logs_1"] == [record.name for record in await sides.limited.records()]
    (newest,) = await sides.limited.records(limit=1)
    assert ["logs_1"] == [record.name for record in await sides.limited.records(before=newest.updated_at)]
    assert ["logs_2", "logs_1"] == [record.name async for record in sides.limited.iter_records()]
    assert (NotFound, NotFound) == tuple(
        [(await error_of(sides.limited.versions(each, **rule)))[0] for each, rule in (("other", {}), ("logsx", {"keep_last": 1}))]
    )


async def test_a_record_outside_of_the_prefix_is_neither_removed_nor_signed(sides: Sides) -> None:
    """Also with its chunks and by force. What is inside is."""
    outside = await push(sides.whole, octets(1, 1000), name="other")
    inside = await push(sides.whole, octets(2, 1000), name="logs_1")
    for call in (
        sides.limited.remove(outside.id),
        sides.limited.remove(outside.id, with_chunks=True, force=True),
        sides.limited.sign(outside.id),
    ):
        assert NotFound is (await error_of(call))[0]
    assert "signed/" in await sides.limited.sign(inside.id)
    assert inside == await sides.limited.remove(inside.id, with_chunks=True)
    assert [outside] == await sides.whole.records()


async def test_usage_is_that_of_the_names_inside_of_the_prefix(sides: Sides) -> None:
    """A chunk that is shared with a name outside counts as shared. What no name needs is not told."""
    shared, own, foreign = (octets(number, 1000) for number in range(3))
    await push(sides.whole, shared, own, name="logs_1")
    await push(sides.whole, shared, foreign, name="other")
    gone = await push(sides.whole, octets(9, 1000), name="gone")
    await sides.whole.remove(gone.id)
    whole, limited = [await side.usage(grace_seconds=0) for side in (sides.whole, sides.limited)]
    assert ["logs_1"] == [usage.name for usage in limited.names]
    assert [usage for usage in whole.names if usage.name == "logs_1"] == list(limited.names)
    sizes = [len(encoded(content).data) for content in (shared, own)]
    assert (1, 1, 2000, 2000, 2, sum(sizes)) == (
        *(limited.name_count, limited.record_count, limited.logical_size, limited.distinct_size),
        *(limited.frame_count, limited.needed_size),
    )
    assert (sizes[1], sizes[0]) == (limited.names[0].own_size, limited.names[0].shared_size)
    assert (0, 0) == (limited.free_size, limited.waiting_size)
    assert whole.manifests_size == 2 * limited.manifests_size


async def test_what_a_removal_frees_is_told_inside_of_the_prefix(sides: Sides) -> None:
    """An id outside counts like one that does not exist."""
    inside = await push(sides.whole, octets(1, 1000), name="logs_1")
    outside = await push(sides.whole, octets(2, 1000), name="other")
    assert 1 == (await sides.limited.freed_by([inside.id, outside.id])).chunk_count
    assert 0 == (await sides.limited.freed_by([outside.id])).chunk_count


async def test_a_damaged_record_outside_of_the_prefix_is_not_named(sides: Sides) -> None:
    """A removal with chunks needs its manifest, and fails without its name and its id."""
    inside = await push(sides.whole, octets(1, 1000), name="logs_1")
    outside = await push(sides.whole, octets(2, 1000), name="other")
    await sides.store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(outside.digest))
    for call in (sides.limited.remove(inside.id, with_chunks=True), sides.limited.freed_by([inside.id])):
        kind, message = await error_of(call)
        assert kind is DamagedRecord
        assert not any(secret in message for secret in ("other", outside.id, str(outside.digest)))
    assert ("other",) == (await sides.whole.usage()).damaged
    assert () == (await sides.limited.usage()).damaged


async def test_content_is_that_of_the_namespace(sides: Sides) -> None:
    """Who knows the digest of a manifest or a chunk can read it: the namespace is the boundary of content."""
    content = octets(1, 1000)
    record = await push(sides.whole, content, name="other")
    frame = encoded(content)
    assert [] == await sides.limited.missing([frame.digest])
    assert manifest([content]).encoded == await sides.limited.manifest(record.digest)
    (found,) = await sides.limited.get([frame.digest], buffer_for(1))
    assert frame.data == found
