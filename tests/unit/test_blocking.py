"""The verbs without asyncio: what they give, and in which threads they work."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

import filestore
from filestore import blocking
from filestore.errors import BlockingCallRefused, ChunksMissing, InvalidRange, NotFound
from filestore.system.loop_thread import THREAD_NAME
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor
from tests.support.server import RunningServer, eventually, running_server

CONTENT = octets(1, 3 << 20)
VERBS = [
    "connect",
    "push",
    "plan_push",
    "fetch",
    "fetch_tree",
    "diff",
    "copy",
    "plan_copy",
    "sync_to_name",
    "sync_to_folder",
    "open_tensors",
]
METHODS = ["resolve", "resolved", "lease", "open", "cached", "close"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server for all of these tests."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.fixture
def repository(server: RunningServer) -> Iterator[blocking.Repository]:
    """The server's repository."""
    with blocking.connect(server.url, token=server.token) as repository:
        yield repository


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of several chunks."""
    path = tmp_path / "model.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_the_arguments_of_the_one_that_is_awaited(name: str) -> None:
    """Names, order, kinds and defaults; the repository is one of this module."""
    assert arguments(getattr(filestore, name)) == arguments(getattr(blocking, name))


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_a_cache_has_the_arguments_of_the_one_that_is_awaited(name: str) -> None:
    """Names, order, kinds and defaults."""
    assert arguments(getattr(filestore.Cache, name)) == arguments(getattr(blocking.Cache, name))


def arguments(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    """What a function takes."""
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def test_every_name_is_here_too() -> None:
    """So that `from filestore import blocking as filestore` is enough."""
    assert set(filestore.__all__) - {"blocking"} == set(blocking.__all__)


@pytest.mark.slow
def test_verbs_of_a_file(repository: blocking.Repository, source: Path, tmp_path: Path) -> None:
    """A plan, a push, a fetch, and what a repository tells."""
    plan = blocking.plan_push(repository, source)
    pushed = blocking.push(repository, str(source), name="verbs.bin")
    fetched = blocking.fetch(repository, "verbs.bin", target=tmp_path / "back.bin")
    assert (len(CONTENT), len(CONTENT)) == (plan.bytes_new, fetched.size)
    assert CONTENT == fetched.path.read_bytes()
    assert pushed.record == fetched.record == repository.record(pushed.record.id)
    assert pushed.record in repository.records()
    assert repository.sign(pushed.record.id).endswith("/verbs.bin")
    assert pushed.record == repository.remove(pushed.record.id)
    with pytest.raises(NotFound):
        repository.record(pushed.record.id)


@pytest.mark.slow
def test_verbs_of_a_tree(repository: blocking.Repository, tmp_path: Path) -> None:
    """It comes back as it was."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.txt").write_text("a")
    pushed = blocking.push(repository, tmp_path / "tree")
    fetched = blocking.fetch_tree(repository, pushed.record, target=tmp_path / "back")
    assert ("a", 1) == ((tmp_path / "back/a.txt").read_text(), fetched.file_count)


