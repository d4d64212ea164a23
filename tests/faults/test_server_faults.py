"""Servers and clients die, stall or stop. Acknowledged data stays, and a cut answer never looks whole."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.core.manifest import Manifest
from filestore.core.paths import chunk_key
from filestore.core.progress import Progress
from filestore.errors import AddressInUse
from filestore.format.codec import Codec, Frame
from filestore.http import wire
from filestore.http.wire import API
from filestore.transfer.push import push
from tests.support.daemons import lasting_port
from tests.support.frames import encoded, frames
from tests.support.generator import octets
from tests.support.server import (
    FORM,
    TOKEN,
    RunningServer,
    batch,
    eventually,
    form,
    reply,
    running_server,
    start_server,
)

LARGE = 40 << 20
"""Bytes: more than the buffers of both ends of a connection hold."""


def large_frames(count: int, *, seed: int) -> list[Frame]:
    """Frames that do not fit into the buffers of a connection."""
    return [encoded(octets(1000 * seed + number, 400_000), codec=Codec.RAW) for number in range(count)]


def accepts(server: RunningServer) -> bool:
    """Return whether the server accepts connections."""
    try:
        server.connection().close()
    except ConnectionError:
        return False
    return True


def refuses(server: RunningServer) -> bool:
    """Return whether the server refuses what is new, because it is stopping, and says when to come again."""
    try:
        answer = server.ask("GET", f"{API}/repository")
    except ConnectionError:  # the worker that would have answered has ended
        return False
    return (503, "2") == (answer.status, answer.headers["Retry-After"]) and answer.slug == "busy"


def workers_of(parent: int) -> list[int]:
    """Return the worker processes of a server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, ppid = path.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and state != "Z":
                found.append(int(path.parent.name))
    return found


@contextmanager
def begun(connection: socket.socket) -> Iterator[HTTPResponse]:
    """Yield an answer whose head has come. The connection is closed in the end."""
    with connection, closing(HTTPResponse(connection)) as answer:
        answer.begin()
        yield answer


def is_cut(answer: HTTPResponse) -> bool:
    """Return whether an answer has fewer bytes than its Content-Length."""
    try:
        answer.read()
    except (HTTPException, ConnectionError):
        return True
    return False


def frame_path(server: RunningServer, frame: Frame) -> Path:
    """Return the path of a frame."""
    return server.root / chunk_key("default", frame.digest)


# Tests of connections that end too early.


@pytest.mark.slow
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_batch_that_is_cut_keeps_its_whole_frames(tmp_path: Path, *, is_reset: bool) -> None:
    """The batch is cut in several ways, also while the server still receives it. A partial frame is discarded."""
    sent = large_frames(6, seed=1)
    whole = batch(sent)
    with running_server(tmp_path / "root") as server:
        connection = server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", body=whole[:-1000])
        if is_reset:
            # The sent bytes must arrive first: a reset overtakes the bytes in the sender's own buffer.
            eventually(lambda: struct.unpack("i", _unsent(connection)) == (0,))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        eventually(lambda: server.missing([frame.digest for frame in sent]) == [sent[-1].digest])
        assert {"kept": 1} == server.put(sent[-1:]).json


def _unsent(connection: socket.socket) -> bytes:
    import fcntl
    import termios

    return fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))


@pytest.mark.slow
def test_small_frames_that_arrived_before_a_cut_are_kept(tmp_path: Path) -> None:
    """All of them are kept, although one read returned many."""
    sent = frames(200, seed=2)
    whole = batch(sent)
    with running_server(tmp_path / "root") as server:
        server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", body=whole[:-1]).close()
        eventually(lambda: server.missing([frame.digest for frame in sent]) == [sent[-1].digest])


@pytest.mark.slow
def test_a_batch_that_is_cut_in_its_header_keeps_nothing(tmp_path: Path) -> None:
    """Nothing else changes either."""
    whole = batch(frames(2, seed=3))
    with running_server(tmp_path / "root") as server:
        for length in (0, 3, 4, 50):
            server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", body=whole[:length]).close()
        assert 2 == len(server.missing([frame.digest for frame in frames(2, seed=3)]))


