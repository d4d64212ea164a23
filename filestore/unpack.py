"""Unpack: the tree of a zip file in a repository, straight into place.

The central directory is read first, by range. Then chunks are written as they arrive, each where it belongs in its file:
the zip itself is never on a disk. What was staged is synced and appears by one rename (I3). What is here already is not
fetched: what the staging folder of a fetch that was cut holds, what the tree or file that is replaced holds, and what
seeds hold.

Where the target is an empty folder, such as a mounted volume, the staging folder lies inside it, and the names in it are
moved out one by one. That is not atomic: a reader may see some of them before the others. So it is with a target that came
with a container image: an overlay file system does not rename such a folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, NoReturn

from blake3 import blake3

from filestore.aio import in_cpu_thread, in_disk_thread
from filestore.archive import structures as zip_
from filestore.archive.read import (
    DEFAULT_LIMITS,
    TAIL_SIZE,
    Limits,
    Members,
    check_other_reading,
    check_preamble,
    find_end,
    other_readings,
    parse_central_directory,
)
from filestore.digest import Digest
from filestore.durable import sync_path, sync_tree
from filestore.errors import (
    FilestoreError,
    InvalidArchive,
    LimitExceeded,
    NotAnArchive,
    TargetError,
    TransferError,
    storage_error,
)
from filestore.manifest import Manifest
from filestore.objects import Record, Report
from filestore.receive import FileSeed, Located, OvertakenError, Receiving, Seed, closing
from filestore.removal import move, remove, remove_if_possible, remove_in_place
from filestore.repository import Repository
from filestore.source import FileSource
from filestore.stages import Stage, stage
from filestore.tree_source import TreeSource
from filestore.tree_staging import READ_FLAGS, TreeStaging, Zip, is_standing, read_zip
from filestore.walk import Symlinks, walk

ATTEMPTS = 3

_REPLACING = ".filestore-replacing"
_MOVING = ".filestore-moving"

_OURS = ".*.filestore-*"
"""A glob for the names that we put beside, or into, a target."""


class Unpacked(NamedTuple):
    """What an unpack did, in bytes of the zip."""

    path: Path
    size: int
    file_count: int
    """Files and links of the tree."""
    bytes_received: int
    """Encoded bytes of the frames that were received."""
    bytes_reused: int
    """Decoded bytes that were here already."""
    seconds: float
    manifest: Manifest
    tail: bytes
    """The zip's bytes from its central directory on: with the manifest, what a `TreeSeed` of the tree needs."""
    is_atomic: bool
    """The tree appeared by one rename. Else the target was a folder that stays, and its names appeared one by one."""
    left: Path | None
    """What stood there before, or a part of it, where it could not be removed; None otherwise."""


async def unpack(
    repository: Repository,
    record: Record,
    target: Path,
    *,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    manifest: Manifest | None = None,
    seeds: Sequence[Seed] = (),
    report: Report | None = None,
    reserve: Callable[[Zip], Awaitable[None]] | None = None,
) -> Unpacked:
    """Make the tree of the zip of `record` at `target`: a name that is free in an existing folder, or an empty folder.

    `manifest`: that of the zip, where the caller has it already; else the repository is asked. `reserve` is awaited before
    anything of the tree is written, and says by raising that there is no room for it.

    With `force`, what stands there, a file or a folder with all that is in it, is replaced; a link never is. Every byte is
    verified before anything appears, but for a target that is an empty folder or a mounted one: there names appear one by one.
    Refused, an archive leaves nothing behind, nor does what was refused before anything was written. Broken off otherwise, the
    staging folder stays, and the next unpack to the same target continues it. Chunks that a seed holds are copied instead of
    received. The seeds are closed.

    Raises NotAnArchive, InvalidArchive, LimitExceeded, TargetError, StorageFull, StorageError, DamagedChunk, ChunksMissing,
    NotFound, TransferError.
    """
    started = time.monotonic()
    with closing(seeds):
        if manifest is None:
            manifest = await in_cpu_thread(Manifest.parse, await repository.manifest(record.digest))
        place = _Target(target, manifest.digest, force=force)
        is_moved = await in_disk_thread(place.look)
        receiving = Receiving(repository, manifest, report, seeds=seeds)
        try:
            archive = await _structure(receiving, record.name, manifest.size, limits)
            if is_moved and await in_disk_thread(place.holds, archive):
                receiving.note_whole()
            else:
                if is_moved:
                    await in_disk_thread(place.look)
                if reserve is not None:
                    await reserve(archive)
                await _unpack(receiving, archive, manifest, place, seeds)
        except (InvalidArchive, LimitExceeded):
            await in_disk_thread(place.discard)
            raise
    return Unpacked(
        target,
        manifest.size,
        archive.file_count,
        receiving.moved,
        receiving.reused,
        time.monotonic() - started,
        manifest,
        archive.tail,
        not place.is_inside,
        place.left,
    )


