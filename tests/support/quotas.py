"""Set and read the quotas of a folder, as the command does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from filestore.backends import create_repository, open_backend
from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.quotas import Quota
from filestore.repository.index.protocol import Index, NamespaceUsage

T = TypeVar("T")


def set_quota(root: Path, quota: Quota, *, namespace: str = DEFAULT_NAMESPACE, token: str | None = None) -> None:
    """Set a quota in a folder, which is made if it does not exist."""

    async def use(index: Index) -> None:
        async with index.transaction() as transaction:
            await transaction.set_quota(namespace, quota, token=None if token is None else token_digest(token))

    _with_index(root, use)


def usage(root: Path, *, namespace: str = DEFAULT_NAMESPACE) -> NamespaceUsage:
    """Return what a namespace of a folder keeps."""
    return _with_index(root, lambda index: index.usage(namespace))


def _with_index(root: Path, use: Callable[[Index], Awaitable[T]]) -> T:
    async def run() -> T:
        await create_repository(root)
        store, index = await open_backend(root)
        try:
            return await use(index)
        finally:
            await index.close()
            await store.close()

    return asyncio.run(run())
