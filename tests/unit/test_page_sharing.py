"""Pages that share work with others: what a page learns by that, and for whom it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from filestore.core.digest import manifest_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.errors import InvalidTensors
from filestore.http.server.kept_work import KEPT_WORK, KeptWork
from filestore.http.server.measuring import MEASURING, Measuring
from filestore.http.server.routes.page import file, tensors, transfers
from filestore.http.server.routes.page.subjects import Subject
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads
from filestore.http.server.stored_trees import PREVIEWS_LIMIT, SharedTrees
from filestore.transfer.stored_tree import EntryKind, StoredEntry


def stored(name: str, kind: Kind = Kind.FILE) -> Record:
    """Return a record of a content that is always the same."""
    return Record("file_" + "0" * 32, name, manifest_digest(b""), 1, kind, DEFAULT_NAMESPACE, 0, 0)


async def test_an_error_tells_no_name_of_another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers look at the same content at the same time, under names that the other one may not see."""
    app: dict[Any, Any] = {KEPT_WORK: KeptWork()}
    context: Any = SimpleNamespace(request=SimpleNamespace(app=app), transport=None)
    repository: Any = SimpleNamespace(namespace="default")

    async def fails(_: object, __: object, found: Subject) -> None:
        await asyncio.sleep(0)
        raise InvalidTensors(found.name, "it has none")

    monkeypatch.setattr(tensors, "_read", fails)
    readers = [Subject(stored(name), "") for name in ("public", "secret")]
    errors = await asyncio.gather(*(tensors.tensors_of(context, repository, found) for found in readers), return_exceptions=True)
    assert ["public" in str(error) for error in errors] == [True, False]
    assert ["secret" in str(error) for error in errors] == [False, True]


async def test_the_page_of_transfers_waits_for_no_measurement() -> None:
    """A measurement of the namespace may take minutes."""
    measuring, begun, done = Measuring(), asyncio.Event(), asyncio.Event()

    async def measure() -> None:
        begun.set()
        await done.wait()

    async def unfinished(_: str | None, *, prefix: str, limit: int) -> UnfinishedUploads:
        del prefix, limit
        return UnfinishedUploads([])

    uploads = SimpleNamespace(uploads=SimpleNamespace(unfinished=unfinished))
    app: Any = {MEASURING: measuring, transfers.UPLOAD_LISTS: Measuring(), ASSEMBLY: uploads}
    async with asyncio.TaskGroup() as group:
        group.create_task(measuring.run("default", measure))
        await begun.wait()
        assert await transfers._unfinished(app, "default", None, "") == UnfinishedUploads([])
        done.set()


async def test_few_texts_about_folders_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many readers may open pages of directories at the same time, and each reads a chunk of the README.md (I6)."""
    trees = SharedTrees(wait_seconds=5)
    opened: Any = SimpleNamespace(find=lambda _: StoredEntry("", EntryKind.FOLDER))
    opened.tree = SimpleNamespace(members=[], entries=lambda *_, **__: iter(()))
    running, done = 0, asyncio.Event()

    @asynccontextmanager
    async def reading(*_: object) -> AsyncIterator[object]:
        yield opened

    async def read(*_: object) -> None:
        nonlocal running
        running += 1
        await done.wait()

    async def at_once(*_: object) -> tuple[list[object], None]:
        return [], None

    monkeypatch.setattr(trees, "reading", reading)
    monkeypatch.setattr(file, "_card", read)
    monkeypatch.setattr(file, "in_cpu_thread", at_once)
    context: Any = SimpleNamespace(trees=trees)
    repository: Any = None
    record = stored("d", Kind.DIRECTORY)
    async with asyncio.TaskGroup() as group:
        for _ in range(5 * PREVIEWS_LIMIT):
            group.create_task(file._listing(context, repository, record, "", after=None))
        for _ in range(100):  # nothing here needs so many turns of the loop
            await asyncio.sleep(0)
        assert PREVIEWS_LIMIT == running
        done.set()
    assert 5 * PREVIEWS_LIMIT == running
