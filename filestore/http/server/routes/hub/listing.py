"""Answer what a repository has: its description, files, branches, tags and commits, and which repositories there are (R3 to R8).

Source: `hf_api.py` of the Python client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from urllib.parse import parse_qsl, quote

from aiohttp import web

from filestore.core.commits import Commit
from filestore.core.records import parse_json, value_count
from filestore.errors import EntryNotFound, InvalidInput, LimitExceeded, RevisionNotFound
from filestore.http.server.body.connection import PIECE
from filestore.http.server.context import RequestContext, Spool
from filestore.http.server.routes.hub.dialect import COMMIT_HEADER
from filestore.http.server.routes.hub.documents import (
    Document,
    account_document,
    card_document,
    commit_document,
    cursor_after,
    entry_document,
    next_page,
    place_of,
    refs_document,
    repository_document,
    sibling_document,
)
from filestore.http.server.routes.hub.names import HubRepository, entry_path, path_in, repository_in, revision_in
from filestore.http.server.routes.hub.snapshot import Snapshot, commit_of, snapshot_of
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread

PAGE_LIMIT = 1000
"""The most entries, commits or repositories in one answer. A client asks for the next page by the Link header."""
SIBLINGS_LIMIT = 50_001
"""The most files that the description of a repository lists. Clients do not rely on a list of more than 50,000."""
PATHS_LIMIT = 10_000
"""The most paths in one question."""
_PATHS_SIZE = 4 << 20
"""Bytes of the body of such a question."""
_SIBLINGS_AT_ONCE = 2000
_JSON = "application/json"


async def describe(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the description of a repository at a revision, and the names of its files."""
    asked = repository_in(context.request)
    commit = await commit_of(context, repository, asked, revision_in(context.request))
    first = await repository.history(asked.name, revision=commit.id, limit=1, before=2)
    with_blobs = _truth(context.request.query, "blobs")
    headers = {COMMIT_HEADER: commit.id}
    async with AsyncExitStack() as stack:
        async with snapshot_of(context, repository, asked, commit) as snapshot:
            created_at = first[0].created_at if first else commit.created_at
            document = repository_document(asked, commit, created_at=created_at, used_storage=snapshot.used_storage)
            document |= card_document(snapshot.card)
            body = await _gathered_all(context, _described(document, snapshot, with_blobs=with_blobs), stack)
        # Here the tree is not held any more: a slow client must not hold memory (I6).
        if isinstance(body, bytes):
            return web.Response(body=body, content_type=_JSON, headers=headers)
        return await context.answer_with(body, web.StreamResponse(headers={"Content-Type": _JSON, **headers}))


def _described(document: Document, snapshot: Snapshot, *, with_blobs: bool) -> Iterator[bytes]:
    """Yield the description of a repository in pieces."""
    yield json.dumps(document).encode()[:-1] + b', "siblings": ['
    opened = snapshot.opened
    if opened is None or with_blobs:
        yield from _siblings(snapshot, with_blobs=with_blobs)
    else:
        if opened.file_list is None:
            # Each download of a whole repository asks for it, also if nothing has changed.
            opened.file_list = b"".join(_siblings(snapshot, with_blobs=False))
        yield opened.file_list
    yield b"]}"


def _siblings(snapshot: Snapshot, *, with_blobs: bool) -> Iterator[bytes]:
    """Yield the files of a repository in JSON, without the brackets around the list."""
    files = islice(snapshot.files(), SIBLINGS_LIMIT)
    separator = b""
    while siblings := [sibling_document(file, with_blobs=with_blobs) for file in islice(files, _SIBLINGS_AT_ONCE)]:
        yield separator + json.dumps(siblings, ensure_ascii=False, separators=(",", ":")).encode()[1:-1]
        separator = b","


