"""Keep what decides about JSON Web Tokens up to date: files that are read again and again, and a URL that is fetched.

What cannot be read or is not valid changes nothing: the last valid content stays, and the log says so once.
"""

from __future__ import annotations

import asyncio
import logging
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import aiohttp

from filestore.errors import FilestoreError, InvalidContent
from filestore.http.server.jwt_keys import PublicKey, parse_keys
from filestore.system.threads import in_disk_thread

logger = logging.getLogger("filestore.access")

T = TypeVar("T")

SIZE_LIMIT = 1 << 20
"""The most bytes of a file or an answer."""
REFRESH_SECONDS = 600.0
"""The time between two fetches of a URL."""
FAILED_SECONDS = 30.0
"""The time until another fetch after one that failed."""
ASKED_SECONDS = 60.0
"""The time between two fetches because a token names a key that is not known."""
FETCH_SECONDS = 10.0
"""How long a fetch may take."""


def read_limited(path: Path) -> bytes:
    """Return the content of a file. Blocks. Raises OSError, InvalidContent."""
    # To read a pipe would wait for somebody who writes. A link is followed: Kubernetes replaces a mounted file by changing one.
    if stat.S_ISFIFO(path.stat().st_mode):
        raise InvalidContent("it is not a file")
    with path.open("rb") as opened:
        content = opened.read(SIZE_LIMIT + 1)
    if len(content) > SIZE_LIMIT:
        raise InvalidContent(f"it has more than {SIZE_LIMIT} bytes")
    return content


class _Faults:
    """Write to the log when something begins to fail, and when it works again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._reason = ""

    def note(self, reason: str) -> None:
        """Note why it failed. An empty text means that it did not."""
        if reason and not self._reason:
            logger.error("%s cannot be used, and what was read before stays valid: %s", self._what, reason)
        if self._reason and not reason:
            logger.info("%s can be used again", self._what)
        self._reason = reason


class WatchedFile(Generic[T]):
    """A file whose content is parsed again after each change."""

    def __init__(self, path: Path, parse: Callable[[bytes], T], *, empty: T) -> None:
        """`empty` is the value until the file could be read."""
        self.value = empty
        self._path = path
        self._parse = parse
        self._content: bytes | None = None
        self._faults = _Faults(str(path))

    async def look(self) -> None:
        """Read the file, and parse it if it has changed."""
        # Its times are not compared: two changes may have the same time.
        try:
            await in_disk_thread(self._read)
        except OSError as error:
            self._faults.note(error.strerror or str(error))
        except FilestoreError as error:
            self._faults.note(str(error))
        except Exception as error:  # noqa: BLE001  # whatever is in a file, the server goes on
            self._faults.note(f"{type(error).__name__}: {error}")
        else:
            self._faults.note("")

    def _read(self) -> None:
        content = read_limited(self._path)
        if content != self._content:
            self.value = self._parse(content)
            self._content = content


class FetchedKeys:
    """The keys of a JWKS at a URL, which are fetched every few minutes, and when a token names another key."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        fetch_seconds: float = FETCH_SECONDS,
        asked_seconds: float = ASKED_SECONDS,
    ) -> None:
        self.value: tuple[PublicKey, ...] = ()
        self._url = url
        self._clock = clock
        self._fetch_seconds = fetch_seconds
        self._asked_seconds = asked_seconds
        self._may_ask_at = clock()
        self._asked = asyncio.Event()
        self._is_done = asyncio.Event()
        """Whether no fetch is in progress or due."""
        self._faults = _Faults(url)

    async def run(self) -> None:
        """Fetch the keys again and again."""
        while True:
            self._asked.clear()
            reason = await self._fetch()
            self._faults.note(reason)
            self._is_done.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), FAILED_SECONDS if reason else REFRESH_SECONDS)

    async def ask(self) -> None:
        """Have the keys fetched because one is missing, if that was not done in the last minute. Wait for a fetch in progress."""
        now = self._clock()
        if self._is_done.is_set() and now >= self._may_ask_at:
            self._may_ask_at = now + self._asked_seconds
            self._is_done.clear()
            self._asked.set()
        await self._is_done.wait()

    async def _fetch(self) -> str:
        """Fetch the keys. Return why that failed, or an empty text."""
        try:
            content = await self._content()
            # Only a change makes another tuple: what was decided by the keys stays then.
            if (found := parse_keys(content)) != self.value:
                self.value = found
        except TimeoutError:
            return f"there was no whole answer in {self._fetch_seconds:g} seconds"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        except FilestoreError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # whatever is in an answer, the server goes on
            return f"{type(error).__name__}: {error}"
        return ""

    async def _content(self) -> bytes:
        # A redirect is not followed, because it may lead to any other server. An answer is not decompressed, because a small
        # one may become large.
        options = aiohttp.ClientTimeout(total=self._fetch_seconds)
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with (
            aiohttp.ClientSession(timeout=options, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(self._url, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise InvalidContent(f"the answer has the status {answer.status}")
            content = bytearray()
            async for piece in answer.content.iter_chunked(1 << 16):
                content += piece
                if len(content) > SIZE_LIMIT:
                    raise InvalidContent(f"it has more than {SIZE_LIMIT} bytes")
            return bytes(content)
