from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest

from filestore.backends import connect
from filestore.core.digest import parse_digests
from filestore.core.manifest import Manifest
from filestore.core.records import record_from_json
from filestore.http import wire
from filestore.http.wire import API, BatchEntry
from filestore.transfer.push import manifest_of
from tests.support.commands import Home
from tests.support.frames import contents, encoded, frames, manifest
from tests.support.generator import octets
from tests.support.server import FORM, OTHER_TOKEN, SECONDS, Reply, RunningServer, batch, form, reply, running_server

SIZE = 5_000_000
UPLOADED_KEYS = {"id", "path", "file_name", "file_path", "name", "size", "created_at", "updated_at"}
NAMES = [
    "with space.bin",
    "it's {braced} [x].bin",
    "100%.bin",
    "%2e%2e%2f.bin",
    "模型-é-😀.bin",
    "n" * 255,
    ".hidden",
    "..x",
    "a+b&c=d;e.bin",
    "question?.bin",
    "hash#.bin",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker, which says nothing bad until its end."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


@pytest.fixture(scope="module")
def content() -> bytes:
    """Several chunks."""
    return octets(7, SIZE)


@pytest.fixture(scope="module")
def path(server: RunningServer, content: bytes) -> str:
    """Where the content is read."""
    return f"/{server.upload('model.bin', content).json['path']}"


def listed(answer: Reply) -> tuple[list[BatchEntry], bytes]:
    """Return the entries of a batch, and the bytes after them."""
    count = wire.decode_batch_count(answer.body)
    size = wire.batch_header_size(count)
    return wire.decode_batch_entries(answer.body[wire.batch_header_size(0) : size], absent_allowed=True), answer.body[size:]


# Native routes.


def test_health_needs_no_token(server: RunningServer) -> None:
    """A monitoring program needs no secret."""
    for path, expected in (("/healthz", {"status": "ok"}), ("/readyz", {"status": "ok", "full": False})):
        answer = server.ask("GET", path, token=None)
        assert (200, expected) == (answer.status, answer.json)
        assert (200, b"") == server.ask("HEAD", path, token=None)[::2]


def test_repository_says_what_it_is(server: RunningServer) -> None:
    """Its id is that of the folder, its namespace the token's."""
    answer = server.ask("GET", f"{API}/repository").json
    kept = json.loads((server.root / "format").read_text())
    assert {
        "id": kept["id"],
        "namespace": "default",
        "chunking_version": kept["cutting"],
        "format": kept["format"],
        "upload_limit": None,
    } == answer
    assert "other" == server.ask("GET", f"{API}/repository", token=OTHER_TOKEN).json["namespace"]


def test_frames_go_in_and_out_as_they_were(server: RunningServer) -> None:
    """I7: they come in the requested order, also twice. An absent frame is marked, and the others follow."""
    sent, absent = frames(40, seed=1), frames(1, seed=2)[0]
    assert [frame.digest for frame in sent] == server.missing([frame.digest for frame in sent])
    answer = server.put(sent)
    assert (200, {"kept": 40}) == (answer.status, answer.json)
    assert [absent.digest] == server.missing([*(frame.digest for frame in sent), absent.digest])

    asked = [sent[3], absent, *sent, sent[3]]
    entries, body = listed(server.ask("POST", f"{API}/chunks/get", b"".join(frame.digest for frame in asked)))
    assert [BatchEntry(frame.digest, 0 if frame is absent else len(frame.data)) for frame in asked] == entries
    assert b"".join(frame.data for frame in asked if frame is not absent) == body


def test_empty_requests_and_batches(server: RunningServer) -> None:
    """Nothing is asked, nothing is answered."""
    assert b"" == server.ask("POST", f"{API}/chunks/missing").body
    assert ([], b"") == listed(server.ask("POST", f"{API}/chunks/get"))
    assert {"kept": 0} == server.put([]).json


@pytest.mark.slow
def test_large_requests_are_answered(server: RunningServer) -> None:
    """As many digests as one question may hold."""
    digests = [bytes(octets(number, 32)) for number in range(wire.DIGESTS_LIMIT)]
    answer = server.ask("POST", f"{API}/chunks/missing", b"".join(digests))
    assert digests == parse_digests(answer.body)


def test_a_request_whose_length_nobody_knows(server: RunningServer) -> None:
    """In as many parts as its sender likes."""
    digests = octets(17, wire.DIGESTS_LIMIT * 32)
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in batched(digests, 30_001)) + b"0\r\n\r\n"
    with server.begin("POST", f"{API}/chunks/missing", "Transfer-Encoding: chunked", body=parts) as connection:
        assert digests == reply(connection).body


