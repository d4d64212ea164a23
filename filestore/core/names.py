"""Names of files, directories and namespaces: what is allowed, and how a name is shortened."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from filestore.errors import InvalidName

DEFAULT_NAMESPACE = "default"
NAME_LIMIT = 255
_EXTENSION_LIMIT = 16
"""Bytes of what may follow the last dot of a name that is shortened, if it is to be kept."""

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

SEGMENT_LIMIT = 255
"""Bytes of the last segment of a URL's path, as it stands there: clients use it as a file's name."""


def plain_name(segment: str) -> str:
    """What a file is called that was found under this last part of a URL."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", unquote(segment))
    if name in ("", ".", ".."):
        return "download"
    stem, dot, extension = name.rpartition(".")
    tail = (dot + extension).encode() if stem and len(extension.encode()) < _EXTENSION_LIMIT else b""
    whole = name.encode()
    if len(whole) > NAME_LIMIT:
        whole = whole[: NAME_LIMIT - len(tail)].decode(errors="ignore").encode() + tail
    return checked_name(whole.decode())


def checked_name(name: str) -> str:
    """`name`, if a file can be kept under it on any machine. Raises InvalidName."""
    if not name or name in (".", ".."):
        raise InvalidName(name, "it is empty, or stands for a folder")
    if "/" in name or _CONTROL.search(name):
        raise InvalidName(name, "it holds a slash or a control character")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(ascii(name), "it is not valid UTF-8") from None
    if length > NAME_LIMIT:
        raise InvalidName(name, f"it has {length} bytes, allowed are {NAME_LIMIT}")
    return name


def archive_name(folder: str) -> str:
    """The name that a folder is kept under where nobody says another, as the Pipeline SDK names it. Raises InvalidName."""
    return checked_name(f"{folder}.zip")


def tree_name(name: str) -> str:
    """The name of the folder that a zip file called `name` unpacks to. Where `name` can be kept, so can that (I4)."""
    stem = name.removesuffix(".zip")
    return name if stem in ("", ".", "..") else stem


def checked_namespace(namespace: str) -> str:
    """`namespace`, if it is one. Raises InvalidName."""
    if not _NAMESPACE.match(namespace):
        raise InvalidName(namespace, "a namespace is 1 to 63 lower-case letters, digits, '-' and '_'")
    return namespace


def shortened(name: str) -> str:
    """`name`, or as much of it as fits a URL's segment, with its extension."""
    if len(quote(name, safe="")) <= SEGMENT_LIMIT:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = dot + extension
    if not stem or len(quote(ending, safe="")) > SEGMENT_LIMIT // 2:
        stem, ending = name, ""
    remaining = SEGMENT_LIMIT - len(quote(ending, safe=""))
    kept = 0
    for place, letter in enumerate(stem):
        remaining -= len(quote(letter, safe=""))
        if remaining < 0:
            break
        kept = place + 1
    return stem[:kept] + ending
