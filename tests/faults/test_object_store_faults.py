"""Repositories in an object store and PostgreSQL meet what networks and object stores do on a bad day."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Record
from filestore.errors import (
    Busy,
    ChunksMissing,
    FilestoreError,
    InvalidManifest,
    NotFound,
    StorageError,
    StorageFull,
    StoreRefused,
)
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.collect import Collection
from filestore.repository.stores import s3_client
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.ceph import Bucket, Gateway
from tests.support.daemons import lasting_port
from tests.support.frames import encoded
from tests.support.gateway_faults import (
    Answer,
    CarryOutLate,
    CutAnswer,
    CutRequest,
    Fault,
    FaultyGateway,
    LoseAnswer,
    Silence,
    faulty_gateway,
)
from tests.support.generator import octets
from tests.support.object_repositories import PREFIX, object_repository, sweep, write_credentials

ALWAYS = 1_000_000
PASSING: dict[str, Fault] = {
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "SlowDown"),
    "cut-request": CutRequest(),
    "lost-answer": LoseAnswer(),
}
LASTING: dict[str, tuple[Fault, type[FilestoreError]]] = {
    "500": (Answer(500, "InternalError"), Busy),
    "503": (Answer(503, "SlowDown"), Busy),
    "cut-request": (CutRequest(), Busy),
    "lost-answer": (LoseAnswer(), Busy),
    "expired": (Answer(403, "ExpiredToken"), StoreRefused),
    "denied": (Answer(403, "AccessDenied"), StoreRefused),
}
CONTENT = octets(1, 6_000_000)
SENTENCE = 300
"""More bytes than any message has that a person is to read."""


@pytest.fixture
def faulty(bucket: Bucket) -> Iterator[FaultyGateway]:
    """A proxy in front of the gateway."""
    with faulty_gateway(bucket.endpoint) as faulty:
        yield faulty


class Place(NamedTuple):
    """Where a repository is that is reached through a proxy."""

    faulty: FaultyGateway
    bucket: Bucket
    """As it is reached without the proxy."""
    index_url: str
    folder: Path

    def opened(self, *, retry_seconds: float = s3_client.RETRY_SECONDS) -> AbstractAsyncContextManager[LocalRepository]:
        """Open the repository, or make it."""
        return object_repository(
            self.faulty.before(self.bucket), self.index_url, self.folder / "server", retry_seconds=retry_seconds
        )


@pytest.fixture
def place(faulty: FaultyGateway, bucket: Bucket, postgres_url: str, tmp_path: Path) -> Place:
    """A place without a repository."""
    return Place(faulty, bucket, postgres_url, tmp_path)


@pytest.fixture
async def stored(place: Place) -> AsyncIterator[LocalRepository]:
    """A repository behind the proxy."""
    async with place.opened() as repository:
        yield repository


async def pushed(repository: LocalRepository, folder: Path, content: bytes = CONTENT) -> Record:
    """Push a file."""
    path = folder / "model.bin"
    path.write_bytes(content)
    return (await push(repository, path)).record


async def check_whole(repository: LocalRepository, record: Record, folder: Path, content: bytes = CONTENT) -> None:
    """Check that a stored file can be read."""
    fetched = await fetch(repository, record.id, target=folder / "fetched", force=True)
    assert content == fetched.path.read_bytes()
    fetched.path.unlink()


async def collect(repository: LocalRepository) -> None:
    """Remove what no record needs."""
    await Collection(repository._store, repository._index, DEFAULT_NAMESPACE, grace_seconds=0).run()


def check_sentence(error: FilestoreError, bucket: Bucket) -> None:
    """Check that a person can read the message, which has no secret and no text of the answer."""
    text = str(error)
    assert len(text) < SENTENCE
    assert "\n" not in text
    assert "<" not in text
    assert bucket.credentials.secret_key not in text


def names_of(bucket: Bucket, kind: str) -> list[str]:
    """Return the keys of the frames or the manifests in a bucket."""
    return bucket.list_keys(f"{PREFIX}/{kind}/")


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
async def test_a_push_goes_on_after_faults_that_pass(place: Place, stored: LocalRepository, tmp_path: Path, name: str) -> None:
    """Each is met by some of the first requests, and no object is stored twice: a repeated put has the same key."""
    faulty, bucket = place.faulty, place.bucket
    record = await pushed(stored, tmp_path, CONTENT[:1000])
    before = len(names_of(bucket, "frames"))
    faulty.inject(PASSING[name], kinds=["PUT"], times=3, after=1)
    faulty.inject(PASSING[name], kinds=["GET"], times=3, after=1)
    faulty.counts.clear()
    record = await pushed(stored, tmp_path)
    frames, manifests = names_of(bucket, "frames"), names_of(bucket, "manifests")
    assert faulty.counts["PUT"] == len(frames) - before + 1 + 3
    assert 2 == len(manifests)
    await check_whole(stored, record, tmp_path)


async def test_a_fetch_goes_on_after_an_answer_that_was_cut(
    stored: LocalRepository, faulty: FaultyGateway, tmp_path: Path
) -> None:
    """It has the beginning of a frame or of a manifest."""
    record = await pushed(stored, tmp_path)
    for share in (0.0, 0.5, 0.99):
        faulty.inject(CutAnswer(share), kinds=["GET"], times=2)
        await check_whole(stored, record, tmp_path)


@pytest.mark.slow
async def test_a_store_that_is_silent_is_asked_again(
    place: Place, faulty: FaultyGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was not answered in time is sent again."""
    monkeypatch.setattr(s3_client, "_SILENCE_SECONDS", 3)
    async with place.opened() as repository:
        faulty.inject(Silence(), kinds=["PUT"], after=1)
        faulty.inject(Silence(), kinds=["GET"], after=1)
        record = await pushed(repository, tmp_path)
        await check_whole(repository, record, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LASTING)
