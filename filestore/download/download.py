"""Download a file from a server of another party to a local file.

The server, called the origin, is not trusted (I4). Addresses, redirects, and the lengths and ranges in answers are all
checked. An address is checked when its socket is made. So the check is not evaded by a host name that resolves to
another address the second time. No token and no cookie of this machine is ever sent. A proxy is used only if a setting
names one.

An interrupted download resumes. It asks the origin for the rest of the version that it began with (If-Range). If the
origin has another version by now, it answers with the whole file. A validator is a header field, such as ETag, that
differs between versions of a file. Without one, a download starts again from the first byte.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
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
from filestore.core.references import FileURL, redact_url
from filestore.download.addresses import is_address, is_plain, is_public, network_of, parse_network
from filestore.errors import (
    DownloadRefused,
    Interrupted,
    InvalidReference,
    InvalidSetting,
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
from filestore.system.http_answers import may_try_again, said_by
from filestore.system.owners import PRIVATE_FILE
from filestore.system.proxies import parse_proxy, proxy_named_in
from filestore.system.retries import FIRST_PAUSE_SECONDS, RETRY_SECONDS, Retries
from filestore.system.small_files import read_json
from filestore.system.stalls import StallTimer
from filestore.system.threads import in_disk_thread, shield_until_done

if TYPE_CHECKING:  # aiohttp takes 0.3 s to import
    import aiohttp
    from yarl import URL

PIECE = 1 << 20
"""How many bytes are collected before they are written to the file."""
SYNC_SIZE = 32 << 20
"""After this many bytes, the file is synced and its size is saved, so that at most this much is downloaded twice."""

PARTIAL_NAME = "partial"
"""The name of the downloaded file in its folder."""
_STATE_SIZE = 16 << 10
"""The size of the state file in bytes. The longest headers that are saved fit into it."""
_VALUE_LIMIT = 4096
"""The most characters of a header field that is saved."""
_REDIRECTS = (301, 302, 303, 307, 308)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)\Z")
_NO_RANGE = re.compile(r"bytes \*/([0-9]{1,18})\Z")
_STRONG_AFTER_SECONDS = 60
"""Last-Modified identifies a version only if it is this much older than the answer. Source: RFC 7232, section 2.2.2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """The limits for downloads from URLs.

    size: The largest size of a file in bytes.
    redirects: The largest number of redirects that are followed.
    first_byte_seconds: How many seconds the server may take before it answers.
    stall_seconds: How many seconds may pass without a new byte while the server sends the file.
    private_allowed: Allow addresses that are not public, such as addresses in a local network.
    networks_refused: Networks that are never connected to, such as `("203.0.113.0/24",)`, also if `private_allowed` is set. An
        address alone is a network too.
    retry_seconds: How many seconds an origin that has answered before is tried again, counted since the last MiB that arrived.
    proxy: The URL of an HTTP proxy for all downloads. The proxy resolves host names. So the proxy, and not this
        program, must refuse addresses that are not public.
    """

    size: int = 1 << 40
    redirects: int = 10
    first_byte_seconds: float = 30
    stall_seconds: float = 30
    retry_seconds: float = RETRY_SECONDS
    private_allowed: bool = False
    networks_refused: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise InvalidSetting for a refused network that is not one."""
        try:
            for network in self.networks_refused:
                parse_network(network)
        except (AttributeError, ValueError) as error:
            raise InvalidSetting("networks_refused", str(error)) from None


DEFAULT_DOWNLOAD_LIMITS = DownloadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """Internal. What a download uses as it is, without a setting."""

    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    """The least pause before another attempt."""
    clock: Callable[[], float] = time.monotonic
    """Returns monotonic seconds. It decides for how long attempts are repeated."""
    reserved_size: int = 16 << 20
    """Most bytes that are reserved in advance while the size of the file is unknown."""
    is_public: Callable[[str], bool] = is_public
    """Whether an address is public, so that any URL may make this machine connect to it."""


DEFAULT_DOWNLOAD_OPTIONS = DownloadOptions()


class Validators(NamedTuple):
    """Header fields that identify a version of a file at its origin."""

    etag: str | None = None
    modified: str | None = None
    """The value of Last-Modified."""
    is_dated: bool = False
    """Whether `modified` is old enough to identify a version."""

    @property
    def for_range(self) -> str | None:
        """The value for If-Range, or None. A weak ETag is not used, because different bytes may have the same one."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.modified if self.is_dated else None

    def agree_with(self, begun: Validators) -> bool:
        """Return whether an answer with these validators continues the interrupted download of the version `begun`.

        The request of the answer had `begun.for_range` in its If-Range.
        """
        return self.etag == begun.etag if begun.for_range == begun.etag else self.modified == begun.modified

    def differ_from(self, begun: Validators) -> bool:
        """Return whether these validators certainly mean another version than `begun`.

        They do if both have an ETag and these differ. Without two ETags, they do if both have a Last-Modified and these
        differ.
        """
        if self.etag is not None and begun.etag is not None:
            return self.etag != begun.etag
        return None not in {self.modified, begun.modified} and self.modified != begun.modified