def batched(content: bytes, size: int) -> list[bytes]:
    """`content` in parts."""
    return [content[start : start + size] for start in range(0, len(content), size)]


def test_a_refused_frame_does_not_take_the_others_with_it(server: RunningServer) -> None:
    """The first that was refused is named; those before and after it are kept."""
    one, two, three = frames(3, seed=3)
    answer = server.put([one, two._replace(data=three.data), three])
    assert (422, "invalid-frame", str(two.digest)) == (answer.status, answer.slug, answer.json["digest"])
    assert [two.digest] == server.missing([one.digest, two.digest, three.digest])


def test_one_frame(server: RunningServer) -> None:
    """It may be kept for ever by caches of its reader; its tag is weak, as another encoding would be as good."""
    frame = frames(1, seed=4)[0]
    server.put([frame])
    answer = server.ask("GET", f"{API}/chunks/{frame.digest}")
    assert (200, frame.data) == (answer.status, answer.body)
    assert f'W/"{frame.digest}"' == answer.headers["ETag"]
    assert "immutable" in answer.headers["Cache-Control"]
    again = server.ask("GET", f"{API}/chunks/{frame.digest}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (304, b"") == (again.status, again.body)
    head = server.ask("HEAD", f"{API}/chunks/{frame.digest}")
    assert (200, str(len(frame.data))) == (head.status, head.headers["Content-Length"])
    assert 404 == server.ask("GET", f"{API}/chunks/{frames(1, seed=5)[0].digest}").status


def test_committing_finding_listing_and_removing(server: RunningServer) -> None:
    """A record has the same form in every answer, and is found by id, digest, name and path."""
    chunks = contents(2, seed=6)
    built = manifest(chunks)
    first = server.commit(built.encoded, name="committed")
    assert (409, sorted(str(chunk.digest) for chunk in built.chunks)) == (first.status, sorted(first.json["digests"]))

    server.put([encoded(chunk) for chunk in chunks])
    answer = server.commit(built.encoded, name="committed")
    record = record_from_json(answer.json)
    assert (201, built.digest, built.size) == (answer.status, record.digest, record.size)
    assert answer.json == server.ask("GET", f"{API}/files/{record.id}").json
    for query in (
        f"id={record.id}",
        f"digest={record.digest}",
        "name=committed",
        f"digest={record.digest}&name=committed",
    ):
        assert answer.json == server.ask("GET", f"{API}/files/find?{query}").json
    assert answer.json == server.ask("GET", f"{API}/files?limit=1").json["files"][0]
    assert answer.json not in server.ask("GET", f"{API}/files?before={record.updated_at}").json["files"]
    assert 404 == server.ask("GET", f"{API}/files/find?digest={record.digest}&name=other").status

    kept = server.ask("GET", f"{API}/manifests/{record.digest}")
    assert (200, built.encoded, f'"{record.digest}"') == (kept.status, kept.body, kept.headers["ETag"])
    assert 304 == server.ask("GET", f"{API}/manifests/{record.digest}", headers={"If-None-Match": f'"{record.digest}"'}).status
    assert 404 == server.ask("GET", f"{API}/manifests/{'0' * 64}").status

    assert answer.json == server.ask("DELETE", f"{API}/files/{record.id}").json
    assert 404 == server.ask("DELETE", f"{API}/files/{record.id}").status
    assert 404 == server.ask("GET", f"{API}/files/{record.id}").status


def test_a_large_manifest_goes_both_ways(server: RunningServer) -> None:
    """More than a connection may hold in memory waits in a file meanwhile."""
    chunk = contents(1, seed=8)[0]
    server.put([encoded(chunk)])
    built = manifest([chunk] * 50_000)
    answer = server.commit(built.encoded, name="large")
    assert (201, str(built.digest)) == (answer.status, answer.json["digest"])
    assert built.encoded == server.ask("GET", f"{API}/manifests/{built.digest}").body
    head = server.ask("HEAD", f"{API}/manifests/{built.digest}")
    assert (200, str(len(built.encoded))) == (head.status, head.headers["Content-Length"])


@pytest.mark.parametrize("name", NAMES)
def test_names_cross_in_headers_and_queries(server: RunningServer, name: str) -> None:
    """Percent-encoded UTF-8, both ways."""
    chunk = contents(1, seed=9)[0]
    server.put([encoded(chunk)])
    answer = server.commit(manifest([chunk]).encoded, name=quote(name, safe=""))
    assert (201, name) == (answer.status, answer.json["name"])
    assert answer.json == server.ask("GET", f"{API}/files/find?name={quote(name, safe='')}").json
    content = server.ask("GET", f"/{quote(answer.json['path'])}")
    assert (200, chunk) == (content.status, content.body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{API}/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", f"{API}/chunks", 405),
        ("DELETE", f"{API}/repository", 405),
        ("GET", f"{API}/chunks/abc", 400),
        ("GET", f"{API}/manifests/{'A' * 64}", 400),
        ("GET", f"{API}/files/file_abc", 404),
        ("GET", f"{API}/files/find", 400),
        ("GET", f"{API}/files/find?id=x&name=y", 400),
        ("GET", f"{API}/files/find?digest=x", 400),
        ("GET", f"{API}/files?limit=0", 400),
        ("GET", f"{API}/files?limit=1001", 400),
        ("GET", f"{API}/files?limit=ten", 400),
        ("GET", f"{API}/files?before=-1", 400),
        ("POST", f"{API}/files", 400),
        ("POST", f"{API}/files?kind=folder", 400),
        ("POST", f"{API}/chunks/missing", 400),
        ("POST", f"{API}/chunks", 422),
        ("POST", "/v3/pipeline_files", 400),
    ],
)
def test_every_refusal_is_a_problem_document(server: RunningServer, method: str, path: str, status: int) -> None:
    """RFC 9457, also for errors of the framework. The Pipeline SDK shows `detail`."""
    headers = {wire.NAME_HEADER: "name"} if "kind" in path else {}
    answer = server.ask(method, path, b"no digests", headers=headers)
    assert (status, wire.PROBLEM) == (answer.status, answer.headers["Content-Type"])
    assert status == answer.json["status"]
    assert answer.json["detail"]
    if status == 405:
        assert answer.headers["Allow"]


