"""List every implementation of a contract by name. A new one is one more entry here, and must pass every rule."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.index.protocol import Index
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from filestore.repository.stores.disk import open_store
from filestore.repository.stores.memory import MemoryStore
from filestore.repository.stores.protocol import ChunkStore
from tests.support.jwts import jwks, save, signer
from tests.support.s3_stores import open_indexed_store
from tests.support.server import RunningServer, running_server
from tests.support.tls import client_of

OpenIndex = Callable[..., Awaitable[Index]]


class Clock:
    """Microseconds since 1970, as the test sets them."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, *, seconds: int) -> None:
        """Let time pass, or go back."""
        self.now += seconds * 1_000_000


async def _memory_store(_folder: Path) -> ChunkStore:
    return MemoryStore()


STORES: dict[str, Callable[[Path], Awaitable[ChunkStore]]] = {"memory": _memory_store, "disk": open_store}


@pytest.fixture(params=[*STORES, "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ChunkStore]:
    """An empty chunk store."""
    if request.param == "s3":
        store: ChunkStore = await open_indexed_store(request.getfixturevalue("bucket"), tmp_path)
    else:
        store = await STORES[request.param](tmp_path / "store")
    yield store
    await store.close()


@pytest.fixture
def clock() -> Clock:
    """The clock that the indexes of a test use."""
    return Clock()


def _sqlite_index(request: pytest.FixtureRequest) -> OpenIndex:
    return partial(open_index, request.getfixturevalue("tmp_path") / "index.sqlite")


def _postgres_index(request: pytest.FixtureRequest) -> OpenIndex:
    return partial(open_postgres_index, request.getfixturevalue("postgres_index_url"))


INDEXES: dict[str, Callable[[pytest.FixtureRequest], OpenIndex]] = {"sqlite": _sqlite_index, "postgres": _postgres_index}


@pytest.fixture(params=INDEXES)
async def open_shared(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[OpenIndex]:
    """Open the same index again and again, as several processes do."""
    opened: list[Index] = []
    open_one = INDEXES[request.param](request)

    async def open_again(*, busy_seconds: float = 30) -> Index:
        index = await open_one(busy_seconds=busy_seconds, now=clock)
        opened.append(index)
        return index

    yield open_again
    for index in opened:
        await index.close()


@pytest.fixture
async def index(open_shared: OpenIndex) -> Index:
    """An empty index."""
    return await open_shared()


@asynccontextmanager
async def _local_memory_store(opening: Awaitable[Index]) -> AsyncIterator[Repository]:
    repository = LocalRepository(MemoryStore(), await opening, location="memory")
    yield repository
    await repository.close()


def _local_disk(folder: Path) -> AbstractAsyncContextManager[Repository]:
    return connect(str(folder / "repository"), create=True)


REPOSITORIES: dict[str, Callable[[Path], AbstractAsyncContextManager[Repository]]] = {
    "local-memory-store": lambda folder: _local_memory_store(open_index(folder / "index.sqlite")),
    "local-disk": _local_disk,
}
SCHEMES = {"remote": "http", "remote-over-tls": "https"}


def serving(folder: Path) -> AbstractContextManager[RunningServer]:
    """Serve an empty repository. The server takes tokens of `signer()`."""
    return running_server(folder / "repository", jwt_keys=str(save(folder / "keys.json", jwks(signer()))))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that all tests of a module share: to start it takes longer than most of them."""
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """The namespace of `repository`. At a server that tests share, each has its own."""
    is_shared = request.node.callspec.params["repository"] in SCHEMES
    return f"test-{secrets.token_hex(8)}" if is_shared else DEFAULT_NAMESPACE


def _remote(server: RunningServer, scheme: str, namespace: str) -> AbstractAsyncContextManager[Repository]:
    token = signer().token(filestore_namespace=namespace, scope="filestore:delete")
    return client_of(server.port, scheme, token=token)


@pytest.fixture(params=[*REPOSITORIES, *SCHEMES, "local-postgres"])
async def repository(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> AsyncIterator[Repository]:
    """An empty repository, or an empty namespace of one that is served."""
    opened: AbstractAsyncContextManager[Repository]
    if request.param == "local-postgres":
        opened = _local_memory_store(open_postgres_index(request.getfixturevalue("postgres_index_url")))
    elif request.param in SCHEMES:
        opened = _remote(request.getfixturevalue("server"), SCHEMES[request.param], namespace)
    else:
        opened = REPOSITORIES[request.param](tmp_path)
    async with opened as repository:
        yield repository
