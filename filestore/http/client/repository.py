"""A repository across HTTP: `RemoteRepository`. Routes and shapes: `docs/http-api.md`."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from blake3 import blake3
from yarl import URL

from filestore.core.batches import batched_by_size
from filestore.core.digest import DIGEST_SIZE, Digest, manifest_digest, parse_digests, token_digest
from filestore.core.manifest import HEADER_SIZE as MANIFEST_HEADER_SIZE
from filestore.core.manifest import MANIFEST_LIMIT, stated_size
from filestore.core.names import checked_name, checked_namespace
from filestore.core.paths import parse_run_path
from filestore.core.records import Kind, Record, parse_json, record_from_json
from filestore.core.references import Reference
from filestore.core.signing import is_signed_path, unsigned_path
from filestore.errors import (
    FilestoreError,
    ForeignAnswer,
    Interrupted,
    InvalidBatch,
    InvalidManifest,
    InvalidName,
    InvalidReference,
    InvalidSetting,
    InvalidUrl,
    LimitExceeded,
    NotFound,
    ProxyUnreachable,
    ServerError,
    Stalled,
    Unauthorized,
    UnexpectedRecord,
    Unreachable,
)
from filestore.format.codec import Frame
from filestore.http import wire
from filestore.http.client.channel import ByteCounter, Channel, Channels, Head
from filestore.http.client.foreign import error_of, foreign_answer
from filestore.repository.format_file import check_versions, checked_identity
from filestore.repository.protocol import Identity, Moved
from filestore.system.connection_errors import failure_reason
from filestore.system.http_answers import Said, may_try_again, pause_seconds, said_by
from filestore.system.metrics import Stage, async_span, span
from filestore.system.proxies import Proxy
from filestore.system.threads import abandon, tell_of_forks

if TYPE_CHECKING:  # takes 0.15 s to import, and over plain HTTP nobody needs it
    import aiohttp

T = TypeVar("T")

ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 0.2
BATCH_SECONDS = 5.0
FIRST_BATCH = 4 << 20
"""Bytes of the first batch, before a rate is known."""
PIECE = 256 << 10
"""Bytes handed to a connection at once: what a stall timer and a progress line see."""
PROBLEM_LIMIT = MANIFEST_LIMIT * 3
"""Bytes of an error's document: one may list every chunk of a manifest."""

_SUCCESSES = (HTTPStatus.OK, HTTPStatus.CREATED)
_TOKEN = re.compile(r"[\x21-\x7e]+")


