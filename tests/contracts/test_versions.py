"""Rules of the versions of a name, in every repository: revisions, removals, and what they free."""

from __future__ import annotations

from typing import Any

import pytest

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import InvalidInput, InvalidReference, NotFound, RecordChanged
from filestore.repository.index.protocol import Index
from filestore.repository.protocol import FreedContent, Repository
from tests.contracts.conftest import Clock
from tests.support.frames import encoded, manifest
from tests.support.generator import octets

pytestmark = pytest.mark.slow


async def push(repository: Repository, *chunks: bytes, name: str = "name") -> Record:
    """Put chunks and commit them as a file."""
    await repository.put([encoded(content) for content in chunks])
    return await repository.commit(manifest(list(chunks)).encoded, name=name)


async def test_revisions_mean_versions(repository: Repository) -> None:
    """`~N` counts from the newest version, and digits are the beginning of a digest. Storing again makes a version newest."""
    first, second, third = [await push(repository, octets(number, 1000)) for number in range(3)]
    await push(repository, octets(0, 1000), name="other")
    assert [third, second, first] == [await repository.record(f"name@~{number}") for number in range(3)]
    for record in (first, second):
        for digits in (8, 9, 63, 64):
            assert record == await repository.record(f"name@{str(record.digest)[:digits]}")
    for wrong in ("name@~3", "name@00000000", f"other@{second.digest}", "other@~1", "nothing@~0"):
        with pytest.raises(NotFound) as caught:
            await repository.record(wrong)
        assert wrong == "@".join(map(str, caught.value.args))
    again = await push(repository, octets(0, 1000))
    assert [again, third, second] == [await repository.record(f"name@~{number}") for number in range(3)]
    assert again.id == first.id


async def test_versions_are_listed_from_the_newest_down(repository: Repository) -> None:
    """All versions of a name, all records of a digest, or the record of an id and of a revision; in pages."""
    old = [await push(repository, octets(number, 1000)) for number in range(5)]
    other = await push(repository, octets(2, 1000), name="other")
    newest_first = old[::-1]
    whole = await repository.versions("name")
    assert (newest_first, 5, {}) == whole
    paged = [await repository.versions("name", limit=2)]
    while paged[-1].records:
        paged.append(await repository.versions("name", limit=2, before=paged[-1].records[-1].updated_at))
    assert newest_first == [record for page in paged for record in page.records]
    assert ([other, old[2]], 2, {}) == await repository.versions(str(old[2].digest))
    assert ([old[2]], 1, {}) == await repository.versions(old[2].path)
    assert ([old[2]], 5, {}) == await repository.versions(old[2].id) == await repository.versions("name@~2")
    for wrong in ("nothing", "name@~5", "00" * 32, "file_" + "0" * 32):
        with pytest.raises(NotFound):
            await repository.versions(wrong)


async def test_rules_select_versions(repository: Repository) -> None:
    """By the clock of the repository, in pages, and never the newest one."""
    old = [await push(repository, octets(number, 1000)) for number in range(5)]

    async def selected(**rule: Any) -> list[Record]:
        first = await repository.versions("name", limit=1, **rule)
        found = list(first.records)
        while first.records:
            first = await repository.versions("name", limit=1, before=found[-1].updated_at, **rule)
            found += first.records
            assert 5 == first.total
        return found

    assert [old[2], old[1], old[0]] == await selected(keep_last=2)
    assert [old[3], old[2], old[1], old[0]] == await selected(older_than_seconds=0)
    assert [] == await selected(older_than_seconds=3600)
    assert [] == await selected(keep_last=1, older_than_seconds=3600)
    for impossible in ({"keep_last": 0}, {"older_than_seconds": -1}):
        with pytest.raises(InvalidInput):
            await selected(**impossible)


async def test_a_record_that_was_stored_again_is_not_removed(repository: Repository) -> None:
    """A removal that names the time of the record fails, and so does one of a version that has become the newest one."""
    first, second = await push(repository, b"1"), await push(repository, b"2")
    again = await push(repository, b"1")
    with pytest.raises(RecordChanged, match="it was stored again since"):
        await repository.remove(first.id, updated_at=first.updated_at)
    with pytest.raises(RecordChanged, match="it is now the newest version of 'name'"):
        await repository.remove(first.id, updated_at=again.updated_at, unless_newest=True)
    assert second == await repository.remove(second.id, updated_at=second.updated_at, unless_newest=True)
    assert ([again], 1, {}) == await repository.versions("name")


