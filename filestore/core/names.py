"""Names of files, directories and namespaces: which names are allowed, and how a name is shortened."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from filestore.errors import InvalidInput, InvalidName

DEFAULT_NAMESPACE = "default"
NAME_LIMIT = 255
_EXTENSION_LIMIT = 16
"""Bytes of the longest extension, with its dot, that stays when a name is shortened."""

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SEPARATORS = re.compile("[@:]")
"""Characters that separate the parts of a reference, `[OWNER/]NAME[@REVISION][:PATH]`, beside the slash."""

SEGMENT_LIMIT = 255
"""Bytes of the last segment of a URL's path, percent-encoded. Clients use it as the name of a file."""


def plain_name(segment: str) -> str:
    """Return a valid name for a file whose URL ends with this segment."""
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
    """`name`, if a stored file can have it: no slash, no control character, 255 bytes at most. Raises InvalidName.

    Records that older versions made may have names that no new record gets: see `checked_new_name`.
    """
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


def checked_new_name(name: str) -> str:
    """`name`, if a new record can have it: what `checked_name` allows, without `@` and `:`. Raises InvalidName."""
    checked_name(name)
    found = _SEPARATORS.search(name)
    if found is not None:
        reason = f"it contains {found[0]!r}, which separates the parts of a reference, NAME@REVISION:PATH"
        raise InvalidName(name, f"{reason}; choose another name", hint="choose-name")
    return name


def replace_separators(name: str) -> str:
    """`name` with `_` in place of each `@` and `:`: a name for a file that nobody is there to rename."""
    return _SEPARATORS.sub("_", name)


def checked_pipeline_name(name: str) -> str:
    """`name`, if a pipeline can have it. Raises InvalidInput."""
    if not name or not name.isprintable() or len(name.encode()) > NAME_LIMIT:
        raise InvalidInput(f"a pipeline's name is one line of printable text, of {NAME_LIMIT} bytes at most")
    return name


def archive_name(folder: str) -> str:
    """Return the default name of the record of a folder, which is the name that the Pipeline SDK uses.

    Raises InvalidName.
    """
    return checked_name(f"{folder}.zip")


def tree_name(name: str) -> str:
    """Return the name of the folder for the tree of a zip file with this name.

    If `name` is valid, so is the result (I4).
    """
    stem = name.removesuffix(".zip")
    return name if stem in ("", ".", "..") else stem


def checked_namespace(namespace: str) -> str:
    """Return `namespace` if it is a valid one. Raises InvalidName."""
    if not _NAMESPACE.match(namespace):
        raise InvalidName(namespace, "a namespace is 1 to 63 lower-case letters, digits, '-' and '_'")
    return namespace


def shortened(name: str) -> str:
    """Return `name`, or the longest beginning of it that fits into a segment of a URL, with the extension."""
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
