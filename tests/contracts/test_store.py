"""Rules of every chunk store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.repository.stores.protocol import ChunkStore, Staging
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import contents

A, B = "a", "b"


def staged(store: ChunkStore, data: bytes) -> tuple[Digest, Staging]:
    """Bytes under their digest, ready to be published: a store does not care whether they are a frame."""
    staging = store.new_staging()
    staging.write(data)
    staging.sync()
    return chunk_digest(data), staging


async def publish(store: ChunkStore, *all_data: bytes, namespace: str = A) -> list[Digest]:
    """Store bytes; their digests."""
    frames = [staged(store, data) for data in all_data]
    await store.publish(namespace, frames)
    return [digest for digest, _ in frames]


async def read(store: ChunkStore, digest: Digest, *, namespace: str = A) -> bytes | None:
    """What is stored under a digest."""
    (part,) = await store.read_into(namespace, [digest], memoryview(bytearray(1 << 20)))
    return None if part is None else bytes(part)


async def test_first_format_stays(store: ChunkStore) -> None:
    """A format file is never replaced."""
    assert b"first" == await store.initialise(b"first")
    assert b"first" == await store.initialise(b"second")


async def test_two_who_initialise_at_once_get_the_same(store: ChunkStore) -> None:
    """Of two callers at once, both get the same answer."""
    answers = await asyncio.gather(*(store.initialise(b"%d" % number) for number in range(8)))
    assert 1 == len(set(answers))


async def test_cancelled_initialise_leaves_a_whole_format_or_none(store: ChunkStore) -> None:
    """Whatever await is cancelled, the next caller gets one of the texts as a whole."""
    async for _ in cancelled_at_every_await(lambda: store.initialise(b"a text")):
        assert await store.initialise(b"a text") == b"a text"


async def test_published_frame_is_read_as_it_was_written(store: ChunkStore) -> None:
    """What was written in pieces is read as a whole."""
    staging = store.new_staging()
    for piece in (b"", b"one", memoryview(b"two"), bytearray(b"three")):
        staging.write(piece)
    staging.sync()
    digest = chunk_digest(b"onetwothree")
    await store.publish(A, [(digest, staging)])
    assert b"onetwothree" == await read(store, digest)


def test_staging_gives_back_what_was_written(store: ChunkStore) -> None:
    """The door verifies what arrived by reading it again; the rest of the buffer is not touched."""
    staging = store.new_staging()
    staging.write(b"one")
    staging.write(b"two")
    buffer = bytearray(b"........")
    staging.read_into(memoryview(buffer))
    assert (6, b"onetwo..") == (staging.size, bytes(buffer))
    staging.discard()


async def test_staging_may_rest_between_any_two_writes(store: ChunkStore) -> None:
    """It frees what writing holds, before the first write, twice, and when all is written; nothing is lost by it."""
    staging = store.new_staging()
    staging.rest()
    for piece in (b"one", b"two"):
        staging.write(piece)
        staging.rest()
        staging.rest()
    staging.sync()
    digest = chunk_digest(b"onetwo")
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
    """Staged bytes are nobody's to see."""
    digest, staging = staged(store, b"content")
    assert await read(store, digest) is None
    assert [] == [found async for found in store.digests(A)]
    staging.discard()


async def test_discarded_twice_or_after_publish_does_nothing(store: ChunkStore) -> None:
    """`discard` is what every way out calls, also the good one."""
    digest, staging = staged(store, b"content")
    await store.publish(A, [(digest, staging)])
    staging.discard()
    assert b"content" == await read(store, digest)
    unwritten = store.new_staging()
    for _ in range(2):
        unwritten.discard()


async def test_published_again_replaces(store: ChunkStore) -> None:
    """A file that is there is no reason to skip: it may be garbage of a crash."""
    digest = chunk_digest(b"content")
    for data in (b"one encoding", b"another"):
        _, staging = staged(store, data)
        await store.publish(A, [(digest, staging)])
    assert b"another" == await read(store, digest)


async def test_same_digest_twice_in_one_publish(store: ChunkStore) -> None:
    """The later one stays."""
    digest = chunk_digest(b"content")
    await store.publish(A, [(digest, staged(store, data)[1]) for data in (b"first", b"second")])
    assert b"second" == await read(store, digest)


async def test_publish_of_many(store: ChunkStore) -> None:
    """More frames than threads, in as many folders."""
    all_data = contents(100, size=10)
    digests = await publish(store, *all_data)
    assert all_data == [await read(store, digest) for digest in digests]


async def test_cancelled_publish_leaves_whole_frames_only(store: ChunkStore) -> None:
    """Whatever await is cancelled: a frame is there as a whole, or not at all."""
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
    """Frames lie back to back; an absent one takes no room; one that is asked for twice is there twice."""
    one, two = await publish(store, b"one", b"second")
    buffer = memoryview(bytearray(12))
    parts = await store.read_into(A, [two, chunk_digest(b"absent"), one, one], buffer)
    assert [b"second", None, b"one", b"one"] == parts
    assert b"secondoneone" == bytes(buffer)


