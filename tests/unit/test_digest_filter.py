"""The set of digests that collection marks what is needed in."""

from __future__ import annotations

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Chunks, Manifest
from filestore.repository.maintenance.digest_filter import SIZE_LIMIT, DigestFilter

ADDED = [chunk_digest(b"a%d" % number) for number in range(20_000)]
OTHERS = [chunk_digest(b"b%d" % number) for number in range(20_000)]


def test_what_was_added_is_always_found() -> None:
    """Also in a filter that is much too small. A wrong "no" would lose a chunk."""
    for expected in (0, 1, len(ADDED)):
        digests = DigestFilter(expected)
        digests.add(ADDED)
        assert all(digests.contained(ADDED))


def test_few_others_are_found() -> None:
    """About six in ten thousand, with eight places in 16 bits for each digest."""
    digests = DigestFilter(len(ADDED))
    assert not any(digests.contained(OTHERS))
    digests.add(ADDED)
    assert sum(digests.contained(OTHERS)) < 60


def test_the_size_follows_the_number_up_to_a_limit() -> None:
    """The memory is bounded, whatever the number of chunks."""
    sizes = [DigestFilter(count).size for count in (0, 1 << 20, 1 << 40)]
    assert [1 << 12, 2 << 20, SIZE_LIMIT] == sizes


def test_two_filters_are_wrong_about_others() -> None:
    """What one pass keeps by chance, the next one removes."""
    wrong = []
    for _ in range(2):
        digests = DigestFilter(len(ADDED) // 8)
        digests.add(ADDED)
        wrong.append({digest for digest, found in zip(OTHERS, digests.contained(OTHERS), strict=True) if found})
    assert wrong[0] != wrong[1]
    assert len(wrong[0] & wrong[1]) < min(map(len, wrong))


def test_the_chunks_of_a_manifest_are_added() -> None:
    """All of them, in slices."""
    chunks = Manifest.build([Chunk(digest, 1) for digest in ADDED], chunking_version=1).chunks
    assert isinstance(chunks, Chunks)
    digests = DigestFilter(len(ADDED))
    assert ADDED == [digest for part in digests.absent_chunks(chunks) for digest in part]
    digests.add_chunks(chunks)
    assert all(digests.contained(ADDED))
    assert [] == [digest for part in digests.absent_chunks(chunks) for digest in part]
