"""Programs of earlier commits work beside this one, as far as docs/releasing.md promises."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from filestore.repository.index.sqlite import SCHEMA_VERSION
from tests.e2e.test_earlier_versions import SCHEMA_VERSIONS
from tests.golden.repositories.make import TREE
from tests.support.commands import Home, notes
from tests.support.generator import octets
from tests.support.links import running_link
from tests.support.programs import ARCHIVES, Program
from tests.support.server import eventually
from tests.support.trees import Folder, Planted, Script, plant, standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOO_OLD = "1423cff"
"""A commit of the time before the protocol had the names that it has now."""
OLDER = "495f52f"
"""A commit of the time before versions of a name could be listed."""
PREVIOUS = max(
    (commit for commit, version in SCHEMA_VERSIONS.items() if version < SCHEMA_VERSION), key=SCHEMA_VERSIONS.__getitem__
)
"""The last commit of the previous schema version."""
CONTENT = octets(1, 8 << 20)
"""Some chunks, which cannot be compressed."""
UPDATE = re.compile("older version of filestore[;,] update the server$")
"""What a user reads who asks an earlier server for what it cannot do."""
SHOWN = 2 << 20
"""A transfer is cut when this many bytes have passed."""
THINGS: dict[str, Planted] = {**TREE, "run.sh": Script(TREE["run.sh"]), "empty": Folder()}


class User:
    """A user of one program, with a home folder. Without a program, it is the one that is tested."""

    def __init__(self, folder: Path, program: Program | None = None) -> None:
        folder.mkdir()
        self.home = Home(folder)
        self.program = program
        self.environ: dict[str, str] = {}

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        if self.program is None:
            return self.home.run(*arguments, environ=self.environ)
        return self.program.run(self.home, *arguments, environ=self.environ)

    def result(self, *arguments: str | Path) -> Any:
        """Return what a command prints with --json. It must succeed."""
        done = self.run(*arguments, "--json")
        assert (0, "") == (done.returncode, done.stderr)
        return json.loads(done.stdout)

    def failure(self, *arguments: str | Path) -> str:
        """Return the one line in which a command explains its failure."""
        done = self.run(*arguments)
        assert (1, 1) == (done.returncode, notes(done).count("\n")), done.stderr
        return notes(done)

    def names(self, *arguments: str | Path) -> set[str]:
        """Return the names that a listing has."""
        return {record["name"] for record in self.result("ls", *arguments)["files"]}

    async def killed(self, link_port: int, reached: asyncio.Event, *arguments: str | Path) -> None:
        """Run a command through a link, and kill it when `reached` is set."""
        program = self.program
        assert program is not None
        url = f"http://127.0.0.1:{link_port}"
        environ = {**self.home.environ, **program.environ, **self.environ, "FILESTORE_URL": url}
        process = await asyncio.create_subprocess_exec(*program.command, *arguments, "--quiet", env=environ)
        try:
            await reached.wait()
        finally:
            process.kill()
            await process.wait()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The program of the previous schema version."""
    return Program(PREVIOUS, tmp_path / "program")


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A file to push."""
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTENT)
    return path


def used(user: User, content: Path, folder: Path) -> None:
    """Push, list, show, fetch and remove, as a user of any version does."""
    folder.mkdir()
    tree = plant(folder / "tree", THINGS)
    pushed = user.result("push", content)
    assert pushed["bytes_sent"] > len(CONTENT)
    assert (0, pushed["id"]) == ((again := user.result("push", content, "--rehash"))["bytes_sent"], again["id"])
    user.result("push", tree)
    assert pushed["digest"] == user.result("info", content.name)["digest"]
    user.result("fetch", content.name, "-o", folder / "fetched.bin")
    assert CONTENT == (folder / "fetched.bin").read_bytes()
    user.result("fetch", "tree.zip", "-o", folder / "fetched", "--unzip")
    assert THINGS == standing(folder / "fetched")


def test_every_earlier_schema_version_has_a_program() -> None:
    """The code of a commit is kept for each archive of a repository."""
    assert {f"{commit}.tar.xz" for commit in SCHEMA_VERSIONS} == {path.name for path in ARCHIVES.glob("*.tar.xz")}


def test_an_earlier_client_uses_this_server(home: Home, program: Program, content: Path, tmp_path: Path) -> None:
    """It pushes, lists, fetches and removes."""
    user = User(tmp_path / "user", program)
    with home.local_server() as server:
        user.environ = server.environ
        used(user, content, tmp_path / "work")
        assert {content.name, "tree.zip"} == user.names()
        user.result("rm", user.result("info", content.name)["id"])
        assert {"tree.zip"} == user.names()


def test_a_client_uses_an_earlier_server(program: Program, content: Path, tmp_path: Path) -> None:
    """It pushes, lists, measures, fetches and removes."""
    user, owner = User(tmp_path / "user"), User(tmp_path / "owner", program)
    with program.local_server(owner.home) as server:
        user.environ = owner.environ = server.environ
        used(user, content, tmp_path / "work")
        assert 2 == user.result("du")["record_count"]
        user.result("rm", content.name, "--yes")
        assert {"tree.zip"} == user.names() == owner.names()


def test_a_folder_of_an_earlier_program_has_no_history_before_the_first_write(
    program: Program, content: Path, tmp_path: Path
) -> None:
    """Its versions are shown without commits. What needs a commit says what makes one."""
    user = User(tmp_path / "user")
    assert 0 == program.run(user.home, "push", content, "--create").returncode
    assert {content.name} == user.names(content.name)
    for command in ("log", "tag"):
        assert "has no history yet" in user.failure(command, content.name)
    assert 0 == user.run("push", content).returncode
    assert "1 commit of" in user.run("log", content.name).stdout


def test_a_client_names_what_an_older_server_cannot_do(content: Path, tmp_path: Path) -> None:
    """It pushes and fetches. What that server cannot do fails with the advice to update it, and changes nothing."""
    program = Program(OLDER, tmp_path / "program")
    user, owner = User(tmp_path / "user"), User(tmp_path / "owner", program)
    with program.local_server(owner.home) as server:
        user.environ = owner.environ = server.environ
        used(user, content, tmp_path / "work")
        for command in (("ls",), ("du",), ("rm", content.name, "--yes")):
            assert UPDATE.search(user.failure(*command))
        assert {content.name, "tree.zip"} == owner.names()


def test_a_client_names_what_is_wrong_with_a_server_of_other_names(content: Path, tmp_path: Path) -> None:
    """The first commits had other names in the protocol. The message does not doubt that it is a filestore server."""
    program = Program(TOO_OLD, tmp_path / "program")
    user, owner = User(tmp_path / "user"), User(tmp_path / "owner", program)
    with program.local_server(owner.home) as server:
        user.environ = server.environ
        for command in (("push", content), ("ls",)):
            assert UPDATE.search(user.failure(*command))


async def test_what_an_earlier_client_began_goes_on(home: Home, program: Program, content: Path, tmp_path: Path) -> None:
    """It is killed in a push and in a fetch. Then this client sends only the rest, and completes the file."""
    earlier, user = User(tmp_path / "earlier", program), User(tmp_path / "user")
    target = tmp_path / "target"
    target.mkdir()
    with home.local_server() as server:
        earlier.environ = user.environ = server.environ
        port = urlsplit(server.url).port
        assert port is not None
        async with running_link(port) as link:
            reached = asyncio.Event()

            async def held(piece: bytes) -> bytes:
                if max(link.up_size, link.down_size) > SHOWN:
                    reached.set()
                    await asyncio.Event().wait()
                return piece

            link.up = held
            await earlier.killed(link.port, reached, "push", content, "--connections", "1")
        await asyncio.to_thread(eventually, lambda: has_chunks(home.data))
        pushed = await asyncio.to_thread(user.result, "push", content)
        assert 0 < pushed["bytes_sent"] < len(CONTENT)
        async with running_link(port) as link:
            reached = asyncio.Event()

            async def held_back(piece: bytes) -> bytes:
                if link.down_size > SHOWN:
                    reached.set()
                    await asyncio.Event().wait()
                return piece

            link.down = held_back
            await earlier.killed(link.port, reached, "fetch", content.name, "-o", target / "fetched", "--connections", "1")
        fetched = await asyncio.to_thread(user.result, "fetch", content.name, "-o", target / "fetched")
        # How much the earlier client had written depends on its batches.
        assert fetched["bytes_received"] > 0
        assert CONTENT == (target / "fetched").read_bytes()
        assert ["fetched"] == [path.name for path in target.iterdir()]


def has_chunks(root: Path) -> bool:
    """Whether an index has chunks already, which are not sent again."""
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        return bool(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])


def state(root: Path) -> tuple[list[str], dict[str, bytes]]:
    """Return what an index has, and all other files of a repository but the log and the shared memory of the index."""
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        rows = list(connection.iterdump())
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return rows, {name: content for name, content in files.items() if not name.startswith("index.sqlite")}


@pytest.mark.parametrize("commit", [commit for commit, version in SCHEMA_VERSIONS.items() if version < SCHEMA_VERSION])
def test_an_earlier_program_refuses_a_newer_index(home: Home, commit: str, content: Path, tmp_path: Path) -> None:
    """Each command names both numbers, and changes nothing."""
    earlier = User(tmp_path / "earlier", Program(commit, tmp_path / "program"))
    pushed = home.result("push", content)
    before = state(home.data)
    at = ("--url", home.data)
    for command in (
        ("ls", *at),
        ("push", content, *at),
        ("fetch", content.name, "-o", tmp_path / "fetched", *at),
        ("rm", pushed["id"], *at),
        ("token", "ls", "--root", home.data),
        ("token", "new", "--root", home.data),
        ("serve", "--root", home.data, "--port", "0"),
    ):
        said = earlier.failure(*command)
        assert f"has format {SCHEMA_VERSION}, this program knows {SCHEMA_VERSIONS[commit]}" in said
    assert before == state(home.data)
    assert CONTENT == (fetched_by(home, content.name, tmp_path)).read_bytes()


def fetched_by(home: Home, name: str, folder: Path, *, environ: Mapping[str, str] | None = None) -> Path:
    """Fetch a file with this version, and return its path."""
    home.result("fetch", name, "-o", folder / "whole", "--force", environ=environ)
    return folder / "whole"


def test_a_running_server_of_an_earlier_schema_takes_no_files_after_a_migration(
    program: Program, content: Path, tmp_path: Path
) -> None:
    """A command of this version migrates the folder. Then that server changes nothing, reads go on, and nothing is lost."""
    owner, earlier = User(tmp_path / "owner"), User(tmp_path / "earlier", program)
    home = owner.home
    other = tmp_path / "other.txt"
    other.write_bytes(b"other content")
    command = (*program.command, "serve")
    with home.server(root=home.data, complains=True, command=command, environ=program.environ) as server:
        earlier.environ = server.environ
        earlier.result("push", content)
        assert {content.name} == owner.names()
        pushed = owner.result("push", content, "--name", "again.bin")
        assert 0 == pushed["bytes_sent"]
        assert "its log says why" in earlier.failure("push", other)
        earlier.result("fetch", content.name, "-o", tmp_path / "fetched")
        assert CONTENT == (tmp_path / "fetched").read_bytes()
        assert {content.name, "again.bin"} == earlier.names()
        assert "its log says why" in earlier.failure("rm", pushed["id"])
    assert {content.name, "again.bin"} == owner.names()
    with home.local_server() as server:
        earlier.environ = {**server.environ, "FILESTORE_TOKEN": earlier.environ["FILESTORE_TOKEN"]}
        earlier.result("push", other)
    assert {content.name, "again.bin", other.name} == owner.names()
    assert home.run("check", "--read-data").returncode == 0


@pytest.mark.parametrize("commit", [commit for commit, version in SCHEMA_VERSIONS.items() if version == SCHEMA_VERSION])
def test_programs_of_the_same_schema_share_a_folder(home: Home, commit: str, content: Path, tmp_path: Path) -> None:
    """While a server of this version runs, another program works in its folder, and each sees what the other stores."""
    earlier = User(tmp_path / "earlier", Program(commit, tmp_path / "program"))
    earlier.environ = {"FILESTORE_URL": str(home.data)}
    with home.local_server() as server:
        earlier.result("push", content)
        assert CONTENT == fetched_by(home, content.name, tmp_path, environ=server.environ).read_bytes()
        home.result("push", content, "--name", "again.bin", environ=server.environ)
        assert {content.name, "again.bin"} == earlier.names()
        earlier.result("fetch", "again.bin", "-o", tmp_path / "fetched.bin")
        assert CONTENT == (tmp_path / "fetched.bin").read_bytes()
    assert home.run("check", "--read-data").returncode == 0


def test_a_cache_and_a_push_cache_are_used_by_both(home: Home, program: Program, content: Path, tmp_path: Path) -> None:
    """What one version has cached is a hit of the other one. A push after the other's push sends nothing."""
    shared = {"FILESTORE_CACHE": str(tmp_path / "cache"), "FILESTORE_PUSH_CACHE": str(tmp_path / "push-cache.sqlite")}
    user, earlier = User(tmp_path / "user"), User(tmp_path / "earlier", program)
    other = tmp_path / "other.bin"
    other.write_bytes(CONTENT[::-1])
    with home.local_server() as server:
        user.environ = earlier.environ = {**server.environ, **shared}
        for path, first, second in ((content, user, earlier), (other, earlier, user)):
            assert first.result("push", path)["bytes_sent"] > 0
            assert 0 == second.result("push", path)["bytes_sent"]
            assert not first.result("cache", "warm", path.name)["files"][0]["was_cached"]
            assert second.result("cache", "warm", path.name)["files"][0]["was_cached"]
    assert [0, 0] == [each.run("cache", "verify").returncode for each in (user, earlier)]
