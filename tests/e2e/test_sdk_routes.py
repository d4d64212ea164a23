from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from filestore.backends import connect
from filestore.http.wire import API
from filestore.transfer.push import push
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor, torch_file
from tests.support.server import FORM, OTHER_TOKEN, Reply, RunningServer, eventually, form, reply, running_server
from tests.support.uploads import PARTS, PartsUpload, Sent, listed, put, read

FILE_GET = {"id", "path", "created_at", "updated_at"}
"""What both versions of the SDK read of a file."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker, which says nothing bad until its end."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def by_form_v3(server: RunningServer, name: str, content: bytes) -> Reply:
    """As version 1 uploads an input."""
    return server.upload(name, content)


def by_form_v4(server: RunningServer, name: str, content: bytes) -> Reply:
    """As version 2 uploads an input."""
    return server.ask("POST", "/v4/files", form(name, content), headers=FORM)


def by_parts(server: RunningServer, name: str, content: bytes) -> Reply:
    """As both upload a static file."""
    upload = PartsUpload(server, name)
    places = [*range(0, len(content), 3_000_000), len(content)]
    return upload.finish([upload.put(number, content[start:end]) for number, (start, end) in enumerate(pairwise(places), 1)])


DIALECTS = [by_form_v3, by_form_v4, by_parts]
Dialect = Callable[[RunningServer, str, bytes], Reply]


def test_a_file_in_another_part_is_told(server: RunningServer) -> None:
    """The answer names the part that holds the file, and the part in which it belongs."""
    body = form("a.bin", b"x" * (1 << 20)).replace(b'name="pfile"', b'name="file"')
    answer = server.ask("POST", "/v4/files", body, headers=FORM)
    assert (400, True) == (answer.status, "in the part 'file'; send the file in the part 'pfile'" in answer.json["detail"])


@pytest.mark.slow
async def test_the_same_bytes_are_one_stored_file(server: RunningServer, tmp_path: Path) -> None:
    """I8: by all dialects and by our own push, of either machine's version, they are one record and no byte more."""
    content = safetensors_file([tensor(str(seed), 700, 1000, seed=seed) for seed in range(4)])
    records = [dialect(server, "weights.safetensors", content).json for dialect in DIALECTS]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    async with connect(server.url, token=server.token) as repository:
        pushed = await push(repository, path)

    assert {pushed.record.id} == {record["id"] for record in records}
    assert {str(pushed.record.digest)} == {record["digest"] for record in records}
    assert (0, len(content)) == (pushed.bytes_sent, pushed.bytes_shared)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, 2_999_999, 3_000_000, 3_000_001, 7_000_000])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_uploaded_is_downloaded(server: RunningServer, dialect: Dialect, size: int) -> None:
    """All bytes and no others, by the record's id; an empty file too, which has no parts."""
    content = octets(size, size)
    uploaded = dialect(server, "my_file.txt", content).json
    assert set(uploaded) > FILE_GET
    assert uploaded["path"].endswith("/my_file.txt")
    answer = server.ask("GET", f"{PARTS}/download/{uploaded['id']}")
    assert (200, str(size), content) == (answer.status, answer.headers["Content-Length"], answer.body)


def test_each_dialect_answers_in_its_own_shape(server: RunningServer) -> None:
    """Status codes among them: version 1 takes no other than 201."""
    v3, v4, parts = (dialect(server, "shape.bin", b"content") for dialect in DIALECTS)
    assert [201, 201, 201] == [v3.status, v4.status, parts.status]
    assert set(v3.json) >= FILE_GET | {"file_name", "file_path", "name", "size"}
    assert set(v4.json) >= {"id", "path", "url"}
    assert set(parts.json) >= FILE_GET


def test_reading(server: RunningServer) -> None:
    """It gives a record, or the newest records as a bare list. A missing record is reported in `detail`."""
    uploaded = server.upload("read.bin", b"content").json
    answer = server.ask("GET", f"{PARTS}/{uploaded['id']}")
    assert (200, uploaded) == (answer.status, answer.json)
    answer = server.ask("GET", PARTS)
    assert (200, uploaded) == (answer.status, answer.json[0])
    assert [uploaded] == server.ask("GET", f"{PARTS}?limit=1").json
    for path in (f"{PARTS}/file_{'0' * 32}", f"{PARTS}/download/file_{'0' * 32}", f"{PARTS}/nonsense"):
        answer = server.ask("GET", path)
        assert 404 == answer.status
        assert answer.json["detail"]
    assert 404 == server.ask("GET", f"{PARTS}/{uploaded['id']}", token=OTHER_TOKEN).status
    assert [] == [record for record in server.ask("GET", PARTS, token=OTHER_TOKEN).json if record["id"] == uploaded["id"]]