def staging_folder(target: Path, digest: Digest) -> Path:
    """Where the tree of a zip of this digest is staged, for a `target` that is new.

    A tree that is put there is taken for what an unpack that was cut has left: checked, mended, and moved to `target`.
    """
    return _Target(target, digest, force=False).staging


async def _structure(receiving: Receiving, name: str, size: int, limits: Limits) -> Zip:
    """What the end of a zip file tells, and no more than that is read. Raises InvalidArchive, LimitExceeded."""
    start = max(size - TAIL_SIZE, 0)
    tail = await receiving.content(range(start, size))
    try:
        end = find_end(tail, size, limits=limits)
    except InvalidArchive as error:
        if zip_.END_SIGNATURE in tail:
            raise
        raise NotAnArchive(name, error.reason) from None
    # What was read already is kept, and costs nothing here.
    tail = tail[end.start - start :] if end.start >= start else await receiving.content(range(end.start, size))
    members = await in_cpu_thread(parse_central_directory, tail, end, limits=limits)
    archive = Zip(members, end, tail)
    if archive.preamble_size:
        check_preamble(await receiving.content(range(min(archive.preamble_size, 4))), members)
    for offset in other_readings(members, end):
        check_other_reading(await receiving.content(range(offset, offset + 4)))
    return archive


async def _unpack(receiving: Receiving, archive: Zip, manifest: Manifest, place: _Target, seeds: Sequence[Seed]) -> None:
    for attempt in count(1):
        try:
            await _stage(receiving, archive, manifest, place, seeds)
        except OvertakenError:
            if await in_disk_thread(place.holds, archive):
                await in_disk_thread(place.discard)
                receiving.note_whole()
                return
            if attempt == ATTEMPTS:
                reason = "its staging folder was removed again and again by someone else"
                raise TargetError(str(place.path), reason) from None
            await in_disk_thread(place.look)
        else:
            return


async def _stage(receiving: Receiving, archive: Zip, manifest: Manifest, place: _Target, seeds: Sequence[Seed]) -> None:
    older = await _older(receiving, manifest, place)
    if isinstance(older, TreeSeed) and older.manifest.digest == manifest.digest:
        receiving.note_whole()
        return
    found = [] if older is None else [older]
    with closing(found), TreeStaging(place.staging, place.path, archive) as staging:
        try:
            await in_disk_thread(staging.prepare)
            await receiving.reuse(staging, [*found, *seeds], resume=not staging.is_fresh)
            await in_disk_thread(staging.check_space)
            await receiving.download(staging)
            await in_disk_thread(staging.finish)
        except TargetError:
            await in_disk_thread(place.discard)
            raise
        except FilestoreError as error:
            # Nothing stays behind of what was refused before anything was written.
            if not isinstance(error, TransferError) and await in_disk_thread(staging.is_unused):
                await in_disk_thread(place.discard)
            raise
        await in_disk_thread(place.publish, staging)


async def _older(receiving: Receiving, manifest: Manifest, place: _Target) -> Seed | None:
    """What is to be replaced, as a seed, if it can be read."""
    if not place.is_replaced:
        return None
    try:
        if await in_disk_thread(place.path.is_dir):
            walked = await in_disk_thread(walk, place.path, symlinks=Symlinks.KEEP, exclude=[_OURS])
            with await in_cpu_thread(TreeSource, walked, cutting=manifest.cutting) as tree:
                older = await receiving.scan(tree)
                return TreeSeed(place.path, older, await in_cpu_thread(_tail, tree))
        with await in_disk_thread(FileSource, place.path, cutting=manifest.cutting) as file:
            return FileSeed(place.path, await receiving.scan(file))
    except FilestoreError:
        return None


