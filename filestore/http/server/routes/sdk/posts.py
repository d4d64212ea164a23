"""Receive the files that a container of the Pipeline SDK returns: a form that somebody else was permitted to send once.

A container (version 2 of the SDK) has the route `/v4/files/upload-to-storage`. It sends a file by the form that
services such as S3 take: the given fields, then the part `file`. So a caller with a token asks here for a URL and
fields, passes them to the container, and reads the file at the URL that it got with them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from aiohttp import web

from filestore.core.names import checked_new_name, shortened
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import InvalidInput, NotFound
from filestore.http.server.body.forms import last_part, receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.pushes import push_spool
from filestore.http.server.routes.content import send_content
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.files import upload_json
from filestore.http.server.routes.sdk.multipart import json_body
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import ServedUpload
from filestore.repository.local import LocalRepository

POST_PATH = "/v4/files/posts/{upload_id}/form/{size_limit}"
CONTENT_PATH = "/v4/files/posts/{upload_id}/content/{name}"
_SIZE_LIMIT = 1 << 62
_SIZE = re.compile(r"[0-9]{1,19}")
_KEY = "key"


async def sign_post(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with a URL and the fields of a form that stores one file, and with the URL of that file."""
    message = await json_body(context)
    given, size_limit = message.get("name"), message.get("size_limit", _SIZE_LIMIT)
    if not isinstance(given, str):
        raise InvalidInput("name is missing: the name of the file")
    if not isinstance(size_limit, int) or isinstance(size_limit, bool) or not 0 <= size_limit <= _SIZE_LIMIT:
        raise InvalidInput(f"size_limit is {size_limit!r}; a number of bytes is expected")
    name = checked_new_name(last_part(given))
    assembly = context.request.app[ASSEMBLY]
    upload = await assembly.begin(repository, name=name)
    context.noted.facts |= {"upload": upload.id, "name": name}

    def url(method: str, path: str) -> str:
        return context.signed_url(method, path, namespace=upload.namespace, seconds=assembly.idle_seconds)

    return web.json_response(
        {
            "upload_id": upload.id,
            "upload_url": url("POST", POST_PATH.format(upload_id=upload.id, size_limit=size_limit)),
            "upload_fields": {_KEY: name},
            "url": url("GET", CONTENT_PATH.format(upload_id=upload.id, name=shortened(name))),
        },
        status=201,
    )


async def take_post(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Store the file of a form, once. Answer with its record."""
    upload = await _upload(context, repository)
    _check_unused(upload, await upload.finished(), record=None)
    text = context.request.match_info["size_limit"]
    if not _SIZE.fullmatch(text):
        raise InvalidInput(f"the size limit in the URL is {text!r}; a number of bytes is expected")
    allowed = int(text)
    limit = allowed if context.upload_limit is None else min(allowed, context.upload_limit)
    async with context.form_spool(repository) as (spool, written):
        form = await receive_form(
            replace(context, upload_limit=limit, upload_setting="" if limit == allowed else context.upload_setting),
            spool,
            file_part="file",
            check_name=lambda _: None,
            written=written,
        )
        if form.file_name is None:
            raise InvalidInput("the form has no part file with a file; send the fields first, and then the part file")
        if form.fields.get(_KEY) != [upload.name]:
            raise InvalidInput(f"the form has not the field {_KEY} that was given with its URL; send it unchanged")
        # Of several forms at once, only the first one is stored.
        async with context.request.app[ASSEMBLY].waited_for(upload):
            _check_unused(upload, await upload.finished(), record=None)
            record = await push_spool(context, repository, spool, size=form.size, name=upload.name)
            finished = await upload.save_first(FinishedUpload.of([], record.id))
            _check_unused(upload, finished, record=record)
    context.noted.note_record(record)
    context.request.app[ASSEMBLY].retire(upload)
    return web.json_response(await upload_json(repository, record), status=201)


async def read_post(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the content of the file that has arrived."""
    return await send_content(context, repository, await _arrived(context, repository))


async def describe_post(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the record of the file that has arrived, and with its signed URL."""
    record = await _arrived(context, repository)
    url = f"{context.base_url}/{await repository.sign(record.id)}"
    return web.json_response({**await upload_json(repository, record), "url": url})


async def _arrived(context: RequestContext, repository: LocalRepository) -> Record:
    upload = await _upload(context, repository)
    finished = await upload.finished()
    if finished is None:
        raise NotFound(f"the upload {upload.id}, whose file has not arrived yet")
    return await repository.record(Reference(id=finished.record_id))


async def _upload(context: RequestContext, repository: LocalRepository) -> ServedUpload:
    upload_id = context.request.match_info["upload_id"]
    upload = await context.request.app[ASSEMBLY].find(upload_id, repository)
    context.noted.facts["upload"] = upload.id
    return upload


def _check_unused(upload: ServedUpload, finished: FinishedUpload | None, *, record: Record | None) -> None:
    """Raise InvalidInput if another form than that of `record` was stored."""
    if finished is not None and (record is None or finished.record_id != record.id):
        raise InvalidInput(f"the URL of the upload {upload.id} was used already; ask for another one")
