"""Rules of every repository. Callers cannot tell a local folder from a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.core.references import File, Reference
from filestore.errors import (
    ChunksMissing,
    FileInUse,
    InvalidFrame,
    InvalidInput,
    InvalidManifest,
    InvalidName,
    InvalidReference,
    NotFound,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.codec import Frame
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.index.protocol import Index, Use
from filestore.repository.index.sqlite import open_index
from filestore.repository.protocol import Repository, Wanted
from tests.support.cancels import cancelled_at_every_await
from tests.support.frames import buffer_for, contents, decoded, encoded, frames, manifest
from tests.support.generator import octets, prose


async def push(repository: Repository, chunks: list[bytes], *, name: str = "name", kind: Kind = Kind.FILE) -> Record:
    """Put chunks and commit them as a file."""
    await repository.put([encoded(content) for content in chunks])
    return await repository.commit(manifest(chunks).encoded, name=name, kind=kind)


@pytest.mark.slow
async def test_identity_is_that_of_the_repository(repository: Repository, namespace: str) -> None:
    """It never changes. A push uses its chunking version."""
    identity = await repository.identity()
    assert identity == await repository.identity()
    assert (32, namespace, CHUNKING_VERSION) == (len(identity.id), identity.namespace, identity.chunking_version)


@pytest.mark.slow
async def test_location_and_fingerprint_are_known_at_once(repository: Repository) -> None:
    """No request is needed for them. Users see the location, and a cache uses the fingerprint as a key."""
    assert repository.location
    assert 64 == len(bytes.fromhex(repository.fingerprint).hex())


@pytest.mark.slow
async def test_missing_is_what_was_not_put(repository: Repository) -> None:
    """The answer has each missing digest once, in the order of the question."""
    one, two, three = frames(3)
    await repository.put([two])
    asked = [frame.digest for frame in (three, two, one, three)]
    assert [three.digest, one.digest] == await repository.missing(asked)
    assert [] == await repository.missing([])


@pytest.mark.slow
async def test_frames_are_given_back_as_they_were_put(repository: Repository) -> None:
    """I7: frames of any size are never recoded, from the smallest chunk to the largest."""
    put = [encoded(b"x"), encoded(octets(1, CHUNK_LIMIT)), encoded(prose(2, 1 << 20)), encoded(octets(3, 5000))]
    await repository.put(put)
    got = await repository.get([frame.digest for frame in put], buffer_for(4))
    assert [frame.data for frame in put] == got


@pytest.mark.slow
async def test_get_packs_frames_in_the_order_asked(repository: Repository) -> None:
    """An absent chunk gives None. A repeated digest gives its frame twice. Each part is a view of the buffer."""
    one, two, absent = frames(3)
    await repository.put([one, two])
    buffer = memoryview(bytearray(len(one.data) + 2 * len(two.data)))
    got = await repository.get([two.digest, absent.digest, one.digest, two.digest], buffer)
    assert [two.data, None, one.data, two.data] == got
    assert bytes(two.data) + bytes(one.data) + bytes(two.data) == bytes(buffer)
    assert [] == await repository.get([], buffer)


@pytest.mark.slow
async def test_put_of_many_small_frames(repository: Repository) -> None:
    """Frames of a few bytes can be put, because headers between tensors are such chunks."""
    put = frames(500, size=40)
    await repository.put(put)
    assert [] == await repository.missing([frame.digest for frame in put])


@pytest.mark.slow
async def test_put_of_nothing(repository: Repository) -> None:
    """A batch may be empty. It transfers nothing and changes nothing."""
    kept, absent = frames(2)
    await repository.put([kept])
    moved: list[int] = []
    await repository.put([], moved=moved.append)
    assert 0 == sum(moved)
    assert [absent.digest] == await repository.missing([kept.digest, absent.digest])
    assert [] == await repository.records()


@pytest.mark.slow
async def test_put_again_changes_nothing(repository: Repository) -> None:
    """I1: a kept frame stays as it is, also if it comes again in another encoding, or twice at the same time."""
    content = prose(1, 100_000)
    first, second = encoded(content), Frame(chunk_digest(content), bytes([0, 0, 0, 0, 0xA0, 0x86, 1, 0]) + content)
    await repository.put([first])
    await asyncio.gather(*(repository.put([second, second]) for _ in range(3)))
    assert [first.data] == await repository.get([first.digest], buffer_for(1))


@pytest.mark.slow
async def test_memory_of_put_frames_is_the_callers_again(repository: Repository) -> None:
    """After `put`, the caller may overwrite its memory. The stored frames stay as they were."""
    frame = encoded(octets(1, 300_000))
    memory = bytearray(frame.data)
    await repository.put([Frame(frame.digest, memoryview(memory))])
    memory[:] = bytes(len(memory))
    assert [frame.data] == await repository.get([frame.digest], buffer_for(1))


@pytest.mark.slow
async def test_frame_of_another_chunk_is_refused(repository: Repository) -> None:
    """I4: the error names the first wrong frame. It is not kept. Correct frames of the same batch may be kept."""
    good, other, behind = frames(3)
    lie = Frame(chunk_digest(b"something else"), other.data)
    second_lie = Frame(chunk_digest(b"something third"), other.data)
    with pytest.raises(InvalidFrame) as caught:
        await repository.put([good, lie, second_lie, behind])
    assert str(lie.digest) == caught.value.digest
    assert {lie.digest, second_lie.digest} <= set(await repository.missing([good.digest, lie.digest, second_lie.digest]))


@pytest.mark.slow
async def test_moved_adds_up_to_the_encoded_bytes(repository: Repository) -> None:
    """`moved` counts the bytes that were sent or received."""
    put = frames(5, size=200_000)
    total = sum(len(frame.data) for frame in put)
    moves: list[int] = []
    await repository.put(put, moved=moves.append)
    assert total == sum(moves)
    moves.clear()
    await repository.get([*(frame.digest for frame in put), chunk_digest(b"absent")], buffer_for(6), moved=moves.append)
    assert total == sum(moves)


@pytest.mark.slow
async def test_cancelled_put_can_be_repeated(repository: Repository) -> None:
    """After a cancel at any await, chunks that are reported present are whole. The next put completes the rest."""
    seed = 0
    put: list[Frame] = []

    async def put_new() -> None:
        nonlocal seed, put
        seed += 1
        put = frames(3, size=2000, seed=seed)
        await repository.put(put)

    async for _ in cancelled_at_every_await(put_new):
        digests = [frame.digest for frame in put]
        missing = await repository.missing(digests)
        got = await repository.get(digests, buffer_for(3))
        assert [frame.data for frame in put if frame.digest not in missing] == [
            data for frame, data in zip(put, got, strict=True) if frame.digest not in missing
        ]
        await repository.put(put)
        assert [] == await repository.missing(digests)


@pytest.mark.slow
async def test_committed_file_is_found_and_read_back(repository: Repository) -> None:
    """It is found by id, digest, name and path. Its manifest and frames give its bytes again."""
    chunks = [*contents(3, size=70_000), contents(1, size=70_000)[0]]
    record = await push(repository, chunks, name="a näme %41.bin")
    expected = manifest(chunks)
    assert ("a näme %41.bin", expected.digest, 280_000, Kind.FILE) == (record.name, record.digest, record.size, record.kind)
    for text in (record.id, str(record.digest), record.path):
        assert record == await repository.record(Reference.parse(text))
    assert record == await repository.record(Reference(name=record.name))
    read = Manifest.parse(await repository.manifest(record.digest))
    assert expected == read
    digests = [chunk.digest for chunk in read.chunks]
    got = await repository.get(digests, buffer_for(4))
    assert chunks == [decoded(digest, data) for digest, data in zip(digests, got, strict=True) if data is not None]


@pytest.mark.slow
async def test_empty_file_is_committed(repository: Repository) -> None:
    """A file without chunks can be committed."""
    record = await push(repository, [])
    assert 0 == record.size
    assert manifest([]).encoded == await repository.manifest(record.digest)


@pytest.mark.slow
async def test_commit_again_is_the_same_record_now_the_newest(repository: Repository) -> None:
    """The same manifest, name and kind give the same id, and a later `updated_at`."""
    first = await push(repository, contents(1), name="first")
    second = await push(repository, contents(1), name="second")
    again = await push(repository, contents(1), name="first")
    assert (first.id, first.created_at) == (again.id, again.created_at)
    assert [again, second] == await repository.records()


@pytest.mark.slow
async def test_all_records_are_yielded_as_they_were_at_the_first_step(repository: Repository) -> None:
    """The newest first. What is stored again or removed meanwhile is neither left out nor yielded twice."""
    assert [] == [record async for record in repository.iter_records()]
    records = [await push(repository, contents(1), name=f"{number}") for number in range(5)][::-1]
    found = []
    async for record in repository.iter_records():
        found.append(record)
        if len(found) == 2:
            again = await push(repository, contents(1), name=records[4].name)
            await repository.remove(records[3].id)
    assert records == found
    assert [again, *records[:3]] == [record async for record in repository.iter_records()]


@pytest.mark.slow
async def test_a_name_means_its_newest_record(repository: Repository) -> None:
    """Older ones are still found by id."""
    older = await push(repository, contents(1, seed=1))
    newer = await push(repository, contents(1, seed=2))
    assert newer == await repository.record(Reference(name="name"))
    assert older == await repository.record(Reference(id=older.id))


@pytest.mark.slow
async def test_a_record_is_named_in_all_ways_that_a_fetch_takes(repository: Repository) -> None:
    """A text, a `Reference`, a `File`, a `Directory` and a `Record`. Anything else is refused with what to give."""
    record = await push(repository, contents(1), name="ab.txt")
    ways: list[Wanted] = [
        "ab.txt",
        record.id,
        str(record.digest),
        record.path,
        File(id=record.id),
        record,
        Reference(name="ab.txt"),
    ]
    for wanted in ways:
        assert record == await repository.record(wanted)
    with pytest.raises(InvalidInput, match="a value of the type int names no stored file; give a text, a Reference, a Record"):
        await repository.record(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidReference):
        await repository.record("")


@pytest.mark.slow
async def test_a_closed_repository_says_so(repository: Repository) -> None:
    """No verb opens it again, and none fails with an error of the machinery."""
    await push(repository, contents(1), name="ab.txt")
    await repository.identity()
    await repository.close()
    for verb in (
        repository.record("ab.txt"),
        repository.records(),
        repository.missing([chunk_digest(b"x")]),
        repository.identity(),
    ):
        with pytest.raises(InvalidInput, match=r"the repository .* was closed; open it again by connect"):
            await verb


@pytest.mark.slow
async def test_kind_tells_records_apart(repository: Repository) -> None:
    """The same bytes as a file and as a directory are two records."""
    file = await push(repository, contents(1))
    directory = await push(repository, contents(1), kind=Kind.DIRECTORY)
    assert (Kind.FILE, Kind.DIRECTORY) == (file.kind, directory.kind)
    assert [directory, file] == await repository.records()


@pytest.mark.slow
async def test_commit_names_all_chunks_that_are_missing(repository: Repository) -> None:
    """The error names each missing chunk once. Nothing is recorded. After these chunks are sent, the commit succeeds."""
    chunks = contents(5)
    here, *absent = [encoded(content) for content in chunks]
    await repository.put([here])
    encoded_manifest = manifest([*chunks, *chunks]).encoded
    with pytest.raises(ChunksMissing) as caught:
        await repository.commit(encoded_manifest, name="name")
    assert tuple(str(frame.digest) for frame in absent) == caught.value.digests
    assert [] == await repository.records()
    await repository.put(absent)
    record = await repository.commit(encoded_manifest, name="name")
    assert [record] == await repository.records()


async def test_commit_names_at_most_as_many_missing_chunks_as_an_error_may_list(repository: Repository) -> None:
    """The error says that there may be more. `missing` names all of them."""
    absent = [Chunk(chunk_digest(number.to_bytes(4, "little")), 1024) for number in range(2 * ChunksMissing.limit)]
    encoded_manifest = Manifest.build(absent, chunking_version=CHUNKING_VERSION).encoded
    with pytest.raises(ChunksMissing, match=f"at least {ChunksMissing.limit}") as caught:
        await repository.commit(encoded_manifest, name="name")
    assert caught.value.is_full
    assert ChunksMissing.limit == len(set(caught.value.digests))
    assert set(caught.value.digests) <= {str(chunk.digest) for chunk in absent}
    assert [] == await repository.records()
    assert [chunk.digest for chunk in absent] == await repository.missing([chunk.digest for chunk in absent])


@pytest.mark.slow
async def test_commit_refuses_what_is_not_a_manifest(repository: Repository) -> None:
    """Nothing is recorded."""
    with pytest.raises(InvalidManifest):
        await repository.commit(b"no manifest", name="name")
    assert [] == await repository.records()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "..", "a/b/c", "-a/b", "api/b", "a/b c", "a/b.git", "new\nline", "x" * 256, "a:b", "a@b"])
async def test_commit_refuses_a_name_that_cannot_be_kept(repository: Repository, name: str) -> None:
    """A name must be a valid file name on any machine."""
    with pytest.raises(InvalidName):
        await repository.commit(manifest([]).encoded, name=name)
    assert [] == await repository.records()


@pytest.mark.slow
async def test_cancelled_commit_is_whole_or_nothing(repository: Repository) -> None:
    """After a cancel at any await, a record has its manifest, or none exists. The next commit gives one."""
    chunks = contents(3)
    await repository.put([encoded(content) for content in chunks])
    wanted = manifest(chunks)
    async for _ in cancelled_at_every_await(lambda: repository.commit(wanted.encoded, name="name")):
        for record in await repository.records():
            assert wanted.encoded == await repository.manifest(record.digest)
            await repository.remove(record.id)
    assert ["name"] == [record.name for record in await repository.records()]


@pytest.mark.slow
async def test_records_come_in_pages(repository: Repository) -> None:
    """Records come from the newest to the oldest. `before` continues."""
    added = [await push(repository, contents(1), name=f"name{number}") for number in range(5)]
    page = await repository.records(limit=2)
    assert added[:-3:-1] == page
    assert added[2::-1] == await repository.records(before=page[-1].updated_at)


@pytest.mark.slow
async def test_removed_record_is_gone(repository: Repository) -> None:
    """Its chunks stay until a collection. A second removal finds nothing."""
    record = await push(repository, contents(1))
    assert record == await repository.remove(record.id)
    for verb in (repository.remove(record.id), repository.record(Reference(id=record.id))):
        with pytest.raises(NotFound):
            await verb
    assert [] == await repository.missing([chunk_digest(contents(1)[0])])


@pytest.mark.slow
async def test_a_record_that_a_pipeline_needs_is_removed_only_by_force(
    repository: Repository, namespace: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The error has the names of the pipelines, and nothing is removed, with or without chunks."""
    record = await push(repository, contents(1))
    folders = [tmp_path, tmp_path / "repository"]
    if namespace != DEFAULT_NAMESPACE:
        folders = [request.getfixturevalue("server").root]
    paths = [folder / "index.sqlite" for folder in folders if (folder / "index.sqlite").exists()]
    index: Index = await (open_index(paths[0]) if paths else open_postgres_index(request.getfixturevalue("postgres_index_url")))
    async with index.transaction() as transaction:
        await transaction.add_uses(namespace, [Use(record.id, f"p{number:02}", f"a:v{number:02}") for number in range(12)])
    await index.close()

    for with_chunks in (False, True):
        with pytest.raises(FileInUse) as caught:
            await repository.remove(record.id, with_chunks=with_chunks)
        names = ", ".join(f"a:v{number:02}" for number in range(10))
        assert (record.id, f"{names} and 2 others") == (caught.value.file_id, caught.value.pipelines)
    assert record == await repository.record(record.id)
    assert record == await repository.remove(record.id, with_chunks=True, force=True)
    assert record.digest not in {other.digest for other in await repository.records()}