def test_a_download_is_read_in_ranges(server: RunningServer) -> None:
    """As at the file's path."""
    uploaded = server.upload("ranges.bin", b"0123456789").json
    answer = server.ask("GET", f"{PARTS}/download/{uploaded['id']}", headers={"Range": "bytes=2-4"})
    assert (206, b"234") == (answer.status, answer.body)


@pytest.mark.parametrize("path", ["/v3/validate", "/v4/tokens/validate"])
def test_tokens_are_validated(server: RunningServer, path: str) -> None:
    """Any 2xx is a yes; a client without a token sends the word None."""
    assert 200 == server.ask("GET", path).status
    assert 200 == server.ask("GET", f"/{path}").status
    for headers in ({"Authorization": "Bearer None"}, {"Authorization": "Bearer wrong"}, {}):
        answer = server.ask("GET", path, token=None, headers=headers)
        assert 401 == answer.status
        assert answer.json["detail"]


# A form's URL.


@pytest.mark.parametrize("name", ["my file.bin", "100%.bin", "é.bin", "q?a#b.bin", "é" * 120 + ".bin"])
def test_the_url_of_a_form_is_read_without_a_token(server: RunningServer, name: str) -> None:
    """Its last part, percent-encoded, is the file's name, or as much of it as a client can make a file's name."""
    url = by_form_v4(server, name, b"content of it").json["url"]
    answer = read(url)
    assert (200, b"content of it", "13") == (answer.status, answer.body, answer.headers["Content-Length"])
    last = url.rpartition("/")[2]
    assert len(last) <= 255
    assert name.startswith(unquote(last).removesuffix(".bin"))


def test_a_url_says_what_its_client_called_the_server(server: RunningServer) -> None:
    """This holds for the URLs of parts too."""
    headers = FORM | {"Host": "models.example"}
    answer = server.ask("POST", "/v4/files", form("x", b"y"), headers=headers)
    assert answer.json["url"].startswith("http://models.example/signed/")
    question = json.dumps({**PartsUpload(server, "x").ids, "part_num": 1}).encode()
    answer = server.ask("POST", f"{PARTS}/presigned-url", question, headers=headers)
    assert answer.json["upload_url"].startswith("http://models.example/signed/")


def test_a_part_s_url_lets_in_that_part_only(server: RunningServer) -> None:
    """It is refused for another part, method, upload or namespace, and after it has expired."""
    upload, other = PartsUpload(server, "signed.bin"), PartsUpload(server, "other.bin")
    url = upload.url(1).json["upload_url"]
    _, _, _, _, namespace, expires_at, signature, *_ = url.split("/")
    for changed in (
        url.replace("/parts/1", "/parts/2"),
        url.replace(upload.id, other.id),
        url.replace(f"/{namespace}/", "/other/"),
        url.replace(expires_at, "1"),
        url.replace(signature, "0" * 64),
    ):
        answer = put(changed, b"content")
        assert (403, "url-refused") == (answer.status, answer.slug)
    assert 405 == read(url).status
    assert "part 1 never arrived" in upload.finish([Sent(1, "x")]).json["detail"]


# Parts.


def test_parts_come_in_any_order(server: RunningServer) -> None:
    """Also again, with the same bytes; the list may be in any order too, and name a part twice."""
    content = torch_file([tensor(str(seed), 700, 1000, seed=seed) for seed in range(4)])
    third = len(content) // 3
    upload = PartsUpload(server, "parts.pt")
    three = upload.put(3, content[2 * third :])
    one = upload.put(1, content[:third])
    two = upload.put(2, content[third : 2 * third])
    assert one == upload.put(1, content[:third])

    record = upload.finish([two, three, one, two])
    assert 201 == record.status, record.body
    assert by_form_v3(server, "parts.pt", content).json["id"] == record.json["id"]


