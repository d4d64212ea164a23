"""Open handles that a pipeline returned: their whole content, from wherever they stand, without moving or changing them."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filestore.core.names import checked_name, replace_separators
from filestore.errors import InvalidRun, SourceUnreadable
from filestore.system.files import storage_errors, write_all

_PIECE = 1 << 20
_spooling = partial(storage_errors, "the spool folder of the runtime")


def handle_name(handle: io.IOBase, default: str) -> str:
    """The last part of the path that a handle was opened by, with `_` for `@` and `:`; `default` if it has none.

    Raises InvalidName.
    """
    name = getattr(handle, "name", None)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    # The name of a descriptor's file is a number.
    last = Path(name).name if isinstance(name, str) else ""
    return checked_name(replace_separators(last or default))


def check_handle(handle: io.IOBase, where: str) -> None:
    """Whether all of a handle can be read; `where` stands in the error. Raises InvalidRun."""
    if handle.closed:
        raise InvalidRun(where, "it is closed; return the path of its file, or leave it open")
    binary = _binary(handle)
    if isinstance(binary, io.TextIOBase):
        raise InvalidRun(where, f"it is a {type(handle).__name__}, which holds text; return a BytesIO")
    if _descriptor(binary) is None and not binary.seekable():
        raise InvalidRun(where, "it cannot be read from its start; return a file, or bytes in a BytesIO")


@contextmanager
def readable_path(handle: io.IOBase, folder: Path | None, *, where: str) -> Iterator[Path]:
    """A path at which the content of a handle that was checked is read, from its start, as long as the block lasts. Blocks.

    A file that is open is opened once more: nothing of the handle is used but what it has not written yet. Of what lies in
    memory, or is decoded as it is read, a copy is made in `folder`, without a name there. `where` stands in errors.

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
    """A file without a name in its folder: nothing of it is left, however this process ends. Raises StorageFull, StorageError."""
    with _spooling():
        return tempfile.TemporaryFile(buffering=0, dir=folder)


def _binary(handle: io.IOBase) -> Any:
    """The bytes under a handle, or the handle itself."""
    return getattr(handle, "buffer", handle) if isinstance(handle, io.TextIOBase) else handle


def _descriptor(binary: object) -> int | None:
    """That of a handle which gives a file's bytes as they are; a GzipFile has one too, of other bytes."""
    raw = binary.raw if isinstance(binary, io.BufferedReader | io.BufferedWriter | io.BufferedRandom) else binary
    return raw.fileno() if isinstance(raw, io.FileIO) else None


def _flush(handle: io.IOBase, where: str) -> None:
    try:
        if handle.writable():
            handle.flush()
    except OSError as error:
        raise SourceUnreadable(where, error.strerror or str(error)) from None


def _copy(binary: Any, spool: io.FileIO, where: str) -> None:
    """Copy all of a handle, which then stands where it stood."""
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
