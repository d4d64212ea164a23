"""The rules for uploads in parts, against the folder of one host and the objects of an object store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from unittest.mock import Mock, PropertyMock

import pytest
from blake3 import blake3

from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import (
    Busy,
    InvalidParts,
    LimitExceeded,
    PartRefused,
    StorageFull,
    TooManyUploads,
    UploadNotFound,
    UploadsTooLarge,
)
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http.server.lfs_objects import LfsObject
from filestore.http.server.routes.sdk import assembly, copies
from filestore.http.server.routes.sdk.assembly import Assembly
from filestore.http.server.routes.sdk.disk_uploads import DiskUploads
from filestore.http.server.routes.sdk.object_uploads import ObjectUploads
from filestore.http.server.routes.sdk.parts import PartsContent, UploadPart
from filestore.http.server.routes.sdk.unfinished import UnfinishedUploads
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import Cut, ServedUpload, UploadStore
from filestore.http.server.routes.sdk.uploads import new_id
from filestore.http.server.stored_trees import SharedTrees
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.sqlite import open_index
from filestore.repository.local import LocalRepository
from filestore.repository.stores.memory import MemoryStore, NoSpaceClaim
from filestore.system.buffers import Budget
from filestore.system.threads import in_disk_thread
from filestore.transfer.push import send
from tests.support.temporary_objects import MemoryObjects

FINISHED = FinishedUpload.of(["a-tag"], "file_x")


class Servers(NamedTuple):
    """Two servers that keep uploads in one place, and a repository of each of two namespaces."""

    one: UploadStore
    two: UploadStore
    mine: LocalRepository
    theirs: LocalRepository


def nothing(_: int) -> None:
    """Accept any size."""


def stores(kind: str, folder: Path, objects: MemoryObjects, mine: LocalRepository) -> UploadStore:
    """Open the uploads as a server process does, for at most 3 uploads and 1000 kB of parts."""
    if kind == "disk":
        folders = folder / "spool" / "uploads"
        return DiskUploads(folders, UploadQuota(folders, size_limit=1_000_000, count_limit=3))
    return ObjectUploads(objects, mine._index, spool_folder=folder / "spool", size_limit=1_000_000, count_limit=3)


@pytest.fixture(params=["disk", "objects"])
async def servers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Servers]:
    """Two servers of each kind."""
    store, index, objects = MemoryStore(), await open_index(tmp_path / "index.sqlite"), MemoryObjects()
    mine, theirs = (LocalRepository(store, index, location="memory", namespace=name) for name in ("mine", "theirs"))
    one, two = (stores(request.param, tmp_path, objects, mine) for _ in range(2))
    yield Servers(one, two, mine, theirs)
    await index.close()


async def begun(servers: Servers, name: str | None = "model.bin") -> ServedUpload:
    """Begin an upload at one server, and return it as the other one finds it."""
    upload = await servers.one.begin(servers.mine, name=name, upload_id=None)
    return await servers.two.find(upload.id, namespace="mine")


async def kept(upload: ServedUpload, number: int, content: bytes, check_size: Callable[[int], None] = nothing) -> UploadPart:
    """Receive a part in two pieces, and keep it."""
    async with upload.arriving(len(content)) as part:
        for piece in (content[:3], content[3:]):
            await in_disk_thread(part.write, piece)
        await in_disk_thread(part.check_quota)
        assert part.size == len(content)
        return await upload.keep(part, number, check_size=check_size)


async def read(part: UploadPart, start: int, end: int) -> bytes:
    """Read a part of a part, in a thread as a push does."""
    memory = bytearray(end - start)
    await in_disk_thread(part.read_into, memoryview(memory), start)
    return bytes(memory)


async def test_any_server_goes_on_with_an_upload(servers: Servers) -> None:
    """Parts arrive in any order, and are found in theirs."""
    upload = await begun(servers)
    await kept(upload, 2, b"the second")
    first = await kept(await servers.one.find(upload.id, namespace="mine"), 1, b"the first")

    assert (upload.name, upload.file_id) == ("model.bin", f"file_{upload.id}")
    assert [(part.number, part.size) for part in await upload.parts()] == [(1, 9), (2, 10)]
    assert await read((await upload.parts())[1], 4, 10) == b"second"
    arrived = await upload.arrived(1)
    assert arrived is not None
    assert arrived.tag == first.tag
    assert await upload.arrived(3) is None


async def test_an_upload_without_a_name_has_that_of_its_record(servers: Servers) -> None:
    """As the client names it later."""
    upload = await begun(servers, None)
    assert upload.name == upload.file_id


async def test_an_empty_part(servers: Servers) -> None:
    """It has no bytes to read."""
    part = await kept(await begun(servers), 1, b"")
    assert (part.size, await read(part, 0, 0)) == (0, b"")


async def test_a_namespace_does_not_see_the_uploads_of_another_one(servers: Servers) -> None:
    """The answer is that for an unknown id."""
    upload = await begun(servers)
    for upload_id, namespace in ((upload.id, "theirs"), (new_id(), "mine"), ("../mine", "mine"), ("", "mine")):
        with pytest.raises(UploadNotFound):
            await servers.one.find(upload_id, namespace=namespace)


async def test_an_id_that_was_given_is_begun_once(servers: Servers) -> None:
    """The first part of an LFS object begins its upload, at whatever server it arrives."""
    upload_id = new_id()
    one = await servers.one.begin(servers.mine, name="a", upload_id=upload_id)
    await kept(one, 1, b"content")
    two = await servers.two.begin(servers.mine, name="a", upload_id=upload_id)
    assert [part.number for part in await two.parts()] == [1]
    with pytest.raises(UploadNotFound):
        await servers.one.begin(servers.mine, name="a", upload_id="../x")


async def test_a_part_never_changes(servers: Servers) -> None:
    """The same bytes are accepted again, and others are refused."""
    upload = await begun(servers)
    first = await kept(upload, 1, b"content")
    assert (await kept(upload, 1, b"content")).tag == first.tag
    with pytest.raises(PartRefused):
        await kept(upload, 1, b"changed")
    assert len(await upload.parts()) == 1


async def test_what_was_not_kept_is_dropped(servers: Servers, tmp_path: Path) -> None:
    """Its file is gone at the end of the block."""
    upload = await begun(servers)
    async with upload.arriving(0) as part:
        await in_disk_thread(part.write, b"content")
    assert await upload.parts() == []
    assert [] == [path for path in (tmp_path / "spool").rglob("*") if path.is_file() and path.stat().st_size == 7]


async def test_the_size_of_all_parts_is_checked(servers: Servers) -> None:
    """A part that is sent again does not count twice."""
    sizes: list[int] = []

    def refuse(size: int) -> None:
        sizes.append(size)
        if size > 10:
            raise LimitExceeded("the size", size, 10, "upload_limit")

    upload = await begun(servers)
    await kept(upload, 1, b"content", refuse)
    await kept(upload, 1, b"content", refuse)
    with pytest.raises(LimitExceeded):
        await kept(upload, 2, b"more", refuse)
    assert sizes == [7, 7, 11]


async def test_the_limits_of_a_namespace(servers: Servers) -> None:
    """Both servers count the same. What is finished does not count."""
    uploads = [await begun(servers) for _ in range(3)]
    with pytest.raises(TooManyUploads):
        await begun(servers)
    await servers.two.begin(servers.theirs, name="a", upload_id=None)
    await kept(uploads[0], 1, bytes(900_000))
    with pytest.raises(UploadsTooLarge):
        await kept(uploads[1], 1, bytes(200_000))
    await uploads[0].save_first(FINISHED)
    await uploads[0].retire()
    await kept(uploads[1], 1, bytes(200_000))
    await begun(servers)


async def test_parts_that_arrive_at_once_at_one_server_keep_its_limit(servers: Servers) -> None:
    """Those that were accepted and are not stored yet count as well."""
    uploads = [await servers.one.begin(servers.mine, name=None, upload_id=None) for _ in range(3)]
    found = await asyncio.gather(*(kept(upload, 1, bytes(450_000)) for upload in uploads), return_exceptions=True)
    refused = [each for each in found if isinstance(each, UploadsTooLarge)]
    assert refused
    parts = [part for upload in uploads for part in await upload.parts()]
    assert 900_000 >= sum(part.size for part in parts)


async def test_a_cut_goes_on_at_another_server(servers: Servers) -> None:
    """The chunks so far, and from which parts they are."""
    upload = await begun(servers)
    assert await upload.cut() == Cut([], bytearray())
    await upload.save_cut(["a", "b"], bytes(36 * 4))
    again = await (await servers.one.find(upload.id, namespace="mine")).cut()
    assert (again.tags, bytes(again.chunks)) == (["a", "b"], bytes(36 * 4))


async def test_an_upload_is_finished_once(servers: Servers) -> None:
    """The first one counts, also after its parts are removed. No part is accepted after that."""
    upload = await begun(servers)
    await kept(upload, 1, b"content")
    assert await upload.finished() is None
    assert await upload.save_first(FINISHED) == FINISHED
    other = await servers.one.find(upload.id, namespace="mine")
    assert await other.save_first(FinishedUpload.of(["other"], "file_y")) == FINISHED
    with pytest.raises(UploadNotFound):
        await kept(other, 2, b"more")
    async with other.locked(limit_seconds=0) as is_held:
        assert is_held
        await other.retire()
    assert await (await servers.two.find(upload.id, namespace="mine")).finished() == FINISHED


async def test_one_at_a_time_cuts_an_upload(servers: Servers) -> None:
    """A second block learns that it has not the lock, here and at the other server, and has it after the first one."""
    upload = await begun(servers)
    for store in (servers.one, servers.two):
        other = await store.find(upload.id, namespace="mine")
        async with upload.locked(limit_seconds=0) as was_held, other.locked(limit_seconds=0) as is_held:
            assert (was_held, is_held) == (True, False)
        async with other.locked(limit_seconds=0) as is_held:
            assert is_held


async def test_a_process_holds_few_locks_at_once(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an index that any server uses, each is a connection. Cutting ahead is left out then, and finishing waits."""
    if not isinstance(servers.one, ObjectUploads):
        return
    monkeypatch.setattr(servers.one, "places", asyncio.Semaphore(1))
    first, second = [await servers.one.begin(servers.mine, name="a", upload_id=None) for _ in range(2)]
    async with AsyncExitStack() as stack:
        assert await stack.enter_async_context(first.locked(limit_seconds=0))
        async with second.locked(limit_seconds=0) as is_held:
            assert not is_held
        waiting = asyncio.create_task(held(second))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def held(upload: ServedUpload) -> bool:
    """Return whether the lock can be had within a minute."""
    async with upload.locked(limit_seconds=60) as is_held:
        return is_held


