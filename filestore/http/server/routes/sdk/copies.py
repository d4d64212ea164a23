"""Make parts of uploads of bytes that are stored already, so that a client need not send them."""

from __future__ import annotations

import re
from contextlib import aclosing
from reprlib import repr as brief
from typing import Any, NamedTuple

from aiohttp import web

from filestore.core.records import FILE_ID_PATTERN
from filestore.core.references import Reference
from filestore.errors import Busy, InvalidInput, InvalidRange, LimitExceeded, PartDiffers, PartRefused, UploadNotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import problem_answer
from filestore.http.server.routes.content import StoredContent
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.multipart import PART_PATH, json_body, number_at, part_answer, upload_at
from filestore.http.server.routes.sdk.parts import UploadPart
from filestore.http.server.routes.sdk.upload_store import ServedUpload
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import SpaceClaim
from filestore.system.files import BLOCK_SIZE
from filestore.system.threads import in_disk_thread

COPY_PATH = f"{PART_PATH}/copy"
COPY_LIMIT = 1 << 30
"""The most bytes of a part that is copied. The answer comes after all of them, and a client waits for it."""

_TAG = re.compile(r"[0-9a-f]{64}\Z")


class _Source(NamedTuple):
    """Bytes of a stored file, as a request names them."""

    file_id: str
    wanted: range
    tag: str
    """The BLAKE3 of these bytes, as the client has computed it of its own."""


async def copy_part(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Make a part of bytes of a stored file, if their BLAKE3 is the tag that the client says. Answer as to a part that is sent.

    A client that guesses that the server has a part need not send it. Where the guess is wrong, nothing is kept.

    The token must permit to read the file: its scope contains `read`, and its prefix the name. So the answer says nothing that
    the content itself, which the same token reads by GET, would not say. A file that the token does not see is absent, whatever
    the tag. No other file is compared: that bytes are stored under another name, or in another namespace, is not told.

    A copy takes what the part would take if it was sent: space, its share of the unfinished uploads, and a quota.
    """
    source = _source(await json_body(context))
    upload = await upload_at(context, repository)
    number = number_at(context)
    part = await upload.arrived(number)
    if part is not None:
        if part.tag != source.tag:
            raise PartRefused(number)
        return part_answer(part)
    if await upload.finished() is not None:
        raise UploadNotFound(upload.id)
    record = await repository.record(Reference(id=source.file_id))
    context.noted.note_record(record)
    if source.wanted.stop > record.size:
        raise InvalidRange(f"bytes={source.wanted.start}-{source.wanted.stop - 1}", record.size)
    size = len(source.wanted)
    context.check_upload_size(size)
    await repository.check_not_full()
    async with StoredContent(context, repository, record.digest, source.wanted) as content:
        try:
            await content.begin()
        except Busy as error:
            return problem_answer(error)
        async with repository.space_for(size + BLOCK_SIZE, place=context.spool_folder) as space:
            part = await _copied(context, content, source, upload=upload, number=number, space=space)
    context.request.app[ASSEMBLY].cut_ahead(upload, repository)
    return part_answer(part)


async def _copied(
    context: RequestContext, content: StoredContent, source: _Source, *, upload: ServedUpload, number: int, space: SpaceClaim
) -> UploadPart:
    async with upload.arriving(len(source.wanted)) as part:
        async with aclosing(content.pieces()) as pieces:
            async for piece in pieces:
                # Nobody waits for the answer to a client that is gone. Raises ConnectionError then.
                _ = context.transport
                space.written(len(piece))
                await in_disk_thread(part.write, piece)
        if part.tag != source.tag:
            raise PartDiffers(number, source.file_id, source.wanted.start)
        return await upload.keep(part, number, check_size=context.check_upload_size)


def _source(message: dict[str, Any]) -> _Source:
    """Return the bytes that a request names. Raises InvalidInput, LimitExceeded."""
    file_id, tag = message.get("file_id"), message.get("tag")
    if not isinstance(file_id, str) or not FILE_ID_PATTERN.match(file_id):
        raise InvalidInput(f"file_id is {brief(file_id)}; the id of a stored file is expected")
    if not isinstance(tag, str) or not _TAG.match(tag):
        raise InvalidInput(f"tag is {brief(tag)}; the BLAKE3 of the part is expected, 64 lower-case hexadecimal digits")
    offset, size = _number(message, "offset", least=0), _number(message, "size", least=1)
    if size > COPY_LIMIT:
        raise LimitExceeded("the size in bytes of a part that is copied", size, COPY_LIMIT)
    return _Source(file_id, range(offset, offset + size), tag)


def _number(message: dict[str, Any], key: str, *, least: int) -> int:
    number = message.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number < 1 << 63:
        raise InvalidInput(f"{key} is {brief(number)}; a whole number from {least} on is expected")
    return number
