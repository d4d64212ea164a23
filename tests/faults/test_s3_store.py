"""An object store whose answers fail, whose objects are lost, and whose credentials change."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest

from filestore.core.digest import Digest, chunk_digest
from filestore.core.object_names import FrameObject, ObjectName
from filestore.errors import Busy, MinFreeReached, StorageError, StorageFull, StoreRefused, UsedAfterFork
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.stores import s3_client, s3_format
from filestore.repository.stores.protocol import PUBLISHED_WITHIN_SECONDS, FrameProblem, FrameState, Removed
from filestore.repository.stores.s3 import open_store_of
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_credentials import CredentialsFile, find_file
from filestore.repository.stores.s3_format import SETTLING_SECONDS, initialise
from filestore.repository.stores.s3_keys import frame_key
from filestore.repository.stores.s3_location import parse_location
from filestore.repository.stores.s3_staging import MEMORY_SIZE, PIECES_SIZE, ByteLimit, FrameMemory
from filestore.repository.stores.s3_sweep import Sweep
from tests.support.ceph import Bucket, Gateway
from tests.support.generator import octets
from tests.support.relay import UNSPOILED, Relay, Spoiled, running_relay
from tests.support.s3_stores import IndexedStore, MemoryObjects, client_of, credentials_file, open_indexed_store
from tests.support.server import eventually

N = "default"
SLOW_DOWN = Spoiled(status=503, body=b"<Error><Code>SlowDown</Code></Error>")
LOST_ANSWER = Spoiled(kept_size=-1)
Spoil = Callable[[str, str], Spoiled]


@pytest.fixture
async def store(bucket: Bucket, tmp_path: Path) -> AsyncIterator[IndexedStore]:
    """An empty store in a bucket."""
    store = await open_indexed_store(bucket, tmp_path)
    yield store
    await store.close()


def first(spoiled: Spoiled, *, times: int = 1, method: str = "", part: str = "frames") -> Spoil:
    """Spoil the first requests whose target has a part."""
    numbers = count()

    def spoil(asked: str, target: str) -> Spoiled:
        return spoiled if asked.startswith(method) and part in target and next(numbers) < times else UNSPOILED

    return spoil


def keys_asked(relay: Relay, method: str) -> list[str]:
    """The targets of all requests of a method."""
    return [asked.path for asked in relay.asked if asked.method == method]


def put(store: IndexedStore, *contents: bytes) -> list[Digest]:
    """Publish contents as they are."""
    frames = []
    for content in contents:
        staging = store.new_staging()
        staging.write(content)
        frames.append((chunk_digest(content), staging))
    store.sync(N, frames)
    store.placement(N, frames).rename({digest for digest, _ in frames})
    return [digest for digest, _ in frames]


def key_of(store: IndexedStore, digest: Digest) -> str:
    """The key of the object of a frame."""
    return frame_key(N, ObjectName(digest, store.objects.frames[N, digest].object_id))


async def read(store: IndexedStore, *digests: Digest) -> list[bytes | None]:
    """What the store reads."""
    parts = await store.read_into(N, digests, memoryview(bytearray(1 << 20)))
    return [None if part is None else bytes(part) for part in parts]


# Requests that fail.


@pytest.mark.parametrize("spoiled", [SLOW_DOWN, Spoiled(status=500), Spoiled(status=429), LOST_ANSWER])
async def test_a_put_is_repeated_with_the_same_key(bucket: Bucket, tmp_path: Path, spoiled: Spoiled) -> None:
    """Also where the store did it and only its answer was lost: the content is the same."""
    with running_relay(bucket.endpoint, spoil=first(spoiled, times=2, method="PUT")) as relay:
        store = await open_indexed_store(bucket, tmp_path, client=client_of(bucket, tmp_path, endpoint=relay.url))
        (digest,) = put(store, b"content")
        assert 3 == len(keys_asked(relay, "PUT"))
        assert 1 == len(set(keys_asked(relay, "PUT")))
        assert [b"content"] == await read(store, digest)
        await store.close()


@pytest.mark.parametrize("spoiled", [SLOW_DOWN, LOST_ANSWER, Spoiled(kept_size=100), Spoiled(kept_size=0)])
async def test_a_read_that_is_cut_is_repeated(bucket: Bucket, tmp_path: Path, spoiled: Spoiled) -> None:
    """No part of a frame is taken for the whole of it."""
    content = octets(1, 100_000)
    with running_relay(bucket.endpoint, spoil=first(spoiled, times=2, method="GET")) as relay:
        store = await open_indexed_store(bucket, tmp_path, client=client_of(bucket, tmp_path, endpoint=relay.url))
        digests = put(store, content)
        assert [content] == await read(store, *digests)
        (file,) = await store.open(N, digests)
        assert file is not None
        with file:
            assert content == file.read()
        await store.close()


async def test_the_endpoint_of_the_url_counts(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one of the environment."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await client_of(bucket, tmp_path).put("key", b"content")
    assert b"content" == bucket.read("models/one/key")


async def test_a_store_that_never_answers_is_busy(bucket: Bucket, tmp_path: Path) -> None:
    """A client may try again. The message says what happened, without the keys."""
    with running_relay(bucket.endpoint, spoil=lambda _method, _target: SLOW_DOWN) as relay:
        client = client_of(bucket, tmp_path, endpoint=relay.url, retry_seconds=0.05)
        with pytest.raises(Busy, match=r"s3://test-\w+/models/one is busy: it answered 503 SlowDown"):
            await client.size("absent")
        with pytest.raises(Busy):
            client.put_blocking("key", b"content")
    with pytest.raises(Busy, match="it cannot be reached"):
        await client_of(bucket, tmp_path, endpoint=relay.url, retry_seconds=0.05).size("absent")


async def test_an_answer_of_a_stranger_is_not_an_absent_object(bucket: Bucket, tmp_path: Path) -> None:
    """Who took "not found" of a proxy for the absence of a frame would forget its row."""
    with running_relay(bucket.endpoint, spoil=lambda _method, _target: Spoiled(status=404, body=b"<h1>Not found</h1>")) as relay:
        client = client_of(bucket, tmp_path, endpoint=relay.url, retry_seconds=0.05)
        for call in (client.get("key"), client.get("key", size=5), client.size("key"), client.copy("key", "to")):
            with pytest.raises(StorageError, match="it answered 404"):
                await call


async def test_a_listing_goes_on_after_an_error(store: IndexedStore, bucket: Bucket, tmp_path: Path) -> None:
    """It begins again behind the last object that it gave."""
    digests = put(store, *(b"%d" % number for number in range(25)))
    with running_relay(bucket.endpoint, spoil=first(SLOW_DOWN, method="GET", part="list-type")) as relay:
        client = client_of(bucket, tmp_path, endpoint=relay.url)
        pages = [page async for page in client.pages(f"frames/{N}")]
        after = pages[0][9].key
        rest = [listed.key async for page in client.pages(f"frames/{N}", after=after) for listed in page]
    assert sorted(key_of(store, digest) for digest in digests) == [listed.key for page in pages for listed in page]
    assert [listed.key for page in pages for listed in page][10:] == rest


# Objects that are not as their rows say.


async def test_an_object_that_is_missing_counts_as_absent(
    store: IndexedStore, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller then forgets the row, so that the next push sends the chunk. The log names the object."""
    lost, kept = put(store, b"lost", b"kept")
    bucket.delete(f"models/one/{key_of(store, lost)}")
    with caplog.at_level(logging.WARNING, "filestore.store"):
        assert [None, b"kept"] == await read(store, lost, kept)
    assert key_of(store, lost) in caplog.text
    files = await store.open(N, [lost, kept])
    assert [None, b"kept"] == [file and file.read() for file in files]
    files[1].close()  # type: ignore[union-attr]  # it was there
    assert [FrameProblem.MISSING, None] == [state.problem for state in await store.inspect(N, [lost, kept])]
    results = await store.read_each(N, [lost, kept], memoryview(bytearray(FRAME_LIMIT)), lambda _, frame: bytes(frame))
    assert [FrameState(0, FrameProblem.MISSING, "it is missing"), b"kept"] == results