class DownloadResult(NamedTuple):
    """The result of a download. Sizes are in bytes."""

    path: Path
    size: int
    bytes_received: int
    bytes_resumed: int
    """How many bytes were already in the folder, from a download that was interrupted."""
    validators: Validators


async def download(
    origin: FileURL,
    folder: Path,
    *,
    limits: DownloadLimits = DEFAULT_DOWNLOAD_LIMITS,
    known: Validators | None = None,
    report: Report | None = None,
    reserve: Callable[[int], Awaitable[None]] | None = None,
    options: DownloadOptions = DEFAULT_DOWNLOAD_OPTIONS,
    staging: PartialDownload | None = None,
    authorization: str | None = None,
) -> DownloadResult | None:
    """Download the content of a URL to a file in `folder`, which must exist.

    If the origin answers that its content is still the version `known`, nothing is downloaded, and None is returned.

    The file has the bytes as the origin sends them. No Content-Encoding is requested. If `origin` has no digest, an
    answer with a Content-Encoding is refused. The file is durable but not verified: the caller must compare the digest.
    After an interrupted download, the next download to the same `folder` resumes it. Only one download at a time may
    use a folder.

    `reserve(size)` is awaited before the file grows beyond the size that was reserved last: once if the origin tells
    the size, otherwise again and again. It should raise an error if there is not enough space.

    `staging` is the file in `folder`, where the default does not do. `authorization` is the value of a header that is sent to
    the scheme, host and port of `origin` only, and never to a server that the origin redirects to.

    Raises DownloadRefused, LimitExceeded, ServerError, OriginUnreachable, Stalled, Interrupted, StorageFull, StorageError.
    """
    staging = PartialDownload(folder) if staging is None else staging
    try:
        await in_disk_thread(staging.open)
        downloader = _Downloader(
            origin,
            staging,
            limits=limits,
            known=known,
            report=report,
            reserve=reserve,
            options=options,
            authorization=authorization,
        )
        return await downloader.run()
    finally:
        await shield_until_done(in_disk_thread(staging.close))


class _Came(Enum):
    """The result of one request to the origin."""

    NOTHING_NEW = auto()
    """The origin says that the file has not changed."""
    PART = auto()
    """The announced part has arrived completely, but more of the file is missing."""
    ALL = auto()


class _Part(NamedTuple):
    """The range of bytes in an answer. `stop` is None if the answer does not announce where its bytes end."""

    start: int
    stop: int | None


