"""Answer the requests of the Hub API for repositories of the upstream.

A file that is not stored yet is sent while it arrives. The end of the file waits until the whole has the digest that the
upstream states. So a client may see other parts of a wrong file, but never has all of it.

Source: `file_download.py` and `hf_api.py` of the Python client.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from filestore.errors import (
    DamagedChunk,
    EntryNotFound,
    InvalidInput,
    NotFound,
    UpstreamFailed,
    UpstreamGated,
    UpstreamUnauthorized,
)
from filestore.http.server.auth import upstream_token
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.writer import BodyWriter
from filestore.http.server.conditions import unchanged
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.content import send_stored
from filestore.http.server.routes.hub.dialect import COMMIT_HEADER, note_commit
from filestore.http.server.routes.hub.listing import asked_paths
from filestore.http.server.routes.hub.names import HubRepository, path_in, repository_in, revision_in
from filestore.http.server.routes.hub.resolve import file_head
from filestore.system.threads import in_cpu_thread, in_disk_thread, shield_until_done
from filestore.upstream.arriving import ArrivingReader
from filestore.upstream.contents import StoredContent, WantedContent
from filestore.upstream.hub import Refused
from filestore.upstream.listing import Listing, UpstreamFile
from filestore.upstream.refs import refs_document
from filestore.upstream.upstream import MAIN, Upstream, UpstreamRevision

TOKEN_HEADER = "X-Upstream-Authorization"  # noqa: S105  # no token
"""The header with the caller's token at the upstream. Without it, that token may follow the one of this server in Authorization,
as in `TOKEN~hf_...`. The token of this server itself is never sent there.
"""
_TOKEN_LIMIT = 512
HELD_SIZE = 64 << 10
"""The last bytes of a file, which wait until the whole is verified."""
LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.025, 0.8
"""The first and the longest pause between two looks at a file that arrives. Many clients may wait for a slow upstream."""
_PAGE_LIMIT = 1000
_PATHS_SIZE = 4 << 20


class Answers:
    """Answer requests from one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def resolve(self, context: RequestContext) -> web.StreamResponse:
        """Answer with the bytes of a file, or with a range of them. HEAD reads no content."""
        revision = await self._find(context)
        request = context.request
        path = path_in(request)
        wanted = revision.content(path or "")
        if path is None or wanted is None:
            raise EntryNotFound(revision.name, path or "")
        context.noted.facts |= {"path": path, "size": wanted.file.size}
        tag, size = wanted.file.tag, wanted.file.size
        headers = {COMMIT_HEADER: revision.listing.commit, "ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
        known = unchanged(request, tag, headers)
        if known is not None:
            return known
        response, part = file_head(request, tag, size=size, path=path, headers=headers)
        if request.method == "HEAD":
            return response
        return await self._send(context, revision, wanted, part, response)

    async def describe(self, context: RequestContext) -> web.StreamResponse:
        """Answer with the description of a revision, and the names of its files."""
        revision = await self._find(context)
        with_blobs = _truth(context.request.query, "blobs")
        made = in_cpu_thread(_description, repository_in(context.request), revision.listing, with_blobs=with_blobs)
        return await context.answer_json(await made, {COMMIT_HEADER: revision.listing.commit})

    async def list_tree(self, context: RequestContext) -> web.StreamResponse:
        """Answer with a page of the files and folders of a folder."""
        revision = await self._find(context)
        request = context.request
        folder = path_in(request)
        limit = _number(request.query.get("limit"), default=_PAGE_LIMIT)
        after = request.query.get("cursor", "")
        is_recursive = _truth(request.query, "recursive")
        found = None
        if folder is not None:
            found = await in_cpu_thread(_entries, revision.listing, folder, recursive=is_recursive, after=after, limit=limit + 1)
        if folder is None or found is None:
            raise EntryNotFound(revision.name, folder or request.match_info.get("path", ""))
        answer = _json(json.dumps(found[:limit]).encode(), revision)
        if len(found) > limit:
            query = {"recursive": str(is_recursive).lower(), "limit": str(limit), "cursor": found[limit - 1]["path"]}
            path = f"{repository_in(request).api_path}/tree/{revision.listing.commit}" + (f"/{folder}" if folder else "")
            answer.headers["Link"] = f'<{context.base_url}{quote(path)}?{urlencode(query)}>; rel="next"'
        return answer

    async def describe_paths(self, context: RequestContext) -> web.StreamResponse:
        """Answer with the files and folders at the paths that a form lists."""
        async with context.whole_body(what="the size of the list of paths in bytes", limit=_PATHS_SIZE) as body:
            paths, _ = await in_cpu_thread(asked_paths, body, is_json=context.request.content_type == "application/json")
        revision = await self._find(context)
        made = in_cpu_thread(_at_paths, revision.listing, paths)
        return await context.answer_json(await made, {COMMIT_HEADER: revision.listing.commit})

    async def list_refs(self, context: RequestContext) -> web.StreamResponse:
        """Answer with the branches and tags that the upstream lists."""
        revision = await self._find(context)
        refs = await self._upstream.refs(revision)
        return _json(json.dumps(refs_document(refs)).encode(), revision)

    async def check(self, context: RequestContext) -> web.StreamResponse:
        """Answer whether the caller may read a repository."""
        return _json(b"{}", await self._find(context))

    async def is_known(self, context: RequestContext, hub: HubRepository) -> bool:
        """Return whether the upstream has a repository, as far as the caller may know. It does not if the upstream is away."""
        try:
            await self._upstream.find(hub.type, hub.name, MAIN, token=_token(context.request))
        except UpstreamGated:
            return True
        except (NotFound, UpstreamFailed, UpstreamUnauthorized):
            return False
        return True

    async def _find(self, context: RequestContext) -> UpstreamRevision:
        request = context.request
        asked = repository_in(request)
        revision = (revision_in(request) or MAIN).removeprefix("refs/heads/")
        context.noted.facts["name"] = asked.name
        found = await self._upstream.find(asked.type, asked.name, revision, token=_token(request))
        context.noted.facts["commit"] = found.listing.commit
        note_commit(request, found.listing.commit)
        return found

    async def _send(
        self,
        context: RequestContext,
        revision: UpstreamRevision,
        wanted: WantedContent,
        part: range,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        stored = await self._upstream.contents.find(wanted)
        if stored is None and self._upstream.is_offline and not await self._upstream.contents.has_arrived(wanted):
            raise EntryNotFound(wanted.name, wanted.path)
        if stored is None:
            fetch = self._upstream.contents.fetch(wanted, token=revision.token)
            reader = self._upstream.contents.reader(wanted)
            try:
                arriving = _Arriving(context, reader, fetch, part, free_size=wanted.file.size - HELD_SIZE)
                if await arriving.begins():
                    async with context.answering(response, size=len(part)) as answer:
                        await arriving.send(answer)
                    return response
            except Refused as refused:
                # It has shown the file in its lists.
                raise UpstreamGated(wanted.name) if refused.status != 404 else EntryNotFound(wanted.name, wanted.path) from None
            finally:
                await shield_until_done(in_disk_thread(reader.close))
            stored = await self._upstream.contents.find(wanted)
        if stored is None:
            raise UpstreamFailed(wanted.name, f"{wanted.path!r} was removed again, because others needed its space")
        return await self._send_stored(context, wanted, stored, part, response)

    async def _send_stored(
        self,
        context: RequestContext,
        wanted: WantedContent,
        stored: StoredContent,
        part: range,
        response: web.StreamResponse,
    ) -> web.StreamResponse:
        contents = self._upstream.contents
        try:
            async with contents.using(wanted):
                return await send_stored(context, contents.repository, stored.digest, part, response)
        except (DamagedChunk, NotFound):
            # The upstream still has it: the next request fetches it again.
            await contents.forget(wanted)
            raise


class _Arriving:
    """Send a part of a file that arrives. A client holds at most 256 KiB of memory."""

    def __init__(
        self, context: RequestContext, reader: ArrivingReader, fetch: asyncio.Task[None], part: range, *, free_size: int
    ) -> None:
        """Send the bytes before `free_size` as soon as they are there, and the others when the whole is verified."""
        self._context = context
        self._reader = reader
        self._fetch = fetch
        self._place = part.start
        self._stop = part.stop
        self._free_size = free_size
        self._has_begun = False
        self._pause = LOOK_SECONDS

    async def begins(self) -> bool:
        """Wait until bytes can be sent. Return False if the whole content is stored, and its file is gone already.

        Raises what the fetch raises, and ConnectionError if the client is gone.
        """
        while True:
            if await self._ready() > self._place:
                return True
            if self._fetch.done():
                self._fetch.result()
                return await self._ready() > self._place
            await self._wait()

    async def send(self, answer: BodyWriter) -> None:
        """Send all bytes. Raises what the fetch raises; then the connection must be cut."""
        self._has_begun = True
        while self._place < self._stop:
            ready = await self._ready()
            if ready > self._place:
                piece = bytearray(min(PIECE, ready - self._place))
                count = await in_disk_thread(self._reader.read, memoryview(piece), self._place)
                await answer.send(memoryview(piece)[:count])
                self._place += count
                self._pause = LOOK_SECONDS
            elif self._fetch.done():
                self._fetch.result()
                if await self._ready() <= self._place:
                    raise ConnectionResetError("the content was stored by another process, from another file")
            else:
                await self._wait()

    async def _ready(self) -> int:
        """Return up to which byte the file may be sent now."""
        look = await in_disk_thread(self._reader.look)
        if look is not None and look.is_taken_back:
            if self._has_begun:
                raise ConnectionResetError("bytes that were sent were taken back")
            await in_disk_thread(self._reader.close)
            look = await in_disk_thread(self._reader.look)
        if look is None:
            return self._place
        if look.is_verified:
            return self._stop
        return max(self._place, min(look.size, self._free_size, self._stop))

    async def _wait(self) -> None:
        """Wait for a change, longer each time. Raises ConnectionError if the client is gone."""
        _ = self._context.transport
        await asyncio.wait([self._fetch], timeout=self._pause)
        self._pause = min(2 * self._pause, LONGEST_LOOK_SECONDS)


def _token(request: web.Request) -> str | None:
    """Return the caller's token at the upstream. Raises InvalidInput if the header is malformed."""
    header = request.headers.get(TOKEN_HEADER)
    if header is None:
        return upstream_token(request.headers.get("Authorization"))
    kind, _, token = header.partition(" ")
    token = token.strip()
    if kind.lower() != "bearer" or not token.isascii() or not token.isprintable() or " " in token or len(token) > _TOKEN_LIMIT:
        raise InvalidInput(f"the header {TOKEN_HEADER} must be: Bearer TOKEN")
    return token or None


def _json(body: bytes, revision: UpstreamRevision) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={COMMIT_HEADER: revision.listing.commit})


def _description(asked: HubRepository, listing: Listing, *, with_blobs: bool) -> bytes:
    siblings = [{"rfilename": path, **(_sibling(file) if with_blobs else {})} for path, file in sorted(listing.files.items())]
    document = {
        "_id": listing.commit[:24],
        "id": asked.name,
        **({"modelId": asked.name} if asked.type == "models" else {}),
        "sha": listing.commit,
        "private": listing.is_private,
        # Whoever is answered has access.
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        **listing.about,
        "siblings": siblings,
    }
    return json.dumps(document).encode()


def _sibling(file: UpstreamFile) -> dict[str, Any]:
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {"size": file.size, "blobId": file.blob_id, **({} if file.sha256 is None else {"lfs": lfs})}


def _entry(path: str, file: UpstreamFile | None) -> dict[str, Any]:
    if file is None:
        # Clients want an id of a folder, and compare it with nothing.
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {"type": "file", "oid": file.blob_id, "size": file.size, "path": path, **({} if file.sha256 is None else {"lfs": lfs})}


def _entries(listing: Listing, folder: str, *, recursive: bool, after: str, limit: int) -> list[dict[str, Any]] | None:
    """Return at most `limit` entries of a folder whose paths follow `after`. Return None if the folder does not exist."""
    paths: dict[str, UpstreamFile | None] = dict.fromkeys(listing.folders())
    if folder and folder not in paths:
        return None
    paths |= listing.files
    inside = f"{folder}/" if folder else ""
    names = (path for path in paths if path.startswith(inside) and path > after)
    wanted = sorted(path for path in names if recursive or "/" not in path[len(inside) :])
    return [_entry(path, paths[path]) for path in wanted[:limit]]


def _at_paths(listing: Listing, paths: list[str]) -> bytes:
    known: dict[str, UpstreamFile | None] = {**dict.fromkeys(listing.folders()), **listing.files}
    asked = dict.fromkeys(path.strip("/") for path in paths)
    return json.dumps([_entry(path, known[path]) for path in asked if path in known]).encode()


def _truth(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in {"true", "1"}


def _number(text: str | None, *, default: int) -> int:
    return (
        min(default, max(1, int(text))) if text is not None and text.isascii() and text.isdigit() and len(text) < 9 else default
    )
