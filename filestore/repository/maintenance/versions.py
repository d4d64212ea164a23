"""List the records that a reference covers: the versions of a name, or the records of a digest."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence

from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.selection import VersionRule
from filestore.repository.protocol import VersionPage

_RECORDS_AT_ONCE = 1000


async def list_versions(
    index: Index,
    namespace: str,
    reference: Reference,
    *,
    first: Record,
    rule: VersionRule | None,
    limit: int,
    before: int | None,
    prefix: str = "",
) -> VersionPage:
    """Return what `Repository.versions` returns. `first` is the record that `reference` names."""
    if not reference.means(first):
        reference = Reference.of_name(first.full_name)  # `name_otherwise`
    counted = reference
    if reference.id is not None or reference.revision is not None:
        found, counted = [first], Reference.of_name(first.full_name)
    elif rule is None:
        found = await index.versions(namespace, reference, limit=limit, before=before, prefix=prefix)
    else:
        found = await _selected(index, namespace, reference, rule, limit=limit, before=before, prefix=prefix)
    total = await index.version_count(namespace, counted, prefix=prefix)
    return VersionPage(found, total, await _users(index, namespace, {record.id for record in found}))


def summary(names: Sequence[str]) -> str:
    """Return names for an error, at most ten of them."""
    more = f" and {len(names) - 10} others" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


async def _selected(
    index: Index, namespace: str, reference: Reference, rule: VersionRule, *, limit: int, before: int | None, prefix: str
) -> list[Record]:
    now = time.time_ns() // 1000
    newer_count = 0
    if before is not None:
        newer_count = await index.version_count(namespace, reference, prefix=prefix)
        newer_count -= await index.version_count(namespace, reference, before=before, prefix=prefix)
    selected: list[Record] = []
    while len(selected) < limit:
        page = await index.versions(namespace, reference, limit=_RECORDS_AT_ONCE, before=before, prefix=prefix)
        if not page:
            break
        selected += rule.select(page, now=now, newer_count=newer_count)
        newer_count += len(page)
        before = page[-1].updated_at
    return selected[:limit]


async def _users(index: Index, namespace: str, file_ids: Container[str]) -> dict[str, str]:
    """Return, by the ids of records that pipelines need, the names of these pipelines."""
    users: dict[str, list[str]] = {}
    for use in await index.uses(namespace):
        if use.file_id in file_ids:
            users.setdefault(use.file_id, []).append(use.pipeline_name)
    return {file_id: summary(sorted(names)) for file_id, names in users.items()}