async def test_frames_are_not_opened_on_a_full_disk(bucket: Bucket, tmp_path: Path) -> None:
    """They are spooled to the scratch folder, of whose disk a part stays free. What needs no disk is still read."""
    store = await open_indexed_store(bucket, tmp_path, min_free=4 * shutil.disk_usage(tmp_path).total)
    try:
        [digest] = put(store, b"content")
        with pytest.raises(MinFreeReached):
            await store.open(N, [digest])
        assert [b"content"] == await read(store, digest)
        assert [None] == await store.open(N, [chunk_digest(b"absent")])
    finally:
        await store.close()


@pytest.mark.parametrize("content", [b"longer than it", b"short", b""])
async def test_an_object_of_another_size_counts_as_absent(store: IndexedStore, bucket: Bucket, content: bytes) -> None:
    """It is not read into the space of another frame. A check finds its size."""
    changed, kept = put(store, b"content", b"kept")
    bucket.put(f"models/one/{key_of(store, changed)}", content)
    assert [None, b"kept"] == await read(store, changed, kept)
    assert [len(content), 4] == [state.size for state in await store.inspect(N, [changed, kept])]


async def test_an_object_with_other_bytes_is_left_to_its_readers(store: IndexedStore, bucket: Bucket) -> None:
    """They verify frames when they decode them."""
    (changed,) = put(store, b"content")
    bucket.put(f"models/one/{key_of(store, changed)}", b"another")
    assert [b"another"] == await read(store, changed)