def test_leading_slashes_are_collapsed(server: RunningServer, path: str) -> None:
    """A base URL that ends in a slash adds one, on every route."""
    assert 200 == server.ask("GET", f"//{API.strip('/')}/repository").status
    assert 200 == server.ask("GET", "///healthz", token=None).status
    assert 200 == server.ask("HEAD", f"/{path}").status
    answer = server.ask("POST", "//v3/pipeline_files", form("slashed.bin", b"x"), headers=FORM)
    assert (201, "slashed.bin") == (answer.status, answer.json["name"])


def test_a_connection_is_used_again_after_every_kind_of_answer(server: RunningServer, path: str) -> None:
    """Also after frames that the kernel sent, and after a refusal."""
    sent = frames(3, size=400_000, seed=10)
    server.put(sent)
    connection = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    connection.connect()
    used = connection.sock
    digests = b"".join(frame.digest for frame in sent)
    for _ in range(2):
        for method, asked, body, status in (
            ("POST", f"{API}/chunks/get", digests, 200),
            ("GET", path, None, 200),
            ("GET", f"{API}/chunks/{sent[0].digest}", None, 200),
            ("HEAD", path, None, 200),
            ("GET", f"{API}/nothing", None, 404),
            ("POST", f"{API}/files", b"x" * 1000, 400),
        ):
            connection.request(method, asked, body, server.headers)
            answer = connection.getresponse()
            answer.read()
            assert (status, used) == (answer.status, connection.sock)
    connection.close()


# Plain reading.