@pytest.mark.slow
async def test_a_signed_path_ends_in_the_record_s_own(repository: Repository) -> None:
    """It ends in the id as a UUID, and the name, percent-encoded. A long name is shortened, and keeps its extension."""
    short = await push(repository, contents(2), name="a b.jpg")
    long = await push(repository, contents(2), name="\u00e9" * 120 + ".jpg")
    for record, name in ((short, "a%20b.jpg"), (long, "%C3%A9" * 41 + ".jpg")):
        signed = await repository.sign(record.id)
        folder = record.run_path.rpartition("/")[0]
        assert ["signed", (await repository.identity()).namespace] == signed.split("/")[:2]
        assert f"{folder}/{name}" == signed.split("/", 4)[4]


@pytest.mark.slow
async def test_links(repository: Repository, namespace: str) -> None:
    """Each has its own path, which is told once, and its end. A link that is revoked is not listed, and is not found again.

    A JSON Web Token makes none. The servers of these tests know no other tokens; `tests/e2e/test_links.py` has some.
    """
    record = await push(repository, contents(1), name="a b.jpg")
    if namespace != DEFAULT_NAMESPACE:
        with pytest.raises(InvalidInput, match="JSON Web Token"):
            await repository.make_link(record.id, seconds=60)
        assert [] == await repository.links()
        return
    made = [await repository.make_link(record.id, seconds=seconds) for seconds in (60, 3600)]
    assert 2 == len({link.path for link in made})
    for link, seconds in zip(made, (60, 3600), strict=True):
        assert (record.id, record.name) == (link.file_id, link.name)
        assert seconds * 1_000_000 == link.expires_at - link.created_at
        assert link.path is not None
        assert link.path.endswith("/a%20b.jpg")
    assert [link._replace(path=None) for link in made] == await repository.links()
    assert made[0]._replace(path=None) == await repository.revoke_link(made[0].id)
    assert [made[1].id] == [link.id for link in await repository.links()]
    for link_id in (made[0].id, "link_" + "0" * 16):
        with pytest.raises(NotFound):
            await repository.revoke_link(link_id)
    for seconds in (0, 367 * 86400):
        with pytest.raises(InvalidInput):
            await repository.make_link(record.id, seconds=seconds)
    await repository.revoke_link(made[1].id)


