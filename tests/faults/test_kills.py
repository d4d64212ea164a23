"""Processes get kill -9 in the middle of their work. Nothing acknowledged is lost, and the same command then completes."""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home, Server
from tests.support.daemons import lasting_port
from tests.support.trees import plant, standing

SIZE = 192 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is so large that a watching process can strike before all of it is moved."""
    path = tmp_path_factory.mktemp("source") / "model.bin"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


def start(home: Home, server: Server, *arguments: str | Path, retry_seconds: str = "300") -> subprocess.Popen[bytes]:
    """Start a command."""
    return subprocess.Popen(
        [SCRIPTS / "filestore", *arguments],
        env=home.environ | server.environ | {"FILESTORE_RETRY_SECONDS": retry_seconds},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


def kill_when(reached: Callable[[], bool], victim: int, command: subprocess.Popen[bytes]) -> None:
    """Kill `victim` as soon as `reached` is true, which must happen before `command` ends."""
    while not reached():
        assert command.poll() is None, "the command ended before it could be cut"
        os.sched_yield()
    os.kill(victim, signal.SIGKILL)


def stored(root: Path) -> int:
    """Return the frames in a repository's folder."""
    return sum(1 for _ in root.glob("chunks/*/*/*/*"))


def held(folder: Path) -> int:
    """Return the bytes in staging files of fetches."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob(".*.filestore-partial"))


@pytest.mark.slow
def test_a_client_is_killed_in_the_middle_of_a_push(home: Home, source: Path, tmp_path: Path) -> None:
    """No record is made. The second push sends only what the first has not sent, and completes."""
    root = tmp_path / "root"
    with home.server(root=root) as server:
        command = start(home, server, "push", source)
        kill_when(lambda: stored(root) >= 8, command.pid, command)
        assert -signal.SIGKILL == command.wait()
        assert [] == home.result("ls", environ=server.environ)["files"]
        pushed = home.result("push", source, environ=server.environ)
        assert SIZE == pushed["size"]
        assert 0 < pushed["bytes_shared"]
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=server.environ)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)


@pytest.mark.slow
def test_a_client_is_killed_in_the_middle_of_the_push_of_a_directory(home: Home, source: Path, tmp_path: Path) -> None:
    """No record is made. The second push sends only what the first has not sent, and the fetched tree is right."""
    root = tmp_path / "root"
    tree = plant(tmp_path / "tree", {f"small/{place}.txt": b"%d" % place * place for place in range(200)})
    os.link(source, tree / "model.bin")
    with home.server(root=root) as server:
        command = start(home, server, "push", tree)
        kill_when(lambda: stored(root) >= 8, command.pid, command)
        assert -signal.SIGKILL == command.wait()
        assert [] == home.result("ls", environ=server.environ)["files"]
        pushed = home.result("push", tree, environ=server.environ)
        assert 0 < pushed["bytes_shared"] < pushed["size"]
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=server.environ)
    assert standing(tree) == standing(tmp_path / "back")


@pytest.mark.slow
def test_the_server_is_killed_in_the_middle_of_a_push(home: Home, source: Path, tmp_path: Path) -> None:
    """Everything acknowledged is there after the restart. The second push completes."""
    root = tmp_path / "root"
    with home.server(root=root, is_killed=True) as server:
        environ = server.environ
        command = start(home, server, "push", source, retry_seconds="1")
        kill_when(lambda: stored(root) >= 8, server.process.pid, command)
        server.process.wait()
        assert 1 == command.wait(60)
    with home.server(root=root, environ={"FILESTORE_TOKEN": environ["FILESTORE_TOKEN"]}) as server:
        environ["FILESTORE_URL"] = server.url
        assert [] == home.result("ls", environ=environ)["files"]
        pushed = home.result("push", source, environ=environ)
        assert 0 < pushed["bytes_shared"]
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=environ)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)


@pytest.mark.slow
def test_a_client_is_killed_in_the_middle_of_a_fetch(home: Home, source: Path, tmp_path: Path) -> None:
    """No half file has the name. The second fetch keeps what the first has written, also the folder, and completes."""
    target = tmp_path / "out" / "back"
    with home.server(root=tmp_path / "root") as server:
        pushed = home.result("push", source, environ=server.environ)
        command = start(home, server, "fetch", pushed["id"], "-o", target)
        kill_when(lambda: held(target.parent) >= 16 << 20, command.pid, command)
        assert -signal.SIGKILL == command.wait()
        assert not target.exists()
        fetched = home.result("fetch", pushed["id"], "-o", target, environ=server.environ)
    assert filecmp.cmp(source, target, shallow=False)
    assert 0 < fetched["bytes_reused"]
    assert fetched["bytes_received"] < SIZE
    assert ["back"] == [path.name for path in target.parent.iterdir()]


@pytest.mark.slow
def test_a_client_is_killed_while_it_copies_a_seed(home: Home, source: Path, tmp_path: Path) -> None:
    """The seed is as it was, no half file has the name, and the second fetch completes with the seed."""
    target, seed = tmp_path / "out" / "back", tmp_path / "seed"
    with source.open("rb") as file:
        seed.write_bytes(file.read(SIZE // 2))
    before = seed.stat()
    with home.server(root=tmp_path / "root") as server:
        pushed = home.result("push", source, environ=server.environ)
        fetch = "fetch", pushed["id"], "-o", target, "--seed", seed
        command = start(home, server, *fetch)
        kill_when(lambda: held(target.parent) >= 16 << 20, command.pid, command)
        assert -signal.SIGKILL == command.wait()
        assert not target.exists()
        fetched = home.result(*fetch, environ=server.environ)
    assert filecmp.cmp(source, target, shallow=False)
    assert (before.st_size, before.st_mtime_ns) == (seed.stat().st_size, seed.stat().st_mtime_ns)
    assert fetched["bytes_received"] < SIZE // 2 + (8 << 20)
    assert ["back"] == [path.name for path in target.parent.iterdir()]


@pytest.mark.slow
def test_a_client_is_killed_while_it_copies_from_the_cache(home: Home, source: Path, tmp_path: Path) -> None:
    """The entry is as it was, its lease ends with the process, and the second fetch receives nothing."""
    target = tmp_path / "out" / "back"
    with home.server(root=tmp_path / "root") as server:
        pushed = home.result("push", source, environ=server.environ)
        home.result("cache", "warm", pushed["id"], environ=server.environ)
        fetch = "fetch", pushed["id"], "-o", target
        command = start(home, server, *fetch)
        kill_when(lambda: held(target.parent) >= 16 << 20, command.pid, command)
        assert -signal.SIGKILL == command.wait()
        assert not target.exists()
        fetched = home.result(*fetch, environ=server.environ)
    assert filecmp.cmp(source, target, shallow=False)
    assert 0 == fetched["bytes_received"]
    assert [] == home.result("cache", "verify")["removed"]
    assert 1 == len(home.result("cache", "prune", "--cache-size-limit", "1MB")["removed"])


@pytest.mark.slow
def test_the_server_is_killed_in_the_middle_of_a_fetch(home: Home, source: Path, tmp_path: Path) -> None:
    """The command fails with one sentence. The second fetch completes."""
    root, target = tmp_path / "root", tmp_path / "out" / "back"
    target.parent.mkdir()
    with home.server(root=root, is_killed=True) as server:
        environ = server.environ
        pushed = home.result("push", source, environ=environ)
        command = start(home, server, "fetch", pushed["id"], "-o", target, retry_seconds="1")
        kill_when(lambda: held(target.parent) >= 16 << 20, server.process.pid, command)
        server.process.wait()
        assert 1 == command.wait(60)
        assert not target.exists()
    with home.server(root=root, environ={"FILESTORE_TOKEN": environ["FILESTORE_TOKEN"]}) as server:
        environ["FILESTORE_URL"] = server.url
        fetched = home.result("fetch", pushed["id"], "-o", target, environ=environ)
    assert filecmp.cmp(source, target, shallow=False)
    assert 0 < fetched["bytes_reused"]


@pytest.mark.slow
def test_a_server_that_comes_back_is_not_even_noticed(home: Home, source: Path, tmp_path: Path) -> None:
    """A push continues by itself after its server is killed and started again on the same port."""
    root = tmp_path / "root"
    port = str(lasting_port())
    with home.server("--port", port, root=root, is_killed=True) as server:
        token = server.token
        command = start(home, server, "push", source)
        kill_when(lambda: stored(root) >= 8, server.process.pid, command)
        # On a busy machine, a server may take longer to start than a client waits.
        command.send_signal(signal.SIGSTOP)
        server.process.wait()
    with home.server("--port", port, root=root, environ={"FILESTORE_TOKEN": token}) as server:
        command.send_signal(signal.SIGCONT)
        assert 0 == command.wait(60)
        environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": token}
        assert [SIZE] == [record["size"] for record in home.result("ls", environ=environ)["files"]]