@pytest.mark.slow
def test_a_sender_that_stalls_is_dropped_and_what_it_sent_is_kept(tmp_path: Path) -> None:
    """After the stall time, its connection is closed without an answer."""
    sent = frames(3, seed=4)
    whole = batch(sent)
    with running_server(tmp_path / "root", stall_seconds=1) as server:
        with server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", body=whole[:-1]) as connection:
            assert is_hung_up(connection)
        assert [sent[-1].digest] == server.missing([frame.digest for frame in sent])
        for lines, body in (
            ((f"Content-Length: {len(whole)}",), b""),
            ((f"Content-Length: {1 << 20}", f"Content-Type: {FORM['Content-Type']}"), form("x", b"y")[:-5]),
        ):
            target = "/v3/pipeline_files" if len(lines) == 2 else f"{API}/files"
            with server.begin("POST", target, *lines, f"{wire.NAME_HEADER}: x", body=body) as connection:
                assert is_hung_up(connection)
        assert [] == server.ask("GET", f"{API}/files").json["files"]


@pytest.mark.slow
def test_a_sender_that_sends_byte_by_byte_is_dropped(tmp_path: Path) -> None:
    """A byte now and then does not hold the server for hours, whatever the way of the upload."""
    whole = batch(frames(3, seed=4))
    begun_form = form("x", bytes(1000))[:-500]
    with running_server(tmp_path / "root", stall_seconds=1) as server:
        for target, lines, body in (
            (f"{API}/chunks", (f"Content-Length: {len(whole)}",), whole[:100]),
            (f"{API}/chunks/missing", (f"Content-Length: {1 << 20}",), b""),
            ("/v3/pipeline_files", (f"Content-Length: {1 << 20}", f"Content-Type: {FORM['Content-Type']}"), begun_form),
        ):
            with server.begin("POST", target, *lines, body=body) as connection, pytest.raises(ConnectionError):
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.1)


def is_hung_up(connection: socket.socket) -> bool:
    """Return whether the server closes a connection without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.slow
def test_a_reader_that_stalls_is_dropped(tmp_path: Path) -> None:
    """In the end it gets fewer bytes than announced."""
    sent = large_frames(LARGE // 400_000, seed=5)
    content = octets(5, LARGE)
    # Another server takes what is sent. This process, too, may stall.
    with running_server(tmp_path / "root") as server:
        server.put(sent)
        path = server.upload("large.bin", content).json["path"]
    with running_server(tmp_path / "root", stall_seconds=1) as server:
        digests = b"".join(frame.digest for frame in sent)
        for request in (
            server.begin("GET", f"/{path}"),
            server.begin("POST", f"{API}/chunks/get", f"Content-Length: {len(digests)}", body=digests),
        ):
            with begun(request) as answer:
                # Others are answered meanwhile. After the server has dropped this client, it does not have the
                # connection any more.
                eventually(lambda: connections_of(server.pid, server.port) == 0)
                assert is_cut(answer)


def connections_of(pid: int, port: int) -> int:
    """Return how many connections a process has accepted on a port."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[9] in inodes and row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


@pytest.mark.slow
def test_a_form_that_is_cut_leaves_nothing(tmp_path: Path) -> None:
    """It leaves neither a record nor a file in the spool folder."""
    body = form("cut.bin", octets(6, 5 << 20))
    with running_server(tmp_path / "root") as server:
        before = server.ask("GET", f"{API}/files").json
        lines = [f"Content-Length: {len(body)}", f"Content-Type: {FORM['Content-Type']}"]
        server.begin("POST", "/v3/pipeline_files", *lines, body=body[:-1000]).close()
        eventually(lambda: connections_of(server.pid, server.port) == 0)
        assert before == server.ask("GET", f"{API}/files").json
        # A thread removes what arrived, after the connection has ended.
        eventually(lambda: not [path for path in (server.root / "tmp").glob("**/*") if path.is_file()])


# Tests of damage in the store.


