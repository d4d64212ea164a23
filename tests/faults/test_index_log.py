"""Other processes open and close the folder during pushes. No acknowledged push is lost, whatever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.records import record_from_json
from filestore.repository.index.sqlite import open_index
from tests.support.commands import SCRIPTS, Home
from tests.support.server import Reply, RunningServer, running_server

COMMAND_COUNT = int(os.environ.get("FILESTORE_TEST_COMMANDS", "12"))
"""Commands that run during pushes. 150 take more than a minute (CONTRIBUTING.md)."""
PUSH_COUNT = 8

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("token", "ls", "--root", "{root}"),
    ("token", "new", "--root", "{root}"),
    ("ls", "--url", "{root}"),
    ("push", "--url", "{root}", "{source}"),
)


def command_id(command: tuple[str, ...]) -> str:
    """Return the words of a command."""
    return " ".join(word for word in command if not word.startswith(("-", "{")))


class Pushes:
    """Push small files to a server, and remember what must be read back."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def push(self, server: RunningServer, count: int = PUSH_COUNT) -> None:
        """Upload that many new files."""
        for _ in range(count):
            number = len(self.contents)
            name, content = f"file-{number}.txt", b"content %d" % number
            answer = acknowledged(server, name, content)
            assert 2 == answer.status // 100, answer.body
            self.contents[name] = content

    def assert_kept(self, root: Path) -> None:
        """Check that a new server on `root` lists every file, and returns every byte of it."""
        with running_server(root) as server:
            listed = dict(listing(server))
            assert set() == set(self.contents) - set(listed)
            for name, content in self.contents.items():
                assert content == server.ask("GET", f"/{listed[name]}").body


def acknowledged(server: RunningServer, name: str, content: bytes) -> Reply:
    """Return the answer to an upload.

    It is sent again if the connection is refused or cut, as when workers are replaced.
    """
    while True:
        try:
            return server.upload(name, content)
        except (ConnectionError, HTTPException):
            assert server.process.poll() is None


def listing(server: RunningServer) -> Iterator[tuple[str, str]]:
    """Return name and path of every record, page by page."""
    before = ""
    while page := server.ask("GET", f"/native/v1/files?limit=1000{before}").json["files"]:
        yield from ((record["name"], record["path"]) for record in page)
        before = f"&before={record_from_json(page[-1]).updated_at}"


def kill(server: RunningServer) -> None:
    """End a server process as a power cut does."""
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()


def kill_all(server: RunningServer) -> None:
    """Kill a server and its workers, which end by themselves when the server is gone."""
    workers = children(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    server.process.wait()


def run(home: Home, command: tuple[str, ...], root: Path) -> str:
    """Return the output of a command that works on the folder."""
    source = home.folder / "beside.txt"
    source.write_text("pushed beside the server")
    done = home.run(*(word.format(root=root, source=source) for word in command), "--quiet")
    assert (0, "") == (done.returncode, done.stderr), f"{command}: {done.stderr}"
    return done.stdout


def open_in_another_process(root: Path) -> None:
    """Start a process that opens the repository in `root`, reads, and closes it."""
    program = (
        "import asyncio, sys\n"
        "from filestore.backends import connect\n"
        "async def main():\n"
        "    async with connect(sys.argv[1]) as repository:\n"
        "        await repository.records()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", program, root], check=True, timeout=60)


async def test_log_outlives_another_process_that_opens_and_closes_the_index(tmp_path: Path) -> None:
    """Two connections of one process keep their locks, so the last close of another process deletes nothing."""
    async with connect(str(tmp_path), create=True) as repository:
        await repository.records()
        log = tmp_path / "index.sqlite-wal"
        before = log.stat().st_ino
        await asyncio.to_thread(open_in_another_process, tmp_path)
        assert before == log.stat().st_ino


async def test_log_outlives_a_second_index_of_the_same_process(tmp_path: Path) -> None:
    """To open and close an index a second time drops no lock of the first."""
    async with connect(str(tmp_path), create=True) as repository:
        await repository.records()
        second = await open_index(tmp_path / "index.sqlite")
        await second.close()
        log = tmp_path / "index.sqlite-wal"
        before = log.stat().st_ino
        await asyncio.to_thread(open_in_another_process, tmp_path)
        assert before == log.stat().st_ino


