"""Publish a fetched tree at its target, and repair what a crash left. The names next to the target are defined here."""

from __future__ import annotations

import errno
import filecmp
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NoReturn

from blake3 import blake3

from filestore.core.digest import Digest
from filestore.errors import Busy, FilestoreError, StorageError, TargetError, storage_error
from filestore.format.zip.tree import for_display
from filestore.system.files import (
    move,
    remove,
    remove_if_possible,
    remove_in_place,
    storage_errors,
    sync_path,
    sync_tree,
    target_error,
)
from filestore.system.locks import FileLock
from filestore.system.metrics import Stage, span
from filestore.system.owners import PRIVATE_FOLDER, is_ours, is_shared
from filestore.transfer.sinks.compare import has_modes, matches_disk, resembles_disk
from filestore.transfer.sinks.protocol import OvertakenError
from filestore.transfer.sinks.tree import TreeStaging
from filestore.transfer.sinks.zip_index import Zip
from filestore.transfer.staging_name import STAGING_END, find_staging

ATTEMPTS = 3
LOCK_SECONDS = 60
"""How long a fetch waits for another one that replaces the content of the same folder, and removes the old tree."""

_REPLACING = ".filestore-replacing"
_MOVING = ".filestore-moving"
_DISCARDED = ".filestore-discarded"

OWN_NAMES = ".*.filestore-*"
"""A glob for the names that a fetch makes next to a target, or in it."""


def staging_folder(target: Path, digest: Digest) -> Path:
    """Return the folder in which the tree of a zip with this digest is staged, for a `target` that is new.

    The next fetch treats a tree in that folder like the rest of an interrupted fetch: it is checked, completed, and
    moved to `target`.
    """
    return Target(target, digest, force=False).staging