@pytest.mark.slow
def test_damage_in_the_middle_of_a_file_cuts_the_connection(tmp_path: Path) -> None:
    """The short answer does not look whole. If the first chunk is damaged, the answer is an error."""
    with running_server(tmp_path / "root", check=False) as server:
        uploaded = server.upload("damaged.bin", octets(7, 20 << 20)).json
        kept = Manifest.parse(server.ask("GET", f"{API}/manifests/{uploaded['digest']}").body)
        last, first = (server.root / chunk_key("default", kept.chunks[place].digest) for place in (-1, 0))

        damage(last)
        with begun(server.begin("GET", f"/{uploaded['path']}")) as cut:
            assert 200 == cut.status
            assert is_cut(cut)
        assert 206 == server.ask("GET", f"/{uploaded['path']}", headers={"Range": "bytes=0-99"}).status

        damage(first)
        answer = server.ask("GET", f"/{uploaded['path']}")
        assert (500, "damaged-chunk", str(kept.chunks[0].digest)) == (
            answer.status,
            answer.slug,
            answer.json["digest"],
        )
        first.unlink()
        assert 500 == server.ask("GET", f"/{uploaded['path']}").status
        status, log = server.stop()
    assert 0 == status
    assert str(kept.chunks[-1].digest) in log


def damage(path: Path) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "shorter", "longer"])
def test_a_frame_that_changes_while_others_are_sent_cuts_the_answer(tmp_path: Path, fault: str) -> None:
    """The head announced its size. Bytes of another size are not sent."""
    sent = large_frames(LARGE // 400_000, seed=8)
    digests = b"".join(frame.digest for frame in sent)
    with running_server(tmp_path / "root", check=False) as server:
        server.put(sent)
        with begun(server.begin("POST", f"{API}/chunks/get", f"Content-Length: {len(digests)}", body=digests)) as answer:
            # Nothing of the body is read yet, so the last frames are not open yet.
            path = frame_path(server, sent[-1])
            if fault == "gone":
                path.unlink()
            else:
                os.truncate(path, len(sent[-1].data) + (1 if fault == "longer" else -1))
            assert is_cut(answer)
        status, log = server.stop()
    assert 0 == status
    assert str(sent[-1].digest) in log


# Tests of stop signals.


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_lets_transfers_finish(tmp_path: Path, workers: int) -> None:
    """A download and an upload continue to their end, and what is new is refused. Then the server ends normally."""
    content = octets(9, LARGE)
    sent = large_frames(20, seed=9)
    whole = batch(sent)
    with running_server(tmp_path / "root", check=False, workers=workers) as server:
        path = server.upload("large.bin", content).json["path"]
        with (
            begun(server.begin("GET", f"/{path}")) as answer,
            server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", "Expect: 100-continue") as upload,
        ):
            # Both have begun. A connection that no worker has accepted yet would not be finished.
            assert b"HTTP/1.1 100 Continue\r\n\r\n" == upload.recv(1000)
            upload.sendall(whole[:1_000_000])
            os.kill(server.pid, signal.SIGTERM)
            eventually(lambda: refuses(server))
            assert content == answer.read()
            upload.sendall(whole[1_000_000:])
            kept = reply(upload)
            assert (200, {"kept": 20}) == (kept.status, kept.json)
        assert 0 == server.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_push_of_many_requests_ends_while_the_server_stops(tmp_path: Path, workers: int) -> None:
    """A slow reader does not keep the server from serving it. A new transfer is told when to come again."""
    source = tmp_path / "source"
    source.write_bytes(octets(12, 40_000_000))
    with running_server(tmp_path / "root", check=False, workers=workers, drain_seconds=600, lull=600) as server:
        path = server.upload("large.bin", octets(9, LARGE)).json["path"]
        with begun(server.begin("GET", f"/{path}")) as slow_reader:
            async with connect(server.url, token=TOKEN) as repository:
                is_stopping = False

                def stop(progress: Progress) -> None:
                    nonlocal is_stopping
                    if progress.moved > 10_000_000 and not is_stopping:
                        is_stopping = True
                        os.kill(server.pid, signal.SIGTERM)

                pushed = await push(repository, source, codec="raw", report=stop)
            eventually(lambda: refuses(server))
            assert server.process.stderr is not None
            assert "stopping: waiting for the transfers of" in server.process.stderr.readline()
            assert slow_reader.read()
        assert 0 == server.process.wait()
    async with connect(tmp_path / "root") as repository:
        assert pushed.record == await repository.record(pushed.record)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path: Path, workers: int, number: signal.Signals) -> None:
    """Transfers in progress are cut."""
    with running_server(tmp_path / "root", check=False, workers=workers) as server:
        path = server.upload("large.bin", octets(10, LARGE)).json["path"]
        with begun(server.begin("GET", f"/{path}")) as answer:
            os.kill(server.pid, number)
            eventually(lambda: refuses(server))
            os.kill(server.pid, number)
            assert 0 == server.process.wait()
            assert is_cut(answer)


