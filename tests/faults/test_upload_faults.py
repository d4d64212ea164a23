"""Clients, servers and disks fail during uploads in parts. A part is whole or absent, and so is the file."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from filestore.errors import UploadNotFound
from filestore.http.server.routes.sdk import multipart, upload_state
from filestore.http.server.routes.sdk.disk_uploads import DiskUpload
from filestore.http.server.routes.sdk.upload_state import FinishedUpload
from filestore.http.server.routes.sdk.upload_store import Cut
from filestore.http.server.routes.sdk.uploads import IncomingPart, Upload, begin, expire, find
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.stores.memory import NoSpaceClaim
from filestore.system.files import free_space
from filestore.transfer.sources.file import WINDOW_SIZE, unpacked
from tests.support.clock import Clock
from tests.support.daemons import lasting_port
from tests.support.disks import small_disk
from tests.support.generator import octets
from tests.support.models import tensor, torch_file
from tests.support.server import SECONDS, RunningServer, eventually, reply, running_server
from tests.support.uploads import PARTS, PartsUpload, Sent, listed, put

CONTENT = octets(11, 41_000_000)
PART_SIZE = 18_000_000
LEFT = WINDOW_SIZE
"""Bytes that cutting ahead leaves to the end, at most."""


def part(number: int) -> bytes:
    """Return a part of the content."""
    return CONTENT[(number - 1) * PART_SIZE : number * PART_SIZE]


def cut_of(upload: PartsUpload) -> Cut:
    """Return the saved cut of an upload."""
    return find(upload.folder.parent, upload.id, namespace="default").cut()


def is_cut_ahead(upload: PartsUpload, size: int) -> bool:
    """Return whether the first `size` bytes are cut and stored, without the tail."""
    return size - sum(chunk.size for chunk in unpacked(cut_of(upload).chunks)) < LEFT


def downloaded(server: RunningServer, record: dict[str, str]) -> bytes:
    """Return the bytes of a record."""
    return server.ask("GET", f"{PARTS}/download/{record['id']}").body


@pytest.mark.slow
def test_parts_are_cut_while_later_ones_arrive(tmp_path: Path) -> None:
    """Contiguous parts from the first one on are cut. A part after a gap waits for the gap to be filled."""
    with running_server(tmp_path / "root") as server:
        upload = PartsUpload(server, "ahead.bin")
        three = upload.put(3, part(3))
        one = upload.put(1, part(1))
        eventually(lambda: is_cut_ahead(upload, PART_SIZE))
        assert [one.tag.strip('"')] == cut_of(upload).tags
        two = upload.put(2, part(2))
        eventually(lambda: is_cut_ahead(upload, len(CONTENT)))
        assert 3 == len(cut_of(upload).tags)
        assert CONTENT == downloaded(server, upload.finish([one, two, three]).json)


@pytest.mark.slow
@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_end_reads_the_tail_only(tmp_path: Path, *, is_restarted: bool) -> None:
    """Content that was cut is not read again, not even by another process. Here its bytes are gone."""
    root = tmp_path / "root"
    with running_server(root, check=False) as server:
        upload = PartsUpload(server, "tail.bin")
        sent = [upload.put(number, part(number)) for number in (1, 2, 3)]
        eventually(lambda: is_cut_ahead(upload, len(CONTENT)))
        with next(upload.folder.glob("part-00001-*")).open("r+b") as file:
            file.seek(1000)  # the chunker of another process reads the beginning of the file
            file.write(bytes(PART_SIZE - 1000))
        if is_restarted:
            os.kill(server.pid, signal.SIGKILL)
        else:
            assert CONTENT == downloaded(server, upload.finish(sent).json)
    with running_server(root) as server:
        upload.server = server
        assert CONTENT == downloaded(server, upload.finish(sent).json)


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [False, True])
def test_any_worker_goes_on_with_an_upload(tmp_path: Path, *, is_zip: bool) -> None:
    """Each part comes to any process of the server. A zip needs a chunker that has read all of it."""
    content = torch_file([tensor(str(seed), 1000, 1000, seed=seed) for seed in range(14)]) if is_zip else CONTENT
    size = len(content) // 8 + 1
    with running_server(tmp_path / "root", workers=2) as server:
        upload = PartsUpload(server, "workers.pt")
        sent = [upload.put(place + 1, content[place * size : (place + 1) * size]) for place in range(8)]
        record = upload.finish(sent).json
        assert content == downloaded(server, record)
        assert server.upload("workers.pt", content).json["id"] == record["id"]


@pytest.mark.slow
def test_parts_side_by_side(tmp_path: Path) -> None:
    """Several connections send each part twice."""
    with running_server(tmp_path / "root", workers=2) as server:
        upload = PartsUpload(server, "parallel.bin")
        with ThreadPoolExecutor(6) as pool:
            sent = list(pool.map(lambda number: upload.put(number, part(number)), [3, 1, 2, 1, 3, 2]))
            records = [answer.json for answer in pool.map(lambda _: upload.finish(sent), range(3))]
        assert [records[0]] * 3 == records
        assert CONTENT == downloaded(server, records[0])


@pytest.mark.slow
def test_the_same_part_with_other_bytes_side_by_side(tmp_path: Path) -> None:
    """One of them stays. The others are refused."""
    contents = [octets(seed, 300_000) for seed in range(8)]
    with running_server(tmp_path / "root", workers=2) as server:
        upload = PartsUpload(server, "race.bin")
        url = upload.url(1).json["upload_url"]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda content: put(url, content), contents))
        assert [200, *[409] * 7] == sorted(answer.status for answer in answers)
        (winner,) = [place for place, answer in enumerate(answers) if answer.status == 200]
        (kept,) = upload.folder.glob("part-*")
        assert answers[winner].headers["ETag"].strip('"') in kept.name
        record = upload.finish([Sent(1, answers[winner].headers["ETag"])]).json
        assert contents[winner] == downloaded(server, record)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_upload_survives_its_server(tmp_path: Path, number: signal.Signals) -> None:
    """After a restart, complete parts are there and signed URLs are valid. A part that was arriving is not there."""
    root = tmp_path / "root"
    with running_server(root, check=False, drain_seconds=0.1, port=lasting_port()) as server:
        upload = PartsUpload(server, "survivor.bin")
        one = upload.put(1, part(1))
        url = upload.url(2).json["upload_url"]
        path = f"{PARTS}/uploads/{upload.id}/parts/3"
        with server.begin("PUT", path, f"Content-Length: {len(part(3))}", body=part(3)[:2_000_000]):
            eventually(lambda: any(file.stat().st_size for file in upload.folder.glob("incoming-*")))
            os.kill(server.pid, number)
            server.process.wait()
        port = server.port
    with running_server(root, port=port) as server:
        upload.server = server
        two = Sent(2, put(url, part(2)).headers["ETag"])
        assert "part 3 never arrived" in upload.finish([one, two, Sent(3, "x")]).json["detail"]
        assert [] == listed(server)
        assert CONTENT == downloaded(server, upload.finish([one, two, upload.put(3, part(3))]).json)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_copied_parts_survive_their_server(tmp_path: Path, kind: str) -> None:
    """They are durable when they are answered. Of one that was being copied, nothing is left."""
    root = tmp_path / "root"
    settings: dict[str, Any] = {"objects": str(tmp_path / "objects")} if kind == "objects" else {}
    with running_server(root, check=False, port=lasting_port(), **settings) as server:
        record = server.upload("stored.bin", CONTENT).json
        upload = PartsUpload(server, "copied.bin")
        assert 200 == upload.copy(1, record["id"], 0, part(1)).status
        asked = json.dumps({"file_id": record["id"], "offset": PART_SIZE, "size": PART_SIZE, "tag": "0" * 64}).encode()
        copy = f"{PARTS}/uploads/{upload.id}/parts/2/copy"
        with server.begin("POST", copy, f"Content-Length: {len(asked)}", body=asked):
            os.kill(server.pid, signal.SIGKILL)
            server.process.wait()
        port = server.port
    with running_server(root, port=port, **settings) as server:
        upload.server = server
        assert [1] == [each["PartNumber"] for each in upload.parts().json["parts"]]
        answers = [upload.copy(number, record["id"], (number - 1) * PART_SIZE, part(number)) for number in (2, 3)]
        assert [200, 200] == [answer.status for answer in answers]
        sent = [Sent(each["PartNumber"], each["ETag"]) for each in upload.parts().json["parts"]]
        assert record["digest"] == upload.finish(sent).json["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_does_not_wait_for_the_chunking(tmp_path: Path, workers: int) -> None:
    """The chunking is cancelled without a message, and continues after the next start."""
    root = tmp_path / "root"
    with running_server(root, workers=workers) as server:
        upload = PartsUpload(server, "stopped.bin")
        sent = [upload.put(number, part(number)) for number in (1, 2, 3)]
    with running_server(root, workers=workers) as server:
        upload.server = server
        assert CONTENT == downloaded(server, upload.finish(sent).json)


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["Content-Length: 400000", "Transfer-Encoding: chunked"])
def test_a_part_that_is_cut_was_never_there(tmp_path: Path, framing: str) -> None:
    """It is neither in the upload nor on the disk."""
    with running_server(tmp_path / "root") as server:
        upload = PartsUpload(server, "cut.bin")
        body = octets(1, 300_000)
        framed = b"%x\r\n%s\r\n" % (len(body), body) if "chunked" in framing else body
        with server.begin("PUT", f"{PARTS}/uploads/{upload.id}/parts/1", framing, body=framed):
            eventually(lambda: any(file.stat().st_size for file in upload.folder.glob("incoming-*")))
        eventually(lambda: not list(upload.folder.glob("incoming-*")))
        assert "part 1 never arrived" in upload.finish([Sent(1, "x")]).json["detail"]


@pytest.mark.slow
def test_a_part_that_stalls_is_dropped(tmp_path: Path) -> None:
    """Its connection is cut, and its client may send it again."""
    with running_server(tmp_path / "root", stall_seconds=1) as server:
        upload = PartsUpload(server, "stalled.bin")
        with (
            server.begin(
                "PUT", f"{PARTS}/uploads/{upload.id}/parts/1", "Content-Length: 400000", body=b"x" * 300_000
            ) as connection,
            pytest.raises((HTTPException, ConnectionError)),
        ):
            reply(connection)
        assert [] == list(upload.folder.glob("incoming-*"))
    # Another server takes the part. This process, too, may stall.
    with running_server(tmp_path / "root") as server:
        upload.server = server
        assert 201 == upload.finish([upload.put(1, b"x" * 400_000)]).status


def test_a_part_that_is_kept_while_abandoned_uploads_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the arriving part is renamed meanwhile. The upload stays all the same."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    incoming = upload.receive()
    look = os.scandir

    @contextmanager
    def look_and_lose(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with look(folder) as entries:
            found = list(entries)
        incoming.path.unlink(missing_ok=True)
        yield found

    monkeypatch.setattr(os, "scandir", look_and_lose)
    expire(tmp_path / "uploads", idle_seconds=60)
    found = find(tmp_path / "uploads", upload.id, namespace="default")
    incoming.discard()
    assert upload.folder == found.folder


async def test_a_cancel_while_the_file_of_a_part_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is removed at once. Otherwise the announced size would count for minutes."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    is_made, may_end = threading.Event(), threading.Event()
    receive = upload.receive

    def receive_slowly(size: int) -> IncomingPart:
        incoming = receive(size)
        is_made.set()
        may_end.wait(SECONDS)
        return incoming

    monkeypatch.setattr(upload, "receive", receive_slowly)
    context = Mock(request=Mock(content_length=1 << 30))
    served = DiskUpload(upload, UploadQuota(tmp_path / "uploads"))
    storing = asyncio.create_task(multipart._stored(context, served, 1, NoSpaceClaim()))
    await asyncio.to_thread(is_made.wait, SECONDS)
    storing.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert [] == list(upload.folder.glob("incoming-*"))


def is_kept(upload: Upload) -> bool:
    """Return whether an upload is found."""
    try:
        return find(upload.folder.parent, upload.id, namespace=upload.namespace).id == upload.id
    except UploadNotFound:
        return False


@pytest.mark.parametrize("jump", [-366 * 86400, 366 * 86400])
def test_upload_does_not_expire_by_a_jump_of_the_clock(tmp_path: Path, jump: float) -> None:
    """What the server has observed counts. Here the times of the files are those of a clock that was wrong."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    clock = Clock()
    for _ in range(3):
        os.utime(upload.folder, (time.time() + jump,) * 2)
        expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
        clock.now += 20
    expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
    assert upload.folder.exists()
    clock.now += 2
    expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
    assert not is_kept(upload)


