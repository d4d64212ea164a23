"""Download: what is behind a URL of someone else's becomes a local file.

Nothing is trusted here (I4): not where a name or a redirect leads to, not what an origin says of lengths and ranges. The address
is checked on the socket that connects to it, so that a name which resolves otherwise a second time gains nothing. No token,
cookie of this machine's is ever used, and a proxy only where a setting names one.

What was cut is resumed: the origin is asked for the rest of the very version that was begun (If-Range), and answers with all of
another where there is one. Without a validator that tells versions apart, a download begins anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

from filestore.core.progress import Progress, Report
from filestore.core.records import parse_json
from filestore.core.references import FileURL, redact_url
from filestore.download.addresses import is_address, is_public
from filestore.errors import (
    DownloadRefused,
    Interrupted,
    InvalidReference,
    LimitExceeded,
    OriginUnreachable,
    ServerError,
    Stalled,
    StorageError,
    StorageFull,
    TransferError,
)
from filestore.system.connection_errors import failure_reason
from filestore.system.files import check_space, storage_errors, sync_descriptor, write_at
from filestore.system.http_answers import may_try_again, pause_seconds, said_by
from filestore.system.proxies import parse_proxy, proxy_named_in
from filestore.system.threads import in_disk_thread, shield_until_done

if TYPE_CHECKING:  # aiohttp takes 0.3 s to import
    import aiohttp
    from yarl import URL

ATTEMPTS = 6
"""Connections in a row that may fail without a MiB of progress."""
FIRST_PAUSE_SECONDS = 0.2
PIECE = 1 << 20
"""Bytes that are written at once."""
RESERVED_SIZE = 16 << 20
"""Bytes that are reserved ahead at most, where nobody knows how many will come."""
SYNC_SIZE = 32 << 20
"""Bytes after which what was written is made durable and noted: more than that is never downloaded twice."""

PARTIAL_NAME = "partial"
"""What the file is called in its folder."""
_STATE_SIZE = 16 << 10
"""More bytes than headers may have that are kept."""
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)\Z")
_NO_RANGE = re.compile(r"bytes \*/([0-9]{1,18})\Z")
_STRONG_AFTER_SECONDS = 60
"""How much older than its answer a Last-Modified must be to tell versions apart. Source: RFC 7232, section 2.2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """What a URL may ask of this machine when a cache downloads from it."""

    size: int = 1 << 40
    """Bytes that a file may have."""
    redirects: int = 10
    """Number of redirects that are followed."""
    first_byte_seconds: float = 30
    """How long the server may take before it answers."""
    stall_seconds: float = 30
    """How long the server may send no byte."""
    private_allowed: bool = False
    """Allow addresses that are not public, such as those of a local network."""
    proxy: str | None = field(default=None, repr=False)
    """The URL of an HTTP proxy that downloads go through. The proxy resolves host names, so that it decides about addresses."""


DEFAULT_DOWNLOAD_LIMITS = DownloadLimits()


