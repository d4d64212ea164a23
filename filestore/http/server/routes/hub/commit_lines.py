"""Parse the lines of a commit, as clients of the Hub send it: a header, and then one operation a line.

A line is a JSON object with the members `key` and `value`. Nothing in it is trusted (I4): the number of lines and the size of
each have limits, and a path cannot lead out of the tree. Source: `_prepare_commit_payload` of the Python client.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any, NamedTuple

from filestore.core.commits import MESSAGE_LIMIT
from filestore.core.records import value_count
from filestore.errors import InvalidInput, LimitExceeded
from filestore.format.zip.tree import path_problem
from filestore.http.server.routes.hub.names import PATH_LIMIT
from filestore.system.files import write_at

LINE_LIMIT = 16 << 20
"""Bytes of a line. A file in it has three quarters of that; a larger one is an LFS object."""
OPERATIONS_LIMIT = 50_000
"""Operations of a commit. Each takes about 400 bytes of memory, and a path."""
VALUES_LIMIT = 10_000
"""The largest number of values in the JSON of a line."""
PATHS_LIMIT = 16 << 20
"""Bytes of all paths of a commit."""

_CUT = "..."
_SLICE_SIZE = 8 << 20
"""Bytes of lines that are parsed in one slice."""
_READ_SIZE = 1 << 20
_OID = re.compile(r"[0-9a-f]{64}\Z")
_COMMIT_ID = re.compile(r"[0-9a-f]{7,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class CommitHeader(NamedTuple):
    """What a commit says about itself."""

    message: str
    parent: str | None
    """The id of the commit that must be the newest one of the branch, or None if any may be."""


class PutFile(NamedTuple):
    """Put a file whose content came with the commit. It is in the spool file."""

    path: str
    offset: int
    size: int


class PutObject(NamedTuple):
    """Put a file whose content is stored: an LFS object."""

    path: str
    sha256: bytes
    size: int | None
    """None where the client does not say it: it copies a file of another revision."""


class DeleteFile(NamedTuple):
    """Delete a file."""

    path: str


class DeleteFolder(NamedTuple):
    """Delete a folder with everything in it."""

    path: str


class CopyFile(NamedTuple):
    """Put a file with the content of another one."""

    path: str
    source_path: str
    source_revision: str | None
    """None for the state of the tree before the commit."""


Operation = PutFile | PutObject | DeleteFile | DeleteFolder | CopyFile


class CommitLines:
    """Parse the lines in a spool file. The contents of files replace them there, one after the other from its start.

    A content is shorter than the line that has it. So it never overwrites a line that is still to be read.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.operations: list[Operation] = []
        self._header: CommitHeader | None = None
        self._descriptor = descriptor
        self._size = size
        self._read = self._written = 0
        self._rest = bytearray()
        self._lines = 0
        self._paths_size = 0

    @property
    def is_finished(self) -> bool:
        """Whether everything is parsed."""
        return self._read == self._size and not self._rest

    @property
    def header(self) -> CommitHeader:
        """The header. Raises InvalidInput if there was none."""
        if self._header is None:
            raise InvalidInput("the commit has no header; its first line must have the key 'header'")
        return self._header

    def parse_slice(self) -> None:
        """Parse the next lines, of 8 MiB and more together. Call it in a thread. Raises InvalidInput, LimitExceeded, OSError."""
        done = 0
        while done < _SLICE_SIZE and not self.is_finished:
            line = self._next_line()
            done += len(line) + 1
            self._lines += 1
            if line.strip():
                self._take(line)

    def _next_line(self) -> bytes:
        searched = 0
        while True:
            end = self._rest.find(b"\n", searched)
            if end >= 0 or self._read == self._size:
                end = len(self._rest) if end < 0 else end
                self._check_length(end)
                line = bytes(self._rest[:end])
                del self._rest[: end + 1]
                return line
            searched = len(self._rest)
            self._check_length(searched)
            piece = os.pread(self._descriptor, min(_READ_SIZE, self._size - self._read), self._read)
            if not piece:
                raise InvalidInput("the commit is shorter than it was when it arrived")
            self._read += len(piece)
            self._rest += piece

    def _check_length(self, size: int) -> None:
        if size > LINE_LIMIT:
            raise LimitExceeded("the size in bytes of a line of the commit", size, LINE_LIMIT)

    def _take(self, line: bytes) -> None:
        if value_count(line) > VALUES_LIMIT:
            raise LimitExceeded("the number of values in a line of the commit", value_count(line), VALUES_LIMIT)
        key, value = _key_and_value(line, self._lines)
        if key == "header":
            if self._header is not None:
                raise InvalidInput(f"line {self._lines} of the commit is a second header; it has one, which is its first line")
            self._header = _header(value)
            return
        if self._header is None:
            raise InvalidInput(f"line {self._lines} of the commit has the key {brief(key)}; its first line must be the header")
        operation = self._operation(key, value)
        if len(self.operations) == OPERATIONS_LIMIT:
            raise LimitExceeded("the number of operations of the commit", OPERATIONS_LIMIT + 1, OPERATIONS_LIMIT)
        self._paths_size += len(operation.path)
        if self._paths_size > PATHS_LIMIT:
            raise LimitExceeded("the size of all paths of the commit", self._paths_size, PATHS_LIMIT)
        self.operations.append(operation)

    def _operation(self, key: str, value: Mapping[str, Any]) -> Operation:
        path = checked_path(value.get("path"), is_folder=key == "deletedFolder")
        match key:
            case "file":
                return self._file(path, value)
            case "lfsFile":
                return _object(path, value)
            case "deletedFile":
                return DeleteFile(path)
            case "deletedFolder":
                return DeleteFolder(path)
            case "copyFile":
                return _copy(path, value)
            case _:
                known = "file, lfsFile, deletedFile, deletedFolder and copyFile"
                raise InvalidInput(f"line {self._lines} of the commit has the key {brief(key)}; there are {known}")

    def _file(self, path: str, value: Mapping[str, Any]) -> PutFile:
        content, encoding = value.get("content"), value.get("encoding", "utf-8")
        if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
            raise InvalidInput(f"the content of {path!r} is not a text in base64")
        try:
            decoded = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
        except (binascii.Error, ValueError):
            raise InvalidInput(f"the content of {path!r} is not valid {encoding}") from None
        offset = self._written
        write_at(self._descriptor, decoded, offset)
        self._written += len(decoded)
        return PutFile(path, offset, len(decoded))


