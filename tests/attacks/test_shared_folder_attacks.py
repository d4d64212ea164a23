"""Another user may write to the folder of a repository, of a lock or of the push cache, and puts something there before."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import FilestoreError, StorageError
from filestore.http.server.routes.sdk.uploads import begin, uploads_folder
from filestore.repository.folder import LAST_COMMIT_NAME, RESERVE_NAME
from filestore.repository.index.last_commit import LastCommit
from filestore.repository.index.protocol import IndexVersion
from filestore.repository.stores.disk_space import DiskSpace
from filestore.runtime.database import open_database
from filestore.system.locks import FileLock
from filestore.system.owners import is_ours, is_shared, make_own, make_private, usual_mode
from filestore.transfer.sources.push_cache import PushCache
from tests.support.strangers import STRANGER, needs_root
from tests.support.trees import plant


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which every user may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the user that nothing may change."""
    path = tmp_path / "victim"
    path.write_bytes(b"of the user")
    before = path.stat()
    yield path
    assert (b"of the user", before.st_mode) == (path.read_bytes(), path.stat().st_mode)


def test_a_link_in_the_place_of_a_lock_file(shared: Path, victim: Path) -> None:
    """It is not followed, so that no other file is opened, made or locked."""
    for name, leads_to in (("lock", victim), ("other", shared.parent / "new")):
        (shared / name).symlink_to(leads_to)
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            FileLock.of_file(shared / name, is_required=True)
    assert not (shared.parent / "new").exists()


def test_a_link_in_the_place_of_the_reserve(shared: Path, victim: Path) -> None:
    """The reserve takes space on the disk, so a file that a link leads to would be made longer."""
    (shared / RESERVE_NAME).symlink_to(victim)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        DiskSpace(shared).make_reserve()


def test_a_link_in_the_place_of_the_last_commit(shared: Path, victim: Path) -> None:
    """The file is not written through it. A missing one does no harm."""
    (shared / LAST_COMMIT_NAME).symlink_to(victim)
    LastCommit(shared / LAST_COMMIT_NAME).write(IndexVersion("0" * 32, 1))


def test_a_link_in_the_place_of_a_runtime_database(shared: Path) -> None:
    """A link that leads to nowhere does not make a file there."""
    (shared / "runtime.sqlite").symlink_to(shared.parent / "new")
    with pytest.raises(FilestoreError):
        open_database(shared)
    assert not (shared.parent / "new").exists()


def test_a_planted_folder_of_uploads_is_refused(shared: Path) -> None:
    """Its name is secret until the first upload. Whoever made it before could change the parts in it."""
    folders = uploads_folder(shared, b"secret")
    folders.mkdir()
    folders.chmod(0o777)
    with pytest.raises(StorageError, match="belongs to another user"):
        begin(folders, name="a", namespace="default")
    folders.rmdir()
    upload = begin(folders, name="a", namespace="default")
    begin(folders, name="b", namespace="default")
    assert 0o700 == folders.stat().st_mode & 0o777
    assert upload is not None


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_another_user_is_not_our_own(shared: Path, kind: str) -> None:
    """Also a link to a folder of ours is refused."""
    path = shared / "folder"
    if kind == "folder":
        path.mkdir()
        os.chown(path, STRANGER, STRANGER)
    else:
        path.symlink_to(shared.parent)
    with pytest.raises(OSError, match=r"belongs to another user|File exists"):
        make_own(path)


@needs_root
def test_a_push_cache_of_another_user_is_not_used(shared: Path) -> None:
    """It would say that files are stored whose content is another one. Everything is read, as without a push cache."""
    path = shared / "journal.sqlite"
    with PushCache(path):
        pass
    assert 0o600 == path.stat().st_mode & 0o777
    os.chown(path, STRANGER, STRANGER)
    before = path.read_bytes()
    with PushCache(path) as push_cache:
        assert push_cache._connection is None
    assert before == path.read_bytes()


@needs_root
@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o1777, 0), (0o755, STRANGER)])
async def test_a_repository_that_others_can_change_is_warned_about(
    tmp_path: Path, mode: int, owner: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning names the folder, once. It is used all the same, since volumes of containers look so."""
    root = tmp_path / "root"
    async with connect(root, create=True):
        pass
    assert [] == caplog.records
    root.chmod(mode)
    os.chown(root, owner, owner)
    for _ in range(2):
        async with connect(root):
            pass
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert f"the folder of the repository, {str(root)!r}, " in record.getMessage()


@needs_root
@pytest.mark.parametrize(("mode", "owner", "expected"), [
    (0o755, 0, False),
    (0o700, 0, False),
    (0o775, 0, True),
    (0o777, 0, True),
    (0o1777, 0, True),
    (0o755, STRANGER, True),
])  # fmt: skip
def test_folders_in_which_others_may_write(tmp_path: Path, mode: int, owner: int, *, expected: bool) -> None:
    """The permissions and the owner decide. The sticky bit does not keep others from making names."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    assert expected == is_shared(folder)


def test_what_is_ours(tmp_path: Path) -> None:
    """A file with one name or a folder of this user, to which nobody else may write. Links and pipes are not."""
    plant(tmp_path / "tree", {"file": b"1", "open": b"2", "first": b"3"})
    tree = tmp_path / "tree"
    (tree / "open").chmod(0o620)
    os.link(tree / "first", tree / "second")
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "pipe")
    (tree / "folder").mkdir()
    assert ["file", "folder"] == sorted(path.name for path in tree.iterdir() if is_ours(path.lstat()))


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077, 0o027])
def test_private_folders_and_usual_modes(tmp_path: Path, umask: int) -> None:
    """Private folders do not depend on the umask, and neither do their parents. The usual mode follows it."""
    before = os.umask(umask)
    try:
        make_private(tmp_path / "a/b")
        make_private(tmp_path / "a/b")
        (tmp_path / "file").touch(0o666)
        assert (tmp_path / "file").stat().st_mode & 0o777 == usual_mode(0o666)
    finally:
        os.umask(before)
    assert (0o700, 0o700) == ((tmp_path / "a").stat().st_mode & 0o777, (tmp_path / "a/b").stat().st_mode & 0o777)
