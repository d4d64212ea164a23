"""From a URL to a repository. The only module that knows every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filestore.aio import uninterrupted
from filestore.errors import InvalidUrl
from filestore.index.protocol import Index
from filestore.index.sqlite import open_index
from filestore.paths import home_path
from filestore.repository import LocalRepository, Repository, read_format
from filestore.stores.disk import open_store
from filestore.stores.protocol import ChunkStore

CONNECTIONS = 4
STALL_SECONDS = 30.0

_INDEX_NAME = "index.sqlite"


@asynccontextmanager
async def connect(
    url: str, *, token: str | None = None, connections: int = CONNECTIONS, stall_seconds: float = STALL_SECONDS
) -> AsyncIterator[Repository]:
    """The repository at `url`: a server's `http://` or `https://` URL, `file:///folder`, or the path of a folder (`~/` is home).

    >>> async with connect("file:///srv/models") as repository: ...

    A folder is made where absent. `token`, `connections` and `stall_seconds` (how long no byte may move) are for servers.

    Raises InvalidUrl, InvalidSetting (a `~` without a home folder), UnknownFormat, StorageError.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    repository: Repository
    if scheme in {"http", "https"}:
        from filestore.http.client import RemoteRepository  # noqa: PLC0415  # heavy

        repository = RemoteRepository(url, token=token, connections=connections, stall_seconds=stall_seconds)
    else:
        folder = _folder(url)
        store, index = await open_backend(folder)
        repository = LocalRepository(store, index, location=str(folder))
    try:
        yield repository
    finally:
        await repository.close()


async def open_backend(root: Path) -> tuple[ChunkStore, Index]:
    """The disk store and the SQLite index in `root`, which is made where absent. The caller closes both.

    Raises UnknownFormat, StorageError, StorageFull, Busy.
    """
    store = await open_store(root)
    try:
        # First, so that nothing is made in, or read from, a repository of another version.
        await read_format(store, location=str(root))
        return store, await open_index(root / _INDEX_NAME)
    except BaseException:
        await uninterrupted(store.close())
        raise


def _folder(url: str) -> Path:
    if not url or "\0" in url:
        raise InvalidUrl(url, "a server's URL or the path of a folder is expected")
    if "://" not in url:
        return home_path(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidUrl(url, str(error)) from None
    if parts.scheme != "file":
        raise InvalidUrl(url, "it begins with none of http://, https:// and file://")
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or not parts.path:
        raise InvalidUrl(url, "a folder's URL looks like file:///srv/models")
    return Path(unquote(parts.path))
