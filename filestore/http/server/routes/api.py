"""Answer the requests of filestore clients: octet streams on the data path, JSON elsewhere.

Source: `docs/http-api.md`, which is the specification.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import BinaryIO

from aiohttp import web

from filestore.core.commits import MAIN, NewCommit, checked_branch, checked_message
from filestore.core.digest import DIGEST_SIZE, Digest, parse_digests
from filestore.core.manifest import MANIFEST_LIMIT, stated_count, stated_size
from filestore.core.names import DEFAULT_NAMESPACE, checked_new_full_name
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.tickets import make_ticket, ticket_as_json
from filestore.errors import (
    Busy,
    Forbidden,
    Interrupted,
    InvalidBatch,
    InvalidInput,
    InvalidName,
    LimitExceeded,
    NotFound,
    Stalled,
    StorageFull,
)
from filestore.http import wire
from filestore.http.server.body.connection import PIECE
from filestore.http.server.body.frames import Frames
from filestore.http.server.body.reader import PIECE_LIMIT, reading_body
from filestore.http.server.body.writer import FilePart
from filestore.http.server.context import RequestContext, make_spool_folder
from filestore.http.server.errors import problem_answer
from filestore.http.server.frame_urls import frame_urls_answer
from filestore.http.server.measuring import MEASURING
from filestore.http.server.routes.queries import limited_number, number_in, quoted_header, truth_in
from filestore.http.server.slow import answer_slowly, answer_while_it_grows
from filestore.http.server.validators import IMMUTABLE, matches_any
from filestore.repository.format_file import REPOSITORY_VERSION
from filestore.repository.index.protocol import ListingGrowth
from filestore.repository.ingest import PUBLISHED_AT_ONCE, Ingest
from filestore.repository.listing import listing_file
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import SpaceClaim
from filestore.system.files import BLOCK_SIZE, free_space
from filestore.system.metrics import added, added_starts
from filestore.system.threads import in_disk_thread

RECORDS_LIMIT = 1000


async def describe_repository(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the repository's identity, the version of its format, and the size of the largest file."""
    identity = (await repository.identity())._replace(upload_limit=context.upload_limit)
    return web.json_response({**identity._asdict(), "format": REPOSITORY_VERSION})


