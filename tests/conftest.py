"""Fixtures that more than one folder uses."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from filestore.backends import connect
from filestore.repository.index.postgres.opening import open_postgres_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import Repository
from tests.support.ceph import Bucket, Gateway
from tests.support.commands import Home
from tests.support.engines import end_engines, lead_run, shared_gateway, shared_postgres
from tests.support.fetching_trees import memory_repository
from tests.support.nginx import Nginx, running_nginx
from tests.support.postgres import Postgres
from tests.support.runtimes import make_graphs
from tests.support.watched import WatchedRepository

# Many images set it. Each server of a test would then compile the modules of the tests at its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The proxy of a developer's network leads to no server of these tests.
for _name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

# Each run draws the same examples, outside of CI too; `--hypothesis-profile=new` draws others. An example has no deadline,
# because the machine decides how long it takes.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True, database=None, print_blob=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Lead a run, unless this is a worker of one."""
    if not hasattr(config, "workerinput"):
        lead_run()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse an expression after `-m` that names no marker.

    Workers of pytest-xdist refuse it too, but all that it shows of that is an error of its own.
    """
    known = {re.split("[:(]", line)[0].strip() for line in session.config.getini("markers")}
    without_arguments = re.sub(r"(?<=\w)\([^()]*\)", "", session.config.option.markexpr)
    unknown = set(re.findall(r"[^\W\d]\w*", without_arguments)) - known - {"and", "or", "not"}
    if unknown:
        message = f"-m names no marker: {', '.join(sorted(unknown))}"
        raise pytest.UsageError(message)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the run has started."""
    if not hasattr(config, "workerinput"):
        end_engines()


@pytest.fixture
def new_home(tmp_path: Path) -> Home:
    """A user who has never used filestore."""
    folder = tmp_path / "home"
    folder.mkdir()
    return Home(folder)


# A shell has what it runs in the background ignore Ctrl-C, and nohup SIGHUP. Commands respect that; in tests both end them.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def home(new_home: Home) -> Home:
    """A user whose local folder is an empty repository."""
    new_home.create_repository()
    return new_home


@pytest.fixture
async def local_repository(tmp_path: Path) -> AsyncIterator[Repository]:
    """A repository in a folder of its own."""
    async with connect(str(tmp_path / "repository"), create=True) as repository:
        yield repository


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """A real server, on an address that is not public."""
    with running_nginx(tmp_path / "nginx") as running:
        yield running


@pytest.fixture
def watched(local_repository: Repository) -> WatchedRepository:
    """A repository in a folder that counts what is asked of it, and lets a test step in."""
    return WatchedRepository(local_repository)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to download to."""
    folder = tmp_path / "staging"
    folder.mkdir()
    return folder


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[LocalRepository]:
    """A repository that takes what it is given."""
    async with memory_repository(tmp_path) as repository:
        yield repository


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Who runs the runtime of a module's tests."""
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def graphs(user: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pickled pipelines."""
    return make_graphs(user, tmp_path_factory.mktemp("graphs") / "made")


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """The PostgreSQL of this run."""
    return shared_postgres()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The location of an empty database."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def postgres_tables(postgres: Postgres) -> str:
    """The name of a database with the tables of an index. To copy it is faster than to make them."""
    url = postgres.new_database()

    async def make() -> None:
        await (await open_postgres_index(url)).close()

    # In a thread, because this one may run an event loop.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(make())).result()
    postgres.await_end_of_sessions(url)
    return url.rpartition("/")[2]


@pytest.fixture
def postgres_index_url(postgres: Postgres, postgres_tables: str) -> Iterator[str]:
    """The location of an empty index."""
    url = postgres.new_database(template=postgres_tables)
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def gateway() -> Gateway:
    """The S3-compatible object store of this run."""
    return shared_gateway()


@pytest.fixture
def bucket(gateway: Gateway) -> Iterator[Bucket]:
    """An empty bucket."""
    bucket = gateway.new_bucket()
    yield bucket
    gateway.remove_bucket(bucket)
