"""What an index counts of each namespace is what its rows add up to, whatever is written to it and in whichever order."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.records import Kind
from filestore.repository.index.protocol import ChunkRow, NamespaceUsage
from filestore.repository.index.sqlite import SqliteIndex, open_index

DIGESTS = [chunk_digest(b"%d" % number) for number in range(5)]
NAMESPACES = ("a", "b")

digest_lists = st.lists(st.sampled_from(DIGESTS), unique=True)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), digest_lists, st.integers(1, 1000)),
        st.tuples(st.just("condemn"), digest_lists, st.integers(0, 1)),
        st.tuples(st.just("forget"), digest_lists, st.just(0)),
        st.tuples(st.just("see"), digest_lists, st.just(0)),
        st.tuples(st.just("record"), digest_lists, st.integers(0, 3)),
        st.tuples(st.just("remove"), digest_lists, st.integers(0, 20)),
        st.tuples(st.just("fail"), digest_lists, st.integers(1, 1000)),
    ),
    max_size=20,
)


class _Failed(Exception):
    """Rolls a transaction back."""


async def take(index: SqliteIndex, namespace: str, step: tuple[str, list[object], int]) -> None:
    """Do one step in a transaction of its own."""
    verb, digests, number = step
    chosen = [digest for digest in DIGESTS if digest in digests]
    records = await index.records(namespace, limit=100)
    async with index.transaction() as transaction:
        if verb in ("add", "fail"):
            await transaction.add_chunks(namespace, [ChunkRow(digest, 2000, number) for digest in chosen])
        if verb == "fail":
            raise _Failed
        if verb == "condemn":
            await transaction.condemn(namespace, chosen, unseen_since=1 << 60)
        if verb == "forget":
            await transaction.forget_chunks(namespace, chosen)
        if verb == "see":
            await transaction.refresh(namespace, chosen)
        if verb == "record":
            for place, digest in enumerate(chosen):
                await transaction.add_record(
                    namespace, name=f"name-{number}", digest=digest, size=place * number, kind=Kind.FILE, manifest_size=digest[0]
                )
        if verb == "remove" and records:
            await transaction.remove_record(namespace, records[number % len(records)].id)


async def added_up(index: SqliteIndex, namespace: str) -> NamespaceUsage:
    """Add up the rows of a namespace."""
    rows = [state.row for state in await index.chunk_rows(namespace, limit=1000)]
    records = [found.record for found in await index.records_after(namespace, 0, limit=1000)]
    return NamespaceUsage(
        namespace,
        len(records),
        len({record.name for record in records}),
        sum(record.size for record in records),
        sum(record.digest[0] for record in records),
        len(rows),
        sum(row.stored_size for row in rows),
    )


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(NAMESPACES), steps), max_size=4))
def test_the_usage_is_what_the_rows_add_up_to(work: list[tuple[str, list[tuple[str, list[object], int]]]]) -> None:
    """Transactions that are rolled back count nothing, and each namespace counts its own rows only."""

    async def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            index = await open_index(Path(folder) / "index")
            for namespace, each in work:
                for step in each:
                    try:
                        await take(index, namespace, step)
                    except _Failed:
                        continue
            for namespace in NAMESPACES:
                assert await added_up(index, namespace) == await index.usage(namespace)
            assert [] == await index.problems()
            await index.close()

    asyncio.run(check())
