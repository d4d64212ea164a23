"""Receive uploads in parts: begin an upload, sign a URL for each part, receive the parts, list them, finish or cancel.

A part can also be made of bytes that are stored already (`copies`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from reprlib import repr as brief
from typing import Any

from aiohttp import web
from blake3 import blake3

from filestore.core.names import checked_new_full_name, checked_new_name, full_name
from filestore.core.records import Kind, value_count
from filestore.errors import InvalidInput, LimitExceeded, PartRefused, UploadNotFound
from filestore.http.server.body.forms import last_part
from filestore.http.server.body.reader import reading_body
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.files import upload_json
from filestore.http.server.routes.sdk.parts import UploadPart
from filestore.http.server.routes.sdk.upload_store import PART_LIMIT, ServedUpload
from filestore.http.server.upload_quota import STEP_SIZE
from filestore.repository.local import LocalRepository
from filestore.repository.stores.protocol import SpaceClaim
from filestore.system.files import BLOCK_SIZE
from filestore.system.threads import in_cpu_thread, in_disk_thread

BODY_LIMIT = 64 << 10
"""Bytes of JSON in a request."""
LIST_LIMIT = 2 << 20
"""The same for a list of parts. The list of the largest possible number of parts has half of that."""
VALUES_LIMIT = 64 << 10
"""The largest number of values in the JSON of a request. Each part in a list has two, and is one itself."""
UPLOAD_PATH = "/v3/pipeline_files/uploads/{upload_id}"
PARTS_PATH = f"{UPLOAD_PATH}/parts"
PART_PATH = f"{PARTS_PATH}/{{number}}"

_NUMBER = re.compile(r"[0-9]{1,9}")


async def begin_upload(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Begin an upload, and answer with its ids."""
    name = _new_name(await json_body(context))
    if name is not None:
        await repository.check_new_name(name)
    upload = await context.request.app[ASSEMBLY].begin(repository, name=name)
    context.noted.facts |= {"upload": upload.id, "record": upload.file_id} | ({} if name is None else {"name": name})
    return web.json_response({"file_id": upload.file_id, "upload_id": upload.id}, status=201)


