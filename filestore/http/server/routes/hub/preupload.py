"""Answer what clients of the Hub ask before they upload: how each file is sent, and whether a README is valid."""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as brief
from typing import Any, NamedTuple

from aiohttp import web

from filestore.errors import InvalidInput
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.hub.commit_lines import checked_path
from filestore.http.server.routes.hub.documents import LFS_SIZE
from filestore.http.server.routes.hub.ignored import IgnoreRules
from filestore.http.server.routes.hub.names import repository_in, revision_in
from filestore.http.server.routes.hub.snapshot import Snapshot, commit_of, snapshot_of
from filestore.http.server.routes.sdk.multipart import json_body
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread

FILES_LIMIT = 1000
"""Files in a request. Clients ask about 256."""
BODY_LIMIT = 8 << 20
README_LIMIT = 16 << 20
_TOGETHER = 16
_IGNORE_LIMIT = 64 << 10


class _File(NamedTuple):
    path: str
    size: int


async def preupload(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer for each file whether it comes with the commit or as an LFS object, and what is there now at its path."""
    hub = repository_in(context.request)
    message = await json_body(context, limit=BODY_LIMIT)
    files = _files(message.get("files"))
    ignored = await _ignored(files, message.get("gitIgnore"))
    commit = await commit_of(context, repository, hub, revision_in(context.request))
    answered: list[dict[str, Any]] = []
    async with snapshot_of(context, repository, hub, commit) as snapshot:
        for each, is_ignored in zip(files, ignored, strict=True):
            mode = "regular" if each.size < LFS_SIZE else "lfs"
            answered.append({"path": each.path, "uploadMode": mode, "shouldIgnore": is_ignored, **_stored(snapshot, each)})
    return web.json_response({"files": answered, "commitOid": commit.id})


async def validate_yaml(context: RequestContext, _: LocalRepository) -> web.StreamResponse:
    """Answer that a README is valid: its metadata mean nothing here."""
    message = await json_body(context, limit=README_LIMIT)
    if not isinstance(message.get("content"), str):
        raise InvalidInput("content is not a text")
    return web.json_response({"errors": [], "warnings": []})


def _stored(snapshot: Snapshot, file: _File) -> dict[str, str]:
    """Return the id of the file that is there, if it may be the same one. Clients leave out a file that has it."""
    entry = snapshot.find(file.path)
    if entry is None or entry.is_folder or entry.size != file.size or entry.digests is None:
        return {}
    return {"oid": entry.tag}


async def _ignored(files: Sequence[_File], text: object) -> list[bool]:
    if text is None:
        return [False] * len(files)
    if not isinstance(text, str) or len(text) > _IGNORE_LIMIT:
        raise InvalidInput(f"gitIgnore is not a text of at most {_IGNORE_LIMIT} characters")
    rules = IgnoreRules(text)
    found: list[bool] = []
    for start in range(0, len(files), _TOGETHER):
        # In slices, between which others have their turn.
        found += await in_cpu_thread(_ignored_of, rules, files[start : start + _TOGETHER])
    return found


def _ignored_of(rules: IgnoreRules, files: Sequence[_File]) -> list[bool]:
    return [rules.ignores(each.path) for each in files]


def _files(files: object) -> list[_File]:
    if not isinstance(files, list) or len(files) > FILES_LIMIT:
        raise InvalidInput(f"files is not a list of at most {FILES_LIMIT} objects with path and size")
    found = []
    for each in files:
        path, size = (each.get("path"), each.get("size")) if isinstance(each, dict) else (None, None)
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise InvalidInput(f"the size of a file is {brief(size)}; a number of bytes is expected")
        found.append(_File(checked_path(path), size))
    return found