async def test_what_is_set_aside_stays_below_damaged(store: IndexedStore, bucket: Bucket) -> None:
    """It is there before its own key is removed."""
    (damaged,) = put(store, b"content")
    key = key_of(store, damaged)
    name = ObjectName(damaged, store.objects.frames[N, damaged].object_id)
    where = await store.set_aside(N, name)
    assert where is not None
    assert b"content" == bucket.read(where.removeprefix(f"s3://{bucket.name}/"))
    assert f"models/one/{key}" in bucket.list_keys()
    await store.remove(N, [name])
    assert await store.set_aside(N, name) is None


# Who may use the bucket.


async def test_wrong_credentials_are_one_sentence(bucket: Bucket, tmp_path: Path) -> None:
    """It names the location and no key."""
    for keys, reason in (
        (bucket.credentials._replace(access_key="UNKNOWNKEY"), "it does not know the access key"),
        (bucket.credentials._replace(secret_key="wrongsecret"), "the secret key does not belong to the access key"),
    ):
        client = client_of(bucket._replace(credentials=keys), tmp_path)
        with pytest.raises(StoreRefused, match=reason) as caught:
            await client.put("key", b"content")
        assert f"s3://{bucket.name}/models/one refused a request: {reason}; check the credentials" in str(caught.value)
        assert not any(secret in str(caught.value) for secret in keys)
        assert not caught.value.retryable


async def test_a_bucket_without_permission_is_refused(gateway: Gateway, bucket: Bucket, tmp_path: Path) -> None:
    """A user who may only read can read, and cannot put."""
    bucket.put("models/one/key", b"content")
    reader = gateway.permit(bucket, gateway.new_user(), "s3:GetObject")
    client = client_of(reader, tmp_path)
    assert b"content" == bytes(await client.get("key") or b"")
    with pytest.raises(StoreRefused, match="its credentials do not permit this in the bucket"):
        await client.put("key", b"other")
    with pytest.raises(StoreRefused):
        client.put_blocking("key", b"other")