async def test_what_is_idle_or_old_is_removed(servers: Servers) -> None:
    """A part that is read meanwhile is gone, and says so."""
    upload = await begun(servers)
    part = await kept(upload, 1, b"content")
    await servers.two.expire(idle_seconds=60, limit_seconds=60)
    assert len(await upload.parts()) == 1
    for store in (servers.one, servers.two):
        await store.expire(idle_seconds=-1, limit_seconds=60)
    with pytest.raises(UploadNotFound):
        await servers.one.find(upload.id, namespace="mine")
    with pytest.raises(InvalidParts):
        await read(part, 0, 7)

    old = await begun(servers)
    for store in (servers.one, servers.two):
        await store.expire(idle_seconds=60, limit_seconds=-1)
    with pytest.raises(UploadNotFound):
        await servers.one.find(old.id, namespace="mine")


async def test_one_that_is_cut_stays(servers: Servers) -> None:
    """The server that cuts it goes on."""
    upload = await begun(servers)
    async with upload.locked(limit_seconds=0):
        await servers.two.expire(idle_seconds=-1, limit_seconds=60)
        await servers.two.discard(upload)
        await servers.two.remove_all(["mine"])
    assert (await servers.one.find(upload.id, namespace="mine")).id == upload.id
    await servers.two.remove_all(["mine"])
    with pytest.raises(UploadNotFound):
        await servers.one.find(upload.id, namespace="mine")