@pytest.mark.slow
def test_a_stop_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    """A stalled client is cut when the time is over."""
    with running_server(tmp_path / "root", check=False, drain_seconds=0.2) as server:
        path = server.upload("large.bin", octets(11, LARGE)).json["path"]
        with begun(server.begin("GET", f"/{path}")) as answer:
            status, log = server.stop()
            assert 0 == status
            assert "stopping: cutting the transfers of 1 connections" in log
            assert is_cut(answer)


@pytest.mark.slow
def test_a_server_that_is_stopping_is_alive_and_not_ready(tmp_path: Path) -> None:
    """It gets no more requests, is not killed, and its metrics can still be read."""
    with running_server(tmp_path / "root", check=False, drain_seconds=600) as server:
        path = server.upload("large.bin", octets(11, LARGE)).json["path"]
        with begun(server.begin("GET", f"/{path}")):
            assert 200 == server.ask("GET", "/readyz", token=None).status
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses(server))
            answer = server.ask("GET", "/readyz", token=None)
            assert (503, "busy", "2") == (answer.status, answer.slug, answer.headers["Retry-After"])
            assert 200 == server.ask("GET", "/healthz", token=None).status
            assert 200 == server.ask("GET", "/metrics").status
            server.process.send_signal(signal.SIGTERM)
            server.process.communicate(timeout=60)


@pytest.mark.slow
def test_idle_connections_do_not_delay_a_stop(tmp_path: Path) -> None:
    """Some of them were used, and some never sent anything."""
    with (
        running_server(tmp_path / "root", check=False, drain_seconds=600) as server,
        server.begin("GET", "/healthz") as used,
        server.connection() as unused,
    ):
        assert 200 == reply(used).status
        assert (0, "") == server.stop()
        assert is_hung_up(used)
        assert is_hung_up(unused)


# Tests of processes that die.


@pytest.mark.slow
def test_dead_workers_are_replaced(tmp_path: Path) -> None:
    """Acknowledged data is there. A batch in progress is sent again, and its remains are removed."""
    first, second = large_frames(5, seed=12), large_frames(5, seed=13)
    whole = batch(second)
    with running_server(tmp_path / "root", check=False, workers=2) as server:
        server.put(first)
        before = workers_of(server.pid)
        assert 2 == len(before)
        with server.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", body=whole[:-1000]) as connection:
            eventually(lambda: any(path.is_file() for path in (server.root / "tmp").glob("*/*")))
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert is_hung_up(connection)
        eventually(lambda: len(set(workers_of(server.pid)) - set(before)) == 2 and accepts(server))
        assert [] == server.missing([frame.digest for frame in first])
        assert [frame.digest for frame in second] == server.missing([frame.digest for frame in second])
        assert {"kept": 5} == server.put(second).json
        eventually(lambda: [] == [path for path in (server.root / "tmp").glob("*/*") if path.is_file()])
        status, log = server.stop()
    assert 0 == status
    assert all(f"worker {pid} ended" in log for pid in before)


@pytest.mark.slow
def test_a_worker_that_is_restarted_makes_no_other_index(tmp_path: Path) -> None:
    """The index of a folder with chunks is lost. This is an error, also if an empty folder would become a repository."""
    with running_server(tmp_path / "root", check=False, workers=2) as server:
        server.put(frames(1))
        before = workers_of(server.pid)
        seen = set(before)
        index = server.root / "index.sqlite"
        index.unlink()
        os.kill(before[0], signal.SIGKILL)

        def has_tried() -> bool:
            seen.update(workers_of(server.pid))
            return len(seen) >= len(before) + 2 or index.exists()

        eventually(has_tried)
        assert not index.exists()
        status, log = server.stop()
    assert 0 == status
    assert f"{server.root} is not a repository: its index index.sqlite is missing, which holds the records" in log


