"""A large fetch runs in several processes. Whatever ends or damages a part of it, it leaves all or nothing."""

from __future__ import annotations

import asyncio
import filecmp
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.manifest import Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.paths import chunk_key
from filestore.core.progress import Progress
from filestore.core.records import Record
from filestore.errors import DamagedChunk, StorageError, StorageFull, TransferError, WorkerEnded
from filestore.format.codec import FRAME_LIMIT
from filestore.repository.protocol import Opening, Repository, TransferLimits
from filestore.transfer import receiver as receiver_module
from filestore.transfer.fetch import fetch_record
from filestore.transfer.fetch_tree import fetch_record_tree
from filestore.transfer.push import push
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.seeds import has_data
from filestore.transfer.workers import WorkerPool, worker_pool
from tests.support.disks import small_disk
from tests.support.generator import octets
from tests.support.server import RunningServer, running_server
from tests.support.watched import WatchedRepository

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 40 * MIB
Act = Callable[[WorkerPool], object]


class Watched(WatchedRepository):
    """A repository that worker processes open, too. `calls` are those of this process."""

    processes = 2

    @property
    def transfer_limits(self) -> TransferLimits:
        return TransferLimits(processes=self.processes)

    def opening(self) -> Opening | None:
        return self.inner.opening()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A real server."""
    with running_server(tmp_path / "root", check=False) as running:
        yield running


@pytest.fixture
async def repository(server: RunningServer) -> AsyncIterator[Watched]:
    """Its repository."""
    async with connect(server.url, token=server.token) as opened:
        yield Watched(opened)


OPTIONS = TransferOptions(large_size=0, batches_in_flight=2, batch_size=FRAME_LIMIT, sync_size=8 * MIB)
"""Options with which each fetch is a large one. Each process has two batches in flight, of a chunk or a few."""


@pytest.fixture(params=[2, 3])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many worker processes. They are ready before anything is received."""
    act_when_ready(monkeypatch, lambda _: None)
    monkeypatch.setattr(Watched, "processes", request.param)
    count: int = request.param
    return count