class Target:
    """The target of a tree, and our own names next to it or in it. Its methods block: call them in a thread.

    These names are next to a target that is new, or that is replaced as a whole. `<digest>` is the beginning of the
    digest of the tree's zip file, and `<label>` is a hash of the target's name:

        .<digest>-<label>.filestore-partial     the staging folder; its name has a random part where others may write
        .<digest>-<label>.filestore-discarded   a former staging folder that is being removed
        .<label>.filestore-aside                the old tree until the new one is published; moved back after a crash
        .<label>.filestore-halfway              what is moved name by name, because it cannot be renamed
        .<label>.filestore-discarded            the old tree that is being removed

    If the target is an empty folder, or a mount point that is replaced, they are in the target. When everything is
    staged, one rename of the staging folder decides that the new tree is published. If a crash interrupts the rest, the
    next fetch completes it. The new name says what is left to do:

        .<digest>-<label>.filestore-replacing   remove the parts of the old tree that could not be moved aside
        .<digest>-<label>.filestore-moving      move what is in it to the target, which has none of the old tree
    """

    def __init__(self, path: Path, digest: Digest, *, force: bool, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = path if path.name not in {"", ".."} else path.resolve()
        self.is_replaced = False
        """Something is at the path and will be replaced."""
        self.is_kept = False
        """A folder with content is at the path, and may not be replaced. The fetch is refused unless it is the same tree."""
        self._force = force
        self._lock_seconds = lock_seconds
        # Of fixed length, since the target's own name may already have 255 bytes. It differs from the label of a
        # fetched file.
        label = tree_label(self.path.name)
        self._stem = f".{digest.hex()[:32]}-{label}"
        self._staging_name = f"{self._stem}{STAGING_END}"
        self._discarded_name = f"{self._stem}{_DISCARDED}"
        self._aside_name = f".{label}.filestore-aside"
        self._halfway_name = f".{label}.filestore-halfway"
        self._replaced_name = f".{label}{_DISCARDED}"
        self._decided_ends = f"-{label}{_REPLACING}", f"-{label}{_MOVING}"
        self.is_inside = False
        """The tree is staged in the target itself, or published name by name. The folder of the target stays."""
        self.left: Path | None = None
        """Old content that could not be removed."""

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
        """Choose how the tree will be published and where it is staged, and repair a publication that a crash interrupted.

        Return whether the target holds what an earlier fetch has published. Raises TargetError, and Busy while another
        process replaces what is in it.
        """
        self._staging_name = f"{self._stem}{STAGING_END}"
        self.is_kept = False
        is_published = self._look()
        if not self.is_inside:
            with storage_errors(self.path, translate=target_error):
                self._staging_name = find_staging(self.path.parent / f"{self._stem}{STAGING_END}").name
        return is_published

    def _look(self) -> bool:
        with storage_errors(self.path, translate=target_error), suppress(FileNotFoundError):
            self._check_owners(self.path.parent)
        for name in (self._discarded_name, self._replaced_name):
            remove_if_possible(self.path.parent / name)
        try:
            self._recover(self.path.parent / self._aside_name, self.path)
            status = self.path.lstat()
        except FileNotFoundError:
            self.is_inside = self.is_replaced = False
            return False
        except OSError as error:
            raise target_error(str(self.path), error) from None
        if stat.S_ISLNK(status.st_mode):
            reason = f"it is a link to {self.path.readlink()}; give the place that it leads to, or remove the link"
            raise TargetError(str(self.path), reason)
        if stat.S_ISDIR(status.st_mode):
            with storage_errors(self.path, translate=_publish_error):
                self._check_owner_of_target(status)
                return self._look_into()
        if not self._force:
            raise TargetError(str(self.path), "a file is there; give another name, or have it replaced", hint="replace")
        self.is_inside, self.is_replaced = False, True
        self._check_replaced(self.path.parent)
        return False

    def holds(self, archive: Zip) -> bool:
        """Return whether the target is exactly the tree of `archive`. Cost: the whole tree is read."""
        return self._compares(lambda root: matches_disk(root, archive.members, ignored=self._ours))

    def holds_all(self, archive: Zip) -> bool:
        """Do what `holds` does, and compare the permission to execute too."""
        return self.holds(archive) and self._compares(lambda root: has_modes(root, archive.members))

    def resembles(self, archive: Zip) -> bool:
        """Return whether the target has the names, sizes and executable files of `archive`. No content is read."""
        return self._compares(lambda root: resembles_disk(root, archive.members, ignored=self._ours))

    def refuse_kept(self) -> None:
        """Raise TargetError if the fetch must not replace what is in the target."""
        if self.is_kept:
            reason = "it is not empty; give a new name or an empty folder, or have all of it replaced"
            raise TargetError(str(self.path), reason, hint="replace")

    def _compares(self, compare: Callable[[int], bool]) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return compare(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def check_names(self, archive: Zip) -> None:
        """Raise TargetError if the tree has a name that this fetch, or a later one to the same target, takes for its own.

        Such a name at the top of the target would be moved or removed like the rest of an interrupted fetch.
        """
        ours = {name.lower() for name in self._ours}
        for member in archive.members:
            name = member.path.partition("/")[0]
            # Some file systems do not keep upper and lower case apart.
            if name.lower() in ours or name.lower().endswith(self._decided_ends):
                reason = f"the tree has the name {for_display(name)!r}, which a fetch to this target uses itself"
                raise TargetError(str(self.path), f"{reason}; give a target with another name, or write it as a zip file")

    def discard(self) -> None:
        """Remove the staging folder. It is renamed first, since another process may work in it.

        A folder to which two processes fetched may have one in it, too.
        """
        for home in {self._home, self.path}:
            staging = home / self._staging_name
            # Of its own staging folder: another fetch to this target may discard its one at the same time.
            discarded = home / f"{self._staging_name.removesuffix(STAGING_END)}{_DISCARDED}"
            remove_if_possible(discarded)
            try:
                staging.rename(discarded)
            except OSError as error:
                if error.errno == errno.EXDEV:  # it came with a container image, and cannot be renamed
                    remove_if_possible(staging)
            remove_if_possible(discarded)

    def publish(self, staging: TreeStaging) -> None:
        """Make the tree durable, then let it appear (I3). Raises TargetError, Busy, StorageError, StorageFull."""
        with storage_errors(self.path, translate=_publish_error):
            try:
                with span(Stage.SYNC):
                    sync_tree(self.staging)
            except FileNotFoundError:
                raise OvertakenError from None
            staging.check_ours()
            if self.is_inside:
                self._publish_inside(self.staging)
            else:
                staging.open_to_others()
                self._publish_beside()

    def _check_owners(self, folder: Path) -> None:
        """Raise TargetError if another user may have put one of our names in `folder`. Raises OSError.

        What has such a name would be moved to the target, or published in it.
        """
        if not is_shared(folder):
            return
        for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names are enough
            is_old = name in {self._aside_name, self._halfway_name}
            # Beside the target, another name is taken for staging.
            is_staged = name.endswith(self._decided_ends) or (name == self._staging_name and folder == self.path)
            with suppress(FileNotFoundError):
                status = (folder / name).lstat() if is_old or is_staged else None
                # Old content has the permissions that it had as the target.
                if status is not None and not (is_ours(status) if is_staged else status.st_uid == os.geteuid()):
                    raise self._foreign(folder / name)

    def _check_owner_of_target(self, status: os.stat_result) -> None:
        """Raise TargetError if another user made the folder at the target, in a folder in which both may write.

        That user could later change what the fetch puts in it. A mounted volume may belong to anybody. Raises OSError.
        """
        if status.st_uid in {0, os.geteuid()} or not is_shared(self.path.parent) or self.path.is_mount():
            return
        reason = f"the folder is there and belongs to another user (user id {status.st_uid}), who could change what is in it"
        raise TargetError(str(self.path), f"{reason}; give another target, or remove the folder")

    def _foreign(self, path: Path) -> TargetError:
        reason = f"{path} is from another user, or others may write to it; if it is not your old content, remove it"
        return TargetError(str(self.path), f"{reason}, or else move it back to {self.path}, and fetch again")

    def _make_ours(self, folder: Path) -> None:
        """Make a folder with one of our names. If it exists, it must be ours. Raises TargetError, OSError."""
        try:
            folder.mkdir(PRIVATE_FOLDER)
        except FileExistsError:
            if is_shared(folder.parent) and folder.lstat().st_uid != os.geteuid():
                raise self._foreign(folder) from None
            if not _is_folder(folder):
                raise

    def _look_into(self) -> bool:
        self._check_owners(self.path)
        for name in (self._discarded_name, self._replaced_name):
            remove_if_possible(self.path / name)
        if self._put_right():
            self.is_inside, self.is_replaced = True, True
            return True
        self.is_replaced = bool(_names(self.path) - self._ours)
        self.is_kept = self.is_replaced and not self._force
        if self.is_kept:
            self.is_inside = False
            return False
        self.is_inside = not self.is_replaced or self.path.is_mount()
        if self.is_replaced:
            self._check_replaced(self._home)
        return False

    def _put_right(self) -> bool:
        """Repair the target after a crash: complete a publication that was decided, and undo one that was not.

        Return whether the completed publication is the one of the tree that this fetch would publish.
        """
        aside = self.path / self._aside_name
        with self._locked(aside):
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
                reason = f"{name!r} was put there meanwhile, and the old one is {aside / name}; remove one of the two"
                raise TargetError(str(self.path), reason)
        _move_into(aside, self.path)
        aside.rmdir()

    def _check_replaced(self, folder: Path) -> None:
        """Remove old content that an earlier fetch replaced and left.

        Its names must be free before this fetch replaces anything.

        Raises TargetError.
        """
        for name in (self._aside_name, self._replaced_name):
            try:
                remove(folder / name)
            except OSError as error:
                cause = error.strerror or error
                reason = f"an earlier fetch to {self.path} replaced it, and it could not be removed: {cause}"
                raise TargetError(str(folder / name), f"{reason}; remove it, and fetch again") from None

    def _drop(self, aside: Path) -> None:
        """Remove the old content, and note its path in `left` if that is not possible.

        It is renamed first. So after a crash, a tree that is aside is always complete and not yet replaced.
        """
        replaced = aside.with_name(self._replaced_name)
        remove_if_possible(replaced)
        try:
            aside.rename(replaced)
        except FileNotFoundError:
            return
        except OSError:
            replaced = aside  # it came with a container image, and cannot be renamed
        else:
            sync_path(aside.parent)
        try:
            remove(replaced)
        except OSError:
            self.left = replaced

    def _recover(self, aside: Path, path: Path) -> None:
        """Move back to `path` what an interrupted process moved aside. Remove it if something is at `path`."""
        halfway = aside.with_name(self._halfway_name)
        if os.path.lexists(path):
            self._drop(aside)
            remove_if_possible(halfway)
            return
        with suppress(FileNotFoundError):
            if os.path.lexists(halfway) or not _is_moved(aside, path):
                _move_through(halfway, aside, path)

    def _publish_beside(self) -> None:
        """Publish by a rename. Two processes may do this at once, so a name may have disappeared, or appeared again."""
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
        """Move the old target aside. Return False if it came with a container image, and cannot be renamed."""
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
        """Replace a staging folder that came with a container image by one that can be renamed.

        Raises OvertakenError always.

        The fetch then checks the staging folder again before it publishes it, since a crash or another process may have
        left less in it.
        """
        half = staging.with_name(self._discarded_name)
        with suppress(FileNotFoundError):
            remove(half)
            _move_through(half, staging, staging)
        raise OvertakenError

    def _publish_in_place(self) -> None:
        """Publish in a target that is a folder of a container image, and cannot be renamed."""
        staging = self.staging
        mode = stat.S_IMODE(staging.stat().st_mode)
        if not os.access(self.path, os.W_OK | os.X_OK):
            self.path.chmod(mode | stat.S_IRWXU)
        self._publish_inside(staging)
        self.is_inside = True
        with suppress(OSError):  # it belongs to another user
            self.path.chmod(mode)

    def _publish_inside(self, staging: Path) -> None:
        aside = self.path / self._aside_name
        if self.is_replaced:
            self._make_ours(aside)
        elif _names(self.path) - self._ours:
            raise OvertakenError
        with self._locked(aside):
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
        """Move the old content aside.

        Return False if a part of it came with a container image, and could not be moved.
        """
        self._make_ours(aside)
        is_clear = True
        for name in _names(self.path) - self._ours:
            is_clear = _is_moved(self.path / name, aside / name) and is_clear
        return is_clear

    def _complete(self, stem: str) -> None:
        """Complete a publication in the target that is decided. Another process may do the same at the same time."""
        replacing, moving, aside = self.path / (stem + _REPLACING), self.path / (stem + _MOVING), self.path / self._aside_name
        if os.path.lexists(replacing):
            if not os.path.lexists(moving):
                self._remove_stuck(_names(self.path) - self._ours - {replacing.name})
            self._clear_to_move(replacing, moving)
            sync_path(self.path)
        self._move_out(moving)
        sync_path(self.path)
        self._drop(aside)
        # Removed last: while it exists, the old content is not moved back.
        if self.left != aside:
            with suppress(FileNotFoundError):
                try:
                    moving.rmdir()
                except OSError as error:
                    if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                        raise
                    self._move_out(moving)
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
                self._make_ours(moving)
                _move_into(replacing, moving)
                replacing.rmdir()

    def _move_out(self, moving: Path) -> None:
        """Move all staged names into the target, one by one."""
        halfway = self.path / self._halfway_name
        with suppress(FileNotFoundError):
            names = _names(moving)
            half_moved = _names(halfway) if halfway.is_dir() else set()
            for name in names | half_moved:
                if os.path.lexists(self.path / name) and os.path.lexists(moving / name):
                    if _has_all_of(self.path / name, moving / name):
                        # A slower process staged it again, or wrote to the staging folder that it has open.
                        remove(moving / name)
                        continue
                    raise TargetError(str(self.path), f"{name!r} was put there meanwhile; remove it")
                with suppress(FileNotFoundError):
                    if name not in half_moved and _is_moved(moving / name, self.path / name):
                        continue
                    self._make_ours(halfway)
                    _move_through(halfway / name, moving / name, self.path / name)
            if half_moved or halfway.is_dir():
                halfway.rmdir()

    @contextmanager
    def _locked(self, aside: Path) -> Iterator[None]:
        """Hold a lock during the block, so that no other process repairs the target or publishes in it.

        If the folder `aside` does not exist, nothing is locked.

        The lock is required: two processes that move the same names at once would mix the old tree with the new one.
        Raises Busy, and TargetError where there are no locks.
        """
        try:
            lock = FileLock.of_folder(aside, is_required=True)
        except OSError:
            yield
            return
        with lock:
            try:
                is_held = lock.acquire(limit_seconds=self._lock_seconds)
            except StorageError:
                with suppress(OSError):
                    aside.rmdir()  # unless it has something
                reason = (
                    "file locks do not work there, and without them two fetches at once could mix the old tree with the new one;"
                    f" if no other fetch uses it, empty it by hand ({aside.name} in it is what was replaced), and fetch again"
                )
                raise TargetError(str(self.path), reason) from None
            if not is_held:
                reason = (
                    f"{lock.holder()} replaces what is in this folder and has not ended within {self._lock_seconds:g} seconds;"
                    " if it was stopped, continue it or end it"
                )
                raise Busy(str(self.path), reason)
            yield


def _publish_error(path: str, error: OSError) -> FilestoreError:
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}:
        return TargetError(path, "something else was put there meanwhile")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}:
        return target_error(path, error)
    return storage_error(path, error)


