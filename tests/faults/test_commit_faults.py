"""A commit checks its chunks before its transaction. What changes between both does not go unnoticed, and others can write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from filestore.core.digest import Buffer, Digest, chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.object_names import ObjectName
from filestore.core.paths import manifest_key
from filestore.errors import Busy, ChunksMissing, InvalidManifest
from filestore.repository import manifest_check
from filestore.repository.index.protocol import ChunkRow, Index
from filestore.repository.index.sqlite import SqliteTransaction, open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores import disk
from filestore.repository.stores.disk import open_store
from filestore.repository.stores.memory import MemoryStore
from filestore.system.files import sync_path
from tests.support.frames import contents, frames, manifest

LATER = 1 << 62
CONTENTS = contents(5)


class InterruptedStore(MemoryStore):
    """A store that calls a function after it stored a manifest: after the check of a commit, and before its transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.then: Callable[[], Awaitable[None]] | None = None
        self.count = 0

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        object_id = await super().put_manifest(namespace, digest, encoded)
        self.count += 1
        if self.then is not None:
            await self.then()
        return object_id


@pytest.fixture
async def store() -> InterruptedStore:
    """The store of the repository."""
    return InterruptedStore()


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[Index]:
    """An index as another process has it open. A write that has to wait fails soon."""
    opened = await open_index(tmp_path / "index.sqlite", busy_seconds=1)
    yield opened
    await opened.close()


@pytest.fixture
async def repository(store: InterruptedStore, index: Index, tmp_path: Path) -> AsyncIterator[LocalRepository]:
    """A repository with the chunks of `CONTENTS` and one more."""
    opened = LocalRepository(store, await open_index(tmp_path / "index.sqlite"), location="memory")
    await opened.put([*frames(5), *frames(1, seed=9)])
    yield opened
    await opened.close()


