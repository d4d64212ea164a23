"""Rules of every index about the secondary digests of content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from filestore.core.digest import Digest, chunk_digest
from filestore.core.records import Kind, Record
from filestore.repository.index.protocol import ContentDigests, Index
from tests.contracts.conftest import OpenIndex

A, B = "a", "b"
TREE, OTHER, NEWER = (chunk_digest(text) for text in (b"tree", b"other", b"newer"))


def row(content: bytes, *, source: Digest = TREE, start: int = 0) -> ContentDigests:
    """Return what is known of a content after it was read."""
    blob_id = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).digest()
    return ContentDigests(chunk_digest(content), len(content), hashlib.sha256(content).digest(), blob_id, source, start)


async def store(index: Index, digest: Digest, *, name: str = "tree", namespace: str = A) -> Record:
    """Add a record."""
    async with index.transaction() as transaction:
        return await transaction.add_record(namespace, name=name, digest=digest, size=7, kind=Kind.DIRECTORY)


async def add(index: Index, *rows: ContentDigests, namespace: str = A) -> None:
    """Add secondary digests of contents."""
    async with index.transaction() as transaction:
        await transaction.add_content_digests(namespace, rows)


async def add_tree(index: Index, digest: Digest, packed: bytes, *, namespace: str = A) -> None:
    """Add those of a tree."""
    async with index.transaction() as transaction:
        await transaction.set_tree_digests(namespace, digest, packed)


async def remove(index: Index, *records: Record) -> None:
    """Remove records."""
    async with index.transaction() as transaction:
        for record in records:
            await transaction.remove_record(record.namespace, record.id)


async def known(index: Index, rows: Sequence[ContentDigests], *, namespace: str = A) -> list[ContentDigests]:
    """Return those of `rows` that the index has, as it has them."""
    found = await index.content_digests(namespace, [each.digest for each in rows])
    return [found[each.digest] for each in rows if each.digest in found]


async def test_a_content_is_found_by_both_digests(index: Index) -> None:
    """By its file digest and by its SHA-256, also in a large question with unknown ones among them."""
    await store(index, TREE)
    rows = [row(b"%d" % number, start=number) for number in range(1200)]
    await add(index, *rows)
    asked = [each.digest for each in rows] + [OTHER]
    assert {each.digest: each for each in rows} == await index.content_digests(A, asked)
    by_sha256 = {each.sha256: each for each in rows}
    assert by_sha256 == await index.contents_by_sha256(A, [*by_sha256, bytes(32)])


async def test_equal_content_with_other_chunks_is_found_once(index: Index) -> None:
    """Two file digests may have one SHA-256. Each reader then gets the same one of them."""
    await store(index, TREE)
    one = row(b"content")
    two = one._replace(digest=OTHER, start=9)
    await add(index, one, two)
    assert {one.sha256: max(one, two)} == await index.contents_by_sha256(A, [one.sha256])


async def test_namespaces_do_not_share_digests(index: Index) -> None:
    """What one namespace stores is unknown in another one that has a record of the same content."""
    await store(index, TREE)
    await store(index, TREE, namespace=B)
    one = row(b"content")
    await add(index, one)
    await add_tree(index, TREE, bytes(52))
    assert {} == await index.content_digests(B, [one.digest])
    assert {} == await index.contents_by_sha256(B, [one.sha256])
    assert (None, set()) == (await index.tree_digests(B, TREE), await index.known_trees(B, [TREE]))


async def test_a_content_without_a_record_is_not_added(index: Index) -> None:
    """Its record may have been removed while the content was read."""
    await add(index, row(b"content"))
    await add_tree(index, TREE, bytes(52))
    await store(index, TREE)
    assert [] == await known(index, [row(b"content")])
    assert await index.tree_digests(A, TREE) is None


async def test_a_row_that_exists_keeps_its_digests(index: Index) -> None:
    """They say what a server computed. Nobody can replace them."""
    await store(index, TREE)
    one = row(b"content")
    await add(index, one, one._replace(sha256=bytes(32), blob_id=bytes(20), size=1))
    assert [one] == await known(index, [one])
    await add_tree(index, TREE, b"1" * 52)
    await add_tree(index, TREE, b"2" * 52)
    assert b"1" * 52 == await index.tree_digests(A, TREE)


async def test_the_newest_source_is_kept(index: Index) -> None:
    """Old versions are removed first, and then the content is still found in the newer one."""
    old = await store(index, TREE)
    await store(index, NEWER)
    await add(index, row(b"content"))
    newer = row(b"content", source=NEWER, start=5)
    await add(index, newer)
    await add(index, row(b"content", start=6))
    assert [newer] == await known(index, [newer])
    await remove(index, old)
    assert [newer] == await known(index, [newer])


async def test_a_content_goes_with_the_last_record_of_its_source(index: Index) -> None:
    """Nothing leads to its chunks any more. A new source makes it known again."""
    first, second = await store(index, TREE), await store(index, TREE, name="again")
    await store(index, OTHER, name="other")
    rows = [row(b"%d" % number) for number in range(5)]
    await add(index, *rows)
    await remove(index, first)
    assert rows == await known(index, rows)
    await remove(index, second)
    assert [] == await known(index, rows)
    assert {} == await index.contents_by_sha256(A, [each.sha256 for each in rows])
    found = rows[0]._replace(source=OTHER, start=3)
    await add(index, found)
    assert [found] == await known(index, rows)


async def test_the_digests_of_a_tree_go_with_its_last_record(index: Index) -> None:
    """Two records may have the same tree."""
    first, second = await store(index, TREE), await store(index, TREE, name="again")
    await store(index, TREE, namespace=B)
    packed = bytes(range(104))
    await add_tree(index, TREE, packed)
    assert {TREE} == await index.known_trees(A, [TREE, OTHER])
    await remove(index, first)
    assert packed == await index.tree_digests(A, TREE)
    await remove(index, second)
    assert (None, set()) == (await index.tree_digests(A, TREE), await index.known_trees(A, [TREE]))
    await store(index, TREE)
    assert await index.tree_digests(A, TREE) is None


async def test_a_tree_without_files_has_empty_digests(index: Index) -> None:
    """They are known, which is not the same as None."""
    await store(index, TREE)
    await add_tree(index, TREE, b"")
    assert b"" == await index.tree_digests(A, TREE)
    assert {TREE} == await index.known_trees(A, [TREE])


async def test_a_check_finds_values_that_no_content_has(open_shared: OpenIndex) -> None:
    """Both tables are checked. What is valid gives none."""
    index = await open_shared()
    await store(index, TREE)
    await add(index, row(b"content"))
    await add_tree(index, TREE, bytes(104))
    assert [] == await index.problems()
    await add(index, row(b"other")._replace(sha256=b"short"))
    await store(index, OTHER)
    await add_tree(index, OTHER, bytes(53))
    problems = await index.problems()
    assert [A, A] == [problem.namespace for problem in problems]
    assert ["in content_digests" in problems[0].detail, "in tree_digests" in problems[1].detail] == [True, True]