def test_a_file_is_read_whole(server: RunningServer, path: str, content: bytes) -> None:
    """With all that a cautious client wants to know."""
    answer = server.ask("GET", path)
    assert (200, hashlib.sha256(content).digest()) == (answer.status, hashlib.sha256(answer.body).digest())
    digest = path.split("/")[-2]
    expected = {
        "Content-Length": str(SIZE),
        "Content-Type": "application/octet-stream",
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": 'attachment; filename="model.bin"',
    }
    assert expected == {key: answer.headers[key] for key in expected}
    head = server.ask("HEAD", path)
    assert (200, b"") == (head.status, head.body)
    assert expected == {key: head.headers[key] for key in expected}


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=1000-1999", range(1000, 2000)),
        ("bytes=262144-", range(262144, SIZE)),
        ("bytes=-1000", range(SIZE - 1000, SIZE)),
        ("bytes=1-4999998", range(1, SIZE - 1)),
        ("bytes=2000000-4000000", range(2_000_000, 4_000_001)),
        ("bytes=4999999-99999999", range(SIZE - 1, SIZE)),
    ],
)
def test_a_range_is_read(server: RunningServer, path: str, content: bytes, header: str, part: range) -> None:
    """Wherever it begins and ends in chunks."""
    answer = server.ask("GET", path, headers={"Range": header})
    assert (206, f"bytes {part.start}-{part.stop - 1}/{SIZE}") == (answer.status, answer.headers["Content-Range"])
    assert content[part.start : part.stop] == answer.body


def test_every_boundary_of_chunks_and_pieces(server: RunningServer, path: str, content: bytes) -> None:
    """One byte before, at and after each."""
    digest = path.split("/")[-2]
    kept = Manifest.parse(server.ask("GET", f"{API}/manifests/{digest}").body)
    boundaries = {*kept.offsets(), *(offset + (256 << 10) for offset in kept.offsets()), SIZE}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    for boundary in sorted(boundaries):
        for start in range(max(0, boundary - 2), min(SIZE - 1, boundary + 1)):
            connection.request("GET", path, headers=server.headers | {"Range": f"bytes={start}-{start + 1}"})
            assert content[start : start + 2] == connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Range": "bytes=5000000-"}, 416),
        ({"Range": "bytes=-0"}, 416),
        ({"Range": "bytes=0-1,3-4"}, 200),
        ({"Range": "lines=0-1"}, 200),
        ({"Range": "bytes=0-1", "If-Range": "TAG"}, 206),
        ({"Range": "bytes=0-1", "If-Range": '"another"'}, 200),
        ({"Range": "bytes=0-1", "If-Range": "W/TAG"}, 200),
        ({"Range": "bytes=0-1", "If-Range": "Tue, 24 Nov 2026 00:00:00 GMT"}, 200),
        ({"If-None-Match": "TAG"}, 304),
        ({"If-None-Match": "W/TAG"}, 304),
        ({"If-None-Match": '"another", TAG'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"another"'}, 200),
        ({"If-None-Match": "TAG", "Range": "bytes=0-1"}, 304),
        ({"If-Match": "TAG"}, 200),
        ({"If-Match": "*"}, 200),
        ({"If-Match": '"another"'}, 412),
        ({"If-Match": "W/TAG"}, 412),
    ],
)
def test_conditions(server: RunningServer, path: str, headers: dict[str, str], status: int) -> None:
    """RFC 9110, section 13.2.2: If-Match before If-None-Match before Range, which If-Range makes conditional."""
    tag = f'"{path.split("/")[-2]}"'
    sent = {key: value.replace("TAG", tag) for key, value in headers.items()}
    answer = server.ask("GET", path, headers=sent)
    assert status == answer.status
    ranges = {206: f"bytes 0-1/{SIZE}", 416: f"bytes */{SIZE}"}
    assert ranges.get(status) == answer.headers["Content-Range"]
    assert (status == 304) == (answer.body == b"")
    head = server.ask("HEAD", path, headers=sent)
    assert ({206: 200, 416: 200}.get(status, status), b"") == (head.status, head.body)


def test_an_empty_file(server: RunningServer) -> None:
    """It has no chunks and no ranges."""
    uploaded = server.upload("empty.bin", b"").json
    assert 0 == uploaded["size"]
    for headers in ({}, {"Range": "bytes=0-"}):
        answer = server.ask("GET", f"/{uploaded['path']}", headers=headers)
        assert (200, b"", "0") == (answer.status, answer.body, answer.headers["Content-Length"])


