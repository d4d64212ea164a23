"""Parse the heads of answers. A head that two readers could understand differently is refused.

Source: RFC 9112, sections 4 to 6 and 9; RFC 9110, section 5.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from filestore.system.http_answers import Said, said_by

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
"""A field of a head, or of trailers, without the end of its line."""
_SIZE = re.compile(rb"[0-9]{1,18}")
_SAID = ("Server", "Content-Type", "Location", "Retry-After", "Date")
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class Head(NamedTuple):
    """The head of an answer, parsed."""

    status: int
    size: int | None
    """Bytes of the body; None unless the head has exactly one Content-Length and no other framing."""
    keeps_open: bool
    said: Said = Said()
    """The header fields that say who made the answer."""
    is_chunked: bool = False
    """Whether the body has the chunked transfer coding, and nothing that contradicts it."""


def parse_head(raw: bytes) -> Head:
    """Parse the head of an answer, given without the empty line at its end. Raises ValueError with a reason."""
    status_line, *lines = raw.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(status_line)
    if found is None:
        raise ValueError("its answer is not HTTP")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        field = FIELD.fullmatch(line)
        if field is None:
            raise ValueError("a header of its answer is malformed")
        fields.setdefault(field[1].lower(), []).append(field[2])
    options = {option.strip() for value in fields.get(b"connection", []) for option in value.lower().split(b",")}
    status = int(found[2])
    is_current = found[1] == b"1"
    return Head(
        status,
        0 if status in _BODILESS else _size(fields),
        keeps_open=is_current and b"close" not in options,
        said=said_by({name: _text(fields, name) for name in _SAID}),
        # HTTP/1.0 has no transfer coding (RFC 9112, section 6.1).
        is_chunked=is_current and status not in _BODILESS and _is_chunked(fields),
    )


def _text(fields: dict[bytes, list[bytes]], name: str) -> str:
    return fields.get(name.lower().encode(), [b""])[0].decode("latin-1")


def _size(fields: dict[bytes, list[bytes]]) -> int | None:
    sizes = fields.get(b"content-length", [])
    # Two lengths, or a length together with a transfer coding, allow an answer to be smuggled.
    if b"transfer-encoding" in fields or len(sizes) != 1 or not _SIZE.fullmatch(sizes[0]):
        return None
    return int(sizes[0])


def _is_chunked(fields: dict[bytes, list[bytes]]) -> bool:
    codings = fields.get(b"transfer-encoding", [])
    return len(codings) == 1 and codings[0].lower() == b"chunked" and b"content-length" not in fields
