"""The access log and the audit log of real servers: what their lines say, and that none is lost or torn."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from filestore.http.wire import API
from tests.support.commands import Home
from tests.support.disks import small_disk
from tests.support.frames import contents, encoded, manifest
from tests.support.generator import octets
from tests.support.server import FORM, RunningServer, batch, eventually, form, running_server

LARGE = 40 << 20
"""Bytes: more than the buffers of both ends of a connection hold."""


def lines_of(*paths: Path) -> list[dict[str, Any]]:
    """Return what the lines of some files say. Each must be whole."""
    texts = [path.read_text() for path in paths]
    assert all(text == "" or text.endswith("\n") for text in texts)
    return [json.loads(line) for text in texts for line in text.splitlines()]


def lines_so_far(path: Path) -> list[dict[str, Any]]:
    """Return what the whole lines of a file say. A line that crosses two pages may be read while only its first part is there."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def about(lines: Iterable[dict[str, Any]], request_id: str) -> dict[str, Any]:
    """Return the only line about a request."""
    (line,) = [line for line in lines if line.get("request") == request_id]
    return line


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a server that writes both logs."""
    return {"access_log": "json", "access_log_file": tmp_path / "access.log", "audit_log": tmp_path / "audit.log"}


@pytest.fixture
def logged(tmp_path: Path, logs: dict[str, Any]) -> Iterator[RunningServer]:
    """Yield such a server."""
    with running_server(tmp_path / "root", check=False, **logs) as server:
        yield server


@pytest.mark.slow
def test_lines_say_what_happened(tmp_path: Path, logged: RunningServer) -> None:
    """Who asked for what, how many bytes moved, and what came of it. The answer has the id of the line."""
    content = octets(1, 100_000)
    body = form("model.bin", content)
    frame = encoded(contents(1)[0])
    stored = logged.ask("POST", "/v3/pipeline_files", body, headers=FORM)
    put = logged.put([frame])
    committed = logged.commit(manifest(contents(1)).encoded, name="small.bin")
    part = logged.ask("GET", f"/{stored.json['path']}", headers={"Range": "bytes=10-19"})
    head = logged.ask("HEAD", f"/{stored.json['path']}")
    listed = logged.ask("GET", f"{API}/files")
    signed = logged.ask("POST", f"{API}/files/{stored.json['id']}/sign")
    by_url = logged.ask("GET", "/" + signed.json["path"], token=None)
    removed = logged.ask("DELETE", f"{API}/files/{stored.json['id']}")
    gone = logged.ask("GET", f"{API}/files/{stored.json['id']}")
    denied = logged.ask("GET", f"{API}/files", token="wrong")
    unknown = logged.ask("GET", "/nothing")
    expecting = logged.ask("POST", f"{API}/chunks", batch([frame]), token="wrong", headers={"Expect": "100-continue"})
    logged.stop()

    access, audit = lines_of(tmp_path / "access.log"), lines_of(tmp_path / "audit.log")
    answers = {
        "upload": stored, "put-chunks": put, "commit": committed, "sign": signed, "remove": removed, "denied": denied,
        "expecting": expecting, "gone": gone, "unknown": unknown, "listed": listed, "part": part, "head": head, "url": by_url,
    }  # fmt: skip
    found = {name: about(access, answer.headers["X-Request-Id"]) for name, answer in answers.items()}
    assert len(answers) == len(access)
    assert all(answer.status == found[name]["status"] for name, answer in answers.items())
    assert all(len(answer.body) == found[name]["bytes_sent"] for name, answer in answers.items())
    assert {"upload": len(body), "put-chunks": len(batch([frame]))} == {
        name: found[name]["bytes_received"] for name in ("upload", "put-chunks")
    }
    assert (f"{API}/files/{{id}}", "not-found") == (found["gone"]["route"], found["gone"]["error"])
    assert ("", "") == (found["unknown"]["route"], found["unknown"]["error"])
    assert ["unauthorized"] * 2 == [found[name]["error"] for name in ("denied", "expecting")]
    assert {"default"} == {line["namespace"] for name, line in found.items() if name not in {"denied", "expecting", "unknown"}}
    assert not any(line["cut"] for line in access)

    acts = {
        name: about(audit, answers[name].headers["X-Request-Id"]) for name in answers if name not in {"gone", "unknown", "listed"}
    }
    assert len(acts) == len(audit)
    assert {"upload", "put-chunks", "commit", "sign", "remove", "read", "ask"} == {line["action"] for line in acts.values()}
    assert {"denied", "expecting"} == {name for name, line in acts.items() if line["result"] != "done"}
    record = {key: stored.json[key] for key in ("name", "digest", "size")} | {"record": stored.json["id"]}
    for name in ("upload", "part", "head", "url", "remove"):
        assert record == {key: acts[name][key] for key in record}, name
    assert [True] == [line["is_signed"] for name, line in acts.items() if name == "url"]
    assert committed.json["id"] == acts["commit"]["record"]
    assert stored.json["id"] == acts["sign"]["record"]


@pytest.mark.slow
def test_a_transfer_that_is_cut_has_a_line(tmp_path: Path, logged: RunningServer) -> None:
    """With the bytes that moved: an upload whose client leaves has no status, and a download has the one that was sent."""
    path = logged.upload("large.bin", octets(9, LARGE)).json["path"]
    whole = batch([encoded(content) for content in contents(40, size=50_000)])
    with logged.begin("POST", f"{API}/chunks", f"Content-Length: {len(whole)}", "Expect: 100-continue") as upload:
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == upload.recv(1000)
        upload.sendall(whole[:100_000])
    with logged.begin("GET", f"/{path}") as download:
        answer = HTTPResponse(download)
        answer.begin()
        request_id = answer.headers["X-Request-Id"]
        assert len(answer.read(1_000_000)) == 1_000_000
        download.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answer.close()
    eventually(lambda: sum(line["result"] == "cut" for line in lines_so_far(tmp_path / "audit.log")) == 2)
    cut = [line for line in lines_of(tmp_path / "audit.log") if line["result"] == "cut"]
    (put,), read = [line for line in cut if line["action"] == "put-chunks"], about(cut, request_id)
    assert (0, "interrupted", True) == (put["status"], put["error"], put["cut"])
    assert 100_000 == put["bytes_received"]
    assert (200, "interrupted", True) == (read["status"], read["error"], read["cut"])
    assert 1_000_000 <= read["bytes_sent"] < LARGE


@pytest.mark.slow
def test_a_request_that_nobody_can_read_has_a_line(tmp_path: Path, logs: dict[str, Any]) -> None:
    """No head, a head that is too large, and a connection too many. The answer has the id of the line."""
    heads = (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    with running_server(tmp_path / "root", check=False, **logs, connections_limit=1) as server:
        ids = {}
        for head in heads:
            with server.connection() as connection:
                connection.sendall(head)
                answer = HTTPResponse(connection)
                answer.begin()
                ids[answer.headers["X-Request-Id"]] = answer.status
                answer.close()
        with server.begin("GET", "/healthz") as held:
            assert held.recv(1)
            refused = server.ask("GET", "/healthz")
            ids[refused.headers["X-Request-Id"]] = refused.status
        server.stop()
    lines = lines_of(tmp_path / "access.log")
    assert [400, 431, 400, 503] == list(ids.values())
    assert ids == {request_id: about(lines, request_id)["status"] for request_id in ids}
    assert {("", "", "127.0.0.1")} == {tuple(about(lines, each)[key] for key in ("method", "route", "address")) for each in ids}
    assert "busy" == about(lines, refused.headers["X-Request-Id"])["error"]


@pytest.mark.slow
def test_a_proxy_chooses_the_id(tmp_path: Path, logs: dict[str, Any]) -> None:
    """If it is trusted, and the id is one that a log can have."""
    sent = {"X-Request-Id": "proxy_1.f-2"}
    with running_server(tmp_path / "root", trusted_proxies="127.0.0.1", **logs) as server:
        assert "proxy_1.f-2" == server.ask("GET", "/healthz", headers=sent).headers["X-Request-Id"]
        for bad in ("x" * 65, "a b", 'a"b', "\xe9", ""):
            given = server.ask("GET", "/healthz", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
            assert 16 == len(given), bad
    assert about(lines_of(tmp_path / "access.log"), "proxy_1.f-2")
    with running_server(tmp_path / "root") as server:
        assert "proxy_1.f-2" != server.ask("GET", "/healthz", headers=sent).headers["X-Request-Id"]


@pytest.mark.slow
def test_no_line_is_lost_or_torn_when_files_are_rotated(tmp_path: Path, logs: dict[str, Any]) -> None:
    """Four clients and two processes: the audit log is rotated by size, and the access log is moved away again and again."""
    with running_server(tmp_path / "root", workers=2, audit_log_size=4096, **logs) as server:
        path = server.upload("model.bin", b"content").json["path"]

        def ask(_: int) -> str:
            answer = server.ask("GET", f"/{path}")
            assert 200 == answer.status
            return str(answer.headers["X-Request-Id"])

        asked: Counter[str] = Counter()
        with ThreadPoolExecutor(4) as pool:
            for number in range(6):
                asked.update(pool.map(ask, range(10)))
                eventually((tmp_path / "access.log").exists)
                (tmp_path / "access.log").rename(tmp_path / f"access.log.{number}")
    assert {1} == set(asked.values())
    for name in ("access", "audit"):
        files = list(tmp_path.glob(f"{name}.log*"))
        assert len(files) > 2
        found = Counter(line["request"] for line in lines_of(*files) if line["route"] == "/{path}")
        assert asked == found, name


@pytest.mark.slow
def test_a_full_disk_fails_no_transfer(tmp_path: Path, logs: dict[str, Any]) -> None:
    """The lines wait, and are written when there is space. The log of the server says both."""
    with small_disk(tmp_path / "disk", "size=64k") as change:
        settings = logs | {"access_log_file": tmp_path / "disk" / "access.log", "audit_log": tmp_path / "disk" / "audit.log"}
        (tmp_path / "disk" / "filler").write_bytes(bytes(60_000))
        with running_server(tmp_path / "root", check=False, **settings) as server:
            path = server.upload("model.bin", b"content").json["path"]
            asked = [server.ask("GET", f"/{path}") for _ in range(60)]
            assert {200} == {answer.status for answer in asked}
            assert server.process.stderr is not None
            said = [server.process.stderr.readline() for _ in range(2)]
            assert all("cannot be written: No space left on device" in line for line in said)
            change("size=10m")
            said = [server.process.stderr.readline() for _ in range(2)]
            assert all("log is written again" in line for line in said)
            server.stop()
        for name in ("access.log", "audit.log"):
            found = []
            for line in (tmp_path / "disk" / name).read_text().splitlines():
                with suppress(ValueError):  # the disk was full in the middle of it, and it comes again
                    found.append(json.loads(line)["request"])
            assert all(found.count(answer.headers["X-Request-Id"]) == 1 for answer in asked), name


@pytest.mark.slow
def test_a_log_that_cannot_be_written_is_an_error_at_the_start(home: Home, tmp_path: Path) -> None:
    """One sentence names the file. Nothing is served."""
    for option in ("--audit-log", "--access-log-file"):
        path = tmp_path / "no folder" / "log"
        said = home.failure(
            *("serve", "--root", tmp_path / "root", "--create", "--port", "0", "--access-log", "json"), *(option, path)
        )
        assert str(path) in said
        assert "this log cannot be written: No such file or directory" in said
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_an_access_log_on_standard_error(home: Home, tmp_path: Path) -> None:
    """A command turns it on."""
    with home.server("--access-log", "plain", root=tmp_path / "root", complains=None) as server:
        (tmp_path / "model.bin").write_bytes(b"content")
        home.result("push", tmp_path / "model.bin", environ=server.environ)
        assert server.process.stderr is not None
        assert f" default 127.0.0.1 GET {API}/repository 200 0 " in server.process.stderr.readline()


@pytest.mark.slow
def test_a_file_for_an_access_log_that_is_off_gives_a_warning(home: Home, tmp_path: Path) -> None:
    """The person has forgotten a setting."""
    with home.server("--access-log-file", tmp_path / "access.log", root=tmp_path / "root", complains=None) as server:
        assert server.process.stderr is not None
        assert "nothing is written to access_log_file, because access_log is off" in server.process.stderr.readline()
    assert not (tmp_path / "access.log").exists()


@pytest.mark.slow
def test_a_transfer_whose_token_is_removed_has_a_line(home: Home, tmp_path: Path) -> None:
    """It is cut, and the error says why."""
    audit = tmp_path / "audit.log"
    with home.server("--audit-log", audit, root=tmp_path / "root") as server:
        (tmp_path / "large.bin").write_bytes(octets(9, LARGE))
        pushed = home.result("push", tmp_path / "large.bin", environ=server.environ)
        made = home.result("token", "new", "--label", "one day", "--root", server.root)
        asked = HTTPConnection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        asked.request("GET", f"/{pushed['path']}", headers={"Authorization": f"Bearer {made['token']}"})
        answer = asked.getresponse()
        home.result("token", "rm", made["digest"], "--root", server.root)
        request_id = answer.headers["X-Request-Id"]
        eventually(lambda: any(line["request"] == request_id for line in lines_so_far(audit)))
        with pytest.raises((HTTPException, ConnectionError)):
            answer.read()
        asked.close()
        line = about(lines_of(audit), request_id)
    assert ("read", "cut", 200, "unauthorized") == tuple(line[key] for key in ("action", "result", "status", "error"))
    assert (made["digest"][:16], "one day") == (line["token"], line["label"])


@pytest.mark.slow
def test_a_command_prints_the_id_of_a_request_that_the_server_failed(home: Home, tmp_path: Path) -> None:
    """The log of the server has the cause under this id."""
    (tmp_path / "model.bin").write_bytes(octets(1, 300_000))
    environ = {"FILESTORE_RETRY_SECONDS": "0.1"}
    with home.server(root=tmp_path / "root", complains=None) as server:
        shutil.rmtree(server.root / "tmp")
        (server.root / "tmp").write_bytes(b"")
        said = home.failure("push", tmp_path / "model.bin", environ=server.environ | environ)
        found = re.search(r"under the request ([0-9a-f]{16})", said)
        assert found is not None, said
        assert server.process.stderr is not None
        assert any(f"failed, request {found[1]}: " in line for line in server.process.stderr)