def test_a_path_needs_a_record(server: RunningServer, path: str, content: bytes) -> None:
    """Digest and name must belong to one record. A removed file is gone, even if its chunks are stored."""
    digest = path.split("/")[-2]
    assert 404 == server.ask("GET", path.replace("model.bin", "other.bin")).status
    assert 404 == server.ask("GET", path.rpartition("/")[0]).status
    assert 404 == server.ask("GET", path.replace(digest[:2], "zz", 1)).status
    uploaded = server.upload("removed.bin", content).json
    assert 200 == server.ask("HEAD", f"/{uploaded['path']}").status
    server.ask("DELETE", f"{API}/files/{uploaded['id']}")
    assert 404 == server.ask("GET", f"/{uploaded['path']}").status
    assert 200 == server.ask("HEAD", path).status


# The form upload.


def test_a_form_upload_is_a_push(server: RunningServer, content: bytes, tmp_path: Path) -> None:
    """The answer of the Pipeline SDK's contract; the same bytes are the same file, whichever way they came."""
    answer = server.upload("my_file.txt", content)
    assert 201 == answer.status
    assert set(answer.json) >= UPLOADED_KEYS
    path = f"pipeline_files/{answer.json['digest'][:2]}/{answer.json['digest'][2:4]}/{answer.json['digest']}/my_file.txt"
    assert ("my_file.txt", "my_file.txt", path, f"/{path}", SIZE) == tuple(
        answer.json[key] for key in ("name", "file_name", "path", "file_path", "size")
    )
    assert answer.json["id"] == server.upload("my_file.txt", content).json["id"]
    assert answer.json["id"].startswith("file_")


async def test_a_form_upload_has_the_digest_of_a_push(server: RunningServer, content: bytes, tmp_path: Path) -> None:
    """I8: one file, however it came."""
    source = tmp_path / "source"
    source.write_bytes(content)
    assert str((await manifest_of(source)).digest) == server.upload("by-form.bin", content).json["digest"]
    async with connect(server.url, token=server.token) as repository:
        records = await repository.records(limit=1)
    assert ["by-form.bin"] == [record.name for record in records]


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("/home/user/my models/model.bin", "model.bin"),
        ("../../model.bin", "model.bin"),
        ("C:/models/model.bin", "model.bin"),
        (".hidden", ".hidden"),
        ("模型 é.bin", "模型 é.bin"),
        ("semi;colon.bin", "semi;colon.bin"),
    ],
)
def test_the_last_part_of_a_path_is_the_name(server: RunningServer, sent: str, name: str) -> None:
    """A client may send its absolute path."""
    answer = server.upload(sent, b"x")
    assert (201, name) == (answer.status, answer.json["name"])
    assert answer.json["path"].endswith(f"/{name}")


@pytest.mark.parametrize(
    ("query", "fields", "alias"),
    [
        ("?name=alias%20a", {}, "alias a"),
        ("", {"name": "alias b"}, "alias b"),
        ("?name=alias%20c", {"name": "alias c", "other": "ignored"}, "alias c"),
    ],
)
def test_an_alias_is_a_second_name(server: RunningServer, query: str, fields: dict[str, str], alias: str) -> None:
    """It comes as a query parameter, or as a part after the file; the path ends in the file's own name all the same."""
    answer = server.ask("POST", f"/v3/pipeline_files{query}", form("own.bin", b"x", after=fields), headers=FORM).json
    assert (alias, "own.bin") == (answer["name"], answer["file_name"])
    assert answer["path"].endswith("/own.bin")
    found = server.ask("GET", f"{API}/files/find?name={alias.replace(' ', '%20')}").json
    assert answer["digest"] == found["digest"]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_form_s_bytes_are_stored_as_they_are(server: RunningServer, size: int) -> None:
    """Around the sizes of reads and writes; bytes that look like a boundary among them."""
    content = (b"\r\n--boundary-of-test\r\n--" + octets(size, size))[:size]
    uploaded = server.upload("exact.bin", content).json
    assert content == server.ask("GET", f"/{uploaded['path']}").body


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", FORM),
        (b"no form", FORM),
        (form("x", b"y").replace(b"pfile", b"other"), FORM),
        (form("", b"y"), FORM),
        (form("..", b"y"), FORM),
        (form("x\ty", b"y"), FORM),
        (form("x", b"y").replace(b"--boundary-of-tests--", b""), FORM),
        (form("x", b"y").replace(b"--boundary-of-tests--\r\n", form("x", b"z")), FORM),
        (form("x", b"y").replace(b'filename="x"\r\n', b'filename="x"\r\nContent-Transfer-Encoding: base64\r\n'), FORM),
        (form("x", b"y"), {"Content-Type": "multipart/form-data"}),
        (form("x", b"y"), {"Content-Type": "multipart/mixed; boundary=boundary-of-tests"}),
        (b"pfile=x", {"Content-Type": "application/x-www-form-urlencoded"}),
        (form("x", b"y").replace(b'filename="x"', b'filename="x"\r\nX: ' + b"y" * 200_000), FORM),
    ],
    ids=[
        "empty",
        "no parts",
        "no pfile",
        "no name",
        "a folder's name",
        "a control character",
        "no end",
        "two files",
        "encoded",
        "no boundary",
        "another kind",
        "no form",
        "a long header",
    ],
)
def test_a_bad_form_is_refused(server: RunningServer, body: bytes, headers: dict[str, str]) -> None:
    """In one sentence, and nothing is recorded."""
    before = server.ask("GET", f"{API}/files").json
    answer = server.ask("POST", "/v3/pipeline_files", body, headers=headers)
    assert (400, wire.PROBLEM) == (answer.status, answer.headers["Content-Type"]), answer.body
    assert before == server.ask("GET", f"{API}/files").json