@pytest.mark.slow
def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """They stop when it dies, for any reason."""
    with running_server(tmp_path / "root", check=False, workers=2) as server:
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        eventually(lambda: not accepts(server))
        # All of them hold the pipe, so its end means that none is left.
        assert "" == server.process.communicate()[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_an_error(tmp_path: Path, workers: int) -> None:
    """One sentence names the port and says what to do, also if both could share it. The other server is not disturbed."""
    for others in (1, 2):
        with running_server(tmp_path / f"first{others}", workers=others) as server:
            second = start_server(tmp_path / "second", port=server.port, workers=workers)
            said, errors = second.communicate(timeout=60)
            assert (1, "") == (second.returncode, said)
            sentence = AddressInUse(f"127.0.0.1:{server.port}", os.strerror(98))
            assert f"AddressInUse: {sentence}\n" == errors
            assert 200 == server.ask("GET", "/healthz").status


@pytest.mark.slow
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_an_error(tmp_path: Path, host: str) -> None:
    """One sentence says why."""
    process = start_server(tmp_path / "root", host=host)
    _, errors = process.communicate(timeout=60)
    assert 1 == process.returncode
    assert errors.startswith(f"AddressError: nothing can listen at {host}:0: ")
    assert 1 == errors.count("\n")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_cannot_start_says_why(tmp_path: Path, workers: int) -> None:
    """The parent raises once what kept a worker from starting."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "format").write_text('{"format": 99}')
    process = start_server(root, workers=workers)
    said, errors = process.communicate(timeout=60)
    assert (1, "") == (process.returncode, said)
    assert errors.startswith("UnknownFormat: ")
    assert 1 == errors.count("\n")


@pytest.mark.slow
def test_a_signal_that_comes_while_a_worker_closes_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent stops a worker that fails at that moment. Its loop has closed the socket to which a signal is written."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/format").write_text('{"format": 99}')
    (tmp_path / "sitecustomize.py").write_text(
        "import asyncio.selector_events, signal\n"
        "loop = asyncio.selector_events.BaseSelectorEventLoop\n"
        "close = loop._close_self_pipe\n"
        "loop._close_self_pipe = lambda self: (close(self), signal.raise_signal(signal.SIGTERM))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start_server(tmp_path / "root", workers=2)
    _, errors = process.communicate(timeout=60)
    assert (1, 1) == (process.returncode, errors.count("\n")), errors
    assert errors.startswith("UnknownFormat: ")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_is_free_after_a_stop(tmp_path: Path, workers: int) -> None:
    """Old connections do not keep it busy."""
    with running_server(tmp_path / "root", workers=workers, port=lasting_port()) as server:
        server.ask("GET", "/healthz")
    with running_server(tmp_path / "root", workers=3 - workers, port=server.port) as again:
        assert server.url == again.url
        assert 200 == again.ask("GET", "/healthz").status


@pytest.mark.slow
def test_the_connections_of_a_client_spread_over_the_workers(tmp_path: Path) -> None:
    """With 16 connections and 4 workers, the busiest has at most 6, and the least busy at least 2."""
    with running_server(tmp_path / "root", check=False, workers=4, patience=60) as server, ExitStack() as stack:
        for _ in range(16):
            assert 200 == reply(stack.enter_context(server.begin("GET", "/healthz"))).status
        counts = [connections_of(pid, server.port) for pid in workers_of(server.pid)]
        assert 16 == sum(counts)
        assert max(counts) <= 6
        assert min(counts) >= 2


@pytest.mark.slow
def test_a_stopped_worker_and_a_dead_one_refuse_no_connection(tmp_path: Path) -> None:
    """The others accept what these would have accepted, and a connection that comes meanwhile is answered."""
    with running_server(tmp_path / "root", check=False, workers=3) as server, ExitStack() as stack:
        stopped, dead, _ = workers_of(server.pid)
        os.kill(stopped, signal.SIGSTOP)
        stack.callback(os.kill, stopped, signal.SIGCONT)
        for number in range(12):
            if number == 6:
                os.kill(dead, signal.SIGKILL)
            assert 200 == reply(stack.enter_context(server.begin("GET", "/healthz"))).status
        os.kill(stopped, signal.SIGCONT)
