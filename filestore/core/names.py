"""Check, make and shorten the names of files, directories, pipelines and namespaces."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from filestore.errors import InvalidInput, InvalidName

DEFAULT_NAMESPACE = "default"
UPSTREAM_NAMESPACE = "hub-upstream"
"""The namespace of what a server fetched from its upstream. It has private files of others, so no token opens it."""
NAME_LIMIT = 255
_EXTENSION_LIMIT = 16
"""When a name is shortened, an extension of up to this many bytes, with its dot, is kept."""

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HUB_PART = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
"""An owner, or a name that has one. Source: `validate_repo_id` of huggingface_hub."""
_SEPARATORS = re.compile("[@:]")
"""The characters that, like the slash, separate the parts of a reference, `[OWNER/]NAME[@REVISION][:PATH]`."""

_RESERVED = (
    "- api admin assets datasets docs favicon.ico files health healthz hub kernels login logout metrics models "
    "native new owners pipeline_files pipelines pointers raw readyz resolve robots.txt run_files runs settings "
    "signed spaces static storage tokens ui v1 v2 v3 v4 v5"
)
RESERVED_OWNERS = frozenset(_RESERVED.split())
"""Owners that nobody can have, because URLs begin so, or may begin so one day. They are compared without case."""

_PART_REASON = "up to 96 letters, digits, '-', '_' and '.', neither '-' nor '.' at either end, and no '--' and no '..'"
OWNER_REASON = f"an owner has {_PART_REASON}"
_HUB_NAME_REASON = f"a name has {_PART_REASON}, and does not end in '.git'"

SEGMENT_LIMIT = 255
"""The largest size in bytes of the last part of a URL's path, percent-encoded. Clients use this part as a file name."""


def plain_name(segment: str) -> str:
    """Return a valid file name for a URL whose path ends with `segment`. Characters that are not allowed become `_`."""
    name = re.sub(r"[/\x00-\x1f\x7f]", "_", unquote(segment))
    if name in ("", ".", ".."):
        return "download"
    stem, dot, extension = name.rpartition(".")
    tail = (dot + extension).encode() if stem and len(extension.encode()) < _EXTENSION_LIMIT else b""
    whole = name.encode()
    if len(whole) > NAME_LIMIT:
        whole = whole[: NAME_LIMIT - len(tail)].decode(errors="ignore").encode() + tail
    return checked_name(whole.decode())


def plain_entry_name(path: str) -> str:
    """Return a valid file name for an entry of a directory: the last part of its path, shortened if it is too long."""
    name = path.rpartition("/")[2]
    return name if not _fault(name) else plain_name(quote(name, safe=""))


def checked_name(name: str) -> str:
    """Return `name` if it is valid for a stored file. Raises InvalidName if it is not.

    A valid name has no slash, no control character and at most 255 bytes. For the name of a new record, use
    `checked_new_name`: it refuses some names that records of older versions may have.
    """
    reason = _fault(name)
    if reason:
        raise InvalidName(_shown(name), reason)
    return name


def checked_new_name(name: str) -> str:
    """Return `name` if `checked_name` allows it and it has no `@` and no `:`. Raises InvalidName otherwise."""
    reason = _fault(name)
    found = _SEPARATORS.search(name)
    if not reason and found is not None:
        reason = f"it contains {found[0]!r}, which separates the parts of a reference, NAME@REVISION:PATH"
    if reason:
        raise InvalidName(_shown(name), f"{reason}; choose another name", hint="choose-name")
    return name


def full_name(owner: str | None, name: str) -> str:
    """Return `OWNER/NAME`, or `name` alone without an owner."""
    return name if owner is None else f"{owner}/{name}"


def split_full_name(text: str) -> tuple[str | None, str]:
    """Return the owner in a full name, or None, and the name after it. Nothing is checked."""
    owner, slash, name = text.partition("/")
    return (owner, name) if slash else (None, text)


def is_owner(text: str) -> bool:
    """Return whether a text has the form of an owner. It may be a reserved one."""
    return _HUB_PART.match(text) is not None


def checked_owner(owner: str) -> str:
    """Return `owner` if somebody can have it. Raises InvalidName if nobody can."""
    reason = _owner_fault(owner)
    if reason:
        raise InvalidName(_shown(owner), reason, hint="choose-name")
    return owner


def checked_new_full_name(text: str) -> str:
    """Return `text` if a new record can have this name, with or without an owner before it. Raises InvalidName otherwise.

    A name with an owner follows the rules of the Hugging Face Hub, whose clients refuse other names.
    """
    owner, name = split_full_name(text)
    if owner is None:
        return checked_new_name(name)
    reason = _owner_fault(owner)
    if not reason and (not _HUB_PART.match(name) or name.lower().endswith(".git")):
        reason = f"after an owner, {_HUB_NAME_REASON}"
    if reason:
        raise InvalidName(_shown(text), reason, hint="choose-name")
    return text


def _owner_fault(owner: str) -> str:
    """Return why nobody can have an owner. Return "" if somebody can."""
    if not is_owner(owner):
        return OWNER_REASON
    return f"the owner {owner!r} is reserved, because URLs of servers begin so" if owner.lower() in RESERVED_OWNERS else ""


def _fault(name: str) -> str:
    """Return why `name` is not valid for a stored file. Return "" if it is."""
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return "it stands for a folder"
    if "/" in name:
        return "it contains a slash"
    if _CONTROL.search(name):
        return "it contains a control character"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    return f"it has {length} bytes, allowed are {NAME_LIMIT}" if length > NAME_LIMIT else ""


def _shown(name: str) -> str:
    """Return `name` as an error can have it. A name that is not UTF-8 could not be sent."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return ascii(name)
    return name


def replace_separators(name: str) -> str:
    """Replace each `@` and `:` in `name` by `_`. It is used where no user can be asked for another name."""
    return _SEPARATORS.sub("_", name)


def checked_pipeline_name(name: str) -> str:
    """Return `name` if it is valid for a pipeline. Raises InvalidInput if it is not.

    A valid name is one line of printable text, with at most 255 bytes.
    """
    if not name or not name.isprintable() or len(name.encode()) > NAME_LIMIT:
        raise InvalidInput(f"a pipeline's name is one line of printable text, of {NAME_LIMIT} bytes at most")
    return name


def archive_name(folder: str) -> str:
    """Return the default name for the record of a folder. The Pipeline SDK uses the same name.

    It may be too long: see `checked_new_name`.
    """
    return f"{folder}.zip"


def tree_name(name: str) -> str:
    """Return the name of the folder into which a zip file with this name is extracted.

    If `name` is a valid file name, the result is valid too (I4).
    """
    stem = name.removesuffix(".zip")
    return name if stem in ("", ".", "..") else stem


def is_namespace(text: str) -> bool:
    """Return whether a text is a valid namespace."""
    return _NAMESPACE.match(text) is not None


def checked_namespace(namespace: str) -> str:
    """Return `namespace` if it is valid. Raises InvalidName if it is not."""
    if not is_namespace(namespace):
        raise InvalidName(namespace, "a namespace is 1 to 63 lower-case letters, digits, '-' and '_'")
    return namespace


def shortened(name: str) -> str:
    """Shorten `name` to 255 bytes in percent-encoded form, so that it can be the last part of a URL's path.

    The extension is kept if it is not too long. A name that is short enough is returned unchanged.
    """
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