@pytest.mark.slow
def test_a_part_sent_again_with_other_bytes_is_refused(server: RunningServer) -> None:
    """The first one stays, also if the other one has the same size, and the same bytes get the same answer."""
    first, tail = octets(1, 20_000_000), octets(3, 1000)
    upload = PartsUpload(server, "refused.bin")
    one = upload.put(1, first)
    end = upload.put(2, tail)
    eventually((upload.folder / "cut").exists)
    url = upload.url(1).json["upload_url"]
    for other in (octets(2, 20_000_000), first[:-1], first + b"x", b""):
        answer = put(url, other)
        assert (409, "part-refused", 1) == (answer.status, answer.slug, answer.json["number"])
    assert one == upload.put(1, first)
    record = upload.finish([one, end]).json
    assert by_form_v3(server, "refused.bin", first + tail).json["id"] == record["id"]


def test_finishing_again_gives_the_same_answer(server: RunningServer) -> None:
    """With other parts it is refused, and so is another part; once the record is removed, it is gone."""
    upload = PartsUpload(server, "again.bin")
    parts = [upload.put(1, b"one"), upload.put(2, b"two")]
    late = upload.url(3).json["upload_url"]
    first = upload.finish(parts)
    assert (201, 201) == (first.status, upload.finish(parts).status)
    assert first.json == upload.finish(parts).json
    assert 400 == upload.finish(parts[:1]).status
    assert 404 == put(late, b"late").status
    server.ask("DELETE", f"{API}/files/{first.json['id']}")
    assert 404 == upload.finish(parts).status


def test_an_upload_needs_no_name(server: RunningServer) -> None:
    """It is called by its id then; of a path, the last part is the name."""
    upload = PartsUpload(server, None)
    assert upload.ids["file_id"] == upload.finish([]).json["name"]
    assert "model.bin" == PartsUpload(server, "/home/user/model.bin").finish([]).json["name"]


def test_a_part_of_unknown_length(server: RunningServer) -> None:
    """It is sent in chunks, as curl sends what it reads from a pipe."""
    upload = PartsUpload(server, "piped.bin")
    content = octets(4, 700_000)
    path = upload.url(1).json["upload_url"].removeprefix(server.url)
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (content[:300_000], content[300_000:])) + b"0\r\n\r\n"
    tag = server.ask("PUT", path, body, headers={"Transfer-Encoding": "chunked"}, token=None).headers["ETag"]
    record = upload.finish_with([{"ETag": tag.strip('"'), "PartNumber": 1}]).json
    assert content == server.ask("GET", f"{PARTS}/download/{record['id']}").body


def test_a_signature_is_checked_before_a_part_is_sent(server: RunningServer) -> None:
    """Curl waits with a large part for 100 Continue."""
    upload = PartsUpload(server, "asked.bin")
    path = upload.url(1).json["upload_url"].removeprefix(server.url)
    headers = ("Content-Length: 7", "Expect: 100-continue")
    with server._replace(token="none").begin("PUT", path, *headers) as connection:
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == connection.recv(1000)
        connection.sendall(b"content")
        assert 200 == reply(connection).status
    with server.begin("PUT", path.replace("/parts/1", "/parts/2"), *headers) as connection:
        assert 403 == reply(connection).status


# Bad input: the documented status and detail, nothing stored half, the server alive.


@pytest.mark.parametrize("number", [0, -1, 10_001, 1.5, "1", None, True, 10**30])
def test_part_numbers_out_of_range(server: RunningServer, number: object) -> None:
    """1 to 10000, as whole numbers."""
    upload = PartsUpload(server, "numbers.bin")
    answer = upload.url(number)
    assert (400, "invalid-input") == (answer.status, answer.slug)
    assert "part_num" in answer.json["detail"]
    refused = upload.finish_with([{"ETag": "x", "PartNumber": number}])
    assert (400, "invalid-input") == (refused.status, refused.slug)


def test_an_upload_of_somebody_else(server: RunningServer) -> None:
    """Another namespace's token learns no more of it than of one that never was."""
    upload = PartsUpload(server, "mine.bin")
    part = upload.put(1, b"content")
    foreign = PartsUpload(server, "theirs.bin", token=OTHER_TOKEN)
    foreign.ids = upload.ids
    for answer in (foreign.url(1), foreign.finish([part])):
        assert (404, "upload-not-found") == (answer.status, answer.slug)
        assert upload.id in answer.json["detail"]
    path = f"{PARTS}/uploads/{upload.id}/parts/1"
    assert 404 == server.ask("PUT", path, b"x", token=OTHER_TOKEN).status
    assert 401 == server.ask("PUT", path, b"x", token=None).status
    assert 201 == upload.finish([part]).status


