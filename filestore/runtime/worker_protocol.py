"""What a server and the process of a pipeline say to each other: JSON, each message behind its length.

Never pickles: what comes back from user code is data, and is looked at (I4). Outputs are JSON values, or files by their path.

    {"load": {"graph": PATH}}                 {"inputs": [KIND, ...], "files": [STATIC, ...]}
    {"start": {"paths": [PATH, ...]}}         {}
    {"run": {"inputs": [VALUE, ...], "folder": PATH}}
                                              {"outputs": [VALUE, ...]}
    any of them                               {"error": {"exception": TEXT, "traceback": TEXT or null}, "is_spent": BOOL}

KIND is what a declared type asks for: value, file, directory, url (a `FileURL`) or handle (an open file). STATIC is a file of
the graph, `{"kind", "id", "url", "path"}`; `paths` are local ones in the same order. VALUE is `{"value": JSON}`, `{"path": PATH,
"kind": KIND, "url": URL or null}`, or, where files are inside, `{"items": [VALUE, ...]}` or `{"fields": {NAME: VALUE, ...}}`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from filestore.errors import LimitExceeded

HEADER_SIZE = 4
MESSAGE_LIMIT = 16 << 20
"""Bytes of a message: what a run's inputs and outputs may have as JSON, files aside."""

_HEADER = struct.Struct("<I")


class UnsupportedValue(Exception):
    """A value that is neither JSON nor a file."""


def encode(message: Mapping[str, object]) -> bytes:
    """A message with its length. Raises LimitExceeded; ValueError or TypeError for what is no JSON, such as NaN."""
    body = json.dumps(message, allow_nan=False).encode()
    if len(body) > MESSAGE_LIMIT:
        raise LimitExceeded("the size in bytes of a run's values", len(body), MESSAGE_LIMIT)
    return _HEADER.pack(len(body)) + body


def body_size(header: bytes) -> int:
    """Bytes that follow a header. Raises LimitExceeded."""
    (size,) = _HEADER.unpack(header)
    if size > MESSAGE_LIMIT:
        raise LimitExceeded("the size in bytes of a run's values", size, MESSAGE_LIMIT)
    return int(size)


def decode(body: bytes) -> dict[str, Any]:
    """What a message says. Raises ValueError where it is none."""
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError("a message is an object")  # noqa: TRY004  # of the other side's making
    return message


def described(value: object, file: Callable[[object], dict[str, Any] | None]) -> dict[str, Any]:
    """A value as messages have it; `file` describes what stands for one, and gives None for all else. Raises UnsupportedValue."""
    known = file(value)
    if known is not None:
        return known
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, list | tuple):
            return {"items": [described(item, file) for item in value]}
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"fields": {name: described(field, file) for name, field in value.items()}}
        raise UnsupportedValue(f"a {type(value).__name__}: {error}") from None
    return {"value": value}


def valued(description: Mapping[str, Any], file: Callable[[Mapping[str, Any]], object]) -> Any:
    """The inverse of `described`. Raises KeyError, TypeError or AttributeError for what is no description."""
    if "path" in description:
        return file(description)
    if "items" in description:
        return [valued(item, file) for item in description["items"]]
    if "fields" in description:
        return {name: valued(field, file) for name, field in description["fields"].items()}
    return description["value"]
