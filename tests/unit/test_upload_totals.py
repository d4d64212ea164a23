"""The limits of uploads in an object store: few listings, and a bound for all servers together."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from filestore.http.limits import DEFAULT_SERVER_LIMITS
from filestore.http.server.metrics import Metrics
from filestore.http.server.routes.sdk.object_uploads import ObjectUploads
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_totals import KEPT_SECONDS, SHARES, ListedTotals, UploadTotals
from filestore.http.server.traffic import Traffic
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore
from filestore.system.metrics import SharedTimes, count_into
from tests.support.temporary_objects import MemoryObjects

LIMITS = UploadTotals(10_000, 128_000)
PART = UploadTotals(0, 100)


class Uploads:
    """What is in the object store, and how often it was listed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used = UploadTotals(0, 0)
        self.listings = 0
        self.late: dict[str, int] = {}
        """The sizes of the parts that are there, and whose puts have not ended."""

    async def totals(self, namespace: str, *, without: Collection[str]) -> UploadTotals:
        """List them. All are those of one namespace."""
        del namespace
        self.listings += 1
        return UploadTotals(self.used.uploads, self.used.size - sum(self.late.get(name, 0) for name in without))

    def server(self) -> ListedTotals:
        """Return what one process knows of them."""
        return ListedTotals(self.totals, clock=lambda: self.now)

    async def add(self, server: ListedTotals, more: UploadTotals) -> bool:
        """Add uploads at a server. Return whether it has accepted them."""
        async with server.taking("a", "name", more, LIMITS) as used:
            if used.uploads > LIMITS.uploads or used.size > LIMITS.size:
                return False
            self.used = UploadTotals(self.used.uploads + more.uploads, self.used.size + more.size)
            return True


@pytest.fixture
def uploads() -> Uploads:
    """Uploads in a store that has none yet."""
    return Uploads()


async def test_far_from_the_limit_a_listing_serves_many_parts(uploads: Uploads) -> None:
    """A share of the limit. To ask twice before a part arrives takes nothing of it."""
    server = uploads.server()
    for _ in range(1 + LIMITS.size // SHARES // PART.size):
        await server.used_with("a", PART, LIMITS)
        assert await uploads.add(server, PART)
    assert 2 == uploads.listings


async def test_what_was_listed_counts_for_a_time(uploads: Uploads) -> None:
    """Another namespace has a listing of its own."""
    server = uploads.server()
    assert await uploads.add(server, PART)
    assert await uploads.add(server, PART)
    assert 1 == uploads.listings
    uploads.now += KEPT_SECONDS
    assert await uploads.add(server, PART)
    assert 2 == uploads.listings
    await server.used_with("b", PART, LIMITS)
    assert 3 == uploads.listings


@pytest.mark.parametrize("are_there", [False, True])
async def test_what_is_being_put_counts_once(uploads: Uploads, *, are_there: bool) -> None:
    """Whether a listing has it already or not. So one process accepts the limit to the last byte, and no more."""
    server, part = uploads.server(), UploadTotals(0, LIMITS.size // 4)
    async with AsyncExitStack() as puts:
        for number in range(4):
            used = await puts.enter_async_context(server.taking("a", f"{number}", part, LIMITS))
            assert (number + 1) * part.size == used.size
            uploads.late[f"{number}"] = part.size if are_there else 0
            uploads.used = UploadTotals(0, sum(uploads.late.values()))
        assert not await uploads.add(server, UploadTotals(0, 1))
    uploads.used, uploads.late = UploadTotals(0, 0), {}
    assert await uploads.add(server, UploadTotals(0, LIMITS.size))


async def test_the_metrics_show_what_the_last_look_found(tmp_path: Path) -> None:
    """Of all namespaces and servers, without what is finished or abandoned, and without a listing."""
    store, objects, index = MemoryStore(), MemoryObjects(), await open_index(tmp_path / "index.sqlite")
    server = ObjectUploads(objects, index, spool_folder=tmp_path, size_limit=None, count_limit=None)
    for seconds, namespace in ((0, "idle"), (60, "one"), (60, "finished"), (60, "other")):
        objects.seconds = seconds
        repository = LocalRepository(store, index, location="memory", namespace=namespace)
        upload = await server.begin(repository, name=None, upload_id=None)
        async with upload.arriving(1000) as part:
            part.write(bytes(1000))
            await upload.keep(part, 1, check_size=lambda _: None)
        if namespace == "finished":
            await upload.save_first(FinishedUpload.of(["a-tag"], "file_x"))
    await server.expire(idle_seconds=30, limit_seconds=600)
    del objects.kept
    shared = SharedTimes(1)
    shared.join(0)
    shown = Metrics(
        store,
        index,
        shared_times=shared,
        traffic=Traffic(),
        upload_quota=UploadQuota(tmp_path / "none"),
        limits=DEFAULT_SERVER_LIMITS,
        note_memory=lambda: None,
    )
    try:
        async with shown.running():
            text, _ = await shown.text("")
    finally:
        count_into(None)
        await index.close()
    lines = text.decode().splitlines()
    assert {"filestore_uploads_in_store 2.0", "filestore_uploads_in_store_bytes 2000.0", "filestore_uploads_open 0.0"} <= {*lines}


async def test_a_put_that_failed_counts_until_the_next_listing(uploads: Uploads) -> None:
    """Nobody knows whether the object is there."""
    server = uploads.server()
    with pytest.raises(OSError, match="cut"):
        async with server.taking("a", "name", PART, LIMITS):
            raise OSError("cut")
    assert 2 * PART.size == (await server.used_with("a", PART, LIMITS)).size
    uploads.now += KEPT_SECONDS
    assert PART.size == (await server.used_with("a", PART, LIMITS)).size


@pytest.mark.parametrize("more", [PART, UploadTotals(1, 0)])
async def test_the_limit_holds_for_all_servers_together(uploads: Uploads, more: UploadTotals) -> None:
    """Servers that take turns fill it to the last byte, and none accepts more."""
    servers = [uploads.server() for _ in range(8)]
    refused = 0
    for server in itertools.cycle(servers):
        uploads.now += KEPT_SECONDS / 100
        refused = 0 if await uploads.add(server, more) else refused + 1
        if refused == len(servers):
            break
    assert LIMITS[bool(more.size)] == uploads.used[bool(more.size)]


async def test_a_limit_that_fills_at_once_is_passed_by_a_share_of_each_server(uploads: Uploads) -> None:
    """The worst case: all have listed nothing, and one of them fills the limit before the others accept a share."""
    servers = [uploads.server() for _ in range(8)]
    for server in servers:
        assert await uploads.add(server, PART)
    while await uploads.add(servers[0], PART):
        pass
    for server in servers[1:]:
        while await uploads.add(server, PART):
            pass
    assert LIMITS.size <= uploads.used.size <= LIMITS.size + len(servers) * LIMITS.size // SHARES
