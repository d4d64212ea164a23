"""A tenant tries to fill the disk of a server, or to keep it full. Others go on, and the operator gets the space back."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Self

import pytest

from filestore.core.digest import chunk_digest
from filestore.errors import MinFreeReached, StorageFull, UploadNotFound
from filestore.http.server.routes.sdk.uploads import begin, expire, find
from filestore.http.server.upload_quota import UploadQuota
from filestore.repository.index.protocol import ChunkRow
from filestore.repository.index.sqlite import open_index
from filestore.repository.stores.disk_space import DiskSpace, kept_free
from filestore.runtime.database import open_database
from filestore.system.files import free_space
from tests.support.clock import Clock
from tests.support.commands import Home, Server
from tests.support.disks import small_disk
from tests.support.frames import encoded
from tests.support.generator import octets
from tests.support.server import FORM, OTHER_TOKEN, RunningServer, eventually, form, reply, running_server
from tests.support.uploads import PARTS, PartsUpload, put

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with small_disk(tmp_path / "disk", "size=64m"):
        yield tmp_path / "disk"


def stored_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the files of an upload by name: each with its number on the disk and its time of modification."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.slow
def test_upload_that_is_kept_alive_by_questions(tmp_path: Path) -> None:
    """Asking for URLs, asking for the end, and empty parts keep nothing. One byte does."""
    root = tmp_path / "root"
    with running_server(root) as server:
        asked, sent = PartsUpload(server, "asked.bin"), PartsUpload(server, "sent.bin")
        for upload in (asked, sent):
            upload.put(1, b"x" * 100_000)
        folder, port = asked.folder.parent, server.port
    state = folder / "state.json"

    def pass_half_a_day(look: Callable[[], bool]) -> None:
        with running_server(root, port=port):
            eventually(look)
        values = json.loads(state.read_bytes())
        state.write_text(json.dumps({**values, "seconds": values["seconds"] + 43_300}))

    pass_half_a_day(lambda: state.exists() and {asked.id, sent.id} == set(json.loads(state.read_bytes())["uses"]))
    with running_server(root, port=port) as server:
        asked.server = sent.server = server
        for number in (1, 2, 3):
            assert 200 == asked.url(number).status
        asked.put(4, b"")
        assert 400 == asked.finish([]).status
        sent.put(2, b"y")
    pass_half_a_day(lambda: json.loads(state.read_bytes())["uses"][sent.id][0] == "100001")
    with running_server(root, port=port):
        eventually(lambda: [folder / sent.id] == [path for path in folder.iterdir() if path.is_dir()])


def test_upload_that_never_ends(tmp_path: Path) -> None:
    """Bytes that arrive keep it until its absolute end. Then also the part that is arriving is cut off."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    clock = Clock()
    incoming = upload.receive()
    for _ in range(10):
        incoming.write(b"x")
        expire(upload.folder.parent, idle_seconds=60, limit_seconds=540, monotonic=clock)
        clock.now += 59
    assert upload.folder.exists()
    clock.now += 59
    expire(upload.folder.parent, idle_seconds=60, limit_seconds=540, monotonic=clock)
    with pytest.raises(UploadNotFound):
        incoming.write(b"x")
    incoming.discard()
    with pytest.raises(UploadNotFound):
        find(tmp_path / "uploads", upload.id, namespace="default")
    assert [] == [path for path in upload.folder.parent.iterdir() if path.is_dir()]


@pytest.mark.slow
def test_part_url_that_is_used_again(tmp_path: Path) -> None:
    """Whoever saw the URL changes nothing by it. The client that lost the answer gets it again, and nothing is written."""
    content = octets(1, 3 * MIB)
    with running_server(tmp_path / "root", workers=2) as server:
        upload = PartsUpload(server, "leaked.bin")
        url = upload.url(1).json["upload_url"]
        first = put(url, content)
        before = stored_in(upload.folder)
        for other in (b"", b"x", octets(2, 3 * MIB), content + b"x", content[:-1]):
            refused = put(url, other)
            assert (409, "part-refused") == (refused.status, refused.slug)
        again = put(url, content)
        assert (200, first.headers["ETag"]) == (again.status, again.headers["ETag"])
        assert before == stored_in(upload.folder)
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        piped = server.ask("PUT", url.removeprefix(server.url), body, headers={"Transfer-Encoding": "chunked"}, token=None)
        assert first.headers["ETag"] == piped.headers["ETag"]
        assert before == stored_in(upload.folder)


