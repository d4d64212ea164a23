"""The objects of uploads in memory or in a folder, as an object store has them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from filestore.core.digest import Buffer
from filestore.repository.stores.temporary import TemporaryObject
from filestore.system.threads import in_disk_thread


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


class FolderObjects:
    """Objects in files, which several processes of a server see, and the next server too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, content: Buffer | BinaryIO, *, only_new: bool = False) -> bool:
        return await in_disk_thread(self._put, name, content, only_new=only_new)

    def _put(self, name: str, content: Buffer | BinaryIO, *, only_new: bool) -> bool:
        new, path = self._folder / f"new-{uuid.uuid4().hex}", self._folder / "objects" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            if isinstance(content, bytes | bytearray | memoryview):
                file.write(content)
            else:
                shutil.copyfileobj(content, file)
        if not only_new:
            new.rename(path)
            return True
        try:
            path.hardlink_to(new)
        except FileExistsError:
            return False
        finally:
            new.unlink()
        return True

    async def get(self, name: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        return await in_disk_thread(self._get, name, start, size)

    def _get(self, name: str, start: int, size: int | None) -> bytes | None:
        with suppress(FileNotFoundError), (self._folder / "objects" / name).open("rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
        return None

    async def folders(self, folder: str) -> list[str]:
        start = len(f"{folder}/") if folder else 0
        inner = [each.name[start:] for each in await self.names(folder)]
        return sorted({name.partition("/")[0] for name in inner if "/" in name})

    async def names(self, prefix: str) -> list[TemporaryObject]:
        return await in_disk_thread(self._names, prefix)

    def _names(self, prefix: str) -> list[TemporaryObject]:
        objects = self._folder / "objects"
        found = []
        for path in sorted((objects / prefix).rglob("*")):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                if path.is_file():
                    about = path.stat()
                    put_at = datetime.fromtimestamp(about.st_mtime, UTC)
                    found.append(TemporaryObject(path.relative_to(objects).as_posix(), about.st_size, put_at))
        return sorted(found)

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            await in_disk_thread((self._folder / "objects" / name).unlink, missing_ok=True)

    async def clock(self) -> datetime:
        return datetime.now(UTC)
