"""List the stored files: what `filestore ls` prints without a name."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from enum import StrEnum
from fnmatch import translate
from typing import Any

from filestore.core.records import Kind, Record
from filestore.errors import LimitExceeded
from filestore.repository.protocol import Repository
from filestore_cli.context import CommandContext
from filestore_cli.text import for_display, in_units, minute

SHORT_DIGEST = 10
"""The number of digits of a digest that a person is shown. A revision needs 7 of them."""
STORED = "STORED (UTC)"
PATTERN_MARKS = "*?["
"""A text with one of these is a pattern, and not a name."""
_PAGE = 1000
_SORTED_LIMIT = 1_000_000
"""The most files that are sorted. They are all in memory."""


class Sort(StrEnum):
    """The order of a listing."""

    AGE = "age"
    NAME = "name"
    SIZE = "size"


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern for names, and not a reference: `:` and `@` are in no pattern."""
    return any(mark in text for mark in PATTERN_MARKS) and ":" not in text and "@" not in text


async def list_records(context: CommandContext, *, pattern: str | None, sort: Sort, limit: int | None) -> None:
    """Print the stored files whose names match `pattern`, some at a time."""
    async with context.repository(read_only=True) as repository:
        count = size = 0
        before = '{"files": ['
        async for records in _sorted(repository, pattern, sort, limit):
            if not count and not context.json:
                context.write(f"{'SIZE':>8}  {STORED:<16}  {'DIGEST':<{SHORT_DIGEST}}  NAME")
            count += len(records)
            size += sum(record.size for record in records)
            if context.json:
                context.write(before + ",\n".join(json.dumps(record.as_json()) for record in records))
                before = ","
            else:
                context.write("\n".join(map(_line, records)))
        if context.json:
            context.write(f'{before if not count else ""}], "repository": {json.dumps(repository.location)}}}')
        else:
            matching = "" if pattern is None else f" that match{'es' if count == 1 else ''} {for_display(pattern)}"
            files = f"{count} file{'' if count == 1 else 's'}"
            context.write(f"{files}{matching}, {in_units(size)} in {context.place(repository)}")


def stored_at(record: Record) -> str:
    """Return when a record was stored last, for a column whose header names the time zone."""
    return minute(record.updated_at).removesuffix(" UTC")


def short_digest(record: Record) -> str:
    """Return the first digits of a record's digest, which `@` and a name before them make a reference of."""
    return str(record.digest)[:SHORT_DIGEST]


def _line(record: Record) -> str:
    kind = "  (directory)" if record.kind is Kind.DIRECTORY else ""
    return f"{in_units(record.size):>8}  {stored_at(record):<16}  {short_digest(record)}  {for_display(record.full_name)}{kind}"


_KEYS: dict[Sort, Callable[[Record], Any]] = {
    Sort.NAME: lambda record: (record.full_name, -record.updated_at),
    Sort.SIZE: lambda record: (-record.size, record.full_name, -record.updated_at),
}


async def _sorted(repository: Repository, pattern: str | None, sort: Sort, limit: int | None) -> AsyncIterator[list[Record]]:
    """Yield the records that match, in this order, some at a time."""
    if sort is Sort.AGE:
        async for records in _pages(repository, pattern, limit):
            yield records
        return
    found: list[Record] = []
    async for records in _pages(repository, pattern, None):
        found += records
        if limit is not None:
            found = heapq.nsmallest(limit, found, key=_KEYS[sort])
        if len(found) > _SORTED_LIMIT:
            raise LimitExceeded("the number of files to sort without --limit", len(found), _SORTED_LIMIT)
    found.sort(key=_KEYS[sort])
    for start in range(0, len(found), _PAGE):
        yield found[start : start + _PAGE]


async def _pages(repository: Repository, pattern: str | None, limit: int | None) -> AsyncIterator[list[Record]]:
    """Yield the newest records that match, as they were at one moment, some at a time."""
    if pattern is None and limit is not None and limit <= _PAGE:
        if records := await repository.records(limit=limit):
            yield records
        return
    matches = re.compile("" if pattern is None else translate(pattern)).match
    records, count = [], 0
    async with aclosing(repository.iter_records()) as found:
        async for record in found:
            if not matches(record.full_name):
                continue
            records.append(record)
            count += 1
            if len(records) == _PAGE or count == limit:
                yield records
                records = []
            if count == limit:
                break
    if records:
        yield records
