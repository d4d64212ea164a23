"""Pages that share work with others: what a page learns by that, and for whom it waits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from filestore.core.digest import manifest_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Kind, Record
from filestore.errors import InvalidTensors
from filestore.http.server.kept_work import KEPT_WORK, KeptWork
from filestore.http.server.measuring import MEASURING, Measuring
from filestore.http.server.routes.page import tensors, transfers
from filestore.http.server.routes.page.chosen import Chosen
from filestore.http.server.routes.sdk.assembly import ASSEMBLY
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads


async def test_an_error_tells_no_name_of_another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers look at the same content at the same time, under names that the other one may not see."""
    app: dict[Any, Any] = {KEPT_WORK: KeptWork()}
    context: Any = SimpleNamespace(request=SimpleNamespace(app=app), transport=None)
    repository: Any = SimpleNamespace(namespace="default")

    async def fails(_: object, __: object, found: Chosen) -> None:
        await asyncio.sleep(0)
        raise InvalidTensors(found.name, "it has none")

    monkeypatch.setattr(tensors, "_read", fails)
    readers = [
        Chosen(Record("file_" + "0" * 32, name, manifest_digest(b""), 1, Kind.FILE, DEFAULT_NAMESPACE, 0, 0), "")
        for name in ("public", "secret")
    ]
    errors = await asyncio.gather(
        *(tensors.tensors_of(context, repository, found) for found in readers), return_exceptions=True
    )
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
