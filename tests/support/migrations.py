"""A repository with something in every table, and what is to be the same after it was moved."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filestore.backends import open_backend
from filestore.core.commits import Label, LabelKind, NewCommit
from filestore.core.content_digests import FileDigests
from filestore.core.digest import Digest, token_digest
from filestore.core.manifest import Manifest
from filestore.core.names import split_full_name
from filestore.core.object_location import ObjectLocation
from filestore.core.quotas import Quota
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.repository.index.protocol import ContentDigests, Index, Policy, Use
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import ChunkStore
from tests.support.ceph import Bucket
from tests.support.frames import contents, encoded, manifest

NAMESPACES = ("default", "team-b")
PREFIX = "models/moved"


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts of a repository."""

    store: ChunkStore
    index: Index


def location_in(bucket: Bucket, index_url: str) -> ObjectLocation:
    """Where a repository moves to."""
    return ObjectLocation.of(bucket.location(PREFIX), index_url)


@asynccontextmanager
async def opened(place: Path | ObjectLocation, *, create: bool = False) -> AsyncIterator[Opened]:
    """Open a repository for a block."""
    store, index = await open_backend(place, create=create)
    try:
        yield Opened(store, index)
    finally:
        await index.close()
        await store.close()


async def push(
    parts: Opened, name: str, chunks: list[bytes], *, namespace: str = "default", commit: NewCommit | None = None
) -> Record:
    """Store a file of some chunks."""
    repository = LocalRepository(parts.store, parts.index, location="here", namespace=namespace)
    await repository.put([encoded(chunk) for chunk in chunks])
    return await repository.commit(manifest(chunks).encoded, name=name, commit=commit or NewCommit())


async def fill(parts: Opened) -> None:
    """Store something of every kind."""
    index = parts.index
    for number, namespace in enumerate(NAMESPACES):
        owned = f"owner{number}/model"
        for version in range(3):
            chunks = contents(4, size=3000, seed=10 * number + version)
            record = await push(parts, owned, chunks, namespace=namespace, commit=NewCommit(f"message {version} é", author="me"))
        await push(parts, "plain name", contents(2, seed=90), namespace=namespace)
        # It is stored again, so that its position is larger than that of a later one.
        await push(parts, owned, contents(4, size=3000, seed=10 * number), namespace=namespace)
        commit = await index.commit(namespace, owned)
        assert commit is not None
        async with index.transaction(namespace) as transaction:
            await transaction.set_label(namespace, owned, Label("v1", LabelKind.TAG, commit.id, 0))
            await transaction.set_label(namespace, owned, Label("draft", LabelKind.BRANCH, commit.id, 0))
            await transaction.add_uses(namespace, [Use(record.id, "pipeline_1", "P", is_graph=True)])
            await transaction.set_policy(namespace, Policy(number + 1, None))
            row = ContentDigests(record.digest, record.size, bytes(32), bytes(20), record.digest, 0)
            await transaction.add_content_digests(namespace, [row])
            await transaction.set_tree_digests(namespace, record.digest, FileDigests(bytes(32), bytes(20)).packed)
            await transaction.set_task_state(namespace, "hold", None)
        await push(parts, owned, contents(1, seed=70), namespace=namespace, commit=NewCommit("on it", branch="draft"))
        async with index.transaction() as transaction:
            digest = token_digest(f"token {number}")
            await transaction.add_token(
                digest, namespace=namespace, label="ci", scope=Scope.READ, prefix="plain", expires_at=1 << 60
            )
            await transaction.set_quota(namespace, Quota(size=10_000_000), token=None)
            await transaction.set_quota(namespace, Quota(requests_per_second=5), token=digest)
        await index.note_token_uses([digest])
    await index.secret()
    async with index.transaction() as transaction:
        keys = await transaction.signing_keys()
        await transaction.set_signing_keys(keys.rotated(os.urandom(32), now=1_000_000, until=1 << 60))


async def everything(parts: Opened) -> dict[tuple[str, str], Any]:
    """Return what every verb that reads says, by a namespace and a word for it."""
    index = parts.index
    of_all = {
        "namespaces": await index.namespaces(),
        "owners": await index.owners(),
        "quotas": await index.quotas(),
        "tokens": await index.tokens(),
        "positions": await index.newest_positions(),
        "signing keys": await index.signing_keys(),
        "secret": await index.secret(),
        "usages": await index.usages(),
    }
    seen: dict[tuple[str, str], Any] = {("", word): found for word, found in of_all.items()}
    for namespace in await index.namespaces():
        repository = LocalRepository(parts.store, index, location="here", namespace=namespace)
        found = await index.records_after(namespace, 0, limit=10_000)
        digests = list(dict.fromkeys(each.record.digest for each in found))
        names = sorted({each.record.full_name for each in found})
        of_namespace = {
            "identity": await repository.identity(),
            "records": found,
            "listed": [record async for record in repository.iter_records()],
            "commits": [await index.history(namespace, name, limit=100) for name in names],
            "draft": [await index.commit(namespace, name, "draft") for name in names if "/" in name],
            "labels": [await index.labels(namespace, name) for name in names],
            "names": await index.list_names(namespace, limit=100),
            "versions": [await index.versions(namespace, whole_name(name), limit=100) for name in names],
            "uses": await index.uses(namespace),
            "policy": await index.policy(namespace),
            "content digests": await index.content_digests(namespace, digests),
            "trees": [await index.tree_digests(namespace, digest) for digest in digests],
            "usage": await index.usage(namespace),
            "chunks": [(state.row[:3], state.is_live) for state in await index.chunk_rows(namespace, limit=10_000)],
            "manifests": [await repository.manifest(digest) for digest in digests],
            "bytes": [await _bytes_of(repository, digest) for digest in digests],
        }
        seen |= {(namespace, word): value for word, value in of_namespace.items()}
    return seen


def whole_name(name: str) -> Reference:
    """Return the reference to all versions of a name."""
    owner, rest = split_full_name(name)
    return Reference(name=rest, owner=owner)


async def _bytes_of(repository: LocalRepository, digest: Digest) -> list[bytes]:
    chunks = Manifest.parse(await repository.manifest(digest)).chunks
    buffer = memoryview(bytearray(sum(chunk.size + 8 for chunk in chunks)))
    frames = await repository.get([chunk.digest for chunk in chunks], buffer)
    assert None not in frames
    return [bytes(frame) for frame in frames if frame is not None]


def differences(one: dict[tuple[str, str], Any], other: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """Return what two repositories say differently."""
    return {key: (one.get(key), other.get(key)) for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
