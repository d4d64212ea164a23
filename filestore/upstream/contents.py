"""Keep the contents of the upstream's files, and fetch each of them once, for all processes of a server.

    contents/KEY-SIZE       where the content is stored; its time of modification is that of its last use
    incoming/KEY-SIZE/      a content that arrives, or whose arrival was interrupted (`arriving`)
    locks/KEY-SIZE          the lock of the process that fetches it, which removes it; one that is killed leaves it for the next
    evicting                the lock of the process that makes room

KEY stands for the digest that the upstream states. If not everybody may read the repository, it stands for the repository too:
who may read one repository gets nothing by the digest of a content in another one.

A content is stored like a file that was pushed, in a namespace of its own that no token should have. So all namespaces share it,
each byte was verified against the digest of the upstream, and no client can put another content in its place.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.core.records import Record, checked_file_id
from filestore.core.references import Reference
from filestore.download.download import PARTIAL_NAME
from filestore.errors import Busy, FilestoreError, LimitExceeded, NotFound, UpstreamFailed
from filestore.http.server.errors import log_failure
from filestore.repository.local import LocalRepository
from filestore.system.files import remove_if_possible, storage_errors, write_durably
from filestore.system.locks import FileLock
from filestore.system.owners import make_private
from filestore.system.small_files import read_json
from filestore.system.threads import in_disk_thread, shield_until_done, work_beside
from filestore.transfer.fetch import fetch_record
from filestore.transfer.push import push
from filestore.upstream.arriving import ArrivingFile, ArrivingReader, digest_of
from filestore.upstream.hub import Hub, Refused
from filestore.upstream.listing import UpstreamFile

USE_SECONDS = 30.0
_DOWNLOADS = 8
"""The most contents that one process downloads at the same time."""
_WAITING = 4096
"""The most contents that a process fetches, with those that wait for their turn."""


class WantedContent(NamedTuple):
    """The content of a file at the upstream, and where it is."""

    kind: str
    name: str
    commit: str
    path: str
    file: UpstreamFile
    is_open: bool
    """Whether everybody may read the repository."""

    @property
    def id(self) -> str:
        """Names the content on disk."""
        scope = "" if self.is_open else f"{self.kind}/{self.name}"
        key = blake3(f"{scope}\0{self.file.tag}".encode()).hexdigest()
        return f"{key}-{self.file.size}"


class StoredContent(NamedTuple):
    """A content that is stored here."""

    digest: Digest
    record_id: str


class Contents:
    """The contents of the upstream's files. Make one in each process; use it in one event loop."""

    def __init__(
        self, folder: Path, repository: LocalRepository, hub: Hub, *, size_limit: int | None, use_seconds: float = USE_SECONDS
    ) -> None:
        """Keep them in `repository`, whose namespace is theirs alone. A use that lasts is noted every `use_seconds`."""
        self._folder = folder
        self.repository = repository
        self._hub = hub
        self._size_limit = size_limit
        self._use_seconds = use_seconds
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._downloads = asyncio.Semaphore(_DOWNLOADS)
        self._pushes = asyncio.Semaphore(1)

    async def find(self, wanted: WantedContent) -> StoredContent | None:
        """Return where a content is stored, and note the use. Return None if it is not here."""
        stored = await in_disk_thread(self._used, wanted.id)
        if stored is not None:
            try:
                await self.repository.record(Reference(id=stored.record_id))
            except NotFound:
                return None
        return stored

    def fetch(self, wanted: WantedContent, *, token: str | None) -> asyncio.Task[None]:
        """Return the task that fetches a content. It goes on when nobody waits for it. Raises Busy.

        The task raises Refused, UpstreamFailed, LimitExceeded, StorageFull, StorageError.
        """
        task = self._fetches.get(wanted.id)
        if task is None:
            if len(self._fetches) >= _WAITING:
                raise Busy("the upstream", "many files are fetched from it")
            task = self._fetches[wanted.id] = asyncio.create_task(self._fetch(wanted, token))
            task.add_done_callback(partial(self._ended, wanted.id))
        return task

    @asynccontextmanager
    async def using(self, wanted: WantedContent) -> AsyncIterator[None]:
        """Count a content as used for as long as the block takes, so that others are removed before it."""
        async with work_beside(self._note_uses(wanted.id)):
            yield

    async def has_arrived(self, wanted: WantedContent) -> bool:
        """Return whether all bytes of a content are here, although it may not be verified and stored."""
        return await in_disk_thread(_size_of, self._incoming(wanted.id) / PARTIAL_NAME) == wanted.file.size

    async def forget(self, wanted: WantedContent) -> None:
        """Remove a content that is damaged, unless a process fetches it."""
        await self._remove(wanted.id)

    def reader(self, wanted: WantedContent) -> ArrivingReader:
        """Return what reads a content while it arrives. The caller closes it."""
        return ArrivingReader(self._incoming(wanted.id))

    async def close(self) -> None:
        """Stop all fetches. The next ones continue where they stopped."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _note_uses(self, content_id: str) -> None:
        while True:
            await asyncio.sleep(self._use_seconds)
            await in_disk_thread(self._used, content_id)

    def _ended(self, content_id: str, task: asyncio.Task[None]) -> None:
        del self._fetches[content_id]
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, Refused | LimitExceeded | Busy):
            return
        # A fault of the upstream is not one of this server.
        level = logging.WARNING if isinstance(error, UpstreamFailed) else logging.ERROR
        log_failure(f"the content {content_id} of the upstream is not stored", error, level=level)

    async def _fetch(self, wanted: WantedContent, token: str | None) -> None:
        async with self._exclusive(wanted.id, limit_seconds=math.inf, is_done=partial(self._is_stored, wanted.id)) as is_held:
            if not is_held or await self.find(wanted) is not None:
                return
            staging = ArrivingFile(self._incoming(wanted.id), wanted.file)
            async with self._downloads:
                await self._make_room(wanted)
                if await self._recall(wanted):
                    return
                await self._arrive(wanted, staging, token)
            async with self._pushes:
                # If the server stops meanwhile, the verified file stays, and the next fetch stores it.
                await self._store(wanted, staging)

    async def _arrive(self, wanted: WantedContent, staging: ArrivingFile, token: str | None) -> None:
        """Download what is missing, and verify the whole."""
        try:
            await in_disk_thread(_open, staging)
            await in_disk_thread(staging.hash_rest)
            if not staging.is_whole:
                await in_disk_thread(staging.close)
                async with self.repository.space_for(wanted.file.size - staging.size, place=staging.path.parent):
                    await self._hub.download(
                        *(wanted.kind, wanted.name, wanted.commit, wanted.path),
                        staging=staging,
                        size=wanted.file.size,
                        token=token,
                    )
                await in_disk_thread(staging.open)
            found = await in_disk_thread(staging.verify)
        finally:
            await shield_until_done(in_disk_thread(staging.close))
        if staging.is_whole and found == wanted.file.tag:
            return
        await in_disk_thread(remove_if_possible, staging.path.parent)
        reason = (
            f"{wanted.path!r} has the digest {found}, and {wanted.file.tag} is what it says"
            if staging.is_whole
            else f"{wanted.path!r} has {staging.size} bytes, and {wanted.file.size} is what it says"
        )
        raise UpstreamFailed(wanted.name, reason)

    async def _recall(self, wanted: WantedContent) -> bool:
        """Note a content that is stored, although nothing says so, as after the restore of a backup. Return whether there is one.

        Its name proves nothing, so all its bytes are verified.
        """
        folder = self._incoming(wanted.id)
        copy = folder / "recalled"
        try:
            record = await self.repository.record(Reference(name=_name(wanted.id)))
            if record.size != wanted.file.size:
                return False
            await in_disk_thread(_announce, folder)
            await in_disk_thread(remove_if_possible, copy)
            async with self.repository.space_for(record.size, place=folder):
                await fetch_record(self.repository, record, target=copy)
            found = await in_disk_thread(digest_of, copy, wanted.file)
        except NotFound:
            return False
        except FilestoreError as error:
            log_failure(f"the stored content {wanted.id} of the upstream cannot be read", error, level=logging.WARNING)
            return False
        finally:
            await shield_until_done(in_disk_thread(remove_if_possible, copy))
        if found == wanted.file.tag:
            await self._note(wanted, record)
        return found == wanted.file.tag

    async def _store(self, wanted: WantedContent, staging: ArrivingFile) -> None:
        pushed = await push(self.repository, staging.path, name=_name(wanted.id))
        await self._note(wanted, pushed.record)

    async def _note(self, wanted: WantedContent, record: Record) -> None:
        """Note where a content is stored, which has no need of its folder any more."""
        values = {"digest": str(record.digest), "record": record.id}
        await in_disk_thread(write_durably, self._place(wanted.id), values)
        await in_disk_thread(remove_if_possible, self._incoming(wanted.id))

    async def _make_room(self, wanted: WantedContent) -> None:
        """Remove the contents that were not used for longest, until the wanted one fits below the limit."""
        if self._size_limit is None:
            return
        if wanted.file.size > self._size_limit:
            raise LimitExceeded(f"the size of {wanted.path!r}", wanted.file.size, self._size_limit, "upstream_limit")
        with await in_disk_thread(self._lock, "evicting") as lock:
            await lock.acquire_soon(limit_seconds=math.inf)
            await in_disk_thread(_announce, self._incoming(wanted.id))
            kept = await in_disk_thread(self._kept)
            total = sum(each.size for each in kept if each.id != wanted.id) + wanted.file.size
            for each in sorted(kept, key=lambda kept: kept.used_at):
                if total <= self._size_limit:
                    break
                if each.id != wanted.id and await self._remove(each.id):
                    total -= each.size
            if total > self._size_limit:
                raise Busy("the upstream", "files that arrive from it take all of upstream_limit")

    async def _remove(self, content_id: str) -> bool:
        """Remove a content, unless a process fetches it. Return whether it was removed."""
        async with self._exclusive(content_id, limit_seconds=0) as is_held:
            if not is_held:
                return False
            stored = await in_disk_thread(self._stored, content_id)
            if stored is not None:
                # First the record: if this process ends here, a content without a record counts as absent.
                with suppress(NotFound):
                    await self.repository.remove(stored.record_id, with_chunks=True)
            await in_disk_thread(remove_if_possible, self._place(content_id))
            await in_disk_thread(remove_if_possible, self._incoming(content_id))
        return True

    @asynccontextmanager
    async def _exclusive(
        self, content_id: str, *, limit_seconds: float, is_done: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[bool]:
        """Give whether this process alone has a content during the block, after a wait that `is_done`, which blocks, may end."""
        while True:
            with await in_disk_thread(self._lock, f"locks/{content_id}") as lock:
                if not await lock.acquire_soon(limit_seconds=limit_seconds, is_done=is_done):
                    yield False
                    return
                if await in_disk_thread(lock.is_removed):
                    continue
                try:
                    yield True
                finally:
                    await shield_until_done(in_disk_thread(lock.remove))
                return

    # Below: files. All functions block.

    def _place(self, content_id: str) -> Path:
        return self._folder / "contents" / content_id

    def _incoming(self, content_id: str) -> Path:
        return self._folder / "incoming" / content_id

    def _lock(self, name: str) -> FileLock:
        path = self._folder / name
        with storage_errors(path):
            make_private(path.parent)
            return FileLock.of_file(path, is_required=True)

    def _is_stored(self, content_id: str) -> bool:
        return self._stored(content_id) is not None

    def _stored(self, content_id: str) -> StoredContent | None:
        with suppress(OSError, ValueError, KeyError, TypeError, FilestoreError):
            values = read_json(self._place(content_id))
            return StoredContent(Digest.parse(values["digest"]), checked_file_id(values["record"]))
        return None

    def _used(self, content_id: str) -> StoredContent | None:
        stored = self._stored(content_id)
        if stored is not None:
            with suppress(OSError):
                os.utime(self._place(content_id))
        return stored

    def _kept(self) -> list[_Kept]:
        # While a content is stored, it is in both folders, and counts once.
        found = {kept.id: kept for kept in _listed(self._folder / "incoming")}
        found |= {kept.id: kept for kept in _listed(self._folder / "contents")}
        return list(found.values())


def _name(content_id: str) -> str:
    return f"upstream-{content_id}"


class _Kept(NamedTuple):
    id: str
    size: int
    used_at: float


def _listed(folder: Path) -> Iterator[_Kept]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            size = entry.name.rpartition("-")[2]
            if not entry.name.startswith(".") and size.isdecimal():
                with suppress(FileNotFoundError):
                    yield _Kept(entry.name, int(size), entry.stat().st_mtime)


def _size_of(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


def _open(staging: ArrivingFile) -> None:
    _announce(staging.path.parent)
    staging.open()


def _announce(folder: Path) -> None:
    """Make the folder of a content that will arrive, so that its size counts."""
    with storage_errors(folder):
        make_private(folder)
