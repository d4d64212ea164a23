"""The read routes of the Hub API, by a plain client, against a real server."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import token_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.records import Record
from filestore.core.scopes import Scope
from filestore.format.chunking import CHUNKING_VERSION
from tests.support.changed_tokens import changed
from tests.support.frames import encoded
from tests.support.generator import octets, prose
from tests.support.hub import git_id, know_digests, pages, push_tree, push_zip, resolve, sha256
from tests.support.opens import OpenLog
from tests.support.server import OTHER_TOKEN, RunningServer, running_server
from tests.support.trees import Folder, Planted, Script

NAME = "team/my-model"
LARGE = octets(1, 3 << 20)
SCRIPT = b"#!/bin/sh\n"
CONTENTS = {
    "README.md": b"---\npipeline_tag: fill-mask\ntags: [bert]\n---\n# A model\n",
    "config.json": b'{"model_type": "bert"}',
    "empty.bin": b"",
    "größe & 100%.txt": b"named by a person",
    "model.safetensors": LARGE,
    "run.sh": SCRIPT,
    "tokenizer/a/b.txt": b"deep",
    "tokenizer/vocab.txt": prose(2, 400_000),
}
THINGS: dict[str, Planted] = {
    **CONTENTS,
    "run.sh": Script(SCRIPT),
    "logs": Folder(),
}
COMMIT = re.compile(r"[0-9a-f]{40}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker, which writes down what it opens."""
    folder = tmp_path_factory.mktemp("served")
    with running_server(folder / "root", opens=str(folder / "opens")) as server:
        yield server