@pytest.mark.slow
def test_parts_that_are_never_completed(disk: Path) -> None:
    """They stop at half of the space. Another namespace uploads all the same, by form and in parts."""
    with running_server(disk / "root", workers=2) as server:
        attacker = PartsUpload(server, "filler.bin", token=OTHER_TOKEN)
        sent = 0
        # A gap, so that nothing is cut.
        for number in range(2, 100):
            answer = put(attacker.url(number).json["upload_url"], bytes(3 * MIB))
            if answer.status != 200:
                break
            sent += 3 * MIB
        assert (413, "uploads-too-large", "uploads_size_limit") == (answer.status, answer.slug, answer.json["setting"])
        assert "of the namespace other" in answer.json["detail"]
        assert 24 * MIB <= sent <= 32 * MIB
        assert [] == list(attacker.folder.glob("incoming-*"))
        assert 201 == server.upload("form.bin", octets(1, 8 * MIB)).status
        upload = PartsUpload(server, "parts.bin")
        assert 201 == upload.finish([upload.put(1, octets(2, 4 * MIB))]).status


@pytest.mark.slow
@pytest.mark.parametrize("framing", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
def test_forms_and_parts_that_never_end(tmp_path: Path, framing: str) -> None:
    """What is announced counts at once, and what is not is counted while it arrives. Other namespaces go on."""
    chunk = b"%x\r\n%s\r\n" % (MIB, bytes(MIB))
    head = b'--boundary-of-tests\r\nContent-Disposition: form-data; name="pfile"; filename="a"\r\n\r\n'
    is_chunked = "chunked" in framing
    with (
        running_server(tmp_path / "root", workers=2, check=False, uploads_size_limit=50_000_000) as server,
        ExitStack() as stack,
    ):
        attacker = server._replace(token=OTHER_TOKEN)
        upload = PartsUpload(server, "a", token=OTHER_TOKEN)
        # It is measured when more than 16 MiB are written. Up to 1 MiB waits to be written, and 128 KiB for a boundary.
        piece = (b"%x\r\n%s\r\n" % (len(head), head) + 18 * chunk) if is_chunked else head
        stack.enter_context(
            attacker.begin("POST", PARTS, framing, *(f"{key}: {value}" for key, value in FORM.items()), body=piece)
        )
        forms = upload.folder.parent
        eventually(lambda: 30_000_000 <= sum(path.stat().st_size for path in forms.glob("form-other.*")))
        with attacker.begin("PUT", f"{PARTS}/uploads/{upload.id}/parts/1", framing) as connection:
            if is_chunked:
                for _ in range(34):
                    try:
                        connection.sendall(chunk)
                    except ConnectionError:
                        break
            answer = reply(connection)
        assert (413, "uploads-too-large") == (answer.status, answer.slug)
        assert [] == list(upload.folder.glob("part-*"))
        assert 201 == server.upload("form.bin", octets(1, 30_000_000)).status
        stack.close()
        eventually(lambda: not list(forms.glob("form-*")))


@pytest.mark.slow
def test_parts_that_arrive_at_the_same_time(tmp_path: Path) -> None:
    """Two processes together accept no more than the limit."""
    with running_server(tmp_path / "root", workers=2, uploads_size_limit=4 * MIB + 100_000) as server:
        upload = PartsUpload(server, "parallel.bin")
        urls = [upload.url(number).json["upload_url"] for number in range(1, 17)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda url: put(url, bytes(MIB)).status, urls))
        assert {200, 413} >= set(answers)
        assert answers.count(200) <= 4
        while upload.folder.exists() and len(list(upload.folder.glob("part-*"))) < 4:
            put(urls.pop(), bytes(MIB))
        assert 413 == put(upload.url(99).json["upload_url"], bytes(MIB)).status


