"""Make a commit of operations that a client of the Hub sends: the tree of the newest commit, with what they change.

Only what is new is read and cut. Nothing is visible before one transaction records the new tree, and a commit that was made
meanwhile is not lost: the operations are applied to its tree, or refused if the client asked for another one.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

from aiofiles.threadpool.binary import AsyncFileIO
from aiohttp import web

from filestore.core.commits import Commit, NewCommit
from filestore.core.digest import DIGEST_AND_NUMBER, Digest
from filestore.core.manifest import MANIFEST_LIMIT, Manifest
from filestore.core.names import split_full_name
from filestore.core.records import Kind, Record
from filestore.errors import ChunksMissing, EntryNotFound, HeadMoved, InvalidInput, LimitExceeded, NotFound
from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.http.server.context import RequestContext
from filestore.http.server.errors import log_failure, problem
from filestore.http.server.pushes import push_memory
from filestore.http.server.routes.hub import commit_lines as lines_
from filestore.http.server.routes.hub.commit_lines import CommitHeader, CommitLines
from filestore.http.server.routes.hub.contents import Contents
from filestore.http.server.routes.hub.names import HubRepository, repository_in, revision_in
from filestore.http.server.routes.hub.repos import head_of
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.multipart import each_piece
from filestore.http.server.stored_trees import SERVED_TREES, OpenedTree, SharedTrees
from filestore.repository.index.protocol import ContentDigests
from filestore.repository.local import LocalRepository
from filestore.system.files import write_all
from filestore.system.threads import in_cpu_thread
from filestore.transfer import edits
from filestore.transfer.edits import EditResult, Sums, TreeEdit
from filestore.transfer.sources.file import WINDOW_SIZE
from filestore.transfer.stored_tree import EntryKind, StoredTree

BODY_LIMIT = 512 << 20
"""Bytes of a commit, with the files in it. Larger files, and more of them, are LFS objects."""
ATTEMPTS = 10
"""How often the operations are applied to the newest tree, if other commits are made or chunks are removed meanwhile."""
SOURCES_LIMIT = 4
"""Revisions that a commit copies files from. Each of their trees is in memory."""
LARGE_TREE = 20_000
"""Entries of a tree that is edited while no other tree of this size is, in one process. Each entry takes about 1 KB."""
LARGE_EDITS = web.AppKey("large_edits", asyncio.Lock)

_PAGE = 100


async def create_commit(context: RequestContext, repository: LocalRepository) -> web.StreamResponse:
    """Apply the operations of a request to the newest tree of a branch, and answer with the id of the commit."""
    if context.request.query.get("create_pr") not in {None, "", "0", "false"}:
        raise InvalidInput("pull requests do not exist here; make the commit on a branch")
    hub = repository_in(context.request)
    context.noted.facts["name"] = hub.name
    repository.check_name(hub.name)
    # Before the body: a name or a branch that is absent costs no transfer.
    branch, _ = await head_of(repository, hub, revision_in(context.request))
    async with context.form_spool(repository) as (spool, written):
        lines = CommitLines(spool.fileno(), await _receive(context, spool, written))
        while not lines.is_finished:
            await in_cpu_thread(lines.parse_slice)
        committer = _Committer(context, repository, _Branch(hub, branch), lines, spool.fileno())
        try:
            commit = await committer.commit()
        except HeadMoved as error:
            return _head_moved(context, error)
    context.noted.facts |= {"commit": commit.id, "operations": len(lines.operations)}
    url = f"{context.base_url}{hub.url_path}/commit/{commit.id}"
    return web.json_response({"success": True, "commitUrl": url, "commitOid": commit.id, "hookOutput": ""})


class _Branch(NamedTuple):
    """Where a commit is made."""

    repository: HubRepository
    name: str


class _Committer:
    """Applies operations to the newest tree of a branch, until nobody else has made a commit meanwhile."""

    def __init__(
        self,
        context: RequestContext,
        repository: LocalRepository,
        branch: _Branch,
        lines: CommitLines,
        descriptor: int,
    ) -> None:
        self._context = context
        self._repository = repository
        self._hub, self._branch = branch
        self._header: CommitHeader = lines.header
        self._operations = lines.operations
        self._descriptor = descriptor
        self._contents = Contents(context, repository)
        self._sources: dict[Digest, StoredTree | None] = {}
        """The trees that files are copied from."""

    async def commit(self) -> Commit:
        """Return the commit. Raises HeadMoved, EntryNotFound, InvalidInput, LimitExceeded, QuotaExceeded and others."""
        for attempt in range(1, ATTEMPTS + 1):
            _, head = await head_of(self._repository, self._hub, self._branch)
            if self._header.parent is not None and not head.id.startswith(self._header.parent):
                head = await self._parent_of(head)
            if not self._operations:
                return head
            try:
                return await self._commit_on(head)
            except HeadMoved:
                if self._header.parent is not None or attempt == ATTEMPTS:
                    raise
            except ChunksMissing:
                # With a short grace period, the collection removed chunks meanwhile. The client has no way to send them again.
                if attempt == ATTEMPTS:
                    raise
        raise AssertionError

    async def _parent_of(self, head: Commit) -> Commit:
        """Return the commit before the newest one, if the request may have made that one before. Raises HeadMoved otherwise.

        A client that got no answer sends the request again. `commit` of the repository compares the trees.
        """
        parent = self._header.parent or ""
        made, asked = (head.message, head.author, head.branch), (self._header.message, self._context.author, self._branch)
        if made == asked and head.parent is not None and head.parent.startswith(parent):
            with suppress(NotFound):  # removed meanwhile
                return await self._repository.find_commit(self._hub.name, head.parent)
        raise HeadMoved(self._hub.name, self._branch, parent, head.id)

    async def _commit_on(self, head: Commit) -> Commit:
        inlined = sum(each.size for each in self._operations if isinstance(each, lines_.PutFile))
        # Besides what is new, chunks around it are read. The budget comes first: whoever waits holds no tree.
        async with self._context.push_budget.take(push_memory(inlined + WINDOW_SIZE)):
            result = await self._edited(head)
        limit = self._context.chunks_limit
        if limit is not None and len(result.manifest.chunks) > limit:
            raise LimitExceeded("the number of the file's chunks", len(result.manifest.chunks), limit, "chunks_limit")
        new = NewCommit(self._header.message, self._context.author, self._branch, head.id)
        record = await self._repository.commit(result.manifest.encoded, name=self._hub.name, kind=Kind.DIRECTORY, commit=new)
        self._context.noted.note_record(record)
        await self._note_digests(head, result)
        if head.kind is Kind.DIRECTORY:
            self._context.request.app[ASSEMBLY].start(_note_unchanged(self._context.trees, self._repository, record.digest))
        return await self._made(record, head)

    async def _edited(self, head: Commit) -> EditResult:
        """Store the chunks of the new tree. Nothing is recorded."""
        self._sources.clear()
        async with AsyncExitStack() as stack:
            old = await self._tree(head, stack)
            operations = await self._edits(head, old, stack)
            if len(operations) + (0 if old is None else len(old.members)) > LARGE_TREE:
                lock = self._context.request.app[LARGE_EDITS]
                await stack.enter_async_context(lock)
            size_limit = self._context.upload_limit
            edit = TreeEdit(self._repository, old, operations, name=self._hub.name, size_limit=size_limit, limits=SERVED_TREES)
            return await edit.store()

    async def _tree(self, commit: Commit, stack: AsyncExitStack) -> StoredTree | None:
        """Return the tree of a commit until the end of `stack`. Return None for a single file."""
        if commit.kind is not Kind.DIRECTORY:
            return None
        return (await stack.enter_async_context(self._context.trees.reading(self._repository, commit.digest))).tree

    async def _edits(self, head: Commit, old: StoredTree | None, stack: AsyncExitStack) -> list[edits.Operation]:
        """Return one operation for each path, with the content that it puts."""
        resolved: list[edits.Operation] = []
        if old is None:
            file_name = split_full_name(self._hub.name)[1]
            single = await in_cpu_thread(Manifest.parse, await self._repository.manifest(head.digest))
            known = (await self._repository.content_digests([head.digest])).get(head.digest)
            sums = None if known is None else Sums(known.sha256, known.blob_id)
            resolved.append(edits.PutChunks(file_name, single.chunks, sums=sums))
        chunks_size = 0
        for operation in self._operations:
            match operation:
                case lines_.PutFile(path, offset, size):
                    resolved.append(edits.PutSpan(path, self._descriptor, offset, size))
                case lines_.PutObject():
                    put = await self._object(operation)
                    chunks_size += len(put.chunks) * DIGEST_AND_NUMBER.size
                    if chunks_size > MANIFEST_LIMIT:
                        raise LimitExceeded(
                            "the size in bytes of the lists of chunks of the objects", chunks_size, MANIFEST_LIMIT
                        )
                    resolved.append(put)
                case lines_.DeleteFile(path):
                    resolved.append(edits.DeleteFile(path))
                case lines_.DeleteFolder(path):
                    resolved.append(edits.DeleteFolder(path))
                case lines_.CopyFile():
                    resolved.append(await self._copy(operation, old, stack))
        return await in_cpu_thread(merged, self._hub.name, old, resolved)

    async def _object(self, operation: lines_.PutObject) -> edits.PutChunks:
        found = await self._contents.find(operation.sha256)
        if found is None:
            raise InvalidInput(
                f"the LFS object {operation.sha256.hex()} of {operation.path!r} is not here; upload the file again"
            )
        if operation.size not in (None, found.size):
            raise InvalidInput(f"the LFS object of {operation.path!r} has {found.size} bytes, and not {operation.size}")
        return edits.PutChunks(operation.path, found.chunks, crc=found.crc, sums=Sums(found.sha256, found.blob_id))

    async def _copy(self, operation: lines_.CopyFile, old: StoredTree | None, stack: AsyncExitStack) -> edits.CopyFile:
        tree = old
        if operation.source_revision is not None:
            source = await self._repository.find_commit(self._hub.name, operation.source_revision)
            if source.digest not in self._sources:
                if len(self._sources) == SOURCES_LIMIT:
                    raise LimitExceeded("the number of revisions that the commit copies from", SOURCES_LIMIT + 1, SOURCES_LIMIT)
                self._sources[source.digest] = await self._tree(source, stack)
            tree = self._sources[source.digest]
        if tree is None or tree.entry(operation.source_path) is None:
            raise EntryNotFound(self._hub.name, operation.source_path)
        return edits.CopyFile(operation.path, operation.source_path, tree)

    async def _note_digests(self, head: Commit, result: EditResult) -> None:
        """Note the secondary digests of what the commit put. The tree is stored, so a failure is only logged."""
        tree = result.manifest.digest
        rows = [
            ContentDigests(each.digest, each.size, each.sums.sha256, each.sums.blob_id, tree, each.start)
            for each in result.entries
            if each.sums is not None and each.size >= SEGMENT_MIN
        ]
        try:
            packed = result.tree_digests(await self._repository.tree_digests(head.digest))
            await self._repository.note_digests(rows, tree=tree, packed=packed)
        except Exception as error:  # noqa: BLE001  # the pass in the background does it later
            log_failure(f"digests of {tree} are not noted", error)

    async def _made(self, record: Record, head: Commit) -> Commit:
        """Return the commit that stored a record, or `head` if it stored the same one. Others may have been made since."""
        before: int | None = None
        while True:
            page = await self._repository.history(self._hub.name, revision=self._branch, limit=_PAGE, before=before)
            for commit in page:
                if commit.parent == head.id and commit.file_id == record.id:
                    return commit
            if not page or page[-1].number <= head.number:
                return head
            before = page[-1].number


async def _note_unchanged(trees: SharedTrees, repository: LocalRepository, digest: Digest) -> None:
    """Note in which tree the unchanged large files lie now, so that they are still known when the tree before it is removed."""
    try:
        async with trees.reading(repository, digest) as opened:
            rows = await in_cpu_thread(_large_files, opened)
        await repository.note_digests(rows, tree=digest, packed=None)
    except Exception as error:  # noqa: BLE001  # a client sends them once more
        log_failure(f"digests of {digest} are not noted", error)


def _large_files(opened: OpenedTree) -> list[ContentDigests]:
    tree = opened.tree
    rows = []
    for entry in tree.entries(recursive=True):
        known = opened.digests_of(entry) if entry.size >= SEGMENT_MIN else None
        chunks = None if known is None else tree.chunks_of(entry)
        if known is not None and chunks is not None and entry.extent is not None:
            file = Manifest.build(chunks, chunking_version=tree.manifest.chunking_version)
            row = ContentDigests(file.digest, entry.size, *known, tree.manifest.digest, entry.extent.start)
            rows.append(row)
    return rows


def merged(name: str, old: StoredTree | None, operations: Iterable[edits.Operation]) -> list[edits.Operation]:
    """Return one operation for each path: of several, the last one counts. Raises EntryNotFound for what cannot be deleted."""
    found = _Merged(name, old)
    for operation in operations:
        match operation:
            case edits.DeleteFile(path):
                found.delete_file(path)
            case edits.DeleteFolder(path):
                found.delete_folder(path)
            case _:
                found.put(operation)
    return found.operations()


class _Merged:
    """The operations of a commit by their paths. A tree takes one for each path, and a client may send several."""

    def __init__(self, name: str, old: StoredTree | None) -> None:
        self._name = name
        self._old = old
        self._puts: dict[str, edits.Operation] = {}
        self._sorted: list[str] | None = None
        """The paths of `_puts`, and some that are gone. None until a folder is deleted: most commits delete none."""
        self._deleted: dict[str, edits.Operation] = {}

    def put(self, operation: edits.Operation) -> None:
        """Put a file, in the place of what was put there before."""
        if self._sorted is not None and operation.path not in self._puts:
            insort(self._sorted, operation.path)
        self._puts[operation.path] = operation
        if isinstance(self._deleted.get(operation.path), edits.DeleteFile):
            del self._deleted[operation.path]

    def delete_file(self, path: str) -> None:
        """Delete a file that is in the old tree or was put before. Raises EntryNotFound."""
        was_put = self._puts.pop(path, None) is not None
        entry = None if self._old is None else self._old.entry(path)
        if entry is not None and entry.kind is not EntryKind.FOLDER:
            self._deleted[path] = edits.DeleteFile(path)
        elif not was_put:
            raise EntryNotFound(self._name, path)

    def delete_folder(self, path: str) -> None:
        """Delete a folder with what was put into it before. Raises EntryNotFound."""
        inside = self._take_inside(path)
        entry = None if self._old is None else self._old.entry(path)
        if entry is not None and entry.kind is EntryKind.FOLDER:
            self._deleted[path] = edits.DeleteFolder(path)
        elif not inside:
            raise EntryNotFound(self._name, path)

    def _take_inside(self, folder: str) -> bool:
        """Forget what was put into a folder. Return whether there was something."""
        if self._sorted is None:
            self._sorted = sorted(self._puts)
        # "0" is the character after the slash.
        first, after = bisect_left(self._sorted, f"{folder}/"), bisect_left(self._sorted, f"{folder}0")
        inside = [put for put in self._sorted[first:after] if self._puts.pop(put, None) is not None]
        del self._sorted[first:after]
        return bool(inside)

    def operations(self) -> list[edits.Operation]:
        """Return what is left."""
        return [*self._deleted.values(), *self._puts.values()]


async def _receive(context: RequestContext, spool: AsyncFileIO, written: Callable[[int], None]) -> int:
    """Write the body of a request to a spool file, and return its size. Raises LimitExceeded and others."""
    announced = context.request.content_length
    if announced is not None and announced > BODY_LIMIT:
        raise LimitExceeded("the size of the commit in bytes", announced, BODY_LIMIT)
    size = 0

    def take(piece: memoryview) -> None:
        nonlocal size
        size += len(piece)
        if size > BODY_LIMIT:
            raise LimitExceeded("the size of the commit in bytes", size, BODY_LIMIT)
        written(len(piece))
        write_all(spool.fileno(), piece)

    await each_piece(context, take)
    return size


def _head_moved(context: RequestContext, error: HeadMoved) -> web.StreamResponse:
    """Answer as the Hub does: a condition of the request does not hold."""
    answer = problem(context.request, error)
    answer.set_status(412)
    document = json.loads(answer.body) if isinstance(answer.body, bytes) else {}
    answer.body = json.dumps(document | {"status": 412}).encode()
    return answer
