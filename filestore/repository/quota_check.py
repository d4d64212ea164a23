"""Refuse what would go beyond the quota of a namespace.

What counts is checked in the transaction that stores it. So several processes together never exceed a quota. Without a
limit, nothing is asked. What removes something never comes here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.quotas import Quota
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import QuotaExceeded
from filestore.repository.index.protocol import Index, Transaction

_STORED = "the stored bytes"
_SIZE = "the bytes of all files"
_NAMES = "the number of names"


def check_stored(namespace: str, quota: Quota, stored_size: int) -> None:
    """Raise QuotaExceeded if the namespace may not store so many bytes."""
    if quota.stored_size is not None:
        _check(_STORED, namespace, stored_size, quota.stored_size)


async def check_announced(index: Index, namespace: str, quota: Quota, sizes: Mapping[Digest, int]) -> None:
    """Raise QuotaExceeded if the namespace would store too much with frames of these sizes, as far as they are new."""
    if quota.stored_size is None:
        return
    used = (await index.usage(namespace)).whole_stored_size
    if used + sum(sizes.values()) > quota.stored_size:
        used += sum(sizes[digest] for digest in await index.unknown(namespace, list(sizes)))
        _check(_STORED, namespace, used, quota.stored_size)


async def check_not_full(index: Index, namespace: str, quota: Quota) -> None:
    """Raise QuotaExceeded if the namespace cannot take another byte of new content."""
    if quota.stored_size is None and quota.size is None:
        return
    usage = await index.usage(namespace)
    if quota.stored_size is not None:
        _check(_STORED, namespace, usage.whole_stored_size + 1, quota.stored_size)
    if quota.size is not None:
        _check(_SIZE, namespace, usage.size + 1, quota.size)


async def check_commit(index: Index, namespace: str, quota: Quota, manifest: Manifest, *, name: str) -> None:
    """Raise QuotaExceeded if a file cannot be added, before its manifest is written: what is refused would stay on the disk.

    A manifest of a record counts already, and may have to be written again.
    """
    if not _limits_records(quota):
        return
    if await index.record(namespace, Reference(digest=manifest.digest)) is not None:
        return
    usage = await index.usage(namespace)
    if quota.stored_size is not None:
        _check(_STORED, namespace, usage.whole_stored_size + len(manifest.encoded), quota.stored_size)
    if quota.size is not None and manifest.size:
        _check(_SIZE, namespace, usage.size + manifest.size, quota.size)
    names = quota.name_count
    if names is not None and usage.name_count >= names and await index.record(namespace, Reference.of_name(name)) is None:
        _check(_NAMES, namespace, usage.name_count + 1, names)


async def added_record(transaction: Transaction, namespace: str, quota: Quota, add: Callable[[], Awaitable[Record]]) -> Record:
    """Return the record that `add` adds in a transaction. Raises QuotaExceeded, which must roll it back.

    A record that is stored again adds nothing, and neither does the name of one that has other versions.
    """
    if not _limits_records(quota):
        return await add()
    before = await transaction.usage(namespace)
    record = await add()
    after = await transaction.usage(namespace)
    if quota.stored_size is not None and after.manifests_size > before.manifests_size:
        _check(_STORED, namespace, after.whole_stored_size, quota.stored_size)
    if quota.size is not None and after.size > before.size:
        _check(_SIZE, namespace, after.size, quota.size)
    if quota.name_count is not None and after.name_count > before.name_count:
        _check(_NAMES, namespace, after.name_count, quota.name_count)
    return record


def _limits_records(quota: Quota) -> bool:
    return any(limit is not None for limit in (quota.size, quota.stored_size, quota.name_count))


def _check(what: str, namespace: str, used: int, limit: int) -> None:
    if used > limit:
        raise QuotaExceeded(f"{what} of the namespace {namespace}", used, limit)
