"""Decode the chunked transfer coding of bytes that arrive in any split."""

from __future__ import annotations

from collections.abc import Iterable

from filestore.http.client.chunked import ChunkedCoding


def decoded(arriving: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Return the body, and what follows it in the part in which it ends.

    Raises EOFError if its end does not arrive, and ValueError if it is malformed.
    """
    coding, body, left = ChunkedCoding(), bytearray(), 0
    for part in arriving:
        view = memoryview(part)
        while view and not coding.is_over:
            if not left:
                read, left = coding.read(view)
                assert left or coding.is_over or read == len(view)
                view = view[read:]
            body += view[:left]
            size = min(left, len(view))
            view, left = view[size:], left - size
        if coding.is_over:
            return bytes(body), bytes(view)
    raise EOFError
