"""The protocol of what a server keeps in an object store for some hours: uploads in parts, and objects before their commit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import BinaryIO, NamedTuple, Protocol

from filestore.core.digest import Buffer


class TemporaryObject(NamedTuple):
    """An object in a listing."""

    name: str
    size: int
    """In bytes."""
    put_at: datetime
    """By the clock of the object store."""


class TemporaryObjects(Protocol):
    """Keeps objects by names of several parts, such as `ID/0001`. Any server can read what another one has put.

    A put is seen as a whole or not at all, and replaces an object of the same name. All methods raise StorageError, StorageFull,
    Busy, and may be repeated.
    """

    async def put(self, name: str, content: Buffer | BinaryIO, *, only_new: bool = False) -> bool:
        """Put an object durably.

        `content` is memory that does not change meanwhile, or an open file that is read from its place on. With `only_new`,
        return False if there is one already, which stays.
        """

    async def get(self, name: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        """Return the bytes of an object from `start` on, at most `size`. Return None if it does not exist."""

    async def names(self, prefix: str) -> list[TemporaryObject]:
        """Return the objects below `prefix`, which is the whole of the first parts of their names, in the order of the names."""

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`, in order. The top one has an empty name."""

    async def clock(self) -> datetime:
        """Return the time of the object store."""

    async def remove(self, names: Sequence[str]) -> None:
        """Remove objects. Absent ones are no error."""