async def test_an_upload_is_discarded(servers: Servers) -> None:
    """With its parts. A second time does nothing."""
    upload = await begun(servers)
    await kept(upload, 1, b"content")
    await servers.one.discard(upload)
    await servers.two.discard(upload)
    with pytest.raises(UploadNotFound):
        await servers.two.find(upload.id, namespace="mine")


async def test_the_parts_that_arrived_whole(servers: Servers) -> None:
    """Those for which a server would not take the bytes again."""
    upload = await begun(servers)
    assert await upload.whole_parts() == []
    for number, content in ((7, b"seven"), (2, b"two"), (3, b"")):
        await kept(upload, number, content)
    assert [(2, 3), (3, 0), (7, 5)] == [(part.number, part.size) for part in await upload.whole_parts()]
    assert [await upload.arrived(number) for number in (2, 3, 7)] == list(await upload.whole_parts())


async def test_a_tag_is_known_before_a_part_is_kept(servers: Servers) -> None:
    """It is the BLAKE3 of the bytes so far, so that a part with other bytes need not be kept."""
    upload = await begun(servers)
    async with upload.arriving(7) as part:
        for piece, content in ((b"", b""), (b"con", b"con"), (b"tent", b"content")):
            await in_disk_thread(part.write, piece)
            assert blake3(content).hexdigest() == part.tag
        assert (await upload.keep(part, 1, check_size=nothing)).tag == part.tag