def test_upload_stays_while_a_part_of_it_arrives(tmp_path: Path) -> None:
    """A byte of the arriving part is a use of the upload."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    clock = Clock()
    incoming = upload.receive()
    for _ in range(2):
        expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
        clock.now += 59
        incoming.write(b"x")
        expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
        clock.now += 59
        expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
    incoming.discard()
    assert upload.folder.exists()


def test_restart_of_the_machine_adds_only_the_time_since(tmp_path: Path) -> None:
    """The monotonic clock begins at zero again."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    for now in (100_000.0, 30.0, 61.0):
        expire(upload.folder.parent, idle_seconds=60, monotonic=lambda now=now: now)  # type: ignore[misc]  # called at once
        assert upload.folder.exists() is (now != 61.0)


def test_upload_that_a_killed_process_finished_leaves_no_folder(tmp_path: Path) -> None:
    """The next search removes the folder. How the upload was finished is remembered, and for a limited time."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    finished = FinishedUpload.of(["tag"], "file_x")
    upload.save_first(finished)
    clock = Clock()
    expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
    remembered = find(upload.folder.parent, upload.id, namespace="default")
    assert (False, finished, "a") == (upload.folder.exists(), remembered.finished(), remembered.name)
    with pytest.raises(UploadNotFound):
        find(upload.folder.parent, upload.id, namespace="other")
    clock.now += 10_000_000
    expire(upload.folder.parent, idle_seconds=60, monotonic=clock)
    assert not is_kept(upload)


def test_number_of_remembered_uploads_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ones are forgotten."""
    monkeypatch.setattr(upload_state, "FINISHED_LIMIT", 2)
    made = [begin(tmp_path / "uploads", name="a", namespace="default") for _ in range(3)]
    for upload in made:
        upload.save_first(FinishedUpload.of([], "file_x"))
        upload.retire()
    assert [False, True, True] == [is_kept(upload) for upload in made]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"uses": {"a": 1}, "finished": []}'])