def tree_label(name: str) -> str:
    """Return the label of a target, which the names that a fetch makes next to the target contain."""
    return blake3(os.fsencode(name) + b"/").hexdigest()[:16]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _has_all_of(path: Path, other: Path) -> bool:
    """Return whether `path` has the same content as `other`. A folder may have more."""
    if path.is_symlink() or other.is_symlink():
        return path.is_symlink() and other.is_symlink() and path.readlink() == other.readlink()
    if path.is_dir() and other.is_dir():
        return all(_has_all_of(path / name, other / name) for name in _names(other))
    return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_moved(path: Path, to: Path) -> bool:
    """Move `path` to `to`.

    Return False if `path` is a folder of a container image, which cannot be renamed. Raises OSError.
    """
    try:
        move(path, to)
    except OSError as error:
        if error.errno != errno.EXDEV or not _is_folder(path):
            raise
        return False
    return True


def _move_through(half: Path, path: Path, to: Path) -> None:
    """Move a folder of a container image, which cannot be renamed, to `to`.

    Its names are moved one by one to `half`, which is then renamed. So `to` is complete as soon as it exists. A `half`
    that a crash left is completed. Raises OSError.
    """
    half.mkdir(PRIVATE_FOLDER, exist_ok=True)
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        _move_into(path, half)
        half.chmod(mode)
        path.rmdir()
    sync_tree(half)
    half.rename(to)


def _move_into(folder: Path, to: Path) -> None:
    """Move the content of a folder to another folder, also that of inner folders that cannot be renamed.

    Raises OSError.
    """
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
