"""Rules of every chunk store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.object_names import ObjectName
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores.protocol import ChunkStore, FrameProblem, FrameState, Removed, Staging
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import contents

A, B = "a", "b"


def staged(store: ChunkStore, data: bytes, *, namespace: str = A, content: bytes | None = None) -> tuple[Digest, Staging]:
    """Return staged bytes with the digest of their content, ready to be published. A store does not check what they are."""
    frame = chunk_digest(data if content is None else content), store.new_staging()
    frame[1].write(data)
    store.sync(namespace, [frame])
    return frame


async def publish(store: ChunkStore, *all_data: bytes, namespace: str = A) -> list[Digest]:
    """Publish bytes, and return their digests."""
    frames = [staged(store, data, namespace=namespace) for data in all_data]
    await store.publish(namespace, frames)
    return [digest for digest, _ in frames]


async def read(store: ChunkStore, digest: Digest, *, namespace: str = A) -> bytes | None:
    """Return what is stored under a digest."""
    (part,) = await store.read_into(namespace, [digest], memoryview(bytearray(1 << 20)))
    return None if part is None else bytes(part)


async def test_first_format_stays(store: ChunkStore) -> None:
    """A format file is never replaced."""
    assert b"first" == await store.initialise(b"first")
    assert b"first" == await store.initialise(b"second")


async def test_two_who_initialise_at_once_get_the_same(store: ChunkStore) -> None:
    """Two callers at the same time get the same answer."""
    answers = await asyncio.gather(*(store.initialise(b"%d" % number) for number in range(8)))
    assert 1 == len(set(answers))


async def test_cancelled_initialise_leaves_a_whole_format_or_none(store: ChunkStore) -> None:
    """After a cancel at any await, the next caller gets one of the two texts, as a whole."""
    async for _ in cancelled_at_every_await(lambda: store.initialise(b"a text")):
        assert await store.initialise(b"a text") == b"a text"


async def test_published_frame_is_read_as_it_was_written(store: ChunkStore) -> None:
    """A frame that was written in pieces is read as a whole."""
    staging = store.new_staging()
    for piece in (b"", b"one", memoryview(b"two"), bytearray(b"three")):
        staging.write(piece)
    digest = chunk_digest(b"onetwothree")
    store.sync(A, [(digest, staging)])
    await store.publish(A, [(digest, staging)])
    assert b"onetwothree" == await read(store, digest)


def test_staging_gives_back_what_was_written(store: ChunkStore) -> None:
    """An ingest reads staged bytes again to verify them. The rest of the buffer is not touched."""
    staging = store.new_staging()
    staging.write(b"one")
    staging.write(b"two")
    buffer = bytearray(b"........")
    staging.read_into(memoryview(buffer))
    assert (6, b"onetwo..") == (staging.size, bytes(buffer))
    staging.discard()


async def test_staging_may_rest_between_any_two_writes(store: ChunkStore) -> None:
    """`rest` frees the resources of writing at any time, also repeatedly. No byte is lost by it."""
    staging = store.new_staging()
    staging.rest()
    for piece in (b"one", b"two"):
        staging.write(piece)
        staging.rest()
        staging.rest()
    digest = chunk_digest(b"onetwo")
    store.sync(A, [(digest, staging)])
    await store.publish(A, [(digest, staging)])
    assert b"onetwo" == await read(store, digest)


def test_staging_copies_what_it_is_given(store: ChunkStore) -> None:
    """The caller may reuse its memory at once."""
    staging = store.new_staging()
    piece = bytearray(b"before")
    staging.write(piece)
    piece[:] = b"after!"
    buffer = bytearray(6)
    staging.read_into(memoryview(buffer))
    assert b"before" == bytes(buffer)
    staging.discard()


async def test_frame_is_absent_until_it_is_published(store: ChunkStore) -> None:
    """No reader sees staged bytes."""
    digest, staging = staged(store, b"content")
    assert await read(store, digest) is None
    assert [] == [found async for found in store.digests(A)]
    staging.discard()


async def test_discarded_twice_or_after_publish_does_nothing(store: ChunkStore) -> None:
    """Every exit calls `discard`, also after success."""
    digest, staging = staged(store, b"content")
    await store.publish(A, [(digest, staging)])
    staging.discard()
    assert b"content" == await read(store, digest)
    unwritten = store.new_staging()
    for _ in range(2):
        unwritten.discard()


async def test_published_again_replaces(store: ChunkStore) -> None:
    """A publish also replaces an existing file, because a crash may have left it."""
    digest = chunk_digest(b"content")
    for data in (b"one encoding", b"another"):
        await store.publish(A, [staged(store, data, content=b"content")])
    assert b"another" == await read(store, digest)


async def test_same_digest_twice_in_one_publish(store: ChunkStore) -> None:
    """The later frame stays."""
    digest = chunk_digest(b"content")
    await store.publish(A, [staged(store, data, content=b"content") for data in (b"first", b"second")])
    assert b"second" == await read(store, digest)


async def test_placement_renames_only_what_it_is_told(store: ChunkStore) -> None:
    """The other frames stay staged: nobody reads them, and they may be discarded, or placed later."""
    (one, first), (other, second) = staged(store, b"one"), staged(store, b"other")
    placement = store.placement(A, [(one, first), (other, second)])
    placement.prepare()
    placement.rename({one})
    placement.sync()
    placement.close()
    placement.close()
    assert (b"one", None) == (await read(store, one), await read(store, other))
    await store.publish(A, [(other, second)])
    assert b"other" == await read(store, other)


@pytest.mark.slow
async def test_publish_of_many(store: ChunkStore) -> None:
    """There are more frames than threads, in as many folders."""
    all_data = contents(100, size=10)
    digests = await publish(store, *all_data)
    assert all_data == [await read(store, digest) for digest in digests]


async def test_cancelled_publish_leaves_whole_frames_only(store: ChunkStore) -> None:
    """After a cancel at any await, a frame is whole or absent."""
    all_data = contents(40, size=100)
    frames: list[tuple[Digest, Staging]] = []

    async def publish_all() -> None:
        frames[:] = [staged(store, data) for data in all_data]
        await store.publish(A, frames)

    async for _ in cancelled_at_every_await(publish_all):
        for (digest, staging), data in zip(frames, all_data, strict=True):
            assert await read(store, digest) in (None, data)
            staging.discard()


async def test_read_into_packs_frames_in_the_order_asked(store: ChunkStore) -> None:
    """Frames follow each other. An absent one takes no space. A repeated digest gives its frame twice."""
    one, two = await publish(store, b"one", b"second")
    buffer = memoryview(bytearray(12))
    parts = await store.read_into(A, [two, chunk_digest(b"absent"), one, one], buffer)
    assert [b"second", None, b"one", b"one"] == parts
    assert b"secondoneone" == bytes(buffer)


async def test_read_into_a_buffer_that_is_too_small(store: ChunkStore) -> None:
    """A buffer of the wrong size is an error of the caller, and raises."""
    digests = await publish(store, b"one", b"two")
    with pytest.raises(ValueError, match=r"."):
        await store.read_into(A, digests, memoryview(bytearray(5)))


async def test_open_gives_files_in_the_order_asked(store: ChunkStore) -> None:
    """None marks an absent frame. Each file is whole, and belongs to the caller."""
    one, two = await publish(store, b"one", b"second")
    files = await store.open(A, [two, chunk_digest(b"absent"), one, one])
    assert [b"second", None, b"one", b"one"] == [file and file.read() for file in files]
    for file in files:
        if file is not None:
            file.close()


async def test_sizes_are_those_of_whole_frames(store: ChunkStore) -> None:
    """Sizes come in the order of the question. An absent frame, or one of another namespace, has 0."""
    one, two = await publish(store, b"one", b"second")
    assert [6, 0, 3, 3] == await store.sizes(A, [two, chunk_digest(b"absent"), one, one])
    assert [0] == await store.sizes(B, [one])


async def test_cancelled_open_leaks_no_descriptor(store: ChunkStore) -> None:
    """Files that the caller never got are closed. For an open one, pytest turns the warning into an error."""
    digests = await publish(store, b"one", b"two")

    async def open_all() -> None:
        for file in await store.open(A, digests):
            if file is not None:
                file.close()

    async for _ in cancelled_at_every_await(open_all):
        pass


async def test_remove_is_idempotent(store: ChunkStore) -> None:
    """Removing an absent frame is not an error."""
    one, two = await publish(store, b"one", b"two")
    for _ in range(2):
        await store.remove(A, [ObjectName(one), ObjectName(chunk_digest(b"never there"))])
    assert [None, b"two"] == [await read(store, one), await read(store, two)]


async def test_digests_gives_all_frames_of_a_namespace(store: ChunkStore) -> None:
    """The answer has only frames, only of this namespace, and none that was removed."""
    kept = await publish(store, *contents(20, size=10))
    (removed,) = await publish(store, b"removed")
    await publish(store, b"elsewhere", namespace=B)
    await store.remove(A, [ObjectName(removed)])
    await store.put_manifest(A, chunk_digest(b"manifest"), b"manifest")
    assert sorted(kept) == sorted([digest async for digest in store.digests(A)])
    assert [] == [digest async for digest in store.digests("nobody")]


async def test_namespaces_do_not_share(store: ChunkStore) -> None:
    """A namespace does not see the frames of another one, and cannot remove them."""
    (digest,) = await publish(store, b"content")
    await store.put_manifest(A, digest, b"manifest")
    await store.remove(B, [ObjectName(digest)])
    await store.remove_manifest(B, ObjectName(digest))
    assert [b"content", None] == [await read(store, digest, namespace=namespace) for namespace in (A, B)]
    assert [None] == await store.open(B, [digest])
    assert [b"manifest", None] == [await store.manifest(namespace, digest) for namespace in (A, B)]


async def test_manifest_is_kept(store: ChunkStore) -> None:
    """It is read as it was put, once or twice, also after the caller reused the memory. Before that it is None."""
    digest = chunk_digest(b"manifest")
    assert await store.manifest(A, digest) is None
    assert not await store.has_manifest(A, digest)
    for _ in range(2):
        encoded = bytearray(b"manifest")
        await store.put_manifest(A, digest, encoded)
        encoded[:] = bytes(8)
    assert b"manifest" == await store.manifest(A, digest)
    assert [True, False] == [await store.has_manifest(namespace, digest) for namespace in (A, B)]


async def test_manifest_is_opened(store: ChunkStore) -> None:
    """The file has its bytes. An absent manifest gives no file."""
    digest = chunk_digest(b"manifest")
    assert await store.open_manifest(A, digest) is None
    await store.put_manifest(A, digest, b"manifest")
    file = await store.open_manifest(A, digest)
    assert file is not None
    with file:
        assert b"manifest" == file.read()
    assert await store.open_manifest(B, digest) is None


async def test_cancelled_manifest_is_whole_or_absent(store: ChunkStore) -> None:
    """After a cancel at any await, the manifest is whole or absent."""
    digest = chunk_digest(b"manifest")
    async for _ in cancelled_at_every_await(lambda: store.put_manifest(A, digest, b"manifest")):
        assert await store.manifest(A, digest) in (None, b"manifest")
    assert b"manifest" == await store.manifest(A, digest)


async def test_nothing_of_a_running_process_is_abandoned(store: ChunkStore) -> None:
    """What is being received stays, also in a dry run."""
    staging = store.new_staging()
    staging.write(b"received")
    for dry_run in (True, False):
        assert Removed(0, 0) == await store.remove_abandoned(dry_run=dry_run)
    buffer = memoryview(bytearray(8))
    staging.read_into(buffer)
    assert b"received" == bytes(buffer)
    staging.discard()


async def test_removed_manifest_is_gone(store: ChunkStore) -> None:
    """Removing an absent manifest is not an error."""
    digest = chunk_digest(b"manifest")
    await store.put_manifest(A, digest, b"manifest")
    for _ in range(2):
        await store.remove_manifest(A, ObjectName(digest))
    assert await store.manifest(A, digest) is None


async def test_manifests_gives_all_of_a_namespace(store: ChunkStore) -> None:
    """The answer has only manifests, only of this namespace."""
    await publish(store, b"a frame")
    digests = [chunk_digest(data) for data in contents(5, size=10)]
    for digest in digests:
        await store.put_manifest(A, digest, b"manifest")
    await store.put_manifest(B, chunk_digest(b"other"), b"manifest")
    assert sorted(digests) == sorted([digest async for digest in store.manifests(A)])


async def test_close_discards_what_is_staged(store: ChunkStore, tmp_path: Path) -> None:
    """What was never published does not outlive the store. A second close does nothing."""
    staged(store, b"never published")
    for _ in range(2):
        await store.close()
        assert [] == [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


async def test_inspect_gives_the_size_of_each_frame_in_order(store: ChunkStore) -> None:
    """A check looks at sizes without opening frames; an absent frame is a result."""
    one, two = await publish(store, b"one", b"three")
    absent = chunk_digest(b"absent")
    states = await store.inspect(A, [two, absent, one])
    assert [5, 0, 3] == [state.size for state in states]
    assert [None, FrameProblem.MISSING, None] == [state.problem for state in states]
    assert [FrameProblem.MISSING] == [state.problem for state in await store.inspect(B, [one])]


async def test_read_each_visits_each_frame_in_order(store: ChunkStore) -> None:
    """`visit` gets every byte of each frame that is there, with its digest."""
    one, empty = await publish(store, b"one", b"")
    absent = chunk_digest(b"absent")
    buffer = memoryview(bytearray(FRAME_LIMIT))
    results = await store.read_each(A, [absent, one, empty], buffer, lambda digest, data: (digest, bytes(data)))
    assert isinstance(results[0], FrameState)
    assert FrameProblem.MISSING is results[0].problem
    assert [(one, b"one"), (empty, b"")] == results[1:]


async def test_read_each_does_not_read_what_no_frame_can_be(store: ChunkStore) -> None:
    """What is larger than any frame is reported by its size, so that memory is bounded (I6)."""
    (large,) = await publish(store, bytes(FRAME_LIMIT + 1))
    results = await store.read_each(A, [large], memoryview(bytearray(FRAME_LIMIT)), lambda _, data: bytes(data))
    assert [FrameState(FRAME_LIMIT + 1)] == results


async def test_space_is_promised_and_given_back(store: ChunkStore) -> None:
    """After the block, also where it failed or was cancelled, the whole space can be promised again."""
    for size in (0, 1, 10_000):
        async with store.space_for(size) as claim:
            claim.written(size // 2)
            claim.written(2 * size)
    with pytest.raises(ZeroDivisionError):
        async with store.space_for(10_000):
            raise ZeroDivisionError

    async def claim_and_leave() -> None:
        async with store.space_for(10_000) as claim:
            claim.written(1)

    async for _ in cancelled_at_every_await(claim_and_leave):
        pass
    async with store.space_for(10_000):
        pass


async def test_reserve_can_be_made_again(store: ChunkStore) -> None:
    """After it was released. A second release finds none."""
    assert await store.make_reserve()
    await store.release_reserve()
    assert False is await store.release_reserve()
    assert await store.make_reserve()
