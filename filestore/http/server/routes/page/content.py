"""Answer with the content of a version, or of one file of a stored directory: `/ui/content`.

A browser saves it and never shows it: what users stored must not run as a part of this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType

from aiohttp import web

from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound
from filestore.http.server.conditions import content_head, unchanged
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.content import send_stored
from filestore.http.server.routes.hub.documents import Entry
from filestore.http.server.routes.hub.resolve import file_head, send_unpacked
from filestore.http.server.routes.queries import required
from filestore.http.server.stored_trees import lost_as_damaged
from filestore.repository.local import LocalRepository
from filestore.transfer.stored_tree import EntryKind, StoredEntry, read_entry

PATH_LIMIT = 32768
"""Characters of a path in a directory. No entry of a zip file has a longer one."""
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        # A browser asks again, so that nobody reads it from the cache after the session has ended.
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
    }
)


async def send_content(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the bytes of a version or of a file in it, or with a range of them. A directory is a zip file."""
    record = await repository.record(Reference(id=required(context.request, "id")))
    path = context.request.query.get("path", "")
    context.noted.note_record(record)
    if path:
        return await _send_entry(context, repository, record, path)
    tag = str(record.digest)
    headers = {**HEADERS, "ETag": f'"{tag}"'}
    known = unchanged(context.request, tag, headers)
    if known is not None:
        return known
    head, wanted = content_head(context.request, tag, size=record.size, name=file_name(record), headers=headers)
    return await send_stored(context, repository, record.digest, wanted, head)


def file_name(record: Record) -> str:
    """Return the name of the file as which the content of a record is saved."""
    is_zip = record.kind is Kind.DIRECTORY and not record.name.lower().endswith(".zip")
    return f"{record.name}.zip" if is_zip else record.name


async def _send_entry(context: RequestContext, repository: LocalRepository, record: Record, path: str) -> web.StreamResponse:
    request = context.request
    if record.kind is not Kind.DIRECTORY or len(path) > PATH_LIMIT:
        raise EntryNotFound(record.full_name, path[:PATH_LIMIT])
    async with context.trees.reading(repository, record.digest) as opened:
        stored = opened.find(path)
        if stored is None or stored.kind is not EntryKind.FILE:
            raise EntryNotFound(record.full_name, path)
        context.noted.facts |= {"path": stored.path, "size": stored.size}
        # By the directory and the place in it, so that it is the same before and after the digests of the file are known.
        tag = Entry(stored.path, stored.size, False, record.digest, None).tag  # noqa: FBT003  # a row
        headers = {**HEADERS, "ETag": f'"{tag}"'}
        known = unchanged(request, tag, headers)
        if known is not None:
            return known
        head, wanted = file_head(request, tag, size=stored.size, path=path, headers=headers)
        if request.method == "HEAD":
            return head
        if wanted and (stored.is_deflated or stored.extent is None):
            async with (
                context.trees.unpacking(repository.namespace),
                lost_as_damaged(repository, record.digest),
                aclosing(read_entry(repository, opened.tree, stored, wanted.start, wanted.stop)) as pieces,
            ):
                return await send_unpacked(context, pieces, len(wanted), head)
    # Here the tree is not held any more: a slow client must not hold memory (I6).
    return await send_stored(context, repository, record.digest, _range_in_zip(stored, wanted), head)


def _range_in_zip(stored: StoredEntry, wanted: range) -> range:
    start = 0 if stored.extent is None else stored.extent.start
    return range(start + wanted.start, start + wanted.stop)