@pytest.mark.parametrize("upload_id", ["0" * 32, "", "..", "../../root", "x", "%2e%2e", "a" * 300])
def test_an_unknown_upload(server: RunningServer, upload_id: str) -> None:
    """The answer is 404 for every id, and no path outside the folder is read."""
    upload = PartsUpload(server, "unknown.bin")
    upload.ids = {"upload_id": upload_id, "file_id": f"file_{upload_id}"}
    for answer in (upload.url(1), upload.finish([])):
        assert (404, "upload-not-found") == (answer.status, answer.slug)


def test_what_does_not_make_up_a_file_is_refused(server: RunningServer) -> None:
    """The error names missing and wrong parts. Nothing is stored, and the upload can continue."""
    upload = PartsUpload(server, "wrong.bin")
    one, three = upload.put(1, b"one"), upload.put(3, b"three")
    before = listed(server)
    for parts, reason in (
        ([one, three], "part 2 never arrived"),
        ([one], "part 2 never arrived"),
        ([three], "part 1 arrived and is not listed"),
        ([one._replace(tag=three.tag), three], "part 1 has another ETag"),
        ([one._replace(tag=""), three], "part 1 has another ETag"),
        ([], "part 1 arrived and is not listed"),
    ):
        answer = upload.finish(parts)
        assert (400, "invalid-parts") == (answer.status, answer.slug)
        assert reason in answer.json["detail"]
    assert before == listed(server)
    two = upload.put(2, b"two")
    assert 400 == upload.finish([one, two]).status
    assert 201 == upload.finish([one, two, three]).status


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        "parts",
        {},
        [1],
        [{"ETag": "x"}],
        [{"PartNumber": 1}],
        [{"ETag": 1, "PartNumber": 1}],
        [{"ETag": "a", "PartNumber": 1}, {"ETag": "b", "PartNumber": 1}],
    ],
)
def test_a_list_that_is_none(server: RunningServer, metadata: object) -> None:
    """In one sentence."""
    answer = PartsUpload(server, "list.bin").finish_with(metadata)
    assert (400, "invalid-input") == (answer.status, answer.slug)


@pytest.mark.slow
@pytest.mark.parametrize("route", ["initiate-multipart-upload", "presigned-url", "finalise-multipart-upload"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b'{"name": 1}', b'{"name": "a/.."}', b"[" * 50_000])
def test_bodies_that_are_no_requests(server: RunningServer, route: str, body: bytes) -> None:
    """In one sentence."""
    answer = server.ask("POST", f"{PARTS}/{route}", body)
    assert 400 == answer.status
    assert answer.json["detail"]


def test_another_upload_s_file_id(server: RunningServer) -> None:
    """Both ids belong together."""
    upload, other = PartsUpload(server, "a.bin"), PartsUpload(server, "b.bin")
    upload.ids = upload.ids | {"file_id": other.ids["file_id"]}
    assert (400, 400) == (upload.url(1).status, upload.finish([]).status)


def test_a_request_that_is_too_large(server: RunningServer) -> None:
    """As many parts as there may be fit; more are not read."""
    upload = PartsUpload(server, "large.bin")
    assert 400 == upload.finish_with([{"ETag": f'"{"0" * 64}"', "PartNumber": number + 1} for number in range(10_000)]).status
    assert 413 == upload.finish_with([{"ETag": "0" * 64, "PartNumber": 1}] * 30_000).status


@pytest.mark.slow
def test_parts_of_an_upload_have_a_limit_together(tmp_path: Path) -> None:
    """It is the limit of an upload by form. A part that is sent again counts once, and a refused part leaves nothing."""
    with running_server(tmp_path / "root", upload_limit=100) as server:
        upload = PartsUpload(server, "limited.bin")
        one, _ = upload.put(1, b"x" * 60), upload.put(2, b"y" * 40)
        two = upload.put(2, b"y" * 40)
        for number, size in ((3, 1), (3, 101)):
            answer = put(upload.url(number).json["upload_url"], b"x" * size)
            assert (413, "limit-exceeded") == (answer.status, answer.slug)
        assert 100 == upload.finish([one, two]).json["size"]


