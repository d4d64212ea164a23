"""Hold the collection of a namespace: nothing of it is removed until a person ends the hold.

When an index is lost, or an older one takes its place, the names of files are lost with it, and their content is there
like that of removed files. It may be the only copy. So whoever accepts such an index holds the collection of each
namespace that has manifests without a record.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from filestore.core.references import Reference
from filestore.core.timestamps import LAST_MOMENT
from filestore.errors import CollectionHeld
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore

TASK = "hold"
"""The name of the state in the index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Why the collection of a namespace is held."""

    namespace: str
    reason: str
    since: int
    """Microseconds since 1970."""
    manifest_count: int
    """How many manifests had no record then: files without a name, or removed files."""

    def as_json(self) -> dict[str, Any]:
        """Return the hold as a JSON object."""
        return {
            "namespace": self.namespace,
            "reason": self.reason,
            "since": self.since,
            "manifest_count": self.manifest_count,
        }

    def error(self) -> CollectionHeld:
        """Return the error of a collection."""
        return CollectionHeld(self.namespace, self.reason, self.manifest_count)


async def hold_collection(store: ChunkStore, index: Index, *, reason: str) -> list[Hold]:
    """Hold the collection of the namespaces that have manifests without a record. Return the new holds."""
    made = []
    for namespace in await store.namespaces():
        count = 0
        async for digest in store.manifests(namespace):
            count += await index.record(namespace, Reference(digest=digest)) is None
        if not count:
            continue
        hold = Hold(namespace=namespace, reason=reason, since=time.time_ns() // 1000, manifest_count=count)
        async with index.transaction(namespace) as transaction:
            await transaction.set_task_state(namespace, TASK, hold.as_json())
        made.append(hold)
    return made


async def hold_of(index: Index, namespace: str) -> Hold | None:
    """Return the hold of a namespace, if there is one. A state that cannot be understood is a hold too."""
    state = await index.task_state(namespace, TASK)
    return None if state is None else hold_from_json(namespace, state)


def hold_from_json(namespace: str, values: dict[str, Any]) -> Hold:
    """Make a hold from what `Hold.as_json` returns. Values that are missing or not valid are replaced."""
    since, count, reason = values.get("since"), values.get("manifest_count"), values.get("reason")
    return Hold(
        namespace=namespace,
        reason=reason if isinstance(reason, str) else "the reason is not known",
        since=since if type(since) is int and 0 <= since < LAST_MOMENT else 0,
        manifest_count=count if type(count) is int and 0 <= count < 1 << 63 else 0,
    )


async def holds(store: ChunkStore, index: Index) -> AsyncIterator[Hold]:
    """Yield the holds of all namespaces, by name."""
    for namespace in sorted({*await store.namespaces(), *await index.namespaces()}):
        hold = await hold_of(index, namespace)
        if hold is not None:
            yield hold


async def end_holds(store: ChunkStore, index: Index) -> list[Hold]:
    """End all holds: from now on, what no record needs may be removed. Return those that were ended."""
    ended = [hold async for hold in holds(store, index)]
    for hold in ended:
        async with index.transaction(hold.namespace) as transaction:
            await transaction.set_task_state(hold.namespace, TASK, None)
    return ended