@pytest.mark.parametrize("kind", ["PUT", "GET"])
async def test_a_fault_that_stays_is_one_sentence_and_loses_nothing(place: Place, tmp_path: Path, name: str, kind: str) -> None:
    """What was stored before stays, and when the fault is over, the same is done."""
    fault, expected = LASTING[name]
    faulty, bucket = place.faulty, place.bucket
    async with place.opened(retry_seconds=0.3) as repository:
        first = await pushed(repository, tmp_path, CONTENT[:2_000_000])
        faulty.inject(fault, kinds=[kind], times=ALWAYS)
        with pytest.raises(expected) as raised:
            await (pushed(repository, tmp_path) if kind == "PUT" else check_whole(repository, first, tmp_path))
        check_sentence(raised.value, bucket)
        faulty.heal()
        second = await pushed(repository, tmp_path)
        await check_whole(repository, first, tmp_path, CONTENT[:2_000_000])
        await check_whole(repository, second, tmp_path)


@pytest.mark.slow
async def test_a_repository_is_made_although_answers_are_lost(place: Place, faulty: FaultyGateway) -> None:
    """A conditional put whose answer was lost is refused when it is repeated, and was the winner nevertheless."""
    faulty.inject(LoseAnswer(), kinds=["PUT"], times=6)
    async with place.opened() as repository:
        identity = await repository.identity()
    async with place.opened() as repository:
        assert identity == await repository.identity()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, ALWAYS], ids=["repeated", "given-up"])
async def test_a_delete_that_arrives_late_harms_nothing(place: Place, tmp_path: Path, times: int) -> None:
    """The same content is stored again under new keys before a removal of the old ones is carried out."""
    faulty, bucket = place.faulty, place.bucket
    async with place.opened(retry_seconds=0.3) as repository:
        record = await pushed(repository, tmp_path)
        old = {*names_of(bucket, "frames"), *names_of(bucket, "manifests")}
        faulty.inject(CarryOutLate(), kinds=["POST", "DELETE"], times=times)
        # Whether it is told that the store does not answer, or that the record is gone.
        with suppress(Busy):
            await repository.remove(record.id, with_chunks=True)
        assert faulty.late
        faulty.heal()
        again = await pushed(repository, tmp_path)
        assert {200, 204} >= set(faulty.carry_out_late())
        assert not set(names_of(bucket, "frames")) & old
        await check_whole(repository, again, tmp_path)
        await collect(repository)
        await sweep(repository)
        await check_whole(repository, again, tmp_path)