@pytest.mark.slow
async def test_what_was_never_there_is_not_found(repository: Repository) -> None:
    """Each verb raises the same error for an unknown file."""
    digest = chunk_digest(b"")
    for verb in (
        repository.record(Reference(id="file_" + "0" * 32)),
        repository.record(Reference(digest=digest)),
        repository.record(Reference(name="näme with spaces")),
        repository.record(Reference(digest=digest, name="name")),
        repository.manifest(digest),
        repository.remove("file_" + "0" * 32),
        repository.sign("file_" + "0" * 32),
        repository.make_link("file_" + "0" * 32, seconds=60),
    ):
        with pytest.raises(NotFound):
            await verb


@pytest.mark.slow
async def test_many_at_once(repository: Repository) -> None:
    """Pushes that share chunks all succeed at the same time."""
    shared = contents(4, size=3000)
    records = await asyncio.gather(
        *(push(repository, [*shared, *contents(3, seed=number)], name=f"name{number}") for number in range(1, 9))
    )
    assert 8 == len({record.digest for record in records})
    assert sorted(record.id for record in records) == sorted(record.id for record in await repository.records())


@pytest.mark.slow
async def test_verify_chunks_believes_nobody(repository: Repository) -> None:
    """An intact frame stays, although a caller calls it damaged. An absent frame is not damaged either."""
    one, absent = frames(2)
    await repository.put([one])
    assert [] == await repository.verify_chunks([one.digest, absent.digest, one.digest])
    assert [] == await repository.verify_chunks([])
    assert [absent.digest] == await repository.missing([one.digest, absent.digest])


