"""What a server keeps below `uploads` in a bucket for some hours. `temporary` says how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import BinaryIO

from filestore.core.digest import Buffer
from filestore.repository.stores.s3_client import S3Client
from filestore.repository.stores.s3_keys import UPLOADS
from filestore.repository.stores.temporary import TemporaryObject


class S3Temporary:
    """Objects below `uploads`."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    async def put(self, name: str, content: Buffer | BinaryIO, *, only_new: bool = False) -> bool:
        """Put an object. A file of more than 8 MiB goes up in parts, and whole in one request with `only_new`."""
        if only_new:
            return await self._client.create(_key(name), content)
        await self._client.put(_key(name), content)
        return True

    async def get(self, name: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        return await self._client.read(_key(name), start=start, size=size)

    async def names(self, prefix: str) -> list[TemporaryObject]:
        folder = _key(prefix.strip("/")) if prefix else UPLOADS
        return [
            TemporaryObject(listed.key.removeprefix(f"{UPLOADS}/"), listed.size, listed.put_at)
            async for page in self._client.pages(folder)
            for listed in page
        ]

    async def folders(self, prefix: str) -> list[str]:
        return await self._client.folders(_key(prefix) if prefix else UPLOADS)

    async def clock(self) -> datetime:
        return await self._client.clock()

    async def remove(self, names: Sequence[str]) -> None:
        await self._client.delete([_key(name) for name in names])


def _key(name: str) -> str:
    return f"{UPLOADS}/{name}"
