"""The objects of uploads in memory, as an object store has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import BinaryIO

from filestore.core.digest import Buffer
from filestore.repository.stores.temporary import TemporaryObject


class MemoryObjects:
    """Objects in a dictionary. `seconds` is how late it is by the clock of the store."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.kept: dict[str, tuple[bytes, datetime]] = {}

    async def put(self, name: str, content: Buffer | BinaryIO, *, only_new: bool = False) -> bool:
        if only_new and name in self.kept:
            return False
        kept = bytes(content) if isinstance(content, bytes | bytearray | memoryview) else content.read()
        self.kept[name] = (kept, await self.clock())
        return True

    async def get(self, name: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        return self.kept[name][0][start : None if size is None else start + size] if name in self.kept else None

    async def folders(self, folder: str) -> list[str]:
        start = len(f"{folder}/") if folder else 0
        inner = [name[start:] for name in self.kept if name.startswith(f"{folder}/" if folder else "")]
        return sorted({name.partition("/")[0] for name in inner if "/" in name})

    async def names(self, prefix: str) -> list[TemporaryObject]:
        found = sorted(item for item in self.kept.items() if item[0].startswith(f"{prefix}/"))
        return [TemporaryObject(name, len(content), put_at) for name, (content, put_at) in found]

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.kept.pop(name, None)

    async def clock(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)
