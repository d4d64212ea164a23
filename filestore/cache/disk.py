"""Small files that appear whole, and folders that vanish whole. All blocks."""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filestore.durable import sync_descriptor, sync_path
from filestore.errors import StorageError, storage_error
from filestore.removal import remove_in_place

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class CannotMoveError(OSError):
    """A folder that can only be emptied and removed where it is."""


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Raises StorageError, StorageFull for what the operating system says in the block."""
    try:
        yield
    except OSError as error:
        if error.errno in _READ_ONLY:
            reason = f"{error.strerror}, so that nothing new can be kept there; make it writable, or give another cache folder"
            raise StorageError(str(error.filename or where), reason) from None
        raise storage_error(str(where), error) from None


def write_durably(path: Path, values: Mapping[str, object]) -> None:
    """Write a small file, and its folders. Raises StorageError, StorageFull."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(values).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that appears whole, and stays. Raises OSError."""
    staging = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with staging.open("xb") as file:
            file.write(content)
            file.flush()
            sync_descriptor(file.fileno())
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    sync_path(path.parent)


def take_aside(folder: Path, aside: Path) -> bool:
    """Take an entry out of readers' sight, the whole of it at once; False where there is none. Raises OSError.

    Raises CannotMoveError for one that came with a container image: an overlay file system does not rename such a folder.
    """
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise CannotMoveError(error.errno, error.strerror, str(folder)) from None
        raise
    return True


def take_away(folder: Path, aside: Path) -> bool:
    """`take_aside`, but what cannot be moved is removed where it is, and then there is none. Raises OSError."""
    try:
        return take_aside(folder, aside)
    except CannotMoveError:
        remove_in_place(folder)
        return False
