"""A repository that is reached over HTTP: `RemoteRepository`, its verbs and their retry.

Routes and shapes are described in `docs/http-api.md`. `transport` says how requests reach the server.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from itertools import count
from typing import Any, TypeVar
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
    InvalidBatch,
    InvalidFrame,
    InvalidManifest,
    InvalidName,
    InvalidReference,
    InvalidSetting,
    InvalidUrl,
    LimitExceeded,
    NotFound,
    ServerError,
    UnexpectedRecord,
)
from filestore.format.codec import Frame
from filestore.http import wire
from filestore.http.client.answers import PROBLEM_LIMIT, BatchAnswer, FileAnswer, SmallAnswer
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.channel_transport import ChannelTransport
from filestore.http.client.concurrency import Concurrency
from filestore.http.client.transport import Request, Transport
from filestore.repository.format_file import check_versions, checked_identity
from filestore.repository.listing import listing_file, read_lines
from filestore.repository.protocol import (
    FreedContent,
    Identity,
    Moved,
    Usage,
    VersionPage,
    Wanted,
    closed_error,
    reference_of,
    usage_from_json,
)
from filestore.system.metrics import Stage
from filestore.system.proxies import Proxy
from filestore.system.retries import FIRST_PAUSE_SECONDS, RETRY_SECONDS, Retries
from filestore.system.threads import abandon, tell_of_forks

T = TypeVar("T")

BATCH_SECONDS = 5.0
FIRST_BATCH = 4 << 20
"""Bytes of the first batch, which is sent before a rate has been measured."""
_LEAST_BATCH = 8 << 20
"""The smallest limit of a server that batches follow. A frame with its header always fits."""
LISTING_LIMIT = 4 << 30
"""Bytes of the largest listing that is accepted: about ten million records."""
_TOKEN = re.compile(r"[\x21-\x7e]+")
_GARBLED = (InvalidBatch, InvalidFrame, InvalidManifest)
"""Errors for bytes that one of the two ends could not verify. The checksum of TCP misses some flipped bits, so such a request is
sent once more. An error of the content itself comes again.
Source: J. Stone, C. Partridge, "When the CRC and TCP Checksum Disagree", SIGCOMM 2000."""


class RemoteRepository:
    """The repository of a server. Its verbs retry after errors that are retryable; callers do not retry.

    A server that has ever answered is tried again for `retry_seconds` since its last progress. Use the object in one event loop.
    It uses a proxy only if one is given; `filestore.backends.connect` takes one from the environment.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        connections: int = 4,
        stall_seconds: float = 30,
        retry_seconds: float = RETRY_SECONDS,
        proxy: Proxy | None = None,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        """Make a client without asking the server anything yet. Raises InvalidUrl, InvalidSetting."""
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
            # The value is a secret, so the error must not contain it.
            raise InvalidSetting("the token", "it has printable ASCII characters only, and no spaces")
        self.location = url.rstrip("/")
        self.fingerprint = blake3(self.location.encode() + b"\0" + token_digest(token or "")).hexdigest()
        self._token = token
        self._connections = connections
        self._stall_seconds = stall_seconds
        self._proxy = proxy
        self._retries = Retries(retry_seconds=retry_seconds, first_pause_seconds=first_pause_seconds)
        self._concurrency = Concurrency(connections)
        self._transport = self._open_transport()
        self._was_reached = False
        self._identity: Identity | None = None
        self._is_closed = False
        self._rate: float | None = None
        self._request_limit = wire.BATCH_LIMIT
        tell_of_forks(self)

    def __reduce__(self) -> tuple[Callable[[], RemoteRepository], tuple[()]]:
        """Give processes started by spawn or forkserver a client of the same server, with its own connections."""
        make = partial(
            RemoteRepository,
            self.location,
            token=self._token,
            connections=self._connections,
            stall_seconds=self._stall_seconds,
            proxy=self._proxy,
            retry_seconds=self._retries.retry_seconds,
            first_pause_seconds=self._retries.first_pause_seconds,
        )
        return make, ()

    def after_fork(self) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        abandon(self._transport)
        self._was_reached = self._is_reached
        self._concurrency = Concurrency(self._connections)
        self._retries = Retries(retry_seconds=self._retries.retry_seconds, first_pause_seconds=self._retries.first_pause_seconds)
        self._transport = self._open_transport()

    def _open_transport(self) -> Transport:
        kind: type[Transport]
        if urlsplit(self.location).scheme == "http":
            kind = ChannelTransport
        else:
            # Only here: aiohttp takes 0.15 s and more to import, and plain HTTP does not need it.
            from filestore.http.client.aiohttp_transport import AiohttpTransport  # noqa: PLC0415

            kind = AiohttpTransport
        return kind(
            self.location, token=self._token, count=self._connections, stall_seconds=self._stall_seconds, proxy=self._proxy
        )

    @property
    def _is_reached(self) -> bool:
        """Whether the server has ever answered this process, or its parent before a fork."""
        return self._was_reached or self._transport.has_answered

    @property
    def waited_seconds(self) -> float | None:
        return self._retries.waited_seconds

    async def identity(self) -> Identity:
        if self._is_closed:
            raise closed_error(self.location)
        if self._identity is None:
            answer = await self._json("GET", "/repository")
            try:
                version, chunking_version = answer["format"], answer["chunking_version"]
                if type(version) is not int or type(chunking_version) is not int:
                    raise TypeError("its versions are not numbers")
                checked_namespace(str(answer["namespace"]))
            except (KeyError, TypeError, ValueError, FilestoreError):
                raise ServerError(self.location, HTTPStatus.OK, "this is not an answer of a filestore server") from None
            # This comes first, because another version may write the other values in another way.
            check_versions(self.location, version=version, chunking_version=chunking_version)
            try:
                found = checked_identity(
                    answer["id"], answer["namespace"], chunking_version, upload_limit=answer.get("upload_limit")
                )
            except (KeyError, ValueError, FilestoreError):
                raise ServerError(self.location, HTTPStatus.OK, "this is not an answer of a filestore server") from None
            self._identity = found
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        found: list[Digest] = []
        for start in range(0, len(digests), wire.DIGESTS_LIMIT):
            found += await self._retried(partial(self._missing_once, digests[start : start + wire.DIGESTS_LIMIT]))
        return list(dict.fromkeys(found))

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        waiting = list(frames)
        while waiting:
            # The limit follows the rate of the batches before it.
            batch = next(batched_by_size(waiting, _frame_size, limit=self._batch_limit(), count_limit=wire.BATCH_COUNT_LIMIT))
            try:
                await self._put_retried(batch, moved)
            except LimitExceeded as error:
                # Its administrator chose a smaller limit than that of the protocol: send smaller batches from now on.
                if error.setting != "request_limit" or not _LEAST_BATCH <= error.limit < self._request_limit:
                    raise
                self._request_limit = error.limit
            else:
                del waiting[: len(batch)]

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        found: list[memoryview | None] = []

        async def rest() -> None:
            # Frames that arrived whole before a connection was cut are not asked for again.
            asked = digests[len(found) : len(found) + wire.BATCH_COUNT_LIMIT]
            filled = sum(len(frame) for frame in found if frame is not None)
            await self._get_batch(asked, buffer[filled:], found, moved)

        while len(found) < len(digests):
            await self._retried(rest)
        return found

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        async def ask() -> list[Digest]:
            limit = len(digests) * DIGEST_SIZE
            return self._among(digests, await self._octets_once("POST", "/chunks/verify", body=b"".join(digests), limit=limit))

        return await self._retried(ask)

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
        async def ask() -> bytes:
            encoded = await self._octets_once("GET", f"/manifests/{digest}", limit=MANIFEST_LIMIT)
            if manifest_digest(encoded) != digest:
                raise InvalidManifest(f"what {self.location} gives for {digest} has another digest")
            return encoded

        return await self._retried(ask)

    async def record(self, wanted: Wanted) -> Record:
        reference = reference_of(wanted)
        try:
            return self._checked(await self._find(reference), reference)
        except NotFound:
            if reference.name_otherwise is None:
                raise
        by_name = Reference(name=reference.name_otherwise)
        return self._checked(await self._find(by_name), by_name)

    async def _find(self, reference: Reference) -> Record:
        if reference.revision is not None:
            return (await self._versions(reference, limit=1)).records[0]
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
        # Paging ends only if each page goes on. The times may be in any order, because a clock can be set back.
        if len({record.id for record in found}) < len(found) or (before is not None and before in {r.updated_at for r in found}):
            raise ServerError(self.location, HTTPStatus.OK, "its list of files is not in order")
        return found

    async def iter_records(self) -> AsyncGenerator[Record, None]:
        request = Request(method="GET", path="/files", fields={"Accept": wire.LINES})
        with listing_file() as file:

            async def receive() -> None:
                await self._transport.exchange(request, FileAnswer(self.location, file, limit=LISTING_LIMIT))

            await self._retried(receive)
            try:
                async for record in read_lines(file):
                    yield record
            except ValueError as error:
                # I4: a server says this.
                raise ServerError(self.location, HTTPStatus.OK, str(error)) from None

    async def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        reference = reference_of(wanted)
        more = {"before": before, "keep_last": keep_last, "older_than_seconds": older_than_seconds}
        try:
            return await self._versions(reference, limit=limit, **more)
        except NotFound:
            if reference.name_otherwise is None:
                raise
        return await self._versions(Reference(name=reference.name_otherwise), limit=limit, **more)

    async def _versions(self, reference: Reference, *, limit: int, **more: float | None) -> VersionPage:
        given = {
            "id": reference.id,
            "digest": reference.digest,
            "name": reference.name,
            "revision": reference.revision,
            "limit": limit,
            **more,
        }
        query = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in given.items() if value is not None)
        answer = await self._json("GET", f"/versions?{query}")
        files, total = answer.get("files"), answer.get("total")
        if not isinstance(files, list) or len(files) > limit or type(total) is not int or total < len(files):
            raise ServerError(self.location, HTTPStatus.OK, "its list of versions is malformed")
        records = [self._checked(self._record(values), reference) for values in files]
        users = {record.id: values["pipelines"] for record, values in zip(records, files, strict=True) if "pipelines" in values}
        if not all(isinstance(names, str) for names in users.values()):
            raise ServerError(self.location, HTTPStatus.OK, "its list of versions is malformed")
        if reference.revision is not None and len(records) != 1:
            raise NotFound(str(reference))
        return VersionPage(records, total, users)

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        body = json.dumps({"ids": list(file_ids)}).encode()
        answer = await self._slow("POST", "/files/freed", body=body)
        # An earlier version of the server does not say whether there is a hold.
        count, size, is_held = answer.get("chunk_count"), answer.get("stored_size"), answer.get("is_held", False)
        if not all(type(number) is int and number >= 0 for number in (count, size)) or type(is_held) is not bool:
            raise ServerError(self.location, HTTPStatus.OK, "what it says about freed content is malformed")
        return FreedContent(count, size, is_held)  # type: ignore[arg-type]  # checked above

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        grace = "" if grace_seconds is None else f"&grace_seconds={grace_seconds}"
        answer = await self._slow("GET", f"/usage?names={name_limit}{grace}")
        try:
            return usage_from_json(answer)
        except (KeyError, TypeError, ValueError):
            raise ServerError(self.location, HTTPStatus.OK, "its report on disk usage is malformed") from None

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

    async def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        # Read it first: once it is removed and the answer was lost, the record cannot be had any more.
        record = await self.record(Reference(id=file_id))
        asked = {"chunks": with_chunks, "force": force, "unless_newest": unless_newest}
        given = [f"{key}=true" for key, value in asked.items() if value]
        given += [] if updated_at is None else [f"updated_at={updated_at}"]
        path = f"/files/{quote(file_id, safe='')}{(given and '?') or ''}{'&'.join(given)}"
        tries = count(1)

        async def ask() -> Record:
            is_again = next(tries) > 1
            try:
                document = self._whole_document(await self._octets_once("DELETE", path, limit=PROBLEM_LIMIT))
            except NotFound as error:
                if is_again and type(error) is NotFound and error.args == (file_id,):
                    return record
                raise
            return self._checked(self._record(document), Reference(id=file_id))

        return await self._retried(ask)

    async def _slow(self, method: str, path: str, *, body: bytes | None = None) -> dict[str, Any]:
        """Return a document whose making may take long. The server sends blanks before it."""

        async def ask() -> dict[str, Any]:
            return self._whole_document(await self._octets_once(method, path, body=body, limit=PROBLEM_LIMIT))

        return await self._retried(ask)

    def _whole_document(self, answer: bytes) -> dict[str, Any]:
        """Parse a document that may have come after blanks. Raises the error that it describes, if it is a problem."""
        document = self._document(answer)
        # The work may fail after the server has sent the status of a success.
        if "type" in document:
            status = document.get("status")
            raise wire.decode_problem(self.location, status if type(status) is int else 500, document)
        return document

    async def status(self) -> dict[str, Any]:
        """Return the report of the server about its work.

        Raises Forbidden if the token is not of the default namespace.
        """
        return await self._json("GET", "/status")

    async def close(self) -> None:
        self._is_closed = True
        await self._transport.close()

    # Below: requests. Each is idempotent, so that `_retried` may repeat it.

    async def _retried(self, request: Callable[[], Awaitable[T]]) -> T:
        is_garbled = False
        with self._retries.request() as retries:
            while True:
                if self._is_closed:
                    raise closed_error(self.location)
                try:
                    answer = await request()
                except _GARBLED:
                    if is_garbled:
                        raise
                    is_garbled = True
                    continue
                except FilestoreError as error:
                    if isinstance(error, ForeignAnswer) and self._proxy is not None:
                        error.through = f"the proxy {self._proxy.url}, which {self._proxy.source} names"
                    pause = retries.next_pause(error)
                    # If the server has never answered, retries would only delay the error.
                    if pause is None or not self._is_reached:
                        raise
                else:
                    self._retries.note_progress()
                    return answer
                await asyncio.sleep(pause)

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
            raise ServerError(self.location, HTTPStatus.OK, "this is not an answer of a filestore server")
        return values

    async def _octets(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None, limit: int
    ) -> bytes:
        return await self._retried(lambda: self._octets_once(method, path, body=body, headers=headers, limit=limit))

    async def _octets_once(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None, limit: int
    ) -> bytes:
        request = Request(method=method, path=path, fields=headers or {}, body=body)
        answer = SmallAnswer(self.location, limit=limit)
        await self._transport.exchange(request, answer)
        return answer.content

    async def _put_retried(self, batch: Sequence[Frame], moved: Moved | None) -> None:
        """Send a batch. After a failure, send only those of its frames that have not arrived."""
        waiting = list(batch)
        tries = count(1)

        async def send() -> None:
            if next(tries) > 1:
                missing = set(await self._missing_once([frame.digest for frame in waiting]))
                arrived = sum(len(frame.data) for frame in waiting if frame.digest not in missing)
                waiting[:] = [frame for frame in waiting if frame.digest in missing]
                if arrived:
                    self._retries.note_progress()
                    if moved is not None:
                        # The failed attempt took back what it had counted.
                        moved(arrived)
            if waiting:
                await self._put_batch(waiting, moved)

        await self._retried(send)

    async def _missing_once(self, digests: Sequence[Digest]) -> list[Digest]:
        limit = len(digests) * DIGEST_SIZE
        return self._among(digests, await self._octets_once("POST", "/chunks/missing", body=b"".join(digests), limit=limit))

    async def _put_batch(self, frames: Sequence[Frame], moved: Moved | None) -> None:
        entries = [wire.BatchEntry(frame.digest, len(frame.data)) for frame in frames]
        size = sum(entry.stored_size for entry in entries)
        meter = ByteCounter(partial(self._count_moved, moved))
        request = Request(
            method="POST",
            path="/chunks",
            body=wire.encode_batch_header(entries),
            frames=[frame.data for frame in frames],
            moved=meter.add,
            stage=Stage.SEND,
        )
        kept = 0
        try:
            async with self._concurrency.place():
                seconds = await self._transport.exchange(request, SmallAnswer(self.location))
            kept = size
        finally:
            meter.settle(kept)
        rate = size / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else (self._rate + rate) / 2

    async def _get_batch(
        self, digests: Sequence[Digest], buffer: memoryview, found: list[memoryview | None], moved: Moved | None
    ) -> None:
        """Append to `found` each frame that arrives whole, even if the rest of the batch does not arrive."""
        meter = ByteCounter(partial(self._count_moved, moved))
        request = Request(method="POST", path="/chunks/get", body=b"".join(digests), stage=Stage.RECEIVE)
        batch = BatchAnswer(self.location, digests, buffer, moved=meter.add)
        try:
            async with self._concurrency.place():
                await self._transport.exchange(request, batch)
        finally:
            frames = list(batch.frames())
            found.extend(frames)
            if frames:
                self._retries.note_progress()
            meter.settle(sum(len(frame) for frame in frames if frame is not None))

    def _count_moved(self, moved: Moved | None, size: int) -> None:
        self._concurrency.note_moved(size)
        if moved is not None:
            moved(size)

    def _batch_limit(self) -> int:
        most = self._request_limit - wire.batch_header_size(wire.BATCH_COUNT_LIMIT)
        return int(min(FIRST_BATCH if self._rate is None else self._rate * BATCH_SECONDS, most))

    def _among(self, asked: Sequence[Digest], answer: bytes) -> list[Digest]:
        """Parse the digests of an answer. Raises InvalidBatch if one of them was not asked about."""
        found = parse_digests(answer)
        if not set(found) <= set(asked):
            raise InvalidBatch(
                f"{self.location} answered with chunks that this client did not ask about; the server or a proxy is faulty"
            )
        return found

    def _checked(self, record: Record, reference: Reference) -> Record:
        """Return the record if it is the one that was asked for. Raises UnexpectedRecord."""
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


def _frame_size(frame: Frame) -> int:
    return len(frame.data)