@pytest.mark.slow
def test_the_entries_of_a_tree(repository: blocking.Repository, tmp_path: Path) -> None:
    """A path after the reference names one of them."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner/small.txt").write_bytes(b"small")
    (tree / "large.bin").write_bytes(bytes(300_000))
    blocking.push(repository, tree)
    for path in ("inner/small.txt", "large.bin"):
        fetched = blocking.fetch(repository, f"tree.zip:{path}", target=tmp_path / "file", force=True)
        assert (tree / path).read_bytes() == fetched.path.read_bytes()
    assert 1 == blocking.fetch_tree(repository, "tree.zip:inner", target=tmp_path / "inner").file_count


def test_tensors(repository: blocking.Repository, tmp_path: Path) -> None:
    """Of a stored file and of a local one; an iteration may end early, and the connection goes on."""
    tensors = [tensor("a", 300_000, seed=1, dtype="I8"), tensor("b", 7, seed=2, dtype="F32")]
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file(tensors))
    blocking.push(repository, path)
    assert () == blocking.diff(repository, "model.safetensors", new=path).files
    for weights in (blocking.open_tensors(repository, "model.safetensors"), blocking.open_tensors(path)):
        assert ["a", "b"] == list(weights.tensors)
        assert tensors[1].data == weights.read("b")
        assert [tensors[0].data] == [data for _, data in islice(weights.read_all(), 1)]
        assert {each.name: each.data for each in tensors} == {each.name: data for each, data in weights.read_all()}
    with pytest.raises(BlockingCallRefused):
        blocking.open_tensors(repository.inner, "model.safetensors")  # type: ignore[arg-type]


def test_a_folder_is_a_repository_too(source: Path, tmp_path: Path) -> None:
    """By its path; what is closed once more stays closed."""
    repository = blocking.connect(tmp_path / "root", create=True)
    blocking.push(repository, source)
    assert (str(tmp_path / "root"), ["model.bin"]) == (repository.location, [each.name for each in repository.records()])
    repository.close()
    repository.close()
    for call in (repository.records, lambda: blocking.push(repository, source)):
        with pytest.raises(BlockingCallRefused, match="was closed; open it again"):
            call()
    with pytest.raises(filestore.errors.NotARepository):
        blocking.connect(tmp_path / "absent")


def test_what_is_open_is_not_sent_to_another_process(repository: blocking.Repository, tmp_path: Path) -> None:
    """Pickling a repository, or a cache of it, says at once what to do instead."""
    for item in (repository, blocking.Cache(tmp_path / "cache", repository)):
        with pytest.raises(TypeError, match=r"open it there by connect\(\)"):
            pickle.dumps(item)


@pytest.mark.slow
def test_a_repository_that_nothing_refers_to_is_closed(server: RunningServer, tmp_path: Path) -> None:
    """As Python does with files; a cache refers to its repository."""
    repository = blocking.connect(server.url, token=server.token)
    cache = blocking.Cache(tmp_path / "cache", repository)
    is_open = weakref.ref(repository)
    inner = weakref.ref(repository.inner)
    del repository
    gc.collect()
    assert None is not is_open()
    del cache
    gc.collect()
    assert None is is_open()
    eventually(lambda: gc.collect() >= 0 and inner() is None)


def test_a_cache(repository: blocking.Repository, source: Path, tmp_path: Path) -> None:
    """Resolve, lease, open, and a look at what is there."""
    record = blocking.push(repository, source).record
    wanted = blocking.File(id=record.id)
    with blocking.Cache(tmp_path / "cache", repository) as cache:
        assert None is cache.cached(wanted)
        with cache.open(wanted) as opened:
            part = opened.read(1000, 2000)
            memory = bytearray(10)
            opened.read_into(memoryview(memory), 5)
            with pytest.raises(InvalidRange):
                opened.read(0, opened.size + 1)
            whole = opened.whole()
        assert (CONTENT[1000:2000], CONTENT[5:15], CONTENT) == (bytes(part), bytes(memory), whole.read_bytes())
        with cache.lease(wanted) as leased:
            assert whole == leased == cache.resolve(wanted)
        resolved = cache.resolved(wanted)
        assert (whole, True) == (resolved.path, resolved.was_cached)
        assert blocking.CachedPath(whole, len(CONTENT)) == cache.cached(wanted)
    cache.close()


def test_a_lease_ends_with_its_block(repository: blocking.Repository, source: Path, tmp_path: Path) -> None:
    """Also where an exception ends it."""
    wanted = blocking.File(id=blocking.push(repository, source).record.id)
    with blocking.Cache(tmp_path / "cache", repository) as cache:
        with pytest.raises(ZeroDivisionError), cache.lease(wanted):
            assert 1 == len(list((tmp_path / "cache/leases").glob("*/*")))
            raise ZeroDivisionError
        assert [] == list((tmp_path / "cache/leases").glob("*/*"))


def test_an_exception_in_an_open_block_stops_the_fetch(server: RunningServer, source: Path, tmp_path: Path) -> None:
    """It is the one that is raised, and the file is not in the cache."""
    with blocking.connect(server.url, token=server.token) as repository:
        wanted = blocking.File(id=blocking.push(repository, source).record.id)
        with blocking.Cache(tmp_path / "cache", repository) as cache:
            with pytest.raises(ZeroDivisionError), cache.open(wanted):
                raise ZeroDivisionError
            assert CONTENT == cache.resolve(wanted).read_bytes()


def test_a_fetch_that_fails_is_raised_by_a_read(source: Path, tmp_path: Path) -> None:
    """A read that waits for what never comes ends with the error of the fetch, and so does the block."""
    with blocking.connect(tmp_path / "root", create=True) as repository:
        wanted = blocking.File(id=blocking.push(repository, source).record.id)
        for frame in (tmp_path / "root/chunks").rglob("*"):
            if frame.is_file():
                frame.unlink()
        with blocking.Cache(tmp_path / "cache", repository) as cache, pytest.raises(ChunksMissing):  # noqa: SIM117
            with cache.open(wanted) as opened:
                with pytest.raises(ChunksMissing):
                    opened.read(0, opened.size)


async def test_it_works_where_a_loop_runs(server: RunningServer, source: Path) -> None:
    """As in a notebook: the loop of this test runs in this thread."""
    assert asyncio.get_running_loop().is_running()
    with blocking.connect(server.url, token=server.token) as repository:
        assert len(CONTENT) == blocking.push(repository, source).record.size


@pytest.mark.slow
def test_calls_of_several_threads(repository: blocking.Repository, tmp_path: Path) -> None:
    """One repository and one cache, in eight threads that begin at once."""
    together = threading.Barrier(8)
    with blocking.Cache(tmp_path / "cache", repository) as cache, ThreadPoolExecutor(8) as pool:

        def there_and_back(number: int) -> bytes:
            path = tmp_path / f"{number}.bin"
            path.write_bytes(octets(number, 100_000))
            together.wait()
            record = blocking.push(repository, path).record
            return cache.resolve(blocking.File(id=record.id)).read_bytes()

        assert [octets(number, 100_000) for number in range(8)] == list(pool.map(there_and_back, range(8)))


def test_progress_is_told_in_the_thread_of_the_loop(repository: blocking.Repository, source: Path) -> None:
    """As documented."""
    threads = set()
    told = []

    def report(progress: blocking.Progress) -> None:
        threads.add(threading.current_thread().name)
        told.append(progress)

    blocking.push(repository, source, report=report)
    assert {THREAD_NAME} == threads
    assert (len(CONTENT), len(CONTENT)) == (told[-1].total, told[-1].done)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_an_exception_of_a_progress_callback_is_raised(
    repository: blocking.Repository, source: Path, error: type[BaseException]
) -> None:
    """Whatever it is; the loop goes on, and other calls work."""

    def report(_: blocking.Progress) -> None:
        raise error

    with pytest.raises(error):
        blocking.push(repository, source, report=report)
    assert len(CONTENT) == blocking.push(repository, source).record.size


def test_a_call_in_the_thread_of_the_loop_is_refused(repository: blocking.Repository, source: Path) -> None:
    """It would wait for itself for ever."""

    def report(_: blocking.Progress) -> None:
        repository.records()

    with pytest.raises(BlockingCallRefused, match="in the thread of the event loop"):
        blocking.push(repository, source, report=report)
    assert len(CONTENT) == blocking.push(repository, source).record.size


async def test_a_repository_of_another_loop_is_refused(server: RunningServer, source: Path, tmp_path: Path) -> None:
    """With what to do instead."""
    async with filestore.connect(server.url, token=server.token) as repository:
        with pytest.raises(BlockingCallRefused, match=r"open it by filestore\.blocking\.connect"):
            blocking.push(repository, source)  # type: ignore[arg-type]  # what a type checker would tell
        with pytest.raises(BlockingCallRefused, match=r"open it by filestore\.blocking\.connect"):
            blocking.Cache(tmp_path, repository)  # type: ignore[arg-type]  # the same
