"""Stored files by the protocol `filestore://` of fsspec, for pandas, pyarrow, torch and everything else that reads through it.

>>> import fsspec
>>> options = {"repository": "http://127.0.0.1:8080", "token": "..."}
>>> with fsspec.open("filestore://my_model.zip/config.json", **options) as file: ...

A path is a reference, such as `weights.bin`, `weights.bin@v1` or `team/my_model@v1`; for a stored directory, `/` and the path in
it may follow. Only what is read is received, and each chunk is verified. Nothing is written: `filestore.push` stores files.

fsspec also takes the options from its own configuration, as from FSSPEC_FILESTORE_REPOSITORY and FSSPEC_FILESTORE_TOKEN.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from filestore import blocking
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, InvalidReference, NotAnArchive, NotFound
from filestore.repository.protocol import Repository
from filestore.system.loop_thread import run
from filestore.system.threads import ProcessLock, in_cpu_thread
from filestore.transfer.stored_ranges import StoredRanges, entry_ranges
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree, read_entry

READ_AHEAD = 32 << 20
"""The most bytes that are read ahead of somebody who reads one piece after the other."""
_FIRST_AHEAD = 4 << 20
"""Bytes that are read in order before anything is read ahead, and the first size of what is."""
_TREES = 8
"""How many opened trees are kept."""
_LINKS_LIMIT = 8
_SECOND = 1_000_000


class FilestoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The stored files of a repository, for reading. It is registered as `filestore`."""

    protocol = "filestore"
    root_marker = ""

    def __init__(
        self,
        repository: str | None = None,
        token: str | None = None,
        *,
        read_ahead: int = READ_AHEAD,
        connect: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Make it without connecting.

        repository: the URL of a server, or the path of a folder, as in `filestore.connect`.
        token: the token for the server.
        read_ahead: the most bytes that are read ahead; 0 receives nothing that is not read.
        connect: further arguments of `filestore.connect`.
        options: those of every file system of fsspec.

        Raises ValueError without `repository`.
        """
        super().__init__(repository=repository, token=token, read_ahead=read_ahead, connect=connect, **options)
        if not repository:
            raise ValueError(
                "filestore:// needs the option repository, which is the URL of a server or the path of a folder; "
                "the variable FSSPEC_FILESTORE_REPOSITORY sets it too"
            )
        self._location = repository
        self._options: dict[str, Any] = {"token": token, "read_only": True, **(connect or {})}
        self._read_ahead = read_ahead
        self._repository: blocking.Repository | None = None
        self._trees: dict[str, StoredTree] = {}
        self._lock = ProcessLock()
        """Threads share a file system."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return super()._strip_protocol(path).strip("/")

    @property
    def fsid(self) -> str:
        """What tells this file system apart."""
        return f"filestore_{self._opened.inner.fingerprint}"

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002  # fsspec's interface
        """Return what is in a stored directory, or which names an owner has; for the root, all names and owners.

        With `detail`, as dictionaries, of which `info` describes the keys. Raises FileNotFoundError.
        """
        path = self._strip_protocol(path)
        found = self._names("") if not path else self._listed(path)
        return sorted(found, key=lambda entry: entry["name"]) if detail else sorted(entry["name"] for entry in found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return `name`, `type` (`file`, `directory` or `link`) and `size` of what is at a path.

        A stored file also has `id`, `digest`, `created` and `mtime`; an executable file has `mode`. Raises FileNotFoundError.
        """
        path = self._strip_protocol(path)
        if not path:
            return _directory("")
        try:
            return self._find(path).info(path)
        except FileNotFoundError:
            if "/" in path or not self._names(path):
                raise
            return _directory(path)

    def created(self, path: str) -> datetime:
        """Return when this version was first stored under its name."""
        return _moment(self.info(path)["created"])

    def modified(self, path: str) -> datetime:
        """Return when this version was last stored under its name."""
        return _moment(self.info(path)["mtime"])

    def ukey(self, path: str) -> str:
        """Return the digest of a stored file, with the path in it: it changes when the content does."""
        found = self._find(self._strip_protocol(path))
        return f"{found.record.digest}/{'' if found.entry is None else found.entry.path}"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the content of a file, or a range of it. Nothing else is received."""
        content = self._content(self._strip_protocol(path))
        first, last, _step = slice(start, end).indices(content.size)
        return bytes(content.read(first, max(first, last)))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> StoredFile:
        if mode != "rb":
            raise NotImplementedError("filestore:// is for reading; filestore.push stores a file")
        return StoredFile(self, path, self._content(path), read_ahead=self._read_ahead)

    @property
    def _opened(self) -> blocking.Repository:
        with self._lock:
            if self._repository is None:
                self._repository = blocking.connect(self._location, **self._options)
            return self._repository

    def _names(self, owner: str) -> list[dict[str, Any]]:
        """Return the newest version of each name of an owner; for no owner, also the owners."""
        found: dict[str, dict[str, Any]] = {}
        for record in self._opened.iter_records():
            if owner == (record.owner or ""):
                found.setdefault(record.full_name, _Found(record).info(record.full_name))
            elif not owner and record.owner is not None:
                found.setdefault(record.owner, _directory(record.owner))
        return list(found.values())

    def _listed(self, path: str) -> list[dict[str, Any]]:
        try:
            found = self._find(path)
        except FileNotFoundError:
            names = [] if "/" in path else self._names(path)
            if not names:
                raise
            return names
        if found.info(path)["type"] != "directory":
            return [found.info(path)]
        tree, folder = self._tree(found.record), "" if found.entry is None else found.entry.path
        base = path.removesuffix(folder).rstrip("/")
        return [_Found(found.record, entry).info(f"{base}/{entry.path}") for entry in tree.entries(folder, recursive=False)]

    def _find(self, path: str) -> _Found:
        """Return what is at a path. Raises FileNotFoundError."""
        parts = path.split("/")
        # A name without an owner comes first: nobody can have an owner and a directory of that name by accident.
        for count in (1, 2)[: len(parts)]:
            with suppress(NotFound, EntryNotFound, InvalidReference, NotAnArchive):
                record = self._opened.record(Reference.parse("/".join(parts[:count])))
                if count == len(parts):
                    return _Found(record)
                entry = self._tree(record).entry("/".join(parts[count:]))
                if entry is not None:
                    return _Found(record, entry)
        raise FileNotFoundError(path)

    def _tree(self, record: Record) -> StoredTree:
        key = str(record.digest)
        with self._lock:
            tree = self._trees.pop(key, None)
        if tree is None:
            inner = self._opened.inner
            tree = run(lambda: StoredTree.open(inner, record.digest, name=record.full_name))
        with self._lock:
            self._trees[key] = tree
            while len(self._trees) > _TREES:
                del self._trees[next(iter(self._trees))]
        return tree

    def _content(self, path: str) -> _Content:
        """Return the content of the file at a path. Links in a directory are followed."""
        found = self._find(path)
        for _ in range(_LINKS_LIMIT):
            if found.entry is None or found.entry.kind is not EntryKind.LINK:
                break
            entry, inner = found.entry, self._opened.inner
            target = _Deflated(inner, self._tree(found.record), entry).read(0, entry.size).decode(errors="surrogateescape")
            followed = self._tree(found.record).entry(posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), target)))
            if followed is None:
                raise FileNotFoundError(path)
            found = _Found(found.record, followed)
        if found.info(path)["type"] != "file":
            raise IsADirectoryError(path)
        inner, record, entry_found = self._opened.inner, found.record, found.entry
        if entry_found is None:
            return _Ranges(run(lambda: _file_ranges(inner, record)))
        tree = self._tree(record)
        if entry_found.is_deflated:
            return _Deflated(inner, tree, entry_found)
        return _Ranges(run(lambda: entry_ranges(inner, tree, entry_found)))