async def list_tree(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a page of the files and folders of a folder."""
    request = context.request
    asked = repository_in(request)
    commit = await commit_of(context, repository, asked, revision_in(request))
    folder = path_in(request)
    after = _place(request)
    limit = _limit(request)
    recursive, expand = (_truth(request.query, key) for key in ("recursive", "expand"))
    async with snapshot_of(context, repository, asked, commit) as snapshot:
        if folder is None or not snapshot.has_folder(folder):
            raise EntryNotFound(asked.name, folder or request.match_info.get("path", ""))
        body, last = await in_cpu_thread(
            _page, snapshot, folder, recursive=recursive, after=after, limit=limit, commit=commit if expand else None
        )
    headers = {COMMIT_HEADER: commit.id}
    if last is not None:
        # By the commit: the branch may move before the next page is asked for.
        path = f"{asked.api_path}/tree/{commit.id}" + (f"/{folder}" if folder else "")
        query = {"recursive": str(recursive).lower(), "expand": str(expand).lower(), "limit": str(limit)}
        headers["Link"] = _next(context, path, query, last)
    return web.Response(body=body, content_type=_JSON, headers=headers)


def _page(
    snapshot: Snapshot, folder: str, *, recursive: bool, after: str | None, limit: int, commit: Commit | None
) -> tuple[bytes, str | None]:
    """Return a page in JSON, and the path after which the next one begins, or None if this is the last one."""
    entries = snapshot.entries(folder, recursive=recursive, after=after, limit=limit + 1)
    shown = entries[:limit]
    body = json.dumps([entry_document(entry, commit=commit) for entry in shown]).encode()
    return body, shown[-1].path if len(entries) > limit else None


async def describe_paths(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the files and folders at the paths that a form lists. Those that are absent are left out."""
    request = context.request
    asked = repository_in(request)
    async with context.whole_body(what="the size of the list of paths in bytes", limit=_PATHS_SIZE) as body:
        paths, expand = await in_cpu_thread(asked_paths, body, is_json=request.content_type == _JSON)
    commit = await commit_of(context, repository, asked, revision_in(request))
    async with snapshot_of(context, repository, asked, commit) as snapshot:
        found = [await in_cpu_thread(_found, snapshot, paths, commit if expand else None)]
    return await context.answer_json(found.pop(), {COMMIT_HEADER: commit.id})


def asked_paths(body: bytes, *, is_json: bool) -> tuple[list[str], bool]:
    """Return the paths in a form or in JSON, each once, and whether the last commit is asked for too."""
    count = value_count(body) if is_json else body.count(b"&")
    if count > PATHS_LIMIT + 8:
        raise LimitExceeded("the number of paths", count, PATHS_LIMIT)
    try:
        if is_json:
            values = parse_json(body)
            paths, expand = values["paths"], values.get("expand", False)
        else:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
            paths = [value for key, value in pairs if key in {"paths", "paths[]"}]
            expand = any(key == "expand" and value.lower() in {"true", "1"} for key, value in pairs)
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput("the body is neither a form nor a JSON object that lists paths") from None
    return list(dict.fromkeys(paths)), expand is True


def _found(snapshot: Snapshot, paths: Sequence[str], commit: Commit | None) -> bytes:
    valid = (entry_path(path.strip("/")) for path in paths)
    entries = (snapshot.find(path) for path in valid if path)
    return json.dumps([entry_document(entry, commit=commit) for entry in entries if entry is not None]).encode()


async def list_refs(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the branches and the tags of a repository."""
    asked = repository_in(context.request)
    context.noted.facts["name"] = asked.name
    labels = await repository.labels(asked.name)
    try:
        head = await repository.find_commit(asked.name)
    except RevisionNotFound:
        head = None
    return await _answer(lambda: refs_document(head, labels))


async def list_commits(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a page of the commits before a revision, the newest first."""
    request = context.request
    asked = repository_in(request)
    commit = await commit_of(context, repository, asked, revision_in(request))
    place, limit = _place(request), _limit(request)
    before = None if place is None else _number(place)
    commits = await repository.history(asked.name, revision=commit.id, limit=limit, before=before)
    formatted = "formatted" in request.query.getall("expand[]", [])
    headers = {COMMIT_HEADER: commit.id}
    if len(commits) == limit and commits[-1].number > 1:
        query = {"limit": str(limit)} | ({"expand[]": "formatted"} if formatted else {})
        headers["Link"] = _next(context, f"{asked.api_path}/commits/{commit.id}", query, str(commits[-1].number))
    return await _answer(lambda: [commit_document(each, is_formatted=formatted) for each in commits], headers)


async def list_repositories(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a page of the repositories that the token sees, in the order of their names."""
    request = context.request
    kind = request.match_info["type"]
    limit = _limit(request)
    search, author = (request.query.get(key) or None for key in ("search", "author"))
    page = await repository.list_names(search=search, owner=author, after=_place(request), limit=limit)

    def documents() -> list[Document]:
        return [
            repository_document(HubRepository(kind, name), commit, created_at=commit.created_at, used_storage=commit.size)
            for name, commit in page.heads
        ]

    headers = {}
    if page.next_after is not None:
        query = {"limit": str(limit)} | {key: value for key, value in (("search", search), ("author", author)) if value}
        headers["Link"] = _next(context, f"/api/{kind}", query, page.next_after)
    return await _answer(documents, headers)


async def describe_account(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with what the token of the request is."""
    access = context.noted.access
    return web.json_response(
        account_document(
            name=repository.namespace,
            token_id="" if access is None else access.token_id,
            label="" if access is None else access.label,
            scope="read" if access is None else str(access.scope),
            owners=await repository.owners(),
        )
    )


async def check_access(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer whether the token may read a repository: it may if the repository exists for it."""
    await commit_of(context, repository, repository_in(context.request), None)
    return web.json_response({})


async def _answer(made: Callable[[], object], headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON of many items, which a thread makes and encodes."""
    body = await in_cpu_thread(lambda: json.dumps(made()).encode())
    return web.Response(body=body, content_type=_JSON, headers=headers)


async def _gathered_all(context: RequestContext, pieces: Iterator[bytes], stack: AsyncExitStack) -> bytes | Spool:
    """Return JSON that a thread makes piece by piece. If it is long, it waits in a spool, until the end of `stack`."""
    piece = await in_cpu_thread(_gathered, pieces)
    if len(piece) < PIECE:
        return piece
    spool = await stack.enter_async_context(context.spool())
    while piece:
        await spool.write(piece)
        piece = await in_cpu_thread(_gathered, pieces)
    return spool


def _gathered(pieces: Iterator[bytes]) -> bytes:
    """Return the next pieces: as many as an answer may have in memory, or one that is larger. The result is empty at the end."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= PIECE:
            break
    return bytes(gathered)


def _next(context: RequestContext, path: str, query: Mapping[str, str], place: str) -> str:
    return next_page(context.base_url + quote(path), {**query, "cursor": cursor_after(place)})


def _place(request: web.Request) -> str | None:
    cursor = request.query.get("cursor")
    place = None if cursor is None else place_of(cursor)
    if cursor is not None and place is None:
        raise InvalidInput("the cursor is not one that this server made")
    return place


def _number(place: str) -> int:
    if not place.isascii() or not place.isdigit() or len(place) > 18:
        raise InvalidInput("the cursor is not one that this server made")
    return int(place)


def _limit(request: web.Request) -> int:
    """Return the number of items of a page. Clients may ask for more than the server gives at once."""
    text = request.query.get("limit", str(PAGE_LIMIT))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput(f"limit is {text[:40]!r}; a whole number is expected")
    return min(max(int(text), 1), PAGE_LIMIT)


def _truth(query: Mapping[str, str], key: str) -> bool:
    """Return whether a query says yes. Each client writes it in the way of its language."""
    return query.get(key, "").lower() in {"true", "1"}
