"""A push that worker processes share: the same chunks, and the same errors, as a push without them. All processes are real."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from filestore.backends import connect
from filestore.core.progress import Progress
from filestore.core.quotas import Quota
from filestore.errors import QuotaExceeded, SourceChanged, TransferError, WorkerEnded
from filestore.repository.protocol import Repository, TransferLimits
from filestore.transfer import push as push_module
from filestore.transfer.fetch import fetch
from filestore.transfer.parallelism import Parallelism
from filestore.transfer.push import manifest_of, plan_push, push
from filestore.transfer.sources import file as file_module
from filestore.transfer.sources.push_cache import PushCache
from filestore.transfer.workers import WorkerPool, worker_pool
from tests.support.models import Tensor, safetensors_file
from tests.support.quotas import set_quota
from tests.support.runtimes import is_running
from tests.support.server import RunningServer, running_server

MIB = 1 << 20


class Workers:
    """The worker processes of the pushes of a test. All are ready before the first window."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.count = 2
        self.jobs = 0
        self.kinds: set[str] = set()
        self.process_ids: list[int] = []
        self.before: Callable[[], None] = lambda: None
        """It runs before each job is given."""
        self.at_answer: Callable[[], None] = lambda: None
        """It runs when a job asks."""
        patches.setattr(push_module, "push_parallelism", self._parallelism)
        patches.setattr(push_module, "worker_pool", self._pool)
        patches.setattr(file_module, "REGION_SIZE", 20 * MIB)

    def _parallelism(self, size: int, _: TransferLimits, **__: int) -> Parallelism:
        return Parallelism(self.count, 2, 3) if size else Parallelism(0, 3)

    @asynccontextmanager
    async def _pool(self, repository: Repository, *, count: int, slots: int, modules: Sequence[str]) -> AsyncIterator[WorkerPool]:
        async with worker_pool(repository, count=count, slots=slots, modules=modules) as pool:
            while len(pool.process_ids) < count:
                await asyncio.sleep(0.01)
            self.process_ids = pool.process_ids
            run = pool.run

            async def watched(job: Any, **options: Any) -> Any:
                self.before()
                self.kinds.add(type(job).__name__)
                answer = options.pop("answer")

                def answered(question: object) -> object:
                    self.at_answer()
                    return answer(question)

                result = await run(job, answer=answered, **options)
                self.jobs += 1
                return result

            pool.run = watched  # type: ignore[method-assign]
            yield pool


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Worker processes for each push, which end with it."""
    workers = Workers(monkeypatch)
    yield workers
    assert not any(map(is_running, workers.process_ids))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server, which nothing of a test makes report an error."""
    with running_server(tmp_path / "repository") as server:
        yield server


def model(*, seed: int = 1, count: int = 12, repeated: bool = False) -> bytes:
    """A file of tensors of 8 MiB, which no codec makes smaller. They are all equal if it is `repeated`."""
    rng = random.Random(seed)
    first = rng.randbytes(8 * MIB)
    data = (first if repeated else rng.randbytes(8 * MIB) for _ in range(count))
    return safetensors_file([Tensor(str(place), "I8", (8 * MIB,), each) for place, each in enumerate(data)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an mtime that is long ago, so that a push cache trusts it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(model())
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
    return path


async def missed(server: RunningServer, path: Path) -> int:
    """Return how many bytes of a file the server does not have. It has no record."""
    async with connect(server.url, token=server.token) as repository:
        assert [] == await repository.records()
        return (await plan_push(repository, path)).bytes_new


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
async def test_a_file_has_the_same_digest(
    server: RunningServer, workers: Workers, path: Path, tmp_path: Path, count: int
) -> None:
    """All windows go to the worker processes. Every number is that of a push without them, and the content comes back."""
    workers.count = count
    size = path.stat().st_size
    seen: list[Progress] = []
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, path, report=seen.append)
        again = await push(repository, path)
        fetched = await fetch(repository, pushed.record, target=tmp_path / "back")
    assert (await manifest_of(path)).digest == pushed.record.digest == again.record.digest
    assert workers.jobs >= 3
    assert (size, 0) == (pushed.bytes_read, pushed.bytes_shared)
    assert size < pushed.bytes_sent < size + 10_000
    assert (0, size) == (again.bytes_sent, again.bytes_shared)
    assert path.read_bytes() == fetched.path.read_bytes()
    done = [progress.done for progress in seen]
    assert sorted(done) == done
    assert (size, size, pushed.bytes_sent) == (seen[-1].done, seen[-1].read, seen[-1].moved)


@pytest.mark.slow
async def test_a_tensor_that_is_too_large_for_one_process(server: RunningServer, workers: Workers, tmp_path: Path) -> None:
    """Its windows are cut here and go to all processes; the tensors around it go to one each."""
    rng = random.Random(3)
    tensors = [Tensor(str(place), "I8", (size * MIB,), rng.randbytes(size * MIB)) for place, size in enumerate([20, 60, 20])]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file(tensors))
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, path)
        again = await push(repository, path)
    assert (await manifest_of(path)).digest == pushed.record.digest == again.record.digest
    assert workers.kinds == {"SendRegion", "SendWindow"}
    assert (path.stat().st_size, 0) == (pushed.bytes_read, again.bytes_sent)


