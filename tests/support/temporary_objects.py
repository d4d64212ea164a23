"""The objects of uploads in memory, as an object store has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from filestore.core.digest import Buffer
from filestore.repository.stores.temporary_objects import TemporaryObject


class MemoryObjects:
    """Objects in a dictionary. `seconds` is how late it is by the clock of the store."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.kept: dict[str, tuple[bytes, datetime]] = {}

    async def create(self, name: str, content: bytes) -> None:
        self.kept.setdefault(name, (content, await self.clock()))

    async def put(self, name: str, content: Buffer | Path) -> None:
        self.kept[name] = (content.read_bytes() if isinstance(content, Path) else bytes(content), await self.clock())

    async def get(self, name: str) -> bytes | None:
        return self.kept[name][0] if name in self.kept else None

    async def read(self, name: str, start: int, size: int) -> bytes | None:
        return self.kept[name][0][start : start + size] if name in self.kept else None

    async def folders(self, folder: str) -> list[str]:
        start = len(f"{folder}/") if folder else 0
        inner = [name[start:] for name in self.kept if name.startswith(f"{folder}/" if folder else "")]
        return sorted({name.partition("/")[0] for name in inner if "/" in name})

    async def objects(self, folder: str) -> list[TemporaryObject]:
        found = sorted(item for item in self.kept.items() if item[0].startswith(f"{folder}/"))
        return [TemporaryObject(name, len(content), put_at) for name, (content, put_at) in found]

    async def remove(self, names: list[str]) -> None:
        for name in names:
            self.kept.pop(name, None)

    async def clock(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)