async def test_read_into_a_buffer_that_is_too_small(store: ChunkStore) -> None:
    """A wrong buffer is the caller's mistake, and said."""
    digests = await publish(store, b"one", b"two")
    with pytest.raises(ValueError, match=r"."):
        await store.read_into(A, digests, memoryview(bytearray(5)))


async def test_open_gives_files_in_the_order_asked(store: ChunkStore) -> None:
    """None stands for an absent frame; each file is whole, and its caller's."""
    one, two = await publish(store, b"one", b"second")
    files = await store.open(A, [two, chunk_digest(b"absent"), one, one])
    assert [b"second", None, b"one", b"one"] == [file and file.read() for file in files]
    for file in files:
        if file is not None:
            file.close()


async def test_sizes_are_those_of_whole_frames(store: ChunkStore) -> None:
    """In the order asked; 0 stands for an absent frame, also of another namespace."""
    one, two = await publish(store, b"one", b"second")
    assert [6, 0, 3, 3] == await store.sizes(A, [two, chunk_digest(b"absent"), one, one])
    assert [0] == await store.sizes(B, [one])


async def test_cancelled_open_leaks_no_descriptor(store: ChunkStore) -> None:
    """Files that the caller never got are closed; pytest makes an error of the warning for one that is not."""
    digests = await publish(store, b"one", b"two")

    async def open_all() -> None:
        for file in await store.open(A, digests):
            if file is not None:
                file.close()

    async for _ in cancelled_at_every_await(open_all):
        pass


async def test_remove_is_idempotent(store: ChunkStore) -> None:
    """An absent frame is no error."""
    one, two = await publish(store, b"one", b"two")
    for _ in range(2):
        await store.remove(A, [one, chunk_digest(b"never there")])
    assert [None, b"two"] == [await read(store, one), await read(store, two)]


async def test_digests_gives_all_frames_of_a_namespace(store: ChunkStore) -> None:
    """Frames only, of this namespace only; one that was removed is not among them."""
    kept = await publish(store, *contents(20, size=10))
    (removed,) = await publish(store, b"removed")
    await publish(store, b"elsewhere", namespace=B)
    await store.remove(A, [removed])
    await store.put_manifest(A, chunk_digest(b"manifest"), b"manifest")
    assert sorted(kept) == sorted([digest async for digest in store.digests(A)])
    assert [] == [digest async for digest in store.digests("nobody")]


async def test_namespaces_do_not_share(store: ChunkStore) -> None:
    """What one namespace has, another lacks, and removes nothing of."""
    (digest,) = await publish(store, b"content")
    await store.put_manifest(A, digest, b"manifest")
    await store.remove(B, [digest])
    await store.remove_manifest(B, digest)
    assert [b"content", None] == [await read(store, digest, namespace=namespace) for namespace in (A, B)]
    assert [None] == await store.open(B, [digest])
    assert [b"manifest", None] == [await store.manifest(namespace, digest) for namespace in (A, B)]


async def test_manifest_is_kept(store: ChunkStore) -> None:
    """It is read as it was put, once or twice, also when its memory was reused; None before that."""
    digest = chunk_digest(b"manifest")
    assert await store.manifest(A, digest) is None
    for _ in range(2):
        encoded = bytearray(b"manifest")
        await store.put_manifest(A, digest, encoded)
        encoded[:] = bytes(8)
    assert b"manifest" == await store.manifest(A, digest)


async def test_cancelled_manifest_is_whole_or_absent(store: ChunkStore) -> None:
    """Whatever await is cancelled."""
    digest = chunk_digest(b"manifest")
    async for _ in cancelled_at_every_await(lambda: store.put_manifest(A, digest, b"manifest")):
        assert await store.manifest(A, digest) in (None, b"manifest")
    assert b"manifest" == await store.manifest(A, digest)


async def test_removed_manifest_is_gone(store: ChunkStore) -> None:
    """An absent one is no error."""
    digest = chunk_digest(b"manifest")
    await store.put_manifest(A, digest, b"manifest")
    for _ in range(2):
        await store.remove_manifest(A, digest)
    assert await store.manifest(A, digest) is None


async def test_manifests_gives_all_of_a_namespace(store: ChunkStore) -> None:
    """Manifests only, of this namespace only."""
    await publish(store, b"a frame")
    digests = [chunk_digest(data) for data in contents(5, size=10)]
    for digest in digests:
        await store.put_manifest(A, digest, b"manifest")
    await store.put_manifest(B, chunk_digest(b"other"), b"manifest")
    assert sorted(digests) == sorted([digest async for digest in store.manifests(A)])


async def test_close_discards_what_is_staged(store: ChunkStore, tmp_path: Path) -> None:
    """Nothing that was never published outlives the store; closing twice does nothing."""
    staged(store, b"never published")
    for _ in range(2):
        await store.close()
        assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]
