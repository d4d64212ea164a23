"""What a page in a browser asks of an upload in parts: what has arrived, parts of stored bytes, a cancel, a directory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from filestore.backends import connect
from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.http.server.routes.sdk.copies import COPY_LIMIT
from filestore.http.wire import API
from filestore.transfer.fetch_tree import fetch_tree
from tests.support.changed_tokens import changed
from tests.support.generator import octets
from tests.support.models import safetensors_file, tensor
from tests.support.server import OTHER_TOKEN, RunningServer, running_server
from tests.support.uploads import PARTS, PartsUpload, Sent, begin, listed, put

CONTENT = octets(21, 9_000_000)


@pytest.fixture(scope="module", params=["folder", "objects"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers: an upload goes on in any of them. It keeps uploads in a folder, or as in an object store."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder / "root", workers=2, **objects_at(folder, request.param)) as server:
        yield server


def objects_at(folder: Path, kind: str) -> dict[str, Any]:
    """The settings of a server that keeps uploads in this way."""
    return {"objects": str(folder / "objects")} if kind == "objects" else {}


def left_of(upload: PartsUpload) -> set[str]:
    """The names of the files that are left of an upload, in its folder or its objects."""
    root = upload.server.root
    found = {path for path in root.parent.rglob(f"*{upload.id}*/**/*") if path.is_file()}
    return {path.name for path in found} | {path.name for path in root.glob(f"tmp/uploads-*/*{upload.id}*")}


@pytest.fixture(scope="module")
def stored(server: RunningServer) -> str:
    """The id of a stored file with the content."""
    return str(server.upload("stored.bin", CONTENT).json["id"])


def tag_of(content: bytes) -> str:
    """The tag of a part."""
    return blake3(content).hexdigest()


def zipped(files: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return written.getvalue()


# What has arrived.


def test_what_has_arrived_is_listed(server: RunningServer) -> None:
    """In order, with what identifies the bytes. A page that was loaded once more sends only the others."""
    upload = PartsUpload(server, "listed.bin")
    assert {"file_id": upload.ids["file_id"], "name": "listed.bin", "record_id": None, "parts": []} == upload.parts().json
    for number, content in ((3, b"three"), (1, b"one"), (2, b"")):
        upload.put(number, content)
    answer = upload.parts()
    assert [
        {"PartNumber": 1, "Size": 3, "ETag": tag_of(b"one")},
        {"PartNumber": 2, "Size": 0, "ETag": tag_of(b"")},
        {"PartNumber": 3, "Size": 5, "ETag": tag_of(b"three")},
    ] == answer.json["parts"]
    assert ("application/json", "no-store") == (answer.headers["Content-Type"], answer.headers["Cache-Control"])

    record = upload.finish([Sent(part["PartNumber"], part["ETag"]) for part in answer.json["parts"]]).json
    again = upload.parts().json
    assert (record["id"], []) == (again["record_id"], again["parts"])


def test_a_long_list(server: RunningServer) -> None:
    """Of as many parts as there may be. They are where a server has put them."""
    upload = PartsUpload(server, "long.bin")
    one = upload.put(1, b"").tag.strip('"')
    (path,) = [path for path in server.root.parent.rglob(f"*{one}") if upload.id in str(path)]
    for number in range(2, 10_001):
        # The number is in the name of the file, or in that of its folder.
        other = Path(str(path).replace("00001", f"{number:05}"))
        other.parent.mkdir(exist_ok=True)
        other.touch()
    parts = upload.parts().json["parts"]
    assert [{"PartNumber": number, "Size": 0, "ETag": tag_of(b"")} for number in range(1, 10_001)] == parts
    assert 204 == upload.cancel().status


def test_a_part_that_the_disk_shortened_is_not_listed(tmp_path: Path) -> None:
    """So it is sent again."""
    with running_server(tmp_path / "root") as server:
        upload = PartsUpload(server, "shortened.bin")
        upload.put(1, b"one")
        two = upload.put(2, b"two")
        next(upload.folder.glob("part-00002-*")).write_bytes(b"tw")
        assert [1] == [part["PartNumber"] for part in upload.parts().json["parts"]]
        assert two == upload.put(2, b"two")
        assert [1, 2] == [part["PartNumber"] for part in upload.parts().json["parts"]]


# A name with an owner.


def test_a_name_with_an_owner(server: RunningServer) -> None:
    """It is another name than the one without the owner, and begins with a prefix that has the owner."""
    token = "a-token-of-a-team"
    changed(
        server,
        lambda _, transaction: transaction.add_token(token_digest(token), namespace=DEFAULT_NAMESPACE, label="", prefix="team/"),
    )
    for outside in ({"name": "model"}, {"name": "team/model"}, {"name": "model", "owner": "other"}, {}):
        answer = begin(server, outside, token=token)
        assert (403, "outside-prefix") == (answer.status, answer.slug), outside

    upload = PartsUpload(server, "model", owner="team", token=token)
    part = upload.put(1, b"content")
    assert ("team/model", [1]) == (upload.parts().json["name"], [each["PartNumber"] for each in upload.parts().json["parts"]])
    # A server of an earlier version reads these keys, and fails at any other one.
    (described,) = [path for path in server.root.parent.rglob("upload.json") if upload.id in str(path)]
    assert {"file_id", "name", "namespace"} >= json.loads(described.read_bytes()).keys()

    record = upload.finish([part]).json
    assert ("team", "model", "default") == (record["owner"], record["name"], record["namespace"])
    assert (record["id"], "team/model") == (upload.parts().json["record_id"], upload.parts().json["name"])
    assert record == upload.finish([part]).json
    found = server.ask("GET", f"{API}/files/find?name=team/model", token=token).json
    assert (record["id"], b"content") == (found["id"], server.ask("GET", f"{PARTS}/download/{found['id']}", token=token).body)
    assert 404 == server.ask("GET", f"{API}/files/find?name=model").status


def test_an_owner_of_another_namespace(server: RunningServer) -> None:
    """It is refused at the beginning. If it was taken since, the end of the upload is refused, and nothing is stored."""
    first, second = PartsUpload(server, "model", owner="Taken"), PartsUpload(server, "model", owner="taken", token=OTHER_TOKEN)
    parts = first.put(1, b"mine"), second.put(1, b"theirs")
    assert 201 == first.finish([parts[0]]).status
    refused = [second.finish([parts[1]]), begin(server, {"name": "other", "owner": "TAKEN"}, token=OTHER_TOKEN)]
    assert [(403, "owner-taken")] * 2 == [(answer.status, answer.slug) for answer in refused]
    assert None is second.parts().json["record_id"]
    assert [] == server.ask("GET", PARTS, token=OTHER_TOKEN).json
    assert 204 == second.cancel().status


@pytest.mark.parametrize(
    ("question", "slug", "reason"),
    [
        ({"name": "model", "owner": ""}, "invalid-name", "an owner has up to 96 letters"),
        ({"name": "model", "owner": "a/b"}, "invalid-name", "after an owner, a name has up to 96 letters"),
        ({"name": "b/model", "owner": "a"}, "invalid-name", "after an owner, a name has up to 96 letters"),
        ({"name": "", "owner": "a"}, "invalid-name", "after an owner, a name has up to 96 letters"),
        ({"name": "model:1", "owner": "a"}, "invalid-name", "after an owner, a name has up to 96 letters"),
        ({"name": "model.git", "owner": "a"}, "invalid-name", "does not end in '.git'"),
        ({"name": "model", "owner": "API"}, "invalid-name", "the owner 'API' is reserved"),
        ({"name": "model", "owner": "\ud800"}, "invalid-name", "an owner has up to 96 letters"),
        ({"name": "model", "owner": ["a"]}, "invalid-input", "owner is ['a']; a text is expected"),
        ({"name": None, "owner": "a"}, "invalid-input", "there is an owner and no name"),
        ({"owner": "a"}, "invalid-input", "there is an owner and no name"),
    ],
)
def test_owners_that_an_upload_cannot_have(server: RunningServer, question: object, slug: str, reason: str) -> None:
    """The rules are those of a commit. A path is not cut here as it is without an owner."""
    answer = begin(server, question)
    assert (400, slug) == (answer.status, answer.slug)
    assert reason in answer.json["detail"]


def test_no_owner(server: RunningServer) -> None:
    """Null is the same as none, and then the name may be a path."""
    begun = begin(server, {"name": "folder/model", "owner": None}).json
    assert "model" == server.ask("GET", f"{PARTS}/uploads/{begun['upload_id']}/parts").json["name"]


# Parts of stored bytes.


def test_a_part_of_stored_bytes(server: RunningServer, stored: str) -> None:
    """It is the same as one that is sent, and the file is that of a push."""
    upload = PartsUpload(server, "copied.bin")
    begin, rest = CONTENT[:5_000_000], CONTENT[5_000_000:]
    new = octets(22, 1_000_000)
    answers = [upload.copy(1, stored, 0, begin), upload.copy(3, stored, 5_000_000, rest)]
    assert [(200, f'"{tag_of(each)}"') for each in (begin, rest)] == [(each.status, each.headers["ETag"]) for each in answers]
    two = upload.put(2, new)
    assert Sent(1, answers[0].headers["ETag"]) == upload.put(1, begin)

    record = upload.finish([Sent(1, answers[0].headers["ETag"]), two, Sent(3, answers[1].headers["ETag"])]).json
    assert begin + new + rest == server.ask("GET", f"{PARTS}/download/{record['id']}").body
    assert server.upload("copied.bin", begin + new + rest).json["id"] == record["id"]


def test_other_bytes_than_those_of_the_tag_are_not_kept(server: RunningServer, stored: str) -> None:
    """The answer says where they are not, and nothing of what they are. The part can be sent."""
    upload = PartsUpload(server, "differs.bin")
    expected = CONTENT[1000:3_000_000]
    refused = upload.copy(1, stored, 1001, expected)
    assert (409, "part-differs") == (refused.status, refused.slug)
    assert {"number": 1, "file_id": stored, "offset": 1001}.items() <= refused.json.items()
    assert tag_of(CONTENT[1001:3_000_001]) not in refused.body.decode()
    assert [] == upload.parts().json["parts"]
    assert {"upload.json"} == left_of(upload) - {upload.id}
    assert 201 == upload.finish([upload.put(1, expected)]).status


def test_a_copy_of_a_part_that_arrived(server: RunningServer) -> None:
    """The same tag gets the same answer, also if the stored file is gone since. Another one is refused."""
    record = server.upload("gone.bin", b"the content").json
    upload = PartsUpload(server, "again.bin")
    first = upload.copy(1, record["id"], 4, b"content")
    assert 200 == server.ask("DELETE", f"{API}/files/{record['id']}").status
    again = upload.copy(1, record["id"], 4, b"content")
    assert (200, first.headers["ETag"]) == (again.status, again.headers["ETag"])
    refused = upload.copy(1, record["id"], 0, b"the")
    assert (409, "part-refused") == (refused.status, refused.slug)
    absent = upload.copy(2, record["id"], 0, b"the")
    assert (404, "not-found") == (absent.status, absent.slug)


@pytest.mark.slow
def test_two_pages_with_one_upload(server: RunningServer, stored: str) -> None:
    """Both send and copy the same parts at once, and both finish. There is one part of each number, and one file."""
    upload = PartsUpload(server, "two-pages.bin")
    pieces = {number: CONTENT[(number - 1) * 3_000_000 : number * 3_000_000] for number in (1, 2, 3)}

    def page(turn: int) -> list[Sent]:
        sent = []
        for number, content in sorted(pieces.items(), reverse=turn % 2 == 1):
            if (number + turn) % 2:
                sent.append(upload.put(number, content))
            else:
                answer = upload.copy(number, stored, (number - 1) * 3_000_000, content)
                assert 200 == answer.status, answer.body
                sent.append(Sent(number, answer.headers["ETag"]))
        return sorted(sent)

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(page, range(4))
        assert [first] * 3 == others
        assert [(number, tag_of(content)) for number, content in pieces.items()] == [
            (part["PartNumber"], part["ETag"]) for part in upload.parts().json["parts"]
        ]
        answers = list(pool.map(lambda _: upload.finish(first), range(2)))
    assert [201, 201] == [answer.status for answer in answers]
    assert CONTENT == server.ask("GET", f"{PARTS}/download/{answers[0].json['id']}").body
    assert answers[0].json == answers[1].json


@pytest.mark.parametrize(
    ("changed", "status", "slug"),
    [
        ({"offset": 8_999_999, "size": 2}, 416, "invalid-range"),
        ({"offset": 9_000_000, "size": 1}, 416, "invalid-range"),
        ({"offset": 1 << 62, "size": 1}, 416, "invalid-range"),
        ({"offset": -1}, 400, "invalid-input"),
        ({"offset": 1 << 63}, 400, "invalid-input"),
        ({"offset": 0.5}, 400, "invalid-input"),
        ({"offset": True}, 400, "invalid-input"),
        ({"offset": None}, 400, "invalid-input"),
        ({"size": 0}, 400, "invalid-input"),
        ({"size": "1"}, 400, "invalid-input"),
        ({"size": COPY_LIMIT + 1}, 413, "limit-exceeded"),
        ({"tag": ""}, 400, "invalid-input"),
        ({"tag": "A" * 64}, 400, "invalid-input"),
        ({"tag": ["0" * 64]}, 400, "invalid-input"),
        ({"file_id": "stored.bin"}, 400, "invalid-input"),
        ({"file_id": 5}, 400, "invalid-input"),
        ({"file_id": f"file_{'0' * 32}"}, 404, "not-found"),
    ],
)
def test_copies_that_cannot_be_made(
    server: RunningServer, stored: str, changed: dict[str, object], status: int, slug: str
) -> None:
    """In one sentence, and before any byte is read."""
    upload = PartsUpload(server, "refused.bin")
    source = {"file_id": stored, "offset": 0, "size": 1, "tag": tag_of(CONTENT[:1])}
    answer = upload.copy_of(1, source | changed)
    assert (status, slug) == (answer.status, answer.slug), answer.body
    assert 200 == upload.copy_of(1, source).status


def test_a_copy_for_a_finished_upload(server: RunningServer, stored: str) -> None:
    """It takes no part any more."""
    upload = PartsUpload(server, "finished.bin")
    assert 201 == upload.finish([upload.put(1, b"x")]).status
    answer = upload.copy(2, stored, 0, CONTENT[:1])
    assert (404, "upload-not-found") == (answer.status, answer.slug)


def test_a_copy_of_what_another_namespace_stored(server: RunningServer, stored: str) -> None:
    """Who knows the id and the tag learns no more of it than of a file that never was. So it is with an upload of another one."""
    upload = PartsUpload(server, "theirs.bin", token=OTHER_TOKEN)
    answers = [upload.copy(1, file_id, 0, CONTENT[:1000]) for file_id in (stored, f"file_{'0' * 32}")]
    assert [(404, "not-found")] * 2 == [(answer.status, answer.slug) for answer in answers]
    told, unknown = (answer.json["detail"].replace(stored, f"file_{'0' * 32}") for answer in answers)
    assert told == unknown

    mine = PartsUpload(server, "mine.bin")
    mine.put(1, b"content")
    mine.token = OTHER_TOKEN
    for answer in (mine.parts(), mine.copy(2, stored, 0, b"x"), mine.cancel()):
        assert (404, "upload-not-found") == (answer.status, answer.slug)
    mine.token = server.token
    assert 1 == len(mine.parts().json["parts"])


def test_a_damaged_chunk_is_not_copied(tmp_path: Path) -> None:
    """The client gets an error, and sends the part. The chunk is whole again then."""
    with running_server(tmp_path / "root", check=False) as server:
        record = server.upload("damaged.bin", CONTENT).json
        path = next(path for path in (server.root / "chunks").rglob("*") if path.is_file() and path.stat().st_size > 10_000)
        damaged = bytearray(path.read_bytes())
        damaged[-1000] ^= 1
        path.chmod(0o600)
        path.write_bytes(damaged)
        upload = PartsUpload(server, "copied.bin")
        answer = upload.copy(1, record["id"], 0, CONTENT)
        assert (500, "damaged-chunk") == (answer.status, answer.slug)
        assert [] == upload.parts().json["parts"]
        again = upload.finish([upload.put(1, CONTENT)]).json
        assert CONTENT == server.ask("GET", f"{PARTS}/download/{again['id']}").body


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_the_limits_of_uploads_hold_for_copies(tmp_path: Path, kind: str) -> None:
    """That of a file, and that of all unfinished uploads of a namespace."""
    limits: dict[str, Any] = {"upload_limit": 9_500_000, "uploads_size_limit": 16_000_000}
    with running_server(tmp_path / "root", **limits, **objects_at(tmp_path, kind)) as server:
        stored = server.upload("stored.bin", CONTENT).json["id"]
        upload = PartsUpload(server, "one.bin")
        assert 200 == upload.copy(1, stored, 0, CONTENT).status
        answer = upload.copy(2, stored, 0, CONTENT[:1_000_000])
        assert (413, "limit-exceeded") == (answer.status, answer.slug)
        other = PartsUpload(server, "two.bin")
        answer = other.copy(1, stored, 0, CONTENT)
        assert (413, "uploads-too-large") == (answer.status, answer.slug)
        assert 204 == upload.cancel().status
        assert 200 == other.copy(1, stored, 0, CONTENT).status


# A cancel.


def test_a_cancelled_upload_is_gone(server: RunningServer, stored: str) -> None:
    """With its parts. A second cancel finds nothing, and nothing more is accepted."""
    upload = PartsUpload(server, "cancelled.bin")
    part = upload.put(1, octets(1, 300_000))
    url = upload.url(2).json["upload_url"]
    assert left_of(upload)
    answer = upload.cancel()
    assert (204, b"") == (answer.status, answer.body)
    answers = [upload.cancel(), upload.parts(), put(url, b"x"), upload.copy(2, stored, 0, b"x"), upload.finish([part])]
    assert [(404, "upload-not-found")] * 5 == [(each.status, each.slug) for each in answers]
    assert set() == left_of(upload)


def test_a_finished_upload_is_not_cancelled(server: RunningServer) -> None:
    """Its file stays."""
    upload = PartsUpload(server, "stays.bin")
    part = upload.put(1, b"content")
    record = upload.finish([part]).json
    answer = upload.cancel()
    assert (404, "upload-not-found") == (answer.status, answer.slug)
    assert b"content" == server.ask("GET", f"{PARTS}/download/{record['id']}").body
    assert record == upload.finish([part]).json


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_a_cancel_makes_space_at_once(tmp_path: Path, kind: str) -> None:
    """For the number of uploads, and for their size."""
    limits: dict[str, Any] = {"uploads_limit": 2, "uploads_size_limit": 1_000_000}
    with running_server(tmp_path / "root", **limits, **objects_at(tmp_path, kind)) as server:
        one, _ = PartsUpload(server, "one.bin"), PartsUpload(server, "two.bin")
        one.put(1, bytes(900_000))
        refused = begin(server, {"name": "three.bin"})
        assert (429, "too-many-uploads") == (refused.status, refused.slug)
        assert 204 == one.cancel().status
        PartsUpload(server, "three.bin").put(1, bytes(900_000))


@pytest.mark.slow
def test_a_cancel_while_parts_are_cut(server: RunningServer) -> None:
    """The process that cuts them stops, whichever of the two it is, and says nothing bad in its log."""
    content = octets(5, 40_000_000)
    for _ in range(4):
        upload = PartsUpload(server, "cutting.bin")
        upload.put(1, content)
        assert 204 == upload.cancel().status
        assert set() == left_of(upload)


@pytest.mark.slow
def test_a_cancel_and_the_end_of_an_upload_at_once(server: RunningServer) -> None:
    """One of them wins: either the file is stored and the cancel finds no upload, or the upload is gone and no file is there."""
    content = octets(6, 3_000_000)
    for number in range(8):
        upload = PartsUpload(server, f"race-{number}.bin")
        part = upload.put(1, content)
        with ThreadPoolExecutor(2) as pool:
            finished = pool.submit(upload.finish, [part])
            cancelled = pool.submit(upload.cancel)
        names = {record["name"] for record in listed(server)}
        statuses = finished.result().status, cancelled.result().status
        assert statuses in {(201, 404), (404, 204)}
        assert (f"race-{number}.bin" in names) == (statuses[0] == 201)


@pytest.mark.slow
def test_a_cancel_while_a_part_arrives(server: RunningServer) -> None:
    """The part is refused, and nothing is left of it."""
    upload = PartsUpload(server, "arriving.bin")
    path = f"{PARTS}/uploads/{upload.id}/parts/1"
    with server.begin("PUT", path, "Content-Length: 3000000", "Expect: 100-continue") as connection:
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 100 ")
        connection.sendall(bytes(1_000_000))
        assert 204 == upload.cancel().status
        connection.sendall(bytes(2_000_000))
        assert connection.recv(1 << 12).startswith(b"HTTP/1.1 404 ")
    assert set() == left_of(upload)


# A directory.


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_a_directory(server: RunningServer, tmp_path: Path, method: int) -> None:
    """Its record is that of a directory, and a fetch unpacks it."""
    files = {
        "model/config.json": b"{}",
        "model/weights.safetensors": safetensors_file([tensor(str(seed), 300, 500, seed=seed) for seed in range(3)]),
    }
    content = zipped(files, method=method)
    upload = PartsUpload(server, f"directory-{method}.zip")
    half = len(content) // 2
    parts = [upload.put(1, content[:half]), upload.put(2, content[half:])]
    answer = upload.finish(parts, kind="directory")
    assert (201, "directory") == (answer.status, answer.json["kind"])
    assert answer.json == upload.finish(parts, kind="directory").json
    async with connect(server.url, token=server.token) as repository:
        await fetch_tree(repository, answer.json["id"], target=tmp_path / "fetched")
    assert files == {
        path.relative_to(tmp_path / "fetched").as_posix(): path.read_bytes()
        for path in (tmp_path / "fetched").rglob("*")
        if path.is_file()
    }

    other = upload.finish(parts, kind="file")
    assert (400, "invalid-input") == (other.status, other.slug)
    assert "was already finished with the kind directory" in other.json["detail"]
    assert 400 == upload.finish(parts).status


def test_what_is_not_a_directory_is_refused(server: RunningServer) -> None:
    """Nothing is recorded, and the upload can be finished as a file."""
    hostile = zipped({"aaaa/outside": b"x"}).replace(b"aaaa/outside", b"../a/outside")
    torn = zipped({"a": b"content"})[:-10]
    for number, content in enumerate((b"", b"no zip file", octets(7, 2_000_000), hostile, torn)):
        upload = PartsUpload(server, f"refused-{number}.zip")
        parts = [upload.put(1, content)] if content else []
        answer = upload.finish(parts, kind="directory")
        assert (422, "invalid-archive") == (answer.status, answer.slug), answer.body
        assert f"refused-{number}.zip" not in {record["name"] for record in listed(server)}
        assert None is upload.parts().json["record_id"]
        assert "file" == upload.finish(parts).json["kind"]


@pytest.mark.parametrize("kind", [None, "", "folder", "Directory", 1, ["directory"], {}])
def test_a_kind_that_is_none(server: RunningServer, kind: object) -> None:
    """In one sentence."""
    upload = PartsUpload(server, "kind.bin")
    answer = upload.finish([upload.put(1, b"x")], kind=kind)
    assert (400, "invalid-input") == (answer.status, answer.slug)
    assert "allowed are file, directory" in answer.json["detail"]
