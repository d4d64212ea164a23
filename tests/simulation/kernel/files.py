"""The functions of `os` for files, as the product sees them: each call is a step, can fail, and is noted by its disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.simulation.kernel import real
from tests.simulation.kernel.descriptors import Descriptors, OpenFile, PathLike
from tests.simulation.kernel.disk import Disk, NameChange, Node
from tests.simulation.kernel.listing import Entries, Entry, status_of

_Buffer = bytes | bytearray | memoryview


class Place(NamedTuple):
    """A name on a simulated disk."""

    disk: Disk
    folder: Node | None
    name: str
    path: str
    """A path that the real functions accept, for `folder` as it is now."""


class Files:
    """The file functions of `os`, for the process whose thread runs."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._scheduler = descriptors.scheduler

    # Names.

    def open(self, path: PathLike, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """`os.open`."""
        place = self._enter("open", path, dir_fd)
        if place is None:
            return real.os_open(path, flags, mode, dir_fd=dir_fd)
        disk = place.disk
        is_unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        before = disk.node_of(place.path, follow=not flags & os.O_NOFOLLOW)
        descriptor = real.os_open(place.path, flags | os.O_CLOEXEC, mode)
        status = real.fstat(descriptor)
        if is_unnamed:
            node = disk.new_node(status)
        elif before is None:
            node = disk.new_node(status)
            folder, name = disk.folder_of(place.path)
            disk.renamed(NameChange(folder, name, None, node))
        else:
            node = before
            if flags & os.O_TRUNC and node.size:
                disk.truncated(node, 0, None)
        self._descriptors.add(descriptor, disk, node, place.path, is_appending=bool(flags & os.O_APPEND))
        return descriptor

    def mkdir(self, path: PathLike, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """`os.mkdir`."""
        place = self._enter("mkdir", path, dir_fd)
        if place is None:
            real.mkdir(path, mode, dir_fd=dir_fd)
            return
        real.mkdir(place.path, mode)
        folder, name = place.disk.folder_of(place.path)
        place.disk.renamed(NameChange(folder, name, None, place.disk.new_node(real.lstat(place.path))))

    def rmdir(self, path: PathLike, *, dir_fd: int | None = None) -> None:
        """`os.rmdir`."""
        place = self._enter("rmdir", path, dir_fd)
        if place is None:
            real.rmdir(path, dir_fd=dir_fd)
            return
        before = place.disk.node_of(place.path)
        status = real.lstat(place.path)
        real.rmdir(place.path)
        folder, name = place.disk.folder_of(place.path)
        place.disk.renamed(NameChange(folder, name, before, None))
        place.disk.removed(status, b"")

    def unlink(self, path: PathLike, *, dir_fd: int | None = None) -> None:
        """`os.unlink`."""
        place = self._enter("unlink", path, dir_fd)
        if place is None:
            real.unlink(path, dir_fd=dir_fd)
            return
        status = real.lstat(place.path)
        before = place.disk.node(status)
        content = _last_content(place.path, status)
        real.unlink(place.path)
        folder, name = place.disk.folder_of(place.path)
        place.disk.renamed(NameChange(folder, name, before, None))
        if content is not None:
            place.disk.removed(status, content)

    def rename(self, src: PathLike, dst: PathLike, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        """`os.rename`."""
        place = self._enter("rename", src, src_dir_fd, dst)
        if place is None:
            real.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        to = self._place(dst, dst_dir_fd)
        if to is None or to.disk is not place.disk:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), os.fspath(src))
        disk = place.disk
        moved = disk.node_of(place.path)
        replaced = disk.node_of(to.path)
        content, status = None, None
        if replaced is not None and replaced is not moved:
            status = real.lstat(to.path)
            content = b"" if replaced.is_folder else _last_content(to.path, status)
        real.rename(place.path, to.path)
        if moved is replaced:
            return
        source, target = disk.folder_of(place.path), disk.folder_of(to.path)
        disk.renamed(NameChange(*target, replaced, moved), NameChange(*source, moved, None))
        if content is not None and status is not None:
            disk.removed(status, content)

    def link(
        self,
        src: PathLike,
        dst: PathLike,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """`os.link`."""
        place = self._enter("link", src, src_dir_fd, dst)
        to = None if place is None else self._place(dst, dst_dir_fd)
        if place is None or to is None:
            real.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
            return
        real.link(place.path, to.path)
        folder, name = to.disk.folder_of(to.path)
        to.disk.renamed(NameChange(folder, name, None, to.disk.node_of(to.path)))

    def symlink(
        self,
        src: PathLike,
        dst: PathLike,
        target_is_directory: bool = False,
        *,
        dir_fd: int | None = None,
    ) -> None:
        """`os.symlink`."""
        place = self._enter("symlink", dst, dir_fd)
        if place is None:
            real.symlink(src, dst, target_is_directory, dir_fd=dir_fd)
            return
        real.symlink(src, place.path)
        folder, name = place.disk.folder_of(place.path)
        place.disk.renamed(NameChange(folder, name, None, place.disk.new_node(real.lstat(place.path))))

    def readlink(self, path: PathLike, *, dir_fd: int | None = None) -> Any:
        """`os.readlink`."""
        place = self._enter("readlink", path, dir_fd)
        given: Any = path
        return real.readlink(given, dir_fd=dir_fd) if place is None else real.readlink(place.path)

    def chmod(self, path: int | PathLike, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        """`os.chmod`."""
        place = None if isinstance(path, int) else self._enter("chmod", path, dir_fd)
        if place is None:
            real.chmod(path, mode, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
            return
        real.chmod(place.path, mode)
        node = place.disk.node_of(place.path, follow=True)
        if node is not None:
            node.changed_at = place.disk.now_ns

    def utime(
        self,
        path: int | PathLike,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """`os.utime`."""
        if isinstance(path, int):
            opened = self._descriptors.find(path)
            if opened is None or not self._descriptors.is_simulated():
                real.utime(path, times) if ns is None else real.utime(path, ns=ns)
                return
            self._operate(opened, "utime")
            disk, node = opened.disk, opened.node
        else:
            place = self._enter("utime", path, dir_fd)
            if place is None:
                more: dict[str, Any] = {"dir_fd": dir_fd, "follow_symlinks": follow_symlinks}
                real.utime(path, times, **more) if ns is None else real.utime(path, ns=ns, **more)
                return
            disk = place.disk
            status = real.stat(place.path) if follow_symlinks else real.lstat(place.path)
            node = disk.node(status)
        node.changed_at = disk.now_ns
        node.modified_at = ns[1] if ns is not None else int(times[1] * 1e9) if times is not None else disk.now_ns

    def access(
        self, path: PathLike, mode: int, *, dir_fd: int | None = None, effective_ids: bool = False, follow_symlinks: bool = True
    ) -> bool:
        """`os.access`."""
        place = self._enter("access", path, dir_fd)
        return real.access(path if place is None else place.path, mode)

    def stat(self, path: int | PathLike, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        """`os.stat`."""
        if isinstance(path, int):
            return self.fstat(path)
        place = self._enter("stat", path, dir_fd)
        if place is None:
            return self._descriptors.outside_status(path) or real.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        try:
            status = real.stat(place.path) if follow_symlinks else real.lstat(place.path)
        except OSError as error:
            error.filename = path
            raise
        return status_of(place.disk, place.disk.node(status), status)

    def lstat(self, path: PathLike, *, dir_fd: int | None = None) -> os.stat_result:
        """`os.lstat`."""
        return self.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def listdir(self, path: int | PathLike | None = ".") -> list[Any]:
        """`os.listdir`. The order is the seed's."""
        folder = self._folder(path)
        if folder is None:
            return real.listdir(path)
        disk, where = folder
        names = sorted(real.listdir(where))
        disk.random.shuffle(names)
        return names

    def scandir(self, path: int | PathLike | None = ".") -> Any:
        """`os.scandir`. The order is the seed's."""
        folder = self._folder(path)
        if folder is None:
            return real.scandir(path)
        disk, where = folder
        shown = "." if path is None else "" if isinstance(path, int) else os.fspath(path)
        text = os.fsdecode(shown)
        names = sorted(real.listdir(where))
        disk.random.shuffle(names)
        return Entries([Entry(self.stat, name, f"{text}/{name}" if text else name, f"{where}/{name}") for name in names])

    def statvfs(self, path: int | PathLike) -> os.statvfs_result:
        """`os.statvfs`."""
        if isinstance(path, int):
            opened = self._descriptors.find(path)
            disk = None if opened is None or not self._descriptors.is_simulated() else opened.disk
        else:
            place = self._enter("statvfs", path, None)
            disk = None if place is None else place.disk
        if disk is None:
            return real.statvfs(path)
        block = 4096
        free = max(0, disk.size - disk.used) // block
        return os.statvfs_result((block, block, disk.size // block, free, free, 1 << 20, 1 << 20, 1 << 20, 0, 255, disk.device))

    # Open files.

    def close(self, descriptor: int) -> None:
        """`os.close`."""
        self._descriptors.close(descriptor)

    def dup(self, descriptor: int) -> int:
        """`os.dup`."""
        opened = self._opened(descriptor, "dup")
        copy = real.dup(descriptor)
        if opened is not None:
            self._descriptors.add(copy, opened.disk, opened.node, opened.path, is_appending=opened.is_appending)
        return copy

    def fstat(self, descriptor: int) -> os.stat_result:
        """`os.fstat`."""
        opened = self._opened(descriptor, "fstat")
        status = real.fstat(descriptor)
        return status if opened is None else status_of(opened.disk, opened.node, status)

    def read(self, descriptor: int, size: int) -> bytes:
        """`os.read`."""
        self._opened(descriptor, "read")
        return real.read(descriptor, size)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        """`os.pread`."""
        self._opened(descriptor, "read")
        return real.pread(descriptor, size, offset)

    def preadv(self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        """`os.preadv`."""
        self._opened(descriptor, "read")
        return real.preadv(descriptor, buffers, offset, flags)

    def write(self, descriptor: int, data: _Buffer) -> int:
        """`os.write`."""
        opened = self._opened(descriptor, "write")
        if opened is None:
            return real.write(descriptor, data)
        offset = opened.node.size if opened.is_appending else real.lseek(descriptor, 0, os.SEEK_CUR)
        data = self._fitting(opened, offset, data)
        self._note(opened, descriptor, offset, data)
        return real.write(descriptor, data)

    def pwrite(self, descriptor: int, data: _Buffer, offset: int) -> int:
        """`os.pwrite`."""
        opened = self._opened(descriptor, "write")
        if opened is None:
            return real.pwrite(descriptor, data, offset)
        data = self._fitting(opened, offset, data)
        self._note(opened, descriptor, offset, data)
        return real.pwrite(descriptor, data, offset)

    def pwritev(self, descriptor: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        """`os.pwritev`."""
        return self.pwrite(descriptor, b"".join(bytes(buffer) for buffer in buffers), offset)

    def ftruncate(self, descriptor: int, size: int) -> None:
        """`os.ftruncate`."""
        opened = self._opened(descriptor, "truncate")
        if opened is not None:
            opened.disk.truncated(opened.node, size, _content_before(opened.node, descriptor))
        real.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        """`os.fsync`. The real file is not synced: only the model of the disk counts."""
        opened = self._opened(descriptor, "fsync")
        if opened is not None:
            opened.disk.sync(opened.node)

    def fdatasync(self, descriptor: int) -> None:
        """`os.fdatasync`."""
        self.fsync(descriptor)

    def sync_file_system(self, descriptor: int) -> None:
        """`syncfs`."""
        opened = self._opened(descriptor, "syncfs")
        if opened is not None:
            opened.disk.sync_all()

    def fchmod(self, descriptor: int, mode: int) -> None:
        """`os.fchmod`."""
        self._opened(descriptor, "chmod")
        real.fchmod(descriptor, mode)

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        """`os.posix_fallocate`. The file gets the size, and no real space."""
        opened = self._opened(descriptor, "fallocate")
        end = offset + size
        if opened is None or end > opened.node.size:
            if opened is not None:
                opened.disk.check_space(end - opened.node.size)
                opened.disk.truncated(opened.node, end, _content_before(opened.node, descriptor))
            real.ftruncate(descriptor, end)

    def sendfile(self, out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
        """`os.sendfile`."""
        opened = self._opened(in_fd, "sendfile")
        if opened is None and not self._descriptors.is_socket(out_fd):
            return real.sendfile(out_fd, in_fd, offset, count)
        start = real.lseek(in_fd, 0, os.SEEK_CUR) if offset is None else offset
        data = real.pread(in_fd, min(count, 1 << 20), start)
        if self._descriptors.is_socket(out_fd):
            return self._descriptors.sockets.send(out_fd, data) if data else 0
        sent = self.write(out_fd, data) if data else 0
        if offset is None:
            real.lseek(in_fd, start + sent, os.SEEK_SET)
        return sent

    def copy_file_range(
        self, src: int, dst: int, count: int, offset_src: int | None = None, offset_dst: int | None = None
    ) -> int:
        """`os.copy_file_range`, with both offsets."""
        source, opened = self._opened(src, "copy_file_range"), self._descriptors.find(dst)
        if source is None or opened is None or offset_src is None or offset_dst is None:
            return real.copy_file_range(src, dst, count, offset_src, offset_dst)
        data = real.pread(src, count, offset_src)
        if not data:
            return 0
        self._note(opened, dst, offset_dst, self._fitting(opened, offset_dst, data))
        return real.copy_file_range(src, dst, len(data), offset_src, offset_dst)

    # What they share.

    def _enter(self, call: str, path: PathLike, dir_fd: int | None, to: PathLike | None = None) -> Place | None:
        """Make a step for a call on a path. Return None for a path that is not on a simulated disk."""
        place = self._place(path, dir_fd)
        if place is None:
            return None
        disk = place.disk
        detail = place.path.removeprefix(disk.root)
        if to is not None:
            detail = f"{detail} -> {os.fsdecode(to).removeprefix(disk.root)}"
        self._scheduler.step(call, detail)
        self._set_clock(disk)
        disk.check_fault(call)
        return place

    def _place(self, path: PathLike, dir_fd: int | None) -> Place | None:
        if not self._descriptors.is_simulated():
            return None
        text = os.fsdecode(path)
        if dir_fd is not None and not text.startswith("/"):
            opened = self._descriptors.find(dir_fd)
            if opened is None:
                return None
            # The folder may have another name by now.
            return Place(opened.disk, opened.node, text, f"{self._path_now(opened, dir_fd)}/{text}")
        disk = self._descriptors.disk(text)
        return None if disk is None else Place(disk, None, "", text)

    def _folder(self, path: int | PathLike | None) -> tuple[Disk, str] | None:
        if isinstance(path, int):
            opened = self._opened(path, "list")
            return None if opened is None else (opened.disk, self._path_now(opened, path))
        place = None if path is None else self._enter("list", path, None)
        return None if place is None else (place.disk, place.path)

    @staticmethod
    def _path_now(opened: OpenFile, descriptor: int) -> str:
        """Return the path that an open folder has now."""
        disk = opened.disk
        return disk.root + real.readlink(f"/proc/self/fd/{descriptor}").removeprefix(disk.real_root)

    def _opened(self, descriptor: int, call: str) -> OpenFile | None:
        """Make a step for a call on an open file. Return None for one that is not on a simulated disk."""
        if not self._descriptors.is_simulated():
            return None
        opened = self._descriptors.find(descriptor)
        if opened is not None:
            self._operate(opened, call)
        return opened

    def _operate(self, opened: OpenFile, call: str) -> None:
        self._scheduler.step(call, opened.path.removeprefix(opened.disk.root))
        self._set_clock(opened.disk)
        opened.disk.check_fault(call)

    def _set_clock(self, disk: Disk) -> None:
        current = self._scheduler.current
        assert current is not None
        disk.now_ns = current.process.machine.wall_ns()

    @staticmethod
    def _fitting(opened: OpenFile, offset: int, data: _Buffer) -> memoryview:
        """Return as much of `data` as the disk has space for. Raises OSError if that is nothing."""
        view = memoryview(data).cast("B")
        disk = opened.disk
        more = offset + len(view) - opened.node.size
        if more > 0 and disk.used + more > disk.size:
            left = len(view) - (disk.used + more - disk.size)
            if left <= 0:
                disk.check_space(more)
            view = view[:left]
        return view

    @staticmethod
    def _note(opened: OpenFile, descriptor: int, offset: int, data: _Buffer) -> None:
        opened.disk.written(opened.node, offset, bytes(data), _content_before(opened.node, descriptor))


def _last_content(path: str, status: os.stat_result) -> bytes | None:
    """Return the content of what loses its last name. Return None if it has other names."""
    if stat.S_ISLNK(status.st_mode):
        return os.fsencode(real.readlink(path))
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        return None
    with real.open_file(path, "rb") as file:
        return file.read()


def _content_before(node: Node, descriptor: int) -> bytes | None:
    """Return the content of a file before the first write since its last sync. Return None if it is known, or empty."""
    if node.synced is not None or not node.size:
        return None
    # The descriptor may be for writing only.
    with real.open_file(f"/proc/self/fd/{descriptor}", "rb") as file:
        return file.read()
