"""Locks of files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from filestore.errors import StorageError
from filestore.system.locks import FileLock
from tests.support.disks import refuse_locks


def test_one_has_a_lock_and_several_share_one(tmp_path: Path) -> None:
    """A lock is had by one, or shared by any number."""
    first, second = (FileLock.of_folder(tmp_path, is_required=True) for _ in range(2))
    with first, second:
        assert (True, False, False) == (first.try_acquire(), second.try_acquire(), second.try_acquire(is_shared=True))
        assert (True, True) == (first.try_acquire(is_shared=True), second.try_acquire(is_shared=True))
        assert not first.try_acquire()


def test_lock_that_is_released_is_free_and_closed(tmp_path: Path) -> None:
    """Also where it is released again."""
    lock = FileLock.of_file(tmp_path / "lock", is_required=True)
    assert lock.acquire(limit_seconds=0)
    descriptor = lock.descriptor
    lock.release()
    lock.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with FileLock.of_file(tmp_path / "lock", is_required=True) as other:
        assert other.try_acquire()


def test_lock_that_nobody_has_any_more_is_free(tmp_path: Path) -> None:
    """As after a call that was cancelled while its thread took it."""
    FileLock.of_folder(tmp_path, is_required=True).acquire(limit_seconds=0)
    with FileLock.of_folder(tmp_path, is_required=True) as other:
        assert other.try_acquire()


async def test_lock_that_is_held_is_not_waited_for_without_limit(tmp_path: Path) -> None:
    """Neither in a thread nor in the event loop."""
    with FileLock.of_folder(tmp_path, is_required=True) as holder, FileLock.of_folder(tmp_path, is_required=True) as lock:
        assert holder.try_acquire()
        assert not lock.acquire(limit_seconds=0.001)
        assert not await lock.acquire_soon(limit_seconds=0.001)
        assert f"process {os.getpid()}" == lock.holder()
        assert not await lock.acquire_soon(limit_seconds=3600, is_done=lambda: True)
    assert "another process" == FileLock.of_folder(tmp_path, is_required=True).holder()


async def test_lock_file_that_was_removed_is_known_to_whoever_waited(tmp_path: Path) -> None:
    """The next one makes another file, and only one of both has a lock that counts."""
    path = tmp_path / "lock"
    with FileLock.of_file(path, is_required=True) as holder, FileLock.of_file(path, is_required=True) as waiting:
        assert holder.try_acquire()
        holder.remove()
        holder.remove()
        holder.release()
        assert (True, True) == (waiting.try_acquire(), waiting.is_removed())
        with FileLock.of_file(path, is_required=True) as following:
            assert (True, False) == (following.try_acquire(), following.is_removed())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_takes_no_lock_from_its_parent(tmp_path: Path) -> None:
    """It releases its copy, and the parent has the lock all the same."""
    with FileLock.of_folder(tmp_path, is_required=True) as lock, FileLock.of_folder(tmp_path, is_required=True) as other:
        assert lock.try_acquire()
        child = os.fork()
        if not child:
            lock.release()
            os._exit(0)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert not other.try_acquire()


def test_without_locks_a_required_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is not required counts as taken."""
    refuse_locks(monkeypatch)
    with FileLock.of_folder(tmp_path, is_required=False) as lock:
        assert lock.try_acquire()
    with FileLock.of_folder(tmp_path, is_required=True) as lock, pytest.raises(StorageError) as raised:
        lock.try_acquire()
    reason = "file locks do not work there (No locks available), and processes know of each other by them"
    assert f"{tmp_path} failed: {reason}; mount its file system with locks, or use a local disk" == str(raised.value)


def test_lock_of_a_folder_is_none_of_what_a_link_leads_to(tmp_path: Path) -> None:
    """Whoever puts a link there has us lock nothing of ours."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        FileLock.of_folder(tmp_path / "link", is_required=True)