async def test_a_removal_whose_answer_was_lost_is_repeated(
    stored: LocalRepository, faulty: FaultyGateway, bucket: Bucket, tmp_path: Path
) -> None:
    """What is gone already does not matter."""
    record = await pushed(stored, tmp_path)
    faulty.inject(LoseAnswer(), kinds=["POST", "DELETE"], times=2)
    await stored.remove(record.id, with_chunks=True)
    await collect(stored)
    assert ([], []) == (names_of(bucket, "frames"), names_of(bucket, "manifests"))


@pytest.mark.slow
async def test_a_collection_that_fails_is_made_again(place: Place, faulty: FaultyGateway, bucket: Bucket, tmp_path: Path) -> None:
    """At each of its requests."""
    async with place.opened(retry_seconds=0.1) as repository:
        kept = await pushed(repository, tmp_path, CONTENT[:2_000_000])
        record = await pushed(repository, tmp_path)
        await repository.remove(record.id)
        for after in range(ALWAYS):
            faulty.inject(Answer(503, "SlowDown"), times=ALWAYS, after=after)
            try:
                await collect(repository)
                break
            except Busy as error:
                check_sentence(error, bucket)
            finally:
                faulty.heal()
            await check_whole(repository, kept, tmp_path, CONTENT[:2_000_000])
        assert after
        # What a transaction has forgotten, and nobody could remove then, has no name.
        await sweep(repository)
        chunks = {chunk.digest for chunk in Manifest.parse(await repository.manifest(kept.digest)).chunks}
        assert (len(chunks), 1) == (len(names_of(bucket, "frames")), len(names_of(bucket, "manifests")))
        await check_whole(repository, kept, tmp_path, CONTENT[:2_000_000])


