"""A database has a second name, as after `cp -al`. It is not opened, because each name would get a log of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import LinkedDatabase
from filestore.repository.index.last_commit import LastCommit
from filestore.repository.index.protocol import IndexVersion
from filestore.repository.index.sqlite import open_index, open_index_for_reading
from filestore.repository.stores.disk_space import DiskSpace
from filestore.runtime.database import open_database
from tests.support.commands import Home


def link_tree(folder: Path, to: Path) -> None:
    """Copy a folder by hard links."""
    subprocess.run(["cp", "-al", folder, to], check=True)


async def make_index(path: Path) -> None:
    """Make an empty index."""
    await (await open_index(path)).close()


@pytest.mark.slow
def test_a_linked_copy_is_refused_while_a_server_uses_the_original(home: Home, tmp_path: Path) -> None:
    """No command opens the copy. The server goes on, and nothing that was pushed to it is lost."""
    (home.folder / "file").write_bytes(b"content")
    root, copy = tmp_path / "root", tmp_path / "copy"
    with home.server(root=root) as server:
        first = home.result("push", home.folder / "file", "--name", "first", "--quiet", environ=server.environ)["id"]
        link_tree(root, copy)
        for command in (
            ("push", home.folder / "file", "--name", "lost", "--url", copy),
            ("ls", "--url", copy),
            ("backup", tmp_path / "target", "--root", copy),
        ):
            error = home.failure(*command)
            assert error.startswith(f"{copy}/index.sqlite is not opened: its file has 2 names"), error
            assert "filestore backup --full" in error
        second = home.result("push", home.folder / "file", "--name", "second", "--quiet", environ=server.environ)["id"]
        assert [second, first] == [record["id"] for record in home.result("ls", environ=server.environ)["files"]]
    assert "is not opened: its file has 2 names" in home.failure("ls", "--url", root)
    shutil.rmtree(copy)
    assert [second, first] == [record["id"] for record in home.result("ls", "--url", root)["files"]]


async def test_a_real_copy_of_the_file_is_opened(tmp_path: Path) -> None:
    """What the error says to do helps: copy the file, and rename the copy to the name. Other linked files do no harm."""
    async with connect(tmp_path / "root", create=True):
        pass
    link_tree(tmp_path / "root", tmp_path / "copy")
    with pytest.raises(LinkedDatabase):
        async with connect(tmp_path / "copy"):
            pass
    shutil.copy(tmp_path / "copy/index.sqlite", tmp_path / "copy/new")
    (tmp_path / "copy/new").rename(tmp_path / "copy/index.sqlite")
    for folder in ("copy", "root"):
        async with connect(tmp_path / folder) as repository:
            assert [] == await repository.records()


async def test_a_name_that_filestore_left_itself_is_removed(tmp_path: Path) -> None:
    """A process that is killed while it makes the file leaves a second name in the same folder."""
    path = tmp_path / "index.sqlite"
    await make_index(path)
    left = tmp_path / "index.sqlite.0123456789abcdef"
    os.link(path, left)
    await (await open_index_for_reading(path)).close()
    await (await open_index(path)).close()
    assert (False, 1) == (left.exists(), path.stat().st_nlink)


async def test_a_name_that_filestore_left_hides_no_other_one(tmp_path: Path) -> None:
    """A third name is still an error."""
    path = tmp_path / "index.sqlite"
    await make_index(path)
    os.link(path, tmp_path / "index.sqlite.0123456789abcdef")
    os.link(path, tmp_path / "other")
    for opening in (open_index, open_index_for_reading):
        with pytest.raises(LinkedDatabase, match="its file has 2 names"):
            await opening(path)


async def test_a_running_process_is_not_disturbed(tmp_path: Path) -> None:
    """Who has opened the file before it got a second name goes on: nobody opens it by that name."""
    async with connect(tmp_path / "root", create=True) as repository:
        link_tree(tmp_path / "root", tmp_path / "copy")
        assert [] == [record async for record in repository.iter_records()]


def test_the_database_of_a_runtime_is_refused_too(tmp_path: Path) -> None:
    """It has a log as well."""
    open_database(tmp_path).close()
    os.link(tmp_path / "runtime.sqlite", tmp_path / "other")
    with pytest.raises(LinkedDatabase, match="its file has 2 names"):
        open_database(tmp_path)


def test_a_commit_does_not_change_the_last_commit_of_a_linked_copy(tmp_path: Path) -> None:
    """The file is written in place. Otherwise the copy would be refused as older than its last commit."""
    first, second = IndexVersion(32 * "a", 1), IndexVersion(32 * "a", 2)
    LastCommit(tmp_path / "last-commit").write(first)
    os.link(tmp_path / "last-commit", tmp_path / "copy")
    LastCommit(tmp_path / "last-commit").write(second)
    assert (second, first) == (LastCommit(tmp_path / "last-commit").read(), LastCommit(tmp_path / "copy").read())


def test_a_linked_reserve_is_made_again(tmp_path: Path) -> None:
    """Its removal would free nothing, because the other name keeps the space."""
    space = DiskSpace(tmp_path)
    assert space.make_reserve()
    os.link(tmp_path / "reserve", tmp_path / "copy")
    assert space.make_reserve()
    assert (1, 1) == ((tmp_path / "reserve").stat().st_nlink, (tmp_path / "copy").stat().st_nlink)
