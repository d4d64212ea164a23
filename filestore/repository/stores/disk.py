"""A chunk store in a folder of a local file system.

    ROOT/format                       the repository's format file
    ROOT/chunks/<namespace>/ab/cd/    frames
    ROOT/manifests/<namespace>/ab/cd/ manifests
    ROOT/tmp/<random>/                staging files of one process (`staging_folder`)
    ROOT/reserve                      space for the removal of files (`disk_space`)
    ROOT/damaged/<key>.<random>       what was set aside because it is not the frame or manifest that its key names

A durable write has three steps. The bytes are written to a staging file and synced. The staging file is renamed to its
final name (I3). The folder is synced, which makes the name durable (`disk_placement`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from filestore.core.digest import Buffer, Digest
from filestore.core.object_names import NO_OBJECT_ID, ObjectName
from filestore.core.paths import chunk_key, manifest_key
from filestore.core.unlocked import unlocked
from filestore.errors import ReadOnly, StorageError, UsedAfterFork
from filestore.repository.stores.disk_errors import translated
from filestore.repository.stores.disk_listing import contents_of, digests_below, size_pages
from filestore.repository.stores.disk_placement import DiskPlacement, set_aside
from filestore.repository.stores.disk_space import DiskSpace, SpaceClaim
from filestore.repository.stores.frame_files import frame_size, open_frame, open_small_file, read_frame, read_small_file
from filestore.repository.stores.inspection import inspect_file, read_file
from filestore.repository.stores.protocol import DiskState, FrameState, Removed, Staging
from filestore.repository.stores.staging_file import DiskStaging
from filestore.repository.stores.staging_folder import StagingFolder, sweep
from filestore.repository.stores.temporary import TemporaryObjects
from filestore.system.files import is_unreadable, make_folder, sync_path
from filestore.system.metrics import Stage, async_span, span
from filestore.system.owners import warn_of_others
from filestore.system.threads import in_disk_thread, shield_until_done

T = TypeVar("T")

_PLACED_AT_ONCE = 64
"""How many folders may be open, since a process may have only so many files."""


class DiskStore:
    """Stores frames and manifests in files below `root`. Make it with `open_store` or `store_for_reading`.

    Whatever cannot be read as a frame counts as absent: a file on a bad sector, one that is empty or has more bytes than
    a frame can have, a folder, a pipe, a link that leads nowhere. A reader that finds it removes the row of the chunk
    from the index. The next push then sends the chunk again. The same holds for manifests.
    """

    has_object_ids = False
    temporary: TemporaryObjects | None = None

    def __init__(self, root: Path, own: StagingFolder | None, *, min_free: int | None = None) -> None:
        """Make a store. `own` is its folder for staging files. It is None for a store that is only read."""
        self._root = root
        self._own = own
        self._space = DiskSpace(root, min_free=min_free)
        self._pid = os.getpid()
        self._format: bytes | None = None
        """The content of the format file. None until this process knows that the file is durable."""

    async def initialise(self, text: bytes) -> bytes:
        """Write `text` to a synced staging file and link it to its final name, unless that name already exists."""
        return await in_disk_thread(self._initialise, text)

    def new_staging(self) -> DiskStaging:
        if self._own is None:
            raise ReadOnly(str(self._root))
        if self._pid != os.getpid():
            raise UsedAfterFork(str(self._root), self._pid)
        return DiskStaging(self._own, self._root)

    @asynccontextmanager
    async def space_for(self, size: int, *, place: Path | None = None, for_reader: bool = False) -> AsyncIterator[SpaceClaim]:
        claims: list[SpaceClaim] = []
        try:
            if place is None and not for_reader and (claim := self._space.soon_after(size)) is not None:
                claims.append(claim)
            else:
                await in_disk_thread(self._claim_space, size, place, for_reader, claims)
            yield claims[0]
        finally:
            for claim in claims:
                claim.end()

    async def disk(self) -> DiskState:
        return await in_disk_thread(self._space.state)

    async def release_reserve(self) -> bool:
        return await in_disk_thread(self._release_reserve)

    async def make_reserve(self) -> bool:
        return await in_disk_thread(self._make_reserve)

    def sync(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:  # noqa: ARG002  # of the protocol
        for _, staging in staged:
            cast("DiskStaging", staging).sync()

    def placement(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> DiskPlacement:
        root = str(self._root)
        files = [(digest, cast("DiskStaging", staging), f"{root}/{chunk_key(namespace, digest)}") for digest, staging in staged]
        return DiskPlacement(self._root, files)

    async def publish(self, namespace: str, staged: Sequence[tuple[Digest, Staging]]) -> None:
        """Rename staging files to their final names, and sync their folders."""
        with async_span(Stage.COMMIT):
            for start in range(0, len(staged), _PLACED_AT_ONCE):
                await in_disk_thread(self.placement(namespace, staged[start : start + _PLACED_AT_ONCE]).place_all)

    async def open(self, namespace: str, digests: Sequence[Digest]) -> list[BinaryIO | None]:
        opened: list[BinaryIO | None] = []
        try:
            await in_disk_thread(self._open, namespace, digests, opened)
        except BaseException:
            # A cancel arrives after the thread has ended, so `opened` holds all files that must be closed.
            _close(opened)
            raise
        return opened

    async def frame_urls(self, namespace: str, digests: Sequence[Digest], *, seconds: float) -> None:  # noqa: ARG002  # of the protocol
        return None

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        return await in_disk_thread(self._sizes, namespace, digests)

    async def read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        return await in_disk_thread(self._read_into, namespace, digests, buffer)

    async def inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:
        return await in_disk_thread(self._inspect, namespace, digests)

    async def read_each(
        self, namespace: str, digests: Sequence[Digest], buffer: memoryview, visit: Callable[[Digest, memoryview], T]
    ) -> list[T | FrameState]:
        return await in_disk_thread(self._read_each, namespace, digests, buffer, visit)

    async def set_aside(self, namespace: str, name: ObjectName) -> str | None:
        return await in_disk_thread(self._set_frame_aside, self._root / chunk_key(namespace, name.digest))

    async def read_object(self, namespace: str, name: ObjectName) -> None:  # noqa: ARG002  # of the protocol
        return None

    async def namespaces(self) -> list[str]:
        return sorted(path.name for path in await in_disk_thread(contents_of, self._root / "chunks", self._root))

    async def remove(self, namespace: str, names: Sequence[ObjectName]) -> None:
        # Not synced: a frame that is back after a power cut has no row, so it is only garbage.
        await in_disk_thread(self._unlink, [chunk_key(namespace, name.digest) for name in names])

    def digests(self, namespace: str) -> AsyncIterator[Digest]:
        return digests_below(self._root / "chunks" / namespace, root=self._root)

    def frame_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        return size_pages(self._root / "chunks" / namespace, root=self._root)

    async def put_manifest(self, namespace: str, digest: Digest, encoded: Buffer) -> bytes:
        """Write, sync and rename the file. An existing file is replaced only if it is damaged (has other bytes)."""
        await in_disk_thread(self._put_manifest, self._root / manifest_key(namespace, digest), digest, encoded)
        return NO_OBJECT_ID

    async def has_manifest(self, namespace: str, digest: Digest) -> bool:
        with translated(self._root):
            return await in_disk_thread((self._root / manifest_key(namespace, digest)).is_file)

    async def manifest(self, namespace: str, digest: Digest) -> bytes | None:
        return await in_disk_thread(self._read_manifest, self._root / manifest_key(namespace, digest))

    async def open_manifest(self, namespace: str, digest: Digest) -> BinaryIO | None:
        opened: list[BinaryIO | None] = []
        try:
            await in_disk_thread(self._open_manifest, self._root / manifest_key(namespace, digest), opened)
        except BaseException:
            _close(opened)
            raise
        return opened[0]

    async def remove_manifest(self, namespace: str, name: ObjectName) -> None:
        await in_disk_thread(self._unlink, [manifest_key(namespace, name.digest)])

    def manifests(self, namespace: str) -> AsyncIterator[Digest]:
        return digests_below(self._root / "manifests" / namespace, root=self._root)

    def manifest_pages(self, namespace: str) -> AsyncIterator[list[tuple[Digest, int]]]:
        return size_pages(self._root / "manifests" / namespace, root=self._root)

    async def remove_abandoned(self, *, dry_run: bool = False) -> Removed:
        """Remove the staging folders of processes that have ended. The first result also has what the opening removed."""
        return await in_disk_thread(self._remove_abandoned, dry_run)

    async def close(self) -> None:
        """Remove the staging files of this process, and release the lock of their folder."""
        if self._own is None:
            return
        if self._pid != os.getpid():
            self._own.close()
            return
        await shield_until_done(in_disk_thread(self._own.close))

    def _claim_space(self, size: int, place: Path | None, for_reader: bool, claims: list[SpaceClaim]) -> None:  # noqa: FBT001  # through a thread
        with translated(self._root):
            claims.append(self._space.claim(size, place=place, for_reader=for_reader))

    def _release_reserve(self) -> bool:
        with translated(self._root):
            return self._space.release_reserve()

    def _make_reserve(self) -> bool:
        with translated(self._root):
            return self._space.make_reserve()

    def _remove_abandoned(self, dry_run: bool) -> Removed:  # noqa: FBT001  # through a thread
        with translated(self._root):
            found = sweep(self._root / "tmp", is_dry=dry_run)
        if self._own is None:
            return found
        earlier = self._own.take_swept()
        return Removed(found.count + earlier.count, found.size + earlier.size)

    def _initialise(self, text: bytes) -> bytes:
        if self._format is not None:
            return self._format
        path = self._root / "format"
        kept = self._read_format(path)
        if kept is None:
            staging = self.new_staging()
            try:
                staging.write(text)
                staging.sync()
                with translated(self._root):
                    staging.link_to(path)
            finally:
                staging.discard()
            kept = self._read_format(path)
        if self._own is not None:
            with translated(self._root):
                # Also for the one who came second: the first may have died before this.
                sync_path(self._root)
        if kept is None:
            raise StorageError(str(path), "it vanished")
        self._format = kept
        return kept

    def _open(self, namespace: str, digests: Sequence[Digest], opened: list[BinaryIO | None]) -> None:
        with translated(self._root), span(Stage.READ):
            for digest in digests:
                frame = open_frame(f"{self._root}/{chunk_key(namespace, digest)}")
                file = None if frame is None else os.fdopen(frame.descriptor, "rb", buffering=0)
                opened.append(file)
                if file is not None and sys.platform == "linux":
                    # `sendfile` waits for the disk in the event loop: let the kernel read ahead now.
                    unlocked(os.posix_fadvise, file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _sizes(self, namespace: str, digests: Sequence[Digest]) -> list[int]:
        with translated(self._root), span(Stage.READ):
            return [frame_size(f"{self._root}/{chunk_key(namespace, digest)}") for digest in digests]

    def _read_into(self, namespace: str, digests: Sequence[Digest], buffer: memoryview) -> list[memoryview | None]:
        parts: list[memoryview | None] = []
        start = 0
        with translated(self._root):
            for digest in digests:
                size = read_frame(f"{self._root}/{chunk_key(namespace, digest)}", buffer[start:])
                parts.append(buffer[start : start + size] if size else None)
                start += size
        return parts

    def _inspect(self, namespace: str, digests: Sequence[Digest]) -> list[FrameState]:
        with translated(self._root):
            return [inspect_file(self._root / chunk_key(namespace, digest)) for digest in digests]

    def _read_each(
        self, namespace: str, digests: Sequence[Digest], buffer: memoryview, visit: Callable[[Digest, memoryview], T]
    ) -> list[T | FrameState]:
        with translated(self._root):
            return [read_file(self._root / chunk_key(namespace, digest), digest, buffer, visit) for digest in digests]

    def _unlink(self, keys: list[str]) -> None:
        paths = [self._root / key for key in keys]
        with translated(self._root):
            for path in paths:
                try:
                    path.unlink()
                except (FileNotFoundError, NotADirectoryError):
                    pass
                except (IsADirectoryError, PermissionError):  # the second one on macOS
                    if not path.is_dir():
                        raise
                    set_aside(self._root, path)
            for folder in {path.parent for path in paths}:
                # Empty folders take a block each: with small chunks, that is a good part of what was removed.
                with suppress(OSError):
                    folder.rmdir()
                    folder.parent.rmdir()

    def _put_manifest(self, path: Path, digest: Digest, encoded: Buffer) -> None:
        if self._read_manifest(path) == encoded:
            # A collection may remove it, and its empty folder, at this moment. Then it is written again.
            with translated(self._root), suppress(FileNotFoundError):
                # Who wrote it may have died between its rename and this.
                sync_path(path.parent)
                return
        staging = self.new_staging()
        try:
            with span(Stage.WRITE, len(encoded)):
                staging.write(encoded)
            staging.sync()
            DiskPlacement(self._root, [(digest, staging, str(path))]).place_all()
        finally:
            staging.discard()

    def _read_manifest(self, path: Path) -> bytes | None:
        """Return the content of a manifest. Return None if nothing is there, and b"" if it cannot be read."""
        with translated(self._root):
            try:
                return read_small_file(path)
            except FileNotFoundError:
                return b"" if path.is_symlink() else None
            except OSError as error:
                if is_unreadable(error):
                    return b""
                raise

    def _open_manifest(self, path: Path, opened: list[BinaryIO | None]) -> None:
        """Append the open file of a manifest, as `ChunkStore.open_manifest` returns it."""
        with translated(self._root):
            try:
                opened.append(open_small_file(path) or BytesIO())
            except FileNotFoundError:
                opened.append(BytesIO() if path.is_symlink() else None)
            except OSError as error:
                if not is_unreadable(error):
                    raise
                opened.append(BytesIO())

    def _read_format(self, path: Path) -> bytes | None:
        with translated(self._root):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def _set_frame_aside(self, path: Path) -> str | None:
        with translated(self._root):
            try:
                return str(set_aside(self._root, path))
            except (FileNotFoundError, NotADirectoryError):
                return None


async def open_store(root: Path, *, min_free: int | None = None) -> DiskStore:
    """Open the store in the folder `root`. Make the folder if it does not exist.

    `min_free` is how many bytes of its disk stay free. None means 1 % of the disk, and at most 256 MiB.

    Folders in `tmp` that belonged to processes that have ended are removed. Raises StorageError, StorageFull.
    """
    opened: list[DiskStore] = []
    try:
        await in_disk_thread(_enter, root, min_free, opened)
    except BaseException:
        for store in opened:
            await store.close()
        raise
    return opened[0]


def store_for_reading(root: Path) -> DiskStore:
    """Open the store in `root` for reading only: nothing is made, locked or written. Methods that write raise ReadOnly."""
    return DiskStore(root.absolute(), None)


def _enter(root: Path, min_free: int | None, opened: list[DiskStore]) -> None:
    root = root.absolute()
    with translated(root):
        make_folder(root)
        warn_of_others(root, "the repository")
        (root / "tmp").mkdir(0o700, exist_ok=True)
        own = StagingFolder(root / "tmp")
        own.enter()
        opened.append(DiskStore(root, own, min_free=min_free))


def _close(files: Iterable[BinaryIO | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
