"""Read the head of a request, before the parser of aiohttp sees it.

The parser keeps what it has read of a head, and a client may never send the rest. So the bytes wait here, in one budget for all
connections of a process, until the head is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

HEAD_LIMIT = 32 << 10
"""Bytes of the largest head of a request."""
FIELD_LIMIT = 16 << 10
"""Bytes of the longest line of a head: the request line, or a header field."""
FIELDS_LIMIT = 128
"""The most header fields of a request. The parser counts them."""
HEADS_LIMIT = 8 << 20
"""Bytes of all unfinished heads in one process."""
_END = b"\r\n\r\n"


class HeadRefused(Exception):
    """The bytes of a connection are not the head of a request that this server takes."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class HeadReader:
    """Collect the head of one request after another, from the bytes of one connection."""

    def __init__(self, heads: UnfinishedHeads, evict: Callable[[], None]) -> None:
        """`evict` is called when the unfinished head must go. It must call `clear`."""
        self._heads = heads
        self._head = bytearray()
        self._searched = 0
        self.evict = evict

    @property
    def size(self) -> int:
        """The bytes of the unfinished head."""
        return len(self._head)

    def read(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Return the whole head and the bytes that follow it. Return None if the head is unfinished; it is kept then.

        Raises HeadRefused.
        """
        if not self._head:
            data = _without_empty_lines(data)
            end = data.find(_END)
            if end >= 0:
                return _checked(data[: end + len(_END)]), data[end + len(_END) :]
        self._head += data
        if self._head[:1] == b"\r":
            self._head = bytearray(_without_empty_lines(bytes(self._head)))
        end = self._head.find(_END, max(0, self._searched - len(_END) + 1))
        if end >= 0:
            whole, rest = bytes(self._head[: end + len(_END)]), bytes(self._head[end + len(_END) :])
            self.clear()
            return _checked(whole), rest
        _check_unfinished(self._head, self._searched)
        self._searched = len(self._head)
        self._heads.keep(self)
        return None

    def clear(self) -> None:
        """Forget the unfinished head."""
        self._head = bytearray()
        self._searched = 0
        self._heads.forget(self)


class UnfinishedHeads:
    """The unfinished heads of all connections of a process, which take at most `limit` bytes together."""

    def __init__(self, limit: int = HEADS_LIMIT) -> None:
        self._limit = limit
        self._sizes: dict[HeadReader, int] = {}
        self.size = 0

    def keep(self, reader: HeadReader) -> None:
        """Note the size of an unfinished head. If it does not fit, the largest one is evicted.

        The head of an ordinary request is small, so that an attacker evicts its own heads.
        """
        self.size += reader.size - self._sizes.get(reader, 0)
        self._sizes[reader] = reader.size
        while self.size > self._limit:
            max(self._sizes, key=self._sizes.__getitem__).evict()

    def forget(self, reader: HeadReader) -> None:
        """Note that a head is no longer kept."""
        self.size -= self._sizes.pop(reader, 0)


def _without_empty_lines(data: bytes) -> bytes:
    """Leave out empty lines before a request, which are ignored. Source: RFC 9112, section 2.2."""
    start = 0
    while data.startswith(b"\r\n", start):
        start += 2
    return data[start:]


def _checked(head: bytes) -> bytes:
    """Return a whole head. Raises HeadRefused."""
    if len(head) > HEAD_LIMIT:
        raise _too_large()
    if len(head) > FIELD_LIMIT and max(map(len, head.split(b"\r\n"))) > FIELD_LIMIT:
        raise _too_long()
    # RFC 9112, section 6.1: the framing of such a request is faulty. The parser would take it.
    if head[: head.find(b"\r\n")].endswith(b"HTTP/1.0") and b"\r\ntransfer-encoding:" in head.lower():
        raise HeadRefused(HTTPStatus.BAD_REQUEST, "a request of HTTP/1.0 has no Transfer-Encoding")
    return head


def _check_unfinished(head: bytearray, searched: int) -> None:
    """Raise HeadRefused if this cannot become a head that the server takes. The first `searched` bytes were checked before."""
    if len(head) > HEAD_LIMIT:
        raise _too_large()
    # A client that speaks TLS, or another protocol, need not wait for its answer. The parser checks a whole head itself.
    if head and not head[:1].isupper() and head != b"\r":
        raise HeadRefused(HTTPStatus.BAD_REQUEST, "it does not begin with the method of a request")
    place = head.find(b"\n", searched)
    while place >= 0:
        if head[place - 1 : place] != b"\r":
            raise HeadRefused(HTTPStatus.BAD_REQUEST, "a line of the head ends without a carriage return")
        place = head.find(b"\n", place + 1)
    if len(head) > FIELD_LIMIT and max(map(len, head[head.rfind(b"\n", 0, searched) + 1 :].split(b"\r\n"))) > FIELD_LIMIT:
        raise _too_long()


def _too_large() -> HeadRefused:
    return HeadRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {HEAD_LIMIT} bytes")


def _too_long() -> HeadRefused:
    return HeadRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a line of the head has more than {FIELD_LIMIT} bytes")
