"""The page of one version: its facts, the files of a directory, and what can be done with it: `/ui/file`."""

from __future__ import annotations

import secrets
import shlex
from typing import NamedTuple
from urllib.parse import quote

from aiohttp import web

from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.errors import EntryNotFound, FilestoreError, InvalidReference, NotFound
from filestore.http.server.context import RequestContext
from filestore.http.server.routes.page.content import PATH_LIMIT, file_name
from filestore.http.server.routes.page.errors import sentence_of
from filestore.http.server.routes.page.rendering import render
from filestore.http.server.routes.page.urls import content_url, file_url, page_url, tensors_url
from filestore.http.server.routes.page.versions import pipelines_of
from filestore.http.server.routes.queries import required
from filestore.http.server.stored_trees import OpenedTree, lost_as_damaged
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.diff_tensors import is_tensor_name
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree, read_entry

PAGE_COUNT = 200
"""Entries of a folder on a page."""
PATHS_SIZE = 64 << 10
"""Characters of the paths of these entries, after which no further one is on the page. A page has each one several times."""
STEPS_LIMIT = 32
"""The most folders on the way to a path that are shown: the innermost ones."""
CARD_SIZE = 16 << 10
"""Bytes of a README.md that are shown. The rest can be downloaded."""
_CARD = "README.md"
LINK_TIMES = {
    "3600": "1 hour",
    "86400": "1 day",
    "604800": "7 days",
    "2592000": "30 days",
}
"""The times that a link can be made for here, in seconds."""
LINK_TIME = "604800"


class EntryRow(NamedTuple):
    """What is shown of an entry of a folder."""

    name: str
    kind: str
    size: int | None
    is_executable: bool
    url: str | None
    """The page of a folder or a file. None for a link that leads nowhere."""
    download_url: str | None
    tensors_url: str | None
    target: str
    """Where a link leads to."""


class Card(NamedTuple):
    """The text of a README.md."""

    text: str
    is_cut: bool
    url: str


class Listing(NamedTuple):
    """What a directory has at a path: a folder with a page of its entries, or a file."""

    entry: StoredEntry
    rows: list[EntryRow]
    next_after: str | None
    entry_count: int
    """How many entries the whole directory has."""
    card: Card | None


