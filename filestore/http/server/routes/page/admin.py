"""The page for administrators: the server, what each namespace uses and may use, collections and checks, and the tokens.

It shows, and changes nothing: tokens and quotas are made at the repository itself, by its operator. A token of the default
namespace sees all namespaces, as for the metrics; one of another namespace sees its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiohttp import web

from filestore.core.digest import Digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.quotas import EVERYBODY, NO_QUOTA, Quota
from filestore.errors import StorageError
from filestore.http.server.context import LIMITS, RequestContext
from filestore.http.server.routes.page.paging import Paging
from filestore.http.server.routes.page.rendering import render
from filestore.repository.given_tokens import given_tokens
from filestore.repository.index.protocol import Index, NamespaceUsage, QuotaRow, TokenRow
from filestore.repository.links import without_links
from filestore.repository.local import LocalRepository
from filestore.repository.maintenance.check import SCRUB_TASK
from filestore.repository.maintenance.hold import Hold, hold_of
from filestore.repository.maintenance.passes import Pass
from filestore.repository.maintenance.results import NO_NAMESPACE, LastResults, ResultKind, collection_results, results_of
from filestore.repository.stores.protocol import DiskState
from filestore.system.metrics import Gauge, StageTimes
from filestore.system.threads import in_disk_thread

NAMESPACES_LIMIT = 50
"""The most namespaces of a page."""
TOKENS_LIMIT = 200
"""The most tokens of a page."""

_SECOND = 1_000_000


class Process(NamedTuple):
    """What a process of the server noted last."""

    place: int
    started_at: int
    """In microseconds since 1970."""
    requests: int
    transfers: int
    connections: int
    memory: int
    """Resident memory in bytes. 0 where the system does not say it."""
    cpu_seconds: float


class Scratch(NamedTuple):
    """The disk of the folder in which this host keeps what is on its way to an object store, in bytes."""

    size: int
    used: int
    free: int


class MaintenanceRow(NamedTuple):
    """How collection, check and scrub of a namespace went."""

    namespace: str
    """NO_NAMESPACE for the index as a whole, which only a check looks at."""
    collection: LastResults
    check: LastResults
    scrub: Pass
    hold: Hold | None


class NamespaceRow(NamedTuple):
    """What a namespace keeps, and what it may keep."""

    usage: NamespaceUsage
    quota: Quota
    is_everybodys: bool
    """Whether the quota is that of each namespace without one of its own."""


class TokenEntry(NamedTuple):
    """A token, of which only the digest is known."""

    row: TokenRow
    is_given: bool
    """Whether a server was given it by its user, and it is valid only there."""
    has_expired: bool
    quota: Quota


async def show_admin(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Show all of it that the token may see."""
    index = context.index
    sees_all = repository.namespace == DEFAULT_NAMESPACE
    quotas = await index.quotas()
    usages = {usage.namespace: usage for usage in await index.usages()} if sees_all else {}
    if sees_all:
        namespaces = sorted({DEFAULT_NAMESPACE, *await index.namespaces()})
    else:
        namespaces, usages = [repository.namespace], {repository.namespace: await index.usage(repository.namespace)}
    paging = Paging.of(context.request, len(namespaces), limit=NAMESPACES_LIMIT)
    shown = namespaces[paging.start : paging.stop]
    works = [await _work(index, namespace) for namespace in ([NO_NAMESPACE] if sees_all else []) + shown]
    tokens = await _tokens(index, quotas, None if sees_all else repository.namespace)
    paging_of_tokens = Paging.of(context.request, len(tokens), limit=TOKENS_LIMIT, key="tokens")
    limits = context.request.app[LIMITS]
    return await render(
        context,
        "admin.html",
        sees_all=sees_all,
        disk=await _disk(context) if sees_all else None,
        scratch=await _scratch(context) if sees_all and context.store.has_object_ids else None,
        is_object_store=context.store.has_object_ids,
        index_size=await index.stored_size() if sees_all else 0,
        processes=_processes(context) if sees_all else [],
        paging=paging,
        spaces=[_space(namespace, usages, quotas) for namespace in shown],
        works=works,
        tokens=tokens[paging_of_tokens.start : paging_of_tokens.stop],
        paging_of_tokens=paging_of_tokens,
        limits=limits,
        no_namespace=NO_NAMESPACE,
    )


async def _work(index: Index, namespace: str) -> MaintenanceRow:
    check = await results_of(index, namespace, ResultKind.CHECK)
    if namespace == NO_NAMESPACE:
        return MaintenanceRow(namespace, LastResults(), check, Pass(), None)
    return MaintenanceRow(
        namespace,
        await collection_results(index, namespace),
        check,
        Pass.load(await index.task_state(namespace, SCRUB_TASK)),
        await hold_of(index, namespace),
    )


async def _scratch(context: RequestContext) -> Scratch | None:
    """Return the space of the folder for what arrives, or None if it cannot be measured."""
    try:
        return Scratch(*await in_disk_thread(shutil.disk_usage, context.spool_folder))
    except OSError:
        return None


async def _disk(context: RequestContext) -> DiskState | None:
    """Return the state of the disk of a folder. None if it cannot be measured, and for an object store."""
    try:
        return await context.store.disk()
    except StorageError:
        return None


def _space(namespace: str, usages: Mapping[str, NamespaceUsage], quotas: Sequence[QuotaRow]) -> NamespaceRow:
    known = {row.namespace: row.quota for row in quotas if row.token is None}
    quota = known.get(namespace, known.get(EVERYBODY, NO_QUOTA))
    return NamespaceRow(usages.get(namespace, NamespaceUsage(namespace)), quota, namespace not in known and quota != NO_QUOTA)


async def _tokens(index: Index, quotas: Sequence[QuotaRow], namespace: str | None) -> list[TokenEntry]:
    """Return the tokens of a namespace, or of all: those of the index, the oldest first, and those that servers were given."""
    now, limits = time.time_ns() // 1000, {row.token: row.quota for row in quotas if row.token is not None}
    kept = await without_links(index, await index.tokens())
    known = {row.digest for row in kept}
    given = [token for token in await given_tokens(index) if not token.is_removed and token.digest not in known]
    rows = [(row, False) for row in kept]
    rows += [(TokenRow(Digest(token.digest), token.namespace, "", token.given_at), True) for token in given]
    return [
        TokenEntry(row, is_given, row.has_expired(now), limits.get(row.digest, NO_QUOTA))
        for row, is_given in rows
        if namespace in (None, row.namespace)
    ]


def _processes(context: RequestContext) -> list[Process]:
    context.shared_times.own.note_usage()
    return [_process(place, times) for place, times in enumerate(context.shared_times.each_process(), 1)]


def _process(place: int, times: StageTimes) -> Process:
    numbers = times.numbers.all()

    def noted(gauge: Gauge) -> float:
        return numbers.get((gauge,), 0.0)

    return Process(
        place,
        int(noted(Gauge.STARTED_AT) * _SECOND),
        int(noted(Gauge.REQUESTS)),
        int(noted(Gauge.TRANSFERS)),
        int(noted(Gauge.CONNECTIONS)),
        int(noted(Gauge.MEMORY)),
        times.usage().cpu_seconds,
    )
