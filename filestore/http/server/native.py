"""The native routes: octet-streams on the data path, JSON beside it. Normative text: `docs/http-api.md`."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from filestore.aio import in_disk_thread
from filestore.digest import DIGEST_SIZE, Digest, parse_digests
from filestore.errors import DamagedChunk, Interrupted, InvalidBatch, InvalidInput, InvalidName, LimitExceeded, NotFound, Stalled
from filestore.http import wire
from filestore.http.server.exchange import Answer, Exchange
from filestore.http.server.validators import IMMUTABLE, matches_any
from filestore.manifest import MANIFEST_LIMIT
from filestore.objects import Kind, Record, Reference
from filestore.repository import REPOSITORY_VERSION, LocalRepository

_NUMBER = re.compile(r"[0-9]{1,18}")

OPEN_TOGETHER = 16
"""Frames that an answer opens at once; the next as many are opened while these are sent."""
RECORDS_LIMIT = 1000


async def describe_repository(_: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """What the repository says of itself."""
    identity = await repository.identity()
    return web.json_response({**identity._asdict(), "format": REPOSITORY_VERSION})


async def missing_chunks(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Those of the digests asked about that must be sent."""
    async with exchange.whole_body(what="the question's size in bytes", limit=wire.DIGESTS_LIMIT * DIGEST_SIZE) as body:
        missing = await repository.missing(parse_digests(body))
    return web.Response(body=b"".join(missing), content_type=wire.OCTETS)


