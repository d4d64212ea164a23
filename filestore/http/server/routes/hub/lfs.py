"""Receive LFS objects: the files of a commit that do not come with it.

A client asks which objects are missing, and sends each of them to a signed URL: in one request, or in parts. The parts are those
of an upload of the Pipeline SDK. What arrived is cut and stored at once, so it shares its chunks with everything else in the
namespace, and it is checked on the way. The commit that names it comes later: see `lfs_objects`.

Source: the Git LFS batch API, and `lfs.py` of the Python client, which has the transfer `multipart` besides `basic`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from aiohttp import web

from filestore.core.manifest import Manifest
from filestore.errors import InvalidInput, InvalidParts, LimitExceeded, NotFound, ObjectMismatch, UploadNotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.lfs_objects import ContentSums
from filestore.http.server.pushes import push_memory
from filestore.http.server.routes.hub.contents import Contents
from filestore.http.server.routes.hub.names import repository_in
from filestore.http.server.routes.hub.part_sums import PART_SUMS
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.multipart import LIST_LIMIT, each_piece, json_body, listed_parts, put_part
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import ServedUpload
from filestore.http.server.routes.sdk.uploads import new_id
from filestore.repository.local import LocalRepository
from filestore.system.files import BLOCK_SIZE, write_all
from filestore.system.threads import in_cpu_thread, in_disk_thread
from filestore.transfer.push import send
from filestore.transfer.sources.file import FileSource

OBJECT_PATH = "/api/lfs/objects/{oid}/{size}"
COMPLETION_PATH = "/api/lfs/uploads/{upload_id}/{oid}/{size}"
OBJECT_PART_PATH = COMPLETION_PATH + "/parts/{number}"
VERIFY_PATH = "/api/lfs/verify"
XET_PATH = "/api/xet/set-HF_HUB_DISABLE_XET=1-to-upload-here"

OBJECTS_LIMIT = 1000
"""Objects that one request may ask about. Clients ask about 256."""
BATCH_LIMIT = 1 << 20
SINGLE_LIMIT = 64 << 20
"""Bytes of an object that comes in one request. A larger one comes in parts of this size, or of more where there are many."""
PARTS_LIMIT = 1000
"""The most parts of an object, and, if it is less, ten thousand divided by the number of objects in the answer."""

CONTENT_TYPE = "application/vnd.git-lfs+json"
DISABLE_XET = (
    "this server stores files over plain HTTP and has no Xet storage: set HF_HUB_DISABLE_XET=1,"
    " which clients from huggingface_hub 1.20 on need to upload"
)

_ANSWER_PARTS = 10_000
_OID = re.compile(r"[0-9a-f]{64}\Z")
_SIZE = re.compile(r"[0-9]{1,18}\Z")


class _Wanted(NamedTuple):
    """An object that a client wants to send."""

    sha256: bytes
    size: int

    @property
    def oid(self) -> str:
        return self.sha256.hex()


async def lfs_batch(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer which objects are missing, and how to send them. One without `actions` is here."""
    hub = repository_in(context.request)
    context.noted.facts["name"] = hub.name
    message = await json_body(context, limit=BATCH_LIMIT)
    if message.get("operation") != "upload" or message.get("hash_algo", "sha256") != "sha256":
        raise InvalidInput("only the operation 'upload' of objects that are named by their SHA-256 is known here")
    wanted = _wanted(message.get("objects"))
    repository.check_name(hub.name)
    await repository.find_commit(hub.name)
    contents = Contents(context, repository)
    missing = {each for each in wanted if not await contents.has(each.sha256, each.size)}
    if missing:
        await repository.check_not_full()
    for each in missing:
        context.check_upload_size(each.size)
    context.noted.facts |= {"objects": len(wanted), "missing": len(missing)}
    document: dict[str, Any] = {"transfer": "basic", "hash_algo": "sha256"}
    transfers = message.get("transfers")
    if isinstance(transfers, list) and "xet" in transfers:
        document["message"] = DISABLE_XET
    # Ten thousand URLs take 0.2 seconds to sign.
    document["objects"] = await in_cpu_thread(_described, context, repository, wanted, missing)
    return web.json_response(document, content_type=CONTENT_TYPE)


