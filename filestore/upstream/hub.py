"""Ask a Hub, by the downloads that are used for URLs: their rules for addresses, redirects, sizes and time hold here too.

A token of a caller is sent to the upstream itself only. No token of this server is ever sent.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from filestore.core.references import FileURL
from filestore.download.addresses import is_public
from filestore.download.download import (
    PARTIAL_NAME,
    DownloadOptions,
    PartialDownload,
    download,
)
from filestore.errors import DownloadRefused, LimitExceeded, ServerError, TransferError, UpstreamFailed
from filestore.system.files import remove_if_possible, storage_errors
from filestore.system.owners import make_private
from filestore.system.small_files import read_small
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done
from filestore.upstream.arriving import WrongSize
from filestore.upstream.listing import DOCUMENT_LIMIT, Listing, parse_listing
from filestore.upstream.options import UpstreamOptions
from filestore.upstream.refs import UpstreamRef, parse_refs

_QUESTIONS = 16
"""The most questions at the same time."""
_PARSINGS = 2
"""The most answers that are in memory to be parsed at the same time. One may have 64 MiB."""
_ANSWER_SECONDS = 10.0
"""How long the upstream may take to begin an answer to a question, and to send more of it."""
_RETRY_SECONDS = 30.0
"""How long the download of a file is tried again at most. A client that waits for it asks again, and it continues then."""
_REFUSED = (401, 403, 404)
_Parsed = TypeVar("_Parsed")


class Refused(Exception):
    """The upstream does not show a repository, or a revision, to the caller. `status` is 401, 403 or 404."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Hub:
    """The upstream, as this server reaches it."""

    def __init__(self, options: UpstreamOptions, folder: Path) -> None:
        """Answers to questions pass through `folder`."""
        self._options = options
        self._folder = folder
        self._questions = asyncio.Semaphore(_QUESTIONS)
        self._parsings = asyncio.Semaphore(_PARSINGS)

    async def describe(self, kind: str, name: str, revision: str, *, token: str | None) -> Listing:
        """Return what a revision has. Raises Refused, UpstreamFailed, StorageError."""
        url = f"{self._api(kind, name)}/revision/{quote(revision, safe='')}?blobs=true"
        return await self._ask(name, url, partial(parse_listing, name), token=token)

    async def refs(self, kind: str, name: str, *, token: str | None) -> list[UpstreamRef]:
        """Return the branches and tags of a repository. Raises Refused, UpstreamFailed, StorageError."""
        return await self._ask(name, f"{self._api(kind, name)}/refs", partial(parse_refs, name), token=token)

    async def check(self, kind: str, name: str, *, token: str) -> None:
        """Ask whether a token may read the files of a repository. Raises Refused, UpstreamFailed, StorageError."""
        await self._ask(name, f"{self._api(kind, name)}/auth-check", len, token=token)

    async def download(
        self, kind: str, name: str, commit: str, path: str, *, staging: PartialDownload, size: int, token: str | None
    ) -> None:
        """Download a file of `size` bytes to the folder of `staging`. What is there already is not asked for again.

        Raises Refused, UpstreamFailed, StorageFull, StorageError.
        """
        prefix = "" if kind == "models" else f"{kind}/"
        url = f"{self._options.base_url}/{prefix}{quote(name)}/resolve/{commit}/{quote(path)}"
        limits = self._options.limits
        limits = replace(limits, size=max(size, 1), retry_seconds=min(limits.retry_seconds, _RETRY_SECONDS))
        try:
            await download(
                FileURL(url),
                staging.path.parent,
                limits=limits,
                options=await self._download_options(),
                staging=staging,
                authorization=_header(token),
            )
        except LimitExceeded:
            raise UpstreamFailed(name, f"{path!r} has more than the {size} bytes that it says") from None
        except WrongSize as error:
            raise UpstreamFailed(name, f"{path!r} has {error.size} bytes, and {size} is what it says") from None
        except (TransferError, DownloadRefused) as error:
            raise _translated(name, error) from None

    def _api(self, kind: str, name: str) -> str:
        return f"{self._options.base_url}/api/{kind}/{quote(name)}"

    async def _ask(self, name: str, url: str, parse: Callable[[bytes], _Parsed], *, token: str | None) -> _Parsed:
        """Return what `parse` makes of the body of the answer to a question, in a thread."""
        limits = self._options.limits
        limits = replace(
            limits,
            size=DOCUMENT_LIMIT,
            first_byte_seconds=min(limits.first_byte_seconds, _ANSWER_SECONDS),
            stall_seconds=min(limits.stall_seconds, _ANSWER_SECONDS),
            retry_seconds=0,
        )
        folder = self._folder / secrets.token_hex(16)
        try:
            async with self._questions:
                await in_disk_thread(_make, folder)
                await download(
                    FileURL(url), folder, limits=limits, options=await self._download_options(), authorization=_header(token)
                )
                # It waits on disk for its turn.
                async with self._parsings:
                    with storage_errors(folder):
                        body = await in_disk_thread(partial(read_small, folder / PARTIAL_NAME, limit=DOCUMENT_LIMIT))
                    return await in_cpu_thread(parse, body)
        except LimitExceeded:
            raise UpstreamFailed(name, f"its description has more than {DOCUMENT_LIMIT} bytes") from None
        except (TransferError, DownloadRefused) as error:
            raise _translated(name, error) from None
        finally:
            await shield_until_done(in_disk_thread(remove_if_possible, folder))

    async def _download_options(self) -> DownloadOptions:
        """Return which addresses may be connected to: public ones, and those that the upstream itself was configured at.

        Raises UpstreamFailed for a server that is offline.
        """
        if self._options.is_offline:
            raise UpstreamFailed(self._options.base_url, "this server is offline, as its setting offline says")
        return DownloadOptions(is_public=await in_disk_thread(_allowing, urlsplit(self._options.url).hostname or ""))


def _allowing(host: str) -> Callable[[str], bool]:
    own: frozenset[str] = frozenset()
    with suppress(OSError, UnicodeError):
        own = frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    return lambda address: is_public(address) or address in own


def _make(folder: Path) -> None:
    with storage_errors(folder):
        make_private(folder)


def _header(token: str | None) -> str | None:
    return None if token is None else f"Bearer {token}"


def _translated(name: str, error: TransferError | DownloadRefused) -> Exception:
    if isinstance(error, ServerError) and error.status_code in _REFUSED:
        return Refused(error.status_code)
    return UpstreamFailed(name, str(error))
