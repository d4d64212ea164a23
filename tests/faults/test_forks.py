"""A child of a process that has used the library works, or fails at once with the reason.

It never hangs or harms its parent.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from filestore import Cache
from filestore.cache import cache as resolve
from filestore.core.digest import Digest
from filestore.http.client import repository as client
from filestore.repository.index import connections
from filestore.repository.protocol import Repository
from filestore.system import threads as aio
from filestore.system.locks import FileLock
from filestore.transfer import target
from filestore.transfer.sources import push_cache
from tests.support.server import RunningServer, running_server

REPOSITORY = Path(__file__).parents[2]
METHODS = ["fork", "pool", "loop", "forkserver", "spawn"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with two files."""
    with running_server(tmp_path / "root") as running:
        yield running


def ids_of(server: RunningServer) -> list[str]:
    """Two stored files."""
    return [server.upload(name, name.encode()).json["id"] for name in ("hit.txt", "miss.txt")]


def run(tmp_path: Path, method: str, whose: str, repository: str, ids: list[str]) -> Any:
    """Return what a parent and its child print. All of their processes are ended after a minute."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("of-parent.txt", "of-child.txt", "afterwards.txt"):
        (folder / name).write_text(name)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.support.forks",
        method,
        repository,
        tmp_path / "cache",
        folder,
        whose,
        *ids,
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        raise AssertionError(f"it hangs; {errors}") from None
    assert (0, "") == (process.returncode, errors)
    return json.loads(said)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_child_uses_what_its_parent_has_made(server: RunningServer, tmp_path: Path, method: str) -> None:
    """The parent's repository and cache work in a child, with connections and leases of its own: a hit, a miss, a push."""
    said = run(tmp_path, method, "parents", server.url, ids_of(server))
    assert ["hit.txt", "of-parent.txt"] == said["parent"]
    assert ["hit.txt", "miss.txt", "of-child.txt"] == said["child"]
    assert ["hit.txt", "miss.txt", "afterwards.txt"] == said["afterwards"]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_child_makes_its_own(server: RunningServer, tmp_path: Path, method: str) -> None:
    """A repository and a cache that the child makes work, whatever the parent has used."""
    said = run(tmp_path, method, "new", server.url, ids_of(server))
    assert ["hit.txt", "miss.txt", "of-child.txt"] == said["child"]


@pytest.fixture
def folder(tmp_path: Path) -> tuple[str, list[str]]:
    """The path of a folder that no process has open, and the ids of two files in it."""
    with running_server(tmp_path / "root") as running:
        ids = ids_of(running)
    return str(tmp_path / "root"), ids


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "loop"])
def test_open_folder_is_refused_in_a_forked_child(folder: tuple[str, list[str]], tmp_path: Path, method: str) -> None:
    """Calls that need the parent's open index raise at once. A hit of the cache does not need it. The parent continues."""
    root, ids = folder
    said = run(tmp_path, method, "parents", root, ids)
    assert ["hit.txt", "UsedAfterFork", "UsedAfterFork"] == said["child"]
    assert ["hit.txt", "miss.txt", "afterwards.txt"] == said["afterwards"]


@pytest.mark.slow
def test_folder_that_the_parent_has_open_is_refused_in_a_forked_child(folder: tuple[str, list[str]], tmp_path: Path) -> None:
    """A second open in the child is refused too: SQLite would believe that the child has the locks of its parent."""
    root, ids = folder
    assert ["UsedAfterFork"] == run(tmp_path, "loop", "new", root, ids)["child"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "pool", "forkserver", "spawn"])
def test_folder_that_the_parent_has_closed_is_opened_by_the_child(
    folder: tuple[str, list[str]], tmp_path: Path, method: str
) -> None:
    """A folder that was closed before the fork works as in any other process."""
    root, ids = folder
    said = run(tmp_path, method, "new", root, ids)
    assert ["hit.txt", "miss.txt", "of-child.txt"] == said["child"]


IN_A_FORK = """
import asyncio, gc, os, sys, warnings
from contextlib import AsyncExitStack
from filestore import Cache, File, connect
from pathlib import Path
from types import ModuleType

warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
root, cache_root, file_id = sys.argv[1:]

def seen():
    held = sorted(path.name for path in Path(cache_root, "leases").glob("*/*"))
    staged = sorted(path.name for path in Path(root, "tmp").iterdir())
    assert held and staged
    return held, staged, Path(root, "index.sqlite-wal").stat().st_ino

async def enter(stack):
    repository = await stack.enter_async_context(connect(root))
    cache = await stack.enter_async_context(Cache(cache_root, repository))
    await stack.enter_async_context(cache.lease(File(id=file_id)))
    return repository

stack = AsyncExitStack()
runner = asyncio.Runner()
repository = runner.run(enter(stack))
before = seen()
pid = os.fork()
if pid == 0:
    # Leaves all of the parent's blocks, closes all of its objects, and lets go of them. It ends as children of multiprocessing
    # do: Python itself, at its end, would close the parent's event loop, whose epoll both processes share.
    asyncio.run(stack.aclose())
    del stack, repository
    gc.collect()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert before == seen()
runner.run(repository.records())
runner.run(stack.aclose())
print("sound")
"""