async def test_a_bucket_that_does_not_exist(bucket: Bucket, tmp_path: Path) -> None:
    """It is an error, and not an absent object."""
    client = client_of(bucket._replace(name="no-such-bucket"), tmp_path)
    for call in (client.get("key"), client.size("key"), client.put("key", b""), client.folders("frames"), client.delete(["key"])):
        with pytest.raises(StorageError, match="the bucket does not exist"):
            await call


async def test_a_full_bucket(gateway: Gateway, tmp_path: Path) -> None:
    """Its quota is used up. What is there can be read and removed."""
    user = gateway.new_user()
    bucket = gateway.new_bucket(user)
    store = await open_indexed_store(bucket, tmp_path)
    (digest,) = put(store, b"content")
    gateway.limit(user, max_objects=1)
    with pytest.raises(StorageFull, match="QuotaExceeded"):
        put(store, b"more")
    assert [b"content"] == await read(store, digest)
    await store.remove(N, [ObjectName(digest)])
    await store.close()
    gateway.remove_bucket(bucket)


async def test_credentials_that_are_replaced_are_read_again(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is refused with the old ones is made again with the new ones."""
    monkeypatch.setattr(s3_client, "_RENEWED_AFTER_SECONDS", -1.0)
    old = gateway.new_user()
    bucket = gateway.new_bucket(old)
    client = client_of(bucket, tmp_path)
    await client.put("key", b"content")
    new = bucket._replace(credentials=gateway.new_keys(old))
    credentials_file(new, tmp_path)
    gateway.remove_keys(old)
    client.put_blocking("other", b"content")
    assert b"content" == bytes(await client.get("key") or b"")
    gateway.remove_bucket(new)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("aws_secret_access_key = topsecret", "is not a file of credentials"),
        ("[default]\naws_access_key_id = known", "has no aws_access_key_id and aws_secret_access_key in its profile 'default'"),
        ("[other]\naws_access_key_id = known\naws_secret_access_key = topsecret", "in its profile 'default'"),
    ],
)
async def test_a_file_without_credentials(bucket: Bucket, tmp_path: Path, text: str | None, reason: str) -> None:
    """The error names the file and none of its lines."""
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    client = S3Client(parse_location(bucket.location()), credentials=CredentialsFile(path))
    with pytest.raises(StoreRefused, match=reason) as caught:
        await client.put("key", b"content")
    assert "topsecret" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_file_of_credentials_comes_after_those_in_the_environment(tmp_path: Path) -> None:
    """The order, and the names, are those of the AWS tools."""
    usual = tmp_path / ".aws" / "credentials"
    home = {"HOME": str(tmp_path)}
    named = {**home, "AWS_SHARED_CREDENTIALS_FILE": "/run/keys", "AWS_PROFILE": "models"}
    assert find_file({}) is None
    assert find_file(home) is None
    usual.parent.mkdir()
    usual.touch()
    assert CredentialsFile(usual) == find_file(home)
    assert CredentialsFile(Path("/run/keys"), "models") == find_file(named)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        assert find_file({**named, name: "given"}) is None


# What a server keeps for some hours.


async def test_temporary_objects(store: IndexedStore, bucket: Bucket, tmp_path: Path) -> None:
    """They are put from memory and from files, read in ranges, listed and removed. They are no frames."""
    temporary = store.temporary
    assert temporary is not None
    content = octets(4, 20_000_000)
    (tmp_path / "content").write_bytes(b"before" + content)
    with (tmp_path / "content").open("rb") as file:
        file.seek(6)
        assert await temporary.put("one/large", file)
    assert await temporary.put("one/small", b"small", only_new=True)
    assert not await temporary.put("one/small", b"other", only_new=True)
    assert await temporary.put("two/small", bytearray(b"bytes"))
    assert [b"small", b"mal", b"all", b"", None] == [
        await temporary.get("one/small"),
        await temporary.get("one/small", start=1, size=3),
        await temporary.get("one/small", start=2),
        await temporary.get("one/small", start=9),
        await temporary.get("one/absent", start=1),
    ]
    assert content == await temporary.get("one/large")
    assert content == bucket.read("models/one/uploads/one/large")
    assert [("one/large", len(content)), ("one/small", 5)] == [found[:2] for found in await temporary.names("one")]
    assert (["one", "two"], []) == (await temporary.folders(""), await temporary.folders("one"))
    # The clock has whole seconds.
    assert (await temporary.names("two"))[0].put_at.replace(microsecond=0) <= await temporary.clock()
    assert 3 == len(await temporary.names(""))
    assert [] == await store.namespaces()
    for _ in range(2):
        await temporary.remove(["one/large", "one/small", "two/small"])
    assert [] == bucket.list_keys("models/one/uploads")


# The format file.


@pytest.mark.parametrize("spoiled", [Spoiled(status=501, only_with="if-none-match"), Spoiled(without="if-none-match")])
async def test_a_store_without_conditional_puts(
    bucket: Bucket, tmp_path: Path, spoiled: Spoiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who propose a format file at the same time take the oldest proposal, and later ones find it."""

    def proposals() -> set[str]:
        return {path for path in keys_asked(relay, "PUT") if "proposal-" in path}

    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    def spoil(method: str, target: str) -> Spoiled:
        if "list-type" in target:
            eventually(lambda: len(proposals()) == 3)
        return spoiled if method == "PUT" and ("probe" in target or "format.json" in target) else UNSPOILED

    with running_relay(bucket.endpoint, spoil=spoil) as relay:
        client = client_of(bucket, tmp_path, endpoint=relay.url)
        # They wait until all three are there, instead of for some time.
        monkeypatch.setattr(s3_format, "asyncio", SimpleNamespace(sleep=wait))
        texts = await asyncio.gather(*(initialise(client, b"%d" % number) for number in range(3)))
        assert [SETTLING_SECONDS] * 3 == waits
        assert 1 == len(set(texts))
        assert texts[0] == await initialise(client, b"later")


# What nobody needs any more.


async def test_abandoned_objects_are_removed(store: IndexedStore, bucket: Bucket) -> None:
    """Those that a row names stay, and so does what is young. Other keys are not touched."""
    named, lost = put(store, b"named", b"lost")
    manifest = await store.put_manifest(N, named, b"a manifest")
    store.objects.manifests.clear()
    bucket.put("models/one/frames/default/00/a file of somebody", b"")
    before = bucket.list_keys("models/one/")
    unnamed = f"models/one/{key_of(store, lost)}"
    del store.objects.frames[N, lost]
    assert Removed(0, 0) == await store.remove_abandoned()
    assert Removed(2, 14) == await Sweep(store.client, store.objects, dry_run=True, abandoned_seconds=-60).run()
    assert sorted({*before, "models/one/clock"}) == bucket.list_keys("models/one/")
    assert Removed(2, 14) == await Sweep(store.client, store.objects, dry_run=False, abandoned_seconds=-60).run()
    removed = set(before) - set(bucket.list_keys("models/one/"))
    assert {unnamed, f"models/one/manifests/{N}/{str(named)[:2]}/{named}.{manifest.hex()}"} == removed
    assert [b"named"] == await read(store, named)


@pytest.mark.slow
async def test_a_sweep_of_many_pages(
    store: IndexedStore, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders of a large namespace are listed side by side, each object once. An error in between loses none."""
    monkeypatch.setattr(s3_client, "_PAGE_LENGTH", 100)
    digests = put(store, *(b"%d" % number for number in range(1200)))
    kept = digests[::3]
    for digest in set(digests) - set(kept):
        del store.objects.frames[N, digest]
    with running_relay(bucket.endpoint, spoil=first(SLOW_DOWN, times=2, part="start-after")) as relay:
        client = client_of(bucket, tmp_path, endpoint=relay.url)
        removed = await Sweep(client, store.objects, dry_run=False, abandoned_seconds=-60).run()
    assert (800, sorted(kept)) == (removed.count, [digest async for digest in store.digests(N)])
    await store.remove(N, [ObjectName(digest) for digest in kept])


@pytest.mark.slow
async def test_a_listing_of_several_answers(store: IndexedStore) -> None:
    """An answer has at most 1000 objects. All are there, in order, with their sizes."""
    digests = put(store, *(b"%d" % number for number in range(2100)))
    pages = [page async for page in store.frame_pages(N)]
    assert [1000, 1000, 100] == [len(page) for page in pages]
    assert sorted(digests) == [digest for page in pages for digest, _ in page]
    await store.remove(N, [ObjectName(digest) for digest in digests])
    assert [] == [digest async for digest in store.digests(N)]


async def test_a_publication_of_old_objects_is_busy(store: IndexedStore) -> None:
    """So a sweep never removes an object that gets its row afterwards."""
    staging = store.new_staging()
    staging.write(b"content")
    digest = chunk_digest(b"content")
    store.sync(N, [(digest, staging)])
    staging.put_at -= PUBLISHED_WITHIN_SECONDS + 1
    placement = store.placement(N, [(digest, staging)])
    placement.prepare()
    placement.rename(set())
    with pytest.raises(ValueError, match="was not put"):
        store.placement(N, [(digest, store.new_staging())]).prepare()
    with pytest.raises(Busy, match="must be sent again"):
        placement.rename({digest})


async def test_what_is_put_and_not_published_is_invisible(store: IndexedStore) -> None:
    """Its object is there under a new name each time, for a sweep to find."""
    names = set()
    for _ in range(2):
        staging = store.new_staging()
        staging.write(b"content")
        store.sync(N, [(chunk_digest(b"content"), staging)])
        store.sync(N, [(chunk_digest(b"content"), staging)])
        names.add(staging.object_id)
    assert [None] == await read(store, chunk_digest(b"content"))
    listed = [listed.key async for page in store.client.pages("frames") for listed in page]
    assert sorted(frame_key(N, ObjectName(chunk_digest(b"content"), name)) for name in names) == listed


# Memory and processes.


def test_frames_that_arrive_slowly_and_those_beyond_the_limit_are_in_files(store: IndexedStore, tmp_path: Path) -> None:
    """A process keeps a bounded number of bytes of frames in memory (I6), and gives them back."""

    def files() -> list[int]:
        return sorted(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())

    slow, whole = store.new_staging(), store.new_staging()
    slow.write(bytes(PIECES_SIZE))
    whole.write(bytes(4 * PIECES_SIZE))
    assert [] == files()
    for staging in (slow, whole):
        staging.write(b"1")
    assert [PIECES_SIZE + 1, 4 * PIECES_SIZE + 1] == files()
    many = [store.new_staging() for _ in range(MEMORY_SIZE // FRAME_LIMIT + 2)]
    for staging in many:
        staging.write(bytes(FRAME_LIMIT))
    assert [PIECES_SIZE + 1, 4 * PIECES_SIZE + 1, FRAME_LIMIT, FRAME_LIMIT] == files()
    for staging in [slow, whole, *many]:
        staging.discard()
    assert [] == files()
    again = store.new_staging()
    again.write(bytes(FRAME_LIMIT))
    assert [] == files()
    again.discard()


def test_a_frame_that_grows_into_a_file_keeps_its_bytes(tmp_path: Path, store: IndexedStore) -> None:
    """Wherever the border is."""
    content = octets(3, 3 * PIECES_SIZE)
    for size in (1, PIECES_SIZE - 1, PIECES_SIZE, PIECES_SIZE + 1):
        staging = store.new_staging()
        for start in range(0, len(content), size) if size > 1 else (0,):
            staging.write(content[start : start + size] if size > 1 else content)
        found = bytearray(len(content))
        staging.read_into(memoryview(found))
        assert content == found
        staging.discard()


def test_a_byte_limit_gives_back() -> None:
    """What is given back can be taken."""
    limit = ByteLimit(10)
    limit.take(6)
    assert not limit.try_take(5)
    limit.give_back(6)
    assert limit.try_take(10)


def test_memory_of_frames_is_used_again_when_nobody_reads_it() -> None:
    """Not while the engine has a part of it still. What waits to be used counts as what is in use (I6)."""
    memory = FrameMemory(4 * PIECES_SIZE)
    first, second = (memory.try_copy(bytes([number]) * (PIECES_SIZE + 1)) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert memory.try_copy(bytes(PIECES_SIZE)) is None
    kept, (buffer, other) = memoryview(second), (first.obj, second.obj)
    memory.free(first)
    memory.free(second)
    assert [buffer] == list(memory._free)
    again = memory.try_copy(bytes(2 * PIECES_SIZE))
    assert again is not None
    assert buffer is again.obj
    assert bytes([2]) * (PIECES_SIZE + 1) == kept
    assert other is not again.obj
    memory.free(again)
    large = memory.try_copy(bytes(3 * PIECES_SIZE))
    assert large is not None
    assert [] == list(memory._free)


async def test_a_frame_is_read_by_its_url(store: IndexedStore) -> None:
    """Without credentials, and unchanged, whoever signs it. An absent frame has none."""
    contents = [b"content", b"another content"]
    *urls, absent = await store.frame_urls(N, [*put(store, *contents), chunk_digest(b"absent")], seconds=60)
    assert absent is None

    def fetch(url: str) -> bytes:
        with urlopen(url) as answer:
            return bytes(answer.read())

    for content, found in zip(contents, urls, strict=True):
        assert found is not None
        assert len(content) == found.size
        assert content == await asyncio.to_thread(fetch, found.url)
        with pytest.raises(OSError, match="403"):
            await asyncio.to_thread(fetch, found.url[:-1] + ("0" if found.url[-1] != "0" else "1"))


async def test_a_temporary_folder_belongs_to_one_user(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder for what is on its way, a private one is made. One that others could write to is refused."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        store = await open_store_of(client_of(bucket, tmp_path), MemoryObjects(), scratch=None)
        await store.close()
    (folder,) = tmp_path.glob("filestore-*")
    assert 0o700 == folder.stat().st_mode & 0o777
    folder.chmod(0o770)
    with pytest.raises(StorageError, match="that only this user can use"):
        await open_store_of(client_of(bucket, tmp_path), MemoryObjects(), scratch=None)


def _in_child(store: IndexedStore, answers: multiprocessing.SimpleQueue[str]) -> None:
    new = S3Client(store.client.location)
    for call in (store.new_staging, lambda: asyncio.run(new.get("key")), lambda: new.put_blocking("key", b"")):
        try:
            call()
        except UsedAfterFork as error:
            answers.put(error.slug)


async def test_a_forked_child_is_refused(store: IndexedStore) -> None:
    """The threads that make the requests are in the parent, also for a client that the child opens."""
    await store.client.get("key")
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(store, answers))
    child.start()
    child.join()
    assert [UsedAfterFork.slug] * 3 == [answers.get() for _ in range(3)]


async def test_rows_are_asked_once_for_many_frames(store: IndexedStore) -> None:
    """One round trip to the index, however many frames are read."""
    digests = put(store, *(b"%d" % number for number in range(20)))
    store.objects.asked = 0
    await read(store, *digests)
    assert 1 == store.objects.asked
    store.objects.frames[N, digests[0]] = FrameObject(b"\0" * 8, 1)
    assert [1] == await store.sizes(N, digests[:1])
