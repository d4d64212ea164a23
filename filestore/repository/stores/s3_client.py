"""Requests to an object store. Only this module retries them, translates their errors, and limits their time and number."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store as Engine

from filestore.core.digest import Buffer
from filestore.errors import FilestoreError, UsedAfterFork
from filestore.repository.stores.s3_credentials import CredentialsFile
from filestore.repository.stores.s3_errors import STALE_CODES, answer_of, is_absent, is_empty, translated
from filestore.repository.stores.s3_keys import CLOCK_KEY
from filestore.repository.stores.s3_location import S3Location
from filestore.repository.stores.s3_signing import NotedCredentials, UrlSigner, environment_secret
from filestore.system.buffers import Budget
from filestore.system.retries import RequestRetries, Retries

if TYPE_CHECKING:
    from obstore.store import S3Credential

T = TypeVar("T")

RETRY_SECONDS = 60.0
"""How long a request is tried again."""
STRANGER_SECONDS = 5.0
"""The same until the store has answered once. Its URL may be wrong."""
_FIRST_PAUSE_SECONDS = 0.1
_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 60
_LEAST_SILENCE_SECONDS = 20
"""How long nothing of an answer may arrive: as long as a request is tried again, between these. The store answers a put when it
has all of it, which is at most 8 MiB."""
_REQUEST_SECONDS = 3600
_RENEWED_AFTER_SECONDS = 5.0
"""How long credentials are used that the store refuses, before they are read again."""
_GETS_SIZE = 64 << 20
"""The most bytes that are read at the same time, in memory of obstore."""
_GETS_COUNT = 32
"""The most objects that are read at the same time."""
_PART_SIZE = 8 << 20
_PARTS_AT_ONCE = 4
_PAGE_LENGTH = 1000
"""Objects of one answer to a listing, which is the most that S3 has."""

_used_in: int | None = None
"""The process that has used obstore. Its threads are not in a forked child, where each request would wait for ever."""


class Listed(NamedTuple):
    """An object in a listing."""

    key: str
    size: int
    put_at: datetime
    """By the clock of the store."""


class S3Client:
    """Requests to the objects below the prefix of one location. Keys are relative to it.

    Each method may be repeated without harm, and raises StoreRefused, StorageFull, StorageError, and Busy if the store cannot be
    used for `retry_seconds`. In a child that was forked after a request of any client, all raise UsedAfterFork.
    """

    def __init__(
        self, location: S3Location, *, credentials: CredentialsFile | None = None, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """Make a client. No request is made. Raises StorageError if its credentials or its location cannot be used."""
        self.location = location
        self._credentials = credentials
        self._retry_seconds = retry_seconds
        try:
            self._engine, self._signer, self._url_signer = self._new_engines()
        except BaseError as error:
            raise translated(error, str(location)) from None
        self._engine_at = time.monotonic()
        self._retries = Retries(
            retry_seconds=min(retry_seconds, STRANGER_SECONDS), first_pause_seconds=min(_FIRST_PAUSE_SECONDS, retry_seconds)
        )
        self._gets = Budget(_GETS_SIZE)

    def put_blocking(self, key: str, content: Buffer) -> None:
        """Put an object, from any thread. Blocks. `content` does not change meanwhile."""
        self._check_process()
        with self._retries.request() as request:
            while True:
                try:
                    obstore.put(self._engine, key, content, use_multipart=False)
                except (BaseError, OSError) as error:
                    failure, pause = self._failed(error, request)
                    if pause is None:
                        raise failure from None
                    time.sleep(pause)
                else:
                    self._note_answer()
                    return

    async def put(self, key: str, content: Buffer | BinaryIO) -> None:
        """Put an object of any size. Nobody sees a part of it.

        `content` is memory that does not change meanwhile, and not after a cancel either, or an open file that is read from its
        place on.
        """
        place = _place(content)
        await self._retried(lambda: self._put(key, content, place))

    async def create(self, key: str, content: Buffer | BinaryIO) -> bool:
        """Put an object if there is none with its key, in one step. Return whether the store says that it was put.

        False may also mean that the answer to an earlier try of this call was lost. A store that knows no conditional requests
        may refuse the request, or replace the object. `content` is as for `put`; a file is read into memory.
        """
        place = _place(content)
        return bool(await self._retried(lambda: self._create(key, content, place)))

    async def get(self, key: str, *, size: int | None = None) -> obstore.Bytes | None:
        """Return the bytes of an object, or None if there is none.

        `size` is how many it should have: at most one more is returned, so that a larger object can be told.
        """
        async with self._gets.take(max(_PART_SIZE if size is None else size, _GETS_SIZE // _GETS_COUNT)):
            return await self._retried(lambda: self._get(key, size))

    async def read(self, key: str, *, start: int = 0, size: int | None = None) -> bytes | None:
        """Return bytes of an object from `start` on, at most `size`. Return None if the object does not exist."""
        async with self._gets.take(max(_PART_SIZE if size is None else size, _GETS_SIZE // _GETS_COUNT)):
            return await self._retried(lambda: self._read(key, start, size))

    async def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if there is none."""
        return await self._retried(lambda: self._size(key))

    async def pages(self, prefix: str, *, after: str | None = None) -> AsyncIterator[list[Listed]]:
        """Yield the objects below the folder `prefix` whose keys come after `after`, in their order, in pages of at most 1000."""
        listing = _Listing(prefix, after)
        while page := await self._retried(lambda: listing.next_page(self._engine)):
            yield page

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders in the folder `prefix`, in order."""
        found = await self._retried(lambda: obstore.list_with_delimiter_async(self._engine, prefix))
        prefixes = [] if found is None else found["common_prefixes"]
        return sorted(folder.rpartition("/")[2] for folder in prefixes)

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects. Those that do not exist are no error."""
        if keys:
            await self._retried(lambda: obstore.delete_async(self._engine, list(keys)))

    async def copy(self, key: str, to: str) -> bool:
        """Copy an object in the store. Return False if there is none."""
        return await self._retried(lambda: self._copy(key, to)) is not None

    async def urls(self, keys: Sequence[str], *, seconds: float) -> list[str]:
        """Return a URL for each of at least one key, by which anybody can read the object for so many seconds.

        No request is made for it.
        A URL does not outlive the credentials that signed it.
        """
        valid = timedelta(seconds=seconds)  # at most seven days
        first = await self._retried(lambda: obstore.sign_async(self._signer, "GET", keys[0], valid))
        urls = None if first is None else self._url_signer.urls(first, keys)
        if urls is not None:
            return urls
        return list(await self._retried(lambda: obstore.sign_async(self._signer, "GET", list(keys), valid)) or ())

    async def clock(self) -> datetime:
        """Return the time of the store. It puts an object of one byte to learn it."""
        await self.put(CLOCK_KEY, b"\n")
        found = await self._retried(lambda: self._open(CLOCK_KEY))
        if found is None:
            raise FileNotFoundError(CLOCK_KEY)
        return found.meta["last_modified"]

    # One try of a request.

    async def _put(self, key: str, content: Buffer | BinaryIO, place: int) -> None:
        _seek(content, place)
        await obstore.put_async(self._engine, key, content, chunk_size=_PART_SIZE, max_concurrency=_PARTS_AT_ONCE)

    async def _create(self, key: str, content: Buffer | BinaryIO, place: int) -> bool:
        _seek(content, place)
        try:
            await obstore.put_async(self._engine, key, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    async def _open(self, key: str) -> obstore.GetResult:
        return await obstore.get_async(self._engine, key)

    async def _get(self, key: str, size: int | None) -> obstore.Bytes:
        if size is None:
            return await (await self._open(key)).bytes_async()
        try:
            return await obstore.get_range_async(self._engine, key, start=0, length=size + 1)
        except BaseError as error:
            if is_empty(error):
                return obstore.Bytes()
            raise

    async def _read(self, key: str, start: int, size: int | None) -> bytes:
        span: obstore.GetOptions = {"range": {"offset": start} if size is None else (start, start + size)}
        try:
            found = await obstore.get_async(self._engine, key, options=span if start or size is not None else {})
            return bytes(await found.bytes_async())
        except BaseError as error:
            if is_empty(error):
                return b""
            raise

    async def _size(self, key: str) -> int:
        # Not HEAD: a refusal of it has no code, and a bucket that is missing looks as an object that is.
        try:
            found = await obstore.get_async(self._engine, key, options={"range": (0, 1)})
        except BaseError as error:
            if is_empty(error):
                return 0
            raise
        await found.bytes_async()  # so that the connection can be used again
        return found.meta["size"]

    async def _copy(self, key: str, to: str) -> bool:
        await obstore.copy_async(self._engine, key, to)
        return True

    # Tries.

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Return what `call()` returns, or None if the object does not exist."""
        self._check_process()
        with self._retries.request() as request:
            while True:
                try:
                    result = await call()
                except (BaseError, OSError) as error:
                    if is_absent(error):
                        self._note_answer()
                        return None
                    failure, pause = self._failed(error, request)
                    if pause is None:
                        raise failure from None
                    await self._retries.sleep(pause)
                else:
                    self._note_answer()
                    return result

    def _failed(self, error: Exception, request: RequestRetries) -> tuple[FilestoreError, float | None]:
        """Return our error, and the pause before the next try, or None if there is none."""
        answer = answer_of(error)
        if answer.status is not None:
            self._note_answer()
        failure = translated(error, str(self.location))
        if answer.code in STALE_CODES:
            self._renew_credentials()
            failure.retryable = failure.is_retried_once = True
        pause = request.next_pause(failure)
        if failure.is_retried_once:
            failure.retryable = False  # for the caller
        return failure, pause

    def _check_process(self) -> None:
        global _used_in  # noqa: PLW0603  # obstore has one runtime for all clients
        if _used_in is None:
            _used_in = os.getpid()
        elif _used_in != os.getpid():
            raise UsedAfterFork(str(self.location), _used_in)

    def _note_answer(self) -> None:
        self._retries.retry_seconds = self._retry_seconds

    def _renew_credentials(self) -> None:
        if time.monotonic() - self._engine_at > _RENEWED_AFTER_SECONDS:
            self._engine, self._signer, self._url_signer = self._new_engines()
            self._engine_at = time.monotonic()

    def _new_engines(self) -> tuple[Engine, Engine, UrlSigner]:
        """Return an engine for requests, one that signs a URL (a signature includes the host), and what signs further ones."""
        noted = None if self._credentials is None else NotedCredentials(self._credentials)
        found = environment_secret(os.environ)
        url_signer = UrlSigner((lambda: found) if noted is None else noted.secret)
        public = self.location.public_endpoint
        if public is None:
            engine = self._new_engine(self.location.endpoint, noted)
            return engine, engine, url_signer
        return self._new_engine(self.location.endpoint, self._credentials), self._new_engine(public, noted), url_signer

    def _new_engine(self, endpoint: str | None, credentials: Callable[[], S3Credential] | None) -> Engine:
        location = self.location
        if endpoint is not None and not location.path_style:
            scheme, _, host = endpoint.partition("://")
            endpoint = f"{scheme}://{location.bucket}.{host}"
        # Both names: the environment may have the second one, which would count.
        given = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint, "region": location.region}
        return Engine(
            location.bucket,
            prefix=location.prefix or None,
            config={name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # names of S3Config
            client_options={
                # Without an endpoint, AWS_ALLOW_HTTP says it.
                **({} if endpoint is None else {"allow_http": endpoint.startswith("http://")}),
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=min(_SILENCE_SECONDS, max(_LEAST_SILENCE_SECONDS, self._retry_seconds))),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={"max_retries": 0},
            credential_provider=credentials,
            virtual_hosted_style_request=not location.path_style,
            # Without TLS, the store compares the bytes that arrive with a SHA-256 in the request.
            unsigned_payload=location.is_encrypted,
        )


def _place(content: Buffer | BinaryIO) -> int:
    return 0 if isinstance(content, bytes | bytearray | memoryview) else content.tell()


def _seek(content: Buffer | BinaryIO, place: int) -> None:
    if not isinstance(content, bytes | bytearray | memoryview):
        content.seek(place)


class _Listing:
    """Pages of a listing, which begins again where it was after an error."""

    def __init__(self, prefix: str, after: str | None) -> None:
        self._prefix = prefix
        self._after = after
        self._pages: obstore.ListStream[Sequence[obstore.ObjectMeta]] | None = None

    async def next_page(self, engine: Engine) -> list[Listed]:
        """Return the next page, or an empty one at the end."""
        if self._pages is None:
            self._pages = obstore.list(engine, self._prefix, offset=self._after, chunk_size=_PAGE_LENGTH)
        try:
            page = await anext(self._pages)
        except StopAsyncIteration:
            return []
        except BaseException:
            self._pages = None
            raise
        listed = [Listed(found["path"], found["size"], found["last_modified"]) for found in page]
        if listed:
            self._after = listed[-1].key
        return listed