@pytest.mark.slow
async def test_a_directory_has_the_same_digest(server: RunningServer, workers: Workers, path: Path, tmp_path: Path) -> None:
    """The windows of large files go to the worker processes, those of headers and small files do not."""
    tree = tmp_path / "tree"
    tree.mkdir()
    path.rename(tree / "model.safetensors")
    (tree / "other.bin").write_bytes(random.Random(5).randbytes(33 * MIB))
    for number in range(50):
        (tree / f"{number}.txt").write_bytes(b"%d" % number * 9000)
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, tree)
        again = await push(repository, tree)
    assert workers.jobs >= 8
    assert (await manifest_of(tree)).digest == pushed.record.digest
    assert (0, 0) == (pushed.bytes_shared, again.bytes_sent)


@pytest.mark.slow
async def test_a_directory_that_is_pushed_again_after_a_change(
    server: RunningServer, workers: Workers, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks around a change are not read again. The windows of a large file are still found where they are in it."""
    monkeypatch.setattr(file_module, "SETTLED_NANOSECONDS", 0)
    tree = tmp_path / "tree"
    tree.mkdir()
    path.rename(tree / "b.safetensors")
    (tree / "d.bin").write_bytes(random.Random(5).randbytes(33 * MIB))
    for number in range(50):
        (tree / f"{'ace'[number % 3]}{number}.txt").write_bytes(random.Random(number).randbytes(200_000))
    with PushCache(tmp_path / "cache.sqlite") as cache:
        async with connect(server.url, token=server.token) as repository:
            await push(repository, tree, push_cache=cache)
            (tree / "c1.txt").write_bytes(b"another content")
            with (tree / "d.bin").open("r+b") as file:
                file.seek(20 * MIB)
                file.write(b"another content")
            jobs = workers.jobs
            again = await push(repository, tree, push_cache=cache)
    assert (await manifest_of(tree)).digest == again.record.digest
    assert workers.jobs > jobs
    assert again.bytes_sent < 12 * MIB


@pytest.mark.slow
async def test_a_chunk_of_many_windows_is_sent_once(server: RunningServer, workers: Workers, tmp_path: Path) -> None:
    """Worker processes do not know of each other. The process that pushes knows what each has asked about."""
    path = tmp_path / "repeated.safetensors"
    path.write_bytes(model(repeated=True))
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, path)
    assert workers.jobs > 2
    assert 8 * MIB < pushed.bytes_sent < 8 * MIB + 10_000
    assert path.stat().st_size - 8 * MIB - 2000 < pushed.bytes_shared < path.stat().st_size - 8 * MIB


@pytest.mark.slow
async def test_a_push_cache_starts_no_process(
    server: RunningServer, workers: Workers, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not changed is not read, so there is nothing to share."""
    monkeypatch.setattr(file_module, "SETTLED_NANOSECONDS", 0)
    with PushCache(tmp_path / "cache.sqlite") as cache:
        async with connect(server.url, token=server.token) as repository:
            first = await push(repository, path, push_cache=cache)
            jobs = workers.jobs
            again = await push(repository, path, push_cache=cache)
    assert first.record.digest == again.record.digest
    assert (0, jobs) == (again.bytes_read, workers.jobs)


@pytest.mark.slow
async def test_a_quota_that_is_reached_half_way(tmp_path: Path, workers: Workers, path: Path) -> None:
    """The refusal of the server, which a worker process gets, is raised as it is. Nothing is recorded."""
    root = tmp_path / "repository"
    await asyncio.to_thread(set_quota, root, Quota(stored_size=40 * MIB))
    with running_server(root, check=False) as server:
        async with connect(server.url, token=server.token) as repository:
            with pytest.raises(QuotaExceeded, match="its quota is"):
                await push(repository, path)
        assert await missed(server, path) > 0


@pytest.mark.slow
async def test_a_server_that_ends_half_way(tmp_path: Path, workers: Workers, path: Path) -> None:
    """The push fails with one error when no worker process reaches the server any more."""
    with running_server(tmp_path / "repository", check=False) as server:
        workers.at_answer = server.process.kill
        async with connect(server.url, token=server.token, retry_seconds=0.5) as repository:
            with pytest.raises(TransferError) as failure:
                await push(repository, path)
    assert not isinstance(failure.value, WorkerEnded)
    assert "\n" not in str(failure.value)


@pytest.mark.slow
async def test_a_worker_process_that_is_killed(server: RunningServer, workers: Workers, path: Path) -> None:
    """The push fails in one sentence, and nothing is recorded. The next push sends what is missing."""

    def kill_once() -> None:
        workers.at_answer = lambda: None
        os.kill(workers.process_ids[0], signal.SIGKILL)

    workers.at_answer = kill_once
    async with connect(server.url, token=server.token) as repository:
        with pytest.raises(WorkerEnded, match="a worker process of the transfer with"):
            await push(repository, path)
        assert [] == await repository.records()
        pushed = await push(repository, path)
    assert (await manifest_of(path)).digest == pushed.record.digest


@pytest.mark.slow
async def test_a_push_that_is_cancelled(server: RunningServer, workers: Workers, path: Path) -> None:
    """All processes end, nothing is recorded, and no descriptor is left open."""
    async with connect(server.url, token=server.token) as repository:
        await repository.identity()
        before = _open_files()
        pushing = asyncio.ensure_future(push(repository, path))
        workers.at_answer = lambda: _cancel(pushing)
        with pytest.raises(asyncio.CancelledError):
            await pushing
        assert _files_of(path) == 0
        assert _open_files() <= before + 4  # connections stay
    assert await missed(server, path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("change", ["overwritten", "shorter", "longer"])
async def test_a_file_that_changes_before_it_is_read_again(
    server: RunningServer, workers: Workers, path: Path, change: str
) -> None:
    """What a worker process reads may differ from what was cut. Then nothing is recorded."""
    workers.before = lambda: _change(workers, path, change)
    async with connect(server.url, token=server.token) as repository:
        with pytest.raises(SourceChanged):
            await push(repository, path)
        assert [] == await repository.records()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["overwritten", "shorter", "longer", "replaced"])
async def test_a_tree_that_changes_before_it_is_read_again(
    server: RunningServer, workers: Workers, path: Path, change: str
) -> None:
    """The file is opened again for the worker process, which may also find another one."""
    tree = path.parent / "tree"
    tree.mkdir()
    path = path.rename(tree / path.name)
    workers.before = lambda: _change(workers, path, change)
    async with connect(server.url, token=server.token) as repository:
        with pytest.raises(SourceChanged, match=path.name):
            await push(repository, tree)
        assert [] == await repository.records()


@pytest.mark.slow
async def test_a_folder_is_pushed_to_by_several_processes(workers: Workers, path: Path, tmp_path: Path) -> None:
    """Each worker process opens the folder of a local repository."""
    async with connect(tmp_path / "local", create=True) as repository:
        pushed = await push(repository, path)
    assert workers.jobs >= 3
    assert (await manifest_of(path)).digest == pushed.record.digest


def _change(workers: Workers, path: Path, change: str) -> None:
    workers.before = lambda: None
    if change == "replaced":
        path.unlink()
        path.write_bytes(model(seed=2))
        return
    with path.open("r+b") as file:
        if change == "overwritten":
            file.seek(4 * MIB)
            file.write(random.Random(9).randbytes(2 * MIB))
        else:
            file.truncate(5 * MIB if change == "shorter" else 200 * MIB)


def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _files_of(path: Path) -> int:
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += each.readlink() == path
        except OSError:
            continue
    return found