async def put_object(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Receive a whole object, at a signed URL."""
    wanted = _named(context)
    if context.request.content_length not in (None, wanted.size):
        raise ObjectMismatch(wanted.oid, f"{context.request.content_length} bytes, and not {wanted.size}")
    context.check_upload_size(wanted.size)
    sums = ContentSums(wanted.sha256, wanted.size)
    async with context.form_spool(repository) as (spool, written):

        def take(piece: memoryview) -> None:
            sums.add(piece)
            written(len(piece))
            write_all(spool.fileno(), piece)

        await each_piece(context, take)
        sums.check()
        async with context.push_budget.take(push_memory(wanted.size)):
            source = await in_disk_thread(FileSource, Path(f"/dev/fd/{spool.fileno()}"), is_remembered=False)
            with source:
                await send(repository, source)
                manifest = await in_cpu_thread(source.manifest)
    await _keep(context, repository, manifest, sums)
    return web.json_response({}, content_type=CONTENT_TYPE)


async def put_object_part(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Receive a part of an object, at a signed URL, as one of an upload in parts."""
    wanted = _named(context)
    found = context.request.match_info
    assembly = context.request.app[ASSEMBLY]
    try:
        upload = await assembly.find(found["upload_id"], repository)
    except UploadNotFound:
        # Its first part begins it, so that objects that nobody sends leave nothing behind.
        upload = await assembly.begin(repository, name=repository.prefix or None, upload_id=found["upload_id"])
    response = await put_part(context, repository)
    assembly.start(context.request.app[PART_SUMS].advance(upload, wanted.sha256, wanted.size, int(found["number"])))
    return response


async def complete_object(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Put the parts of an object together, at a signed URL. To do it again changes nothing."""
    wanted = _named(context)
    assembly = context.request.app[ASSEMBLY]
    message = await json_body(context, limit=LIST_LIMIT)
    if message.get("oid", wanted.oid) != wanted.oid:
        raise InvalidInput(f"the URL is that of the LFS object {wanted.oid}, and not of {brief(message['oid'])}")
    listed = listed_parts(message.get("parts"), what="parts", number_key="partNumber", tag_key="etag")
    upload_id = context.request.match_info["upload_id"]
    context.noted.facts["upload"] = upload_id
    try:
        upload = await assembly.find(upload_id, repository)
        await _complete(context, repository, upload, wanted, listed)
    except UploadNotFound:
        # Its answer may have been lost, and it was completed.
        if not await Contents(context, repository).has(wanted.sha256, wanted.size):
            raise
    except ObjectMismatch:
        # Parts never change, so this upload can never be completed.
        await assembly.discard(upload)
        raise
    return web.json_response({}, content_type=CONTENT_TYPE)


async def verify_object(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer whether an object arrived. Its bytes were checked before."""
    message = await json_body(context)
    (wanted,) = _wanted([message])
    if not await Contents(context, repository).has(wanted.sha256, wanted.size):
        raise NotFound(f"the LFS object {wanted.oid}")
    return web.json_response({}, content_type=CONTENT_TYPE)


async def refuse_xet(context: RequestContext, _repository: LocalRepository) -> web.StreamResponse:
    """Refuse a token for the storage of Xet, which newer clients ask for first, and say what to do.

    Their library shows nothing of an answer but its URL. So it is redirected to one that says it.
    """
    if context.request.path.endswith(XET_PATH):
        raise InvalidInput(DISABLE_XET)
    return web.Response(status=307, headers={"Location": f"{context.base_url}{XET_PATH}"})


def _described(
    context: RequestContext, repository: LocalRepository, wanted: Sequence[_Wanted], missing: Collection[_Wanted]
) -> list[dict[str, Any]]:
    """Return what the answer says of each object."""
    limit = min(PARTS_LIMIT, _ANSWER_PARTS // max(1, len(missing)))
    answered: list[dict[str, Any]] = []
    for each in wanted:
        described: dict[str, Any] = {"oid": each.oid, "size": each.size}
        if each in missing:
            described |= {"authenticated": True, "actions": _actions(context, repository, each, limit)}
        answered.append(described)
    return answered


def _actions(context: RequestContext, repository: LocalRepository, wanted: _Wanted, parts_limit: int) -> dict[str, Any]:
    """Return where an object is sent to."""
    seconds = context.request.app[ASSEMBLY].idle_seconds

    def url(method: str, path: str) -> str:
        return context.signed_url(method, path, namespace=repository.namespace, seconds=seconds)

    values = {"oid": wanted.oid, "size": wanted.size}
    if wanted.size <= SINGLE_LIMIT:
        upload: dict[str, Any] = {"href": url("PUT", OBJECT_PATH.format(**values))}
    else:
        part_size = max(SINGLE_LIMIT, -(-wanted.size // parts_limit))
        upload_id = new_id()
        numbers = range(1, -(-wanted.size // part_size) + 1)
        header = {"chunk_size": str(part_size)}
        header |= {
            str(number): url("PUT", OBJECT_PART_PATH.format(upload_id=upload_id, number=number, **values)) for number in numbers
        }
        upload = {"href": url("POST", COMPLETION_PATH.format(upload_id=upload_id, **values)), "header": header}
    return {"upload": upload, "verify": {"href": f"{context.base_url}{VERIFY_PATH}"}}


async def _complete(
    context: RequestContext, repository: LocalRepository, upload: ServedUpload, wanted: _Wanted, listed: dict[int, str]
) -> None:
    assembly = context.request.app[ASSEMBLY]
    async with assembly.waited_for(upload):
        if await upload.finished() is not None:
            raise UploadNotFound(upload.id)
        parts = await assembly.chosen_parts(upload, listed)
        size = sum(part.size for part in parts)
        if size != wanted.size:
            # Parts may still come.
            raise InvalidParts(f"they have {size} bytes, and the object has {wanted.size}")
        sums = await context.request.app[PART_SUMS].sums(upload, parts, wanted.sha256, wanted.size)
        sums.check()
        manifest = await assembly.send_parts(upload, repository, parts)
        await _keep(context, repository, manifest, sums)
        # It has no record, so a request of the SDK to finish it finds nothing.
        tags = [listed[number] for number in sorted(listed)]
        await upload.save_first(FinishedUpload.of(tags, upload.file_id))
    assembly.retire(upload)


async def _keep(context: RequestContext, repository: LocalRepository, manifest: Manifest, sums: ContentSums) -> None:
    """Remember an object that arrived, and whose chunks are stored."""
    if context.chunks_limit is not None and len(manifest.chunks) > context.chunks_limit:
        raise LimitExceeded("the number of the file's chunks", len(manifest.chunks), context.chunks_limit, "chunks_limit")
    found = sums.checked_object(manifest.digest)
    uploads = context.request.app[ASSEMBLY].uploads
    place = None if uploads.place is None else uploads.place.parent
    async with repository.space_for(len(manifest.encoded) + BLOCK_SIZE, place=place):
        await uploads.keep_object(repository.namespace, found, manifest.encoded)
    context.noted.facts |= {"oid": found.sha256.hex(), "size": found.size}


def _wanted(objects: object) -> list[_Wanted]:
    if not isinstance(objects, list) or len(objects) > OBJECTS_LIMIT:
        raise InvalidInput(f"objects is not a list of at most {OBJECTS_LIMIT} objects with oid and size")
    found = []
    for each in objects:
        oid, size = (each.get("oid"), each.get("size")) if isinstance(each, dict) else (None, None)
        if not isinstance(oid, str) or not _OID.match(oid):
            raise InvalidInput(f"an oid is {brief(oid)}; the 64 digits of a SHA-256 are expected")
        if type(size) is not int or not 0 <= size < 1 << 60:
            raise InvalidInput(f"the size of {oid} is {brief(size)}; a number of bytes is expected")
        found.append(_Wanted(bytes.fromhex(oid), size))
    return list(dict.fromkeys(found))


def _named(context: RequestContext) -> _Wanted:
    """Return the object that the path of a request names."""
    oid, size = context.request.match_info["oid"], context.request.match_info["size"]
    if not _OID.match(oid) or not _SIZE.match(size):
        raise InvalidInput("the URL names no LFS object")
    return _Wanted(bytes.fromhex(oid), int(size))