async def test_freed_by_is_what_no_other_record_needs(repository: Repository) -> None:
    """Chunks that several of the removed records have count once, and other names keep theirs."""
    one, two, three = (octets(number, 10_000) for number in range(3))
    frames = {content: len(encoded(content).data) for content in (one, two, three)}
    first, second = await push(repository, one, two), await push(repository, two, three)
    other = await push(repository, three, name="other")
    sizes = {record: len(await repository.manifest(record.digest)) for record in (first, second, other)}
    assert FreedContent(1, frames[one] + sizes[first]) == await repository.freed_by([first.id])
    assert FreedContent(0, sizes[second]) == await repository.freed_by([second.id])
    assert FreedContent(2, frames[one] + frames[two] + sizes[first] + sizes[second]) == await repository.freed_by(
        [first.id, second.id]
    )
    assert FreedContent(3, sum(frames.values()) + sum(sizes.values())) == await repository.freed_by(
        [first.id, second.id, other.id]
    )
    twin = await push(repository, one, two, name="twin")
    assert twin.digest == first.digest
    assert (
        FreedContent(0, 0)
        == await repository.freed_by([first.id])
        == await repository.freed_by([])
        == await repository.freed_by(["file_" + "0" * 32])
    )


async def test_usage_adds_up(repository: Repository, namespace: str) -> None:
    """Every byte of frames and manifests is in one figure, and every needed frame is counted for its names."""
    empty = await repository.usage()
    assert (0, 0, 0, 0, ()) == (empty.record_count, empty.needed_size, empty.free_size, empty.waiting_size, empty.names)
    one, two, three, lost = (octets(number, 10_000) for number in range(4))
    frames = {content: len(encoded(content).data) for content in (one, two, three, lost)}
    records = [
        await push(repository, one, one, two, name="a"),
        await push(repository, two, name="a"),
        await push(repository, two, three, name="b"),
    ]
    removed = await push(repository, lost, name="b")
    manifests = [len(await repository.manifest(record.digest)) for record in records]
    removed_size = len(await repository.manifest(removed.digest))
    await repository.remove(removed.id)
    usage = await repository.usage()
    assert (3, 60_000, 30_000, 4) == (usage.record_count, usage.logical_size, usage.distinct_size, usage.frame_count)
    assert frames[one] + frames[two] + frames[three] == usage.needed_size
    # A collection removes a manifest after its chunks, so it waits with them.
    assert (frames[lost] + removed_size, 0, sum(manifests)) == (usage.waiting_size, usage.free_size, usage.manifests_size)
    assert [("a", 2, 40_000, frames[one], frames[two]), ("b", 1, 20_000, frames[three], frames[two])] == list(usage.names)
    assert (2, 86400.0, (), namespace) == (usage.name_count, usage.grace_seconds, usage.damaged, usage.namespace)
    now = await repository.usage(grace_seconds=0, name_limit=1)
    assert (removed_size + frames[lost], 0) == (now.free_size, now.waiting_size)
    assert usage.names[:1] == now.names


async def test_digits_that_mean_several_versions_are_refused(index: Index, clock: Clock) -> None:
    """The error asks for more digits. The same digest as a file and as a directory is one digest."""
    near, far = Digest(b"\xab" * 31 + b"\x01"), Digest(b"\xab" * 31 + b"\x02")
    async with index.transaction() as transaction:
        file = await transaction.add_record("a", name="n.zip", digest=near, size=1, kind=Kind.FILE)
        tree = await transaction.add_record("a", name="n.zip", digest=near, size=1, kind=Kind.DIRECTORY)
        await transaction.add_record("a", name="other.zip", digest=far, size=1, kind=Kind.FILE)
    clock.advance(seconds=-100)
    async with index.transaction() as transaction:
        file = await transaction.add_record("a", name="n.zip", digest=near, size=1, kind=Kind.FILE)
    assert tree == await index.record("a", Reference(name="n.zip", revision="abababab"))
    assert [file, tree] == [await index.record("a", Reference(name="n.zip", revision=f"~{back}")) for back in (0, 1)]
    async with index.transaction() as transaction:
        other = await transaction.add_record("a", name="n.zip", digest=far, size=1, kind=Kind.FILE)
    with pytest.raises(InvalidReference, match=r"'n.zip@abababab'.*several versions begin with these digits; give more of them"):
        await index.record("a", Reference(name="n.zip", revision="abababab"))
    assert other == await index.record("a", Reference(name="n.zip", revision=str(far)))
    assert [other, file, tree] == await index.versions("a", Reference(name="n.zip"), limit=9)
    assert [tree] == await index.versions("a", Reference(name="n.zip"), limit=9, before=file.updated_at)
    assert (3, 1) == (
        await index.version_count("a", Reference(name="n.zip")),
        await index.version_count("a", Reference(name="n.zip"), before=file.updated_at),
    )