async def test_who_cuts_is_asked_to_stop(servers: Servers) -> None:
    """By any server, until the request is withdrawn, or for ever if the upload is gone. The upload is not changed by it."""
    upload = await begun(servers)
    await kept(upload, 1, b"content")
    other = await servers.one.find(upload.id, namespace="mine")
    assert not await other.is_stop_requested()
    for _ in range(2):
        await upload.request_stop()
        assert await other.is_stop_requested()
    for _ in range(2):
        await other.withdraw_stop()
        assert not await upload.is_stop_requested()
    await kept(upload, 2, b"more")
    assert 2 == len(await other.parts())
    async with upload.locked(limit_seconds=0):
        await upload.cancel()
    assert await other.is_stop_requested()


async def test_a_stop_does_not_keep_an_upload(servers: Servers) -> None:
    """Only bytes that arrive keep it."""
    upload = await begun(servers)
    idle_seconds = 0
    if isinstance(servers.one, ObjectUploads):
        assert isinstance(servers.one.objects, MemoryObjects)
        servers.one.objects.seconds += 100
        idle_seconds = 60
    else:
        await servers.one.expire(idle_seconds=idle_seconds, limit_seconds=600)
    await upload.request_stop()
    await servers.one.expire(idle_seconds=idle_seconds, limit_seconds=600)
    with pytest.raises(UploadNotFound):
        await servers.two.find(upload.id, namespace="mine")


async def test_a_cancelled_upload_takes_nothing(servers: Servers, tmp_path: Path) -> None:
    """Neither a part that began before, nor one that another server found. Nothing of them is left, and nothing counts."""
    upload = await begun(servers)
    other = await servers.one.find(upload.id, namespace="mine")
    await kept(upload, 1, bytes(900_000))
    async with other.arriving(7) as part:
        await in_disk_thread(part.write, b"content")
        async with upload.locked(limit_seconds=0) as is_held:
            assert is_held
            await upload.cancel()
        with pytest.raises(UploadNotFound):
            await other.keep(part, 2, check_size=nothing)
    with pytest.raises(UploadNotFound):
        await servers.one.find(upload.id, namespace="mine")
    assert [] == list((tmp_path / "spool").rglob(f"*{upload.id}*"))
    if isinstance(servers.one, ObjectUploads):
        assert [] == await servers.one.objects.names("mine")
    await kept(await begun(servers), 1, bytes(900_000))


