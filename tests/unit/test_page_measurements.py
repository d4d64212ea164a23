"""What pages say about the disk: when it is measured, for how long a result is shown, and pages that come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from filestore.errors import DamagedRecord, FilestoreError, NotFound, StorageError
from filestore.http.server import slow
from filestore.http.server.context import RequestContext
from filestore.http.server.measuring import MEASURING, MeasuredUsage, Measuring
from filestore.http.server.outages import OUTAGES, Outages
from filestore.http.server.routes.page import measurements
from filestore.http.server.routes.page.measurements import (
    QUICK_CHUNKS,
    QUICK_MANIFESTS_SIZE,
    QUICK_RECORDS,
    NameSizes,
    find_sizes,
    last_name_sizes,
    measure_if_small,
    measure_name_sizes,
    name_sizes,
    render_slowly,
)
from filestore.repository.index.protocol import NamespaceUsage
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.protocol import NameUsage, Usage
from filestore.repository.stores.memory import MemoryStore


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_a_page_that_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head says that it is one before it is known what it has, so an error in it is a page too, and no text of users runs."""
    monkeypatch.setattr(slow, "BLANK_SECONDS", 0.01)
    sent, heads = bytearray(), list[web.StreamResponse]()
    request = make_mocked_request("GET", "/ui/names", headers={"Host": "a"})

    class Reader:
        """The request of a reader who waits."""

        def __init__(self) -> None:
            self.request = request

        @asynccontextmanager
        async def answering(self, head: web.StreamResponse, *, size: int) -> AsyncIterator[Reader]:
            """Announce an answer."""
            heads.append(head)
            yield self
            assert size == len(sent)

        async def send(self, piece: bytes) -> None:
            """Take a part of the answer."""
            sent.extend(piece)

    async def work() -> web.Response:
        while not heads:
            await asyncio.sleep(0)
        raise NotFound("<script>alert(1)</script>")

    await render_slowly(cast(RequestContext, Reader()), work())
    assert "text/html; charset=utf-8" == heads[0].headers["Content-Type"]
    assert "default-src 'none'" in heads[0].headers["Content-Security-Policy"]
    assert sent.strip().startswith(b"<!doctype html>")
    assert b"nothing is stored under &#39;&lt;script&gt;" in sent.lower()
    assert b"<script>alert" not in sent


class Namespace(LocalRepository):
    """A repository whose measurements are counted."""

    measured = 0
    rows = NamespaceUsage("default", record_count=1)

    async def kept(self) -> NamespaceUsage:
        return self.rows

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        self.measured += 1
        assert grace_seconds == 60
        names = tuple(NameUsage(f"n{number}", 1, 1, own_size=100 - number, shared_size=number) for number in range(3))
        counted = Usage.__annotations__.keys() - {"namespace", "grace_seconds", "damaged", "name_count", "names", "hold", "quota"}
        counts: dict[str, Any] = dict.fromkeys(counted, 0)
        return Usage("default", **counts, grace_seconds=60, damaged=(), name_count=3, names=names[:name_limit])


@pytest.fixture
async def namespace(tmp_path: Path) -> AsyncIterator[Namespace]:
    """A repository with three names."""
    index = await open_index(tmp_path / "index.sqlite")
    namespace = Namespace(MemoryStore(), index, location="memory")
    yield namespace
    await namespace.close()


def context_of(measuring: Measuring) -> RequestContext:
    """A request of a server that measures."""
    app = web.Application()
    app[MEASURING] = measuring
    app[OUTAGES] = Outages()
    return cast(RequestContext, SimpleNamespace(request=make_mocked_request("GET", "/", app=app), grace_seconds=60))


async def test_a_measurement_is_kept_while_it_holds(namespace: Namespace) -> None:
    """In a small namespace it is made again after a change. In a large one it is shown for a time, with when it was made."""
    context = context_of(Measuring())
    assert await last_name_sizes(context, namespace) is None
    sizes = await measure_name_sizes(context, namespace)
    assert {"n0": 100, "n1": 99, "n2": 98} == sizes.sizes
    assert ((100, True), None) == (sizes.of("n0"), sizes.of("absent"))
    assert sizes == await last_name_sizes(context, namespace)
    namespace.rows = NamespaceUsage("default", record_count=2)
    assert await last_name_sizes(context, namespace) is None
    namespace.rows = NamespaceUsage("default", record_count=QUICK_RECORDS + 1)
    await measure_name_sizes(context, namespace)
    namespace.rows = NamespaceUsage("default", record_count=QUICK_RECORDS + 2)
    kept = await last_name_sizes(context, namespace)
    assert kept is not None
    assert 2 == namespace.measured
    other = Namespace(namespace._store, namespace._index, location="memory", prefix="n1")
    assert await last_name_sizes(context, other) is None


async def test_only_a_small_namespace_is_measured_at_once(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is one for longer than a moment."""
    context = context_of(Measuring())
    assert await measure_if_small(namespace, lambda: measure_name_sizes(context, namespace)) is not None
    for large in (
        NamespaceUsage("default", record_count=QUICK_RECORDS + 1),
        NamespaceUsage("default", chunk_count=QUICK_CHUNKS + 1),
        NamespaceUsage("default", manifests_size=QUICK_MANIFESTS_SIZE + 1),
    ):
        namespace.rows = large
        assert await measure_if_small(namespace, lambda: measure_name_sizes(context, namespace)) is None
    assert 1 == namespace.measured
    namespace.rows = NamespaceUsage("default")
    monkeypatch.setattr(measurements, "QUICK_SECONDS", 0)
    assert await measure_if_small(namespace, asyncio.Event().wait) is None


async def test_names_that_a_measurement_leaves_out_have_less(namespace: Namespace) -> None:
    """It lists the largest ones. A question of the API for fewer of them does not replace what pages show."""
    measuring = Measuring()
    context = context_of(measuring)
    whole = await measure_name_sizes(context, namespace)
    await measuring.usage(namespace, grace_seconds=60, name_limit=1)
    assert whole == await last_name_sizes(context, namespace)
    few = await namespace.usage(grace_seconds=60, name_limit=2)
    sizes = name_sizes(MeasuredUsage(few, namespace.rows, 1))
    assert ((99, True), (100, False)) == (sizes.of("n1"), sizes.of("n2"))


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_what_cannot_be_measured_is_said() -> None:
    """The rest of a page is shown without it. A path of the server is not told, but in its log."""
    context = context_of(Measuring())

    async def fail(error: FilestoreError) -> NameSizes:
        raise error

    assert (
        "could not be measured. The record file_1"
        in (await find_sizes(context, fail(DamagedRecord("file_1", "a", "no")))).problem
    )
    said = (await find_sizes(context, fail(StorageError("/secret", "it fails")))).problem
    assert "could not be measured. The server failed; its log says why" in said
    assert "secret" not in said
