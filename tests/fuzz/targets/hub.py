"""What a client of the Hub sends: the lines of a commit."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache

from filestore.errors import InvalidInput, LimitExceeded
from filestore.http.server.routes.hub import commit_lines
from filestore.http.server.routes.hub.commit_lines import CommitLines, CopyFile, PutFile
from tests.fuzz.target import PlantedFault, Target


@cache
def _spool() -> int:
    """A file for the lines, which disappears with this process."""
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108  # the name is a text
    return descriptor


def _check_commit(data: bytes) -> None:
    """Each path stays in the tree, and the contents stand one after the other before the lines that are still to be read."""
    descriptor = _spool()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)
    lines = CommitLines(descriptor, len(data))
    while not lines.is_finished:
        lines.parse_slice()
    assert "\r\n" not in lines.header.message
    end = 0
    for operation in lines.operations:
        paths = [operation.path, *([operation.source_path] if isinstance(operation, CopyFile) else [])]
        for path in paths:
            assert {"", ".", "..", ".git"}.isdisjoint(path.split("/"))
            assert "\0" not in path
        if isinstance(operation, PutFile):
            assert operation.offset == end
            end += operation.size
    assert end <= len(data)


def _commits() -> list[bytes]:
    header = {"key": "header", "value": {"summary": "a commit", "description": "of files", "parentCommit": "ab" * 20}}
    operations: list[dict[str, object]] = [
        {"key": "file", "value": {"path": "a/b.txt", "content": "dGV4dA==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 7}},
        {"key": "deletedFile", "value": {"path": "c"}},
        {"key": "deletedFolder", "value": {"path": "d/"}},
        {"key": "copyFile", "value": {"path": "e", "srcPath": "a/b.txt", "srcRevision": "main"}},
        {"key": "deletedFile", "value": {"path": "a/./b"}},
    ]
    whole = [b"".join(json.dumps(line).encode() + b"\n" for line in (header, operation)) for operation in operations]
    return [*whole, b"".join(json.dumps(line).encode() + b"\n" for line in (header, *operations[:-1])), b"{}\n", b"[[[["]


HUB_COMMIT = Target(
    check=_check_commit,
    errors=(InvalidInput, LimitExceeded),
    seeds=_commits,
    fault=PlantedFault(
        owner=commit_lines, function="checked_path", old='{"", ".", ".."}.isdisjoint(parts)', new='{""}.isdisjoint(parts)'
    ),
    parses=("filestore.http.server.routes.hub.commit_lines", "json.decoder"),
)