async def sign_part(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a URL at which a part can be sent without a token."""
    message = await json_body(context)
    upload = await _upload_asked_for(context, repository, message)
    number = _part_number(message.get("part_num"), key="part_num")
    if await upload.finished() is not None:
        raise InvalidInput(f"the upload {upload.id} is finished, and takes no more parts; begin another upload")
    context.noted.facts["part"] = number
    path = PART_PATH.format(upload_id=upload.id, number=number)
    seconds = context.request.app[ASSEMBLY].idle_seconds
    url = context.signed_url("PUT", path, namespace=upload.namespace, seconds=seconds)
    return web.json_response({"upload_url": url})


async def put_part(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Receive a part. If it arrived before, the same bytes get the same answer, and other bytes are refused.

    So a client may send a part again when it lost the answer, and nobody else can change the part by its URL.
    """
    upload = await upload_at(context, repository)
    number = number_at(context)
    part = await upload.arrived(number)
    if part is not None:
        await _compare(context, part)
    else:
        await repository.check_not_full()
        size = (context.request.content_length or 0) + BLOCK_SIZE
        async with repository.space_for(size, place=context.spool_folder) as space:
            part = await _stored(context, upload, number, space)
        context.request.app[ASSEMBLY].cut_ahead(upload, repository)
    return part_answer(part)


async def list_parts(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the parts that arrived, so that a client which has forgotten them can go on.

    The id of the record is null until the upload is finished. The parts of a finished upload are removed, so none are listed.
    """
    upload = await upload_at(context, repository)
    try:
        parts = await upload.whole_parts()
    except UploadNotFound:
        parts = []
        finished = await upload.finished()
        if finished is None:
            raise
    else:
        finished = await upload.finished()
    if finished is not None and finished.record_id == upload.file_id:
        # That of an LFS object, which has no record.
        raise UploadNotFound(upload.id)
    record_id = None if finished is None else finished.record_id
    body = await in_cpu_thread(_listed_as_json, upload, [] if record_id else parts, record_id)
    return await context.answer_json(body, {"Cache-Control": "no-store"})


def _listed_as_json(upload: ServedUpload, parts: Sequence[UploadPart], record_id: str | None) -> bytes:
    listed = [{"PartNumber": part.number, "Size": part.size, "ETag": part.tag} for part in parts]
    return json.dumps({"file_id": upload.file_id, "name": upload.name, "record_id": record_id, "parts": listed}).encode()


async def cancel_upload(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Remove an upload, with all parts that arrived. Nothing that is stored is removed.

    A finished upload is not found, as S3 says of one that is completed: its file stays.
    """
    await context.request.app[ASSEMBLY].cancel(await upload_at(context, repository))
    return web.Response(status=204)


async def _compare(context: RequestContext, part: UploadPart) -> None:
    """Read the body of a request and write nothing. Raises PartRefused unless it has the bytes of `part`."""
    digest, size = blake3(), 0

    def look_at(piece: memoryview) -> None:
        nonlocal size
        size += len(piece)
        if size > part.size:
            raise PartRefused(part.number)
        digest.update(piece)

    if context.request.content_length not in (None, part.size):
        raise PartRefused(part.number)
    await each_piece(context, look_at)
    if digest.hexdigest() != part.tag:
        raise PartRefused(part.number)


async def _stored(context: RequestContext, upload: ServedUpload, number: int, space: SpaceClaim) -> UploadPart:
    size = context.request.content_length
    if size is not None:
        context.check_upload_size(size)
    measured = size or 0
    async with upload.arriving(size or 0) as part:

        def write_piece(piece: memoryview) -> None:
            nonlocal measured
            context.check_upload_size(part.size + len(piece))
            space.written(len(piece))
            part.write(piece)
            if part.size > measured:
                measured = part.size + STEP_SIZE
                part.check_quota()

        await each_piece(context, write_piece)
        return await upload.keep(part, number, check_size=context.check_upload_size)


async def finish_upload(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Record the file that the listed parts make up, or the directory whose zip file they make up."""
    message = await json_body(context, limit=LIST_LIMIT)
    upload = await _upload_asked_for(context, repository, message)
    what = "multipart_metadata"
    listed = listed_parts(message.get(what), what=what, number_key="PartNumber", tag_key="ETag")
    kind = _kind(message.get("kind", Kind.FILE.value))
    record = await context.request.app[ASSEMBLY].finish(upload, repository, listed, kind=kind, trees=context.trees)
    context.noted.note_record(record)
    return web.json_response(await upload_json(repository, record), status=201)


async def each_piece(context: RequestContext, use: Callable[[memoryview], None]) -> None:
    """Call `use` in a thread with each piece of the body of a request. Raises Interrupted, Stalled, and what it raises."""
    size = context.request.content_length
    if size is not None:
        async with reading_body(context, size=size) as body_reader:
            while await body_reader.read_slice(use):
                pass
        return
    async for piece in context.pieces():
        await in_disk_thread(use, memoryview(piece))


async def json_body(context: RequestContext, *, limit: int = BODY_LIMIT) -> dict[str, Any]:
    """Return the JSON object of a request. Raises InvalidInput, LimitExceeded, Interrupted, Stalled."""
    async with context.whole_body(what="the size of the request body in bytes", limit=limit) as body:
        if value_count(body) > VALUES_LIMIT:
            raise LimitExceeded("the number of values in the request body", value_count(body), VALUES_LIMIT)
        try:
            # Parse in a thread: a list of all parts takes 10 ms and more.
            message = await in_cpu_thread(json.loads, body)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise InvalidInput("the body is not a JSON object")
    return message


async def _upload_asked_for(context: RequestContext, repository: LocalRepository, message: dict[str, Any]) -> ServedUpload:
    upload_id, file_id = message.get("upload_id"), message.get("file_id")
    if not isinstance(upload_id, str) or not isinstance(file_id, str):
        raise InvalidInput("upload_id or file_id is missing; send both as the answer to initiate-multipart-upload gave them")
    upload = await _found(context, repository, upload_id)
    if file_id != upload.file_id:
        raise InvalidInput(f"the file_id of the upload {upload_id} is {upload.file_id}, not {file_id}")
    return upload


async def upload_at(context: RequestContext, repository: LocalRepository) -> ServedUpload:
    """Return the upload that the path of a request names. Raises UploadNotFound."""
    return await _found(context, repository, context.request.match_info["upload_id"])


async def _found(context: RequestContext, repository: LocalRepository, upload_id: str) -> ServedUpload:
    upload = await context.request.app[ASSEMBLY].find(upload_id, repository)
    context.noted.facts["upload"] = upload.id
    return upload


def number_at(context: RequestContext) -> int:
    """Return the number of the part that the path of a request names. Raises InvalidInput."""
    text = context.request.match_info["number"]
    number = _part_number(int(text) if _NUMBER.fullmatch(text) else text, key="the part's number")
    context.noted.facts["part"] = number
    return number


def part_answer(part: UploadPart) -> web.Response:
    """Return the answer for a part that has arrived."""
    return web.Response(headers={"ETag": f'"{part.tag}"'})


def _new_name(message: dict[str, Any]) -> str | None:
    """Return the full name that a request gives to an upload, or None. Raises InvalidInput, InvalidName.

    The Pipeline SDK sends no owner, and may send a path as the name.
    """
    name, owner = _text(message, "name"), _text(message, "owner")
    if owner is None:
        return None if name is None else checked_new_name(last_part(name))
    if name is None:
        raise InvalidInput("there is an owner and no name; send both")
    return checked_new_full_name(full_name(owner, name))


def _text(message: dict[str, Any], key: str) -> str | None:
    given = message.get(key)
    if given is not None and not isinstance(given, str):
        raise InvalidInput(f"{key} is {brief(given)}; a text is expected")
    return given


def _kind(given: object) -> Kind:
    if isinstance(given, str):
        with suppress(ValueError):
            return Kind(given)
    raise InvalidInput(f"kind is {brief(given)}; allowed are {', '.join(Kind)}")


def _part_number(number: object, *, key: str) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= PART_LIMIT:
        raise InvalidInput(f"{key} is {brief(number)}; a whole number from 1 to {PART_LIMIT} is expected")
    return number


def listed_parts(parts: object, *, what: str, number_key: str, tag_key: str) -> dict[int, str]:
    """Return tags by part numbers. The list may have any order, and may repeat a part. Raises InvalidInput.

    `what` names the list, and the keys are those of a part in it.
    """
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise InvalidInput(f"{what} is not a list of objects with {tag_key} and {number_key}")
    listed: dict[int, str] = {}
    for part in parts:
        number, tag = _part_number(part.get(number_key), key=number_key), part.get(tag_key)
        if not isinstance(tag, str):
            raise InvalidInput(f"the {tag_key} of part {number} is {brief(tag)}; a text is expected")
        # The header has quotes around the tag. Some clients leave them out.
        tag = tag.strip('"')
        if listed.setdefault(number, tag) != tag:
            raise InvalidInput(f"part {number} is listed with two ETags; list only that of the part to keep")
    return listed