class _Downloader:
    """Runs one download, with as many connections as it needs."""

    def __init__(
        self,
        origin: FileURL,
        staging: PartialDownload,
        *,
        limits: DownloadLimits,
        known: Validators | None,
        report: Report | None,
        reserve: Callable[[int], Awaitable[None]] | None = None,
        options: DownloadOptions = DEFAULT_DOWNLOAD_OPTIONS,
        authorization: str | None = None,
    ) -> None:
        self._origin = origin
        self._authorization = authorization
        self._redacted_url = origin.redacted_url
        self._staging = staging
        self._limits = limits
        self._known = known
        self._report = report
        self._reserve = reserve
        self._options = options
        self._reserved = 0
        self._received = 0
        self._resumed = staging.size
        self._refused: dict[str, str] = {}
        """Why each address that was not connected to is refused."""
        self._networks = [parse_network(network) for network in limits.networks_refused]
        self._was_reached = False
        self._proxy = parse_proxy(limits.proxy, source="url_proxy") if limits.proxy is not None else None

    async def run(self) -> DownloadResult | None:
        """Send requests until the file is complete. Raise the last error when another request would not help."""
        furthest = self._staging.size
        retries = Retries(
            retry_seconds=self._limits.retry_seconds,
            first_pause_seconds=self._options.first_pause_seconds,
            clock=self._options.clock,
        )
        async with self._session() as session:
            with retries.request() as request:
                while True:
                    try:
                        came = await self._try(session)
                        if came is _Came.NOTHING_NEW:
                            return None
                        if came is _Came.ALL:
                            break
                        if self._staging.size > furthest:
                            # A whole part is a success, however small it is: ask for the next one at once.
                            furthest = self._staging.size
                            retries.note_progress()
                            continue
                        raise Interrupted(self._redacted_url, "it sends the same part again and again")
                    except TransferError as error:
                        # A download that starts again each time makes no progress.
                        if self._staging.size - furthest >= PIECE:
                            retries.note_progress()
                        furthest = max(furthest, self._staging.size)
                        # If the host has never answered, retries would only delay the error.
                        is_there = self._was_reached or isinstance(error, Interrupted)
                        pause = request.next_pause(error) if is_there and may_try_again(error) else None
                        if pause is None:
                            raise
                    await asyncio.sleep(pause)
        await in_disk_thread(self._staging.note)
        return DownloadResult(self._staging.path, self._staging.size, self._received, self._resumed, self._staging.validators)

    async def _try(self, session: aiohttp.ClientSession) -> _Came:
        """Send one request for the bytes that are missing, and receive the answer."""
        staging = self._staging
        headers = {"Accept-Encoding": "identity"}
        if self._known is not None:
            headers |= _given({"If-None-Match": self._known.etag, "If-Modified-Since": self._known.modified})
        version = staging.validators.for_range
        if staging.size and version is not None:
            # If the file is whole already, ask for its last byte again, because there is no range after it.
            start = staging.size - (staging.size == staging.total)
            headers |= {"Range": f"bytes={start}-", "If-Range": version}
        async with self._answer(session, headers) as response:
            if response.status == HTTPStatus.NOT_MODIFIED and self._known is not None:
                return _Came.NOTHING_NEW
            part = await self._begin(response)
            return _Came.ALL if part is None else await self._receive(response, part)

    async def _begin(self, response: aiohttp.ClientResponse) -> _Part | None:
        """Check an answer. Return the range of its bytes, or None if the file is already complete.

        If the answer does not fit to the part that is here, discard this part and raise Interrupted.
        """
        if response.status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            self._check_encoding(response)
            # Some origins answer a range with status 200: the header says which bytes follow, not the status.
            said = response.headers.get("Content-Range")
            if response.status == HTTPStatus.PARTIAL_CONTENT or not (said is None or _NO_RANGE.match(said)):
                return await self._begin_part(response)
            return await self._begin_whole(response)
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if self._is_end(response):
                return None
            await self._start_over(Validators(), self._staging.total)
            raise Interrupted(self._redacted_url, "it has less than it had before")
        # The phrase that the origin sent is not used: the error has the standard one.
        error = ServerError(self._redacted_url, response.status, "")
        error.retry_after_seconds = said_by(response.headers).retry_after_seconds
        raise error

    async def _begin_whole(self, response: aiohttp.ClientResponse) -> _Part:
        """Check an answer that has the whole file, and discard the part that is here.

        The size must be the same that the origin announced before, unless the answer is certainly another version. If
        the size differs, this raises Interrupted. The new size is accepted when the origin announces it a second time.
        """
        validators = _validators(response)
        total, known = response.content_length, self._staging.total
        is_chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
        if total is None and not is_chunked and self._origin.digest is None:
            reason = "its answer has no length, so that a cut would go unnoticed; say which digest is expected"
            raise DownloadRefused(self._redacted_url, reason)
        if known is not None and not validators.differ_from(self._staging.validators):
            if total is None and validators.for_range is not None and validators.agree_with(self._staging.validators):
                total = known
            elif total is None:
                await self._start_over(validators, None)
                raise Interrupted(self._redacted_url, f"it does not say a size, and said {known} bytes before")
            elif total != known:
                await self._start_over(validators, total)
                raise Interrupted(self._redacted_url, f"it says that the file has {total} bytes, and said {known} before")
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
                # Nothing was here, so no range was asked for, and status 206 is wrong. A first part is useful if the next one can
                # be asked for.
                await self._start_over(validators, total)
                is_taken = response.status == HTTPStatus.OK and (stop == total or validators.for_range is not None)
                if is_taken and is_possible and known in {None, total}:
                    await self._reserve_more(total or stop, is_all=total is not None)
                    return _Part(0, stop)
                raise Interrupted(self._redacted_url, "it gave a part of the file, though all of it was asked for")
            if is_possible and 0 < start <= staging.size and known in {None, total} and validators.agree_with(staging.validators):
                await self._reserve_more(total or stop, is_all=total is not None)
                staging.total = total
                return _Part(start, stop)
        # If-Range forbids such an answer.
        await self._start_over(Validators(), known)
        raise Interrupted(self._redacted_url, "it gave a part of another file than it began with")

    def _is_end(self, response: aiohttp.ClientResponse) -> bool:
        """Return whether the origin refused the range because the file is already complete here.

        The end of a file of unknown size is found in this way. If the answer does not give the size, it is trusted only
        if a digest is expected, because the digest shows later whether the file is complete.
        """
        staging = self._staging
        if not staging.size or staging.total is not None or _validators(response).differ_from(staging.validators):
            return False
        found = _NO_RANGE.match(response.headers.get("Content-Range", ""))
        return staging.size == int(found[1]) if found is not None else self._origin.digest is not None

    def _check_encoding(self, response: aiohttp.ClientResponse) -> None:
        """Raise DownloadRefused if the answer is encoded and no digest is expected.

        Without a digest, nobody would notice that the file has the encoded bytes and not the content.
        """
        said = response.headers.getall("Content-Encoding", []) + response.headers.getall("Transfer-Encoding", [])
        codings = {coding.strip().lower() for line in said for coding in line.split(",")}
        unasked = ", ".join(sorted(codings - {"", "identity", "chunked"}))
        if unasked and self._origin.digest is None:
            reason = f"it answers with Content-Encoding {unasked!r}, though none was asked for"
            raise DownloadRefused(
                self._redacted_url, f"{reason}; say which digest the bytes have as they are sent, or use another URL"
            )

    async def _start_over(self, validators: Validators, total: int | None) -> None:
        self._resumed = 0
        await in_disk_thread(self._staging.begin, validators, total)

    async def _receive(self, response: aiohttp.ClientResponse, part: _Part) -> _Came:
        """Write the body of the answer to the file. Raises Interrupted if it is shorter or longer than announced."""
        staging = self._staging
        staging.size = part.start
        self._resumed = min(self._resumed, part.start)
        pieces: list[bytes] = []
        waiting = 0
        timer = StallTimer(self._limits.stall_seconds)
        try:
            while piece := await self._piece(response, timer):
                self._received += len(piece)
                end = staging.size + waiting + len(piece)
                if part.stop is not None and end > part.stop:
                    pieces = []
                    await self._start_over(Validators(), staging.total)
                    raise Interrupted(self._redacted_url, "it sent more than it said")
                await self._reserve_more(end)
                pieces.append(piece)
                waiting += len(piece)
                self._tell(end)
                if waiting >= PIECE:
                    # Cleared before the write: a cancel waits for this write, and it must not happen again below.
                    batch, pieces, waiting = pieces, [], 0
                    # Shielded, because a cancel would drop a write that still waits for a thread.
                    await shield_until_done(in_disk_thread(staging.write, batch))
        finally:
            # Bytes that arrived before a cut are not asked for again.
            if pieces:
                await shield_until_done(in_disk_thread(staging.write, pieces))
        if part.stop is not None and staging.size != part.stop:
            raise Interrupted(self._redacted_url, f"{staging.size} of {part.stop} bytes have come")
        # If the size is unknown, there may be more; only the origin can say that there is not.
        if part.stop is not None and (staging.total is None or staging.size < staging.total):
            return _Came.PART
        if staging.total is not None and staging.size != staging.total:
            raise Interrupted(self._redacted_url, f"{staging.size} of {staging.total} bytes have come")
        return _Came.ALL

    async def _piece(self, response: aiohttp.ClientResponse, timer: StallTimer) -> bytes:
        """Wait for bytes of the body, and return them, or no bytes at its end. Raises Stalled after the time limit."""
        began = timer.began()
        try:
            async with asyncio.timeout(timer.left()):
                piece = await response.content.readany()
        except TimeoutError:
            raise Stalled(self._redacted_url, self._limits.stall_seconds) from None
        timer.ended(began)
        timer.count(len(piece))
        return piece

    async def _reserve_more(self, size: int, *, is_all: bool = False) -> None:
        """Reserve `size` bytes for the file, and more in advance unless `is_all`. Raises LimitExceeded."""
        if size > self._limits.size:
            raise LimitExceeded(f"the size of {self._redacted_url}", size, self._limits.size, "url_size_limit")
        if self._reserve is not None and size > self._reserved:
            # Twice the size: a small file needs little room, and a growing one seldom asks again.
            ahead = 0 if is_all else min(max(size, PIECE), self._options.reserved_size)
            try:
                await self._reserve(size + ahead)
            except StorageFull:
                if not ahead:
                    raise
                ahead = 0  # the file may be near its end
                await self._reserve(size)
            self._reserved = size + ahead

    def _tell(self, done: int) -> None:
        if self._report is not None:
            total = self._staging.total
            self._report(Progress(done if total is None else total, done, self._received, self._resumed, self._resumed))

    # Below: requests.

    @asynccontextmanager
    async def _answer(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and give the answer after all redirects.

        Each error of aiohttp, also while the block reads the answer, is raised as a FilestoreError.
        """
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            async with await self._first(session, headers) as response:
                self._was_reached = True
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise OriginUnreachable(self._redacted_url, failure_reason(error)) from None
        except aiohttp.ClientConnectorError as error:
            if self._refused:
                raise DownloadRefused(self._redacted_url, self._refusal()) from None
            raise self._unreachable(failure_reason(error)) from None
        except aiohttp.ClientHttpProxyError as error:
            raise self._unreachable(f"the proxy answered {error.status}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Interrupted(self._redacted_url, failure_reason(error)) from None

    async def _first(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Wait for the header of the answer. Name resolution, connections, TLS and redirects share one time limit."""
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            async with asyncio.timeout(self._limits.first_byte_seconds):
                return await self._follow(session, headers)
        except TimeoutError:
            seconds = self._limits.first_byte_seconds
            if self._proxy is None and proxy_named_in(os.environ, self._origin.url) is not None:
                # A network that allows only its proxy to connect mostly drops everything else without an answer.
                raise self._unreachable(f"it moved no byte for {seconds:g} seconds") from None
            raise Stalled(self._redacted_url, seconds) from None
        except (aiohttp.InvalidURL, UnicodeError):  # the latter of a name that DNS cannot have
            raise DownloadRefused(self._redacted_url, "its host is malformed") from None

    async def _follow(self, session: aiohttp.ClientSession, headers: dict[str, str]) -> aiohttp.ClientResponse:
        url = urldefrag(self._origin.url).url
        seen: set[str] = set()
        while len(seen) <= self._limits.redirects:
            seen.add(url)
            response = await session.get(
                _encoded(url), headers=headers | self._credentials(url), allow_redirects=False, **self._by_proxy(url)
            )
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            response.close()
            url = self._next(url, location)
            if url in seen:
                raise DownloadRefused(self._redacted_url, f"it redirects in a circle, by {redact_url(url)}")
        raise DownloadRefused(self._redacted_url, f"it redirects more than {self._limits.redirects} times")

    def _credentials(self, url: str) -> dict[str, str]:
        """Return the header with the credentials for the origin. Return none for any other server."""
        is_origin = self._authorization is not None and _server_of(url) == _server_of(self._origin.url)
        return _given({"Authorization": self._authorization if is_origin else None})

    def _by_proxy(self, url: str) -> dict[str, Any]:
        """Return the arguments for aiohttp to reach `url` through the proxy, or none without a proxy.

        Raises DownloadRefused if `url` has an address that may not be connected to. A name is resolved by the proxy.
        """
        if self._proxy is None:
            return {}
        host = urlsplit(url).hostname or ""
        if is_address(host) and not self._may_connect(host):
            raise DownloadRefused(self._redacted_url, self._refusal())
        sent = {"Proxy-Authorization": self._proxy.authorization} if self._proxy.authorization is not None else {}
        return {"proxy": self._proxy.url, "proxy_headers": sent}

    def _unreachable(self, reason: str) -> OriginUnreachable:
        """Make the error for a failed connection. It also tells the user about proxies.

        It names the proxy that was used, or the environment variable of a proxy that was not used.
        """
        named = proxy_named_in(os.environ, self._origin.url)
        if self._proxy is not None:
            reason += f"; the setting url_proxy has it downloaded by the proxy {self._proxy.url}"
        elif named is not None:
            reason += f"; {named[0]} names a proxy, which downloads use only where the setting url_proxy says so"
        else:
            return OriginUnreachable(self._redacted_url, reason)
        return OriginUnreachable(self._redacted_url, reason, hint="url-proxy")

    def _next(self, url: str, location: str) -> str:
        """Return the target of a redirect. Raises DownloadRefused if it is not allowed."""
        try:
            target = FileURL(urldefrag(urljoin(url, location)).url)
        except (InvalidReference, ValueError) as error:
            reason = str(error) if isinstance(error, InvalidReference) else "it is malformed"
            raise DownloadRefused(self._redacted_url, f"it redirects to a URL that cannot be downloaded from: {reason}") from None
        if (urlsplit(url).scheme, urlsplit(target.url).scheme) == ("https", "http"):
            raise DownloadRefused(
                self._redacted_url, f"it redirects from https to {target.redacted_url}, which anyone on the way could change"
            )
        return target.url

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        import aiohttp  # noqa: PLC0415  # on first use

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, force_close=True, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # each wait has its own limit
            headers={"User-Agent": "filestore"},
            auto_decompress=False,
            trust_env=False,  # no proxy, and no netrc
            read_bufsize=PIECE,
            middlewares=(self._send_once,),
        ) as session:
            yield session

    async def _send_once(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Send a request only once. Without this, aiohttp repeats a GET request after these errors."""
        import aiohttp  # noqa: PLC0415  # on first use

        try:
            return await send(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise Interrupted(self._redacted_url, failure_reason(error)) from None

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Make the socket for an address of the origin or the proxy. Raises OSError if the address is not allowed."""
        family, kind, protocol, _, place = address
        # With a proxy, this machine connects to the proxy alone, which the user has named.
        if self._proxy is None and not self._may_connect(str(place[0])):
            raise OSError(f"{place[0]} is refused")
        return socket.socket(family, kind, protocol)

    def _may_connect(self, address: str) -> bool:
        """Return whether a download may connect to an address. If not, note the reason."""
        network = network_of(address, self._networks)
        if network is not None:
            self._refused[address] = f"which is in {network}; the setting url_networks_refused refuses it"
        elif not self._limits.private_allowed and not self._options.is_public(address):
            self._refused[address] = "which is not a public address; the setting url_private_allowed allows it"
        elif self._networks and not is_plain(address):
            # Only a host of a URL that a proxy would connect to has such a form.
            self._refused[address] = "which cannot be compared with url_networks_refused; write it as four numbers or as IPv6"
        return address not in self._refused

    def _refusal(self) -> str:
        """Return why nothing was connected to. Addresses with the same reason are named together."""
        addresses: dict[str, list[str]] = {}
        for address in sorted(self._refused):
            addresses.setdefault(self._refused[address], []).append(address)
        return "; ".join(f"it leads to {', '.join(named)}, {reason}" for reason, named in addresses.items())


class PartialDownload:
    """The file of a download, and a state file next to it. The methods block, so call them in a thread.

    Only `write` adds bytes to the file, and only `begin` takes some away.
    """

    def __init__(self, folder: Path) -> None:
        """Make the object. No file is opened yet."""
        self.path = folder / PARTIAL_NAME
        self.size = 0
        """How many bytes of the file are here, from its start."""
        self.total: int | None = None
        """The size of the whole file. None if the origin has not announced it."""
        self.validators = Validators()
        self.descriptor = -1
        """The open file."""
        self._state = folder / "state.json"
        self._noted = 0

    def open(self) -> None:
        """Open the file, or make it. Bytes that the state file does not confirm are cut off.

        Raises StorageFull, StorageError.
        """
        with storage_errors(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self.descriptor = os.open(self.path, flags, PRIVATE_FILE)
            there = os.fstat(self.descriptor).st_size
        with suppress(OSError, ValueError, KeyError, TypeError):
            state = read_json(self._state)
            size, total, validators = state["size"], state["total"], validators_from(state["validators"])
            is_number = type(size) is int and (total is None or type(total) is int)
            # After a crash of the machine, only bytes that were synced before they were noted are certain.
            if is_number and 0 <= size <= there and (total is None or size <= total):
                self.total, self.validators = total, validators
                self.size = self.certain_size(size, there)
        self._noted = self.size
        self.cut()

    def certain_size(self, noted: int, there: int) -> int:  # noqa: ARG002  # for others
        """Return how many of the bytes that are there count, of which `noted` were synced."""
        return noted

    def begin(self, validators: Validators, total: int | None) -> None:
        """Start the file again, without any bytes. Raises StorageFull if `total` bytes do not fit, and StorageError."""
        self.size, self.total, self.validators = 0, total, validators
        # The state comes before the bytes, so that it never describes bytes that are not there.
        self._write_state()
        self.cut()
        if total is not None:
            check_space(self.descriptor, total, where=self.path.parent)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append bytes to the file. Raises StorageFull, StorageError."""
        with storage_errors(self.path):
            for piece in pieces:
                written = 0
                while written < len(piece):
                    # Counted at once: what a disk took before it was full is not asked for again.
                    count = os.pwrite(self.descriptor, memoryview(piece)[written:], self.size)
                    self.size += count
                    written += count
        if self.size - self._noted >= SYNC_SIZE:
            self.note()

    def note(self) -> None:
        """Sync the file and save its size, so that the next download can continue there.

        Raises StorageFull, StorageError.
        """
        with storage_errors(self.path):
            sync_descriptor(self.descriptor)
        self._write_state()

    def close(self) -> None:
        """Save the size of the file, and close it. If the file was never opened, do nothing."""
        if self.descriptor < 0:
            return
        if self.size != self._noted:
            with suppress(StorageError):
                self.note()
        os.close(self.descriptor)
        self.descriptor = -1

    def cut(self) -> None:
        """Take the bytes from `size` on from the file. Raises StorageFull, StorageError."""
        with storage_errors(self.path):
            os.ftruncate(self.descriptor, self.size)

    def _write_state(self) -> None:
        state = json.dumps({"size": self.size, "total": self.total, "validators": self.validators}).encode()
        with storage_errors(self.path):
            descriptor = os.open(self._state, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
            try:
                # Written in place with a constant size, for which a disk that has just filled up has room. It is not synced:
                # after a crash of the machine, an older state describes fewer bytes, and a torn one is ignored.
                write_at(descriptor, state.ljust(_STATE_SIZE), 0)
            finally:
                os.close(descriptor)
        self._noted = self.size


def validators_from(values: Any) -> Validators:
    """Return the validators from their JSON form. Raises ValueError or TypeError if they are not valid."""
    etag, modified, is_dated = values
    if any(value is not None and _header_value(value) is None for value in (etag, modified)) or type(is_dated) is not bool:
        raise ValueError("these are not validators")
    return Validators(etag, modified, is_dated)


def _header_value(value: object) -> str | None:
    """Return `value` if it is a header value that can be sent back unchanged. Return None otherwise."""
    is_sendable = isinstance(value, str) and 0 < len(value) <= _VALUE_LIMIT and value.isascii() and value.isprintable()
    return str(value) if is_sendable else None


def _validators(response: aiohttp.ClientResponse) -> Validators:
    # A value that cannot be sent back unchanged is of no use.
    etag, modified = (_header_value(response.headers.get(name)) for name in ("ETag", "Last-Modified"))
    is_dated = False
    with suppress(ValueError, TypeError, OverflowError):
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(modified or "")
        is_dated = age.total_seconds() >= _STRONG_AFTER_SECONDS
    return Validators(etag, modified, is_dated)


def _given(headers: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if value is not None}


def _server_of(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _encoded(url: str) -> str | URL:
    """Return the URL for aiohttp, unchanged if possible: a signature in the query may depend on every character."""
    from yarl import URL  # noqa: PLC0415  # on first use

    return URL(url, encoded=True) if url.isascii() and " " not in url else url
