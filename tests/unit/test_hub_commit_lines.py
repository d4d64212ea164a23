"""The lines of a commit of the Hub API."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from filestore.core.commits import MESSAGE_LIMIT
from filestore.errors import InvalidInput, LimitExceeded
from filestore.http.server.routes.hub import commit_lines
from filestore.http.server.routes.hub.commit_lines import (
    LINE_LIMIT,
    CommitLines,
    CopyFile,
    DeleteFile,
    DeleteFolder,
    PutFile,
    PutObject,
)

HEADER = {"key": "header", "value": {"summary": "Say it", "description": "at length"}}
OID = "ab" * 32


class Commit:
    """Lines in a spool file."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def parsed(self, content: bytes) -> CommitLines:
        """Return what the lines say."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)
        lines = CommitLines(self.descriptor, len(content))
        while not lines.is_finished:
            lines.parse_slice()
        return lines

    def refused(self, *lines: Any) -> str:
        """Return why lines are refused."""
        with pytest.raises((InvalidInput, LimitExceeded)) as refused:
            _ = self.parsed(encoded(*lines)).header
        return str(refused.value)


@pytest.fixture
def commit() -> Iterator[Commit]:
    """A spool file for a commit."""
    with tempfile.TemporaryFile() as file:
        yield Commit(file.fileno())


def encoded(*lines: Any) -> bytes:
    """Return lines as clients send them."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def file(path: str, content: bytes) -> dict[str, Any]:
    """Return the line of a file."""
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


def line(key: str, **value: object) -> dict[str, Any]:
    """Return a line."""
    return {"key": key, "value": value}


def test_all_operations(commit: Commit) -> None:
    """They come in the order of their lines. The contents stand in the spool file, one after the other."""
    lines = commit.parsed(
        encoded(
            HEADER,
            file("a.txt", b"one"),
            line("lfsFile", path="b/big.bin", algo="sha256", oid=OID, size=7),
            line("lfsFile", path="b/copied.bin", algo="sha256", oid=OID),
            line("deletedFile", path="old.txt"),
            line("deletedFolder", path="old/"),
            line("copyFile", path="new.txt", srcPath="a.txt", srcRevision="v1"),
            file("c.txt", b"two" * 1000),
            file("empty.txt", b""),
        )
    )
    assert ("Say it\n\nat length", None) == lines.header
    assert [
        PutFile("a.txt", 0, 3),
        PutObject("b/big.bin", bytes.fromhex(OID), 7),
        PutObject("b/copied.bin", bytes.fromhex(OID), None),
        DeleteFile("old.txt"),
        DeleteFolder("old"),
        CopyFile("new.txt", "a.txt", "v1"),
        PutFile("c.txt", 3, 3000),
        PutFile("empty.txt", 3003, 0),
    ] == lines.operations
    assert b"one" + b"two" * 1000 == os.pread(commit.descriptor, 3003, 0)


def test_many_files_in_slices(commit: Commit) -> None:
    """No content overwrites a line that is still to be read."""
    contents = [os.urandom(300_000 + number) for number in range(60)]
    lines = commit.parsed(encoded(HEADER, *(file(f"{number}.bin", content) for number, content in enumerate(contents))))
    for operation, content in zip(lines.operations, contents, strict=True):
        assert isinstance(operation, PutFile)
        assert content == os.pread(commit.descriptor, operation.size, operation.offset)


def test_a_last_line_without_an_end(commit: Commit) -> None:
    """It counts if it is whole, and empty lines do not."""
    whole = encoded(HEADER, line("deletedFile", path="a"))
    assert [DeleteFile("a")] == commit.parsed(b"\n" + whole.removesuffix(b"\n")).operations


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_commit_that_is_cut(commit: Commit, cut: int) -> None:
    """It is refused."""
    with pytest.raises(InvalidInput, match="may be cut"):
        commit.parsed(encoded(HEADER, file("a", b"content of a file"))[: -1 - cut])


