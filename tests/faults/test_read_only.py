"""A folder repository is on a read-only disk, or belongs to another user. It can be read."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from filestore.backends import connect, open_backend
from filestore.core.records import Record
from filestore.errors import ChunksMissing, DamagedChunk
from filestore.repository.local import LocalRepository
from filestore.transfer.fetch import fetch
from filestore.transfer.push import push
from tests.support.commands import REPOSITORY, Home
from tests.support.disks import small_disk
from tests.support.readers import USER

CONTENT = bytes(range(256)) * 100


class Disk(NamedTuple):
    """A file system of its own, with a repository."""

    root: Path
    file: Path
    """The file that is pushed to it."""
    remount: Callable[[str], None]
    """Remount it with `ro` or `rw`."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk whose path has characters with a meaning in URLs."""
    file = tmp_path / "model.bin"
    file.write_bytes(CONTENT)
    folder = tmp_path / "disk ü 100%?mode=rw#x"
    with small_disk(folder, "size=16m") as remount:
        yield Disk(folder / "repository", file, remount)


async def filled(root: Path, file: Path, *, name: str = "model.bin") -> Record:
    """Return a record of `file`, in a repository that is made if it is absent."""
    async with connect(str(root), create=True) as repository:
        return (await push(repository, file, name=name)).record


def tree(folder: Path) -> set[str]:
    """Return everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
async def test_repository_on_a_read_only_disk_is_read(disk: Disk, home: Home, tmp_path: Path) -> None:
    """Every verb that only reads works. The verbs that write say that the disk is read-only."""
    record = await filled(disk.root, disk.file)
    disk.remount("ro")
    before = tree(disk.root)

    assert [record.as_json()] == home.result("ls", "--url", disk.root)["files"]
    assert record.id == home.result("info", "model.bin", "--url", disk.root)["id"]
    home.result("fetch", "model.bin", "--url", disk.root, "-o", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == CONTENT
    (warmed,) = home.result("cache", "warm", record.id, "--url", disk.root.as_uri())["files"]
    assert Path(warmed["path"]).read_bytes() == CONTENT
    assert 0 == home.result("push", disk.file, "--dry-run", "--url", disk.root)["bytes_new"]
    assert [] == home.result("token", "ls", "--root", disk.root)["tokens"]
    verbs: list[list[str | Path]] = [["push", disk.file, "--rehash", "--url", disk.root], ["rm", record.id, "--url", disk.root]]
    for verb in verbs:
        assert "Read-only file system" in home.failure(*verb)
    assert before == tree(disk.root)


_KILLED = """
import asyncio, os, sys
from pathlib import Path
from filestore.backends import connect
from filestore.transfer.push import push

async def main():
    async with connect(sys.argv[1]) as repository:
        await push(repository, Path(sys.argv[2]), name="later.bin")
        os._exit(9)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_log_of_a_killed_process_on_a_read_only_disk_is_not_passed_over(disk: Disk, home: Home) -> None:
    """Acknowledged pushes are in the log, so the command refuses and says why. After an open for writing, it is read."""
    await filled(disk.root, disk.file)
    subprocess.run([sys.executable, "-c", _KILLED, disk.root, disk.file], check=False)
    assert (disk.root / "index.sqlite-wal").stat().st_size
    disk.remount("ro")
    for verb, option in ("ls", "--url"), ("info model.bin", "--url"), ("token ls", "--root"):
        sentence = home.failure(*verb.split(), option, disk.root)
        assert f"{disk.root}/index.sqlite cannot be read: its log index.sqlite-wal is not empty" in sentence
        assert "its file system is read-only; stop the server that writes to it, or start and stop one" in sentence
        assert "`filestore serve`" in sentence
    disk.remount("rw")
    with home.server(root=disk.root):
        pass
    disk.remount("ro")
    assert ["later.bin", "model.bin"] == [file["name"] for file in home.result("ls", "--url", disk.root)["files"]]