async def put_chunks(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Keep the frames of a batch; of one that is cut off, those that arrived whole."""
    size = exchange.request.content_length
    if size is None:
        raise web.HTTPLengthRequired(text="a batch of frames needs a Content-Length")
    if size > wire.BATCH_LIMIT:
        raise LimitExceeded("the batch's size in bytes", size, wire.BATCH_LIMIT)
    batch = wire.BatchParser(size=size)
    async with repository.delivery() as delivery:
        try:
            while piece := await exchange.receive():
                for part in batch.feed(piece):
                    if isinstance(part, wire.BatchEntry):
                        await delivery.begin(part.digest, part.stored_size)
                    else:
                        await delivery.write(part)
        except (Interrupted, Stalled):
            await delivery.keep()
            raise
        kept = await delivery.keep()
    if not batch.finished:
        raise InvalidBatch("it ends before its header does")
    return web.json_response({"kept": kept})


async def get_chunks(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """A batch of the frames asked for, in that order; what is absent is marked in its header."""
    async with exchange.whole_body(what="the question's size in bytes", limit=wire.BATCH_COUNT_LIMIT * DIGEST_SIZE) as body:
        digests = parse_digests(body)
    entries = await _batch_entries(repository, digests)
    header = wire.encode_batch_header(entries)
    response = web.StreamResponse(headers={"Content-Type": wire.OCTETS})
    async with exchange.answering(response, size=len(header) + sum(entry.stored_size for entry in entries)) as answer:
        await answer.send(header)
        present = [entry for entry in entries if entry.stored_size]
        async with aclosing(_opened_ahead(repository, [entry.digest for entry in present])) as frames:
            for entry in present:
                await _send_frame(answer, await anext(frames), entry)
    return response


async def recheck_chunks(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Those of the chunks asked about that are damaged, and are forgotten now."""
    async with exchange.whole_body(what="the question's size in bytes", limit=wire.BATCH_COUNT_LIMIT * DIGEST_SIZE) as body:
        digests = parse_digests(body)
    return web.Response(body=b"".join(await repository.recheck(digests)), content_type=wire.OCTETS)


async def get_chunk(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """One frame."""
    digest = Digest.parse(exchange.request.match_info["digest"])
    # Weak: the same chunk may have been encoded differently when it was pushed again after a loss.
    headers = {"Content-Type": wire.OCTETS, "ETag": f'W/"{digest}"', "Cache-Control": IMMUTABLE}
    async with aclosing(_opened_ahead(repository, [digest])) as frames:
        frame = await anext(frames)
        if frame is None:
            raise NotFound(str(digest))
        if matches_any(exchange.request.if_none_match, str(digest), weak=True):
            return web.Response(status=304, headers=headers)
        response = web.StreamResponse(headers=headers)
        async with exchange.answering(response, size=frame.size) as answer:
            if exchange.request.method != "HEAD":
                await _send_frame(answer, frame, wire.BatchEntry(digest, frame.size))
    return response


async def commit_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Record a file whose chunks are there."""
    name = _name_header(exchange.request)
    kind = _kind(exchange.request)
    async with exchange.whole_body(what="the manifest's size in bytes", limit=MANIFEST_LIMIT) as manifest:
        record = await repository.commit(manifest, name=name, kind=kind)
    return _answer(record, status=201)


async def list_files(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Records, the newest first."""
    limit = _number(exchange.request, "limit")
    before = _number(exchange.request, "before")
    if limit is not None and not 1 <= limit <= RECORDS_LIMIT:
        raise InvalidInput(f"limit is {limit}, allowed are 1 to {RECORDS_LIMIT}")
    records = await repository.records(limit=RECORDS_LIMIT if limit is None else limit, before=before)
    return web.json_response({"files": [record.as_json() for record in records]})


async def find_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """The newest record that an id, a digest, a name, or a digest and a name together, mean."""
    query = exchange.request.query
    file_id, digest, name = (query.get(key) for key in ("id", "digest", "name"))
    if (file_id is None) == (digest is None and name is None):
        raise InvalidInput("give an id, a digest, a name, or a digest and a name")
    reference = Reference(id=file_id, digest=Digest.parse(digest) if digest is not None else None, name=name)
    return _answer(await repository.record(reference))


async def get_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """A record."""
    return _answer(await repository.record(Reference(id=exchange.request.match_info["id"])))


async def remove_file(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """Remove a record; the answer is what it was."""
    return _answer(await repository.remove(exchange.request.match_info["id"]))


async def get_manifest(exchange: Exchange, repository: LocalRepository) -> web.StreamResponse:
    """A manifest's canonical bytes."""
    digest = Digest.parse(exchange.request.match_info["digest"])
    headers = {"Content-Type": wire.OCTETS, "ETag": f'"{digest}"', "Cache-Control": IMMUTABLE}
    async with exchange.spool() as spool:
        # In memory only on its way to the spool: how fast the client reads does not matter (I6).
        async with exchange.budget.take(MANIFEST_LIMIT):
            await spool.write(await repository.manifest(digest))
        if matches_any(exchange.request.if_none_match, str(digest), weak=True):
            return web.Response(status=304, headers=headers)
        return await exchange.answer_with(spool, web.StreamResponse(headers=headers))


class _OpenFrame(NamedTuple):
    """A frame that is open for reading, and its size at that moment."""

    file: BinaryIO
    size: int


async def _batch_entries(repository: LocalRepository, digests: Sequence[Digest]) -> list[wire.BatchEntry]:
    """Which frames there are, and their sizes: the header goes first, and not all of them can be open at once."""
    entries: list[wire.BatchEntry] = []
    for group in _groups(digests):
        frames = await _open(repository, group)
        entries += (wire.BatchEntry(digest, frame.size if frame else 0) for digest, frame in zip(group, frames, strict=True))
        await in_disk_thread(_close, frames)
    return entries


async def _opened_ahead(repository: LocalRepository, digests: Sequence[Digest]) -> AsyncGenerator[_OpenFrame | None]:
    """Each frame in turn, None where it is gone. It is closed here, some time after the next one was asked for."""
    groups = iter(_groups(digests))
    opening = _start_opening(repository, next(groups, None))
    try:
        while opening is not None:
            frames = await opening
            opening = _start_opening(repository, next(groups, None))
            try:
                for frame in frames:
                    yield frame
            finally:
                await in_disk_thread(_close, frames)
    finally:
        if opening is not None:
            await in_disk_thread(_close, await opening)


def _start_opening(repository: LocalRepository, group: Sequence[Digest] | None) -> asyncio.Task[list[_OpenFrame | None]] | None:
    return None if group is None else asyncio.create_task(_open(repository, group))


async def _open(repository: LocalRepository, digests: Sequence[Digest]) -> list[_OpenFrame | None]:
    return await in_disk_thread(_measure, await repository.open(digests))


def _measure(files: Sequence[BinaryIO | None]) -> list[_OpenFrame | None]:
    frames: list[_OpenFrame | None] = []
    for file in files:
        frames.append(None if file is None else _OpenFrame(file, file.seek(0, os.SEEK_END)))
        if file is not None:
            file.seek(0)
    return frames


def _close(frames: Sequence[_OpenFrame | None]) -> None:
    for frame in frames:
        if frame is not None:
            frame.file.close()


async def _send_frame(answer: Answer, frame: _OpenFrame | None, entry: wire.BatchEntry) -> None:
    """Raises DamagedChunk when it is not the frame that the answer's head announced."""
    found = 0 if frame is None else frame.size
    if frame is not None and found == entry.stored_size:
        found = await answer.send_file(frame.file, size=entry.stored_size)
    if found != entry.stored_size:
        raise DamagedChunk(str(entry.digest), f"its frame had {entry.stored_size} bytes a moment ago, and now has {found}")


def _groups(digests: Sequence[Digest]) -> list[Sequence[Digest]]:
    return [digests[start : start + OPEN_TOGETHER] for start in range(0, len(digests), OPEN_TOGETHER)]


def _answer(record: Record, *, status: int = 200) -> web.Response:
    return web.json_response(record.as_json(), status=status)


def _name_header(request: web.Request) -> str:
    header = request.headers.get(wire.NAME_HEADER)
    if header is None:
        raise InvalidInput(f"the header {wire.NAME_HEADER} is missing: the file's name, percent-encoded")
    try:
        return unquote(header, errors="strict")
    except UnicodeDecodeError:
        raise InvalidName(header, "it is not valid UTF-8") from None


def _kind(request: web.Request) -> Kind:
    text = request.query.get("kind", Kind.FILE.value)
    try:
        return Kind(text)
    except ValueError:
        raise InvalidInput(f"the kind is {text!r}, allowed are {', '.join(Kind)}") from None


def _number(request: web.Request, key: str) -> int | None:
    text = request.query.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"{key} is {text!r}, a whole number is expected")
    return int(text)