@pytest.mark.slow
def test_abandoned_uploads_are_dropped(tmp_path: Path) -> None:
    """They count as unknown from then on, and free their space; those on which somebody worked since do not."""
    root, port = tmp_path / "root", lasting_port()
    with running_server(root, port=port) as server:
        abandoned, kept = PartsUpload(server, "abandoned.bin"), PartsUpload(server, "kept.bin")
        url = abandoned.url(1).json["upload_url"]
        part = abandoned.put(1, octets(1, 100_000))
        folder = kept.folder.parent
    with running_server(root):
        eventually(lambda: {abandoned.id, kept.id} == set(observed(folder)["uses"]))
    # A server observed that nothing happened for more than a day, and then a part arrived.
    values = observed(folder)
    values["seconds"] += 86_500
    (folder / "state.json").write_text(json.dumps(values))
    (folder / kept.id / "incoming-x").write_bytes(b"a part is arriving")
    with running_server(root, port=port) as server:
        abandoned.server = kept.server = server
        eventually(lambda: [folder / kept.id] == [path for path in folder.iterdir() if path.is_dir()])
        for answer in (abandoned.url(1), abandoned.finish([part]), put(url, b"x")):
            assert (404, "upload-not-found") == (answer.status, answer.slug)
        assert 200 == kept.url(1).status
        assert [] == listed(server)


def observed(folder: Path) -> Any:
    """Return what servers observed of the uploads in a folder."""
    path = folder / "state.json"
    return json.loads(path.read_bytes()) if path.exists() else {"uses": {}}


HARD_NAMES = ['a"b.txt', r"a\b.txt", r"a\\b.txt", 'a"b\\c";d;e.txt', "100%.txt", "a%20b.txt", "\\"]


@pytest.mark.parametrize("name", HARD_NAMES)
def test_names_that_a_form_encodes_survive_curl(server: RunningServer, tmp_path: Path, name: str) -> None:
    """Curl sends `"` as `%22`, as the HTML standard has it, and a backslash unchanged. With --form-escape it escapes both."""
    path = tmp_path / "content"
    path.write_bytes(b"x")
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    for more in ([], ["--form-escape"]):
        # What curl sends of these without the option means another name too.
        if not more and ("\\\\" in name or name.endswith("\\")):
            continue
        command = [
            "curl",
            "-sS",
            *more,
            "-H",
            f"Authorization: Bearer {server.token}",
            "-F",
            f'pfile=@{path};filename="{quoted}"',
        ]
        done = subprocess.run([*command, f"{server.url}/v3/pipeline_files"], capture_output=True, check=True, timeout=60)
        assert name == json.loads(done.stdout)["file_name"], done.stdout


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (r'form-data; name="pfile"; filename="a%22b\\c.txt"', r'a"b\c.txt'),
        (r'form-data; name="pfile"; filename="a\"b.txt"', 'a"b.txt'),
        (r'form-data; filename="a.txt"; name="pfile"', "a.txt"),
        (r"form-data; name=pfile; filename=a.txt", "a.txt"),
        (r'form-data; name="pfile"; filename="C:\folder\a.txt"', "a.txt"),
        (r'form-data; name="pfile"; filename="\\\\server\\a.txt"', "a.txt"),
        (r'form-data; name="pfile"; filename="folder\a/b.txt"', "b.txt"),
        ("form-data; name=\"pfile\"; filename*=utf-8''a%22%C3%A9.txt", 'a"é.txt'),
        ('form-data; name="pfile"; filename="%E2%82%AC.txt"', "%E2%82%AC.txt"),
    ],
)
def test_forms_in_which_clients_write_a_name(server: RunningServer, header: str, name: str) -> None:
    """httpx, urllib3, browsers and others each write a name in another way."""
    body = f"--b\r\nContent-Disposition: {header}\r\n\r\nx\r\n--b--\r\n".encode()
    answer = server.ask("POST", "/v3/pipeline_files", body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    assert (201, name) == (answer.status, answer.json.get("file_name")), answer.body


@pytest.mark.parametrize("name", ["a%0Ab", "a%0db", "a%22/..", "%22@"])
def test_an_encoded_name_is_checked_after_it_was_decoded(server: RunningServer, name: str) -> None:
    """So no name is stored that may not be."""
    assert 400 == server.ask("POST", "/v3/pipeline_files", form(name, b"x"), headers=FORM).status


def test_no_url_for_a_part_after_the_upload_was_finished(server: RunningServer) -> None:
    """No part can be sent any more; the answer says so at once, and not only when the part was sent."""
    upload = PartsUpload(server, "finished.bin")
    part = upload.put(1, b"x")
    assert 201 == upload.finish([part]).status
    answer = upload.url(2)

    assert (400, "invalid-input") == (answer.status, answer.slug)
    assert f"the upload {upload.id} is finished, and takes no more parts; begin another upload" == answer.json["detail"]
    assert 201 == upload.finish([part]).status
