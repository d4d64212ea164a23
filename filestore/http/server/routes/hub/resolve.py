"""Answer GET and HEAD for one file of a repository, or for a range of it (R1 and R2).

Source: `file_download.py` of the Python client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing

from aiohttp import web

from filestore.http.server.conditions import content_head, unchanged
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.content import send_stored
from filestore.http.server.routes.hub.dialect import COMMIT_HEADER
from filestore.http.server.routes.hub.documents import Entry
from filestore.http.server.routes.hub.names import path_in, repository_in, revision_in
from filestore.http.server.routes.hub.snapshot import Snapshot, commit_of, snapshot_of
from filestore.http.server.stored_trees import lost_as_damaged
from filestore.http.server.validators import IMMUTABLE
from filestore.repository.local import LocalRepository
from filestore.transfer.stored_tree import read_entry

UNSTATED_SIZE = 50_000_000_000
"""The answer to HEAD states no size above this one. Clients refuse to download a larger file by plain HTTP before they begin,
unless they learn its size from the answer to GET.
"""
_PIECE = 256 << 10


async def resolve(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the bytes of a file, or with a range of them. HEAD reads no content."""
    request = context.request
    asked, revision = repository_in(request), revision_in(request)
    commit = await commit_of(context, repository, asked, revision)
    async with snapshot_of(context, repository, asked, commit) as snapshot:
        path = path_in(request)
        entry = snapshot.file(path)
        stored = snapshot.stored(entry.path)
        context.noted.facts |= {"path": entry.path, "size": entry.size}
        headers = _headers(snapshot, entry, is_fixed=revision == commit.id)
        known = unchanged(request, entry.tag, headers)
        if known is not None:
            return known
        response, wanted = file_head(request, entry.tag, size=entry.size, path=entry.path, headers=headers)
        if request.method == "HEAD":
            return response
        if snapshot.opened is not None and stored is not None and (stored.is_deflated or stored.extent is None) and wanted:
            async with (
                context.trees.unpacking(repository.namespace),
                lost_as_damaged(repository, commit.digest),
                aclosing(read_entry(repository, snapshot.opened.tree, stored, wanted.start, wanted.stop)) as pieces,
            ):
                return await send_unpacked(context, pieces, len(wanted), response)
    # Here the tree is not held any more: a slow client must not hold memory (I6).
    start = 0 if stored is None or stored.extent is None else stored.extent.start
    return await send_stored(context, repository, commit.digest, range(start + wanted.start, start + wanted.stop), response)


def _headers(snapshot: Snapshot, entry: Entry, *, is_fixed: bool) -> dict[str, str]:
    return {
        COMMIT_HEADER: snapshot.commit.id,
        "ETag": f'"{entry.tag}"',
        # The tag of a file changes once, when its digests become known.
        "Cache-Control": IMMUTABLE if is_fixed and entry.digests is not None else "private, no-cache",
    }


def file_head(
    request: web.Request, tag: str, *, size: int, path: str, headers: Mapping[str, str]
) -> tuple[web.StreamResponse, range]:
    """Return what `content_head` does, for a file at a path. To HEAD, it is the whole answer."""
    response, wanted = content_head(request, tag, size=size, name=path.rpartition("/")[2], headers=headers)
    if request.method == "HEAD" and size <= UNSTATED_SIZE:
        response.content_length = size
    return response, wanted


async def send_unpacked(
    context: RequestContext, pieces: AsyncIterator[bytes], size: int, response: web.StreamResponse
) -> web.StreamResponse:
    """Send a part of a file that is not a range of the stored zip file: it is deflated, or only its header says where it is."""
    # The first piece before the head: a damaged chunk can still be answered with an error.
    first = await anext(pieces, b"")
    async with context.answering(response, size=size) as answer:
        async for piece in _small(first, pieces):
            await answer.send(piece)
    return response


async def _small(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
    """Yield all pieces in parts that an answer takes."""
    for start in range(0, len(first), _PIECE):
        yield memoryview(first)[start : start + _PIECE]
    async for piece in pieces:
        for start in range(0, len(piece), _PIECE):
            yield memoryview(piece)[start : start + _PIECE]