@pytest.mark.slow
async def test_name_that_looks_like_a_digest_or_an_id_is_found(repository: Repository) -> None:
    """A typed text is a name if nothing is stored under such a digest or id.

    A digest or id given as a value is never a name.
    """
    for name in ("0a" * 32, "file_" + "0a" * 16):
        pushed = await push(repository, contents(2), name=name)
        assert pushed == await repository.record(Reference.parse(name))
    for wanted in (File(digest="0a" * 32), File(id="file_" + "0a" * 16)):
        with pytest.raises(NotFound):
            await repository.record(wanted.reference)
    other = await push(repository, contents(3), name=str(pushed.digest))
    assert pushed.digest == (await repository.record(Reference.parse(str(pushed.digest)))).digest
    assert other == await repository.record(Reference(name=other.name))


@pytest.mark.slow
async def test_zip_that_is_pushed_as_a_file_does_not_hide_the_directory(repository: Repository) -> None:
    """A digest alone means the directory, in any order of the pushes. A name means the last push."""
    tree = await push(repository, contents(2), name="model.zip", kind=Kind.DIRECTORY)
    file = await push(repository, contents(2), name="model.zip")
    assert tree.digest == file.digest
    assert tree.id == (await repository.record(Reference(digest=tree.digest))).id
    assert tree.id == (await repository.record(Reference(digest=tree.digest, name="model.zip"))).id
    assert file.id == (await repository.record(Reference(name="model.zip"))).id
    await repository.remove(tree.id)
    assert file.id == (await repository.record(Reference(digest=tree.digest))).id


