"""A server and the process of a pipeline exchange JSON messages, each preceded by its length.

Pickles are never used: the answers of user code are data, and are checked (I4). Outputs are JSON values, or files by
their paths.

    {"load": {"graph": PATH}}                 {"inputs": [KIND, ...], "files": [STATIC, ...]}
    {"start": {"paths": [PATH, ...]}}         {}
    {"run": {"inputs": [VALUE, ...], "folder": PATH}}
                                              {"outputs": [VALUE, ...]}
    any of them                               {"error": {"exception": TEXT, "traceback": TEXT or null}, "is_spent": BOOL}

KIND is the form that a declared type needs: value, file, directory, url (a `FileURL`) or handle (an open file). STATIC
is a file of the graph, `{"kind", "id", "url", "path"}`; `paths` are local ones in the same order. VALUE is
`{"value": JSON}`, `{"path": PATH, "kind": KIND, "url": URL or null}`, or, if it contains files,
`{"items": [VALUE, ...]}` or `{"fields": {NAME: VALUE, ...}}`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from filestore.errors import LimitExceeded

HEADER_SIZE = 4
MESSAGE_LIMIT = 16 << 20
"""The largest number of bytes in a message: the JSON of a run's inputs or outputs, without files. LimitExceeded is
raised for more.
"""

_HEADER = struct.Struct("<I")


class UnsupportedValue(Exception):
    """A value that is neither JSON nor a file."""


def encode(message: Mapping[str, object]) -> bytes:
    """Return a message with its length.

    Raises LimitExceeded; ValueError or TypeError for values that are not JSON, such as NaN.
    """
    body = json.dumps(message, allow_nan=False).encode()
    if len(body) > MESSAGE_LIMIT:
        raise LimitExceeded("the size in bytes of a run's values", len(body), MESSAGE_LIMIT)
    return _HEADER.pack(len(body)) + body


def body_size(header: bytes) -> int:
    """Return the number of bytes that follow a header. Raises LimitExceeded."""
    (size,) = _HEADER.unpack(header)
    if size > MESSAGE_LIMIT:
        raise LimitExceeded("the size in bytes of a run's values", size, MESSAGE_LIMIT)
    return int(size)


def decode(body: bytes) -> dict[str, Any]:
    """Return the content of a message. Raises ValueError for bytes that are not a message."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message is an object")  # noqa: TRY004  # the other side made the message
    return message


def encode_value(value: object, file: Callable[[object], dict[str, Any] | None]) -> dict[str, Any]:
    """Return a value in the format of messages. Raises UnsupportedValue.

    `file` describes a value that stands for a file, and returns None for all others.
    """
    known = file(value)
    if known is not None:
        return known
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, list | tuple):
            return {"items": [encode_value(item, file) for item in value]}
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"fields": {name: encode_value(field, file) for name, field in value.items()}}
        raise UnsupportedValue(f"a {type(value).__name__}: {error}") from None
    return {"value": value}


def decode_value(description: Mapping[str, Any], file: Callable[[Mapping[str, Any]], object]) -> Any:
    """Return the value from which `encode_value` made this description.

    Raises KeyError, TypeError or AttributeError for an invalid description.
    """
    if "path" in description:
        return file(description)
    if "items" in description:
        return [decode_value(item, file) for item in description["items"]]
    if "fields" in description:
        return {name: decode_value(field, file) for name, field in description["fields"].items()}
    return description["value"]