@pytest.mark.slow
async def test_credentials_that_were_replaced_are_read_again(
    gateway: Gateway, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones are refused from then on. No request fails for that."""
    monkeypatch.setattr(s3_client, "_RENEWED_AFTER_SECONDS", 0.0)
    old = gateway.new_user()
    bucket = gateway.new_bucket(old)
    async with object_repository(bucket, postgres_url, tmp_path / "server") as repository:
        record = await pushed(repository, tmp_path)
        new = gateway.new_keys(old)
        write_credentials(tmp_path / "server" / "credentials", new)
        gateway.remove_keys(old)
        await check_whole(repository, record, tmp_path)
        record = await pushed(repository, tmp_path, CONTENT[::-1])
        await check_whole(repository, record, tmp_path, CONTENT[::-1])
    gateway.remove_bucket(bucket._replace(credentials=new))


async def test_a_bucket_of_somebody_else_is_refused(gateway: Gateway, bucket: Bucket, postgres_url: str, tmp_path: Path) -> None:
    """In one sentence."""
    strange = bucket._replace(credentials=gateway.new_user())
    async with object_repository(strange, postgres_url, tmp_path / "server") as repository:
        with pytest.raises(StoreRefused) as raised:
            await pushed(repository, tmp_path)
    check_sentence(raised.value, strange)
    assert [] == bucket.list_keys()


async def test_who_may_only_read_a_bucket_reads_it(gateway: Gateway, bucket: Bucket, postgres_url: str, tmp_path: Path) -> None:
    """A push is refused, and changes nothing."""
    async with object_repository(bucket, postgres_url, tmp_path / "server") as repository:
        record = await pushed(repository, tmp_path)
    before = bucket.list_keys()
    reading = gateway.permit(bucket, gateway.new_user(), "s3:GetObject", "s3:ListBucket")
    async with object_repository(reading, postgres_url, tmp_path / "reader") as repository:
        await check_whole(repository, record, tmp_path)
        with pytest.raises(StoreRefused) as raised:
            await pushed(repository, tmp_path, CONTENT[::-1])
        assert [record] == await repository.records()
    check_sentence(raised.value, reading)
    assert before == bucket.list_keys()


@pytest.mark.slow
async def test_a_full_bucket_takes_no_push_until_there_is_space(gateway: Gateway, postgres_url: str, tmp_path: Path) -> None:
    """What was stored before stays."""
    user = gateway.new_user()
    bucket = gateway.new_bucket(user)
    async with object_repository(bucket, postgres_url, tmp_path / "server") as repository:
        first = await pushed(repository, tmp_path, CONTENT[:2_000_000])
        gateway.limit(user, max_objects=len(bucket.list_keys()) + 2)
        with pytest.raises(StorageFull) as raised:
            await pushed(repository, tmp_path)
        check_sentence(raised.value, bucket)
        await check_whole(repository, first, tmp_path, CONTENT[:2_000_000])
        gateway.limit(user, max_objects=1000)
        await check_whole(repository, await pushed(repository, tmp_path), tmp_path)
    gateway.remove_bucket(bucket)


async def test_a_bucket_that_is_missing_is_told(gateway: Gateway, bucket: Bucket, postgres_url: str, tmp_path: Path) -> None:
    """In one sentence."""
    missing = bucket._replace(name=f"{bucket.name}-missing")
    async with object_repository(missing, postgres_url, tmp_path / "server") as repository:
        with pytest.raises(StorageError, match="the bucket does not exist") as raised:
            await pushed(repository, tmp_path)
    check_sentence(raised.value, missing)


async def test_a_store_that_cannot_be_reached_is_told(bucket: Bucket, postgres_url: str, tmp_path: Path) -> None:
    """In one sentence."""
    away = bucket._replace(endpoint=f"http://127.0.0.1:{lasting_port()}")
    async with object_repository(away, postgres_url, tmp_path / "server", retry_seconds=0.3) as repository:
        with pytest.raises(Busy, match="it cannot be reached") as raised:
            await pushed(repository, tmp_path)
    check_sentence(raised.value, away)


@pytest.mark.parametrize("damage", [None, b"", b"another content"], ids=["lost", "empty", "damaged"])
async def test_a_manifest_that_the_store_has_lost_is_stored_by_the_next_push(
    stored: LocalRepository, bucket: Bucket, tmp_path: Path, damage: bytes | None
) -> None:
    """The index still has a row for it, and the store holds no bytes or others."""
    record = await pushed(stored, tmp_path)
    (lost,) = names_of(bucket, "manifests")
    if damage is None:
        bucket.delete(lost)
    else:
        bucket.put(lost, damage)
    with pytest.raises((NotFound, InvalidManifest)):
        await fetch(stored, record.id, target=tmp_path / "fetched")
    again = await pushed(stored, tmp_path)
    await check_whole(stored, record, tmp_path)
    await check_whole(stored, again, tmp_path)
    await collect(stored)
    await sweep(stored)
    assert 1 == len(names_of(bucket, "manifests"))
    await check_whole(stored, again, tmp_path)


@pytest.mark.parametrize("answer", [Answer(503, "SlowDown"), Answer(403, "AccessDenied")], ids=["503", "denied"])
async def test_what_was_committed_is_told_although_nothing_can_be_removed(
    place: Place, tmp_path: Path, answer: Answer, bucket: Bucket
) -> None:
    """A second push of the same content has put objects that nobody needs. Later, they are removed as abandoned."""
    async with place.opened(retry_seconds=0.3) as repository:
        frame = encoded(CONTENT[:100_000])
        await repository.put([frame])
        await pushed(repository, tmp_path)
        place.faulty.inject(answer, kinds=["POST", "DELETE"], times=ALWAYS)
        await repository.put([frame])
        again = await pushed(repository, tmp_path)
        assert 2 == len(names_of(bucket, "manifests"))
        place.faulty.heal()
        await sweep(repository)
        assert 1 == len(names_of(bucket, "manifests"))
        await check_whole(repository, again, tmp_path)


async def test_frames_that_are_missing_for_a_time_are_not_removed(
    stored: LocalRepository, bucket: Bucket, tmp_path: Path
) -> None:
    """Such as behind a wrong address. Their chunks can be pushed again, and only then the old objects have no name."""
    await pushed(stored, tmp_path)
    frames = {key: bucket.read(key) for key in names_of(bucket, "frames")}
    for key in frames:
        bucket.delete(key)
    with pytest.raises(ChunksMissing):
        await fetch(stored, "model.bin", target=tmp_path / "fetched")
    for key, frame in frames.items():
        bucket.put(key, frame)
    await collect(stored)
    await sweep(stored)
    assert sorted(frames) == names_of(bucket, "frames")
    again = await pushed(stored, tmp_path)
    await sweep(stored)
    assert len(frames) == len(names_of(bucket, "frames"))
    await check_whole(stored, again, tmp_path)