class Validators(NamedTuple):
    """What an origin says by which a version of a file is known again."""

    etag: str | None = None
    modified: str | None = None
    """Its Last-Modified."""
    is_dated: bool = False
    """`modified` is old enough to tell versions apart."""

    @property
    def for_range(self) -> str | None:
        """What If-Range may say: a weak ETag stands for other bytes too."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.modified if self.is_dated else None

    def agree_with(self, begun: Validators) -> bool:
        """Whether a part that came with these is of the version that was begun: If-Range named one, and only that must come."""
        return self.etag == begun.etag if begun.for_range == begun.etag else self.modified == begun.modified

    def differ_from(self, begun: Validators) -> bool:
        """Whether an answer with these is surely of another version: both say by what theirs is known, and it is not the same."""
        if self.etag is not None and begun.etag is not None:
            return self.etag != begun.etag
        return None not in {self.modified, begun.modified} and self.modified != begun.modified


class DownloadResult(NamedTuple):
    """What a download did, in bytes."""

    path: Path
    size: int
    bytes_received: int
    bytes_resumed: int
    """Those that were here from a download that was cut."""
    validators: Validators


async def download(
    origin: FileURL,
    folder: Path,
    *,
    limits: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
    known: Validators | None = None,
    report: Report | None = None,
    reserve: Callable[[int], Awaitable[None]] | None = None,
) -> DownloadResult | None:
    """Make a file in `folder`, an existing one, of what is behind a URL; None where that is still what `known` says.

    The bytes are those that are sent: no Content-Encoding is asked for, and one is refused unless a digest is expected.
    The file is durable, but not verified: the caller compares an expected digest. Broken off, `folder` holds what the next
    download to it continues; one at a time may use it.
    `reserve` is awaited with the bytes that the file will have, before they are written; where nobody knows, with a few more
    now and then, and says by raising that there is no room for them.

    Raises DownloadRefused, LimitExceeded, ServerError, OriginUnreachable, Stalled, Interrupted, StorageFull, StorageError.
    """
    staging = _PartialDownload(folder)
    try:
        await in_disk_thread(staging.open)
        return await _Downloader(origin, staging, limits=limits, known=known, report=report, reserve=reserve).run()
    finally:
        await shield_until_done(in_disk_thread(staging.close))


class _Came(Enum):
    """What one request has brought."""

    NOTHING_NEW = auto()
    """The origin says that the file has not changed."""
    PART = auto()
    """A part, as long as the answer said, and not the last one."""
    ALL = auto()


class _Part(NamedTuple):
    """What an answer brings: the bytes from `start` to `stop`, the end of them unknown where that is None."""

    start: int
    stop: int | None


class _Downloader:
    """One download under way, over as many connections as it takes."""

    def __init__(
        self,
        origin: FileURL,
        staging: _PartialDownload,
        *,
        limits: DownloadLimits,
        known: Validators | None,
        report: Report | None,
        reserve: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._origin = origin
        self._shown = origin.shown
        self._staging = staging
        self._limits = limits
        self._known = known
        self._report = report
        self._reserve = reserve
        self._reserved = 0
        self._received = 0
        self._resumed = staging.size
        self._refused: set[str] = set()
        self._was_reached = False
        self._proxy = parse_proxy(limits.proxy, source="url_proxy") if limits.proxy is not None else None

    async def run(self) -> DownloadResult | None:
        """Try until it is whole, or there is no point in it."""
        failures, furthest = 0, self._staging.size
        async with self._session() as session:
            while True:
                try:
                    came = await self._try(session)
                    if came is _Came.NOTHING_NEW:
                        return None
                    if came is _Came.ALL:
                        break
                    if self._staging.size > furthest:
                        # A part that came as a whole is no failure, however small it is: the next one is asked for at once.
                        furthest = self._staging.size
                        continue
                    raise Interrupted(self._shown, "it sends the same part again and again")
                except TransferError as error:
                    # What begins anew again and again comes no further.
                    failures = 0 if self._staging.size - furthest >= PIECE else failures + 1
                    furthest = max(furthest, self._staging.size)
                    # A host that never answered is not there: saying so at once beats waiting for it.
                    is_there = self._was_reached or isinstance(error, Interrupted)
                    if not may_try_again(error) or not is_there or failures == ATTEMPTS:
                        raise
                    pause = FIRST_PAUSE_SECONDS * 2**failures * random.uniform(0.5, 1.5)  # noqa: S311  # no secret
                    pause = pause_seconds(error, pause)
                await asyncio.sleep(pause)
        await in_disk_thread(self._staging.note)
        return DownloadResult(self._staging.path, self._staging.size, self._received, self._resumed, self._staging.validators)

    async def _try(self, session: aiohttp.ClientSession) -> _Came:
        """Ask for what is still to come, and take it."""
        staging = self._staging
        headers = {"Accept-Encoding": "identity"}
        if self._known is not None:
            headers |= _given({"If-None-Match": self._known.etag, "If-Modified-Since": self._known.modified})
        version = staging.validators.for_range
        if staging.size and version is not None:
            # Of a file that is whole already, the last byte is asked for again: there is no range after it.
            start = staging.size - (staging.size == staging.total)
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        async with self._answer(session, headers) as response:
            if response.status == HTTPStatus.NOT_MODIFIED and self._known is not None:
                return _Came.NOTHING_NEW
            part = await self._begin(response)
            return _Came.ALL if part is None else await self._take(response, part)

    async def _begin(self, response: aiohttp.ClientResponse) -> _Part | None:
        """What the answer brings; staging begins anew, where it does not go on from there. None: all is here already."""
        if response.status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            self._check_encoding(response)
            # Some origins answer a range with status 200: the header says which bytes come, whatever the status is.
            said = response.headers.get("Content-Range")
            if response.status == HTTPStatus.PARTIAL_CONTENT or not (said is None or _NO_RANGE.match(said)):
                return await self._begin_part(response)
            return await self._begin_whole(response)
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if self._is_end(response):
                return None
            await self._start_over(Validators(), self._staging.total)
            raise Interrupted(self._shown, "it has less than it had before")
        error = ServerError(self._shown, response.status, _phrase(response.status))
        error.retry_after_seconds = said_by(response.headers).retry_after_seconds
        raise error

    async def _begin_whole(self, response: aiohttp.ClientResponse) -> _Part:
        """All of the file, from its first byte on.

        A size that the origin said before is compared: of the same version it must be the same, and where no version is known
        the origin must say another size twice.
        """
        validators = _validators(response)
        total, known = response.content_length, self._staging.total
        is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if total is None and not is_chunked and self._origin.digest is None:
            reason = "its answer has no length, so that a cut would go unnoticed; say which digest is expected"
            raise DownloadRefused(self._shown, reason)
        if known is not None and not validators.differ_from(self._staging.validators):
            if total is None and validators.for_range is not None and validators.agree_with(self._staging.validators):
                total = known
            elif total is None:
                await self._start_over(validators, None)
                raise Interrupted(self._shown, f"it does not say a size, and said {known} bytes before")
            elif total != known:
                await self._start_over(validators, total)
                raise Interrupted(self._shown, f"it says that the file has {total} bytes, and said {known} before")
        await self._reserve_more(total or 0, is_all=total is not None)
        await self._start_over(validators, total)
        return _Part(0, total)

    async def _begin_part(self, response: aiohttp.ClientResponse) -> _Part:
        staging = self._staging
        validators, known = _validators(response), staging.total
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if found is not None:
            start, stop = int(found[1]), int(found[2]) + 1
            total = known if found[3] == "*" else int(found[3])
            is_possible = start < stop <= (stop if total is None else total)
            if start == 0 and not staging.size:
                # Nothing was here, so that no range was asked for; status 206 is then a lie. A first part is of use where the
                # next one can be asked for.
                await self._start_over(validators, total)
                is_taken = response.status == HTTPStatus.OK and (stop == total or validators.for_range is not None)
                if is_taken and is_possible and known in {None, total}:
                    await self._reserve_more(total or stop, is_all=total is not None)
                    return _Part(0, stop)
                raise Interrupted(self._shown, "it gave a part of the file, though all of it was asked for")
            if is_possible and 0 < start <= staging.size and known in {None, total} and validators.agree_with(staging.validators):
                await self._reserve_more(total or stop, is_all=total is not None)
                staging.total = total
                return _Part(start, stop)
        # What If-Range forbids.
        await self._start_over(Validators(), known)
        raise Interrupted(self._shown, "it gave a part of another file than it began with")

    def _is_end(self, response: aiohttp.ClientResponse) -> bool:
        """Whether a range could not be given because all bytes are here, which is how a file without a known size ends.

        An answer that does not say the size is believed where a digest is expected, which tells whether it is true.
        """
        staging = self._staging
        if not staging.size or staging.total is not None or _validators(response).differ_from(staging.validators):
            return False
        found = _NO_RANGE.match(response.headers.get("Content-Range", ""))
        return staging.size == int(found[1]) if found is not None else self._origin.digest is not None

    def _check_encoding(self, response: aiohttp.ClientResponse) -> None:
        """Only `identity` was asked for: what is encoded all the same would be stored as it came, under the file's name.

        Where a digest is expected, that says whether it is right. Raises DownloadRefused.
        """
        said = response.headers.getall("Content-Encoding", []) + response.headers.getall("Transfer-Encoding", [])
        codings = {coding.strip().lower() for line in said for coding in line.split(",")}
        unasked = ", ".join(sorted(codings - {"", "identity", "chunked"}))
        if unasked and self._origin.digest is None:
            reason = f"it answers with Content-Encoding {unasked!r}, though none was asked for"
            raise DownloadRefused(self._shown, f"{reason}; say which digest the bytes have as they are sent, or use another URL")

    async def _start_over(self, validators: Validators, total: int | None) -> None:
        self._resumed = 0
        await in_disk_thread(self._staging.begin, validators, total)

    async def _take(self, response: aiohttp.ClientResponse, part: _Part) -> _Came:
        """Write what comes. Raises Interrupted where it is not all that was to come, or more."""
        staging = self._staging
        staging.size = part.start
        self._resumed = min(self._resumed, part.start)
        pieces: list[bytes] = []
        waiting = 0
        try:
            while piece := await self._piece(response):
                self._received += len(piece)
                end = staging.size + waiting + len(piece)
                if part.stop is not None and end > part.stop:
                    pieces = []
                    await self._start_over(Validators(), staging.total)
                    raise Interrupted(self._shown, "it sent more than it said")
                await self._reserve_more(end)
                pieces.append(piece)
                waiting += len(piece)
                self._tell(end)
                if waiting >= PIECE:
                    # Taken before it is written: what a cancel waits for must not be written again below.
                    batch, pieces, waiting = pieces, [], 0
                    # Where all threads are busy, a cancel would otherwise drop a write that has not begun.
                    await shield_until_done(in_disk_thread(staging.write, batch))
        finally:
            # What has come before a cut is not asked for again.
            if pieces:
                await shield_until_done(in_disk_thread(staging.write, pieces))
        if part.stop is not None and staging.size != part.stop:
            raise Interrupted(self._shown, f"{staging.size} of {part.stop} bytes have come")
        # Where nobody knows the size, there may be more: only the origin can say that there is not.
        if part.stop is not None and (staging.total is None or staging.size < staging.total):
            return _Came.PART
        if staging.total is not None and staging.size != staging.total:
            raise Interrupted(self._shown, f"{staging.size} of {staging.total} bytes have come")
        return _Came.ALL

    async def _piece(self, response: aiohttp.ClientResponse) -> bytes:
        """What has come, as much as there is; nothing at its end. Raises Stalled."""
        try:
            async with asyncio.timeout(self._limits.stall_seconds):
                return await response.content.readany()
        except TimeoutError:
            raise Stalled(self._shown, self._limits.stall_seconds) from None

    async def _reserve_more(self, size: int, *, is_all: bool = False) -> None:
        """For `size` bytes of the file, and for a few more where they are not all. Raises LimitExceeded."""
        if size > self._limits.size:
            raise LimitExceeded(f"the size of {self._shown}", size, self._limits.size, "url_size_limit")
        if self._reserve is not None and size > self._reserved:
            # As much again: what is small needs little room, and what grows asks seldom.
            ahead = 0 if is_all else min(max(size, PIECE), RESERVED_SIZE)
            try:
                await self._reserve(size + ahead)
            except StorageFull:
                if not ahead:
                    raise
                ahead = 0  # it may be near its end
                await self._reserve(size)
            self._reserved = size + ahead

    def _tell(self, done: int) -> None:
        if self._report is not None:
            total = self._staging.total
            self._report(Progress(done if total is None else total, done, self._received, self._resumed, self._resumed))

    # Below: requests.

    @asynccontextmanager
    async def _answer(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer behind all redirects, whose failures, those of reading it included, become errors of ours."""
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            async with await self._first(session, headers) as response:
                self._was_reached = True
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise OriginUnreachable(self._shown, failure_reason(error)) from None
        except aiohttp.ClientConnectorError as error:
            if self._refused:
                reason = f"it leads to {', '.join(sorted(self._refused))}, which is no public address"
                raise DownloadRefused(self._shown, f"{reason}; the setting url_private_allowed allows it") from None
            raise self._unreachable(failure_reason(error)) from None
        except aiohttp.ClientHttpProxyError as error:
            raise self._unreachable(f"the proxy answered {error.status}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Interrupted(self._shown, failure_reason(error)) from None

    async def _first(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The head of the answer. One limit for all that comes before it: names, connections, TLS, redirects."""
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            async with asyncio.timeout(self._limits.first_byte_seconds):
                return await self._follow(session, headers)
        except TimeoutError:
            seconds = self._limits.first_byte_seconds
            if self._proxy is None and proxy_named_in(os.environ, self._origin.url) is not None:
                # How a network that lets only its proxy out mostly answers: not at all.
                raise self._unreachable(f"it moved no byte for {seconds:g} seconds") from None
            raise Stalled(self._shown, seconds) from None
        except (aiohttp.InvalidURL, UnicodeError):  # the latter of a name that DNS cannot have
            raise DownloadRefused(self._shown, "its host is malformed") from None

    async def _follow(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> aiohttp.ClientResponse:
        url = urldefrag(self._origin.url).url
        seen: set[str] = set()
        while len(seen) <= self._limits.redirects:
            seen.add(url)
            response = await session.get(_encoded(url), headers=headers, allow_redirects=False, **self._by_proxy(url))
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            response.close()
            url = self._next(url, location)
            if url in seen:
                raise DownloadRefused(self._shown, f"it redirects in a circle, by {redact_url(url)}")
        raise DownloadRefused(self._shown, f"it redirects more than {self._limits.redirects} times")

    def _by_proxy(self, url: str) -> dict[str, Any]:
        """What aiohttp is told, to reach `url` by the proxy, if there is one. Raises DownloadRefused."""
        if self._proxy is None:
            return {}
        host = urlsplit(url).hostname or ""
        if not self._limits.private_allowed and is_address(host) and not is_public(host):
            raise DownloadRefused(
                self._shown, f"it leads to {host}, which is no public address; the setting url_private_allowed allows it"
            )
        sent = {"Proxy-Authorization": self._proxy.authorization} if self._proxy.authorization is not None else {}
        return {"proxy": self._proxy.url, "proxy_headers": sent}

    def _unreachable(self, reason: str) -> OriginUnreachable:
        """Why there was no connection, with the proxy that was used, or was not used although the environment names one."""
        named = proxy_named_in(os.environ, self._origin.url)
        if self._proxy is not None:
            reason += f"; the setting url_proxy has it downloaded by the proxy {self._proxy.url}"
        elif named is not None:
            reason += f"; {named[0]} names a proxy, which downloads use only where the setting url_proxy says so"
        else:
            return OriginUnreachable(self._shown, reason)
        return OriginUnreachable(self._shown, reason, hint="url-proxy")

    def _next(self, url: str, location: str) -> str:
        """Where a redirect leads to. Raises DownloadRefused."""
        try:
            target = FileURL(urldefrag(urljoin(url, location)).url)
        except (InvalidReference, ValueError) as error:
            reason = str(error) if isinstance(error, InvalidReference) else "it is malformed"
            raise DownloadRefused(self._shown, f"it redirects to what is no URL to download from: {reason}") from None
        if (urlsplit(url).scheme, urlsplit(target.url).scheme) == ("https", "http"):
            raise DownloadRefused(self._shown, f"it redirects from https to {target.shown}, which anyone on the way could change")
        return target.url

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        import aiohttp  # noqa: PLC0415  # on first use

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, force_close=True, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # what waits here has limits of its own
            headers={"User-Agent": "filestore"},
            auto_decompress=False,
            trust_env=False,  # no proxy, and no netrc
            read_bufsize=PIECE,
            middlewares=(self._send_once,),
        ) as session:
            yield session

    async def _send_once(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Keep aiohttp from asking a second time, which it does for a GET after these errors."""
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            return await send(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise Interrupted(self._shown, failure_reason(error)) from None

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """The socket that connects to an address, of which a name may have several. Raises OSError for one that is not public."""
        family, kind, protocol, _, place = address
        # Through a proxy, the only address that this machine connects to is the proxy's, which the user has named.
        if self._proxy is None and not (self._limits.private_allowed or is_public(place[0])):
            self._refused.add(str(place[0]))
            raise OSError(f"{place[0]} is no public address")
        return socket.socket(family, kind, protocol)


class _PartialDownload:
    """The file that is downloaded to, and beside it what is known of it. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing yet."""
        self.path = folder / PARTIAL_NAME
        self.size = 0
        """Bytes that are there, from the start on."""
        self.total: int | None = None
        """Bytes that the whole file has, where the origin says so."""
        self.validators = Validators()
        self._state = folder / "state.json"
        self._noted = 0
        self._descriptor = -1

    def open(self) -> None:
        """Find or make the file. Raises StorageFull, StorageError."""
        with storage_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o666)
            there = os.fstat(self._descriptor).st_size
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = parse_json(self._state.read_bytes())
            size, total, validators = state["size"], state["total"], validators_from(state["validators"])
            is_number = type(size) is int and (total is None or type(total) is int)
            # Only what was synced before it was noted is there after a crash of the machine.
            if is_number and 0 <= size <= there and (total is None or size <= total):
                self.size, self.total, self.validators = size, total, validators
        self._noted = self.size
        self._cut()

    def begin(self, validators: Validators, total: int | None) -> None:
        """Forget what is there. Raises StorageFull, when `total` bytes cannot fit, and StorageError."""
        self.size, self.total, self.validators = 0, total, validators
        # First what is said of the bytes, then the bytes: never is something said of bytes that are not there.
        self._write_state()
        self._cut()
        if total is not None:
            check_space(self._descriptor, total, where=self.path.parent)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Add to what is there. Raises StorageFull, StorageError."""
        with storage_errors(self.path):
            for piece in pieces:
                self.size += write_at(self._descriptor, piece, self.size)
        if self.size - self._noted >= SYNC_SIZE:
            self.note()

    def note(self) -> None:
        """Make durable what is there, so that the next download goes on from it. Raises StorageFull, StorageError."""
        with storage_errors(self.path):
            sync_descriptor(self._descriptor)
        self._write_state()

    def close(self) -> None:
        """Note what is there, and give the descriptor back; safe where it was never opened."""
        if self._descriptor < 0:
            return
        if self.size != self._noted:
            with suppress(StorageError):
                self.note()
        os.close(self._descriptor)

    def _cut(self) -> None:
        with storage_errors(self.path):
            os.ftruncate(self._descriptor, self.size)

    def _write_state(self) -> None:
        state = json.dumps({"size": self.size, "total": self.total, "validators": self.validators}).encode()
        with storage_errors(self.path):
            descriptor = os.open(self._state, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                # In place, and no longer than it is: a disk that has just filled up has room for that. Not synced: an older
                # state that a crash of the machine brings back says less, and a torn one nothing.
                write_at(descriptor, state.ljust(_STATE_SIZE), 0)
            finally:
                os.close(descriptor)
        self._noted = self.size


def validators_from(values: Any) -> Validators:
    """What was written down as JSON, checked. Raises ValueError, TypeError."""
    etag, modified, is_dated = values
    if any(value is not None and _header_value(value) is None for value in (etag, modified)) or type(is_dated) is not bool:
        raise ValueError("these are no validators")
    return Validators(etag, modified, is_dated)


def _header_value(value: object) -> str | None:
    """A header's value, if it can be sent back as it came."""
    return value if isinstance(value, str) and value and value.isascii() and value.isprintable() else None


def _validators(response: aiohttp.ClientResponse) -> Validators:
    # What could not be sent back as it came is of no use.
    etag, modified = (_header_value(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
    is_dated = False
    with suppress(ValueError, TypeError, OverflowError):
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(modified or "")
        is_dated = age.total_seconds() >= _STRONG_AFTER_SECONDS
    return Validators(etag, modified, is_dated)


def _phrase(status: int) -> str:
    """What a status means, by the standard and not by whoever answered."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no explanation"


def _given(headers: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if value is not None}


def _encoded(url: str) -> str | URL:
    """A URL as it goes over the wire: as it was given where it can, since a signature may cover each letter of it."""
    from yarl import URL  # noqa: PLC0415  # on first use

    return URL(url, encoded=True) if url.isascii() and " " not in url else url