@pytest.mark.slow
def test_nothing_but_sqlite_opens_a_file_of_the_index(tmp_path: Path) -> None:
    """Python reports every file that it opens. SQLite opens its own files without Python."""
    program = (
        "import asyncio, sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "from filestore.backends import connect\n"
        "from filestore.transfer.push import push\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    for _ in range(2):\n"
        "        async with connect(sys.argv[1], create=True) as repository:\n"
        "            pushed = await push(repository, Path(sys.argv[2]))\n"
        "            await repository.sign(pushed.record.id)\n"
        "            await repository.remove((await repository.records())[0].id)\n"
        "        async with connect(sys.argv[1], read_only=True) as repository:\n"
        "            await repository.records()\n"
        "asyncio.run(main())\n"
        "print(*opened, sep='\\n')\n"
    )
    source = tmp_path / "source.txt"
    source.write_text("content")
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "root", source], check=True, timeout=60, capture_output=True, text=True
    )
    names = [Path(line).name for line in done.stdout.splitlines()]
    assert "format" in names
    assert [] == [name for name in names if name in {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"}]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=command_id)
def test_command_beside_a_server_that_is_killed_loses_no_push(home: Home, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Pushes that were acknowledged before and after the command are there after kill -9 and a restart."""
    root = tmp_path / "root"
    pushes = Pushes()
    with running_server(root, check=False) as server:
        pushes.push(server)
        said = run(home, command, root)
        pushes.push(server)
        if command[:2] == ("token", "new"):
            assert 200 == server.ask("GET", "/v3/pipeline_files", token=said.strip()).status
        kill(server)
    pushes.assert_kept(root)


@pytest.mark.slow
def test_push_into_the_folder_outlives_the_server_that_stops(home: Home, tmp_path: Path) -> None:
    """A server that ends normally overwrites nothing that another process has written."""
    root = tmp_path / "root"
    with running_server(root) as server:
        server.upload("before.txt", b"before")
        for number in range(3):
            source = home.folder / f"into-{number}.txt"
            source.write_text(f"{number}")
            home.result("push", "--url", root, source)
            server.upload(f"after-{number}.txt", b"%d" % number)
    names = {record["name"] for record in home.result("ls", "--url", root)["files"]}
    assert {"before.txt", *(f"{place}-{number}.txt" for place in ("into", "after") for number in range(3))} == names
    assert_sound(root)


@pytest.mark.slow
def test_workers_that_end_one_by_one_lose_no_push(tmp_path: Path) -> None:
    """A stopped worker, and the one that replaces it, leave the log to the others."""
    root = tmp_path / "root"
    pushes = Pushes()
    with running_server(root, check=False, workers=3) as server:
        for _ in range(3):
            pushes.push(server)
            worker = children(server.pid)[0]
            os.kill(worker, signal.SIGTERM)
            wait_for(lambda gone=worker: gone not in children(server.pid))  # type: ignore[misc]
        pushes.push(server)
        kill_all(server)
    pushes.assert_kept(root)


@pytest.mark.slow
def test_rolling_restart_loses_no_push(tmp_path: Path) -> None:
    """A second server on the folder takes over while the first one stops."""
    root = tmp_path / "root"
    pushes = Pushes()
    with running_server(root) as first:
        pushes.push(first)
        with running_server(root, check=False) as second:
            pushes.push(second)
            assert (0, "") == first.stop()
            pushes.push(second)
            kill(second)
    pushes.assert_kept(root)


@pytest.mark.slow
def test_pushes_into_a_folder_side_by_side_are_all_kept(home: Home, tmp_path: Path) -> None:
    """Four processes at a time open the folder, push and close it. No process is killed."""
    root = tmp_path / "root"
    names = []
    for turn in range(4):
        processes = []
        for number in range(4):
            source = home.folder / f"{turn}-{number}.txt"
            source.write_text(source.name)
            names.append(source.name)
            arguments: list[str | Path] = [SCRIPTS / "filestore", "push", "--url", root, "--create", "--quiet", source]
            environ = home.environ | {"FILESTORE_PUSH_CACHE": str(home.folder / f"journal-{number}")}
            processes.append(
                subprocess.Popen(arguments, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
        for process in processes:
            assert "" == process.communicate(timeout=60)[1]
            assert 0 == process.returncode
    assert sorted(names) == sorted(record["name"] for record in home.result("ls", "--url", root)["files"])
    assert_sound(root)


@pytest.mark.slow
def test_commands_that_come_and_go_during_pushes_lose_nothing(home: Home, tmp_path: Path) -> None:
    """All kinds of commands run one after another, while a client pushes without a pause. Then the server gets kill -9."""
    root = tmp_path / "root"
    pushes = Pushes()
    with running_server(root, check=False, workers=2) as server:
        pushes.push(server)
        stopped = threading.Event()
        failures: list[BaseException] = []

        def push_until_stopped() -> None:
            try:
                while not stopped.is_set():
                    pushes.push(server, 1)
            except BaseException as error:  # noqa: BLE001  # raised again by the test
                failures.append(error)

        pushing = threading.Thread(target=push_until_stopped)
        pushing.start()
        try:
            for number in range(COMMAND_COUNT):
                run(home, COMMANDS[number % len(COMMANDS)], root)
        finally:
            stopped.set()
            pushing.join()
        assert [] == failures
        kill_all(server)
    assert len(pushes.contents) > PUSH_COUNT
    pushes.assert_kept(root)
    assert_sound(root)


def children(parent: int) -> list[int]:
    """Return the processes that a server has started."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_for(reached: Callable[[], bool]) -> None:
    """Ask until the condition is true."""
    while not reached():
        os.sched_yield()


def assert_sound(root: Path) -> None:
    """Check that SQLite finds no fault in the index, while no process has it open."""
    with closing(sqlite3.connect(root / "index.sqlite")) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