class StoredFile(AbstractBufferedFile):  # type: ignore[misc]  # as above
    """A stored file that is open for reading.

    It keeps the chunks of the last read. Whoever reads one piece after the other has the next ones read ahead.
    """

    def __init__(self, fs: FilestoreFileSystem, path: str, content: _Content, *, read_ahead: int) -> None:
        """Use `fsspec.open`."""
        super().__init__(fs, path, "rb", cache_type="none", size=content.size)
        self._content = content
        self._ahead_limit = read_ahead
        self._start, self._kept = 0, memoryview(b"")
        """What was read last, and where it begins."""
        self._next, self._in_order = 0, 0
        """Where a read goes on that is in order, and how many bytes were read in order."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        is_next, before = start == self._next, self._in_order
        self._next, self._in_order = end, before + end - start if is_next else 0
        kept_end = self._start + len(self._kept)
        if self._start <= start and end <= kept_end:
            return bytes(self._kept[start - self._start : end - self._start])
        # A long first read, such as that of a tensor, does not say that more will be read.
        ahead = min(before, self._ahead_limit) if is_next and before >= _FIRST_AHEAD else 0
        stop = self._content.stop_of_chunk(min(end + ahead, self.size) - 1)
        begin = start
        head = b""
        if self._start <= start < kept_end:
            head, begin = bytes(self._kept[start - self._start :]), kept_end
        found = self._content.read(begin, stop)
        self._start, self._kept = begin, memoryview(found)
        return head + bytes(self._kept[: end - begin])


class _Content(Protocol):
    """The content of a file, by ranges. Its methods block."""

    size: int

    def stop_of_chunk(self, offset: int) -> int:
        """Return the end of what is best read together with the byte at `offset`."""

    def read(self, start: int, stop: int) -> bytearray:
        """Return a part of it."""


class _Ranges:
    """Content that is stored as it is."""

    def __init__(self, ranges: StoredRanges) -> None:
        self._ranges = ranges
        self.size = ranges.size

    def stop_of_chunk(self, offset: int) -> int:
        return self._ranges.stop_of_chunk(offset)

    def read(self, start: int, stop: int) -> bytearray:
        memory = bytearray(stop - start)
        run(lambda: self._ranges.read_into([(start, memoryview(memory))]))
        return memory


class _Deflated:
    """An entry that must be read from its beginning, because it is compressed in its zip file."""

    def __init__(self, repository: Repository, tree: StoredTree, entry: StoredEntry) -> None:
        self._repository = repository
        self._tree = tree
        self._entry = entry
        self.size = entry.size

    def stop_of_chunk(self, offset: int) -> int:
        return min(self.size, offset + _FIRST_AHEAD)

    def read(self, start: int, stop: int) -> bytearray:
        return run(lambda: self._gathered(start, stop))

    async def _gathered(self, start: int, stop: int) -> bytearray:
        memory = bytearray()
        async for piece in read_entry(self._repository, self._tree, self._entry, start, stop):
            memory += piece
        return memory


class _Found(NamedTuple):
    """What is at a path: a record, or an entry of it."""

    record: Record
    entry: StoredEntry | None = None

    def info(self, path: str) -> dict[str, Any]:
        """Return what `FilestoreFileSystem.info` returns."""
        record, entry = self.record, self.entry
        times = {"created": record.created_at / _SECOND, "mtime": record.updated_at / _SECOND}
        common: dict[str, Any] = {"id": record.id, "digest": str(record.digest), **times}
        if entry is None:
            is_tree = record.kind is Kind.DIRECTORY
            return {"name": path, "type": "directory" if is_tree else "file", "size": 0 if is_tree else record.size, **common}
        kind = {EntryKind.FILE: "file", EntryKind.FOLDER: "directory", EntryKind.LINK: "link"}[entry.kind]
        found = {"name": path, "type": kind, "size": entry.size, **common}
        return {**found, "mode": 0o755} if entry.is_executable else found


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "type": "directory", "size": 0}


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def _file_ranges(repository: Repository, record: Record) -> StoredRanges:
    return StoredRanges(repository, await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest)))
