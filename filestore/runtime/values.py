"""Find out which file a value of a pipeline stands for: its kind and its reference. No I/O."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple
from urllib.parse import ParseResult

from filestore.core.records import Kind
from filestore.core.references import Directory, File, FileURL
from filestore.errors import InvalidReference, InvalidSetting
from filestore.runtime.declared import kind_of_class
from filestore.system.files import home_path

Stored = File | Directory


class Local(NamedTuple):
    """A file or a folder of this machine, or an object that can be read like a file."""

    content: Path | io.IOBase
    kind: Kind | None
    """The required kind, or None if both kinds are allowed."""


def stored_value(value: object) -> Stored:
    """Return the reference of a static file of a pipeline, for `Cache.resolve`.

    `value` is an object of filestore or of the Pipeline SDK. Of an object of the SDK, `remote_id` is used, else `url`,
    else `path`. Raises InvalidReference for any other value.
    """
    if isinstance(value, File | Directory):
        return value
    if isinstance(value, FileURL):
        return File(url=value.url, digest=value.digest, max_age_seconds=value.max_age_seconds, stale_ok=value.stale_ok)
    kind = kind_of_class(type(value))
    if kind is None:
        raise InvalidReference(repr(value), "a File, a Directory or a FileURL is expected")
    make = Directory if kind is Kind.DIRECTORY else File
    remote_id, url, path = (getattr(value, field, None) for field in ("remote_id", "url", "path"))
    if remote_id:
        return make(id=remote_id)
    if url:
        return make(url=url.geturl() if isinstance(url, ParseResult) else str(url))
    return make(str(path or ""))


def returned_file(value: object) -> Stored | Local | None:
    """Return the file that a returned value stands for, or None if it does not stand for a file.

    Raises InvalidReference.
    """
    if isinstance(value, Path):
        return Local(value, None)
    inner = getattr(value, "file", None)
    if isinstance(inner, io.IOBase) and hasattr(value, "seek"):
        value = inner  # `tempfile.NamedTemporaryFile` wraps one
    if isinstance(value, io.IOBase):
        return Local(value, Kind.FILE)
    kind = kind_of_class(type(value))
    if kind is None:
        return None
    path = getattr(value, "path", None)
    if path is None or isinstance(value, FileURL):
        stored = stored_value(value)
        if stored.url is not None:
            raise InvalidReference(repr(stored), "it is given by a URL; return the file itself, or its URL as a text")
        return stored
    try:
        stored = stored_value(Directory(str(path)) if kind is Kind.DIRECTORY else File(str(path)))
        _ = stored.reference
    except InvalidReference:
        try:
            return Local(home_path(path), kind if kind is Kind.DIRECTORY else None)
        except InvalidSetting as error:
            raise InvalidReference(str(path), error.reason) from None
    return stored


def for_display(value: object) -> str:
    """Return a short description of any value, for an error."""
    text = repr(value) if isinstance(value, str | int | float | bool) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