async def missing_chunks(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the digests whose chunks the repository does not have."""
    async with context.whole_body(what="the size of the request body in bytes", limit=wire.DIGESTS_LIMIT * DIGEST_SIZE) as body:
        digests = parse_digests(body)
    # Without the budget of the body, because `missing` takes budget for the frames that it reads.
    missing = await repository.missing(digests)
    return web.Response(body=b"".join(missing), content_type=wire.OCTETS)


async def put_chunks(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Store the frames of a batch. If the connection is cut, the frames that arrived completely are stored."""
    size = _size_of_batch(context)
    async with repository.space_for(size) as space, repository.ingest() as ingest:
        incoming = _IncomingBatch(wire.BatchParser(size=size), ingest, space, repository)
        try:
            async with reading_body(context, size=size) as body_reader:
                while await body_reader.read_slice(incoming.take, reach=incoming.reach):
                    await incoming.end_slice()
        except (Interrupted, Stalled):
            await ingest.commit()
            raise
        kept = await ingest.commit()
    context.noted.facts["chunks"] = incoming.batch.count
    if not incoming.batch.finished:
        raise InvalidBatch("its header is incomplete")
    return web.json_response({"kept": kept})


class _IncomingBatch:
    """Gives the frames of a batch to an `Ingest` while they arrive. `reach` and `take` run in a thread."""

    def __init__(self, batch: wire.BatchParser, ingest: Ingest, space: SpaceClaim, repository: LocalRepository) -> None:
        self.batch = batch
        self._ingest = ingest
        self._space = space
        self._repository = repository
        self._begun = 0
        """Frames that have begun in this slice."""
        self._is_promised = False
        self._is_checked = repository.quota.stored_size is None

    def reach(self, _: int) -> int:
        """Return the best size of the next piece: that of as many whole frames as it may have.

        To verify and to write them together takes a third less time under the interpreter's lock than one after the other.
        """
        if self.batch.has_header and not self._is_checked:
            return 0
        # A thread serves other connections after a few frames, because each tiny one makes a file.
        return self.batch.reach(PIECE_LIMIT, count=PUBLISHED_AT_ONCE - self._begun)

    def take(self, piece: memoryview) -> None:
        """Take the next piece. Raises InvalidBatch, MinFreeReached, StorageFull, StorageError."""
        self._space.written(len(piece))
        frames = self.batch.take_whole(piece)
        if frames is not None:
            self._begin(len(frames))
            self._ingest.write_whole(frames)
            return
        for part in self.batch.feed(piece):
            if isinstance(part, wire.BatchEntry):
                self._begin(1)
                self._ingest.start(part.digest, part.stored_size)
            else:
                self._ingest.write(part)

    def _begin(self, count: int) -> None:
        if not self._is_promised:
            # A frame takes a block at least. Once for all, because it asks the file system.
            self._space.add(BLOCK_SIZE * self.batch.count)
            self._is_promised = True
        self._begun += count

    async def end_slice(self) -> None:
        """Verify the frames that are whole. Raises QuotaExceeded if the announced ones cannot be stored, before they are read."""
        self._ingest.submit()
        self._begun = 0
        if self.batch.has_header and not self._is_checked:
            await self._repository.check_announced(self.batch.to_come())
            self._is_checked = True


async def get_chunks(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a batch of the requested frames, in their order. The header marks the frames that are absent.

    A client that accepts it may get URLs of the frames in their place.
    """
    async with context.whole_body(
        what="the size of the request body in bytes", limit=wire.BATCH_COUNT_LIMIT * DIGEST_SIZE
    ) as body:
        digests = parse_digests(body)
    context.noted.facts["chunks"] = len(digests)
    elsewhere = await frame_urls_answer(context, repository, digests)
    if elsewhere is not None:
        return elsewhere
    async with Frames(repository, digests, context.open_frames) as frames:
        entries = await frames.entries()
        header = wire.encode_batch_header(entries)
        response = web.StreamResponse(headers={"Content-Type": wire.OCTETS})
        async with context.answering(response, size=len(header) + sum(entry.stored_size for entry in entries)) as answer:
            await frames.send(answer, entries, header=header)
    return response


async def verify_chunks_route(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the digests of the chunks that are damaged. The repository then treats these chunks as missing."""
    async with context.whole_body(
        what="the size of the request body in bytes", limit=wire.BATCH_COUNT_LIMIT * DIGEST_SIZE
    ) as body:
        digests = parse_digests(body)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(context.rechecks.turn(repository.namespace))
        except Busy as error:
            return problem_answer(error)
        damaged = await context.rechecks.damaged(repository, digests, check_client=lambda: context.transport)
    return web.Response(body=b"".join(damaged), content_type=wire.OCTETS)


async def get_chunk(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with one frame."""
    digest = Digest.parse(context.request.match_info["digest"])
    context.noted.facts |= {"chunk": str(digest), "chunks": 1}
    # The tag is weak, because a chunk that was lost and pushed again may be encoded differently.
    headers = {"Content-Type": wire.OCTETS, "ETag": f'W/"{digest}"', "Cache-Control": IMMUTABLE}
    async with Frames(repository, [digest], context.open_frames) as frames:
        entries = await frames.entries()
        size = entries[0].stored_size
        if not size:
            raise NotFound(str(digest))
        if matches_any(context.request.if_none_match, str(digest), weak=True):
            return web.Response(status=304, headers=headers)
        response = web.StreamResponse(headers=headers)
        async with context.answering(response, size=size) as answer:
            if context.request.method != "HEAD":
                await frames.send(answer, entries)
    return response


async def commit_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Record a file whose chunks are in the repository."""
    request = context.request
    name = checked_new_full_name(_name_header(request))
    kind = _kind(request)
    branch = checked_branch(request.query.get("branch", MAIN))
    commit = NewCommit(_message_header(request), context.author, branch, request.query.get("parent"))
    context.noted.facts["name"] = name
    async with context.whole_body(what="the manifest's size in bytes", limit=MANIFEST_LIMIT) as manifest:
        context.check_upload_size(stated_size(manifest))
        count = stated_count(manifest)
        if context.chunks_limit is not None and count > context.chunks_limit:
            raise LimitExceeded("the number of the file's chunks", count, context.chunks_limit, "chunks_limit")
        record = await repository.commit(manifest, name=name, kind=kind, commit=commit)
    context.noted.note_record(record)
    return _answer(record, status=201)


async def list_files(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with records, the newest first: with a page of them, or with all if the request accepts lines of JSON."""
    if wire.LINES in context.request.headers.get("Accept", ""):
        return await _list_all(context, repository)
    records = await records_asked_for(context.request, repository)
    return web.json_response({"files": [record.as_json() for record in records]})


async def _list_all(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    with context.request.app[MEASURING].listing(repository.namespace):
        async with _listing_place(context) as (file, writes):
            growth = ListingGrowth(writes=writes)
            response = web.StreamResponse(headers={"Content-Type": wire.LINES})
            await answer_while_it_grows(context, response, file, growth, repository.write_listing(file, growth))
    return response


@asynccontextmanager
async def _listing_place(context: RequestContext) -> AsyncIterator[tuple[BinaryIO, Callable[[int], None]]]:
    """Give a file for a listing, and a function to call before each write. On a full disk, it is a small file in memory."""
    folder = context.spool_folder
    await in_disk_thread(make_spool_folder, folder)
    if hasattr(os, "memfd_create") and await in_disk_thread(free_space, folder) < 2 * PIECE:
        with os.fdopen(os.memfd_create("listing"), "w+b") as file:
            yield file, _check_small(file)
        return
    async with context.store.space_for(0, place=folder, for_reader=True) as space:
        with listing_file(folder) as file:
            yield file, space.written


def _check_small(file: BinaryIO) -> Callable[[int], None]:
    def check(size: int) -> None:
        # I6: a larger listing needs a disk.
        if file.tell() + size > PIECE:
            raise StorageFull("the spool folder of the server", "no space is left for the list of files")

    return check


async def records_asked_for(request: web.Request, repository: LocalRepository) -> list[Record]:
    """Return the records that a query's `limit` and `before` select, the newest first. Raises InvalidInput."""
    limit = limited_number(request, "limit", RECORDS_LIMIT)
    return await repository.records(limit=limit, before=number_in(request, "before"))


async def find_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the newest record of an id, a digest, a name, or a digest and a name together."""
    query = context.request.query
    file_id, digest, name = (query.get(key) for key in ("id", "digest", "name"))
    if (file_id is None) == (digest is None and name is None):
        raise InvalidInput("give an id, a digest, a name, or a digest and a name")
    if name is not None and digest is None:
        reference = Reference.of_name(name)
    else:
        reference = Reference(id=file_id, digest=Digest.parse(digest) if digest is not None else None, name=name)
    return _answer(await repository.record(reference))


async def get_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a record."""
    return _answer(await repository.record(Reference(id=context.request.match_info["id"])))


async def remove_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove a record, with its chunks if the query says so. Answer with the removed record."""
    request = context.request
    file_id, with_chunks = request.match_info["id"], truth_in(request, "chunks")
    context.noted.facts["record"] = file_id
    force, unless_newest = truth_in(request, "force"), truth_in(request, "unless_newest")
    updated_at = number_in(request, "updated_at")

    async def removed() -> web.Response:
        record = await repository.remove(
            file_id, with_chunks=with_chunks, force=force, updated_at=updated_at, unless_newest=unless_newest
        )
        context.noted.note_record(record)
        return _answer(record)

    return await answer_slowly(context, removed()) if with_chunks else await removed()


async def sign_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a path at which anyone may read the file for a limited time."""
    file_id = context.noted.facts["record"] = context.request.match_info["id"]
    return web.json_response({"path": await repository.sign(file_id)})


async def give_peer_ticket(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the ticket by which peers give frames of the namespace."""
    ticket = make_ticket(context.keys, repository.namespace, now=time.time())
    return web.json_response(ticket_as_json(ticket), headers={"Cache-Control": "no-store"})


async def get_manifest(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the canonical bytes of a manifest."""
    digest = Digest.parse(context.request.match_info["digest"])
    context.noted.facts["digest"] = str(digest)
    headers = {"Content-Type": wire.OCTETS, "ETag": f'"{digest}"', "Cache-Control": IMMUTABLE}
    with await repository.open_manifest(digest) as manifest:
        if matches_any(context.request.if_none_match, str(digest), weak=True):
            return web.Response(status=304, headers=headers)
        response = web.StreamResponse(headers=headers)
        size = manifest.seek(0, os.SEEK_END)
        async with context.answering(response, size=size) as answer:
            if context.request.method != "HEAD":
                await answer.send_files([FilePart(manifest, size)])
    return response


async def describe_status(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the measurements and the resource usage of all processes of the server."""
    # The numbers cover all namespaces. A token of one namespace must not learn about the others.
    if repository.namespace != DEFAULT_NAMESPACE:
        raise Forbidden("the server", DEFAULT_NAMESPACE)
    context.shared_times.own.note_usage()
    each_process = context.shared_times.each_process()
    stages = added([stage_times.passed() for stage_times in each_process])
    starts = added_starts([stage_times.starts() for stage_times in each_process])
    answer: dict[str, object] = {
        "processes": [stage_times.usage()._asdict() for stage_times in each_process],
        "stages": {stage.value: passed._asdict() for stage, passed in stages.items()},
    }
    # Only a runtime starts pipelines.
    if any(starts):
        answer["starts"] = starts._asdict()
    return web.json_response(answer)


def _answer(record: Record, *, status: int = 200) -> web.Response:
    return web.json_response(record.as_json(), status=status)


def _size_of_batch(context: RequestContext) -> int:
    size = context.request.content_length
    if size is None:
        raise web.HTTPLengthRequired(text="a batch of frames needs a Content-Length")
    limit = min(wire.BATCH_LIMIT, context.request_limit)
    if size > limit:
        raise LimitExceeded("the batch's size in bytes", size, limit, "request_limit" if limit < wire.BATCH_LIMIT else "")
    return size


def _name_header(request: web.Request) -> str:
    try:
        name = quoted_header(request, wire.NAME_HEADER)
    except UnicodeDecodeError:
        raise InvalidName(request.headers[wire.NAME_HEADER], "it is not valid UTF-8") from None
    if name is None:
        raise InvalidInput(f"the header {wire.NAME_HEADER} is missing; send the file's name in it, percent-encoded")
    return name


def _message_header(request: web.Request) -> str:
    try:
        return checked_message(quoted_header(request, wire.MESSAGE_HEADER) or "")
    except UnicodeDecodeError:
        raise InvalidInput(f"the header {wire.MESSAGE_HEADER} is not valid UTF-8") from None


def _kind(request: web.Request) -> Kind:
    text = request.query.get("kind", Kind.FILE.value)
    try:
        return Kind(text)
    except ValueError:
        raise InvalidInput(f"the kind is {text!r}; allowed are {', '.join(Kind)}") from None