@pytest.mark.parametrize(("damage", "error"), [("flipped", DamagedChunk), ("lost", ChunksMissing)])
async def test_damage_on_a_read_only_disk_is_told_as_what_it_is(disk: Disk, damage: str, error: type[Exception]) -> None:
    """The damage is reported, although it cannot be recorded there."""
    record = await filled(disk.root, disk.file)
    (path,) = (path for path in (disk.root / "chunks").rglob("*") if path.is_file())
    if damage == "lost":
        path.unlink()
    else:
        flipped = bytearray(path.read_bytes())
        flipped[-1] ^= 1
        path.write_bytes(flipped)
    disk.remount("ro")
    async with connect(str(disk.root), read_only=True) as repository:
        with pytest.raises(error):
            await fetch(repository, record, target=disk.file.with_name("back.bin"))


class OtherUser:
    """A process of another user, which reads on request."""

    def __init__(self, root: Path, target: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.readers", root, target],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read(self, verb: str = "read") -> dict[str, Any]:
        """Return what it finds after it has fetched everything, or the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{verb}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return dict(json.loads(line))

    def end(self) -> None:
        """End it. It must have printed nothing on standard error."""
        assert ("", "") == self._process.communicate(timeout=60)
        assert 0 == self._process.returncode


class Shared(NamedTuple):
    """A repository of this user, and another user who may read there."""

    root: Path
    file: Path
    target: Path
    """A folder of the other user."""
    other: OtherUser

    def let_read(self) -> None:
        """Allow the other user to read everything that is there now."""
        subprocess.run(["chmod", "-R", "a+rX", self.root], check=True)


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    """A shared repository with a file in it."""
    if os.geteuid() != 0:
        assert "CI" not in os.environ
        pytest.skip("needs the right to be another user")
    # The folders of tests are not used, because only root may enter them.
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "target").mkdir()
        os.chown(folder / "target", USER, USER)
        file = tmp_path / "model.bin"
        file.write_bytes(CONTENT)
        await filled(folder / "repository", file)
        other = OtherUser(folder / "repository", folder / "target")
        yield Shared(folder / "repository", file, folder / "target", other)
        other.end()


async def test_idle_repository_of_another_user_is_read(shared: Shared) -> None:
    """The reader leaves nothing in it."""
    shared.let_read()
    before = tree(shared.root)
    assert {"names": ["model.bin"]} == shared.other.read()
    assert CONTENT == (shared.target / "model.bin").read_bytes()
    assert before == tree(shared.root)


async def test_what_its_owner_writes_meanwhile_is_read(shared: Shared) -> None:
    """A reader that stays connected finds what was acknowledged before, while and after the owner has it open."""
    shared.let_read()
    assert {"names": ["model.bin"]} == shared.other.read()
    store, index = await open_backend(shared.root)
    repository = LocalRepository(store, index, location="")
    for count in range(1, 4):
        await push(repository, shared.file, name=f"{count}.bin")
        shared.let_read()
        assert count + 1 == len(shared.other.read()["names"])
    await repository.close()
    assert 4 == len(shared.other.read()["names"])
    await filled(shared.root, shared.file, name="5.bin")
    shared.let_read()
    assert 5 == len(shared.other.read()["names"])


async def test_repository_that_another_user_does_not_share_says_how_to_read_it(shared: Shared) -> None:
    """The error says to ask for the permission, or for the URL of the owner's server."""
    said = shared.other.read()
    assert "NotPermitted" == said["error"]
    assert "Permission denied; ask its owner for the right to use it, or for the URL of a server" in said["sentence"]


async def test_repository_that_another_user_has_open_says_how_to_read_it(shared: Shared) -> None:
    """The memory that its owner's processes share cannot be read, and the error says what to do."""
    shared.let_read()
    async with connect(str(shared.root)) as repository:
        await push(repository, shared.file, name="other.bin")
        (shared.root / "index.sqlite-shm").chmod(0o600)
        said = shared.other.read()
    assert "IndexUnreadable" == said["error"]
    assert "a process of another user has it open" in said["sentence"]
    assert "read it through the URL of that user's server" in said["sentence"]


async def test_repository_of_another_user_is_not_written(shared: Shared) -> None:
    """An open for writing fails, and the error names the owner. Nothing is left."""
    shared.let_read()
    before = tree(shared.root)
    said = shared.other.read("open")
    assert "NotPermitted" == said["error"]
    assert (
        "Permission denied; ask its owner for the right to use it, or for the URL of a server that serves it" in said["sentence"]
    )
    assert before == tree(shared.root)


_TORN = """
import asyncio, os, sys
from pathlib import Path
from filestore.errors import FilestoreError
from filestore.repository.index import records, sqlite

async def main():
    index = await sqlite.open_index_for_reading(Path(sys.argv[1]))

    def read(connection):
        try:
            return records.select_records(connection, "default", 10, None)
        except FilestoreError:
            print("torn", flush=True)
            sys.stdin.readline()
            raise

    if "kept" in sys.argv:
        await index._reader.run(lambda connection: connection.execute("SELECT * FROM records").fetchall())
        print("kept", flush=True)
        sys.stdin.readline()
    try:
        print(*(record.name for record in await index._reader.run(read)), flush=True)
    except FilestoreError as error:
        print(type(error).__name__, error, flush=True)
    await index.close()

os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
asyncio.run(main())
"""


def said_of_torn_record(shared: Shared, names: Iterator[str], *options: str) -> tuple[list[str], str]:
    """Let another user's reader meet an impossible record, then write the record again; return the reader's answer.

    With `kept`, the reader has the record in memory before it reads it again.
    """

    def write(name: str) -> None:
        with closing(sqlite3.connect(shared.root / "index.sqlite", isolation_level=None)) as connection:
            connection.execute("UPDATE records SET name = ?", (name,))
        # Set a later time: two writes within a tick of the clock may have the same time.
        modified_at = next(moments)
        os.utime(shared.root / "index.sqlite", ns=(modified_at, modified_at))

    moments = itertools.count((shared.root / "index.sqlite").stat().st_mtime_ns, 1_000_000_000)
    write("../torn")
    shared.let_read()
    reader = subprocess.Popen(
        [sys.executable, "-c", _TORN, shared.root / "index.sqlite", str(USER), *options],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    steps = []
    while (line := reader.stdout.readline().rstrip()) in {"kept", "torn"}:
        steps.append(line)
        for name in itertools.islice(names, 1):
            write(name)
        reader.stdin.write("\n")
        reader.stdin.flush()
    assert "" == reader.communicate()[0]
    assert 0 == reader.returncode
    return steps, line


async def test_record_that_is_torn_by_a_write_is_read_again(shared: Shared) -> None:
    """A file that changed during the read is not damaged. The result of that read is dropped."""
    assert (["torn"], "model.bin") == said_of_torn_record(shared, iter(["model.bin"]))


async def test_record_that_was_torn_by_an_earlier_write_is_read_again(shared: Shared) -> None:
    """A write that ended before the read began counts too, because the reader may still have older pages."""
    assert (["kept", "torn"], "model.bin") == said_of_torn_record(shared, iter(["model.bin"]), "kept")


async def test_record_that_is_torn_by_each_write_is_not_said_to_be_damaged(shared: Shared) -> None:
    """While the file changes between the reads, the error says that another process writes to it."""
    steps, said = said_of_torn_record(shared, (f"../{'x' * number}" for number in range(100)))
    assert ["torn"] * 10 == steps
    assert said.startswith("Busy ")
    assert "another process writes to it, and this user can only read it between two writes" in said


async def test_record_that_is_damaged_and_not_torn_is_told_at_once(shared: Shared) -> None:
    """If nobody wrote, the record is read only once."""
    steps, said = said_of_torn_record(shared, iter([]))
    assert ["torn"] == steps
    assert said.startswith("StorageError ")
    assert "is not valid" in said