@pytest.fixture(scope="module")
def record(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The stored directory, whose digests are known."""
    record = push_tree(server, tmp_path_factory.mktemp("pushed") / "my-model", THINGS)
    know_digests(server, record, CONTENTS)
    return record


@pytest.fixture
def commit(server: RunningServer, record: Record) -> str:
    """The newest commit."""
    return str(server.ask("GET", f"/api/models/{NAME}").json["sha"])


@pytest.mark.parametrize("prefix", ["", "datasets/", "spaces/", "kernels/"])
@pytest.mark.parametrize("path", CONTENTS)
def test_a_file_is_sent(server: RunningServer, commit: str, path: str, prefix: str) -> None:
    """Each type of repository has the same files. `raw` is another word for `resolve`."""
    quoted = path.replace("ö", "%C3%B6").replace("ß", "%C3%9F").replace("%.", "%25.").replace(" ", "%20").replace("&", "%26")
    for word in ("resolve", "raw"):
        reply = server.ask("GET", f"/{prefix}{NAME}/{word}/main/{quoted}")
        assert (200, CONTENTS[path]) == (reply.status, reply.body)
        assert commit == reply.headers["X-Repo-Commit"]
        assert "nosniff" == reply.headers["X-Content-Type-Options"]


@pytest.mark.usefixtures("record")
def test_the_head_of_a_file(server: RunningServer, commit: str) -> None:
    """It has what clients need before they download, no compression, and nothing of Xet."""
    for path, tag in (("model.safetensors", sha256(LARGE).hex()), ("config.json", git_id(CONTENTS["config.json"]))):
        asked = {"Accept-Encoding": "gzip, br"}
        reply = server.ask("HEAD", f"/{NAME}/resolve/main/{path}", headers=asked)
        assert (200, b"") == (reply.status, reply.body)
        head = reply.headers
        assert (commit, f'"{tag}"', "bytes") == (head["X-Repo-Commit"], head["ETag"], head["Accept-Ranges"])
        assert str(len(CONTENTS[path])) == head["Content-Length"]
        assert {None} == {head[name] for name in ("Content-Encoding", "X-Xet-Hash", "Link", "Location")}
    fixed = server.ask("HEAD", f"/{NAME}/resolve/{commit}/config.json").headers
    assert ("private, no-cache", True) == (head["Cache-Control"], "immutable" in fixed["Cache-Control"])


@pytest.mark.usefixtures("record")
def test_a_head_and_an_absent_path_read_no_content(server: RunningServer) -> None:
    """Once the list of files is in memory, neither a frame nor a manifest is opened."""
    log = OpenLog(server.root.parent / "opens")
    resolve(server, "config.json")
    log.read()
    assert 200 == server.ask("HEAD", f"/{NAME}/resolve/main/model.safetensors").status
    assert 404 == server.ask("HEAD", f"/{NAME}/resolve/main/adapter_config.json").status
    assert 404 == resolve(server, "adapter_config.json").status
    assert 404 == server.ask("GET", f"/api/models/{NAME}/tree/main/additional_chat_templates").status
    assert [] == [path for path in log.read() if "/chunks/" in path or "/manifests/" in path]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=1048000-1600000", slice(1048000, 1600001)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=3000000-", slice(3000000, None)),
        ("bytes=10-99999999999", slice(10, None)),
    ],
)
@pytest.mark.usefixtures("record")
def test_a_range_of_a_file_is_sent(server: RunningServer, asked: str, part: slice) -> None:
    """It is a range of the file, and not of the zip file."""
    reply = resolve(server, "model.safetensors", Range=asked)
    assert (206, LARGE[part]) == (reply.status, reply.body)
    first = range(len(LARGE))[part].start
    assert f"bytes {first}-{first + len(reply.body) - 1}/{len(LARGE)}" == reply.headers["Content-Range"]
    assert COMMIT.fullmatch(reply.headers["X-Repo-Commit"])


@pytest.mark.usefixtures("record")
def test_a_range_beyond_the_end_is_refused(server: RunningServer) -> None:
    """Also if the zip file has bytes there. An empty file is sent whole."""
    reply = resolve(server, "config.json", Range="bytes=22-30")
    assert (416, "bytes */22") == (reply.status, reply.headers["Content-Range"])
    assert 200 == resolve(server, "empty.bin", Range="bytes=0-").status


@pytest.mark.usefixtures("record")
def test_conditions(server: RunningServer) -> None:
    """A client that has the file gets 304, and a range of another state is not sent."""
    tag = resolve(server, "config.json").headers["ETag"]
    assert 304 == resolve(server, "config.json", If_None_Match=tag).status
    assert 206 == resolve(server, "config.json", If_Range=tag, Range="bytes=0-1").status
    assert 200 == resolve(server, "config.json", If_Range='"another"', Range="bytes=0-1").status
    assert 412 == resolve(server, "config.json", If_Match='"another"').status


def test_links_are_followed(server: RunningServer, tmp_path: Path) -> None:
    """A link of a zip file that another tool made is the file or folder that it leads to, if that is in the tree."""
    links = {
        "weights.bin": "data/model.bin",
        "latest": "data",
        "data/up": "..",
        "data/again": "../weights.bin",
        "self": "self",
        "nowhere": "absent",
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("data/model.bin", LARGE)
        for path, target in links.items():
            entry = zipfile.ZipInfo(path)
            entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            written.writestr(entry, target)
    push_zip(server, tmp_path / "a.zip", archive.getvalue(), "team/links")
    for path in ("weights.bin", "latest/model.bin", "data/again", "latest/up/data/up/weights.bin"):
        assert LARGE == resolve(server, path, name="team/links").body, path
    for path in ("self", "nowhere", "latest", "self/x", "latest/" * 50 + "model.bin", "data/up/../data/model.bin"):
        assert 404 == resolve(server, path, name="team/links").status, path
    listed = {entry["path"]: entry for entry in server.ask("GET", "/api/models/team/links/tree/main?recursive=1").json}
    assert {"data", "data/model.bin", "data/again", "data/up", "latest", "weights.bin"} == set(listed)
    assert (len(LARGE), "directory") == (listed["weights.bin"]["size"], listed["latest"]["type"])
    for folder in ("latest", "latest/up/data"):
        found = [
            entry["path"] for page in pages(server, f"/api/models/team/links/tree/main/{folder}", limit="1") for entry in page
        ]
        assert [f"{folder}/{name}" for name in ("again", "model.bin", "up")] == found


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{NAME}/resolve/main/absent.json", "EntryNotFound"),
        (f"{NAME}/resolve/main/tokenizer", "EntryNotFound"),
        (f"{NAME}/resolve/refs%2Fpr%2F1/config.json", "RevisionNotFound"),
        (f"{NAME}/resolve/absent/config.json", "RevisionNotFound"),
        ("team/absent/resolve/main/config.json", "RepoNotFound"),
        ("absent/resolve/main/config.json", "RepoNotFound"),
        (f"api/models/{NAME}/revision/absent", "RevisionNotFound"),
        (f"api/models/{NAME}/tree/main/config.json", "EntryNotFound"),
        (f"api/models/{NAME}/tree/absent", "RevisionNotFound"),
        ("api/models/team/absent", "RepoNotFound"),
        ("api/datasets/absent/refs", "RepoNotFound"),
        ("api/spaces/team/absent/auth-check", "RepoNotFound"),
        ("api/models/team/absent/commits/main", "RepoNotFound"),
    ],
)
def test_what_is_absent_is_told_in_the_words_of_the_hub(server: RunningServer, commit: str, path: str, code: str) -> None:
    """By headers, also to HEAD, and in the body. Only an absent entry has a commit."""
    for method in ("GET", "HEAD"):
        reply = server.ask(method, f"/{path}")
        assert (404, code) == (reply.status, reply.headers["X-Error-Code"])
        assert (commit if code == "EntryNotFound" else None) == reply.headers["X-Repo-Commit"]
        assert reply.headers["X-Error-Message"]
    document = server.ask("GET", f"/{path}").json
    assert document["detail"] == document["error"]


@pytest.mark.usefixtures("record")
def test_who_may_not_read(server: RunningServer) -> None:
    """Without a token there is nothing to see. A wrong token is told by the words that clients know."""
    path = f"/{NAME}/resolve/main/config.json"
    nobody = server.ask("GET", path, token=None)
    assert (401, "RepoNotFound") == (nobody.status, nobody.headers["X-Error-Code"])
    wrong = server.ask("GET", path, token="wrong")
    assert (401, "Invalid credentials in Authorization header") == (wrong.status, wrong.headers["X-Error-Message"])
    asked = {"Expect": "100-continue", "Content-Type": "application/json"}
    early = server.ask("POST", f"/api/models/{NAME}/paths-info/main", b"{}", headers=asked, token="wrong")
    assert (401, wrong.headers["X-Error-Message"]) == (early.status, early.headers["X-Error-Message"])
    other = server.ask("GET", path, token=OTHER_TOKEN)
    assert (404, "RepoNotFound") == (other.status, other.headers["X-Error-Code"])


def test_a_token_with_a_prefix_sees_only_its_repositories(server: RunningServer, record: Record, tmp_path: Path) -> None:
    """Neither by name nor in a list. Others are absent for it."""
    push_tree(server, tmp_path / "tree", {"a.txt": b"other"}, "prefixed/model")
    properties: dict[str, Any] = {"namespace": DEFAULT_NAMESPACE, "label": "", "scope": Scope.READ, "prefix": "prefixed/"}
    changed(server, lambda _, transaction: transaction.add_token(token_digest("prefixed"), **properties))
    for name, status in ((record.full_name, 404), ("prefixed/model", 200)):
        for path in (f"/api/models/{name}", f"/api/models/{name}/refs", f"/api/models/{name}/auth-check"):
            assert status == server.ask("GET", path, token="prefixed").status
    assert 404 == server.ask("GET", f"/{NAME}/resolve/main/config.json", token="prefixed").status
    assert ["prefixed/model"] == [each["id"] for each in server.ask("GET", "/api/models", token="prefixed").json]
    assert [] == server.ask("GET", "/api/models?author=team", token="prefixed").json
    account = server.ask("GET", "/api/whoami-v2", token="prefixed").json
    assert ("read", ["prefixed"]) == (account["auth"]["accessToken"]["role"], [each["name"] for each in account["orgs"]])


@pytest.mark.usefixtures("record")
def test_a_repository_is_described(server: RunningServer, commit: str) -> None:
    """At a revision too, and with digests if they are asked for."""
    for path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/{commit}"):
        found = server.ask("GET", path).json
        assert (NAME, "team", commit, False) == (found["id"], found["author"], found["sha"], found["gated"])
        assert set(CONTENTS) == {file["rfilename"] for file in found["siblings"]}
        assert sum(map(len, CONTENTS.values())) == found["usedStorage"]
    assert ("fill-mask", ["fill-mask", "bert"]) == (found["pipeline_tag"], found["tags"])
    siblings = server.ask("GET", f"/api/datasets/{NAME}?blobs=true").json["siblings"]
    blobs = {file["rfilename"]: file for file in siblings}
    assert sha256(LARGE).hex() == blobs["model.safetensors"]["lfs"]["sha256"]
    assert (git_id(SCRIPT), len(SCRIPT)) == (blobs["run.sh"]["blobId"], blobs["run.sh"]["size"])


@pytest.mark.usefixtures("record")
def test_a_tree_is_listed(server: RunningServer) -> None:
    """With all folders, also those that are only implied, and with the ids that git would give."""
    entries = server.ask("GET", f"/api/models/{NAME}/tree/main?recursive=True&expand=true").json
    listed = {entry["path"]: entry for entry in entries}
    folders = {"logs", "tokenizer", "tokenizer/a"}
    assert folders | set(CONTENTS) == set(listed)
    assert folders == {path for path, entry in listed.items() if entry["type"] == "directory"}
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha256(LARGE).hex().encode(), len(LARGE))
    lfs = {"oid": sha256(LARGE).hex(), "size": len(LARGE), "pointerSize": len(pointer)}
    large = listed["model.safetensors"]
    assert (lfs, git_id(pointer), len(LARGE)) == (large["lfs"], large["oid"], large["size"])
    for path in ("config.json", "empty.bin", "tokenizer/vocab.txt"):
        assert (git_id(CONTENTS[path]), None) == (listed[path]["oid"], listed[path].get("lfs"))
    assert COMMIT.fullmatch(large["lastCommit"]["id"])
    inside = server.ask("GET", f"/api/models/{NAME}/tree/main/tokenizer").json
    assert ["tokenizer/a", "tokenizer/vocab.txt"] == sorted(entry["path"] for entry in inside)


@pytest.mark.usefixtures("record")
def test_a_list_goes_on_by_pages(server: RunningServer) -> None:
    """Each entry is on one page."""
    path = f"/api/models/{NAME}/tree/main"
    whole = [entry["path"] for entry in server.ask("GET", f"{path}?recursive=true").json]
    for limit in (1, 2, 5, 1000):
        found = pages(server, path, recursive="true", limit=str(limit))
        assert whole == [entry["path"] for page in found for entry in page]
        assert all(len(page) == limit for page in found[:-1])
    found = pages(server, path, limit="3")
    assert {path.partition("/")[0] for path in whole} == {entry["path"] for page in found for entry in page}


@pytest.mark.usefixtures("record")
def test_paths_are_described(server: RunningServer) -> None:
    """In a form or in JSON. Those that are absent are left out."""
    path = f"/api/models/{NAME}/paths-info/main"
    form = b"paths=config.json&paths=absent&paths=tokenizer&expand=False&paths=config.json&paths=..%2Fx"
    found = server.ask("POST", path, form, headers={"Content-Type": "application/x-www-form-urlencoded"}).json
    assert [("config.json", "file"), ("tokenizer", "directory")] == [(entry["path"], entry["type"]) for entry in found]
    asked = b'{"paths": ["tokenizer/vocab.txt"], "expand": true}'
    (entry,) = server.ask("POST", path, asked, headers={"Content-Type": "application/json"}).json
    assert (git_id(CONTENTS["tokenizer/vocab.txt"]), True) == (entry["oid"], "lastCommit" in entry)


@pytest.mark.usefixtures("record")
def test_refs_and_access(server: RunningServer, commit: str) -> None:
    """The branch `main` is at the newest commit."""
    refs = server.ask("GET", f"/api/models/{NAME}/refs").json
    assert [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}] == refs["branches"]
    assert ([], []) == (refs["tags"], refs["converts"])
    assert 200 == server.ask("GET", f"/api/models/{NAME}/auth-check").status
    account = server.ask("GET", "/api/whoami-v2").json
    assert ("user", "default") == (account["type"], account["name"])
    assert "team" in {each["name"] for each in account["orgs"]}
    assert "write" == account["auth"]["accessToken"]["role"]


def test_commits_are_listed(server: RunningServer, tmp_path: Path) -> None:
    """The newest first, each with its files, in pages."""
    for number in range(5):
        push_tree(server, tmp_path / str(number), {"number.txt": str(number).encode()}, "team/history")
    found = pages(server, "/api/models/team/history/commits/main", limit="2")
    assert [2, 2, 1] == [len(page) for page in found]
    ids = [entry["id"] for page in found for entry in page]
    texts = [resolve(server, "number.txt", name="team/history", revision=each).body for each in ids]
    assert [b"4", b"3", b"2", b"1", b"0"] == texts
    assert b"3" == resolve(server, "number.txt", name="team/history", revision="~1").body
    assert ids[0] == server.ask("GET", "/api/models/team/history").json["sha"]


def test_repositories_are_listed(server: RunningServer, record: Record, tmp_path: Path) -> None:
    """By name, in pages, by a part of the name, or by the owner."""
    for name in ("zoo/bear", "zoo/Bee", "alone"):
        push_tree(server, tmp_path / name.replace("/", "-"), {"a.txt": name.encode()}, name)
    found = [each["id"] for page in pages(server, "/api/models", limit="2") for each in page]
    assert found == sorted(found)
    assert {record.full_name, "zoo/bear", "zoo/Bee", "alone"} <= set(found)
    assert ["zoo/Bee", "zoo/bear"] == [each["id"] for each in server.ask("GET", "/api/models?author=zoo").json]
    assert ["zoo/Bee", "zoo/bear"] == [each["id"] for each in server.ask("GET", "/api/datasets?search=BE").json]
    assert [] == server.ask("GET", "/api/models?author=nobody").json


def test_a_single_file_is_a_repository(server: RunningServer) -> None:
    """Its only file has its name."""
    content = octets(7, 300_000)
    server.upload("weights.bin", content)
    found = server.ask("GET", "/api/models/weights.bin").json
    assert [{"rfilename": "weights.bin"}] == found["siblings"]
    assert content == resolve(server, "weights.bin", name="weights.bin").body
    assert content[5:9] == resolve(server, "weights.bin", name="weights.bin", Range="bytes=5-8").body
    assert "EntryNotFound" == resolve(server, "config.json", name="weights.bin").headers["X-Error-Code"]


def test_a_deflated_file_is_inflated(server: RunningServer, tmp_path: Path) -> None:
    """Of a zip file that another tool made, also one that writes the sizes after the data."""
    text = prose(3, 700_000)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("text.txt", text)
        with written.open(zipfile.ZipInfo("streamed.txt"), "w") as streamed:
            streamed.write(text)
    push_zip(server, tmp_path / "a.zip", archive.getvalue(), "team/foreign")
    for path in ("text.txt", "streamed.txt"):
        assert text == resolve(server, path, name="team/foreign").body
        part = resolve(server, path, name="team/foreign", Range="bytes=600000-600009")
        assert (206, text[600_000:600_010]) == (part.status, part.body)
        assert str(len(text)) == server.ask("HEAD", f"/team/foreign/resolve/main/{path}").headers["Content-Length"]


def test_until_its_digests_are_known_a_file_has_a_tag_that_is_none(server: RunningServer, tmp_path: Path) -> None:
    """No client takes it for a SHA-256 or for an id of git. It stays the same meanwhile."""
    record = push_zip(server, tmp_path / "empty.zip", b"PK\5\6" + bytes(18), "team/nothing")
    assert [] == server.ask("GET", f"/api/models/{record.full_name}/tree/main").json


def test_the_head_of_a_huge_file_states_no_size(server: RunningServer) -> None:
    """Clients then learn it from the answer to GET, and do not refuse the file."""
    chunk = Chunk(encoded(bytes(CHUNK_LIMIT)).digest, CHUNK_LIMIT)
    server.put([encoded(bytes(CHUNK_LIMIT))])
    for count, name in ((11_920, "large.bin"), (11_921, "huge.bin")):
        manifest = Manifest.build([chunk] * count, chunking_version=CHUNKING_VERSION)
        assert 201 == server.commit(manifest.encoded, name=name).status
    large, huge = (server.ask("HEAD", f"/{name}/resolve/main/{name}") for name in ("large.bin", "huge.bin"))
    assert (200, str(11_920 * CHUNK_LIMIT)) == (large.status, large.headers["Content-Length"])
    assert (200, None, None) == (huge.status, huge.headers["Content-Length"], huge.headers["Transfer-Encoding"])
    last = resolve(server, "huge.bin", name="huge.bin", Range="bytes=-3")
    assert (206, bytes(3)) == (last.status, last.body)


@pytest.mark.slow
def test_a_repository_of_10000_files(server: RunningServer, tmp_path: Path) -> None:
    """All are in the description, and on pages of 1,000. A second question has the same answer."""
    names = [f"{number // 1000}/{number:05}-{'n' * 40}.txt" for number in range(10_000)]
    push_tree(server, tmp_path / "many", {name: name.encode() for name in names}, "team/many")
    for query in ("", "", "?blobs=true", "?blobs=true"):
        assert names == [file["rfilename"] for file in server.ask("GET", f"/api/models/team/many{query}").json["siblings"]]
    found = pages(server, "/api/models/team/many/tree/main", recursive="True")
    assert [1000] * 10 + [10] == [len(page) for page in found]
    assert names == [entry["path"] for page in found for entry in page if entry["type"] == "file"]


@pytest.mark.slow
def test_a_cursor_is_valid_after_a_restart(tmp_path: Path) -> None:
    """It has the place itself."""
    things: dict[str, Planted] = {f"{number:02}.txt": str(number).encode() for number in range(6)}
    with running_server(tmp_path / "root") as server:
        push_tree(server, tmp_path / "tree", things, NAME)
        link = server.ask("GET", f"/api/models/{NAME}/tree/main?limit=4").headers["Link"]
        push_tree(server, tmp_path / "newer", {"a.txt": b"", "05.txt": b"newer"}, NAME)
    with running_server(tmp_path / "root") as server:
        path = "/" + link.removeprefix("<").partition(">")[0].split("/", 3)[3]
        assert ["04.txt", "05.txt"] == [entry["path"] for entry in server.ask("GET", path).json]


def test_a_lost_chunk_is_a_fault_of_the_server(tmp_path: Path) -> None:
    """Clients then use what they have, and try again later. The next push repairs it."""
    things: dict[str, Planted] = {"a.txt": b"small", "b.bin": LARGE}
    with running_server(tmp_path / "root", check=False) as server:
        push_tree(server, tmp_path / "tree", things, NAME)
        frames = sorted((tmp_path / "root").glob("**/chunks/**/*"))
        for frame in frames:
            if frame.is_file():
                frame.unlink()
        for path in (f"/{NAME}/resolve/main/a.txt", f"/api/models/{NAME}", f"/api/models/{NAME}/tree/main"):
            reply = server.ask("GET", path)
            assert (500, "damaged-chunk") == (reply.status, reply.slug)
            assert reply.headers["X-Error-Message"]
        push_tree(server, tmp_path / "tree", things, NAME)
        assert b"small" == resolve(server, "a.txt").body