async def test_a_part_that_is_put_while_its_upload_is_cancelled(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store has no lock for it. The part sees afterwards that the upload is gone, and is removed."""
    if not isinstance(servers.one, ObjectUploads):
        return
    objects, upload = servers.one.objects, await begun(servers)
    put = objects.put

    async def put_late(name: str, content: Buffer | BinaryIO, *, only_new: bool = False) -> bool:
        if "/parts/" in name:
            await upload.cancel()
        return await put(name, content, only_new=only_new)

    monkeypatch.setattr(objects, "put", put_late)
    with pytest.raises(UploadNotFound):
        await kept(upload, 1, b"content")
    assert [] == await objects.names("mine")


def assembly_at(store: UploadStore, servers: Servers, folder: Path) -> Assembly:
    """The work of a server on uploads, for a cancel that does not wait and a look at it that is soon."""

    async def none_revoked() -> frozenset[str]:
        return frozenset()

    return Assembly(
        store,
        servers.mine._store,
        push_budget=Budget(1 << 30),
        idle_seconds=600,
        limit_seconds=600,
        quota=UploadQuota(folder / "spool" / "uploads"),
        revoked_namespaces=none_revoked,
    )


async def test_a_cancel_while_another_server_finishes(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and changes nothing. It can be repeated."""
    monkeypatch.setattr(assembly, "CANCEL_SECONDS", 0)
    upload = await begun(servers)
    await kept(upload, 1, b"content")
    other = await servers.one.find(upload.id, namespace="mine")
    one = assembly_at(servers.one, servers, tmp_path)
    async with upload.locked(limit_seconds=0):
        with pytest.raises(Busy):
            await one.cancel(other)
        assert not await upload.is_stop_requested()
        assert 1 == len(await upload.parts())
    await one.cancel(other)
    with pytest.raises(UploadNotFound):
        await one.cancel(other)
    if isinstance(servers.one, ObjectUploads):
        assert [] == await servers.one.objects.names("mine")


async def test_a_finished_upload_is_not_cancelled(servers: Servers, tmp_path: Path) -> None:
    """Neither before what is left of it is removed, nor after that."""
    upload = await begun(servers)
    await kept(upload, 1, b"content")
    await upload.save_first(FINISHED)
    for _ in range(2):
        with pytest.raises(UploadNotFound):
            await assembly_at(servers.one, servers, tmp_path).cancel(upload)
        assert await (await servers.two.find(upload.id, namespace="mine")).finished() == FINISHED
        await upload.retire()


async def test_a_cancel_ends_the_cutting_at_another_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on for minutes, as it does with a large part."""
    monkeypatch.setattr(assembly, "AHEAD_SIZE", 1)
    monkeypatch.setattr(assembly, "STOP_SECONDS", 0.01)
    is_cutting, is_ended = asyncio.Event(), asyncio.Event()

    async def send_for_ever(*_: object) -> None:
        is_cutting.set()
        try:
            await asyncio.Event().wait()
        finally:
            is_ended.set()

    upload = await begun(servers)
    await kept(upload, 1, b"content")
    two = assembly_at(servers.two, servers, tmp_path)
    monkeypatch.setattr(two, "_send", send_for_ever)
    async with two.running():
        two.cut_ahead(upload, servers.mine)
        await is_cutting.wait()
        await assembly_at(servers.one, servers, tmp_path).cancel(await servers.one.find(upload.id, namespace="mine"))
        assert is_ended.is_set()
    with pytest.raises(UploadNotFound):
        await servers.two.find(upload.id, namespace="mine")


async def test_an_end_that_waited_for_a_cancel(servers: Servers, tmp_path: Path) -> None:
    """Nothing is recorded, also no empty file of an upload without parts."""
    upload = await begun(servers)
    other = await servers.one.find(upload.id, namespace="mine")
    one = assembly_at(servers.one, servers, tmp_path)
    async with upload.locked(limit_seconds=0):
        finishing = asyncio.create_task(one.finish(other, servers.mine, {}, trees=SharedTrees(wait_seconds=60)))
        await asyncio.sleep(0)
        await upload.cancel()
    with pytest.raises(UploadNotFound):
        await finishing
    assert [] == await servers.mine.records()


async def test_a_cancel_at_a_server_without_the_lock(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose lock was lost goes on to the end, and sees there that the upload is gone. Nothing is recorded."""
    upload = await begun(servers)
    part = await kept(upload, 1, b"content")

    async def send_and_cancel(repository: LocalRepository, content: PartsContent) -> None:
        await send(repository, content)
        await (await servers.two.find(upload.id, namespace="mine")).cancel()

    monkeypatch.setattr(assembly, "send", send_and_cancel)
    one = assembly_at(servers.one, servers, tmp_path)
    with pytest.raises(UploadNotFound):
        await one.finish(upload, servers.mine, {1: part.tag}, trees=SharedTrees(wait_seconds=60))
    assert [] == await servers.mine.records()


async def test_nobody_waits_for_a_copy(servers: Servers) -> None:
    """A copy ends when its client has gone, and nothing of it is kept."""
    upload, asked = await begun(servers), []

    async def pieces() -> AsyncIterator[memoryview]:
        for piece in (b"con", b"tent"):
            asked.append(piece)
            yield memoryview(piece)

    source = copies._Source("file_x", range(7), blake3(b"content").hexdigest())
    content = Mock(pieces=pieces)
    context = Mock(check_upload_size=nothing)
    type(context).transport = PropertyMock(side_effect=[Mock(), ConnectionError])
    with pytest.raises(ConnectionError):
        await copies._copied(context, content, source, upload=upload, number=1, space=NoSpaceClaim())
    assert [b"con", b"tent"] == asked
    assert [] == await upload.parts()
    type(context).transport = PropertyMock()
    part = await copies._copied(context, content, source, upload=upload, number=1, space=NoSpaceClaim())
    assert [part.tag] == [each.tag for each in await upload.parts()]


async def test_a_cancel_on_a_full_disk(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request to stop finds no space. The cancel makes some."""
    upload = await begun(servers)

    async def request_stop() -> None:
        raise StorageFull("the spool folder of the server", "no space is left")

    monkeypatch.setattr(upload, "request_stop", request_stop)
    await assembly_at(servers.one, servers, tmp_path).cancel(upload)
    with pytest.raises(UploadNotFound):
        await servers.two.find(upload.id, namespace="mine")


async def test_a_namespace_without_tokens_loses_its_uploads(servers: Servers) -> None:
    """Those of the other one stay."""
    upload = await begun(servers)
    other = await servers.one.begin(servers.theirs, name="a", upload_id=None)
    await servers.two.remove_all(["mine"])
    with pytest.raises(UploadNotFound):
        await servers.one.find(upload.id, namespace="mine")
    assert (await servers.two.find(other.id, namespace="theirs")).name == "a"


async def test_an_lfs_object_is_found_at_any_server(servers: Servers) -> None:
    """Until it expires, and in its namespace only."""
    manifest = Manifest.build([Chunk(Digest(bytes(32)), 7)], chunking_version=CHUNKING_VERSION)
    found = LfsObject(bytes(range(32)), manifest.digest, 7, bytes(20), 5)
    await servers.one.keep_object("mine", found, manifest.encoded)
    assert await servers.two.find_object("mine", found.sha256) == found
    with_manifest = await servers.two.find_object_with_manifest("mine", found.sha256)
    assert with_manifest is not None
    assert (with_manifest[0], with_manifest[1].encoded) == (found, manifest.encoded)
    assert await servers.two.find_object("theirs", found.sha256) is None
    assert await servers.two.find_object_with_manifest("theirs", found.sha256) is None
    await servers.one.expire(idle_seconds=-1, limit_seconds=60)
    assert await servers.two.find_object("mine", found.sha256) is None


async def test_unfinished_uploads_are_listed(servers: Servers) -> None:
    """Of one namespace or of all, with what has arrived. Those that are finished or removed are left out."""
    assert UnfinishedUploads([]) == await servers.two.unfinished(None, limit=9)
    first, second = await begun(servers, "first.bin"), await begun(servers, "second.bin")
    their = await servers.one.begin(servers.theirs, name="their.bin", upload_id=None)
    await kept(first, 1, b"1234")
    await kept(first, 2, b"56")
    mine, left_out = await servers.two.unfinished("mine", limit=9)
    assert ({(first.id, "mine", "first.bin", 2, 6), (second.id, "mine", "second.bin", 0, 0)}, 0) == (
        {upload[:5] for upload in mine},
        left_out,
    )
    assert all(0 < upload.begun_at <= upload.used_at for upload in mine)
    assert {first.id, second.id, their.id} == {upload.id for upload in (await servers.two.unfinished(None, limit=9)).uploads}
    shown, left_out = await servers.two.unfinished(None, limit=2)
    assert (2, 1) == (len(shown), left_out)
    assert [second.id] == [upload.id for upload in (await servers.two.unfinished("mine", prefix="sec", limit=9)).uploads]
    await first.save_first(FINISHED)
    await servers.one.discard(second)
    assert UnfinishedUploads([]) == await servers.two.unfinished("mine", limit=9)
    assert [their.id] == [upload.id for upload in (await servers.two.unfinished("theirs", limit=9)).uploads]


async def test_an_upload_that_was_used_last_is_listed_first(servers: Servers) -> None:
    """The others may be left out."""
    first, second = await begun(servers), await begun(servers)
    if isinstance(servers.one, ObjectUploads):
        cast("MemoryObjects", servers.one.objects).seconds += 5
    else:
        os.utime(second.path, (1, 1))
    await kept(first, 1, b"1234")
    uploads, left_out = await servers.two.unfinished("mine", limit=1)
    assert ([first.id], 1) == ([upload.id for upload in uploads], left_out)