def _tail(tree: TreeSource) -> bytes:
    start = max((stop for _, _, stop in tree.spans()), default=0)
    memory = bytearray(tree.size - start)
    tree.read_into(memoryview(memory), start)
    return bytes(memory)


class TreeSeed:
    """A tree that was unpacked, or pushed, with the manifest of its zip and the zip's bytes from the central directory on.

    Opened on first need, so that it may be gone by then.
    """

    def __init__(self, root: Path, manifest: Manifest, tail: bytes, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.manifest = manifest
        self._root = root
        self._tail = tail
        self._limits = limits
        self._archive: Zip | None = None
        self._descriptor = -1
        self._located: tuple[int, int] | None = None
        """The file that was located last: its number, and a descriptor."""

    def read_into(self, memory: memoryview, offset: int) -> bool:
        archive = self._opened()
        return archive is not None and read_zip(self._descriptor, archive, memory, offset)

    def locate(self, offset: int, size: int) -> Located | None:
        archive = self._opened()
        found = None if archive is None else archive.content_at(offset, size)
        if archive is None or found is None:
            return None
        if self._located is None or self._located[0] != found.number:
            self._close_located()
            try:
                descriptor = os.open(archive.members[found.number].path, READ_FLAGS, dir_fd=self._descriptor)
            except OSError:
                return None
            self._located = found.number, descriptor
        return Located(self._located[1], found.offset)

    def close(self) -> None:
        self._close_located()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._archive = None
        self._tail = b""

    def _opened(self) -> Zip | None:
        """None where there is no such tree, or no longer."""
        if self._archive is None and self._tail:
            tail, self._tail = self._tail, b""
            with suppress(FilestoreError, OSError):
                end = find_end(tail[-TAIL_SIZE:], self.manifest.size, limits=self._limits)
                if self.manifest.size - len(tail) == end.start:
                    members = Members(tail, end, limits=self._limits)
                    self._descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    self._archive = Zip(members, end, tail)
        return self._archive

    def _close_located(self) -> None:
        if self._located is not None:
            os.close(self._located[1])
            self._located = None


class _Target:
    """Where the tree is to stand, and the names beside or in it that are ours. Its methods block: call them in a thread.

    Beside a target that is new, or is replaced as a whole:

        .<digest>-<label>.filestore-partial     the staging folder
        .<digest>-<label>.filestore-discarded   what was the staging folder and is being removed
        .<label>.filestore-aside                what is replaced, while the new tree is not yet published: a crash brings it back
        .<label>.filestore-halfway              what goes back, or is moved out, where it cannot be renamed
        .<label>.filestore-discarded            what was replaced and is being removed

    In a target that is an empty folder, or a mounted one with `force`, they stand in it; and when all is staged, one rename of
    the staging folder decides that the new tree is published, so that what a crash interrupts is carried on by the next unpack:

        .<digest>-<label>.filestore-replacing   what of the old tree cannot be moved aside is still to be removed
        .<digest>-<label>.filestore-moving      nothing of it is left beside `aside`; the names are moved out
    """

    def __init__(self, path: Path, digest: Digest, *, force: bool) -> None:
        self.path = path if path.name not in {"", ".."} else path.resolve()
        self.is_replaced = False
        """Something stands there that is to go."""
        self._force = force
        # Of fixed length, since the target's own name may have 255 bytes already; other than that of a fetched file.
        label = tree_label(self.path.name)
        self._stem = f".{digest.hex()[:32]}-{label}"
        self._staging_name = f"{self._stem}.filestore-partial"
        self._discarded_name = f"{self._stem}.filestore-discarded"
        self._aside_name = f".{label}.filestore-aside"
        self._halfway_name = f".{label}.filestore-halfway"
        self._replaced_name = f".{label}.filestore-discarded"
        self._decided_ends = f"-{label}{_REPLACING}", f"-{label}{_MOVING}"
        self.is_inside = False
        """It is staged in the target itself, or published name by name; the target stays."""
        self.left: Path | None = None
        """What was replaced and could not be removed."""

    @property
    def staging(self) -> Path:
        """The staging folder."""
        return self._home / self._staging_name

    @property
    def _home(self) -> Path:
        return self.path if self.is_inside else self.path.parent

    @property
    def _ours(self) -> set[str]:
        names = {self._staging_name, self._discarded_name, self._aside_name, self._replaced_name, self._halfway_name}
        return names | {self._stem + _REPLACING, self._stem + _MOVING}

    def look(self) -> bool:
        """Find out how the tree can be published, and put right what a crash has left in the middle of it.

        Whether the target holds what an earlier unpack has published. Raises TargetError.
        """
        for name in (self._discarded_name, self._replaced_name):
            remove_if_possible(self.path.parent / name)
        try:
            self._recover(self.path.parent / self._aside_name, self.path)
            status = self.path.lstat()
        except FileNotFoundError:
            self.is_inside = self.is_replaced = False
            return self._check_parent()
        except OSError as error:
            raise TargetError(str(self.path), error.strerror or str(error)) from None
        if stat.S_ISLNK(status.st_mode):
            reason = f"it is a link to {self.path.readlink()}; give the place that it leads to, or remove the link"
            raise TargetError(str(self.path), reason)
        if stat.S_ISDIR(status.st_mode):
            with self._target_errors():
                return self._look_into()
        if not self._force:
            raise TargetError(str(self.path), "a file stands there; give another name, or --force to replace it")
        self.is_inside, self.is_replaced = False, True
        self._check_replaced(self.path.parent)
        return False

    def holds(self, archive: Zip) -> bool:
        """Whether the very tree of `archive` stands there. Cost: all of it is read."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return is_standing(descriptor, archive.members, ignored=self._ours)
        finally:
            os.close(descriptor)

    def discard(self) -> None:
        """Remove the staging folder, all of it at once: another process may be at work in it."""
        discarded = self._home / self._discarded_name
        remove_if_possible(discarded)
        try:
            self.staging.rename(discarded)
        except OSError as error:
            if error.errno == errno.EXDEV:  # it came with a container image
                remove_if_possible(self.staging)
        remove_if_possible(discarded)

    def publish(self, staging: TreeStaging) -> None:
        """Make the tree durable, then let it appear (I3)."""
        with self._target_errors():
            try:
                with stage(Stage.SYNC):
                    sync_tree(self.staging)
            except FileNotFoundError:
                raise OvertakenError from None
            staging.check_ours()
            if self.is_inside:
                self._publish_inside(self.staging)
            else:
                self._publish_beside()

    def _look_into(self) -> bool:
        for name in (self._discarded_name, self._replaced_name):
            remove_if_possible(self.path / name)
        if self._put_right():
            self.is_inside, self.is_replaced = True, True
            return True
        self.is_replaced = bool(_names(self.path) - self._ours)
        if self.is_replaced and not self._force:
            raise TargetError(
                str(self.path), "it is not empty; give a new name or an empty folder, or --force to replace all of it"
            )
        self.is_inside = not self.is_replaced or self.path.is_mount()
        if self.is_replaced:
            self._check_replaced(self._home)
        return False

    def _put_right(self) -> bool:
        """Carry on a publication in the target that was decided when a crash came; take back one that was not.

        Whether that has published the very tree.
        """
        aside = self.path / self._aside_name
        with _held(aside):
            names = _names(self.path)
            decided = {name.partition(".filestore-")[0] for name in names if name.endswith(self._decided_ends)}
            for stem in decided:
                self._complete(stem)
            if not decided and self._aside_name in names:
                self._put_back(aside)
        return self._stem in decided

    def _put_back(self, aside: Path) -> None:
        for name in _names(aside):
            if os.path.lexists(self.path / name) and not (_is_folder(self.path / name) and _is_folder(aside / name)):
                reason = f"{name!r} was put there meanwhile, and what stood there before is {aside / name}; remove one of the two"
                raise TargetError(str(self.path), reason)
        _move_into(aside, self.path)
        aside.rmdir()

    def _check_replaced(self, folder: Path) -> None:
        """What an earlier fetch has replaced must go before anything else can be put in its place. Raises TargetError."""
        for name in (self._aside_name, self._replaced_name):
            try:
                remove(folder / name)
            except OSError as error:
                cause = error.strerror or error
                reason = f"it is what a fetch to {self.path} has replaced before, and could not be removed: {cause}"
                raise TargetError(str(folder / name), f"{reason}; remove it, and fetch again") from None

    def _drop(self, aside: Path) -> None:
        """Remove what was replaced, and note where that is not possible.

        It is renamed first: what is found aside after a crash is always whole, and not yet replaced.
        """
        replaced = aside.with_name(self._replaced_name)
        remove_if_possible(replaced)
        try:
            aside.rename(replaced)
        except FileNotFoundError:
            return
        except OSError:
            replaced = aside  # it came with a container image
        else:
            sync_path(aside.parent)
        try:
            remove(replaced)
        except OSError:
            self.left = replaced

    def _check_parent(self) -> bool:
        if not self.path.parent.is_dir():
            raise TargetError(str(self.path), f"there is no folder {self.path.parent}; make it first")
        return False

    def _recover(self, aside: Path, path: Path) -> None:
        """What was moved aside by a process that ended before it was done goes back, or goes away."""
        halfway = aside.with_name(self._halfway_name)
        if os.path.lexists(path):
            self._drop(aside)
            remove_if_possible(halfway)
            return
        with suppress(FileNotFoundError):
            if os.path.lexists(halfway) or not _is_moved(aside, path):
                _move_through(halfway, aside, path)

    def _publish_beside(self) -> None:
        """Two processes may do this at once: what the other one has renamed is not there, or is there again."""
        aside = self.path.parent / self._aside_name
        for attempt in count(1):
            try:
                if self.is_replaced and not self._take_aside(aside):
                    self._publish_in_place()
                    return
                self.staging.rename(self.path)
                break
            except OSError as error:
                self._recover(aside, self.path)
                if not self.staging.exists() or (not self.is_replaced and os.path.lexists(self.path)):
                    raise OvertakenError from None
                if error.errno == errno.EXDEV:
                    self._renew(self.staging)
                if not self.is_replaced or attempt == ATTEMPTS:
                    raise
        sync_path(self.path.parent)
        self._drop(aside)

    def _take_aside(self, aside: Path) -> bool:
        """False where the target came with a container image, and cannot be renamed."""
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return True  # another process has done it
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        return True

    def _renew(self, staging: Path) -> NoReturn:
        """Have a staging folder that came with a container image be one that can be renamed. Raises OvertakenError.

        So it is looked through once more before it is published: what a crash or another process has made of it meanwhile is
        found as a staging folder with less in it.
        """
        half = staging.with_name(self._discarded_name)
        with suppress(FileNotFoundError):
            remove(half)
            _move_through(half, staging, staging)
        raise OvertakenError

    def _publish_in_place(self) -> None:
        """The target is a folder that came with a container image, and cannot be renamed."""
        staging = self.staging
        mode = stat.S_IMODE(staging.stat().st_mode)
        if not os.access(self.path, os.W_OK | os.X_OK):
            self.path.chmod(mode | stat.S_IRWXU)
        self._publish_inside(staging)
        self.is_inside = True
        with suppress(OSError):  # another user's
            self.path.chmod(mode)

    def _publish_inside(self, staging: Path) -> None:
        aside = self.path / self._aside_name
        if self.is_replaced:
            aside.mkdir(exist_ok=True)
        elif _names(self.path) - self._ours:
            raise OvertakenError
        with _held(aside):
            if not staging.exists():
                raise OvertakenError
            is_clear = not self.is_replaced or self._put_aside(aside)
            decided = self.path / (self._stem + (_MOVING if is_clear else _REPLACING))
            try:
                if not _is_moved(staging, decided):
                    self._renew(staging)
            except FileNotFoundError:
                raise OvertakenError from None
            sync_path(self.path)
            self._complete(self._stem)

    def _put_aside(self, aside: Path) -> bool:
        """Move all that is to be replaced. False: what came with a container image could not be moved, and is still there."""
        aside.mkdir(exist_ok=True)
        is_clear = True
        for name in _names(self.path) - self._ours:
            is_clear = _is_moved(self.path / name, aside / name) and is_clear
        return is_clear

    def _complete(self, stem: str) -> None:
        """Carry a publication in the target to its end, once it is decided. Another process may do the same at once."""
        replacing, moving, aside = self.path / (stem + _REPLACING), self.path / (stem + _MOVING), self.path / self._aside_name
        if os.path.lexists(replacing):
            if not os.path.lexists(moving):
                self._remove_stuck(_names(self.path) - self._ours - {replacing.name})
            self._clear_to_move(replacing, moving)
            sync_path(self.path)
        self._move_out(moving)
        sync_path(self.path)
        self._drop(aside)
        # Last: while it is there, what stands aside does not come back.
        if self.left != aside:
            with suppress(FileNotFoundError):
                moving.rmdir()

    def _remove_stuck(self, names: set[str]) -> None:
        for name in sorted(names):
            try:
                remove_in_place(self.path / name)
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = f"{name!r} in it could not be removed: {error.strerror or error}; remove it, and fetch again"
                raise TargetError(str(self.path), reason) from None

    def _clear_to_move(self, replacing: Path, moving: Path) -> None:
        with suppress(FileNotFoundError):
            try:
                replacing.rename(moving)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                moving.mkdir(exist_ok=True)
                _move_into(replacing, moving)
                replacing.rmdir()

    def _move_out(self, moving: Path) -> None:
        """Let all that was staged appear, name by name."""
        halfway = self.path / self._halfway_name
        with suppress(FileNotFoundError):
            names = _names(moving)
            half_moved = _names(halfway) if halfway.is_dir() else set()
            for name in names | half_moved:
                if os.path.lexists(self.path / name) and os.path.lexists(moving / name):
                    raise TargetError(str(self.path), f"{name!r} was put there meanwhile; remove it")
                with suppress(FileNotFoundError):
                    if name not in half_moved and _is_moved(moving / name, self.path / name):
                        continue
                    halfway.mkdir(exist_ok=True)
                    _move_through(halfway / name, moving / name, self.path / name)
            if half_moved or halfway.is_dir():
                halfway.rmdir()

    @contextmanager
    def _target_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}:
                raise TargetError(str(self.path), "something else was put there meanwhile") from None
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}:
                raise TargetError(str(self.path), error.strerror or str(error)) from None
            raise storage_error(str(self.path), error) from None


def tree_label(name: str) -> str:
    """What the names beside a target tell of its name."""
    return blake3(os.fsencode(name) + b"/").hexdigest()[:16]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_moved(path: Path, to: Path) -> bool:
    """`move`. False where it is a folder that came with a container image, and cannot be renamed. Raises OSError."""
    try:
        move(path, to)
    except OSError as error:
        if error.errno != errno.EXDEV or not _is_folder(path):
            raise
        return False
    return True


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Have no other process put a target right, or publish in it, meanwhile; where there is such a folder, and locks work."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _move_through(half: Path, path: Path, to: Path) -> None:
    """Move a folder that came with a container image, and cannot be renamed: name by name to `half`, which is then renamed.

    So `to` is whole as soon as it is there. A half that a crash has left is carried on. Raises OSError.
    """
    half.mkdir(exist_ok=True)
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        _move_into(path, half)
        half.chmod(mode)
        path.rmdir()
    sync_tree(half)
    half.rename(to)


def _move_into(folder: Path, to: Path) -> None:
    """Move all that is in a folder to another one, and what is in inner folders that cannot be renamed. Raises OSError."""
    for name in _names(folder):
        inner, new = folder / name, to / name
        if not os.path.lexists(new):
            if _is_moved(inner, new):
                continue
            new.mkdir()
        elif not (_is_folder(inner) and _is_folder(new)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        _move_into(inner, new)
        inner.rmdir()
