"""A repository past one machine: its content in an object store, and its index in PostgreSQL.

The two belong together. The format file in the object store has the id of the repository, and the index keeps the same id in
the state of the task `repository` of no namespace. What has one of them only was not made to the end, or is half of something
that is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from filestore.core.object_location import ObjectLocation
from filestore.errors import IndexDamaged, NotARepository
from filestore.repository.format_file import read_format
from filestore.repository.index.postgres.opening import CONNECTIONS, open_postgres_index
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore
from filestore.repository.stores.s3_location import parse_location
from filestore.repository.stores.s3_open import new_s3_client, open_s3_store
from filestore.system.threads import shield_until_done

if TYPE_CHECKING:
    from filestore.repository.index.postgres.index import PostgresIndex

TASK = "repository"
"""The task in whose state the index has the id of the repository."""

MIGRATION = "migration"
"""The task in whose state an index says which repository is being copied into it."""
NO_NAMESPACE = ""


class ObjectStore(ChunkStore, Protocol):
    """A chunk store in an object store."""

    async def is_initialised(self) -> bool:
        """Return whether `initialise` has stored something. Nothing is written. Raises StorageError, Busy."""


async def open_object_repository(
    location: ObjectLocation,
    *,
    create: bool = False,
    read_only: bool = False,
    scratch: Path | None = None,
    min_free: int | None = None,
    index_connections: int = CONNECTIONS,
    store_retry_seconds: float | None = None,
) -> tuple[ChunkStore, Index]:
    """Open the object store and the index of a repository. The caller closes both.

    With `create`, it is made if neither of them has anything yet. Of several processes that do so at once, one makes it.

    `scratch` is a folder on a disk of this machine for content that is on its way, of whose space `min_free` bytes stay free. By
    default it is a new folder among the temporary ones, and removed at the end. `index_connections` is the most that this process
    has to the database. `store_retry_seconds` is how long an object store that fails is tried again, by default a minute.

    Raises NotARepository if there is none, or if store and index do not belong together; IndexDamaged if the index is empty
    although content is there; InvalidUrl, MissingPackage, UnknownFormat, StorageError, Busy.
    """
    client = new_s3_client(parse_location(location.store), retry_seconds=store_retry_seconds)
    index = await open_postgres_index(location.index, makes_tables=create, read_only=read_only, connections=index_connections)
    return await joined(
        lambda: open_s3_store(client, index, scratch=scratch, min_free=min_free, read_only=read_only),
        index,
        location=str(location),
        create=create,
    )


async def create_object_repository(location: ObjectLocation) -> bool:
    """Make a repository as `open_object_repository` does. Return False if it was one before this call. Raises the same."""
    found = await open_postgres_index(location.index)
    try:
        is_new = await known_id(found) is None
    finally:
        await found.close()
    store, index = await open_object_repository(location, create=True)
    await index.close()
    await store.close()
    return is_new


async def open_target(location: ObjectLocation, *, scratch: Path | None = None) -> tuple[ObjectStore, PostgresIndex]:
    """Open an object store and an index for a migration to them, whatever they have. The caller closes both.

    Raises InvalidUrl, MissingPackage, UnknownFormat, StorageError, Busy.
    """
    client = new_s3_client(parse_location(location.store))
    index = await open_postgres_index(location.index)
    try:
        return await open_s3_store(client, index, scratch=scratch), index
    except BaseException:
        await shield_until_done(index.close())
        raise


async def joined(
    open_store: Callable[[], Awaitable[ObjectStore]], index: Index, *, location: str, create: bool = False
) -> tuple[ChunkStore, Index]:
    """Open the store that belongs to `index`, which is closed if this fails. Raises what `open_object_repository` raises."""
    try:
        if await index.task_state(NO_NAMESPACE, MIGRATION) is not None:
            found = "a migration to it has not ended, or a restore"
            raise NotARepository(location, found, "do the same again until it ends", hint="finish-migration")
        store = await open_store()
        try:
            await (_create if create else _check)(store, index, location)
        except BaseException:
            await shield_until_done(store.close())
            raise
    except BaseException:
        await shield_until_done(index.close())
        raise
    return store, index


async def _check(store: ObjectStore, index: Index, location: str) -> None:
    """Raise NotARepository or UnknownFormat unless store and index are those of one repository."""
    known = await known_id(index)
    if await store.is_initialised():
        _check_same((await read_format(store, location=location))[0], known, location)
    elif known is not None:
        raise _lost_format(location, known)
    else:
        raise NotARepository(
            location,
            "there is nothing yet",
            "check the URLs, or make a repository there (connect with create=True)",
            hint="create-repository",
        )


async def _create(store: ObjectStore, index: Index, location: str) -> None:
    """Make what is missing of the repository. The index learns the id last: what has both is a whole one."""
    known, is_initialised = await known_id(index), await store.is_initialised()
    if known is not None and not is_initialised:
        raise _lost_format(location, known)
    if known is None and is_initialised and await store.namespaces():
        raise IndexDamaged(location, "the index is empty, and the object store has content")
    repository_id, _ = await read_format(store, location=location, new_id=secrets.token_hex(16))
    if known is None:
        async with index.transaction() as transaction:
            known = await known_id(index)
            if known is None:
                await transaction.set_task_state(NO_NAMESPACE, TASK, {"id": repository_id})
                known = repository_id
    _check_same(repository_id, known, location)


def _check_same(repository_id: str, known: str | None, location: str) -> None:
    if known is None:
        raise NotARepository(
            location,
            "making one there was cut off before the end, or the index is another one",
            "check the URLs; connect with create=True to finish it",
            hint="finish-repository",
        )
    if known != repository_id:
        raise NotARepository(
            location,
            f"the object store has the repository {repository_id}, and the index is that of {known}",
            "give the store and the index that belong together",
        )


def _lost_format(location: str, known: str) -> NotARepository:
    return NotARepository(
        location,
        f"the index is that of the repository {known}, whose format file is not in the object store",
        "check the bucket and the prefix",
    )


async def known_id(index: Index) -> str | None:
    """Return the id of the repository whose index this is, or None."""
    state = await index.task_state(NO_NAMESPACE, TASK)
    return None if state is None else str(state.get("id"))