def test_lines_out_of_order(commit: Commit) -> None:
    """The header is the first line, and the only one."""
    assert "has no header" in commit.refused()
    assert "first line must be the header" in commit.refused(line("deletedFile", path="a"), HEADER)
    assert "second header" in commit.refused(HEADER, HEADER)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        "text",
        {"key": "file"},
        {"key": 1, "value": {}},
        {"key": "file", "value": []},
        line("unknown", path="a"),
        line("file", path="a", content=1),
        line("file", path="a", content="?", encoding="base64"),
        line("file", path="a", content="YQ", encoding="base64"),
        line("file", path="a", content="YQ==", encoding="rot13"),
        line("lfsFile", path="a", algo="md5", oid=OID, size=1),
        line("lfsFile", path="a", algo="sha256", oid=OID[1:], size=1),
        line("lfsFile", path="a", algo="sha256", oid=OID.upper(), size=1),
        line("lfsFile", path="a", algo="sha256", oid=OID, size=-1),
        line("lfsFile", path="a", algo="sha256", oid=OID, size=True),
        line("copyFile", path="a"),
        line("copyFile", path="a", srcPath="../b"),
        line("copyFile", path="a", srcPath="b", srcRevision=1),
    ],
)
def test_lines_that_say_nothing_valid(commit: Commit, bad: object) -> None:
    """They are refused, and the error shows no more than their beginning."""
    assert len(commit.refused(HEADER, bad)) < 500


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "/etc/passwd",
            "../a",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a//b",
            "a/",
            "C:/a",
            "\\a",
            "a\\..\\..\\b",
            ".git/config",
        ),
        *("a/.git/hooks/x", "a\0b", "a\nb", "a\x7f", "\ud800", "x" * 5000, None, 7, ["a"]),
    ],
)
def test_paths_that_lead_elsewhere(commit: Commit, path: object) -> None:
    """No operation takes them."""
    for bad in (line("deletedFile", path=path), line("lfsFile", path=path, oid=OID), line("file", path=path, content="")):
        assert len(commit.refused(HEADER, bad)) < 500


@pytest.mark.parametrize("value", [{"summary": 1}, {"description": 1}, {"parentCommit": "main"}, {"parentCommit": 7}])
def test_a_header_that_is_not_valid(commit: Commit, value: dict[str, object]) -> None:
    """It is refused."""
    assert commit.refused({"key": "header", "value": value})


def test_a_long_message(commit: Commit) -> None:
    """It is cut, at the end of a character."""
    message = commit.parsed(encoded({"key": "header", "value": {"summary": "é" * 4000}})).header.message
    assert MESSAGE_LIMIT - 1 == len(message.encode())
    assert message.endswith("é...")


def test_a_line_that_does_not_end(commit: Commit) -> None:
    """It is refused as soon as it is too long, whether an end follows or not."""
    for content in (b"x" * (LINE_LIMIT + 1), b" " * (LINE_LIMIT + 1) + b"\n"):
        with pytest.raises(LimitExceeded, match="size in bytes of a line"):
            commit.parsed(content)


def test_a_line_of_many_values(commit: Commit) -> None:
    """It is refused before it is parsed: an empty list takes many times its bytes."""
    assert "number of values" in commit.refused(HEADER, line("deletedFile", path=[[]] * 20_000))


def test_a_line_that_is_nested_deeply(commit: Commit) -> None:
    """It is refused."""
    with pytest.raises(InvalidInput):
        commit.parsed(encoded(HEADER) + b'{"key": ' + b"[" * 9000 + b"]" * 9000 + b"}")


def test_too_many_operations(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused."""
    monkeypatch.setattr(commit_lines, "OPERATIONS_LIMIT", 3)
    assert "number of operations" in commit.refused(HEADER, *[line("deletedFile", path="a")] * 4)
