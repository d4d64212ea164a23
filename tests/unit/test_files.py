"""Reads and writes of whole contents."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from filestore.core.digest import Buffer
from filestore.errors import FilestoreError, NotPermitted, StorageError, StorageFull, TargetError, storage_error
from filestore.system.files import (
    access_error,
    read_at,
    storage_errors,
    target_error,
    write_all,
    write_at,
    write_atomic,
    write_error,
)

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    """That of an empty file."""
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system moves at most 100 bytes a call, as a signal or a disk that is about to be full may have it do."""
    preadv, pwrite, write = os.preadv, os.pwrite, os.write
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:100]], offset))
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, memoryview(data)[:100], offset))
    monkeypatch.setattr(os, "write", lambda file, data: write(file, memoryview(data)[:100]))


@pytest.mark.parametrize("content", [CONTENT, memoryview(CONTENT), b""], ids=["bytes", "view", "nothing"])
@pytest.mark.usefixtures("in_small_steps")
def test_all_is_written_and_read_in_several_calls(descriptor: int, content: Buffer) -> None:
    """What a call leaves over is moved by the next one."""
    write_all(descriptor, content)
    assert len(content) == write_at(descriptor, content, len(content))
    memory = bytearray(2 * len(content))
    assert len(memory) == read_at(descriptor, memoryview(memory), 0)
    assert bytes(content) * 2 == memory


def test_read_ends_with_the_file(descriptor: int) -> None:
    """The rest of the memory stays as it is."""
    write_all(descriptor, CONTENT)
    memory = bytearray(b"\xff" * 10)
    assert 4 == read_at(descriptor, memoryview(memory), len(CONTENT) - 4)
    assert CONTENT[-4:] + b"\xff" * 6 == memory


def test_atomic_write_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Whoever reads sees the old content or the new one."""
    write_atomic(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as old:
        write_atomic(tmp_path / "file", memoryview(CONTENT))
        assert b"old" == old.read()
    assert [("file", CONTENT)] == [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]


def test_atomic_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """As where a folder has that name."""
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "file", CONTENT)
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


KEPT = "so that nothing new can be kept there; make it writable, or give another folder"


@pytest.mark.parametrize(
    ("translate", "code", "kind", "sentence"),
    [
        (storage_error, errno.EIO, StorageError, "here failed: Input/output error"),
        (storage_error, errno.EROFS, StorageError, "here failed: Read-only file system"),
        (write_error, errno.EROFS, StorageError, f"here failed: Read-only file system, {KEPT}"),
        (write_error, errno.EACCES, StorageError, f"here failed: Permission denied, {KEPT}"),
        (write_error, errno.EDQUOT, StorageFull, None),
        (access_error, errno.EROFS, StorageError, "here failed: Read-only file system"),
        (access_error, errno.EPERM, NotPermitted, None),
        (access_error, errno.ENOSPC, StorageFull, None),
        (target_error, errno.ENOSPC, TargetError, "here cannot be written: No space left on device"),
    ],
)
def test_errors_of_the_operating_system_are_translated(
    translate: Callable[[str, OSError], FilestoreError], code: int, kind: type[FilestoreError], sentence: str | None
) -> None:
    """By what was done there; the error of the operating system stays its cause, for the log of a server."""
    error = OSError(code, os.strerror(code))
    with pytest.raises(FilestoreError) as raised, storage_errors("here", translate=translate):
        raise error
    assert (kind, error) == (type(raised.value), raised.value.__cause__)
    assert sentence in {None, str(raised.value)}


def test_error_names_the_file_that_the_operating_system_names(tmp_path: Path) -> None:
    """And not only the folder."""
    with pytest.raises(StorageError, match="absent failed: No such file"), storage_errors(tmp_path):
        (tmp_path / "absent").read_bytes()