async def show_file(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Answer with the page of a version, or of a folder or a file in it."""
    query = context.request.query
    record = await repository.record(Reference(id=required(context.request, "id")))
    context.noted.note_record(record)
    path = query.get("path", "").strip("/")
    after = query.get("after")
    listing, problem = None, ""
    if record.kind is Kind.DIRECTORY:
        try:
            listing = await _listing(context, repository, record, path, after=after)
        except EntryNotFound:
            raise
        except FilestoreError as error:
            problem = sentence_of(context, error)
    elif path:
        raise EntryNotFound(record.full_name, path[:PATH_LIMIT])
    is_entry = listing is not None and listing.entry.kind is EntryKind.FILE
    is_file = is_entry or record.kind is Kind.FILE
    older = await _older(repository, record)
    return await render(
        context,
        "file.html",
        record=record,
        path=path,
        breadcrumb=_breadcrumb(record, path),
        listing=listing,
        is_entry=is_entry,
        is_first=after is None,
        problem=problem,
        first_url=file_url(record.id, path=path),
        next_url=None
        if listing is None or listing.next_after is None
        else file_url(record.id, path=path, after=listing.next_after),
        is_newest=await _is_newest(repository, record),
        labels=await repository.labels_of(record),
        pipelines=(await pipelines_of(repository, {record.id})).get(record.id, ""),
        download_url=content_url(record.id, path if is_entry else ""),
        tensors_url=tensors_url(record.id, path) if is_file and is_tensor_name(path or record.name) else None,
        chunks_url=page_url("/ui/chunks", id=record.id),
        compare_url=None if older is None else page_url("/ui/compare", old=older.id, new=record.id),
        quoted_url=shlex.quote(context.base_url),
        quoted_reference=quoted_reference(record, path),
        curl_command=curl_command(context.base_url, record),
        link_times=LINK_TIMES,
        link_time=LINK_TIME,
        nonce=secrets.token_hex(16),
        remove_url=page_url("/ui/remove", id=record.id),
    )


def quoted_reference(record: Record, path: str = "") -> str:
    """Return how a shell names a version, or a folder or a file of it.

    Return an empty text for a path that no reference can name, such as one with a line break.
    """
    reference = f"{record.id}:{path}" if path else record.id
    try:
        Reference.parse(reference)
    except InvalidReference:
        return ""
    return shlex.quote(reference)


def curl_command(base_url: str, record: Record) -> str:
    """Return the command that downloads a version with curl, as a line for a shell. The token is in the environment."""
    url = f"{base_url}/{quote(record.run_path)}"
    name = file_name(record)
    output = f"./{name}" if name.startswith("-") else name
    return f'curl -H "Authorization: Bearer $FILESTORE_TOKEN" -o {shlex.quote(output)} {shlex.quote(url)}'


async def _is_newest(repository: LocalRepository, record: Record) -> bool:
    try:
        return (await repository.find_commit(record.full_name)).file_id == record.id
    except NotFound:
        return False


async def _older(repository: LocalRepository, record: Record) -> Record | None:
    """Return the version of the same name that was stored before this one."""
    try:
        page = await repository.versions(Reference.of_name(record.full_name), limit=1, before=record.updated_at)
    except NotFound:
        return None
    return page.records[0] if page.records else None


async def _listing(
    context: RequestContext, repository: LocalRepository, record: Record, path: str, *, after: str | None
) -> Listing:
    if len(path) > PATH_LIMIT or "\0" in path:
        raise EntryNotFound(record.full_name, path[:PATH_LIMIT])
    async with context.trees.reading(repository, record.digest) as opened:
        entry = opened.find(path)
        if entry is None:
            raise EntryNotFound(record.full_name, path)
        rows: list[EntryRow] = []
        next_after, card = None, None
        if entry.kind is EntryKind.FOLDER:
            rows, next_after = await in_cpu_thread(_rows, opened, record.id, path, entry.path, after)
            if after is None:
                async with context.trees.previewing(), lost_as_damaged(repository, record.digest):
                    card = await _card(repository, opened.tree, record.id, entry.path)
        return Listing(entry, rows, next_after, len(opened.tree.members), card)


def _rows(opened: OpenedTree, file_id: str, shown: str, real: str, after: str | None) -> tuple[list[EntryRow], str | None]:
    """Return a page of a folder, and the name after which the next one begins, or None.

    The folder is `shown` under the path that was asked for. It is at `real`, where links may have led to.
    """
    inside, outside = (f"{path}/" if path else "" for path in (real, shown))
    start = None if after is None else inside + after
    rows: list[EntryRow] = []
    size = 0
    for entry in opened.tree.entries(real, recursive=False, after=start):
        if len(rows) == PAGE_COUNT or size >= PATHS_SIZE:
            return rows, rows[-1].name
        path = outside + entry.path.removeprefix(inside)
        rows.append(_entry_row(opened, file_id, entry, path))
        size += len(path) + len(rows[-1].target)
    return rows, None


def _entry_row(opened: OpenedTree, file_id: str, entry: StoredEntry, path: str) -> EntryRow:
    name = path.rpartition("/")[2]
    real: StoredEntry | None = entry
    if entry.kind is EntryKind.LINK:
        real = opened.find(entry.path)
    is_file = real is not None and real.kind is EntryKind.FILE
    return EntryRow(
        name=name,
        kind=entry.kind.value,
        size=real.size if real is not None and is_file else None,
        is_executable=is_file and real is not None and real.is_executable,
        url=None if real is None else file_url(file_id, path=path),
        download_url=content_url(file_id, path) if is_file else None,
        tensors_url=tensors_url(file_id, path) if is_file and is_tensor_name(name) else None,
        target="" if real is None or entry.kind is not EntryKind.LINK else real.path,
    )


async def _card(repository: LocalRepository, tree: StoredTree, file_id: str, folder: str) -> Card | None:
    """Return the text of the README.md in a folder. Return None if it has none, or one that cannot be read."""
    path = f"{folder}/{_CARD}" if folder else _CARD
    entry = tree.entry(path)
    if entry is None or entry.kind is not EntryKind.FILE:
        return None
    try:
        content = b"".join([piece async for piece in read_entry(repository, tree, entry, 0, CARD_SIZE)])
    except FilestoreError:
        return None  # the rest of the page can be shown without it
    text = content.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return Card(text, is_cut=entry.size > CARD_SIZE, url=file_url(file_id, path=path))


def _breadcrumb(record: Record, path: str) -> list[tuple[str, str | None]]:
    """Return the folders on the way to a path, each with its URL. The last one, which is shown, has none.

    Of a long way, those in the middle are one step.
    """
    parts = path.split("/") if path else []
    steps: list[tuple[str, str | None]] = [(record.name, file_url(record.id))]
    # Each URL has all that is before it. A path that leads through links may have thousands of folders.
    left_out = max(len(parts) - STEPS_LIMIT, 0)
    if left_out:
        steps.append(("…", file_url(record.id, path="/".join(parts[:left_out]))))
    for place, part in enumerate(parts[left_out:], left_out + 1):
        steps.append((part, file_url(record.id, path="/".join(parts[:place]))))
    return [*steps[:-1], (steps[-1][0], None)]
