"""Choose the stored files in which the chunks of a file are looked for, as many as can be read for one page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import NamedTuple

from filestore.core.digest import Digest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import Busy, InvalidManifest, NotFound
from filestore.http.server.manifests import Layout, SharedManifests
from filestore.repository.local import LocalRepository
from filestore.transfer.siblings import version_free

CANDIDATES_LIMIT = 200
"""The most files with different content in which the chunks of one file are looked for."""
READ_LIMIT = 64 << 20
"""Bytes of manifests after which no further one is read."""
_VERSIONS_LIMIT = 1000
_VERSIONS_COMPARED = 100
_NAMES_LIMIT = 50
_RECORDS_LIMIT = 1000
_STEM_MIN = 3
"""Letters of the shortest text by which similar names are looked for."""


class Candidates(NamedTuple):
    """The files in which the chunks of a file are looked for, and the file itself."""

    records: list[Record]
    """In the order in which they were stored. Of several with the same content, one is here: an earlier version of the name if
    there is one, or else what was stored first.
    """
    by_priority: list[int]
    """The places in `records` of those whose manifests are read, the most promising first. The file itself is not one of them."""
    version_counts: list[int]
    """How many of the chosen versions have the content of each of `records`, without the file itself."""
    rank: int
    """The place of the file itself in `records`."""
    total: int | None
    """How many versions are stored in all. None if the token does not see all of them."""


async def choose_candidates(repository: LocalRepository, record: Record) -> Candidates:
    """Choose at most `CANDIDATES_LIMIT` files: other versions of the name, then similar names, then what was stored last.

    Raises StorageError.
    """

    def preference(found: Record) -> tuple[bool, bool, tuple[int, str]]:
        return _moment(found) > _moment(record), found.full_name != record.full_name, _moment(found)

    by_content: dict[Digest, Record] = {}
    ids: dict[Digest, set[str]] = {}
    async for found in _candidates(repository, record):
        if found.id != record.id:
            ids.setdefault(found.digest, set()).add(found.id)
            best = by_content.setdefault(found.digest, found)
            by_content[found.digest] = min(best, found, key=preference)
    chosen = list(by_content.values())[:CANDIDATES_LIMIT]
    records = sorted([record, *chosen], key=_moment)
    places = {each.id: place for place, each in enumerate(records)}
    total = None if repository.prefix else (await repository.kept()).record_count
    counts = [0 if each.id == record.id else len(ids[each.digest]) for each in records]
    return Candidates(records, [places[each.id] for each in chosen], counts, places[record.id], total)


async def read_layouts(
    manifests: SharedManifests, repository: LocalRepository, candidates: Candidates
) -> AsyncIterator[tuple[int, Layout | None]]:
    """Yield the place of each file with its layout, one after the other, until `READ_LIMIT` bytes were read.

    It yields None for a file whose manifest is damaged. Those that were removed meanwhile are left out.
    """
    left = READ_LIMIT
    for place in candidates.by_priority:
        if left <= 0:
            return
        try:
            async with manifests.reading(repository, candidates.records[place].digest) as layout:
                left -= len(layout.manifest.encoded)
                yield place, layout
        except NotFound:
            continue
        except InvalidManifest:
            yield place, None
        except Busy:
            # The others would wait as long, one after the other.
            yield place, None
            return


async def _candidates(repository: LocalRepository, record: Record) -> AsyncIterator[Record]:
    page = await repository.versions(Reference.of_name(record.full_name), limit=_VERSIONS_LIMIT)
    near = sorted(page.records, key=lambda each: (_moment(each) > _moment(record), abs(each.created_at - record.created_at)))
    for found in near[:_VERSIONS_COMPARED]:
        yield found
    stem = PurePosixPath(version_free(record.name)).stem
    if len(stem) >= _STEM_MIN:
        for _, commit in (await repository.list_names(search=stem, limit=_NAMES_LIMIT)).heads:
            try:
                yield await repository.record(Reference(id=commit.file_id))
            except NotFound:
                continue  # removed since
    for found in await repository.records(limit=_RECORDS_LIMIT):
        yield found


def _moment(record: Record) -> tuple[int, str]:
    return record.created_at, record.id