def test_a_form_s_other_parts_are_limited(server: RunningServer) -> None:
    """No client needs large ones."""
    body = form("x", b"y", after={"other": "z" * 100_000})
    assert 413 == server.ask("POST", "/v3/pipeline_files", body, headers=FORM).status


@pytest.mark.slow
def test_an_upload_limit(tmp_path: Path) -> None:
    """One byte more is refused; without the setting there is none."""
    with running_server(tmp_path / "root", upload_limit=100_000) as server:
        assert 201 == server.upload("fits.bin", octets(1, 100_000)).status
        answer = server.upload("large.bin", octets(1, 100_001))
        assert (413, "limit-exceeded") == (answer.status, answer.slug)
        assert ["fits.bin"] == [file["name"] for file in server.ask("GET", f"{API}/files").json["files"]]


def test_a_client_that_asks_first_is_told_before_it_sends(server: RunningServer) -> None:
    """RFC 9110, section 10.1.1: curl waits with a large body for 100 Continue."""
    length = f"Content-Length: {len(batch(frames(1)))}"
    with server.begin("POST", f"{API}/chunks", length, "Expect: 100-continue") as connection:
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(1000)
        connection.sendall(batch(frames(1)))
        assert 200 == reply(connection).status
    stranger = server._replace(token="wrong")
    with stranger.begin("POST", f"{API}/chunks", length, "Expect: 100-continue") as connection:
        assert 401 == reply(connection).status
    with server.begin("POST", f"{API}/chunks", length, "Expect: the-unexpected", body=batch(frames(1))) as connection:
        assert 200 == reply(connection).status


# Processes.


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_answers(tmp_path: Path, workers: int) -> None:
    """After the announcement, all accept connections; they share the stored files."""
    with running_server(tmp_path / "root", workers=workers) as server:
        sent = frames(2)
        server.put(sent)
        for _ in range(20):
            assert [] == server.missing([frame.digest for frame in sent])


def test_a_command_serves(tmp_path: Path) -> None:
    """`filestore serve` prints its URL when it accepts connections, with any number of workers."""
    home = Home(tmp_path)
    with home.server("--workers", "2", root=tmp_path / "root") as started:
        connection = HTTPConnection(started.url.removeprefix("http://"), timeout=SECONDS)
        connection.request("GET", f"{API}/repository", headers={"Authorization": f"Bearer {started.token}"})
        assert 200 == connection.getresponse().status
        connection.close()


@pytest.mark.slow
def test_another_address_family(tmp_path: Path) -> None:
    """An IPv6 address is in brackets in the URL."""
    with running_server(tmp_path / "root", host="::1") as server:
        assert f"http://[::1]:{server.port}" == server.url
        connection = HTTPConnection("::1", server.port, timeout=SECONDS)
        connection.request("GET", "/healthz")
        assert 200 == connection.getresponse().status
        connection.close()