def test_damaged_state_of_uploads_begins_again(tmp_path: Path, damage: bytes) -> None:
    """No upload in progress is lost by it."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    (upload.folder.parent / "state.json").write_bytes(damage)
    expire(upload.folder.parent, idle_seconds=60)
    assert is_kept(upload)


@pytest.mark.slow
def test_finished_upload_leaves_no_folder(tmp_path: Path) -> None:
    """Its client may ask again for the same result, also after a restart. Another list of parts is refused."""
    root = tmp_path / "root"
    with running_server(root) as server:
        upload = PartsUpload(server, "done.bin")
        folder = upload.folder
        one = upload.put(1, b"x" * 100)
        record = upload.finish([one]).json
        eventually(lambda: not list(folder.parent.glob(f"*{upload.id}")))
        assert record == upload.finish([one]).json
    with running_server(root) as server:
        upload.server = server
        assert record == upload.finish([one]).json
        other = upload.finish([Sent(1, "another")])
        assert (400, "invalid-parts") == (other.status, other.slug)
        assert 400 == upload.url(1).status
    assert [] == [path for path in folder.parent.iterdir() if path.is_dir()]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["torn", "other digests", "no json", "gone", "of other parts"])
def test_what_is_kept_of_the_chunking_is_not_more_than_a_hint(tmp_path: Path, fault: str) -> None:
    """If it is damaged or lost, the parts are read again."""
    with running_server(tmp_path / "root", check=False) as server:
        upload = PartsUpload(server, "hint.bin")
        sent = [upload.put(number, part(number)) for number in (1, 2, 3)]
        eventually(lambda: is_cut_ahead(upload, len(CONTENT)))
        file = upload.folder / "cut"
        head, _, rows = file.read_bytes().partition(b"\n")
        damaged = {
            "torn": head + b"\n" + rows[:-7],
            "other digests": head + b"\n" + bytes(reversed(rows[:32])) + rows[32:],
            "no json": b"[" + head + b"\n" + rows,
            "of other parts": json.dumps(["0" * 64]).encode() + b"\n" + rows,
        }
        file.write_bytes(damaged[fault]) if fault in damaged else file.unlink()
        assert CONTENT == downloaded(server, upload.finish(sent).json)


@pytest.mark.slow
def test_chunks_that_are_gone_by_the_end_are_sent_again(tmp_path: Path) -> None:
    """I9: a commit checks the chunks once more."""
    with running_server(tmp_path / "root", check=False) as server:
        upload = PartsUpload(server, "gone.bin")
        sent = [upload.put(number, part(number)) for number in (1, 2, 3)]
        eventually(lambda: is_cut_ahead(upload, len(CONTENT)))
        digests = [chunk.digest for chunk in unpacked(cut_of(upload).chunks)]
        shutil.rmtree(server.root / "chunks")
        server.ask("POST", "/native/v1/chunks/verify", b"".join(digests))
        assert CONTENT == downloaded(server, upload.finish(sent).json)


@pytest.mark.slow
def test_a_part_that_the_disk_lost_bytes_of(tmp_path: Path) -> None:
    """The error names it, nothing is recorded, and it may be sent again."""
    with running_server(tmp_path / "root") as server:
        upload = PartsUpload(server, "short.bin")
        sent = [upload.put(1, b"x" * 1000)]
        next(upload.folder.glob("part-*")).write_bytes(b"x" * 999)
        answer = upload.finish(sent)
        assert (400, "invalid-parts") == (answer.status, answer.slug)
        assert "part 1 cannot be read" in answer.json["detail"]
        assert [] == listed(server)
        upload.put(1, b"x" * 1000)
        assert 1000 == upload.finish(sent).json["size"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_a_copy_onto_a_full_disk(tmp_path: Path, kind: str) -> None:
    """It fails before a byte is read, and leaves nothing. An upload can be cancelled, and there is space again."""
    settings: dict[str, Any] = {"objects": str(tmp_path / "objects")} if kind == "objects" else {}
    disk = tmp_path / "disk"
    with small_disk(disk, "size=60m"), running_server(disk / "root", check=False, **settings) as server:
        record = server.upload("stored.bin", CONTENT[:9_000_000]).json
        upload, other = PartsUpload(server, "full.bin"), PartsUpload(server, "other.bin")
        # Not the first part, so that it is not cut.
        other.put(2, CONTENT[:12_000_000])
        (disk / "other").write_bytes(bytes(free_space(disk) - 6_000_000))
        refused = upload.copy(1, record["id"], 0, CONTENT[:9_000_000])
        assert (507, "min-free-reached") == (refused.status, refused.slug)
        assert [] == upload.parts().json["parts"]
        before = free_space(disk)
        assert 204 == other.cancel().status
        if kind == "folder":
            assert 12_000_000 <= free_space(disk) - before
        (disk / "other").unlink()
        assert 200 == upload.copy(1, record["id"], 0, CONTENT[:9_000_000]).status


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """A part or chunks that do not fit fail and leave nothing. With more space, the upload continues."""
    with (
        small_disk(tmp_path / "disk", "size=30m") as resize,
        running_server(tmp_path / "disk/root", check=False, uploads_size_limit=100_000_000) as server,
    ):
        upload = PartsUpload(server, "full.bin")
        one = upload.put(1, part(1)[:6_000_000])
        answer = put(upload.url(2).json["upload_url"], CONTENT[:29_000_000])
        assert (507, "min-free-reached") == (answer.status, answer.slug)
        assert [] == list(upload.folder.glob("incoming-*"))
        two = upload.put(2, part(2)[:14_000_000])
        answer = upload.finish([one, two])
        assert (507, "min-free-reached") == (answer.status, answer.slug)
        assert [] == listed(server)
        resize("size=200m")
        assert part(1)[:6_000_000] + part(2)[:14_000_000] == downloaded(server, upload.finish([one, two]).json)


@pytest.mark.slow
def test_parts_are_told_apart_by_number_and_tag(tmp_path: Path) -> None:
    """Earlier versions replaced parts. After a crash, a part and its predecessor may both be there.

    The list says which one counts.
    """
    with running_server(tmp_path / "root") as server:
        upload = PartsUpload(server, "both.bin")
        upload.put(1, b"old")
        old = next(upload.folder.glob("part-*"))
        shutil.move(old, tmp_path / "old")
        new = upload.put(1, b"new")
        shutil.move(tmp_path / "old", old)
        assert new == upload.put(1, b"new")
        assert b"new" == downloaded(server, upload.finish([new]).json)
        eventually(lambda: not list((server.root / "tmp").glob(f"uploads-*/*{upload.id}")))
