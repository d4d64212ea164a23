"""Objects of uploads in an object store, below the folder `uploads` of a repository."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from filestore.core.digest import Buffer
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_keys import UPLOADS
from filestore.repository.stores.temporary_objects import TemporaryObject


class S3TemporaryObjects:
    """Objects below `uploads`. A store without conditional puts may replace what another server has created at the same time."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    async def create(self, name: str, content: bytes) -> None:
        await self._client.create(_key(name), content)

    async def put(self, name: str, content: Buffer | Path) -> None:
        if isinstance(content, Path):
            await self._client.put_file(_key(name), content)
        else:
            await self._client.put(_key(name), content)

    async def get(self, name: str) -> bytes | None:
        found = await self._client.get(_key(name))
        return None if found is None else bytes(found)

    async def read(self, name: str, start: int, size: int) -> bytes | None:
        found = await self._client.read(_key(name), start, size)
        return None if found is None else bytes(found)

    async def folders(self, folder: str) -> list[str]:
        return await self._client.folders(_key(folder) if folder else UPLOADS)

    async def objects(self, folder: str) -> list[TemporaryObject]:
        start = len(UPLOADS) + 1
        return [
            TemporaryObject(found.key[start:], found.size, found.put_at)
            async for page in self._client.pages(_key(folder))
            for found in page
        ]

    async def remove(self, names: list[str]) -> None:
        await self._client.delete([_key(name) for name in names])

    async def clock(self) -> datetime:
        return await self._client.clock()


def _key(name: str) -> str:
    return f"{UPLOADS}/{name}"