@pytest.mark.slow
async def test_record_is_removed_with_the_chunks_that_no_other_needs(repository: Repository) -> None:
    """Chunks that another record shares stay. A record of the same content under another name needs all of them."""
    shared, own = contents(2), contents(2, seed=7)
    kept = await push(repository, [*shared, *contents(1, seed=8)], name="kept")
    first = await push(repository, [*shared, *own], name="first")
    second = await push(repository, [*shared, *own], name="second")
    digests = [chunk_digest(content) for content in [*shared, *own]]

    assert first == await repository.remove(first.id, with_chunks=True)
    assert [] == await repository.missing(digests)
    assert second == await repository.remove(second.id, with_chunks=True)
    assert digests[2:] == await repository.missing(digests)
    with pytest.raises(NotFound):
        await repository.manifest(second.digest)
    with pytest.raises(NotFound):
        await repository.remove(second.id, with_chunks=True)
    assert [kept] == await repository.records()
    got = await repository.get(digests, buffer_for(4))
    assert shared == [decoded(digest, data) for digest, data in zip(digests, got, strict=True) if data is not None]
    again = await push(repository, [*shared, *own], name="first")
    assert [] == await repository.missing([chunk.digest for chunk in manifest([*shared, *own]).chunks])
    assert again == await repository.record(Reference(id=again.id))


@pytest.mark.slow
async def test_push_that_counts_on_chunks_that_are_removed_sends_them(repository: Repository) -> None:
    """The push was told that the chunks are present. Its commit reports them missing, and it sends them."""
    chunks = contents(2)
    record = await push(repository, chunks, name="first")
    assert [] == await repository.missing([chunk_digest(content) for content in chunks])
    await repository.remove(record.id, with_chunks=True)
    with pytest.raises(ChunksMissing) as caught:
        await repository.commit(manifest(chunks).encoded, name="second")
    assert {str(chunk_digest(content)) for content in chunks} == set(caught.value.digests)
    await push(repository, chunks, name="second")
