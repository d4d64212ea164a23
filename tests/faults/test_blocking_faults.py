"""Signals, forks and the end of the program: the verbs without asyncio never hang, and leave nothing half done."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.generator import octets
from tests.support.server import RunningServer, running_server

REPOSITORY = Path(__file__).parents[2]
SIZE = 16 << 20
BEGIN = """
import asyncio, atexit, os, signal, sys, threading
from pathlib import Path
from filestore import blocking
from filestore.errors import BlockingCallRefused, UsedAfterFork
from filestore.system import loop_thread
url, token, folder, source = sys.argv[1:]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the file `source.bin`, of many chunks."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "source.bin").write_bytes(octets(1, SIZE))
    with running_server(folder / "root") as server:
        assert 201 == server.upload("source.bin", octets(1, SIZE)).status
        yield server


def source_of(server: RunningServer) -> Path:
    """The same file on this machine."""
    return server.root.with_name("source.bin")


def start(script: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A program, in which every warning is an error, that of a resource which is not closed too."""
    options = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    return subprocess.Popen(
        [sys.executable, *options, "-c", BEGIN + script, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """Standard output, standard error and exit status; one that hangs is killed with its children."""
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"it hangs; {output} {errors}") from None
    return output, errors, process.returncode


def run(script: str, server: RunningServer, tmp_path: Path) -> tuple[str, str, int]:
    """What a program says at its end."""
    return said(start(script, server.url, server.token, tmp_path, source_of(server)))


INTERRUPTED_PUSH = """
with blocking.connect(url, token=token) as repository:
    try:
        blocking.push(repository, source)
    except KeyboardInterrupt:
        print("interrupted", len(asyncio.all_tasks(loop_thread._process.running._loop)) - 1)
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_call_that_waits_for_a_server(server: RunningServer, tmp_path: Path) -> None:
    """The server accepts the connection and never answers; only the task of the open repository is left afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = start(INTERRUPTED_PUSH, url, "token", tmp_path, source_of(server))
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            assert ("interrupted 0\n", "", 0) == said(process)


INTERRUPTED_FETCH = """
target = Path(folder, "back.bin")

def report(progress):
    if progress.done > progress.total * 3 / 4 and not interrupted.is_set():
        interrupted.set()
        os.kill(os.getpid(), signal.SIGINT)
        # The fetch must not be finished before it is cancelled.
        while "_Call.cancel" not in str(list(asyncio.get_running_loop()._ready)):
            os.sched_yield()

interrupted = threading.Event()
with blocking.connect(url, token=token, connections=1) as repository:
    try:
        blocking.fetch(repository, "source.bin", target=target, report=report)
    except KeyboardInterrupt:
        print("interrupted", target.exists(), len(list(target.parent.glob(".*.filestore-partial"))))
    fetched = blocking.fetch(repository, "source.bin", target=target)
    print(0 < fetched.bytes_reused, target.read_bytes() == Path(source).read_bytes())
"""


def test_ctrl_c_ends_a_fetch_which_the_next_one_continues(server: RunningServer, tmp_path: Path) -> None:
    """The call has waited for the clean end: the staging file can be claimed at once, and what was received is kept."""
    assert ("interrupted False 1\nTrue True\n", "", 0) == run(INTERRUPTED_FETCH, server, tmp_path)


INTERRUPTED_TWICE = """
begun, go_on, handled = threading.Event(), threading.Event(), threading.Semaphore(0)

def handle(*_):
    handled.release()
    raise KeyboardInterrupt

def interrupt():
    begun.wait()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        handled.acquire()

def report(_):
    begun.set()
    go_on.wait()

signal.signal(signal.SIGINT, handle)
threading.Thread(target=interrupt).start()
with blocking.connect(url, token=token) as repository:
    try:
        blocking.push(repository, source, report=report)
    except KeyboardInterrupt:
        print("interrupted", go_on.is_set())
    go_on.set()
    print(blocking.push(repository, source).record.size)
"""


def test_second_ctrl_c_does_not_wait(server: RunningServer, tmp_path: Path) -> None:
    """A progress callback that does not return keeps the first one waiting, and not the second one."""
    assert (f"interrupted False\n{SIZE}\n", "", 0) == run(INTERRUPTED_TWICE, server, tmp_path)


INTERRUPTED_BLOCK = """
with blocking.connect(url, token=token) as repository, blocking.Cache(Path(folder, "cache"), repository) as cache:
    wanted = blocking.File(id=repository.record("source.bin").id)
    try:
        with cache.lease(wanted):
            print(len(list(Path(folder, "cache/leases").glob("*/*"))))
            signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted", len(list(Path(folder, "cache/leases").glob("*/*"))))
    print(cache.resolve(wanted).read_bytes() == Path(source).read_bytes())
"""


def test_ctrl_c_in_a_block_ends_it(server: RunningServer, tmp_path: Path) -> None:
    """The lease is given back."""
    assert ("1\ninterrupted 0\nTrue\n", "", 0) == run(INTERRUPTED_BLOCK, server, tmp_path)


FORKED = """
def file(name):
    path = Path(folder, name)
    path.write_text(name)
    return path

repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
wanted = blocking.File(id=repository.record("source.bin").id)
lease = cache.lease(wanted)
lease.__enter__()
opening = cache.open(blocking.File(id=blocking.push(repository, file("opened.txt")).record.id))
opened = opening.__enter__()
opened.whole()
before = sorted(Path(folder, "cache/leases").glob("*/*"))
pid = os.fork()
if pid == 0:
    print(blocking.push(repository, file("child.txt")).record.name)
    print(cache.resolve(wanted).name)
    with blocking.connect(url, token=token) as own:
        print(own.record("child.txt").name)
    try:
        opened.read(0, 1)
    except UsedAfterFork:
        print("UsedAfterFork")
    lease.__exit__(None, None, None)
    opening.__exit__(None, None, None)
    repository.close()
    {end}
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(before == sorted(path for path in Path(folder, "cache/leases").glob("*/*") if path in before))
print(opened.read(0, 6), blocking.push(repository, file("parent.txt")).record.name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["sys.stdout.flush(); os._exit(0)", "sys.exit()"])
def test_child_has_a_loop_of_its_own(server: RunningServer, tmp_path: Path, end: str) -> None:
    """It uses its parent's server and cache, leaves its parent's blocks alone, and harms nothing when it ends."""
    output = "child.txt\nsource.bin\nchild.txt\nUsedAfterFork\nTrue\nbytearray(b'opened') parent.txt\n"
    assert (output, "", 0) == run(FORKED.replace("{end}", end), server, tmp_path)


FORKED_DURING_A_CALL = """
begun, go_on = threading.Event(), threading.Event()

def report(_):
    begun.set()
    go_on.wait()

repository = blocking.connect(url, token=token)
pushing = threading.Thread(target=blocking.push, args=(repository, source), kwargs={"report": report})
pushing.start()
begun.wait()
pid = os.fork()
if pid == 0:
    print(repository.record("source.bin").name, flush=True)
    sys.exit()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
go_on.set()
pushing.join()
print(blocking.push(repository, source).record.name)
"""


def test_fork_during_a_call_of_another_thread(server: RunningServer, tmp_path: Path) -> None:
    """The child does not wait for the call, which the parent finishes."""
    assert ("source.bin\nsource.bin\n", "", 0) == run(FORKED_DURING_A_CALL, server, tmp_path)


FOLDER_IN_A_FORK = """
with blocking.connect(Path(folder, "own"), create=True) as repository:
    pid = os.fork()
    if pid == 0:
        try:
            repository.records()
        except UsedAfterFork:
            print("UsedAfterFork", flush=True)
        sys.exit()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print(repository.records())
"""


def test_open_folder_is_refused_in_a_child(server: RunningServer, tmp_path: Path) -> None:
    """At once, as by the verbs that are awaited."""
    assert ("UsedAfterFork\n[]\n", "", 0) == run(FOLDER_IN_A_FORK, server, tmp_path)


MULTIPROCESSING = """
import multiprocessing

def size(number):
    with blocking.connect(url, token=token) as own:
        return own.record("source.bin").size

repository = blocking.connect(url, token=token)
print(size(0))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(size, range(4)))
"""


def test_children_of_multiprocessing(server: RunningServer, tmp_path: Path) -> None:
    """A pool of forked processes, made after a call of the parent."""
    assert (f"{SIZE}\n{[SIZE] * 4}\n", "", 0) == run(MULTIPROCESSING, server, tmp_path)


ENDS = {
    "connect": "repository = blocking.connect(url, token=token); repository.records()",
    "folder": "repository = blocking.connect(Path(folder, 'own'), create=True); blocking.push(repository, source)",
    "cache": """
repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
cache.resolve(blocking.File(id=repository.record("source.bin").id))
""",
    "lease": """
repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
lease = cache.lease(blocking.File(id=repository.record("source.bin").id))
lease.__enter__()
""",
    "open": """
repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
opening = cache.open(blocking.File(id=repository.record("source.bin").id))
opened = opening.__enter__()
""",
    "lost block": """
repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
cache.lease(blocking.File(id=repository.record("source.bin").id)).__enter__()
""",
    "exit in a block": """
with blocking.connect(url, token=token) as repository, blocking.Cache(Path(folder, "cache"), repository) as cache:
    with cache.open(blocking.File(id=repository.record("source.bin").id)):
        sys.exit()
""",
    "daemon": """
begun = threading.Event()
repository = blocking.connect(url, token=token)
arguments = {"report": lambda progress: begun.set()}
threading.Thread(target=blocking.push, args=(repository, source), kwargs=arguments, daemon=True).start()
begun.wait()
""",
    "close at the end": """
repository = blocking.connect(url, token=token)
cache = blocking.Cache(Path(folder, "cache"), repository)
cache.resolve(blocking.File(id=repository.record("source.bin").id))
atexit.register(repository.close)
atexit.register(cache.close)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_program_ends_though_nothing_was_closed(server: RunningServer, tmp_path: Path, end: str) -> None:
    """Without a word, and with nothing left: no lease, no log of an index."""
    assert ("", "", 0) == run(ENDS[end], server, tmp_path)
    assert [] == list((tmp_path / "cache/leases").glob("*/*"))
    assert [] == list((tmp_path / "own").glob("index.sqlite-*"))


FINISHED = """
begun = threading.Event()
repository = blocking.connect(url, token=token)

def push():
    print(blocking.push(repository, source, report=lambda progress: begun.set()).record.size, flush=True)

threading.Thread(target=push).start()
begun.wait()
"""


def test_call_of_an_ordinary_thread_is_finished(server: RunningServer, tmp_path: Path) -> None:
    """Python waits for such a thread, and so for its call."""
    assert (f"{SIZE}\n", "", 0) == run(FINISHED, server, tmp_path)


LATE = """
def late():
    try:
        blocking.connect(url, token=token)
    except BlockingCallRefused as error:
        print(error)

atexit.register(late)
{before}
"""


@pytest.mark.parametrize("before", ["", "blocking.connect(url, token=token)"], ids=["first", "later"])
def test_call_at_the_end_is_refused(server: RunningServer, tmp_path: Path, before: str) -> None:
    """With the reason; it would find no thread that runs it."""
    reason = "a call of filestore.blocking was refused: the program ends; make it before the main thread has ended\n"
    assert (reason, "", 0) == run(LATE.replace("{before}", before), server, tmp_path)
