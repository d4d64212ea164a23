"""Objects of uploads that are not finished, which every server of a repository can read and change."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from filestore.core.digest import Buffer


class TemporaryObject(NamedTuple):
    """An object in a listing."""

    name: str
    size: int
    """In bytes."""
    put_at: datetime
    """By the clock of the object store."""


class TemporaryObjects(Protocol):
    """Named objects, in folders that are separated by slashes. All methods raise StorageError, StorageFull, Busy."""

    async def create(self, name: str, content: bytes) -> None:
        """Put an object if there is none with its name. Of several that do so at once, one puts it."""

    async def put(self, name: str, content: Buffer | Path) -> None:
        """Put an object with these bytes, or with those of a file. Another one of this name is replaced."""

    async def get(self, name: str) -> bytes | None:
        """Return the bytes of an object, or None if there is none."""

    async def read(self, name: str, start: int, size: int) -> bytes | None:
        """Return `size` bytes of an object from `start` on, fewer at its end. None if there is none. `size` is not 0."""

    async def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder. The top one has an empty name."""

    async def objects(self, folder: str) -> list[TemporaryObject]:
        """Return all objects below a folder, in the order of their names."""

    async def remove(self, names: list[str]) -> None:
        """Remove objects. One that is absent is not an error."""

    async def clock(self) -> datetime:
        """Return the time of the object store."""