def checked_path(path: object, *, is_folder: bool = False) -> str:
    """Return the path of a file or folder in a repository. Raises InvalidInput if nothing can have this path."""
    if not isinstance(path, str):
        raise InvalidInput(f"a path in the commit is {brief(path)}; a text is expected")
    text = path.removesuffix("/") if is_folder else path
    reason = path_problem(text)
    parts = text.split("/")
    if len(text.encode(errors="surrogatepass")) > PATH_LIMIT:
        reason = f"it has more than {PATH_LIMIT} bytes"
    elif reason is None and not {"", ".", ".."}.isdisjoint(parts):
        reason = "a part of it is empty, '.' or '..'"
    elif reason is None and ".git" in parts:
        reason = "'.git' is reserved"
    elif reason is None and (_CONTROL.search(text) or not _is_unicode(text)):
        reason = "it has characters that no path has"
    if reason is not None:
        raise InvalidInput(f"the path {brief(path)} in the commit is refused: {reason}")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _key_and_value(line: bytes, number: int) -> tuple[str, Mapping[str, Any]]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInput(f"line {number} of the commit is not JSON; it may be cut") from None
    key, value = (document.get("key"), document.get("value")) if isinstance(document, dict) else (None, None)
    if not isinstance(key, str) or not isinstance(value, dict):
        raise InvalidInput(f"line {number} of the commit is not an object with a key and a value")
    return key, value


def _header(value: Mapping[str, Any]) -> CommitHeader:
    summary, description, parent = value.get("summary", ""), value.get("description") or "", value.get("parentCommit")
    if not isinstance(summary, str) or not isinstance(description, str):
        raise InvalidInput("the summary and the description of the commit are not texts")
    if parent is not None and not (isinstance(parent, str) and _COMMIT_ID.match(parent)):
        raise InvalidInput(f"parentCommit is {brief(parent)}; the id of a commit is expected")
    message = "\n\n".join(filter(None, (summary.strip(), description.strip()))).replace("\r\n", "\n")
    # The files have been sent already, so a long message is cut and not refused.
    encoded = message.encode(errors="replace")
    if len(encoded) > MESSAGE_LIMIT:
        message = encoded[: MESSAGE_LIMIT - len(_CUT)].decode(errors="ignore") + _CUT
    return CommitHeader(message, parent)


def _object(path: str, value: Mapping[str, Any]) -> PutObject:
    oid, size = value.get("oid"), value.get("size")
    if value.get("algo", "sha256") != "sha256" or not isinstance(oid, str) or not _OID.match(oid):
        raise InvalidInput(f"the LFS object of {path!r} is not named by its SHA-256")
    if size is not None and (type(size) is not int or not 0 <= size < 1 << 63):
        raise InvalidInput(f"the size of the LFS object of {path!r} is {brief(size)}; a number of bytes is expected")
    return PutObject(path, bytes.fromhex(oid), size)


def _copy(path: str, value: Mapping[str, Any]) -> CopyFile:
    revision = value.get("srcRevision")
    if revision is not None and not isinstance(revision, str):
        raise InvalidInput(f"srcRevision is {brief(revision)}; a text is expected")
    return CopyFile(path, checked_path(value.get("srcPath")), revision)
