"""A repository that is reached over HTTP: `RemoteRepository` and its verbs.

Routes and shapes are described in `docs/http-api.md`. `requests` sends and retries; `documents` parses what the server says.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from blake3 import blake3
from yarl import URL

from filestore.core.batches import batched_by_size
from filestore.core.commits import MAIN, PLAIN_COMMIT, Commit, Label, LabelKind, NewCommit, checked_label, checked_new_commit
from filestore.core.digest import DIGEST_SIZE, Digest, manifest_digest, token_digest
from filestore.core.links import Link
from filestore.core.manifest import HEADER_SIZE as MANIFEST_HEADER_SIZE
from filestore.core.manifest import MANIFEST_LIMIT, Manifest, stated_size
from filestore.core.names import split_full_name
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.tickets import PeerTicket
from filestore.core.urls import split_urls
from filestore.errors import (
    ChunksMissing,
    FilestoreError,
    InvalidManifest,
    InvalidSetting,
    InvalidUrl,
    LimitExceeded,
    NotFound,
    RevisionNotFound,
    ServerError,
    UnexpectedRecord,
)
from filestore.format.codec import Frame
from filestore.http import wire
from filestore.http.client.answers import FileAnswer, SmallAnswer, answer_size_of
from filestore.http.client.byte_counter import ByteCounter
from filestore.http.client.concurrency import Concurrency
from filestore.http.client.documents import (
    parse_commits,
    parse_digests_among,
    parse_document,
    parse_freed,
    parse_identity,
    parse_label,
    parse_labels,
    parse_late_document,
    parse_link,
    parse_links,
    parse_record,
    parse_records,
    parse_signed_path,
    parse_ticket,
    parse_usage,
    parse_versions,
)
from filestore.http.client.exchange import ClientCertificate, Request
from filestore.http.client.frame_urls import FramePlaces
from filestore.http.client.frames import FrameReader
from filestore.http.client.requests import ProxyFinder, Requests
from filestore.repository.listing import listing_file, read_lines
from filestore.repository.protocol import (
    BY_CORES,
    FreedContent,
    Identity,
    Moved,
    TransferLimits,
    Usage,
    VersionPage,
    Wanted,
    closed_error,
    whole_reference_of,
)
from filestore.system.machine import core_count
from filestore.system.metrics import Stage
from filestore.system.proxies import Proxy
from filestore.system.rate_limit import LEAST_RATE, RateLimit
from filestore.system.retries import FIRST_PAUSE_SECONDS, RETRY_SECONDS
from filestore.system.threads import in_cpu_thread, tell_of_forks

_CONNECTIONS_MIN, _CONNECTIONS_MAX = 4, 8
BATCH_SECONDS = 5.0
FIRST_BATCH = 4 << 20
"""Bytes of the first batch, which is sent before a rate has been measured."""
_LEAST_BATCH = 8 << 20
"""The smallest limit of a server that batches follow. A frame with its header always fits."""
LISTING_LIMIT = 1 << 30
"""Bytes of the largest listing that is accepted: about two million records. It takes as much of the disk for a time."""
_COMMITS_AT_ONCE = 300
_TOKEN = re.compile(r"[\x21-\x7e]+")


def _no_proxy(_: str) -> Proxy | None:
    return None


def default_connections() -> int:
    """Return how many connections one process of a transfer uses at most where nobody says a number."""
    return max(_CONNECTIONS_MIN, min(core_count(), _CONNECTIONS_MAX))


class RemoteOpening(NamedTuple):
    """How another process opens the same repository: an `Opening`."""

    make: Callable[..., RemoteRepository]
    connections: int | None
    """The most connections of the transfer."""

    def __repr__(self) -> str:
        return "RemoteOpening(...)"  # it has the token

    @asynccontextmanager
    async def open(self, *, share: int) -> AsyncIterator[RemoteRepository]:
        """Make a client with its part of the connections."""
        limit = None if self.connections is None else max(1, self.connections // share)
        repository = self.make(connections=limit)
        try:
            yield repository
        finally:
            await repository.close()


class RemoteRepository:
    """The repository of a server. Its verbs retry after errors that are retryable; callers do not retry.

    A server that has ever answered is tried again for `retry_seconds` since its last progress. Of several servers, one is used
    until it fails, then the next one. Use the object in one event loop. It uses a proxy only if `find_proxy` finds one;
    `filestore.backends.connect` takes it from the environment.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        token: str | None,
        connections: int | None = None,
        transfer_limits: TransferLimits = BY_CORES,
        stall_seconds: float = 30,
        retry_seconds: float = RETRY_SECONDS,
        find_proxy: ProxyFinder = _no_proxy,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
        certificate: ClientCertificate | None = None,
        presigned_reads: bool = True,
        limit_rate: int | RateLimit | None = None,
    ) -> None:
        """Make a client without asking the server anything yet.

        `url` may be the URLs of several servers of one repository: a list of them, or a text with commas or spaces between them.
        `connections` is the most connections, together with those of the worker processes of a transfer. None follows the cores:
        so many batches at a time in each process. With `presigned_reads`, frames are read from an object store where a server
        names their URLs there. `limit_rate` is how many bytes per second all connections together move, those to other servers
        too; then one process does all transfers. A `RateLimit` is shared with other clients. Raises InvalidUrl, InvalidSetting.
        """
        given = split_urls(url) if isinstance(url, str) else list(url)
        locations = list(dict.fromkeys(map(_checked_location, given)))
        if not locations:
            raise InvalidUrl("", "a server's URL is expected")
        if token is not None and not _TOKEN.fullmatch(token):
            # The value is a secret, so the error must not contain it.
            raise InvalidSetting("the token", "it has printable ASCII characters only, and no spaces")
        if isinstance(limit_rate, int) and limit_rate < LEAST_RATE:
            raise InvalidSetting("limit_rate", f"it is {limit_rate}; at least {LEAST_RATE} bytes per second are needed")
        # The same in whichever order they are given.
        self.fingerprint = blake3(" ".join(sorted(locations)).encode() + b"\0" + token_digest(token or "")).hexdigest()
        self._options: Callable[..., RemoteRepository] = partial(
            type(self),
            token=token,
            connections=connections,
            transfer_limits=transfer_limits,
            stall_seconds=stall_seconds,
            retry_seconds=retry_seconds,
            find_proxy=find_proxy,
            first_pause_seconds=first_pause_seconds,
            certificate=certificate,
            presigned_reads=presigned_reads,
            limit_rate=limit_rate,
        )
        self._has_rate = limit_rate is not None
        self._limit = connections
        if connections is None:
            connections = default_connections()
        self._requests = Requests(
            locations,
            token=token,
            connections=connections,
            is_limit=self._limit is not None,
            stall_seconds=stall_seconds,
            retry_seconds=retry_seconds,
            first_pause_seconds=first_pause_seconds,
            find_proxy=find_proxy,
            certificate=certificate,
            limit_rate=limit_rate,
        )
        self._connections = connections
        self._is_lending = False
        self.transfer_limits = transfer_limits._replace(connections=self._limit)
        self._concurrency = Concurrency(connections)
        self._frames = FrameReader(
            self._requests,
            self._concurrency,
            stall_seconds=stall_seconds,
            find_proxy=find_proxy,
            presigned_reads=presigned_reads,
        )
        self._identity: Identity | None = None
        self._rate: float | None = None
        self._request_limit = wire.BATCH_LIMIT
        tell_of_forks(self)

    def __reduce__(self) -> tuple[Callable[[], RemoteRepository], tuple[()]]:
        """Give processes started by spawn or forkserver a client of the same server, with its own connections."""
        return self._make(), ()

    def opening(self) -> RemoteOpening | None:
        if self._has_rate:
            return None  # connections of another process would not count for the rate
        return RemoteOpening(self._make(), self._limit)

    def _make(self) -> Callable[..., RemoteRepository]:
        # One that works first: a new process need not find out which do not.
        return partial(self._options, self._requests.locations())

    @asynccontextmanager
    async def lending(self, processes: int) -> AsyncIterator[int]:
        if self._limit is None or not processes:
            yield processes
            return
        processes = 0 if self._is_lending else min(processes, self._limit - 1)
        if not processes:
            yield 0  # those of another transfer have them
            return
        self._is_lending = True
        try:
            async with self._requests.lending(processes * (self._limit // (processes + 1))):
                yield processes
        finally:
            self._is_lending = False

    def after_fork(self) -> None:
        """Leave connections and threads to the parent. The child opens new ones."""
        self._requests.after_fork()
        self._is_lending = False
        self._concurrency = Concurrency(self._connections)
        self._frames.after_fork(self._concurrency)

    @property
    def location(self) -> str:
        """The URL of the server to which requests go now: the one that answered last, if one has."""
        return self._requests.location

    @property
    def waited_seconds(self) -> float | None:
        return self._requests.retries.waited_seconds

    @property
    def waited_because(self) -> str:
        return self._requests.retries.waited_because

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        return self._requests.retries.asked_pause

    async def identity(self) -> Identity:
        if self._requests.is_closed:
            raise closed_error(self.location)
        if self._identity is None:
            self._identity = parse_identity(self.location, await self._requests.json("GET", "/repository"))
        return self._identity

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        found: list[Digest] = []
        for start in range(0, len(digests), wire.DIGESTS_LIMIT):
            part = digests[start : start + wire.DIGESTS_LIMIT]
            found += await self._requests.retried(partial(self._ask_once, "/chunks/missing", part))
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
        return await self._frames.get(digests, buffer, moved)

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        return await self._requests.retried(partial(self._ask_once, "/chunks/verify", digests))

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        headers = {wire.NAME_HEADER: quote(name, safe="")}
        checked_new_commit(commit)
        if commit.message:
            headers[wire.MESSAGE_HEADER] = quote(commit.message, safe=" ")
        # The server knows itself whose token it is.
        query = _query(kind=kind.value, branch=None if commit.branch == MAIN else commit.branch, parent=commit.parent)
        try:
            answer = await self._requests.json("POST", f"/files?{query}", body=manifest, headers=headers)
        except LimitExceeded as error:
            if error.what != answer_size_of(self.location):
                raise
            # An earlier server lists all missing chunks, and this list may be larger than any accepted answer.
            absent = await self.missing([chunk.digest for chunk in (await in_cpu_thread(Manifest.parse, manifest)).chunks])
            if not absent:
                raise
            raise ChunksMissing(*map(str, absent[: ChunksMissing.limit])) from None
        record = parse_record(self.location, answer)
        owner, last = split_full_name(name)
        committed = Reference(digest=manifest_digest(manifest), name=last)
        if record.owner != owner:
            raise UnexpectedRecord(self.location, f"the record of {record.full_name!r}", f"{name!r}")
        if record.size != stated_size(manifest[:MANIFEST_HEADER_SIZE]):
            raise UnexpectedRecord(self.location, f"a file of {record.size} bytes", f"{name!r}")
        if record.kind is not kind:
            raise UnexpectedRecord(self.location, f"a {record.kind.value}", f"a {kind.value} called {name!r}")
        return self._checked(record, committed)

    async def manifest(self, digest: Digest) -> bytes:
        async def ask() -> bytes:
            encoded = await self._requests.octets_once("GET", f"/manifests/{digest}", limit=MANIFEST_LIMIT)
            if manifest_digest(encoded) != digest:
                raise InvalidManifest(f"what {self.location} gives for {digest} has another digest")
            return encoded

        encoded = await self._requests.retried(ask)
        self._frames.note_manifest(encoded)
        return encoded

    async def name_places(self, digests: Sequence[Digest]) -> FramePlaces | None:
        return await self._frames.name_places(digests)

    def take_places(self, digests: Sequence[Digest], places: FramePlaces) -> None:
        self._frames.take_places(digests, places)

    async def record(self, wanted: Wanted) -> Record:
        reference = whole_reference_of(wanted)
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
            return parse_record(self.location, await self._requests.json("GET", f"/files/{quote(reference.id, safe='')}"))
        query = _query(digest=reference.digest, name=reference.full_name)
        return parse_record(self.location, await self._requests.json("GET", f"/files/find?{query}"))

    async def check_new_name(self, name: str, *, branch: str = MAIN) -> None:
        await self._requests.json("GET", f"/names/check?{_query(name=name, branch=branch)}")

    async def find_commit(self, name: str, revision: str | None = None) -> Commit:
        return (await self.history(name, revision=revision, limit=1))[0]

    async def history(
        self, name: str, *, revision: str | None = None, limit: int = 1000, before: int | None = None
    ) -> list[Commit]:
        found: list[Commit] = []
        while len(found) < limit:
            count = min(limit - len(found), _COMMITS_AT_ONCE)
            query = _query(name=name, revision=revision, limit=count, before=before)
            page = parse_commits(self.location, await self._requests.json("GET", f"/commits?{query}"), limit=count, before=before)
            found += page
            if len(page) < count or page[-1].parent is None:
                break
            # By an id: the branch may move meanwhile. Only on `main` is the next page found from any later commit at once.
            revision, before = (found[0] if page[-1].branch == MAIN else page[-1]).id, page[-1].number
        return found

    async def labels(self, name: str) -> list[Label]:
        return parse_labels(self.location, await self._requests.json("GET", f"/labels?{_query(name=name)}"))

    async def set_label(
        self, name: str, label: str, *, kind: LabelKind = LabelKind.TAG, revision: str | None = None, force: bool = False
    ) -> Label:
        checked_label(label, what=kind.value)
        forced = "true" if force else None
        query = _query(name=name, label=label, kind=kind.value, revision=revision, force=forced)
        return parse_label(self.location, await self._requests.json("PUT", f"/labels?{query}"), name=label)

    async def remove_label(self, name: str, label: str) -> Label:
        # Read it first: once it is removed and the answer was lost, it cannot be had any more.
        kept = next((each for each in await self.labels(name) if each.name == label), None)
        if kept is None:
            raise RevisionNotFound(name, label)
        document = await self._deleted(f"/labels?{_query(name=name, label=label)}")
        return kept if document is None else parse_label(self.location, document, name=label)

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        page = f"/files?limit={limit}" + (f"&before={before}" if before is not None else "")
        found = parse_records(self.location, await self._requests.json("GET", page), limit=limit, before=before)
        for record in found:
            self._check_namespace(record, "the list of files")
        return found

    async def iter_records(self) -> AsyncGenerator[Record, None]:
        request = Request(method="GET", path="/files", fields={"Accept": wire.LINES})
        with listing_file() as file:

            async def receive() -> None:
                await self._requests.exchange(request, FileAnswer(self.location, file, limit=LISTING_LIMIT))

            await self._requests.retried(receive)
            try:
                async for record in read_lines(file):
                    self._check_namespace(record, "the list of files")
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
        reference = whole_reference_of(wanted)
        rule = {"keep_last": keep_last, "older_than_seconds": older_than_seconds}
        try:
            return await self._versions(reference, limit=limit, before=before, **rule)
        except NotFound:
            if reference.name_otherwise is None:
                raise
        return await self._versions(Reference(name=reference.name_otherwise), limit=limit, before=before, **rule)

    async def _versions(
        self, reference: Reference, *, limit: int, before: int | None = None, **rule: float | None
    ) -> VersionPage:
        given = {
            "id": reference.id,
            "digest": reference.digest,
            "name": reference.full_name,
            "revision": reference.revision,
            "limit": limit,
            "before": before,
            **rule,
        }
        query = _query(**given)
        answer = await self._requests.json("GET", f"/versions?{query}")
        page = parse_versions(self.location, answer, limit=limit, before=before)
        for record in page.records:
            self._checked(record, reference)
        if reference.revision is not None and len(page.records) != 1:
            raise NotFound(str(reference))
        return page

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        body = json.dumps({"ids": list(file_ids)}).encode()
        return parse_freed(self.location, await self._requests.late_json("POST", "/files/freed", body=body))

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        grace = "" if grace_seconds is None else f"&grace_seconds={grace_seconds}"
        return parse_usage(self.location, await self._requests.late_json("GET", f"/usage?names={name_limit}{grace}"))

    async def sign(self, file_id: str) -> str:
        answer = await self._requests.json("POST", f"/files/{quote(file_id, safe='')}/sign")
        return parse_signed_path(self.location, answer, file_id=file_id)

    async def make_link(self, file_id: str, *, seconds: float) -> Link:
        # With the same nonce, a request that is sent again makes no second link.
        query = _query(file_id=file_id, seconds=str(math.ceil(seconds)), nonce=secrets.token_hex(16))
        answer = await self._requests.json("POST", f"/links?{query}")
        link = parse_link(self.location, answer)
        return link._replace(path=parse_signed_path(self.location, answer, file_id=file_id))

    async def links(self) -> list[Link]:
        return parse_links(self.location, await self._requests.json("GET", "/links"))

    async def revoke_link(self, link_id: str) -> Link:
        # Read it first: once it is revoked and the answer was lost, it cannot be had any more.
        kept = next((link for link in await self.links() if link.id == link_id), None)
        if kept is None:
            raise NotFound(link_id)
        document = await self._deleted(f"/links/{quote(link_id, safe='')}")
        return kept if document is None else parse_link(self.location, document)

    async def _deleted(self, path: str) -> dict[str, Any] | None:
        """Return the document that answers a removal. Return None if the removal was done and its answer was lost."""
        tries = count(1)

        async def ask() -> dict[str, Any] | None:
            is_again = next(tries) > 1
            try:
                return parse_document(self.location, await self._requests.octets_once("DELETE", path))
            except NotFound:
                if is_again:
                    return None
                raise

        return await self._requests.retried(ask)

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
                document = parse_late_document(self.location, await self._requests.octets_once("DELETE", path, is_late=True))
            except NotFound as error:
                if is_again and type(error) is NotFound and error.args == (file_id,):
                    return record
                raise
            return self._checked(parse_record(self.location, document), Reference(id=file_id))

        return await self._requests.retried(ask)

    async def peer_ticket(self) -> PeerTicket:
        """Return the ticket by which peers give frames of the namespace of the token.

        Raises NotFound if the server is of a version without tickets.
        """
        return parse_ticket(self.location, await self._requests.json("POST", "/peer-ticket"))

    async def status(self) -> dict[str, Any]:
        """Return the report of the server about its work.

        Raises Forbidden if the token is not of the default namespace, ScopeMissing, OutsidePrefix.
        """
        return await self._requests.json("GET", "/status")

    async def close(self) -> None:
        await self._frames.close()
        await self._requests.close()

    # Below: batches of frames, and what answers are checked for.

    async def _put_retried(self, batch: Sequence[Frame], moved: Moved | None) -> None:
        """Send a batch. After a failure, send only those of its frames that have not arrived."""
        waiting = list(batch)
        may_have_arrived = False

        async def send() -> None:
            nonlocal may_have_arrived
            if may_have_arrived:
                missing = set(await self._ask_once("/chunks/missing", [frame.digest for frame in waiting]))
                arrived = sum(len(frame.data) for frame in waiting if frame.digest not in missing)
                waiting[:] = [frame for frame in waiting if frame.digest in missing]
                if arrived:
                    self._requests.retries.note_progress()
                    if moved is not None:
                        # The failed attempt took back what it had counted.
                        moved(arrived)
                may_have_arrived = False
            if waiting:
                try:
                    await self._put_batch(waiting, moved)
                except FilestoreError as error:
                    # A request that is one too many is not read. If each refusal cost a question, the questions could take all
                    # that the limit permits, and no batch would arrive.
                    may_have_arrived = not error.pauses_all
                    raise

        await self._requests.retried(send)

    async def _ask_once(self, path: str, digests: Sequence[Digest]) -> list[Digest]:
        """Ask about chunks. Return those of them that the server names."""
        limit = len(digests) * DIGEST_SIZE
        answer = await self._requests.octets_once("POST", path, body=b"".join(digests), limit=limit)
        return parse_digests_among(self.location, digests, answer)

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
                seconds = await self._requests.exchange(request, SmallAnswer(self.location))
            kept = size
        finally:
            meter.settle(kept)
        rate = size / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else (self._rate + rate) / 2

    def _count_moved(self, moved: Moved | None, size: int) -> None:
        self._concurrency.note_moved(size)
        if moved is not None:
            moved(size)

    def _batch_limit(self) -> int:
        most = self._request_limit - wire.batch_header_size(wire.BATCH_COUNT_LIMIT)
        return int(min(FIRST_BATCH if self._rate is None else self._rate * BATCH_SECONDS, most))

    def _checked(self, record: Record, reference: Reference) -> Record:
        """Return the record if it is the one that was asked for. Raises UnexpectedRecord."""
        self._check_namespace(record, repr(str(reference)))
        if not reference.means(record):
            raise UnexpectedRecord(self.location, f"the record of {record.path}", repr(str(reference)))
        return record

    def _check_namespace(self, record: Record, wanted: str) -> None:
        """Raise UnexpectedRecord if `record` is of another namespace than that of the token, where this is known."""
        if self._identity is not None and record.namespace != self._identity.namespace:
            raise UnexpectedRecord(self.location, f"the record of {record.path}", wanted)


def _checked_location(url: str) -> str:
    """Return the URL of a server without a slash at its end. Raises InvalidUrl."""
    try:
        parts = urlsplit(url)
        _ = parts.port, URL(url)
    except ValueError as error:
        raise InvalidUrl(url, str(error)) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidUrl(url, "a server's URL looks like http://HOST:PORT")
    if parts.query or parts.fragment or parts.username is not None:
        raise InvalidUrl(url, "it may have no query, fragment or user name; a token is given apart")
    return url.rstrip("/")


def _query(**given: object) -> str:
    """Return the query of a URL with the values that are given."""
    return "&".join(f"{key}={quote(str(value), safe='')}" for key, value in given.items() if value is not None)


def _frame_size(frame: Frame) -> int:
    return len(frame.data)
