"""A transaction of an index in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from filestore.core.commits import PLAIN_COMMIT, Label, NewCommit
from filestore.core.digest import Digest
from filestore.core.object_names import ObjectName
from filestore.core.quotas import Quota
from filestore.core.records import Kind, Record
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys
from filestore.repository.index.postgres import (
    chunks,
    content_digests,
    history,
    object_map,
    quotas,
    records,
    tasks,
    tokens,
    usage,
    uses,
)
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.postgres.errors import postgres_errors
from filestore.repository.index.protocol import (
    Base,
    ChunkRow,
    ContentDigests,
    NamespaceUsage,
    Policy,
    RemovedRows,
    TokenRow,
    Use,
)
from filestore.repository.index.rows import new_record
from filestore.repository.index.signing_keys import parse_keys

P = ParamSpec("P")
T = TypeVar("T")


class PostgresTransaction:
    """Runs the writes of a transaction on its connection, one after the other."""

    def __init__(self, connection: Connection, where: str, now: Callable[[], int], *, namespace: str | None) -> None:
        """`namespace` is the one whose lock the transaction has. None means that it has that of all."""
        self._connection = connection
        self._where = where
        self._now = now
        self._namespace = namespace
        self._turn = asyncio.Lock()

    async def _run(self, function: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._turn:
            with postgres_errors(self._where):
                return await function(self._connection, *args, **kwargs)

    async def _run_in(
        self, namespace: str, function: Callable[Concatenate[Connection, str, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run what is right only with the lock of the namespace. Raises RuntimeError without it."""
        self._check(namespace)
        return await self._run(function, namespace, *args, **kwargs)

    def _check(self, namespace: str) -> None:
        if self._namespace not in (None, namespace):
            raise RuntimeError(f"a transaction for the namespace {self._namespace!r} is used for {namespace!r}")

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        return await self._run_in(namespace, chunks.select_sizes, digests)

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        await self._run_in(namespace, chunks.insert_chunks, rows, self._now())

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        await self._run_in(namespace, chunks.update_last_seen, digests, self._now())

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> list[ObjectName]:
        return await self._run_in(namespace, chunks.delete_chunks, digests)

    async def lose_chunks(self, namespace: str, names: Sequence[ObjectName]) -> list[Digest]:
        return await self._run_in(namespace, chunks.lose_chunks, names)

    async def forget_lost(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        return await self._run_in(namespace, object_map.delete_lost, names)

    async def keep_manifest(self, namespace: str, name: ObjectName) -> bytes:
        return await self._run_in(namespace, object_map.insert_manifest, name)

    async def forget_manifest(self, namespace: str, digest: Digest) -> ObjectName:
        return await self._run_in(namespace, object_map.delete_manifest, digest)

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        return await self._run_in(namespace, chunks.update_condemned, digests, unseen_since)

    async def set_frame_digests(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        await self._run_in(namespace, chunks.update_frame_digests, rows)

    async def add_bases(self, namespace: str, bases: Sequence[Base]) -> None:
        await self._run_in(namespace, chunks.insert_bases, bases)

    async def needed_bases(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._run_in(namespace, chunks.select_needed_bases, digests)

    async def removals(self, namespace: str) -> int:
        return await self._run_in(namespace, tasks.select_removals)

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        return await self._run_in(namespace, tasks.select_removed, number)

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        return await self._run_in(namespace, chunks.select_condemned, digests)

    async def usage(self, namespace: str) -> NamespaceUsage:
        return await self._run_in(namespace, usage.select_usage)

    async def count_again(self) -> None:
        await self._run(usage.replace_counts)

    async def add_record(
        self,
        namespace: str,
        *,
        name: str,
        digest: Digest,
        size: int,
        kind: Kind,
        manifest_size: int = 0,
        commit: NewCommit = PLAIN_COMMIT,
    ) -> Record:
        self._check(namespace)
        record = new_record(namespace, name=name, digest=digest, size=size, kind=kind)
        return await self._run(records.insert_record, record, self._now(), manifest_size, commit)

    async def claim_owner(self, namespace: str, owner: str) -> None:
        await self._run(history.claim_owner, owner, namespace, self._now())

    async def remove_owner(self, owner: str) -> bool:
        return await self._run(history.delete_owner, owner)

    async def remove_owners(self, namespace: str) -> None:
        await self._run(history.delete_owners_of, namespace)

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        return await self._run_in(namespace, history.select_labels_of_record, file_id)

    async def set_label(self, namespace: str, name: str, label: Label, *, force: bool = False) -> Label:
        return await self._run_in(namespace, history.replace_label, name, label._replace(created_at=self._now()), force=force)

    async def remove_label(self, namespace: str, name: str, label: str) -> Label | None:
        return await self._run_in(namespace, history.delete_label, name, label)

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        return await self._run_in(namespace, records.delete_record, file_id)

    async def add_uses(self, namespace: str, added: Sequence[Use]) -> None:
        await self._run_in(namespace, uses.insert_uses, added)

    async def remove_uses(self, namespace: str, pipeline_id: str) -> None:
        await self._run_in(namespace, uses.delete_uses, pipeline_id)

    async def uses_of(self, namespace: str, file_id: str) -> list[Use]:
        return await self._run_in(namespace, uses.select_uses_of, file_id)

    async def add_token(
        self,
        token_digest: Digest,
        *,
        namespace: str,
        label: str,
        scope: Scope = Scope.ADMIN,
        prefix: str = "",
        expires_at: int | None = None,
    ) -> None:
        row = TokenRow(token_digest, namespace, label, self._now(), scope, prefix, expires_at)
        await self._run(tokens.insert_token, row)

    async def remove_token(self, token_digest: Digest) -> bool:
        return await self._run(tokens.delete_token, token_digest)

    async def signing_keys(self) -> SigningKeys:
        return parse_keys(await self._run(tokens.select_secrets), path=self._where)

    async def set_signing_keys(self, keys: SigningKeys) -> None:
        await self._run(tokens.replace_keys, keys)

    async def set_policy(self, namespace: str, policy: Policy) -> None:
        await self._run_in(namespace, tasks.replace_policy, policy)

    async def set_quota(self, namespace: str, quota: Quota, *, token: Digest | None = None) -> None:
        await self._run(quotas.replace_quota, namespace, token, quota)

    async def add_content_digests(self, namespace: str, rows: Sequence[ContentDigests]) -> None:
        await self._run_in(namespace, content_digests.insert_contents, rows)

    async def set_tree_digests(self, namespace: str, digest: Digest, packed: bytes) -> None:
        await self._run_in(namespace, content_digests.insert_tree, digest, packed)

    async def set_task_state(self, namespace: str, task: str, state: dict[str, Any] | None) -> None:
        await self._run_in(namespace, tasks.replace_state, task, state)