def act_when_ready(monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """Wait at the start of each download until all worker processes are ready. Then call `act`, which may return an awaitable."""

    @asynccontextmanager
    async def pool_of(repository: Repository, *, count: int, slots: int, modules: Sequence[str]) -> AsyncIterator[WorkerPool]:
        async with worker_pool(repository, count=count, slots=slots, modules=modules) as pool:
            async with asyncio.timeout(60):
                while len(pool.process_ids) < count:
                    await asyncio.sleep(0.01)
            act(pool)
            yield pool

    monkeypatch.setattr(receiver_module, "worker_pool", pool_of)


@pytest.fixture(params=["usual", "in memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder for targets. On tmpfs, worker processes map the files."""
    if request.param == "usual":
        (tmp_path / "targets").mkdir()
        yield tmp_path / "targets"
    else:
        with small_disk(tmp_path / "targets", "size=256m"):
            yield tmp_path / "targets"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that no codec makes smaller, of which a part is there three times."""
    path = tmp_path / "model.bin"
    path.write_bytes(octets(1, SIZE) + octets(1, SIZE)[: 20 * MIB] + octets(2, MIB) + octets(1, SIZE)[: 20 * MIB])
    return path


@pytest.fixture
async def record(repository: Watched, source: Path) -> Record:
    """The file, pushed."""
    pushed = (await push(repository.inner, source)).record
    repository.calls.clear()
    return pushed


def left_in(folder: Path) -> list[str]:
    """What fetches leave next to their targets."""
    return sorted(path.name for path in folder.iterdir() if ".filestore-" in path.name)


@pytest.mark.usefixtures("processes")
async def test_a_file(repository: Watched, record: Record, source: Path, folder: Path) -> None:
    """The worker processes receive and write all of it. The progress is that of one process."""
    shown: list[Progress] = []
    found = await fetch_record(repository, record, target=folder / "back", options=OPTIONS, report=shown.append)

    assert filecmp.cmp(source, folder / "back", shallow=False)
    assert ["manifest"] == repository.calls
    assert SIZE < found.bytes_received < SIZE + 10 * MIB
    assert 0 == found.bytes_reused
    assert [each.done for each in shown] == sorted(each.done for each in shown)
    assert (record.size, found.bytes_received) == (shown[-1].done, shown[-1].moved)
    assert [] == left_in(folder)


@pytest.mark.usefixtures("processes")
async def test_a_directory(repository: Watched, tmp_path: Path, folder: Path) -> None:
    """Large files are written by worker processes. Small ones, and the ends of large ones, by the process of the fetch."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    for number in range(3):
        (tree / f"inner/{number}.bin").write_bytes(octets(number, 15 * MIB + number))
        (tree / f"{number}.txt").write_bytes(b"small" * number)
    (tree / "script").write_bytes(octets(7, 9 * MIB))
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("script")
    pushed = (await push(repository.inner, tree)).record
    shown: list[Progress] = []
    await fetch_record_tree(repository, pushed, target=folder / "back", options=OPTIONS, report=shown.append)

    names = sorted(path.relative_to(tree) for path in tree.rglob("*"))
    assert names == sorted(path.relative_to(folder / "back") for path in (folder / "back").rglob("*"))
    for name in names:
        if (tree / name).is_file():
            assert filecmp.cmp(tree / name, folder / "back" / name, shallow=False)
            assert os.access(tree / name, os.X_OK) == os.access(folder / "back" / name, os.X_OK)
    assert repository.chunks_got < 20
    assert (pushed.size, 8, 8) == (shown[-1].done, shown[-1].files_done, shown[-1].file_count)


@pytest.mark.usefixtures("processes")
async def test_a_directory_with_more_equal_files_than_a_message_may_have(repository: Watched, tmp_path: Path) -> None:
    """A chunk that belongs into hundreds of files is received once, and written to all of them, with few open files."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(300):
        (tree / f"{number}.bin").write_bytes(octets(1, 300 << 10))
    (tree / "other.bin").write_bytes(octets(2, 9 * MIB))
    pushed = (await push(repository.inner, tree)).record
    most = 0

    def count_files(_: Progress) -> None:
        nonlocal most
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))

    before = len(list(Path("/proc/self/fd").iterdir()))
    await fetch_record_tree(repository, pushed, target=tmp_path / "back", options=OPTIONS, report=count_files)

    for path in tree.iterdir():
        assert filecmp.cmp(path, tmp_path / "back" / path.name, shallow=False)
    assert most < before + 150


async def test_a_killed_worker_process_ends_the_fetch_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, source: Path, folder: Path
) -> None:
    """One sentence says so. Only the staging file stays, and what it has is not received again."""
    pools: list[WorkerPool] = []
    act_when_ready(monkeypatch, pools.append)

    def kill_half_way(progress: Progress) -> None:
        if progress.done > SIZE // 2 and pools[-1].process_ids:
            os.kill(pools[-1].process_ids[0], signal.SIGKILL)

    with pytest.raises(WorkerEnded) as caught:
        await fetch_record(repository, record, target=folder / "back", options=OPTIONS, report=kill_half_way)
    assert "\n" not in str(caught.value)
    assert [] == pools[-1].process_ids
    assert not (folder / "back").exists()
    assert 1 == len(left_in(folder))

    found = await fetch_record(repository, record, target=folder / "back", options=OPTIONS)
    assert filecmp.cmp(source, folder / "back", shallow=False)
    assert found.bytes_reused > 0
    assert [] == left_in(folder)


@pytest.mark.usefixtures("processes")
async def test_a_server_that_ends_half_way(server: RunningServer, record: Record, source: Path, tmp_path: Path) -> None:
    """The error is that of one process, and the next fetch goes on."""

    def stop_half_way(progress: Progress) -> None:
        if progress.done > SIZE // 4:
            server.process.kill()

    async with connect(server.url, token=server.token, retry_seconds=0.1) as repository:
        with pytest.raises(TransferError):
            await fetch_record(Watched(repository), record, target=tmp_path / "back", options=OPTIONS, report=stop_half_way)
    assert not (tmp_path / "back").exists()
    with running_server(tmp_path / "root") as again:
        async with connect(again.url, token=again.token) as repository:
            found = await fetch_record(Watched(repository), record, target=tmp_path / "back", options=OPTIONS)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
    assert found.bytes_reused > 0
    assert [] == left_in(tmp_path)


async def test_a_cancelled_fetch_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, source: Path, folder: Path
) -> None:
    """It ends when all worker processes have ended, and the next fetch goes on."""
    pools: list[WorkerPool] = []
    act_when_ready(monkeypatch, pools.append)
    started: list[int] = []

    def cancel_half_way(progress: Progress) -> None:
        if progress.done > SIZE // 2:
            started.extend(pools[-1].process_ids)
            fetching.cancel()

    fetching = asyncio.create_task(
        fetch_record(repository, record, target=folder / "back", options=OPTIONS, report=cancel_half_way)
    )
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert 2 <= len(started)
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    found = await fetch_record(repository, record, target=folder / "back", options=OPTIONS)
    assert filecmp.cmp(source, folder / "back", shallow=False)
    assert found.bytes_reused > 0


@pytest.mark.usefixtures("processes")
async def test_damage_in_the_repository(  # fixtures
    repository: Watched, server: RunningServer, record: Record, source: Path, folder: Path
) -> None:
    """The worker process lets the repository verify its chunks, so that the next push sends what is damaged."""
    chunks = Manifest.parse(await repository.inner.manifest(record.digest)).chunks
    frame = server.root / chunk_key(DEFAULT_NAMESPACE, chunks[len(chunks) // 3].digest)
    damaged = bytearray(frame.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    frame.write_bytes(damaged)
    with pytest.raises(DamagedChunk, match="push the file"):
        await fetch_record(repository, record, target=folder / "back", options=OPTIONS)
    assert not (folder / "back").exists()
    assert 0 < (await push(repository.inner, source)).bytes_sent < SIZE // 2
    await fetch_record(repository, record, target=folder / "back", options=OPTIONS)
    assert filecmp.cmp(source, folder / "back", shallow=False)


async def test_a_write_that_fails_in_a_worker_process(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, tmp_path: Path
) -> None:
    """The error names the target, as one of this process does. What was received before is kept."""

    def limit(pool: WorkerPool) -> None:
        for process in pool.process_ids:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (20 * MIB, 20 * MIB))

    act_when_ready(monkeypatch, limit)
    with pytest.raises(StorageError) as caught:
        await fetch_record(repository, record, target=tmp_path / "back", options=OPTIONS)
    assert str(tmp_path / "back") in str(caught.value)
    assert not (tmp_path / "back").exists()


_KEEP_LOCKED = """
import contextlib, fcntl, sys
files = [open(name, "r+b") for name in sys.argv[1:]]
for file in files:
    with contextlib.suppress(OSError):  # an earlier process has it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
print("locked", flush=True)
sys.stdin.read()
"""
"""Seem to write to files all the time, so that all others map them."""


@contextmanager
def memory_with_mapped_files(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, size: str = "size=256m"
) -> Iterator[Callable[[str], None]]:
    """Mount a tmpfs at `folder`. Worker processes map each large chunk there. When they are ready, it gets the size `size`.

    Yield a function that changes its size.
    """
    lockers: list[subprocess.Popen[bytes]] = []
    sizes = [size]
    with small_disk(folder, "size=256m") as change:

        def begin(_: WorkerPool) -> None:
            locker = subprocess.Popen(
                [sys.executable, "-c", _KEEP_LOCKED, *folder.rglob("*.filestore-partial")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            lockers.append(locker)
            assert locker.stdout is not None
            assert b"locked\n" == locker.stdout.readline()
            change(sizes.pop() if sizes else "size=256m")

        act_when_ready(monkeypatch, begin)
        try:
            yield change
        finally:
            for locker in lockers:
                locker.communicate()


async def test_a_file_in_memory_is_mapped(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, source: Path, tmp_path: Path
) -> None:
    """All chunks are stored through mappings, and none is lost at the pages that two of them share."""
    with memory_with_mapped_files(monkeypatch, tmp_path / "memory"):
        await fetch_record(repository, record, target=tmp_path / "memory/back", options=OPTIONS)
        assert filecmp.cmp(source, tmp_path / "memory/back", shallow=False)
        assert ["manifest"] == repository.calls


async def test_memory_that_is_full(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, source: Path, tmp_path: Path
) -> None:
    """It fills up after the space was checked. The error is that of a write, no process ends, and the next fetch goes on."""
    target = tmp_path / "memory/back"
    with memory_with_mapped_files(monkeypatch, tmp_path / "memory", size="size=50m") as change:
        with pytest.raises(StorageFull) as caught:
            await fetch_record(repository, record, target=target, options=OPTIONS)
        assert "\n" not in str(caught.value)
        assert str(target.parent) in str(caught.value)
        assert not target.exists()
        (left,) = target.parent.iterdir()
        assert 40 * MIB < left.stat().st_blocks * 512 <= 50 * MIB

        change("size=256m")
        found = await fetch_record(repository, record, target=target, options=OPTIONS)
        assert filecmp.cmp(source, target, shallow=False)
        assert found.bytes_reused > 20 * MIB


async def test_nothing_is_written_to_what_another_process_has_published(
    monkeypatch: pytest.MonkeyPatch, repository: Watched, record: Record, source: Path, tmp_path: Path
) -> None:
    """Its staging file is renamed while the worker processes are ready. The fetch starts over with a new one."""
    published = tmp_path / "published"

    def publish(_: WorkerPool) -> None:
        if not published.exists():
            (staging,) = tmp_path.glob("*.filestore-partial")
            staging.rename(published)

    act_when_ready(monkeypatch, publish)
    await fetch_record(repository, record, target=tmp_path / "back", options=OPTIONS)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
    with published.open("rb") as file:
        assert not has_data(file.fileno(), 0, record.size)


_FETCH = """
import asyncio, sys, time
from contextlib import asynccontextmanager
from pathlib import Path
from filestore.backends import connect
from filestore.transfer import receiver
from filestore.transfer.fetch import fetch_record
from filestore.transfer.schedule import TransferOptions
from filestore.transfer.workers import worker_pool

@asynccontextmanager
async def ready_pool(repository, **settings):
    async with worker_pool(repository, **settings) as pool:
        while len(pool.process_ids) < 2:
            await asyncio.sleep(0.01)
        pools.append(pool)
        yield pool

pools = []

def stop_half_way(progress):
    if progress.done > progress.total // 4:
        print(*pools[-1].process_ids, flush=True)
        time.sleep(600)

async def main(url, token, file_id, target):
    receiver.worker_pool = ready_pool
    async with connect(url, token=token, processes=2) as repository:
        options = TransferOptions(large_size=0, batches_in_flight=2, batch_size=5 << 20)
        record = await repository.record(file_id)
        await fetch_record(repository, record, target=Path(target), options=options, report=stop_half_way)

asyncio.run(main(*sys.argv[1:]))
"""
"""Fetch a file in two worker processes. Stop half-way, while these work on."""


def is_running(process: str) -> bool:
    """Whether a process has not ended. One that nobody waits for has no command line any more."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


async def test_a_killed_fetch_leaves_no_process_that_writes(
    server: RunningServer, repository: Watched, record: Record, source: Path, folder: Path
) -> None:
    """Its worker processes end with it, in the middle of their work. The next fetch goes on with the same file."""
    arguments = (server.url, server.token, record.id, str(folder / "back"))
    fetching = await asyncio.create_subprocess_exec(sys.executable, "-c", _FETCH, *arguments, stdout=asyncio.subprocess.PIPE)
    assert fetching.stdout is not None
    async with asyncio.timeout(60):
        workers = (await fetching.stdout.readline()).decode().split()
        assert [True, True] == [is_running(process) for process in workers]
        fetching.kill()
        await fetching.wait()
        while any(is_running(process) for process in workers):
            await asyncio.sleep(0.01)
    found = await fetch_record(repository, record, target=folder / "back", options=OPTIONS)
    assert filecmp.cmp(source, folder / "back", shallow=False)
    assert found.bytes_reused > 0
    assert [] == left_in(folder)


@pytest.mark.usefixtures("processes")
async def test_two_fetches_to_one_target(repository: Watched, record: Record, source: Path, tmp_path: Path) -> None:
    """Both end well, whoever publishes first."""
    fetches = [fetch_record(repository, record, target=tmp_path / "back", options=OPTIONS) for _ in range(2)]
    await asyncio.gather(*fetches)
    assert filecmp.cmp(source, tmp_path / "back", shallow=False)
    assert [] == left_in(tmp_path)
