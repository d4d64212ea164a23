"""Who is next when many contents wait for their secondary digests."""

from __future__ import annotations

from filestore.core.digest import Digest, chunk_digest
from filestore.http.server.digest_queue import DUE_LIMIT, WANTED_LIMIT, DigestQueue, Due

A, B = "a", "b"


def digest(number: int) -> Digest:
    """One of many digests."""
    return chunk_digest(b"%d" % number)


def due(*numbers: int) -> list[Due]:
    """Contents whose positions are these numbers."""
    return [Due(number, digest(number)) for number in numbers]


def taken(queue: DigestQueue) -> list[tuple[str, Digest]]:
    """All that waits, in order."""
    found = []
    while (wanted := queue.take_wanted()) is not None:
        found.append(wanted)
    while (each := queue.take_due()) is not None:
        found.append((each[0], each[1].digest))
    assert (0, False, False) == (len(queue), queue.has_wanted, queue.has_due)
    return found


def test_the_newest_comes_first() -> None:
    """In whatever order they are found, and each once."""
    queue = DigestQueue()
    queue.add(A, due(1, 3))
    queue.add(A, due(2, 3))
    assert (3, True, False) == (len(queue), queue.has_due, queue.has_wanted)
    assert [(A, digest(number)) for number in (3, 2, 1)] == taken(queue)


def test_namespaces_take_turns() -> None:
    """One that stores without end does not hold up another one."""
    queue = DigestQueue()
    queue.add(A, due(*range(10, 20)))
    queue.add(B, due(1, 2))
    assert [A, B, A, B, A, A] == [namespace for namespace, _ in taken(queue)][:6]
    for number in range(3):
        queue.want(A, digest(number))
    queue.want(B, digest(9))
    assert [(A, digest(2)), (B, digest(9)), (A, digest(1)), (A, digest(0))] == taken(queue)


def test_what_was_asked_for_last_comes_first() -> None:
    """To ask again puts it at the front again."""
    queue = DigestQueue()
    queue.add(A, due(7))
    for number in (1, 2, 3, 1):
        queue.want(A, digest(number))
    assert [(A, digest(number)) for number in (1, 3, 2, 7)] == taken(queue)


def test_another_namespace_has_its_turn() -> None:
    """In the middle of a large content, nothing of the same namespace is begun."""
    queue = DigestQueue()
    queue.add(A, due(1))
    assert queue.take_due(not_in=A) is None
    queue.add(B, due(2))
    assert (B, due(2)[0]) == queue.take_due(not_in=A)
    assert 1 == len(queue)


def test_memory_is_limited() -> None:
    """The oldest that are due are left out, and questions beyond the limit. What is there can still be moved to the front."""
    queue = DigestQueue()
    assert not queue.add(A, due(*range(DUE_LIMIT)))
    assert queue.add(A, due(DUE_LIMIT))
    assert not queue.add(B, [])
    assert DUE_LIMIT == len(queue)
    for number in range(WANTED_LIMIT + 5):
        queue.want(B, digest(number))
    queue.want(B, digest(0))
    assert DUE_LIMIT + WANTED_LIMIT == len(queue)
    assert (B, digest(0)) == queue.take_wanted()
