"""Rules of every index."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Sequence

import pytest

from filestore.core.commits import Label, LabelKind
from filestore.core.digest import Digest, chunk_digest, token_digest
from filestore.core.quotas import EVERYBODY, Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.errors import Busy
from filestore.repository.index.protocol import (
    Base,
    ChunkRow,
    Index,
    ListingGrowth,
    NamespaceUsage,
    Policy,
    QuotaRow,
    TokenRow,
    Use,
)
from tests.contracts.conftest import Clock, OpenIndex
from tests.support.cancels import cancelled_at_every_await

A, B = "a", "b"
MINUTE = 60
HOUR = 3600
DAY = 24 * HOUR


def digests(count: int) -> list[Digest]:
    """Return that many digests, in no particular order."""
    return [chunk_digest(b"%d" % number) for number in range(count)]


def row(digest: Digest) -> ChunkRow:
    """Return a row whose two sizes differ."""
    return ChunkRow(digest, 1000 + digest[0], 500 + digest[0])


async def add(index: Index, added: Sequence[Digest], *, namespace: str = A) -> None:
    """Add rows that are live."""
    async with index.transaction() as transaction:
        await transaction.add_chunks(namespace, [row(digest) for digest in added])


async def mark(index: Index, marked: Sequence[Digest], *, unseen_since: int, namespace: str = A) -> list[Digest]:
    """Condemn rows, as a collection does."""
    async with index.transaction() as transaction:
        return await transaction.condemn(namespace, marked, unseen_since=unseen_since)


async def record(index: Index, name: str, digest: Digest, *, kind: Kind = Kind.FILE, size: int = 7, namespace: str = A) -> Record:
    """Add a record."""
    async with index.transaction() as transaction:
        return await transaction.add_record(namespace, name=name, digest=digest, size=size, kind=kind)


async def test_missing_gives_each_unknown_once_in_order(index: Index) -> None:
    """Each missing digest is in the answer once, so that a pusher sends each chunk once."""
    one, two, three = digests(3)
    await add(index, [two])
    assert [three, one] == await index.missing(A, [three, two, one, three, two, one])
    assert [] == await index.missing(A, [])


async def test_condemned_and_forgotten_rows_are_missing(index: Index, clock: Clock) -> None:
    """I2: a chunk counts as absent from the moment when it is condemned."""
    live, condemned, forgotten = digests(3)
    await add(index, [live, condemned, forgotten])
    await mark(index, [condemned], unseen_since=clock.now + 1)
    async with index.transaction() as transaction:
        await transaction.forget_chunks(A, [forgotten])
    assert [condemned, forgotten] == await index.missing(A, [live, condemned, forgotten])


async def test_missing_refreshes_what_was_seen_over_an_hour_ago(index: Index, clock: Clock) -> None:
    """I9: a chunk that was reported present is safe from collection for the grace period, less one hour."""
    (digest,) = digests(1)
    await add(index, [digest])
    clock.advance(seconds=HOUR + MINUTE)
    assert [] == await index.missing(A, [digest])
    assert [] == await mark(index, [digest], unseen_since=clock.now)
    assert [digest] == await mark(index, [digest], unseen_since=clock.now + 1)


async def test_missing_does_not_refresh_what_was_seen_within_the_hour(index: Index, clock: Clock) -> None:
    """A question about chunks that were seen lately writes nothing."""
    (digest,) = digests(1)
    await add(index, [digest])
    clock.advance(seconds=HOUR - MINUTE)
    async with index.transaction():
        assert [] == await asyncio.wait_for(index.missing(A, [digest]), timeout=60)
    assert [digest] == await mark(index, [digest], unseen_since=clock.now - MINUTE)


async def test_cancelled_missing_changes_nothing(index: Index, clock: Clock) -> None:
    """After a cancel at any await, the next question gets its answer."""
    one, two = digests(2)
    await add(index, [one])

    async def ask() -> None:
        clock.advance(seconds=HOUR + MINUTE)
        assert [two] == await index.missing(A, [one, two])

    async for _ in cancelled_at_every_await(ask):
        assert [two] == await index.missing(A, [one, two])


async def test_added_again_a_condemned_row_is_live(index: Index, clock: Clock) -> None:
    """I2: putting a condemned chunk makes it live again."""
    (digest,) = digests(1)
    await add(index, [digest])
    await mark(index, [digest], unseen_since=clock.now + 1)
    await add(index, [digest])
    assert [] == await index.missing(A, [digest])
    async with index.transaction() as transaction:
        assert [] == await transaction.condemned(A, [digest])


async def test_added_again_a_row_has_the_new_sizes(index: Index) -> None:
    """The store has the frame that was put last, so the row has its sizes."""
    (digest,) = digests(1)
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [ChunkRow(digest, 10, 5), ChunkRow(digest, 11, 6)])
        assert {digest: 11} == await transaction.sizes(A, [digest])


async def test_sizes_are_those_of_live_rows(index: Index, clock: Clock) -> None:
    """Condemned and absent rows are not in the answer."""
    live, condemned, absent = digests(3)
    await add(index, [live, condemned])
    await mark(index, [condemned], unseen_since=clock.now + 1)
    async with index.transaction() as transaction:
        assert {live: row(live).size} == await transaction.sizes(A, [absent, condemned, live, live])


async def test_refreshed_rows_are_live_and_count_as_seen(index: Index, clock: Clock) -> None:
    """I9: a commit checks its chunks by them before its transaction. A write is open meanwhile if none is old."""
    live, condemned, absent = digests(3)
    await add(index, [live, condemned])
    await mark(index, [condemned], unseen_since=clock.now + 1)
    async with index.transaction():
        assert [row(live)] == await index.refreshed_rows(A, [absent, condemned, live, live])
    clock.advance(seconds=HOUR + MINUTE)
    assert [row(live)] == await index.refreshed_rows(A, [live, condemned])
    assert [] == await mark(index, [live], unseen_since=clock.now)


async def test_refreshed_sizes_are_of_live_rows_which_count_as_seen(index: Index, clock: Clock) -> None:
    """I9: as above. Rows that were seen lately come with those that were not, and with one that is condemned meanwhile."""
    recent, old, condemned, absent = digests(4)
    await add(index, [old, condemned])
    clock.advance(seconds=HOUR + MINUTE)
    await add(index, [recent])
    await mark(index, [condemned], unseen_since=clock.now)
    for _ in range(2):
        sizes = await index.refreshed_sizes(A, [absent, condemned, old, recent, recent])
        assert {recent: row(recent).size, old: row(old).size} == sizes
    assert {} == await index.refreshed_sizes(B, [recent])
    assert {} == await index.refreshed_sizes(A, [])
    assert [] == await mark(index, [recent, old], unseen_since=clock.now)


async def test_removals_tell_that_rows_were_condemned_or_removed(open_shared: OpenIndex, clock: Clock) -> None:
    """I2: while the number is the same, what was live is live. It is one number for each namespace and all processes."""
    index, other = await open_shared(), await open_shared()
    one, two = digests(2)
    await add(index, [one, two])
    seen = [await other.removals(A)]
    assert [] == await mark(index, [one], unseen_since=clock.now)
    async with index.transaction() as transaction:
        await transaction.refresh(A, [one])
        await transaction.forget_chunks(A, [chunk_digest(b"absent")])
    seen.append(await other.removals(A))
    await mark(index, [one], unseen_since=clock.now + 1)
    seen.append(await other.removals(A))
    async with index.transaction() as transaction:
        await transaction.forget_chunks(A, [one])
        assert seen[-1] < await transaction.removals(A)
    seen.append(await other.removals(A))
    await add(index, [one])
    seen.append(await other.removals(A))
    assert [0, 0, 1, 2, 2] == seen
    assert 0 == await other.removals(B)


async def test_mark_condemned_spares_what_was_seen(index: Index, clock: Clock) -> None:
    """I9: only chunks that were unseen for the grace period are condemned, once each, in the order of the question."""
    old, older, absent = digests(3)
    await add(index, [old, older])
    clock.advance(seconds=1)
    seen = chunk_digest(b"seen")
    await add(index, [seen])
    assert [older, old] == await mark(index, [older, seen, absent, old], unseen_since=clock.now)
    assert [] == await mark(index, [older, seen, absent, old], unseen_since=clock.now)
    async with index.transaction() as transaction:
        assert [old, older] == await transaction.condemned(A, [old, seen, absent, older])


async def test_refresh_protects_live_rows(index: Index, clock: Clock) -> None:
    """I9: chunks that a commit has checked count as seen now. A condemned row stays condemned."""
    live, condemned = digests(2)
    await add(index, [live, condemned])
    await mark(index, [condemned], unseen_since=clock.now + 1)
    clock.advance(seconds=2 * HOUR)
    async with index.transaction() as transaction:
        await transaction.refresh(A, [live, condemned])
    assert [] == await mark(index, [live], unseen_since=clock.now)
    assert [condemned] == await index.missing(A, [live, condemned])


async def test_refresh_corrects_times_in_the_future(index: Index, clock: Clock) -> None:
    """After a clock was wrong, rows get a time with which a collection can work."""
    (digest,) = digests(1)
    clock.advance(seconds=9000 * HOUR)
    await add(index, [digest])
    clock.advance(seconds=-9000 * HOUR)
    assert [] == await mark(index, [digest], unseen_since=clock.now + 1)
    async with index.transaction() as transaction:
        await transaction.refresh(A, [digest])
    assert [digest] == await mark(index, [digest], unseen_since=clock.now + 1)


async def test_unknown_digests_have_no_row(index: Index, clock: Clock) -> None:
    """A condemned row is a row. The question changes nothing."""
    live, condemned, one, two = digests(4)
    await add(index, [live, condemned])
    await mark(index, [condemned], unseen_since=clock.now + 1)
    clock.advance(seconds=2 * HOUR)
    assert [two, one] == await index.unknown(A, [two, condemned, one, live])
    assert [live] == await mark(index, [live], unseen_since=clock.now)


async def test_more_digests_than_a_statement_takes(index: Index, clock: Clock) -> None:
    """Every verb takes any number of digests."""
    many = digests(2500)
    await add(index, many[:2000])
    assert many[2000:] == await index.missing(A, many)
    async with index.transaction() as transaction:
        assert {digest: row(digest).size for digest in many[:2000]} == await transaction.sizes(A, many)
        await transaction.refresh(A, many)
        assert many[:2000] == await transaction.condemn(A, many, unseen_since=clock.now + 1)
        assert many[:2000] == await transaction.condemned(A, many)
        await transaction.forget_chunks(A, many)
        assert [] == await transaction.condemned(A, many)


async def test_namespaces_do_not_share(index: Index, clock: Clock) -> None:
    """The namespace is part of every key."""
    (digest,) = digests(1)
    await add(index, [digest])
    kept = await record(index, "name", digest)
    assert [digest] == await index.missing(B, [digest])
    assert [] == await mark(index, [digest], unseen_since=clock.now + 1, namespace=B)
    async with index.transaction() as transaction:
        assert {} == await transaction.sizes(B, [digest])
        await transaction.forget_chunks(B, [digest])
        assert await transaction.remove_record(B, kept.id) is None
    assert [] == await index.missing(A, [digest])
    for reference in (Reference(id=kept.id), Reference(digest=digest), Reference(name="name")):
        assert (kept, None) == (await index.record(A, reference), await index.record(B, reference))
    assert ([kept], []) == (await index.records(A, limit=9), await index.records(B, limit=9))


async def test_new_record_says_what_it_was_given(index: Index, clock: Clock) -> None:
    """A new record has the given values and a new id; both of its times are now."""
    (digest,) = digests(1)
    added = await record(index, "näme", digest, size=3 << 40, kind=Kind.DIRECTORY)
    assert re.fullmatch(r"file_[0-9a-f]{32}", added.id)
    expected = Record(added.id, "näme", digest, 3 << 40, Kind.DIRECTORY, A, clock.now, clock.now)
    assert expected == added
    assert expected == await index.record(A, Reference(id=added.id))


async def test_same_name_kind_and_digest_is_the_same_record(index: Index, clock: Clock) -> None:
    """The record becomes the newest. Its id and the time of its creation stay."""
    (digest,) = digests(1)
    first = await record(index, "name", digest)
    clock.advance(seconds=1)
    again = await record(index, "name", digest)
    assert (first.id, first.created_at, clock.now) == (again.id, again.created_at, again.updated_at)
    assert [again] == await index.records(A, limit=9)


async def test_other_name_kind_or_digest_is_another_record(index: Index) -> None:
    """Many records may share one digest, or one name."""
    one, two = digests(2)
    added = [
        await record(index, "name", one),
        await record(index, "other", one),
        await record(index, "name", one, kind=Kind.DIRECTORY),
        await record(index, "name", two),
    ]
    assert added[::-1] == await index.records(A, limit=9)


async def test_the_record_that_was_stored_last_is_the_newest(index: Index, clock: Clock) -> None:
    """This is also true when the clock stops or is set back, and when the newest record was removed."""
    (digest,) = digests(1)
    first = await record(index, "a", digest)
    second = await record(index, "b", digest)
    clock.advance(seconds=-HOUR)
    third = await record(index, "a", digest)
    async with index.transaction() as transaction:
        await transaction.remove_record(A, third.id)
    fourth = await record(index, "c", digest)
    assert [fourth, second] == await index.records(A, limit=9)
    assert first.updated_at < second.updated_at
    page = await index.records_after(A, 0, limit=9)
    assert [second, fourth] == [found.record for found in page]
    assert 0 < page[0].position < page[1].position


async def test_a_jump_of_the_clock_stamps_only_what_is_stored_meanwhile(index: Index, clock: Clock) -> None:
    """Later records have the time of the clock again, and are newer all the same."""
    (digest,) = digests(1)
    clock.advance(seconds=9000 * HOUR)
    early = await record(index, "early", digest)
    clock.advance(seconds=-9000 * HOUR)
    late = await record(index, "late", digest)
    assert (clock.now, clock.now) == (late.created_at, late.updated_at)
    assert late.updated_at < early.updated_at
    assert [late, early] == await index.records(A, limit=9)
    assert late == await index.record(A, Reference(digest=digest))
    assert [late.id, early.id] == await index.ids_of_content(A, digest)


async def test_pages_follow_the_order_in_which_records_were_stored(index: Index, clock: Clock) -> None:
    """Every record is on one page, whatever the clock said when it was stored."""
    added = []
    for number, seconds in enumerate((0, HOUR, -2 * HOUR, MINUTE)):
        clock.advance(seconds=seconds)
        added.append(await record(index, f"name{number}", chunk_digest(b"%d" % number)))
    seen: list[Record] = []
    while page := await index.records(A, limit=1, before=seen[-1].updated_at if seen else None):
        seen += page
    assert added[::-1] == seen


async def test_a_reader_by_position_sees_what_is_stored_meanwhile(index: Index) -> None:
    """A record that is stored again comes at the end again. Graphs are included."""
    added = [await record(index, f"name{number}", chunk_digest(b"%d" % number)) for number in range(3)]
    await use(index, Use(added[2].id, "p", "p:v1", is_graph=True))
    first = await index.records_after(A, 0, limit=2)
    assert added[:2] == [found.record for found in first]
    again = await record(index, "name0", chunk_digest(b"0"))
    rest = await index.records_after(A, first[-1].position, limit=9)
    assert [added[2], again] == [found.record for found in rest]
    assert [] == await index.records_after(A, rest[-1].position, limit=9)


async def test_the_newest_position_of_each_namespace(index: Index) -> None:
    """It is that of its last record. A namespace without records has none."""
    assert {} == await index.newest_positions()
    (digest,) = digests(1)
    first = await record(index, "one", digest)
    await record(index, "two", digest)
    await record(index, "one", digest, namespace=B)
    await add(index, [digest], namespace="c")
    for namespace in (A, B):
        positions = [found.position for found in await index.records_after(namespace, 0, limit=10)]
        assert positions[-1] == (await index.newest_positions())[namespace]
    assert {A, B} == (await index.newest_positions()).keys()
    before = await index.newest_positions()
    await record(index, "one", first.digest)
    assert before[A] < (await index.newest_positions())[A]


async def test_chunk_rows_come_in_the_order_of_their_digests(index: Index, clock: Clock) -> None:
    """Live and condemned ones, in pages, with what a collection needs to know."""
    many = sorted(digests(5))
    frame = chunk_digest(b"frame")
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [row(digest)._replace(frame_digest=frame) for digest in many])
        await transaction.add_chunks(B, [row(many[0])])
    await mark(index, many[1:2], unseen_since=clock.now + 1)
    states = await index.chunk_rows(A, limit=2)
    states += await index.chunk_rows(A, states[-1].row.digest, limit=9)
    assert [row(digest)._replace(frame_digest=frame) for digest in many] == [state.row for state in states]
    assert [True, False, True, True, True] == [state.is_live for state in states]
    assert {clock.now} == {state.last_seen for state in states}
    assert [] == await index.chunk_rows(A, many[-1], limit=9)
    assert [A, B] == await index.namespaces()


async def test_a_frame_digest_is_set_where_there_is_none(index: Index) -> None:
    """It belongs to a frame, so rows of other sizes and rows that have one keep what they have."""
    one, two, three = sorted(digests(3))
    frame, other = chunk_digest(b"frame"), chunk_digest(b"other")
    await add(index, [one, two])
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [row(three)._replace(frame_digest=frame)])
        changed = [row(one), row(two)._replace(stored_size=1), row(three)]
        await transaction.set_frame_digests(A, [found._replace(frame_digest=other) for found in changed])
    expected = [other, None, frame]
    assert expected == [state.row.frame_digest for state in await index.chunk_rows(A, limit=9)]


async def test_a_base_is_needed_while_the_chunk_above_has_a_row(index: Index, clock: Clock) -> None:
    """Also while that row is condemned, because its frame is still there."""
    base, above, other = digests(3)
    await add(index, [base, above, other])
    async with index.transaction() as transaction:
        await transaction.add_bases(A, [Base(above, base)])
        await transaction.add_bases(A, [Base(above, base)])
    await mark(index, [above], unseen_since=clock.now + 1)
    async with index.transaction() as transaction:
        assert [base] == await transaction.needed_bases(A, [other, base, above])
        assert [] == await transaction.needed_bases(B, [base])
        await transaction.forget_chunks(A, [above])
        await transaction.add_chunks(A, [row(above)])
        assert [] == await transaction.needed_bases(A, [base])


async def test_policies_and_states_are_kept_for_each_namespace(index: Index) -> None:
    """The last one counts. None, and a policy without limits, remove them."""
    async with index.transaction() as transaction:
        for number in (1, 2):
            await transaction.set_task_state(A, "check", {"cursor": number})
            await transaction.set_policy(A, Policy(keep_last=number, older_than_seconds=DAY))
        await transaction.set_task_state(A, "collect", {})
    assert ({"cursor": 2}, {}, None) == (
        await index.task_state(A, "check"),
        await index.task_state(A, "collect"),
        await index.task_state(B, "check"),
    )
    assert (Policy(2, DAY), Policy()) == (await index.policy(A), await index.policy(B))
    async with index.transaction() as transaction:
        await transaction.set_task_state(A, "check", None)
        await transaction.set_policy(A, Policy())
    assert (None, Policy()) == (await index.task_state(A, "check"), await index.policy(A))


async def test_one_block_has_a_lock(open_shared: OpenIndex) -> None:
    """Of one process or of several, until it ends. Locks of other names are free."""
    index, other = await open_shared(), await open_shared()
    async with (
        index.try_lock("task") as first,
        other.try_lock("task") as second,
        index.try_lock("task") as third,
        other.try_lock("another") as fourth,
    ):
        assert [True, False, False, True] == [first, second, third, fourth]
    async with other.try_lock("task") as again:
        assert again


async def test_an_index_counts_the_records_that_are_stored(open_shared: OpenIndex) -> None:
    """Its id stays. The count grows when a record is stored, also again, and not when one is removed."""
    index = await open_shared()
    before = await index.version()
    (digest,) = digests(1)
    for _ in range(2):
        kept = await record(index, "name", digest)
    async with index.transaction() as transaction:
        await transaction.remove_record(A, kept.id)
        await transaction.add_chunks(A, [row(digest)])
    after = await (await open_shared()).version()
    assert before is not None
    assert before._replace(commits=before.commits + 2) == after


async def test_reference_means_the_newest_record(index: Index) -> None:
    """A record is found by id, digest, name, or digest and name. The answer is None if there is none."""
    one, two, three = digests(3)
    await record(index, "name", one)
    newest_of_one = await record(index, "other", one)
    newest_of_name = await record(index, "name", two)
    path = await record(index, "name", one)
    assert newest_of_name == await index.record(A, Reference(id=newest_of_name.id))
    assert path == await index.record(A, Reference(digest=one))
    assert path == await index.record(A, Reference(name="name"))
    assert newest_of_one == await index.record(A, Reference(digest=one, name="other"))
    for absent in (
        Reference(id="file_" + "0" * 32),
        Reference(digest=three),
        Reference(name="x"),
        Reference(digest=two, name="x"),
    ):
        assert await index.record(A, absent) is None


async def test_records_come_in_pages(index: Index) -> None:
    """Records come from the newest to the oldest. `before` continues after the end of a page."""
    added = [await record(index, f"name{number}", chunk_digest(b"%d" % number)) for number in range(5)]
    newest_first = added[::-1]
    page = await index.records(A, limit=2)
    assert newest_first[:2] == page
    assert newest_first[2:4] == await index.records(A, limit=2, before=page[-1].updated_at)
    assert [] == await index.records(A, limit=2, before=newest_first[-1].updated_at)


async def test_removed_record_is_gone(index: Index) -> None:
    """It is returned once. Others of the same name stay."""
    one, two = digests(2)
    stays, goes = await record(index, "name", one), await record(index, "name", two)
    async with index.transaction() as transaction:
        assert goes == await transaction.remove_record(A, goes.id)
        assert await transaction.remove_record(A, goes.id) is None
    assert stays == await index.record(A, Reference(name="name"))


async def test_ids_of_a_content_are_those_of_all_its_records(index: Index) -> None:
    """Of every name, the newest first, in one namespace."""
    one, two = digests(2)
    older, _, newer = [await record(index, name, digest) for name, digest in (("a", one), ("b", two), ("c", one))]
    assert [newer.id, older.id] == await index.ids_of_content(A, one)
    assert [] == await index.ids_of_content(B, one)


async def use(index: Index, *uses: Use, namespace: str = A) -> None:
    """Add uses."""
    async with index.transaction() as transaction:
        await transaction.add_uses(namespace, uses)


async def uses_of(index: Index, file_id: str, *, namespace: str = A) -> list[Use]:
    """Return the uses of a record."""
    async with index.transaction() as transaction:
        return await transaction.uses_of(namespace, file_id)


async def test_uses_are_those_of_existing_records(index: Index) -> None:
    """A use of a record that does not exist is skipped. One that is added again is replaced. Namespaces do not share."""
    stored = await record(index, "a.bin", digests(1)[0])
    first, second = Use(stored.id, "p2", "b:v1"), Use(stored.id, "p1", "c:v1")
    await use(index, Use(stored.id, "p2", "a:v1", is_graph=True), Use("file_" + "0" * 32, "p2", "b:v1"))
    await use(index, first, second)
    await use(index, Use(stored.id, "p3", "a:v1"), namespace=B)

    assert [second, first] == await index.uses(A)
    assert [first, second] == await uses_of(index, stored.id)
    assert [] == await index.uses(B)
    other = await record(index, "b.bin", digests(1)[0])
    third = Use(other.id, "p0", "d:v1")
    await use(index, third)
    assert [second, first] == await index.uses(A, {stored.id, "file_" + "0" * 32})
    assert ([third], []) == (await index.uses(A, {other.id}), await index.uses(A, ()))


async def test_removed_uses_are_gone(index: Index) -> None:
    """Those of a pipeline, whose records stay, and those of a record that is removed."""
    one, two = [await record(index, name, digests(1)[0]) for name in ("a.bin", "b.bin")]
    await use(index, *(Use(stored.id, pipeline, "p:v1") for stored in (one, two) for pipeline in ("p1", "p2")))
    async with index.transaction() as transaction:
        await transaction.remove_uses(A, "p1")
        await transaction.remove_uses(A, "unknown")
        await transaction.remove_record(A, one.id)

    assert [Use(two.id, "p2", "p:v1")] == await index.uses(A)
    assert [two] == await index.records(A, limit=10)


async def test_graphs_are_not_listed(index: Index) -> None:
    """They are records like others, and found by every reference, but no files of a user."""
    file, graph, newest = [await record(index, name, digests(1)[0]) for name in ("a.bin", "p.graph", "b.bin")]
    await use(index, Use(graph.id, "p1", "p:v1", is_graph=True), Use(file.id, "p1", "p:v1"))

    assert [newest, file] == await index.records(A, limit=2)
    assert [file] == await index.records(A, limit=2, before=newest.updated_at)
    assert [newest, graph, file] == await index.records(A, limit=3, with_graphs=True)
    for reference in (Reference(id=graph.id), Reference(name="p.graph"), Reference(digest=graph.digest, name="p.graph")):
        assert graph == await index.record(A, reference)


async def test_token_belongs_to_one_namespace(index: Index) -> None:
    """A token that is added again belongs to the new namespace. An unknown token belongs to none."""
    token = token_digest("secret")
    for namespace in (A, B):
        async with index.transaction() as transaction:
            await transaction.add_token(token, namespace=namespace, label="laptop")
        found = await index.token(token)
        assert namespace == (found.namespace if found else None)
    assert await index.token(token_digest("guess")) is None


async def test_tokens_are_listed_oldest_first(index: Index, clock: Clock) -> None:
    """The list has labels and times, and never the token itself."""
    first, second = token_digest("first"), token_digest("second")
    async with index.transaction() as transaction:
        await transaction.add_token(second, namespace=A, label="one")
        clock.advance(seconds=1)
        await transaction.add_token(first, namespace=B, label="two")
    listed = [TokenRow(second, A, "one", clock.now - 1_000_000), TokenRow(first, B, "two", clock.now)]
    assert listed == await index.tokens()


async def test_token_keeps_scope_prefix_and_expiry(index: Index, clock: Clock) -> None:
    """A token has all scopes if none was given. Added again, it has what was given then."""
    token = token_digest("secret")
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="")
    assert TokenRow(token, A, "", clock.now, Scope.ADMIN, "", None, None) == await index.token(token)
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="", scope=Scope.READ, prefix="team/", expires_at=clock.now + 1)
    assert TokenRow(token, A, "", clock.now, Scope.READ, "team/", clock.now + 1, None) == await index.token(token)


async def test_use_of_a_token_is_noted_once_a_minute(index: Index, clock: Clock) -> None:
    """Each process may note it; a clock that was set back does not stop this. Tokens that do not exist are skipped."""
    token = token_digest("secret")
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="")
    await index.note_token_uses([token, token_digest("removed")])
    first = clock.now
    for seconds, used_at in ((59, first), (2, first + 61_000_000), (-3600, first - 3539_000_000)):
        clock.advance(seconds=seconds)
        await index.note_token_uses([token])
        assert [used_at] == [row.used_at for row in await index.tokens()]
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="changed")
    assert first - 3539_000_000 == (await index.tokens())[0].used_at


async def test_use_of_a_token_waits_for_nobody(open_shared: OpenIndex) -> None:
    """Neither for a write of this process nor for one of another. Then it is free again for others."""
    index, other = await open_shared(), await open_shared()
    token = token_digest("secret")
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="")
        with pytest.raises(Busy):
            await index.note_token_uses([token])
        with pytest.raises(Busy):
            await other.note_token_uses([token])
    await other.note_token_uses([token])
    async with index.transaction() as transaction:
        assert await transaction.remove_token(token)


async def test_prefix_hides_other_names(index: Index, clock: Clock) -> None:
    """In every question that has one. Characters that SQL has a meaning for have none here."""
    for name, content in (("logs_1", b"a"), ("logs_1", b"b"), ("logsx1", b"a"), ("%", b"a"), ("éa", b"a"), ("e", b"b")):
        clock.advance(seconds=1)
        await record(index, name, chunk_digest(content))
    by_digest = Reference(digest=chunk_digest(b"a"))
    for prefix, names in (("logs_", ["logs_1", "logs_1"]), ("%", ["%"]), ("é", ["éa"]), ("logs", ["logsx1", "logs_1", "logs_1"])):
        assert names == [each.name for each in await index.records(A, limit=10, prefix=prefix)]
        found = await index.record(A, by_digest, prefix=prefix)
        assert names[0] == (found.name if found else None)
        versions = await index.versions(A, by_digest, limit=10, prefix=prefix)
        assert sorted(set(names)) == sorted(each.name for each in versions)
        assert len(versions) == await index.version_count(A, by_digest, prefix=prefix)
        with tempfile.TemporaryFile() as file:
            await index.write_listing(A, file, ListingGrowth(), prefix=prefix)
            file.seek(0)
            assert names == [json.loads(line)["name"] for line in file]
    for reference in (Reference(name="e"), Reference(id=(await index.records(A, limit=1))[0].id)):
        assert await index.record(A, reference, prefix="logs") is None
        assert [] == await index.versions(A, reference, limit=10, prefix="logs")


async def test_removed_token_is_a_strangers(index: Index) -> None:
    """A removed token is unknown. The removal says whether there was one."""
    token = token_digest("secret")
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="")
        assert await transaction.remove_token(token)
        assert not await transaction.remove_token(token)
    assert await index.token(token) is None


async def test_transaction_is_seen_as_a_whole(index: Index) -> None:
    """Readers see nothing of it before it ends, and all of it after that."""
    one, two = digests(2)
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [row(one)])
        assert [one, two] == await index.missing(A, [one, two])
        await transaction.add_chunks(A, [row(two)])
    assert [] == await index.missing(A, [one, two])


async def test_failed_transaction_is_rolled_back(index: Index) -> None:
    """An error in its block undoes all of it. The next transaction works."""
    (digest,) = digests(1)

    async def fail() -> None:
        async with index.transaction() as transaction:
            await transaction.add_chunks(A, [row(digest)])
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert [digest] == await index.missing(A, [digest])
    await add(index, [digest])
    assert [] == await index.missing(A, [digest])


async def test_cancelled_transaction_is_whole_or_nothing(open_shared: OpenIndex) -> None:
    """After a cancel at any await, nothing of it stays, and no transaction is open in this process or in another one."""
    index, other = await open_shared(), await open_shared()
    both = digests(2)

    async def add_both() -> None:
        async with index.transaction() as transaction:
            for digest in both:
                await transaction.add_chunks(A, [row(digest)])
                assert digest in await transaction.sizes(A, both)

    places = 0
    async for _ in cancelled_at_every_await(add_both):
        places += 1
        assert await other.missing(A, both) in ([], both)
        async with other.transaction() as transaction:
            await transaction.forget_chunks(A, both)
    assert places >= 4


async def test_transactions_of_one_index_wait_for_each_other(index: Index) -> None:
    """They run one after the other, in the order in which they began to wait."""
    order = []

    async def write(number: int) -> None:
        async with index.transaction() as transaction:
            order.append(number)
            await transaction.add_chunks(A, [row(chunk_digest(b"%d" % number))])
            order.append(number)

    await asyncio.gather(*(write(number) for number in range(5)))
    assert [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] == order


async def test_transaction_excludes_other_processes(open_shared: OpenIndex) -> None:
    """A waiting writer continues when the other has ended, and sees what that one wrote."""
    index, other = await open_shared(), await open_shared()
    (digest,) = digests(1)

    async def read_in_turn() -> dict[Digest, int]:
        async with other.transaction() as transaction:
            return await transaction.sizes(A, [digest])

    async with index.transaction() as transaction:
        waiting = asyncio.create_task(read_in_turn())
        await transaction.add_chunks(A, [row(digest)])
    assert {digest: row(digest).size} == await waiting


@pytest.mark.slow
@pytest.mark.parametrize("same_index", [True, False])
async def test_busy_after_the_time_to_wait(open_shared: OpenIndex, same_index: bool) -> None:  # noqa: FBT001  # by pytest
    """A writer that waits too long for another one, in any process, fails with an error that can be retried."""
    index = await open_shared(busy_seconds=0.05)
    holder = index if same_index else await open_shared()
    async with holder.transaction():
        with pytest.raises(Busy) as caught:
            await add(index, digests(1))
    assert caught.value.retryable
    await add(index, digests(1))


async def test_cancel_is_heard_while_another_process_writes(open_shared: OpenIndex) -> None:
    """A cancelled task ends at once, although another process still writes. The other tasks continue."""
    index, other = await open_shared(busy_seconds=600), await open_shared()
    async with other.transaction():
        waiting = asyncio.create_task(add(index, digests(1)))
        await asyncio.wait([waiting], timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await add(index, digests(1))


async def test_what_was_committed_is_there_when_opened_again(open_shared: OpenIndex) -> None:
    """Closing loses nothing. A second close does nothing."""
    index = await open_shared()
    (digest,) = digests(1)
    await add(index, [digest])
    kept = await record(index, "name", digest)
    for _ in range(2):
        await index.close()
    again = await open_shared()
    assert ([], kept) == (await again.missing(A, [digest]), await again.record(A, Reference(name="name")))


async def test_compacting_loses_nothing(open_shared: OpenIndex) -> None:
    """Also while another process has the index open."""
    index, other = await open_shared(), await open_shared()
    many = digests(3000)
    await add(index, many)
    kept = await record(index, "name", many[0])
    async with index.transaction() as transaction:
        await transaction.forget_chunks(A, many[1:])
    await index.compact()
    await other.compact()
    assert (many[1:], kept) == (await other.missing(A, many), await other.record(A, Reference(id=kept.id)))


async def test_close_rolls_back_an_open_transaction(open_shared: OpenIndex) -> None:
    """A transaction that is open when the index is closed fails, and leaves nothing."""
    index, other = await open_shared(), await open_shared()
    (digest,) = digests(1)

    async def close_inside() -> None:
        async with index.transaction() as transaction:
            await transaction.add_chunks(A, [row(digest)])
            await index.close()

    with pytest.raises(RuntimeError):
        await close_inside()
    assert [digest] == await other.missing(A, [digest])
    await add(other, [digest])


async def test_opened_by_many_at_once(open_shared: OpenIndex) -> None:
    """All of them see one index, although only one has made it."""
    indexes = await asyncio.gather(*(open_shared() for _ in range(8)))
    (digest,) = digests(1)
    await add(indexes[0], [digest])
    assert [[]] * 8 == [await index.missing(A, [digest]) for index in indexes]


async def test_the_secret_is_made_once(open_shared: OpenIndex) -> None:
    """The first caller makes it, also if several call at once. All have the same secret from then on."""
    first, second = await open_shared(), await open_shared()
    (secret, *others) = await asyncio.gather(first.secret(), second.secret(), first.secret())
    assert [secret, secret] == others
    assert 32 == len(secret)
    assert secret == await (await open_shared()).secret()


async def test_signing_keys_are_replaced_and_the_secret_stays(open_shared: OpenIndex) -> None:
    """The first key is made from the secret. A reader sees the keys of the last transaction, which may be rolled back."""
    first, second = await open_shared(), await open_shared()
    keys = await first.signing_keys()
    assert SigningKeys.first(await second.secret()) == keys
    for number, until in ((1, 90), (2, 10)):
        rotated = keys.rotated(bytes([number]) * 32, now=50, until=until)
        async with first.transaction() as transaction:
            assert keys == await transaction.signing_keys()
            await transaction.set_signing_keys(rotated)
        assert rotated == await second.signing_keys()
        keys = rotated
    assert keys.secret == await second.secret()
    with pytest.raises(KeyError):
        async with second.transaction() as transaction:
            await transaction.set_signing_keys(keys.rotated(b"3" * 32, now=50, until=90))
            raise KeyError
    assert keys == await first.signing_keys()


async def test_sizes_of_live_rows_are_read_without_refreshing_them(index: Index, clock: Clock) -> None:
    """A check must not keep chunks alive: it reads sizes, and the last-seen times stay."""
    live, condemned, absent = digests(3)
    await add(index, [live, condemned])
    clock.advance(seconds=HOUR + MINUTE)
    await mark(index, [condemned], unseen_since=clock.now)
    assert {live: row(live).size} == await index.sizes(A, [live, condemned, absent])
    assert [live] == await mark(index, [live], unseen_since=clock.now)


async def test_a_sound_index_has_no_problems(index: Index) -> None:
    """What this program writes is valid, in every table."""
    (digest,) = digests(1)
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [ChunkRow(digest, 9, 7, digest), ChunkRow(chunk_digest(b"raw"), 9, 17)])
    await record(index, "a name", digest)
    assert [] == await index.problems()


async def test_the_last_removals_are_known(index: Index, clock: Clock) -> None:
    """A commit looks only at what was removed since it looked. After many removals, nobody knows all of them."""
    asked = digests(4)
    await add(index, asked)
    before, late = await index.removals(A), clock.now + 1
    assert (before, set()) == await index.removed_since(A, before)
    async with index.transaction() as transaction:
        await transaction.condemn(A, asked[:2], unseen_since=late)
        await transaction.forget_chunks(A, asked[2:3])
        assert set(asked[:3]) == (await transaction.removed_since(A, before)).digests
    after, removed = await index.removed_since(A, before)
    assert (await index.removals(A), set(asked[:3])) == (after, removed)
    assert set(asked[2:3]) == (await index.removed_since(A, after - 1)).digests
    assert (0, set()) == await index.removed_since(B, 0)
    for _ in range(20):
        await add(index, asked)
        await mark(index, asked[3:], unseen_since=late)
    assert (after + 20, None) == await index.removed_since(A, before)
    assert set(asked[3:]) == (await index.removed_since(A, after + 19)).digests


async def test_refreshed_rows_are_those_that_are_live(index: Index) -> None:
    """A row is returned as it was added. One that is condemned or of another namespace is left out."""
    rows = [ChunkRow(chunk_digest(bytes([number])), 1000 + number, 500, chunk_digest(b"frame")) for number in range(3)]
    async with index.transaction() as transaction:
        await transaction.add_chunks("a", rows)
        await transaction.condemn("a", [rows[2].digest], unseen_since=1 << 62)
    asked = [row.digest for row in rows]
    assert sorted(rows[:2]) == sorted(await index.refreshed_rows("a", asked))
    assert [] == await index.refreshed_rows("b", asked)


async def test_quotas_are_kept_for_namespaces_and_tokens(index: Index) -> None:
    """The last one counts, one without limits is none, and that of a token ends with the token."""
    token = token_digest("token")
    async with index.transaction() as transaction:
        await transaction.add_token(token, namespace=A, label="")
        for number in (1, 2):
            await transaction.set_quota(A, Quota(size=number, connections=3))
        await transaction.set_quota(A, Quota(requests_per_second=5), token=token)
        await transaction.set_quota(EVERYBODY, Quota(name_count=7))
        await transaction.set_quota(B, Quota(uploads=1))
    everybody, a = QuotaRow(EVERYBODY, None, Quota(name_count=7)), QuotaRow(A, None, Quota(size=2, connections=3))
    of_token, b = QuotaRow(A, token, Quota(requests_per_second=5)), QuotaRow(B, None, Quota(uploads=1))
    assert [everybody, a, of_token, b] == await index.quotas()
    assert [A, B] == await index.namespaces()
    async with index.transaction() as transaction:
        await transaction.remove_token(token)
        await transaction.set_quota(B, Quota())
    assert [everybody, a] == await index.quotas()


async def test_usage_counts_records_names_and_chunks(index: Index) -> None:
    """A record that is stored again, and a chunk whose row is replaced, count once. Namespaces count apart."""
    one, two = digests(2)
    assert NamespaceUsage(A) == await index.usage(A)
    await add(index, [one, two])
    await add(index, [one], namespace=B)
    for name, digest in (("x", one), ("x", two), ("y", one), ("x", one)):
        await record(index, name, digest)

    stored_size = row(one).stored_size + row(two).stored_size
    assert NamespaceUsage(A, 3, 2, 21, 0, 2, stored_size) == await index.usage(A)
    async with index.transaction() as transaction:
        await transaction.add_chunks(A, [row(one)._replace(stored_size=1)])
        assert NamespaceUsage(A, 3, 2, 21, 0, 2, row(two).stored_size + 1) == await transaction.usage(A)
    assert [(A, 2), (B, 1)] == [(usage.namespace, usage.chunk_count) for usage in await index.usages()]


async def test_usage_counts_a_condemned_row_until_it_is_removed(index: Index) -> None:
    """Its frame is on the disk until then."""
    [one] = digests(1)
    await add(index, [one])
    await mark(index, [one], unseen_since=1 << 62)
    assert NamespaceUsage(A, chunk_count=1, stored_size=row(one).stored_size) == await index.usage(A)
    async with index.transaction() as transaction:
        await transaction.forget_chunks(A, [one])
    assert NamespaceUsage(A) == await index.usage(A)


async def test_usage_loses_a_name_with_its_last_record(index: Index) -> None:
    """Another version of a name keeps it."""
    one, two = digests(2)
    kept = [await record(index, "x", digest) for digest in (one, two)]
    for left, each in zip((1, 0), kept, strict=True):
        async with index.transaction() as transaction:
            await transaction.remove_record(A, each.id)
        assert NamespaceUsage(A, left, left, 7 * left) == await index.usage(A)


async def test_a_character_that_no_name_has_finds_nothing(index: Index) -> None:
    """A revision and the place of a page come from a URL, and may have any character."""
    await record(index, "model", digests(1)[0])
    for text in ("\0", "model\0", "\0model"):
        assert await index.commit(A, "model", text) is None
        assert await index.commit(A, text) is None
        assert await index.history(A, text, limit=1) is None
        assert await index.record(A, Reference(name=text)) is None
        assert [] == await index.versions(A, Reference(name=text), limit=1)
        assert [] == await index.labels(A, text)
        assert [] == await index.records(A, limit=1, prefix=text)
        assert await index.owner_namespace(text) is None
        assert [] == (await index.list_names(A, search=text, limit=1)).heads
        assert [] == (await index.list_names(A, owner=text, limit=1)).heads
    assert ["model"] == [name for name, _ in (await index.list_names(A, after="\0", limit=1)).heads]


async def test_the_labels_of_a_record(index: Index) -> None:
    """Those at its commits, in the order of their names, and none of other versions, names and namespaces."""
    one, two, other = [await record(index, name, digest) for name, digest in zip(("a", "a", "b"), digests(3), strict=True)]
    async with index.transaction() as transaction:
        for name, revision, label in (("a", "~1", "v1"), ("a", None, "v2"), ("a", None, "new"), ("b", None, "v3")):
            commit = await index.commit(A, name, revision)
            assert commit is not None
            await transaction.set_label(A, name, Label(label, LabelKind.TAG, commit.id, 0))
    assert [["v1"], ["new", "v2"], ["v3"]] == [await index.labels_of(A, each.id) for each in (one, two, other)]
    assert ([], []) == (await index.labels_of(B, one.id), await index.labels_of(A, "file_" + "0" * 32))