@pytest.mark.slow
def test_uploads_that_are_only_begun(tmp_path: Path) -> None:
    """They take the number of their namespace only, and empty parts count as blocks of the disk."""
    with running_server(tmp_path / "root", uploads_limit=5, uploads_size_limit=200_000) as server:
        begun = [PartsUpload(server, "a", token=OTHER_TOKEN) for _ in range(5)]
        answer = server.ask("POST", f"{PARTS}/initiate-multipart-upload", b'{"name": "a"}', token=OTHER_TOKEN)
        assert (429, "too-many-uploads") == (answer.status, answer.slug)
        statuses = [put(begun[0].url(number).json["upload_url"], b"").status for number in range(1, 60)]
        assert 413 == statuses[-1]
        assert statuses.count(200) <= 200_000 // 4096
        upload = PartsUpload(server, "b")
        assert 201 == upload.finish([upload.put(1, b"x")]).status


def test_form_of_a_process_that_was_killed_does_not_count(tmp_path: Path) -> None:
    """Its file is removed by the next search for abandoned uploads, and as soon as it would be in the way."""
    folders = tmp_path / "uploads"
    folders.mkdir()
    left = folders / f"form-a.{'0' * 16}"
    quota = UploadQuota(folders, size_limit=500)
    left.write_bytes(bytes(1000))
    quota.check_size("b")
    assert left.exists()
    quota.check_size("a")
    assert not left.exists()
    left.write_bytes(bytes(1000))
    quota.remove_ended_forms()
    assert not left.exists()


@pytest.mark.slow
def test_uploads_go_on_after_a_server_was_killed(tmp_path: Path) -> None:
    """A part and a form were arriving. After the restart, both can be sent, although the limit has no more room."""
    size = 6 * MIB
    limit = 2 * size + 100_000
    root = tmp_path / "root"
    with running_server(root, check=False, uploads_size_limit=limit) as server:
        upload = PartsUpload(server, "a")
        folder, port = upload.folder, server.port
        path = f"{PARTS}/uploads/{upload.id}/parts/1"
        with (
            server.begin("PUT", path, f"Content-Length: {size}", body=bytes(MIB)),
            server.begin(
                *("POST", PARTS, f"Content-Length: {size}"),
                *(f"{key}: {value}" for key, value in FORM.items()),
                body=form("form.bin", bytes(MIB))[:MIB],
            ),
        ):
            eventually(lambda: {"incoming", "form"} <= {path.name.partition("-")[0] for path in folder.parent.rglob("*-*")})
            server.process.kill()
            server.process.wait()
    with running_server(root, port=port, uploads_size_limit=limit) as server:
        upload.server = server
        assert 201 == server.upload("form.bin", octets(2, size)).status
        assert 201 == upload.finish([upload.put(1, octets(1, size))]).status


def test_part_of_a_process_that_was_killed_does_not_count(tmp_path: Path) -> None:
    """The next search removes it. A part that is arriving stays, however slowly it arrives."""
    upload = begin(tmp_path / "uploads", name="a", namespace="default")
    arriving = upload.receive(1000)
    left = upload.folder / f"incoming-{'0' * 16}-5000"
    left.write_bytes(b"x")
    for path in (arriving.path, left):
        os.utime(path, (0, 0))
    expire(upload.folder.parent, idle_seconds=60)
    assert (True, False) == (arriving.path.exists(), left.exists())
    arriving.write(b"x")
    arriving.discard()


def fill(disk: Path, *, left: int = 0) -> Path:
    """Fill a disk except for `left` bytes, as another program does. Return the file that does it."""
    path = disk / "other"
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096):
            with suppress(OSError):
                while free_space(disk) >= left + size and file.write(bytes(size)) == size:
                    pass
    return path


class Writer:
    """Sends parts without end."""

    def __init__(self, upload: PartsUpload) -> None:
        self.statuses: list[int] = []
        self._is_ended = threading.Event()
        self._url = upload.url(2).json["upload_url"]
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_ended.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._is_ended.is_set():
            with suppress(OSError, HTTPException):
                self.statuses.append(put(self._url, bytes(MIB)).status)