@pytest.mark.parametrize("slice_size", [2048, 2])
async def test_a_chunk_that_is_condemned_after_the_check_is_missing(
    repository: LocalRepository, store: InterruptedStore, index: Index, slice_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: the commit names it, and records nothing. The client sends it, and commits again.

    Of a manifest that is larger than a slice, the transaction looks only at what was removed.
    """
    monkeypatch.setattr(manifest_check, "SLICE", slice_size)
    lost = chunk_digest(CONTENTS[3])

    async def condemn() -> None:
        store.then = None
        async with index.transaction() as transaction:
            await transaction.condemn(DEFAULT_NAMESPACE, [lost], unseen_since=LATER)

    store.then = condemn
    with pytest.raises(ChunksMissing) as caught:
        await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert (str(lost),) == caught.value.digests
    assert [] == await repository.records()
    await repository.put(frames(5)[3:4])
    record = await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert [record] == await repository.records()


async def test_a_chunk_that_is_forgotten_after_the_check_is_missing(
    repository: LocalRepository, store: InterruptedStore, index: Index
) -> None:
    """A reader that found its frame damaged removes the row at any time."""
    lost = chunk_digest(CONTENTS[0])

    async def forget() -> None:
        store.then = None
        async with index.transaction() as transaction:
            await transaction.forget_chunks(DEFAULT_NAMESPACE, [lost])

    store.then = forget
    with pytest.raises(ChunksMissing):
        await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert [] == await repository.records()


async def test_a_manifest_that_is_removed_before_its_record_is_stored_again(
    repository: LocalRepository, store: InterruptedStore
) -> None:
    """A collection removes manifests without a record, also the one of a commit in progress."""
    stored = manifest(CONTENTS)

    async def remove() -> None:
        store.then = None
        await store.remove_manifest(DEFAULT_NAMESPACE, ObjectName(stored.digest))

    store.then = remove
    record = await repository.commit(stored.encoded, name="model.bin")
    assert stored.encoded == await repository.manifest(record.digest)
    assert 2 == store.count


async def _condemn(index: Index, digest: Digest) -> None:
    async with index.transaction() as transaction:
        await transaction.add_chunks(DEFAULT_NAMESPACE, [ChunkRow(digest, 1000, 1000)])
        await transaction.condemn(DEFAULT_NAMESPACE, [digest], unseen_since=LATER)


@pytest.mark.parametrize(("slice_size", "attempts"), [(2048, 1), (2, 2)])
async def test_a_commit_beside_endless_removals_ends(
    *,
    slice_size: int,
    attempts: int,
    repository: LocalRepository,
    store: InterruptedStore,
    index: Index,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other chunks are condemned at each attempt. The transaction looks only at those of its manifest.

    The first attempt of a large manifest ends without it, because nothing was removed before.
    """
    monkeypatch.setattr(manifest_check, "SLICE", slice_size)
    other = frames(1, seed=9)[0].digest
    store.then = partial(_condemn, index, other)
    record = await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert [record] == await repository.records()
    assert attempts == store.count


@pytest.mark.parametrize("count", [1, 20])
async def test_a_transaction_looks_only_at_a_slice_of_what_was_removed(
    count: int, repository: LocalRepository, store: InterruptedStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of the manifest that were removed since its check, and pushed again, are looked at again.

    With more removals than the index keeps, these are all chunks, and this is not done in the transaction.
    """
    monkeypatch.setattr(manifest_check, "SLICE", 2)
    looked_at: list[int] = []
    sizes = SqliteTransaction.sizes

    async def counted(self: SqliteTransaction, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        looked_at.append(len(digests))
        return await sizes(self, namespace, digests)

    async def replace() -> None:
        if store.count <= 2:
            for number in range(count):
                await _condemn(index, chunk_digest(CONTENTS[number % 5]))
            await repository.put(frames(5))
        looked_at.clear()

    monkeypatch.setattr(SqliteTransaction, "sizes", counted)
    store.then = replace
    record = await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert [record] == await repository.records()
    assert sum(looked_at) <= 2
    assert (2 if count == 1 else 3) == store.count


async def test_a_commit_whose_chunks_are_replaced_at_each_check_may_be_repeated(
    repository: LocalRepository, store: InterruptedStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its namespace alone can do that. The commit ends with an error after a few checks, and nothing is recorded."""
    monkeypatch.setattr(manifest_check, "SLICE", 2)

    async def replace() -> None:
        for content in CONTENTS:
            await _condemn(index, chunk_digest(content))
        await repository.put(frames(5))

    store.then = replace
    with pytest.raises(Busy) as caught:
        await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert (True, 10) == (caught.value.retryable, store.count)
    assert [] == await repository.records()


async def test_others_write_while_a_manifest_of_many_slices_is_checked(
    repository: LocalRepository, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices no transaction is open, so that another process can write."""
    monkeypatch.setattr(manifest_check, "SLICE", 2)
    looked_up: list[int] = []
    refreshed_sizes = index.refreshed_sizes

    async def seen(namespace: str, digests: list[Digest]) -> Mapping[Digest, int]:
        async with index.transaction() as transaction:
            await transaction.set_task_state(namespace, "other", {"number": len(looked_up)})
        looked_up.append(len(digests))
        return await refreshed_sizes(namespace, digests)

    monkeypatch.setattr(repository._index, "refreshed_sizes", seen)  # in the middle of the check
    record = await repository.commit(manifest(CONTENTS).encoded, name="model.bin")
    assert [record] == await repository.records()
    assert [2, 2, 1] == looked_up


async def test_all_missing_chunks_are_named_in_the_order_of_the_file(
    repository: LocalRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are looked up in another order than that of the manifest, and each is named once."""
    monkeypatch.setattr(manifest_check, "SLICE", 3)
    absent = contents(20, seed=4)
    with pytest.raises(ChunksMissing) as caught:
        await repository.commit(manifest([*absent, *CONTENTS, *absent]).encoded, name="model.bin")
    assert tuple(str(chunk_digest(content)) for content in absent) == caught.value.digests


async def test_a_wrong_size_in_any_slice_is_refused(repository: LocalRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4: a manifest must state the sizes of its chunks, also where one chunk comes twice."""
    monkeypatch.setattr(manifest_check, "SLICE", 2)
    chunks = [Chunk(chunk_digest(content), len(content)) for content in CONTENTS]
    wrong = Manifest.build([*chunks, Chunk(chunks[1].digest, 1)], chunking_version=manifest(CONTENTS).chunking_version)
    with pytest.raises(InvalidManifest, match="1000 bytes"):
        await repository.commit(wrong.encoded, name="model.bin")
    assert [] == await repository.records()


async def test_a_manifest_whose_folder_a_collection_removes_at_this_moment_is_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of a push that did not end may go, with its empty folder, while a commit makes its name durable."""
    store = await open_store(tmp_path)
    encoded, digest = manifest(CONTENTS).encoded, manifest(CONTENTS).digest
    await store.put_manifest(DEFAULT_NAMESPACE, digest, encoded)
    path = tmp_path / manifest_key(DEFAULT_NAMESPACE, digest)

    def removed_first(folder: Path | str) -> None:
        if path.exists():
            monkeypatch.undo()
            path.unlink()
            path.parent.rmdir()
        sync_path(folder)

    monkeypatch.setattr(disk, "sync_path", removed_first)
    await store.put_manifest(DEFAULT_NAMESPACE, digest, encoded)
    assert encoded == path.read_bytes()
    await store.close()
