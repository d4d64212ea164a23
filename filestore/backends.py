"""From a URL to a repository. The only module that knows every backend."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from filestore.core.object_location import ObjectLocation, is_object_store
from filestore.errors import IndexDamaged, InvalidSetting, InvalidUrl, NotARepository
from filestore.repository.folder import (
    CONTENT_NAMES,
    FORMAT_NAME,
    INDEX_NAME,
    INDEX_STAGING,
    LAST_COMMIT_NAME,
    LOG_NAMES,
    RESERVE_NAME,
    RESTORING_NAME,
    TMP_NAME,
    TURN_NAMES,
    has_content,
)
from filestore.repository.format_file import read_format
from filestore.repository.full_disk import with_reserve
from filestore.repository.index.postgres.opening import CONNECTIONS
from filestore.repository.index.protocol import Index
from filestore.repository.index.reading import SHARED_MEMORY
from filestore.repository.index.sqlite import open_index, open_index_for_reading
from filestore.repository.local import LocalRepository
from filestore.repository.object_repository import create_object_repository, open_object_repository
from filestore.repository.protocol import Repository, TransferLimits
from filestore.repository.stores.disk import open_store, store_for_reading
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.blocks import AsyncBlock
from filestore.system.files import access_error, home_path, storage_errors
from filestore.system.retries import RETRY_SECONDS
from filestore.system.threads import in_disk_thread, shield_until_done

if TYPE_CHECKING:
    from filestore.http.client.exchange import ClientCertificate
    from filestore.system.proxies import Proxy
    from filestore.system.rate_limit import RateLimit

STALL_SECONDS = 30.0

_BEGUN_NAMES = frozenset({TMP_NAME, RESERVE_NAME, INDEX_NAME, LAST_COMMIT_NAME, *LOG_NAMES, *TURN_NAMES})
"""What is in a repository before its format file is, which comes last."""
_FILE_SYSTEM_NAMES = frozenset({"lost+found"})
"""What an empty file system holds."""
_SHOWN_NAMES = 3
_SLASHES = "/\\"

_HOW_TO_MAKE = "connect with create=True"
_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}(?:/.*)?\Z")
_TORN_SCHEME = re.compile(r"(https?|file)(?::|(?=//))(.*)\Z", re.IGNORECASE | re.DOTALL)


def connect(
    url: str | Path | Sequence[str],
    *,
    index: str | None = None,
    token: str | None = None,
    connections: int | None = None,
    processes: int | None = None,
    transfer_memory: int | None = None,
    stall_seconds: float = STALL_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
    create: bool = False,
    read_only: bool = False,
    proxy: str | None = None,
    tls_client_cert: str | Path | None = None,
    tls_client_key: str | Path | None = None,
    min_free: int | None = None,
    presigned_reads: bool = True,
    limit_rate: int | RateLimit | None = None,
    peers: str | Sequence[str] | None = None,
) -> AbstractAsyncContextManager[Repository]:
    """Open the repository at `url`, a server or a folder of this machine, for the length of an `async with` block.

    >>> async with connect("http://127.0.0.1:8080", token="...") as repository:
    ...     await push(repository, "model.safetensors")

    url: `http://` or `https://` and the address of a server; `file:///srv/models`, or the path of a folder, in which a `~/` at
        the beginning is the home folder; `s3://BUCKET/PREFIX?endpoint=URL` for the content of a repository in an object store.
        Several servers of one repository are a list, or a text with commas or spaces between them: requests go to the first one
        until it fails, then to the next one.
    index: where such a repository has its index: `postgresql://USER@HOST/DATABASE`.
    token: what lets this program in at a server; `filestore token new` makes one.
    connections: the most connections at the same time, together with those of worker processes, of which each needs one: with 1
        there are none. By default they follow the cores.
    processes: how many worker processes a push or fetch of 256 MiB and more starts; 0 means none. By default it is one for four
        cores, and none with fewer than eight cores.
    transfer_memory: the most bytes of memory of one push or fetch, with all its processes. By default it is 300 MiB, and 48 MiB
        more for each core after the second, but at most half of the memory of the machine or the container.
    stall_seconds: how long a connection may make almost no progress before it is closed. The request is then sent again.
    retry_seconds: how long a server that has answered before is tried again after its last progress. Then the transfer fails.
    create: make a new or an empty folder a repository, or an object store and a database. Without it, such a place is an error.
    read_only: write nothing to the folder. It may be on a read-only disk or belong to another user. Verbs that write raise
        ReadOnly. It does the same for an object store.
    proxy: the URL of an HTTP proxy that leads to the server. By default HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY of the
        environment decide; "" means that there is none.
    tls_client_cert: a file with a certificate for a server that asks its clients for one, in PEM.
    tls_client_key: the file of its private key, if that is another one.
    min_free: how many bytes of the folder's disk stay free, or of the disk of temporary files, where content for an object store
        is on its way. By default 1 % of the disk, and at most 256 MiB.
    presigned_reads: read frames from the object store of a server where it gives URLs for that, and not through the server.
    limit_rate: how many bytes per second all connections to servers together move, in both directions, at least 10,000. The
        transfers then have no worker processes. A `filestore.system.rate_limit.RateLimit` is shared by all repositories that
        are opened with it.
    peers: caches on other machines, where `filestore cache serve` runs: `dns:///NAME:PORT` for all addresses of a name, with TLS
        `dns+https:///NAME:PORT`, or a list of `http://HOST:PORT`. Frames come from them, and from the server only what they do
        not give.

    The certificate of a server is checked with the authorities of the system, or of the file that SSL_CERT_FILE names.

    `create`, `read_only` and `min_free` are for folders and object stores, `processes` and `transfer_memory` for all; the others
    are for servers.

    Cost: a folder is opened, which takes some file operations, or an object store and a database, which takes some requests. A
    server is not asked before the first verb. Any number of
    transfers may use one repository at the same time, in one event loop.

    The end of the block closes files and connections. End transfers before that. A child process that is forked meanwhile can
    use a server; a folder raises UsedAfterFork there.

    A verb raises OtherRepository if one of several servers serves another repository, and NoServerLeft if all have failed.

    Raises InvalidUrl, InvalidSetting (a `~` without a home folder, a proxy or a certificate that cannot be used), NotARepository,
    UnknownFormat, StorageError, Busy, MissingPackage. Raises InvalidInput where it is used without `async with`.
    """
    block = _connected(
        url,
        index=index,
        token=token,
        connections=connections,
        limits=TransferLimits(processes, transfer_memory),
        stall_seconds=stall_seconds,
        retry_seconds=retry_seconds,
        create=create,
        read_only=read_only,
        proxy=proxy,
        certificate=(tls_client_cert, tls_client_key),
        min_free=min_free,
        presigned_reads=presigned_reads,
        limit_rate=limit_rate,
        peers=peers,
    )
    return AsyncBlock(block, kind=Repository, how="filestore.connect(...) as repository")


@asynccontextmanager
async def _connected(
    url: str | Path | Sequence[str],
    *,
    index: str | None,
    token: str | None,
    connections: int | None,
    limits: TransferLimits,
    stall_seconds: float,
    retry_seconds: float,
    create: bool,
    read_only: bool,
    proxy: str | None,
    certificate: tuple[str | Path | None, str | Path | None],
    min_free: int | None,
    presigned_reads: bool,
    limit_rate: int | RateLimit | None,
    peers: str | Sequence[str] | None,
) -> AsyncIterator[Repository]:
    if not isinstance(url, str | Path):
        url = _one_text(url)
    location = object_location(url, index)
    repository: Repository
    if location is not None:
        store, rows = await open_backend(location, create=create, read_only=read_only, min_free=min_free)
        repository = LocalRepository(
            store,
            rows,
            location=str(location),
            read_only=read_only,
            opening=ObjectOpening(location, read_only=read_only, min_free=min_free),
            transfer_limits=limits,
        )
    elif (folder := home_path(url) if isinstance(url, Path) else repository_folder(url)) is None:
        from filestore.http.client.repository import RemoteRepository  # noqa: PLC0415  # heavy
        from filestore.peers.addresses import parse_peers  # noqa: PLC0415  # heavy
        from filestore.peers.repository import PeerRepository  # noqa: PLC0415  # heavy

        make = RemoteRepository if peers is None else partial(PeerRepository, peers=parse_peers(peers))
        repository = make(
            str(url),
            token=token,
            connections=connections,
            transfer_limits=limits,
            stall_seconds=stall_seconds,
            retry_seconds=retry_seconds,
            find_proxy=ProxyOf(proxy),
            certificate=_certificate(*certificate),
            presigned_reads=presigned_reads,
            limit_rate=limit_rate,
        )
    else:
        store, rows = await open_backend(folder, create=create, read_only=read_only, min_free=min_free)
        # Absolute: the program may go to another folder before it pushes.
        again = FolderOpening(folder.absolute(), read_only=read_only, min_free=min_free)
        repository = LocalRepository(
            store, rows, location=str(folder), read_only=read_only, opening=again, transfer_limits=limits
        )
    try:
        yield repository
    finally:
        await repository.close()


class FolderOpening(NamedTuple):
    """How another process opens a repository in a folder: an `Opening`."""

    folder: Path
    read_only: bool
    min_free: int | None

    def open(self, *, share: int) -> AbstractAsyncContextManager[Repository]:  # noqa: ARG002  # it has no connections
        """Open it as `connect` does."""
        return connect(self.folder, read_only=self.read_only, min_free=self.min_free)


class ObjectOpening(NamedTuple):
    """How another process opens a repository in an object store: an `Opening`. It may have a password."""

    location: ObjectLocation
    read_only: bool
    min_free: int | None

    def open(self, *, share: int) -> AbstractAsyncContextManager[Repository]:  # noqa: ARG002  # its connections are not shared
        """Open it as `connect` does."""
        return connect(self.location.store, index=self.location.index, read_only=self.read_only, min_free=self.min_free)


def object_location(url: str | Path, index: str | None) -> ObjectLocation | None:
    """Return where a repository past one machine is, or None for a folder and a server. Raises InvalidUrl, InvalidSetting."""
    if isinstance(url, str) and is_object_store(url):
        return ObjectLocation.of(url, index)
    if index is not None:
        raise InvalidSetting("index", "it is for a repository in an object store, whose URL begins with s3://")
    return None


def _certificate(cert: str | Path | None, key: str | Path | None) -> ClientCertificate | None:
    from filestore.http.client.exchange import ClientCertificate  # noqa: PLC0415  # only for servers

    if cert is None:
        if key is not None:
            raise InvalidSetting("tls_client_key", "it needs a certificate, which tls_client_cert names")
        return None
    return ClientCertificate(home_path(cert), None if key is None else home_path(key))


@dataclass(frozen=True, slots=True)
class ProxyOf:
    """Finds the proxy that leads to a URL. It can be pickled, for worker processes."""

    given: str | None = field(repr=False)
    """The URL of the proxy, "" for none. None means that the environment decides."""

    def __call__(self, url: str) -> Proxy | None:
        """Return the proxy, or None. Raises InvalidSetting."""
        from filestore.system.proxies import parse_proxy, proxy_for  # noqa: PLC0415  # only for servers

        if self.given is not None:
            return parse_proxy(self.given, source="proxy") if self.given else None
        return proxy_for(os.environ, url)


def _one_text(urls: Sequence[str]) -> str:
    """Return the URLs of several servers as one text. Raises InvalidUrl if one of them is that of a folder."""
    for url in urls:
        if len(urls) > 1 and repository_folder(url) is not None:
            raise InvalidUrl(url, "of several URLs, each is that of a server")
    return ",".join(urls)


async def open_backend(
    root: Path | ObjectLocation,
    *,
    create: bool = False,
    read_only: bool = False,
    accepts_index: bool = False,
    min_free: int | None = None,
    scratch: Path | None = None,
    index_connections: int = CONNECTIONS,
    store_retry_seconds: float | None = None,
) -> tuple[ChunkStore, Index]:
    """The disk store and the SQLite index in `root`. The caller closes both. The options: as in `connect`.

    For an object store, `open_object_repository` says more. `accepts_index` is for folders, `scratch` and
    what follows for object stores.

    With `accepts_index`, which is for a repair, an index is accepted that is empty or older than the content, and made
    if it is missing. Other processes then accept it too. Before that, collection is held in the namespaces whose files
    have lost their records.

    Raises NotARepository, UnknownFormat, StorageError, StorageFull, Busy. Raises IndexDamaged if the index is malformed,
    is empty although content is there, or is not the one with which the repository was last written.
    """
    if isinstance(root, ObjectLocation):
        return await open_object_repository(
            root,
            create=create,
            read_only=read_only,
            scratch=scratch,
            min_free=min_free,
            index_connections=index_connections,
            store_retry_seconds=store_retry_seconds,
        )
    if create:
        await create_repository(root)
    await in_disk_thread(_check_repository, root)
    reading = store_for_reading(root)
    # First, so that nothing is made in, or read from, a repository of another version.
    await read_format(reading, location=str(root))
    index, last_commit = root / INDEX_NAME, root / LAST_COMMIT_NAME
    if accepts_index:
        try:
            return await open_backend(root, min_free=min_free)
        except (IndexDamaged, NotARepository) as error:
            await _accept_index(root, error, min_free=min_free)
    await in_disk_thread(_check_index, root)
    if read_only:
        return reading, await with_reserve(reading, lambda: open_index_for_reading(index, last_commit=last_commit))
    store = await open_store(root, min_free=min_free)
    try:
        # Again, now that a restore sees the staging folder of this process, and ends before it changes anything.
        await in_disk_thread(_check_repository, root)
        makes_tables = await in_disk_thread(_may_make_tables, root)
        # On a full disk, the files of SQLite's log cannot be made, and nobody could remove anything.
        opened = partial(open_index, index, last_commit=last_commit, turnstile=root, makes_tables=makes_tables)
        return store, await with_reserve(store, opened)
    except BaseException:
        await shield_until_done(store.close())
        raise


async def _accept_index(root: Path, error: IndexDamaged | NotARepository, *, min_free: int | None) -> None:
    """Accept an index that was refused with `error`, and make it if it is missing.

    Everybody refuses it until the end, so nobody removes content before the collection is held.
    """
    from filestore.repository.maintenance.hold import hold_collection  # noqa: PLC0415  # only for a repair

    store = await open_store(root, min_free=min_free)
    try:
        index = await with_reserve(store, lambda: open_index(root / INDEX_NAME))
        try:
            facts = error.named_facts()
            why = facts.get("found") or facts["reason"]
            await hold_collection(store, index, reason=f"a repair accepted an index that was refused ({why})")
        finally:
            await index.close()
        with storage_errors(root, translate=access_error):
            await in_disk_thread(partial((root / LAST_COMMIT_NAME).unlink, missing_ok=True))
    finally:
        await shield_until_done(store.close())


async def create_repository(root: Path | ObjectLocation) -> bool:
    """Make the new or empty folder `root` a repository. Return False if it was a repository before this call.

    If an earlier call was interrupted, this call completes the repository. If several processes call this at the same time,
    one of them makes the repository. A folder that contains only `lost+found` counts as empty.

    Raises NotARepository if the folder contains other things, or if it is a repository that has lost its index. Also raises
    UnknownFormat, StorageError, StorageFull and Busy.
    """
    if isinstance(root, ObjectLocation):
        return await create_object_repository(root)
    is_one = await in_disk_thread(_check_can_become_one, root)
    if is_one:
        await read_format(store_for_reading(root), location=str(root))
        if await in_disk_thread(_has_index, root):
            return False
    store = await open_store(root)
    last_commit = root / LAST_COMMIT_NAME
    try:
        if not await in_disk_thread((root / INDEX_NAME).exists):
            # That of an index that is lost, in a repository without content.
            with storage_errors(root, translate=access_error):
                await in_disk_thread(partial(last_commit.unlink, missing_ok=True))
        index = await open_index(root / INDEX_NAME, last_commit=last_commit)
        await index.close()
        # Last: what has a format file is a repository, and what has none can be made one.
        new_id = secrets.token_hex(16)
        repository_id, _ = await read_format(store, location=str(root), new_id=new_id)
    finally:
        await shield_until_done(store.close())
    return repository_id == new_id


class OtherFiles(NamedTuple):
    """Bytes of the files in the folder of a repository that are neither frames nor manifests of one namespace."""

    index_size: int
    """The index, its log and what else SQLite has with it."""
    other_namespaces_size: int
    temporary_size: int
    """Data that is being received, or that a process left when it was killed."""
    rest_size: int


async def other_files(root: Path, namespace: str) -> OtherFiles:
    """Return what the folder of a repository has besides the frames and manifests of `namespace`. Raises StorageError."""
    return await in_disk_thread(_other_files, root, namespace)


def _other_files(root: Path, namespace: str) -> OtherFiles:
    sizes = {"index": 0, "namespaces": 0, "tmp": 0, "rest": 0}
    with storage_errors(root, translate=access_error):
        for folder, folders, files in os.walk(root):
            parts = Path(folder).relative_to(root).parts
            top = parts[0] if parts else ""
            if top in CONTENT_NAMES and len(parts) == 1:
                folders[:] = [name for name in folders if name != namespace]
            for name in files:
                if not parts and name.endswith(SHARED_MEMORY):
                    continue  # it is there only while this or another process has the index open
                is_index = not parts and name.startswith(INDEX_NAME)
                kind = "index" if is_index else "namespaces" if top in CONTENT_NAMES else "tmp" if top == "tmp" else "rest"
                with suppress(FileNotFoundError):
                    sizes[kind] += os.lstat(f"{folder}/{name}").st_size
    return OtherFiles(sizes["index"], sizes["namespaces"], sizes["tmp"], sizes["rest"])


def repository_folder(url: str) -> Path | None:
    """Return the folder that `url` names, as a path or as `file:///folder`. Return None for the URL of a server.

    An object store is neither: see `object_location`.

    Raises InvalidUrl.
    """
    if not url:
        raise InvalidUrl(url, "it is empty, as from a variable that is not set; give a server's URL or the path of a folder")
    if "\0" in url:
        raise InvalidUrl(url, "a server's URL or the path of a folder is expected")
    if "://" not in url:
        _refuse_torn_url(url)
        return home_path(url)
    if url.partition("://")[0].lower() in {"http", "https"}:
        return None
    if is_object_store(url):
        ObjectLocation.of(url, None)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidUrl(url, str(error)) from None
    if parts.scheme != "file":
        raise InvalidUrl(url, "it begins with none of http://, https:// and file://")
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or not parts.path:
        raise InvalidUrl(url, "a folder's URL looks like file:///srv/models")
    return Path(unquote(parts.path))


def _refuse_torn_url(text: str) -> None:
    """Raise InvalidUrl if `text` looks like an incomplete URL, which would otherwise be used as the path of a folder."""
    torn = _TORN_SCHEME.match(text)
    probable = ""
    if torn is not None:
        scheme, rest = torn[1].lower(), torn[2]
        reason = f"{torn[1]!r} is not followed by ://"
        if scheme == "file":
            probable = f"file:///{rest.lstrip('/')}" if rest.startswith("/") else rest
        elif rest.strip(_SLASHES):
            probable = f"{scheme}://{rest.lstrip(_SLASHES)}"
    elif text.startswith("//") or _HOST_AND_PORT.match(text):
        reason = "it looks like the address of a server, whose URL begins with http:// or https://"
        probable = f"http://{text.lstrip('/')}"
    elif ":" in text.partition("/")[0]:
        reason = "it looks like a URL, and its colon is not followed by //"
    else:
        return
    # What a folder of that name can always be called.
    path = f"/{text.lstrip('/')}" if text.startswith("/") else f"./{text}"
    meant = f"did you mean {probable!r}? For" if probable else "for"
    raise InvalidUrl(text, f"{reason}; {meant} the folder of that name, give {path!r}")


def _check_repository(root: Path) -> None:
    """Raise NotARepository if `root` is not a repository, or if a restore of it was interrupted. Also raises StorageError."""
    with storage_errors(root, translate=access_error):
        if (root / RESTORING_NAME).exists():
            raise NotARepository(str(root), "a restore of it has not ended", "wait until it ends, or do the restore again")
    if not _has_format(root):
        raise _not_a_repository(root, _names_in(root))


def _check_index(root: Path) -> None:
    """Raise NotARepository if the repository has no index."""
    if not _has_index(root):
        raise NotARepository(
            str(root),
            f"its index {INDEX_NAME} is missing",
            f"restore it from a backup; to begin with an empty one, {_HOW_TO_MAKE}",
            hint="create-repository",
        )


def _has_index(root: Path) -> bool:
    """Return whether the repository in `root` has an index. If this returns False, the index may be made.

    Raises NotARepository if the repository has lost its index.

    Today the index is made before the format file. Earlier versions made it after the format file, but before anything
    else. So if there is nothing else yet, making the repository was interrupted, and no record is lost.
    """
    index = root / INDEX_NAME
    if index.exists():
        return True
    names = set(_names_in(root) or ())
    is_used = bool({*_strange(names), *(names & {*LOG_NAMES})} - {FORMAT_NAME})
    # Another process may have made it in between.
    if not is_used or index.exists():
        return False
    raise NotARepository(
        str(root),
        f"its index {INDEX_NAME} is missing, which holds the records and tokens of what is stored there",
        "restore it from a backup, or repair the repository",
        hint="repair-index",
    )


def _may_make_tables(root: Path) -> bool:
    """Return whether an index without tables may get some: not if it is an empty file in the place of a lost index."""
    with storage_errors(root, translate=access_error):
        # What a push or a migration was killed in has tables, perhaps only in the log.
        return (root / INDEX_NAME).stat().st_size > 0 or not has_content(root)


def _check_can_become_one(root: Path) -> bool:
    """Return whether `root` is a repository already.

    Raises NotARepository if it is not one and cannot become one. Also raises StorageError.
    """
    if _has_format(root):
        return True
    names = _names_in(root)
    if not _strange(names or ()):
        return False
    # Another process may have finished one in between.
    if _has_format(root):
        return True
    raise _not_a_repository(root, names)


def _not_a_repository(root: Path, names: list[str] | None) -> NotARepository:
    """Return the error for a folder without a format file. `names` are the names in it, or None if it does not exist."""
    if names is None:
        return NotARepository(
            str(root),
            "there is no such folder",
            f"check the path (a server's URL begins with http://), or make a repository there ({_HOW_TO_MAKE})",
            hint="create-repository",
        )
    strange = _strange(names)
    if strange:
        shown = ", ".join(map(repr, strange[:_SHOWN_NAMES]))
        more = f" and {len(strange) - _SHOWN_NAMES} more" if len(strange) > _SHOWN_NAMES else ""
        return NotARepository(
            str(root),
            f"the folder holds other things ({shown}{more})",
            "give the folder of a repository; a new one is made in a new or an empty folder only",
        )
    if any(map(_is_begun, names)):
        return NotARepository(
            str(root),
            "making one there was cut off before the end",
            "connect with create=True to finish it",
            hint="finish-repository",
        )
    return NotARepository(
        str(root),
        "the folder is empty",
        f"mount the disk that belongs there, if one does; otherwise make a repository there ({_HOW_TO_MAKE})",
        hint="create-repository",
    )


def _strange(names: Iterable[str]) -> list[str]:
    """Return the names that belong neither to an unfinished repository nor to the file system."""
    return sorted(name for name in names if name not in _FILE_SYSTEM_NAMES and not _is_begun(name))


def _is_begun(name: str) -> bool:
    return name in _BEGUN_NAMES or INDEX_STAGING.fullmatch(name) is not None


def _has_format(root: Path) -> bool:
    with storage_errors(root, translate=access_error):
        return (root / FORMAT_NAME).is_file()


def _names_in(root: Path) -> list[str] | None:
    """Return the names in a folder, or None if the folder does not exist. Raises StorageError."""
    with storage_errors(root, translate=access_error):
        try:
            return [path.name for path in root.iterdir()]
        except FileNotFoundError:
            return None
