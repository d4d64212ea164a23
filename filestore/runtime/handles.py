"""Read the whole content of an open handle, so that it can be stored. The position of the handle does not change."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filestore.core.names import checked_name, replace_separators
from filestore.errors import SourceUnreadable
from filestore.runtime.errors import InvalidRun
from filestore.system.files import source_error, storage_errors, write_all

_PIECE = 1 << 20
_spooling = partial(storage_errors, "the spool folder of the runtime")


def handle_name(handle: io.IOBase) -> str | None:
    """Return the name of a handle: the last part of the path that it was opened with, or None if it has no name.

    `@` and `:` in the name are replaced by `_`.

    Raises InvalidName.
    """
    name = getattr(handle, "name", None)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    # A handle that was opened by a descriptor has a number as its name.
    last = Path(name).name if isinstance(name, str) else ""
    return checked_name(replace_separators(last)) if last else None


def content_name(path: Path) -> str:
    """Return the name of content that has no name of its own. The same content has the same name. Blocks.

    `worker.py` makes the same names. Raises SourceUnreadable.
    """
    with storage_errors("the content of a handle", translate=source_error):
        if not path.is_file():
            return "output"  # a pipe, which must not be read here; the push refuses it
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256")
    return f"output-{digest.hexdigest()[:16]}"


def check_handle(handle: io.IOBase, where: str) -> None:
    """Raise InvalidRun unless the whole content of a handle can be read.

    `where` names the handle in the error.
    """
    if handle.closed:
        raise InvalidRun(where, "it is closed; return the path of its file, or leave it open")
    binary = _binary(handle)
    if isinstance(binary, io.TextIOBase):
        raise InvalidRun(where, f"it is a {type(handle).__name__}, which holds text; return a BytesIO")
    if _descriptor(binary) is None and not binary.seekable():
        raise InvalidRun(where, "it cannot be read from its start; return a file, or bytes in a BytesIO")


@contextmanager
def readable_path(handle: io.IOBase, folder: Path | None, *, where: str) -> Iterator[Path]:
    """Yield a path at which the content of a checked handle can be read from its start. Blocks.

    The path is valid until the block ends.

    If the handle has an open file, that file is opened once more. The handle is only flushed. Content in memory, or
    content that is decoded while it is read, is copied to a file without a name in `folder`. `where` names the handle
    in errors.

    Raises SourceUnreadable, StorageFull, StorageError.
    """
    binary = _binary(handle)
    descriptor = _descriptor(binary)
    if descriptor is not None:
        _flush(handle, where)
        yield Path(f"/dev/fd/{descriptor}")
        return
    with _spool(folder) as spool:
        _copy(binary, spool, where)
        yield Path(f"/dev/fd/{spool.fileno()}")


def _spool(folder: Path | None) -> io.FileIO:
    """Return a new file without a name, which disappears when this process ends. Raises StorageFull, StorageError."""
    with _spooling():
        return tempfile.TemporaryFile(buffering=0, dir=folder)


def _binary(handle: io.IOBase) -> Any:
    """Return the handle of the bytes under a text handle, or the handle itself."""
    return getattr(handle, "buffer", handle) if isinstance(handle, io.TextIOBase) else handle


def _descriptor(binary: object) -> int | None:
    """Return the descriptor of a handle that gives a file's bytes unchanged, else None.

    A GzipFile has a descriptor too, but its file has other bytes.
    """
    raw = binary.raw if isinstance(binary, io.BufferedReader | io.BufferedWriter | io.BufferedRandom) else binary
    return raw.fileno() if isinstance(raw, io.FileIO) else None


def _flush(handle: io.IOBase, where: str) -> None:
    with storage_errors(where, translate=source_error):
        if handle.writable():
            handle.flush()


def _copy(binary: Any, spool: io.FileIO, where: str) -> None:
    """Copy the whole content of a handle, and restore its position."""
    if isinstance(binary, io.BytesIO):
        with binary.getbuffer() as content:
            _write(spool, content)
        return
    try:
        position = binary.tell()
        try:
            binary.seek(0)
            while piece := binary.read(_PIECE):
                _write(spool, memoryview(piece))
        finally:
            binary.seek(position)
    except (OSError, ValueError) as error:
        raise SourceUnreadable(where, str(error) or type(error).__name__) from None


def _write(spool: io.FileIO, content: memoryview) -> None:
    with content.cast("B") as octets, _spooling():
        write_all(spool.fileno(), octets)