class RemoteRepository:
    """A server's repository. Its verbs retry what is retryable, on a new connection each time; nobody above retries.

    Use it in one event loop. A proxy is used only where one is given; `filestore.backends.connect` takes it from the environment.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        connections: int = 4,
        stall_seconds: float = 30,
        proxy: Proxy | None = None,
    ) -> None:
        """Asks nothing yet. Raises InvalidUrl, InvalidSetting."""
        try:
            parts = urlsplit(url)
            _ = parts.port, URL(url)
        except ValueError as error:
            raise InvalidUrl(url, str(error)) from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidUrl(url, "a server's URL looks like http://HOST:PORT")
        if parts.query or parts.fragment or parts.username is not None:
            raise InvalidUrl(url, "it may have no query, fragment or user name; a token is given apart")
        if token is not None and not _TOKEN.fullmatch(token):
            # The value is a secret: it must not stand in the error.
            raise InvalidSetting("the token", "it has printable ASCII characters only, and no spaces")
        self.location = url.rstrip("/")
        self.fingerprint = blake3(self.location.encode() + b"\0" + token_digest(token or "")).hexdigest()
        self._token = token
        self._connections = connections
        self._stall_seconds = stall_seconds
        self._proxy = proxy
        self._channels = self._make_channels()
        self._session: aiohttp.ClientSession | None = None
        self._identity: Identity | None = None
        self._reached = False
        self._rate: float | None = None
        tell_of_forks(self)

    def __reduce__(self) -> tuple[Callable[[], RemoteRepository], tuple[()]]:
        """For processes that are started by spawn or forkserver: the same server, on connections of their own."""
        make = partial(
            RemoteRepository,
            self.location,
            token=self._token,
            connections=self._connections,
            stall_seconds=self._stall_seconds,
            proxy=self._proxy,
        )
        return make, ()

    def _make_channels(self) -> Channels | None:
        """TLS is left to aiohttp."""
        if not self.location.startswith("http:"):
            return None
        return Channels(
            self.location, token=self._token, count=self._connections, stall_seconds=self._stall_seconds, proxy=self._proxy
        )

    def after_fork(self) -> None:
        """Connections and threads stay the parent's; a child has its own."""
        abandon((self._channels, self._session))
        self._channels = self._make_channels()
        self._session = None

    async def identity(self) -> Identity:
        if self._identity is None:
            answer = await self._json("GET", "/repository")
            try:
                version, chunking_version = answer["format"], answer["chunking_version"]
                if type(version) is not int or type(chunking_version) is not int:
                    raise TypeError("its versions are no numbers")
                checked_namespace(str(answer["namespace"]))
            except (KeyError, TypeError, ValueError, FilestoreError):
                raise ServerError(self.location, HTTPStatus.OK, "that is no answer of a filestore server") from None
            # Before the rest is looked at, which another version may write in another way.
            check_versions(self.location, version=version, chunking_version=chunking_version)
            try:
                found = checked_identity(answer["id"], answer["namespace"], chunking_version)
            except (KeyError, ValueError, FilestoreError):
                raise ServerError(self.location, HTTPStatus.OK, "that is no answer of a filestore server") from None
            self._identity = found
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        found: list[Digest] = []
        for start in range(0, len(digests), wire.DIGESTS_LIMIT):
            asked = digests[start : start + wire.DIGESTS_LIMIT]
            answer = await self._octets("POST", "/chunks/missing", body=b"".join(asked), limit=len(asked) * DIGEST_SIZE)
            found += self._among(asked, answer)
        return list(dict.fromkeys(found))

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        waiting = list(frames)
        while waiting:
            # The limit follows the rate of the batches before it.
            batch = next(batched_by_size(waiting, _frame_size, limit=self._batch_limit(), count_limit=wire.BATCH_COUNT_LIMIT))
            del waiting[: len(batch)]
            await self._retried(lambda batch=batch: self._put_batch(batch, moved))  # type: ignore[misc]  # bound at once

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        found: list[memoryview | None] = []

        async def rest() -> None:
            # What arrived whole before a connection was cut is not asked for again.
            asked = digests[len(found) : len(found) + wire.BATCH_COUNT_LIMIT]
            filled = sum(len(frame) for frame in found if frame is not None)
            await self._get_batch(asked, buffer[filled:], found, moved)

        while len(found) < len(digests):
            await self._retried(rest)
        return found

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        limit = len(digests) * DIGEST_SIZE
        return self._among(digests, await self._octets("POST", "/chunks/verify", body=b"".join(digests), limit=limit))

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        headers = {wire.NAME_HEADER: quote(name, safe="")}
        record = self._record(await self._json("POST", f"/files?kind={kind.value}", body=manifest, headers=headers))
        committed = Reference(digest=manifest_digest(manifest), name=name)
        if record.size != stated_size(manifest[:MANIFEST_HEADER_SIZE]):
            raise UnexpectedRecord(self.location, f"a file of {record.size} bytes", f"{name!r}")
        if record.kind is not kind:
            raise UnexpectedRecord(self.location, f"a {record.kind.value}", f"a {kind.value} called {name!r}")
        return self._checked(record, committed)

    async def manifest(self, digest: Digest) -> bytes:
        encoded = await self._octets("GET", f"/manifests/{digest}", limit=MANIFEST_LIMIT)
        if manifest_digest(encoded) != digest:
            raise InvalidManifest(f"what {self.location} gives for {digest} has another digest")
        return encoded

    async def record(self, reference: Reference) -> Record:
        try:
            return self._checked(await self._find(reference), reference)
        except NotFound:
            if reference.name_otherwise is None:
                raise
        by_name = Reference(name=reference.name_otherwise)
        return self._checked(await self._find(by_name), by_name)

    async def _find(self, reference: Reference) -> Record:
        if reference.id is not None:
            return self._record(await self._json("GET", f"/files/{quote(reference.id, safe='')}"))
        asked = [f"digest={reference.digest}"] if reference.digest is not None else []
        asked += [f"name={quote(reference.name, safe='')}"] if reference.name is not None else []
        return self._record(await self._json("GET", f"/files/find?{'&'.join(asked)}"))

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        page = f"/files?limit={limit}" + (f"&before={before}" if before is not None else "")
        answer = await self._json("GET", page)
        files = answer.get("files")
        if not isinstance(files, list) or len(files) > limit:
            raise ServerError(self.location, HTTPStatus.OK, "its list of files is malformed")
        found = [self._record(values) for values in files]
        # A list that does not go on to older records would be asked for without end.
        times = [record.updated_at for record in found]
        if times != sorted(times, reverse=True) or (before is not None and times and times[0] >= before):
            raise ServerError(self.location, HTTPStatus.OK, "its list of files is in no order")
        return found

    async def sign(self, file_id: str) -> str:
        answer = await self._json("POST", f"/files/{quote(file_id, safe='')}/sign")
        path = answer.get("path")
        if not isinstance(path, str) or not is_signed_path(f"/{path}"):
            raise ServerError(self.location, HTTPStatus.OK, "its signed path is malformed")
        signed = unsigned_path(f"/{path}")
        try:
            found, name = parse_run_path(signed)
            checked_name(unquote(name))
        except (InvalidReference, InvalidName):
            found = signed
        if found != file_id:
            raise UnexpectedRecord(self.location, f"a path of {found!r}", f"one of {file_id!r}")
        return path

    async def remove(self, file_id: str, *, with_chunks: bool = False) -> Record:
        # First: once it is gone and the answer that told of it is lost, nobody can say what it was.
        record = await self.record(Reference(id=file_id))
        path = f"/files/{quote(file_id, safe='')}{'?chunks=true' if with_chunks else ''}"
        tries = count(1)

        async def ask() -> Record:
            is_again = next(tries) > 1
            try:
                document = self._document(await self._octets_once("DELETE", path, limit=PROBLEM_LIMIT))
            except NotFound as error:
                if is_again and error.args == (file_id,):
                    return record
                raise
            # A removal that took long may have failed after the server had to answer with a status.
            if "type" in document:
                status = document.get("status")
                raise wire.decode_problem(self.location, status if type(status) is int else 500, document)
            return self._checked(self._record(document), Reference(id=file_id))

        return await self._retried(ask)

    async def status(self) -> dict[str, Any]:
        """What the server says of its own work. Raises Forbidden for a token of another namespace than the default one."""
        return await self._json("GET", "/status")

    async def close(self) -> None:
        if self._channels is not None:
            self._channels.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    # Below: requests. Each is idempotent, so that `_retried` may do it again.

    async def _retried(self, request: Callable[[], Awaitable[T]]) -> T:
        for attempt in count(1):
            try:
                return await request()
            except FilestoreError as error:
                if isinstance(error, ForeignAnswer) and self._proxy is not None:
                    error.through = f"the proxy {self._proxy.url}, which {self._proxy.source} names"
                # A server that was never reached is not there: saying so at once beats waiting for it.
                if not may_try_again(error) or attempt == ATTEMPTS or not self._reached:
                    raise
                pause = FIRST_PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
                pause = pause_seconds(error, pause)
            await asyncio.sleep(pause)
        raise AssertionError

    async def _json(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return self._document(await self._octets(method, path, body=body, headers=headers, limit=PROBLEM_LIMIT))

    def _document(self, answer: bytes) -> dict[str, Any]:
        try:
            values = parse_json(answer)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ServerError(self.location, HTTPStatus.OK, "that is no answer of a filestore server")
        return values

    async def _octets(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None, limit: int
    ) -> bytes:
        return await self._retried(lambda: self._octets_once(method, path, body=body, headers=headers, limit=limit))

    async def _octets_once(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None, limit: int
    ) -> bytes:
        def request(channel: Channel) -> bytes:
            head = channel.ask(path, body, method=method, fields=headers or {})
            self._check(channel, head, sent_size=len(body or b""))
            return self._read_all(channel, limit=limit)

        if self._channels is not None:
            return await self._channels.run(request, is_short=True)
        with async_span(Stage.WAIT):
            async with self._request(method, path, body=body, headers=headers) as response:
                return await _whole(response, limit=limit)

    async def _put_batch(self, frames: Sequence[Frame], moved: Moved | None) -> None:
        entries = [wire.BatchEntry(frame.digest, len(frame.data)) for frame in frames]
        header = wire.encode_batch_header(entries)
        size = sum(entry.stored_size for entry in entries)
        meter = ByteCounter(moved)
        kept = 0
        try:
            if self._channels is None:
                with async_span(Stage.SEND, size):
                    seconds = await self._send_by_session(header, frames, size, meter)
            else:
                seconds = await self._channels.run(lambda channel: self._send(channel, header, frames, meter))
            kept = size
        finally:
            meter.settle(kept)
        rate = size / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else (self._rate + rate) / 2

    def _send(self, channel: Channel, header: bytes, frames: Sequence[Frame], meter: ByteCounter) -> float:
        """Put a batch, in a thread; how many seconds it took."""
        started = time.monotonic()
        head = channel.ask("/chunks", header, [frame.data for frame in frames], moved=meter.add)
        self._check(channel, head, sent_size=len(header) + sum(len(frame.data) for frame in frames))
        self._read_all(channel)
        return time.monotonic() - started

    async def _send_by_session(self, header: bytes, frames: Sequence[Frame], size: int, meter: ByteCounter) -> float:
        async def body() -> AsyncIterator[bytes | memoryview]:
            yield header
            for frame in frames:
                for piece in _pieces(memoryview(frame.data)):
                    yield piece
                    stall.reschedule(asyncio.get_running_loop().time() + self._stall_seconds)
                    meter.add(len(piece))

        started = time.monotonic()
        headers = {"Content-Length": str(len(header) + size)}
        try:
            async with (
                asyncio.timeout(self._stall_seconds) as stall,
                self._request("POST", "/chunks", body=body(), headers=headers) as response,
            ):
                await _whole(response, limit=PROBLEM_LIMIT)
        except TimeoutError:
            raise Stalled(self.location, self._stall_seconds) from None
        return time.monotonic() - started

    async def _get_batch(
        self, digests: Sequence[Digest], buffer: memoryview, found: list[memoryview | None], moved: Moved | None
    ) -> None:
        """Append to `found` each frame that is whole, at once."""
        meter = ByteCounter(moved)
        before = len(found)
        try:
            if self._channels is None:
                with async_span(Stage.RECEIVE) as receiving:
                    await self._receive_by_session(digests, buffer, found, meter)
                    receiving.add(sum(len(frame) for frame in found[before:] if frame is not None))
            else:
                await self._channels.run(lambda channel: self._receive(channel, digests, buffer, found, meter))
        finally:
            meter.settle(sum(len(frame) for frame in found[before:] if frame is not None))

    def _receive(
        self, channel: Channel, digests: Sequence[Digest], buffer: memoryview, found: list[memoryview | None], meter: ByteCounter
    ) -> None:
        """Get a batch, in a thread."""
        self._check(channel, channel.ask("/chunks/get", b"".join(digests)))
        entries = self._batch_entries(channel.read(wire.batch_header_size(len(digests))), digests, space=len(buffer))
        batch = buffer[: sum(entry.stored_size for entry in entries)]
        if channel.left > len(batch):
            raise Interrupted(self.location, "the answer is longer than it said")
        filled = 0
        try:
            with span(Stage.RECEIVE, len(batch)):
                while filled < len(batch):
                    size = channel.receive_into(batch[filled:])
                    if not size:
                        raise Interrupted(self.location, "the answer is shorter than it said")
                    filled += size
                    meter.add(size)
        finally:
            found.extend(_whole_frames(entries, batch, filled))

    def _check(self, channel: Channel, head: Head, *, sent_size: int = 0) -> None:
        """Raises the error that an answer to a request with a body of `sent_size` bytes stands for."""
        self._reached = True
        if head.status not in _SUCCESSES:
            raise _problem(self.location, head.status, self._read_all(channel), head.said, sent_size=sent_size)

    def _read_all(self, channel: Channel, *, limit: int = PROBLEM_LIMIT) -> bytes:
        if channel.left > limit:
            raise LimitExceeded(f"the answer of {self.location} in bytes", channel.left, limit)
        return channel.read(channel.left)

    async def _receive_by_session(
        self, digests: Sequence[Digest], buffer: memoryview, found: list[memoryview | None], meter: ByteCounter
    ) -> None:
        async with self._request("POST", "/chunks/get", body=b"".join(digests)) as response:
            if response.status != HTTPStatus.OK or said_by(response.headers).is_page:
                await _whole(response, limit=PROBLEM_LIMIT)
            try:
                header = await response.content.readexactly(wire.batch_header_size(len(digests)))
            except asyncio.IncompleteReadError as error:
                header = error.partial
            entries = self._batch_entries(header, digests, space=len(buffer))
            batch = buffer[: sum(entry.stored_size for entry in entries)]
            filled = 0
            try:
                while filled < len(batch):
                    # readany: what has arrived, in as few pieces as it came; frames that follow may be in it.
                    piece = await response.content.readany()
                    if not piece or filled + len(piece) > len(batch):
                        raise Interrupted(self.location, "the answer is shorter or longer than it said")
                    batch[filled : filled + len(piece)] = piece
                    filled += len(piece)
                    meter.add(len(piece))
            finally:
                found.extend(_whole_frames(entries, batch, filled))

    def _batch_entries(self, header: bytes, digests: Sequence[Digest], *, space: int) -> list[wire.BatchEntry]:
        if len(header) < wire.batch_header_size(len(digests)):
            raise Interrupted(self.location, "the answer ended too early")
        entries = wire.decode_batch_entries(header[wire.batch_header_size(0) :], absent_allowed=True)
        if wire.decode_batch_count(header) != len(digests) or [entry.digest for entry in entries] != list(digests):
            raise InvalidBatch(f"{self.location} answered with other chunks than those that were asked for")
        if sum(entry.stored_size for entry in entries) > space:
            raise InvalidBatch(f"{self.location} answered with larger frames than these chunks can have")
        return entries

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterator[bytes | memoryview] | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, whose failures, those of reading the answer included, become errors of ours."""
        import aiohttp  # noqa: PLC0415  # on first use

        sent = {"Content-Type": wire.OCTETS} if body is not None else {}
        # Not of the session: what that sends with each request, it sends to a proxy, too.
        sent |= {"Authorization": f"Bearer {self._token}"} if self._token is not None else {}
        # encoded=True: names are percent-encoded already, and must arrive as they are.
        url = URL(self.location + wire.API + path, encoded=True)
        try:
            # No redirects: the token is for this server alone.
            async with self._open_session().request(
                method, url, data=body, headers=sent | (headers or {}), allow_redirects=False, **self._by_proxy()
            ) as response:
                self._reached = True
                yield response
        except aiohttp.InvalidURL as error:
            raise InvalidUrl(self.location, str(error)) from None
        except aiohttp.ClientHttpProxyError as error:
            # What the proxy answered to CONNECT.
            raise foreign_answer(self.location, error.status, said_by(error.headers or {})) from None
        except (aiohttp.ClientConnectorError, UnicodeError) as error:  # the latter of a name that DNS cannot have
            if isinstance(error, aiohttp.ClientProxyConnectionError) and self._proxy is not None:
                reason = failure_reason(error)
                raise ProxyUnreachable(self.location, self._proxy.url, self._proxy.source, reason) from None
            raise Unreachable(self.location, failure_reason(error)) from None
        except aiohttp.ServerTimeoutError:
            raise Stalled(self.location, self._stall_seconds) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Interrupted(self.location, failure_reason(error)) from None

    def _by_proxy(self) -> dict[str, Any]:
        """What aiohttp is told, to reach the server by CONNECT through the proxy."""
        if self._proxy is None:
            return {}
        sent = {"Proxy-Authorization": self._proxy.authorization} if self._proxy.authorization is not None else {}
        return {"proxy": self._proxy.url, "proxy_headers": sent}

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415  # on first use

        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Twice as many connections as batches under way: questions must not wait behind batches.
                connector=aiohttp.TCPConnector(limit=self._connections * 2),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._stall_seconds, sock_read=self._stall_seconds),
                read_bufsize=PIECE,
                auto_decompress=False,
            )
        return self._session

    def _batch_limit(self) -> int:
        if self._rate is None:
            return FIRST_BATCH
        return int(min(self._rate * BATCH_SECONDS, wire.BATCH_LIMIT - wire.batch_header_size(wire.BATCH_COUNT_LIMIT)))

    def _among(self, asked: Sequence[Digest], answer: bytes) -> list[Digest]:
        """Digests in an answer, which must be some of those that were asked about."""
        found = parse_digests(answer)
        if not set(found) <= set(asked):
            raise InvalidBatch(f"{self.location} answered with other chunks than those that were asked about")
        return found

    def _checked(self, record: Record, reference: Reference) -> Record:
        """The record, if it is one that was asked for. Raises UnexpectedRecord."""
        is_foreign = self._identity is not None and record.namespace != self._identity.namespace
        if is_foreign or not reference.means(record):
            raise UnexpectedRecord(self.location, f"the record of {record.path}", repr(str(reference)))
        return record

    def _record(self, values: object) -> Record:
        try:
            if isinstance(values, dict):
                return record_from_json(values)
        except (KeyError, TypeError, ValueError, FilestoreError):
            pass
        raise ServerError(self.location, HTTPStatus.OK, "its record of a file is malformed")


async def _whole(response: aiohttp.ClientResponse, *, limit: int) -> bytes:
    """The whole answer. Raises the error that it stands for, LimitExceeded past `limit` bytes."""
    url = str(response.url.origin())
    said = said_by(response.headers)
    failed = response.status >= HTTPStatus.MULTIPLE_CHOICES
    if said.is_page and not failed:
        raise foreign_answer(url, response.status, said)
    body = bytearray()
    limit = PROBLEM_LIMIT if failed else limit
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise LimitExceeded(f"the answer of {url} in bytes", len(body), limit)
    if failed:
        sent_size = int(response.request_info.headers.get("Content-Length", "0"))
        raise _problem(url, response.status, bytes(body), said, sent_size=sent_size)
    return bytes(body)


def _problem(url: str, status: int, body: bytes, said: Said, *, sent_size: int) -> FilestoreError:
    try:
        document = parse_json(body)
    except ValueError:
        document = None
    if status == HTTPStatus.UNAUTHORIZED and not said.is_page:  # a page is the login of something between
        return Unauthorized(url)
    return error_of(url, status, document, said, sent_size=sent_size)


def _whole_frames(entries: Sequence[wire.BatchEntry], batch: memoryview, filled: int) -> Iterator[memoryview | None]:
    """What of a batch is whole, of which `filled` bytes have come; None for each chunk that is absent."""
    start = 0
    for entry in entries:
        end = start + entry.stored_size
        if end > filled:
            return
        yield batch[start:end] if entry.stored_size else None
        start = end


def _frame_size(frame: Frame) -> int:
    return len(frame.data)


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), PIECE):
        yield view[start : start + PIECE]