def as_running(server: Server, token: str) -> RunningServer:
    """Return a server of the command line, to be asked with a token."""
    return RunningServer(server.url, token, server.root, server.process)


@pytest.mark.slow
def test_disk_that_a_tenant_filled(home: Home, disk: Path, tmp_path: Path) -> None:
    """Everything that frees space works on it, from the command line and over HTTP, while the tenant goes on.

    With the tenant's token, its uploads go too, and another tenant pushes again.
    """
    root = disk / "root"
    folder = {"FILESTORE_ROOT": str(root)}
    sources = []
    for seed in range(4):
        sources.append(tmp_path / f"{seed}.bin")
        sources[-1].write_bytes(octets(seed, 2 * MIB))
    with home.server("--uploads-size-limit", "1GB", root=root, complains=None) as server:
        stored = [home.result("push", source, environ=server.environ) for source in sources[:3]]
        token = home.result("token", "new", "--namespace", "tenant", environ=folder)
        attacker = as_running(server, token["token"])
        upload = PartsUpload(attacker, "filler.bin", token=token["token"])
        floor = kept_free(disk)
        for number in range(3, 100):
            answer = put(upload.url(number).json["upload_url"], bytes(MIB))
            if answer.status != 200:
                break
        assert (507, "min-free-reached") == (answer.status, answer.slug)
        assert free_space(disk) >= floor
        with Writer(upload) as writer:
            fill(disk)
            assert "is full" in home.failure("push", sources[3], environ=server.environ)
            assert 3 == len(home.result("ls", environ=folder)["files"])
            assert 3 == len(home.result("ls", environ=server.environ)["files"])
            home.result("rm", stored[0]["id"], environ=folder)
            fill(disk)
            deleted = as_running(server, server.token).ask("DELETE", f"/native/v1/files/{stored[1]['id']}", token=server.token)
            assert 200 == deleted.status, deleted.body
            fill(disk)
            assert 0 < home.result("gc", "--grace", "0s", environ=folder)["freed_size"]
            fill(disk)
            assert 1 == len(home.result("signing-key", "rotate", "--revoke", environ=folder)["keys"])
            fill(disk)
            home.result("token", "rm", token["digest"], environ=folder)
            (uploads,) = root.glob("uploads-*")
            eventually(lambda: not [path for path in uploads.iterdir() if path.is_dir()])
        assert 507 in writer.statuses
        assert 200 != writer.statuses[-1]
        (disk / "other").unlink()
        home.result("push", sources[3], environ=server.environ)
        assert ["3.bin", "2.bin"] == [file["name"] for file in home.result("ls", environ=server.environ)["files"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parts", "forms"])
def test_content_of_unknown_size_stops_at_the_floor(disk: Path, kind: str) -> None:
    """Nothing is announced, so the free space is looked at while it arrives, from several connections at once."""
    chunk = b"%x\r\n%s\r\n" % (MIB, bytes(MIB))
    head = b'--boundary-of-tests\r\nContent-Disposition: form-data; name="pfile"; filename="a"\r\n\r\n'
    with running_server(disk / "root", workers=2, check=False, uploads_size_limit=1 << 40) as server:
        floor = kept_free(disk)
        fill(disk, left=floor + 10 * MIB)
        upload = PartsUpload(server, "a")
        least = [free_space(disk)]

        def send(number: int) -> int:
            if kind == "parts":
                connection = server.begin("PUT", f"{PARTS}/uploads/{upload.id}/parts/{number}", "Transfer-Encoding: chunked")
            else:
                headers = [f"{key}: {value}" for key, value in FORM.items()]
                first = b"%x\r\n%s\r\n" % (len(head), head)
                connection = server.begin("POST", PARTS, "Transfer-Encoding: chunked", *headers, body=first)
            with connection:
                for _ in range(20):
                    with suppress(ConnectionError):
                        connection.sendall(chunk)
                    least.append(free_space(disk))
                return reply(connection).status

        with ThreadPoolExecutor(4) as pool:
            assert [507] * 4 == list(pool.map(send, range(1, 5)))
        # Each of the two processes may write a step before it sees what the other one wrote.
        assert min(least) >= floor - 4 * MIB
        assert [] == [path for path in upload.folder.glob("*") if path.name.startswith(("part-", "incoming-"))]


@pytest.mark.slow
def test_tiny_frames_stop_at_the_floor(disk: Path) -> None:
    """Each frame takes a block of the disk, however few bytes it has."""
    with running_server(disk / "root", check=False) as server:
        floor = kept_free(disk)
        fill(disk, left=floor + 8 * MIB)
        answer = server.put([encoded(b"%d" % number) for number in range(4096)])
        assert (507, "min-free-reached") == (answer.status, answer.slug)
        assert free_space(disk) >= floor
        assert 200 == server.put([encoded(b"%d" % number) for number in range(100)]).status


def test_promises_that_another_process_breaks(disk: Path) -> None:
    """A write that was promised stops at the floor too, before the last byte of the disk is gone."""
    space = DiskSpace(disk, min_free=8 * MIB)
    claim = space.claim(40 * MIB)
    written = 0
    fill(disk, left=20 * MIB)
    with (disk / "frames").open("wb") as file, pytest.raises(MinFreeReached):
        for _ in range(40):
            claim.written(MIB)
            file.write(bytes(MIB))
            file.flush()
            written += MIB
    assert 12 * MIB <= written <= 21 * MIB
    assert free_space(disk) > 0
    claim.end()


def test_answers_use_half_of_the_floor(disk: Path) -> None:
    """Readers go on below the floor, and cannot fill the disk with large answers either."""
    space = DiskSpace(disk, min_free=8 * MIB)
    fill(disk, left=7 * MIB)
    with pytest.raises(MinFreeReached):
        space.claim(1)
    answers = [space.claim(0, for_reader=True) for _ in range(3)]
    answers[0].written(2 * MIB)
    (disk / "answer").write_bytes(bytes(2 * MIB))
    with pytest.raises(MinFreeReached):
        answers[1].written(2 * MIB)
    answers[2].written(100_000)
    for answer in answers:
        answer.end()


@pytest.mark.slow
async def test_reading_goes_on_below_the_floor(home: Home, disk: Path, tmp_path: Path) -> None:
    """Lists, manifests and files are answered while nothing new is stored."""
    source = tmp_path / "a.bin"
    source.write_bytes(octets(1, 4 * MIB))
    with home.server(root=disk / "root", complains=None) as server:
        pushed = home.result("push", source, environ=server.environ)
        fill(disk, left=100_000)
        assert "stay free by the setting min_free" in home.failure("push", __file__, environ=server.environ)
        assert ["a.bin"] == [file["name"] for file in home.result("ls", environ=server.environ)["files"]]
        home.result("fetch", pushed["id"], "-o", tmp_path / "back", environ=server.environ)
    assert source.read_bytes() == (tmp_path / "back").read_bytes()


@pytest.mark.parametrize("limit", ["size=4m", "size=64m,nr_inodes=12"])
@pytest.mark.parametrize("kind", ["index", "runtime"])
async def test_database_on_a_full_disk_says_so(tmp_path: Path, limit: str, kind: str) -> None:
    """Whichever code SQLite has for it: no space for its log, or no name for a file of its log."""
    with small_disk(tmp_path / "disk", limit):
        folder = tmp_path / "disk"
        if kind == "index":
            await (await open_index(folder / "index.sqlite")).close()
        else:
            open_database(folder).close()
        for number in range(20):
            with suppress(OSError):
                (folder / f"other-{number}").touch()
        if "nr_inodes" not in limit:
            fill(folder)
        with pytest.raises(StorageFull):
            if kind == "index":
                index = await open_index(folder / "index.sqlite")
                try:
                    async with index.transaction() as transaction:
                        await transaction.add_chunks("a", [ChunkRow(chunk_digest(b"1"), 1, 1)])
                finally:
                    await index.close()
            else:
                database = open_database(folder)
                try:
                    with database.write() as connection:
                        connection.execute("INSERT INTO names VALUES ('a', 1)")
                finally:
                    database.close()