@pytest.mark.slow
def test_child_that_leaves_its_parents_blocks_takes_nothing_away(folder: tuple[str, list[str]], tmp_path: Path) -> None:
    """Leases, staging folder and the log of the index belong to the parent until it ends."""
    root, ids = folder
    command: list[str | Path] = [sys.executable, "-c", IN_A_FORK, root, tmp_path / "cache", ids[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ("sound\n", "", 0) == (done.stdout, done.stderr, done.returncode)


async def test_open_folder_is_not_sent_to_another_process(local_repository: Repository, tmp_path: Path) -> None:
    """Pickling a folder repository, or a cache of it, raises at once and says what to do instead."""
    for item in (local_repository, Cache(tmp_path / "cache", local_repository)):
        with pytest.raises(TypeError, match=r"open it there by connect\(\)"):
            pickle.dumps(item)


PUSH_CACHE_IN_A_FORK = """
import os, sys
from pathlib import Path
from types import ModuleType
from filestore.transfer.sources.push_cache import PushCache
from filestore.core.manifest import Manifest
from filestore.repository.protocol import Identity

path = Path(sys.argv[1])
identity, manifest = Identity("0" * 32, "default", 1), Manifest.build([], chunking_version=1)
with PushCache(path) as push_cache:
    push_cache.record(identity, path, manifest, b"")
    pid = os.fork()
    if pid == 0:
        push_cache.record(identity, path.parent, manifest, b"")
        os._exit(0 if push_cache.find(identity, path) is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert push_cache.find(identity, path) is not None
    assert push_cache.find(identity, path.parent) is None
print("sound")
"""


def test_push_cache_that_is_open_is_an_empty_one_in_a_forked_child(tmp_path: Path) -> None:
    """The child does not use the parent's connection, and the parent continues."""
    command: list[str | Path] = [sys.executable, "-W", "ignore", "-c", PUSH_CACHE_IN_A_FORK, tmp_path / "push_cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ("sound\n", "", 0) == (done.stdout, done.stderr, done.returncode)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "make"),
    [
        (aio, lambda _: aio.ProcessLock()),
        (resolve, lambda folder: Cache(folder, client.RemoteRepository("http://store.test", token=None))),
        (client, lambda _: client.RemoteRepository("http://store.test", token=None)),
        (connections, lambda folder: connections.Connection(folder / "index.sqlite", timeout_seconds=1)),
        (connections, lambda folder: connections.ReadingConnection(folder / "index.sqlite", timeout_seconds=1)),
        (push_cache, lambda folder: push_cache.PushCache(folder / "push_cache")),
    ],
    ids=["lock", "cache", "client", "index", "index for reading", "push_cache"],
)
def test_object_that_is_made_while_another_thread_forks_can_be_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: ModuleType, make: Callable[[Path], object]
) -> None:
    """From the moment when an object can be told of a fork, it is complete."""
    registered = module.tell_of_forks
    made: list[tuple[object, list[str]]] = []

    parent = os.getpid()

    def register_and_fork(item: aio.Forkable) -> None:
        registered(item)
        if os.getpid() != parent:
            return  # objects of other tests make new locks in the child
        made.append((item, sorted(vars(item))))
        child = os.fork()
        if not child:
            os._exit(len(shown))
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    monkeypatch.setattr(module, "tell_of_forks", register_and_fork)

    item = make(tmp_path)

    assert [(item, sorted(vars(item)))] == [entry for entry in made if entry[0] is item]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_that_is_forked_during_a_publication_keeps_no_lock(tmp_path: Path) -> None:
    """The child lives on with a copy of the descriptor. The next publication in that folder does not wait for it."""
    reader, writer = os.pipe()
    with target.Target(tmp_path, Digest(bytes(32)), force=True)._locked(tmp_path):
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)  # blocks until the parent closes its end
            os._exit(0)
    try:
        with FileLock.of_folder(tmp_path, is_required=True) as lock:
            assert lock.try_acquire()
    finally:
        os.close(writer)
        os.close(reader)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
