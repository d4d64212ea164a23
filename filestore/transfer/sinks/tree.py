"""Write the tree of a zip file while it is fetched. The chunks of the zip arrive in almost any order, and become files.

The zip itself is never on a disk. The central directory says which bytes belong to which entry:

- Stored content is written to its place in its file when it arrives.
- Deflated content, and content before a descriptor, has an order: a byte can be understood only after all bytes before
  it. Small entries of this kind are collected in memory. A chunk of a large one is taken after the chunk before it.

Local headers, descriptors and checksums are compared meanwhile. The last bytes of a sequential file are written only
after its checks pass. So a file of full size has been verified, even if the process was killed.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Self

from filestore.errors import FilestoreError, StorageError, StorageFull, TargetError, storage_error
from filestore.format.zip.checksum import Checksum, crc32
from filestore.format.zip.read import (
    Member,
    check_crc,
    check_descriptor,
    check_links,
    check_local_header,
    link_target,
)
from filestore.format.zip.tree import for_display
from filestore.system.files import check_space, remove, storage_errors, sync_file_system, target_error, write_at
from filestore.system.locks import FileLock, claim, is_claimed
from filestore.system.owners import PRIVATE_FOLDER, is_ours, tighten_descriptor, usual_mode
from filestore.transfer.seeds import ContentRange, copy_range
from filestore.transfer.sinks.compare import FOLDER_FLAGS, is_whole, walk_folder
from filestore.transfer.sinks.protocol import FilePart, Ordering, OvertakenError, Staging
from filestore.transfer.sinks.zip_index import (
    GATHER_LIMIT,
    WriteMode,
    Zip,
    known_extent,
    member_paths,
    parent_folders,
    read_zip,
    write_mode_of,
)
from filestore.transfer.sinks.zip_stream import EntryStream, inflated

_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_UNKEPT = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.ENXIO)
"""Errors of a file system for a name that it cannot have, or that something else has already."""

_FULL = (errno.ENOSPC, errno.EDQUOT)

_NO_HEAD = memoryview(b"")

_FILE, _FOLDER_ENTRY = 1, 2
"""States of an entry that is complete. The state of any other entry is 0."""


class TreeStaging:
    """The folder that becomes the tree: a `Sink` for the zip. Its methods block: call them in a thread.

    Two processes that fetch the same zip to the same target write the same verified bytes to the same places of one
    staging folder. The process that is too late finds the finished tree. Call `prepare` first and `finish` last.

    Its methods raise InvalidArchive, TargetError, StorageFull, StorageError.
    """

    needs_checksums = True

    def __init__(self, path: Path, target: Path, archive: Zip, *, gather_limit: int = GATHER_LIMIT) -> None:
        """Set fields only: nothing on the disk is touched. Larger entries with an order are not collected in memory."""
        self._gather_limit = gather_limit
        self.is_fresh = False
        """The staging folder did not exist before."""
        self.file_count = 0
        self._path = path
        self._target = target
        self._zip = archive
        self._done = bytearray(len(archive.members))
        self._ways = bytearray()
        self._parents: set[str] = set()
        self._scattered: dict[int, _RandomWrites] = {}
        self._gathered: dict[int, _BufferedEntry] = {}
        self._streams: dict[int, EntryStream] = {}
        self._links: dict[str, str] = {}
        self._lock = threading.Lock()
        self._is_shared = False
        self._overwritten = 0
        self._root = -1
        self._staging: Staging | None = None
        self._claim: FileLock | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()
        if self._claim is not None:
            self._claim.release()

    @property
    def files_done(self) -> int:
        return self._done.count(_FILE)

    def prepare(self) -> None:
        """Open the staging folder, or make it if it does not exist. Make all folders of the tree in it.

        In an existing staging folder, names that do not belong to the tree are removed, and complete files are noted.
        """
        self.file_count = self._zip.file_count
        self._ways = bytearray(write_mode_of(member, gather_limit=self._gather_limit) for member in self._zip.members)
        self._parents = parent_folders(self._zip.members)
        with self._errors():
            self._open_root()
            if not self.is_fresh:
                self._resume()
        for path in sorted(self._parents):
            self._make_folder(path)

    def check_space(self) -> None:
        """Raise StorageFull if the disk has no space for the files that must still be fetched."""
        missing = [number for number, done in enumerate(self._done) if not done]
        size = sum(self._zip.members[number].size for number in missing)
        size -= self._overwritten + sum(part.received for part in self._scattered.values())
        check_space(self._root, size, where=self._target.parent)
        found = os.fstatvfs(self._root)
        # Some file systems have no such limit, and report 0.
        if self.is_fresh and found.f_files and len(missing) > found.f_favail:
            reason = f"{len(missing)} files and folders are needed and {found.f_favail} can be made"
            raise StorageFull(str(self._target.parent), reason)

    def order(self, offset: int, size: int) -> Ordering | None:
        if offset < self._zip.preamble_size:
            return Ordering.ANY if offset + size <= self._zip.preamble_size else Ordering.ONCE
        numbers = self._zip.overlap(offset, size)
        if not numbers or self._done.find(0, numbers.start, numbers.stop) < 0:
            return None
        first = numbers.start
        if self._ways[first] == WriteMode.SEQUENTIAL and not self._done[first] and self._zip.members[first].start < offset:
            return Ordering.AFTER
        return Ordering.ONCE if any(self._ways[numbers.start : numbers.stop]) else Ordering.ANY

    @property
    def staging(self) -> Staging:
        if self._staging is None:
            raise AssertionError("the staging folder is not open")
        return self._staging

    def file_at(self, offset: int, size: int) -> FilePart | None:
        part = self._zip.content_at(offset, size)
        return None if part is None or self._done[part.number] else part

    def open_file(self, number: int) -> int:
        member = self._zip.members[number]
        with self._errors(member.path):
            try:
                descriptor = self._open(number, access=os.O_RDWR)
            except PermissionError:  # an unusual umask
                descriptor = self._open(number)
            # Where a file has ended, it cannot be mapped. Another fetch gives it the same size.
            try:
                if os.fstat(descriptor).st_size < member.size:
                    os.ftruncate(descriptor, member.size)
            except OSError:
                os.close(descriptor)
                raise
        return descriptor

    def note_written(self, offset: int, size: int, checksum: int) -> None:
        part = self._zip.content_at(offset, size)
        if part is None:
            raise AssertionError(f"no file has the {size} bytes at {offset}")
        with self._errors(self._zip.members[part.number].path):
            self._note_part(part.number, part.offset, size, checksum)

    def write_error(self, offset: int, error: OSError) -> Exception:
        part = self._zip.content_at(offset, 1)
        try:
            return self._failure("" if part is None else self._zip.members[part.number].path, error)
        except OvertakenError as overtaken:
            return overtaken

    def read_into(self, memory: memoryview, offset: int) -> bool:
        return read_zip(self._root, self._zip, memory, offset)

    def copy(self, source: ContentRange, offset: int, size: int) -> bool:
        part = self._zip.content_at(offset, size)
        if part is None:
            return False
        with self._errors(self._zip.members[part.number].path):
            descriptor = self._open(part.number)
            try:
                return copy_range(source, descriptor, part.offset, size)
            finally:
                os.close(descriptor)

    def write(self, content: memoryview, offset: int, *, is_held: bool = False) -> None:
        end = offset + len(content)
        for number in self._zip.overlap(offset, len(content)):
            member = self._zip.members[number]
            start = max(member.start, offset)
            piece = content[start - offset : min(member.end, end) - offset]
            if self._done[number] or not piece:
                continue
            with self._errors(member.path):
                self._take_piece(number, start, piece, is_held=is_held)

    def sync(self) -> None:
        with self._errors():
            # One call for the file system: otherwise each call would sync all files again.
            sync_file_system(self._path)

    def check_ours(self) -> None:
        """Raise OvertakenError if another process has published or removed the staging folder.

        A tree that is published is never written to.
        """
        self.staging.check()

    def is_unused(self) -> bool:
        """Return whether the staging folder exists, has no files, and is not used by another process.

        If it returns True, no other process begins to use the folder before this process leaves it.
        """
        try:
            self.check_ours()
            has_files = any(not stat.S_ISDIR(status.st_mode) for _, status in walk_folder(self._root))
            return not has_files and self._claim is not None and not is_claimed(self._claim)
        except (OSError, StorageError, OvertakenError):
            return False

    def open_to_others(self) -> None:
        """Give the tree the permissions that it must have when it is published. Until then, only this user can enter it."""
        with suppress(PermissionError):  # some file systems have no permissions
            os.fchmod(self._root, usual_mode(0o777))

    def finish(self) -> None:
        """Make the links. They are made last, so that nothing is written through them."""
        missing = self._done.find(0)
        if missing >= 0:
            check_crc(self._zip.members[missing], None)
        check_links(self._zip.members, self._links)
        for path, target in self._links.items():
            self._make_link(path, target)
        if self._is_shared:
            with self._errors():
                self._check_names()

    def _open_root(self) -> None:
        try:
            if self._path.is_symlink() or self._path.is_file():
                self._path.unlink()
            self._path.mkdir(PRIVATE_FOLDER)
            self.is_fresh = True
        except FileExistsError:
            self._is_shared = True
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise target_error(str(self._target), error) from None
        self._claim = FileLock.of_folder(self._path, is_required=True)
        self._root = self._claim.descriptor
        self._staging = Staging.of(self._root, self._path)
        if not self.is_fresh and not is_ours(os.fstat(self._root)):
            reason = f"its staging folder {self._path} belongs to another user, or others may write to it; remove it"
            raise TargetError(str(self._target), reason)
        tighten_descriptor(self._root)
        claim(self._claim)
        self.check_ours()

    def _take_piece(self, number: int, start: int, piece: memoryview, *, is_held: bool) -> None:
        member = self._zip.members[number]
        if len(piece) == member.end - member.start:
            self._take_whole(number, piece, is_held=is_held)
        elif self._ways[number] == WriteMode.RANDOM:
            self._take_scattered(number, start, piece, is_held=is_held)
        elif self._ways[number] == WriteMode.BUFFERED:
            self._gather(number, start, piece)
        else:
            # The chunks of such an entry come in order, so one thread at a time is here.
            if number not in self._streams:
                self._streams[number] = EntryStream(member, self._create)
            if self._streams[number].feed(start, piece):
                del self._streams[number]
                self._note_done(number)

    def _take_whole(self, number: int, entry: memoryview, *, is_held: bool) -> None:
        """Check a whole entry, which `entry` has from its local header to its end, and write it."""
        member = self._zip.members[number]
        extent = check_local_header(member, entry[: member.head_size])
        data = entry[extent.start - member.start : extent.end - member.start]
        check_descriptor(member, entry[extent.end - member.start :])
        if member.is_deflated:
            self._keep(member, inflated(member, data))
        else:
            check_crc(member, crc32(data))
            if not is_held or not data:
                self._keep(member, iter((data,)))
        self._note_done(number)

    def _take_scattered(self, number: int, start: int, piece: memoryview, *, is_held: bool) -> None:
        """Check and write a part of an entry whose parts may be written in any order."""
        member = self._zip.members[number]
        extent = known_extent(member)
        head = piece[: max(extent.start - start, 0)]
        data, offset = piece[len(head) :], max(start - extent.start, 0)
        if data and not is_held:
            descriptor = self._open(number)
            try:
                write_at(descriptor, data, offset)
            finally:
                os.close(descriptor)
        self._note_part(number, offset, len(data), crc32(data), head=head, head_offset=start - member.start)

    def _note_part(
        self, number: int, offset: int, size: int, crc: int, *, head: memoryview = _NO_HEAD, head_offset: int = 0
    ) -> None:
        """Note a part of an entry whose parts may be written in any order: written content, and bytes of its header."""
        member = self._zip.members[number]
        with self._lock:
            part = self._part(number)
            part.checksum.add_summed(offset, size, crc)
            part.received += size
            part.head[head_offset : head_offset + len(head)] = head
            part.head_missing -= len(head)
            is_whole = not part.head_missing and part.received == member.size
        if head and not part.head_missing:
            check_local_header(member, part.head)
        if is_whole:
            check_crc(member, part.checksum.of(member.size))
            if not member.size:
                self._keep(member, iter(()))
            del self._scattered[number]
            self._note_done(number)

    def _part(self, number: int) -> _RandomWrites:
        """Return the state of an entry that is written in any order. Call it, and use its result, under the lock."""
        if number not in self._scattered:
            self._scattered[number] = _RandomWrites(self._zip.members[number])
        return self._scattered[number]

    def _gather(self, number: int, start: int, piece: memoryview) -> None:
        """Keep a part of a small entry in memory. The entry is written when all of its parts have arrived."""
        member = self._zip.members[number]
        with self._lock:
            if number not in self._gathered:
                self._gathered[number] = _BufferedEntry(member)
            gathered = self._gathered[number]
            gathered.entry[start - member.start : start - member.start + len(piece)] = piece
            gathered.missing -= len(piece)
            is_whole = not gathered.missing
        if is_whole:
            del self._gathered[number]
            self._take_whole(number, memoryview(gathered.entry), is_held=False)

    def _keep(self, member: Member, pieces: Iterator[bytes | memoryview]) -> None:
        """Make the file, the folder or the link of an entry.

        The iterator `pieces` checks the entry before it yields the last piece. So a file of full size has been
        verified.
        """
        first = next(pieces, b"")
        if member.is_folder:
            # `prepare` makes the folders that are not empty. So an empty folder exists only after its entry was
            # checked.
            if member.path and member.path not in self._parents:
                self._make_folder(member.path)
        elif member.is_link:
            self._links[member.path] = link_target(member, b"".join((first, *pieces)))
        else:
            descriptor = self._create(member)
            try:
                size = write_at(descriptor, first, 0)
                for piece in pieces:
                    size += write_at(descriptor, piece, size)
            finally:
                os.close(descriptor)

    def _note_done(self, number: int) -> None:
        self._done[number] = _FOLDER_ENTRY if self._zip.members[number].is_folder else _FILE

    def _open(self, number: int, *, access: int = os.O_WRONLY) -> int:
        """Open a file that is written in any order. It is made on first use."""
        member = self._zip.members[number]
        with self._lock:
            part = self._part(number)
            if not part.is_made:
                descriptor = self._create(member, access)
                part.is_made = True
                return descriptor
        return os.open(member.path, access | _REOPEN, dir_fd=self._root)

    def _create(self, member: Member, access: int = os.O_WRONLY) -> int:
        """Make a file and open it. If it exists, another or an earlier process made it, under exactly this name."""
        try:
            return os.open(member.path, access | _CREATE, 0o777 if member.is_executable else 0o666, dir_fd=self._root)
        except FileExistsError:
            self._check_name(member.path)
        descriptor = os.open(member.path, access | _REOPEN, dir_fd=self._root)
        if os.fstat(descriptor).st_size > member.size:
            os.ftruncate(descriptor, member.size)
        return descriptor

    def _make_folder(self, path: str) -> None:
        with self._errors(path):
            try:
                os.mkdir(path, dir_fd=self._root)
            except FileExistsError:
                self._check_name(path)
                if not stat.S_ISDIR(os.stat(path, dir_fd=self._root, follow_symlinks=False).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None

    def _make_link(self, path: str, target: str) -> None:
        with self._errors(path):
            try:
                os.symlink(target, path, dir_fd=self._root)
            except FileExistsError:
                self._check_name(path)
                if os.readlink(path, dir_fd=self._root) != target:
                    raise OvertakenError from None

    def _check_name(self, path: str) -> None:
        """Check that the existing entry at `path` has exactly this name.

        Otherwise the file system treats two names of the tree as one, and TargetError is raised.

        After the first such check, `finish` compares all names, since a file system may store another name than the one
        that it was given. Also raises OSError.
        """
        if self._is_shared:
            return
        folder, _, name = path.rpartition("/")
        descriptor = os.open(folder or ".", FOLDER_FLAGS, dir_fd=self._root)
        try:
            names = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
            inode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino
        finally:
            os.close(descriptor)
        if name not in names:
            others = [other for other, its in names.items() if its == inode]
            raise self._not_apart(path, f"{folder}/{others[0]}" if folder else others[0])
        self._is_shared = True

    def _check_names(self) -> None:
        numbers, folders = member_paths(self._zip.members)
        standing = {path: status.st_ino for path, status in walk_folder(self._root)}
        wanted = numbers.keys() | folders
        for path in sorted(wanted - standing.keys()):
            inode = os.stat(path, dir_fd=self._root, follow_symlinks=False).st_ino
            others = [other for other, its in standing.items() if its == inode]
            raise self._not_apart(path, others[0]) if others else OvertakenError
        if standing.keys() - wanted:
            raise OvertakenError

    def _not_apart(self, path: str, other: str) -> TargetError:
        reason = f"the file system there does not keep {for_display(other)!r} and {for_display(path)!r} apart"
        return TargetError(str(self._target), reason)

    def _errors(self, path: str = "") -> AbstractContextManager[None]:
        return storage_errors(path, translate=self._failure)

    def _failure(self, path: str, error: OSError) -> FilestoreError:
        """Translate an error of the operating system. Raises OvertakenError if the staging folder is gone."""
        if error.errno == errno.ENOENT:
            self.check_ours()
        if error.errno in _UNKEPT and path:
            return TargetError(str(self._target), f"the entry {for_display(path)!r} cannot be made there: {error.strerror}")
        return storage_error(str(self._target / path), OSError(error.errno, error.strerror))

    def _resume(self) -> None:
        """Note what an earlier fetch left, and remove what cannot be a part of the tree."""
        numbers, folders = member_paths(self._zip.members)
        leaves: dict[str, list[int]] = {}
        """The numbers of the entries of each folder. An archive may name a folder more than once."""
        for number, member in enumerate(self._zip.members):
            if member.is_folder:
                leaves.setdefault(member.path, []).append(number)
        for path, status in walk_folder(self._root):
            if stat.S_ISDIR(status.st_mode):
                if path not in folders:
                    remove(path, dir_fd=self._root)
                elif path not in self._parents:
                    for number in leaves.get(path, ()):
                        self._note_done(number)
            elif path not in numbers or not self._may_stay(numbers[path], status):
                os.unlink(path, dir_fd=self._root)

    def _may_stay(self, number: int, status: os.stat_result) -> bool:
        """Return whether a file or a link may stay, and note it as done if it is complete."""
        member = self._zip.members[number]
        if member.is_link:
            return is_whole(self._root, member, status)
        if stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IXUSR) != member.is_executable:
            os.chmod(member.path, 0o755 if member.is_executable else 0o644, dir_fd=self._root)
        if not stat.S_ISREG(status.st_mode) or status.st_size > member.size:
            return False
        if self._ways[number] == WriteMode.RANDOM and member.size:
            return True
        if status.st_size < member.size:
            self._overwritten += status.st_size
            return True
        if is_whole(self._root, member, status):
            self._note_done(number)
            return True
        return False


class _RandomWrites:
    """The state of a file that is written in any order."""

    def __init__(self, member: Member) -> None:
        self.is_made = False
        self.head = bytearray(known_extent(member).start - member.start)
        self.head_missing = len(self.head)
        self.checksum = Checksum()
        self.received = 0


class _BufferedEntry:
    """A small entry that is collected in memory."""

    def __init__(self, member: Member) -> None:
        self.entry = bytearray(member.end - member.start)
        self.missing = len(self.entry)
