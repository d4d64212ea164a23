"""The write routes of the Hub API, by a plain client, against a real server."""

from __future__ import annotations

import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

from filestore.http.server.routes.hub import lfs
from filestore.http.wire import API
from filestore.repository.index.protocol import Use
from tests.support.changed_tokens import changed
from tests.support.daemons import lasting_port
from tests.support.generator import octets
from tests.support.hub import git_id
from tests.support.hub_writing import HubRepository, header, line, oid, put_file, put_object, send
from tests.support.server import OTHER_TOKEN, SECONDS, RunningServer, eventually, running_server

LARGE = octets(1, 3 << 20)
COMMIT = re.compile(r"[0-9a-f]{40}")

_numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with two workers."""
    with running_server(tmp_path_factory.mktemp("served") / "root", workers=2, guesses_limit=100_000) as server:
        yield server


@pytest.fixture
def repository(server: RunningServer) -> HubRepository:
    """A repository that was just created."""
    repository = HubRepository(server, f"team/model-{next(_numbers)}")
    assert repository.create().status == 200
    return repository


def test_create(server: RunningServer) -> None:
    """It has one commit, of no files. To create it again tells where it is."""
    repository = HubRepository(server, "team/created")
    first = repository.create()
    assert (200, f"{server.url}/team/created") == (first.status, first.json["url"])
    assert [] == repository.files()
    (commit,) = repository.api("GET", "commits/main").json
    assert ("initial commit", repository.head()) == (commit["title"], commit["id"])
    again = repository.create()
    assert (409, "name-exists", f"{server.url}/team/created") == (again.status, again.slug, again.json["url"])
    assert "exists already" in again.headers["X-Error-Message"]


def test_create_other_types(server: RunningServer) -> None:
    """The type is in the URL, and distinguishes nothing."""
    repository = HubRepository(server)
    answer = repository.ask("POST", "/api/repos/create", {"name": "texts", "organization": "team", "type": "dataset"})
    assert (200, f"{server.url}/datasets/team/texts") == (answer.status, answer.json["url"])
    assert 409 == repository.ask("POST", "/api/repos/create", {"name": "texts", "organization": "team"}).status
    assert 200 == repository.ask("POST", "/api/repos/create", {"name": "without-owner"}).status


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": 1},
        {"name": "a", "organization": 1},
        {"name": "a", "organization": "team", "type": "thing"},
        {"name": "a", "organization": "api"},
        {"name": "..", "organization": "team"},
        {"name": ".."},
        {"name": "a/b", "organization": "team"},
        {"name": "a.git", "organization": "team"},
    ],
)
def test_names_that_cannot_be_created(server: RunningServer, document: dict[str, object]) -> None:
    """They are refused, with a reason."""
    answer = HubRepository(server).ask("POST", "/api/repos/create", document)
    assert (400, True) == (answer.status, bool(answer.headers["X-Error-Message"]))


def test_files_that_come_with_the_commit(repository: HubRepository) -> None:
    """They are read back, and their ids are known at once."""
    made = repository.committed(put_file("a.txt", b"one"), put_file("deep/er/b.txt", b"two" * 1000), put_file("empty", b""))
    assert COMMIT.fullmatch(made)
    assert made == repository.head()
    assert ["a.txt", "deep/er/b.txt", "empty"] == repository.files()
    assert b"two" * 1000 == repository.read("deep/er/b.txt")
    found = {
        each["path"]: each["oid"] for each in repository.api("GET", "tree/main?recursive=true").json if each["type"] == "file"
    }
    assert {"a.txt": git_id(b"one"), "deep/er/b.txt": git_id(b"two" * 1000), "empty": git_id(b"")} == found


def test_an_lfs_object(repository: HubRepository) -> None:
    """It is sent once, and is known by its SHA-256 then: in this repository and in others of the namespace."""
    (described,) = repository.batch(LARGE)
    assert 200 == send("PUT", described["actions"]["upload"]["href"], LARGE).status
    assert 200 == repository.ask("POST", lfs.VERIFY_PATH, {"oid": oid(LARGE), "size": len(LARGE)}).status
    assert "actions" not in repository.batch(LARGE)[0]
    repository.committed(put_object("model.bin", LARGE))
    assert LARGE == repository.read("model.bin")
    other = HubRepository(repository.server, f"{repository.name}-copy")
    assert other.create().status == 200
    assert "actions" not in other.batch(LARGE)[0]
    other.committed(put_object("other.bin", LARGE))
    assert LARGE == other.read("other.bin")
    (file,) = other.api("GET", "tree/main").json
    assert oid(LARGE) == file["lfs"]["oid"]


@pytest.mark.parametrize("size", [0, 1, 1000, (256 << 10) - 1, 256 << 10, (256 << 10) + 1])
def test_objects_of_all_sizes(repository: HubRepository, size: int) -> None:
    """Small ones lie between others in the zip of the tree, and large ones have chunks of their own there."""
    content = octets(size, size)
    repository.upload(content)
    repository.committed(put_object("a.bin", content), put_file("b.txt", b"beside it"))
    assert content == repository.read("a.bin")
    assert oid(content) == repository.batch(content)[0]["oid"]


def test_a_large_file_stays_known(repository: HubRepository) -> None:
    """Also when the version that brought it is removed, and if it came with the commit."""
    server, content = repository.server, octets(next(_numbers) + 1000, 1 << 20)

    def record_id() -> str:
        return str(server.ask("GET", f"{API}/files/find?name={quote(repository.name, safe='')}").json["id"])

    repository.committed(put_file("large.bin", content))
    first = record_id()
    assert "actions" not in repository.batch(content)[0]
    repository.committed(put_file("a.txt", b"one"))
    second = record_id()
    repository.committed(put_file("a.txt", b"two"))

    def is_noted() -> bool:
        with closing(sqlite3.connect(server.root / "index.sqlite")) as index:
            sources = index.execute(
                "SELECT source FROM content_digests WHERE sha256 = ?", (bytes.fromhex(oid(content)),)
            ).fetchall()
        found = {bytes(source).hex() for (source,) in sources}
        return found == {server.ask("GET", f"{API}/files/find?name={quote(repository.name, safe='')}").json["digest"]}

    eventually(is_noted)
    for file_id in (first, second):
        assert 200 == server.ask("DELETE", f"{API}/files/{file_id}?chunks=true").status
    assert "actions" not in repository.batch(content)[0]


def test_verify_what_did_not_arrive(repository: HubRepository) -> None:
    """It is not found."""
    assert 404 == repository.ask("POST", lfs.VERIFY_PATH, {"oid": "0" * 64, "size": 1}).status


def test_an_object_in_parts(repository: HubRepository) -> None:
    """Parts come to any worker, in any order, and the completion may be repeated."""
    content = octets(7, lfs.SINGLE_LIMIT + 12_345)
    (described,) = repository.batch(content)
    upload = described["actions"]["upload"]
    assert {"chunk_size", "1", "2"} == upload["header"].keys()
    size = int(upload["header"]["chunk_size"])
    parts = []
    for number in (2, 1):
        answer = send("PUT", upload["header"][str(number)], content[(number - 1) * size : number * size])
        parts.append({"partNumber": number, "etag": answer.headers["ETag"]})
    assert 400 == repository.complete(described, parts[:1]).status
    for _ in range(2):
        assert 200 == repository.complete(described, parts).status
    repository.committed(put_object("big.bin", content))
    assert content == repository.read("big.bin")


def test_an_object_in_many_parts_has_a_limit(repository: HubRepository) -> None:
    """The parts become larger where there would be too many, in one object and in one answer."""
    (one,) = repository.batch_of([{"oid": "1" * 64, "size": 1 << 40}])
    assert lfs.PARTS_LIMIT + 1 == len(one["actions"]["upload"]["header"])
    many = repository.batch_of([{"oid": f"{number:064x}", "size": 1 << 40} for number in range(100)])
    assert 100 * 101 == sum(len(each["actions"]["upload"]["header"]) for each in many)


def test_preupload(repository: HubRepository) -> None:
    """It says how a file is sent, what is there already, and what is ignored."""
    repository.upload(LARGE)
    repository.committed(put_file("small.txt", b"small"), put_object("large.bin", LARGE))
    asked = [("small.txt", 5), ("large.bin", len(LARGE)), ("new.txt", 5), ("new.bin", 5 << 20), ("out/x", 1), ("small.tmp", 7)]
    question = {"files": [{"path": path, "size": size, "sample": ""} for path, size in asked], "gitIgnore": "out/\n*.tmp\n"}
    answer = repository.api("POST", "preupload/main", question)
    found = {each.pop("path"): each for each in answer.json["files"]}
    assert {
        "small.txt": {"uploadMode": "regular", "shouldIgnore": False, "oid": git_id(b"small")},
        "large.bin": {"uploadMode": "lfs", "shouldIgnore": False, "oid": oid(LARGE)},
        "new.txt": {"uploadMode": "regular", "shouldIgnore": False},
        "new.bin": {"uploadMode": "lfs", "shouldIgnore": False},
        "out/x": {"uploadMode": "regular", "shouldIgnore": True},
        "small.tmp": {"uploadMode": "regular", "shouldIgnore": True},
    } == found


@pytest.mark.parametrize("files", [None, {}, [1], [{"path": "a"}], [{"path": "../a", "size": 1}], [{"path": "a", "size": -1}]])
def test_preupload_of_nothing_valid(repository: HubRepository, files: object) -> None:
    """It is refused."""
    assert 400 == repository.api("POST", "preupload/main", {"files": files}).status


def test_deletes_and_copies(repository: HubRepository) -> None:
    """A commit is the old tree with its operations."""
    repository.upload(LARGE)
    first = repository.committed(
        put_file("a.txt", b"one"), put_file("dir/b.txt", b"two"), put_file("dir/c.txt", b"three"), put_object("large.bin", LARGE)
    )
    repository.committed(
        line("deletedFile", path="a.txt"),
        line("deletedFolder", path="dir/"),
        line("copyFile", path="copy/large.bin", srcPath="large.bin"),
        line("lfsFile", path="copy/again.bin", algo="sha256", oid=oid(LARGE)),
    )
    assert ["copy/again.bin", "copy/large.bin", "large.bin"] == repository.files()
    assert LARGE == repository.read("copy/again.bin")
    repository.committed(line("copyFile", path="back.txt", srcPath="dir/b.txt", srcRevision=first))
    assert b"two" == repository.read("back.txt")
    assert ["a.txt", "dir/b.txt", "dir/c.txt", "large.bin"] == repository.files(first)


def test_what_is_not_there_is_not_deleted(repository: HubRepository) -> None:
    """The client learns which entry is absent, and nothing is changed."""
    before = repository.committed(put_file("a.txt", b"one"), put_file("dir/b.txt", b"two"))
    for operation in (
        line("deletedFile", path="no.txt"),
        line("deletedFile", path="dir"),
        line("deletedFolder", path="no"),
        line("deletedFolder", path="a.txt"),
        line("copyFile", path="x", srcPath="no.txt"),
    ):
        answer = repository.commit(put_file("c.txt", b"three"), operation)
        assert (404, "EntryNotFound") == (answer.status, answer.headers["X-Error-Code"])
    assert before == repository.head()


def test_several_operations_on_one_path(repository: HubRepository) -> None:
    """The last one counts."""
    repository.committed(put_file("a.txt", b"one"), put_file("a.txt", b"two"), put_file("b", b"x"), line("deletedFile", path="b"))
    assert (["a.txt"], b"two") == (repository.files(), repository.read("a.txt"))
    repository.committed(line("deletedFile", path="a.txt"), put_file("a.txt", b"three"))
    assert b"three" == repository.read("a.txt")
    repository.committed(put_file("d/x", b"x"), line("deletedFolder", path="d"), put_file("d/y", b"y"))
    assert ["a.txt", "d/y"] == repository.files()
    repository.committed(line("deletedFolder", path="d"), put_file("d", b"a file"))
    assert ["a.txt", "d"] == repository.files()


def test_the_same_content_makes_no_commit(repository: HubRepository) -> None:
    """The id is that of the newest one. This holds for no operations too."""
    made = repository.committed(put_file("a.txt", b"one"))
    assert made == repository.committed(put_file("a.txt", b"one"))
    assert made == repository.committed(header("nothing"))


def test_a_commit_for_an_old_parent(repository: HubRepository) -> None:
    """It is refused as by the Hub, and with the newest one it is made."""
    old = repository.head()
    made = repository.committed(put_file("a.txt", b"one"))
    refused = repository.commit(header(parentCommit=old), put_file("b.txt", b"two"))
    assert (412, "head-moved") == (refused.status, refused.slug)
    assert made in refused.headers["X-Error-Message"]
    assert repository.committed(header(parentCommit=made), put_file("b.txt", b"two")) == repository.head()


def test_a_commit_for_a_parent_may_be_repeated(repository: HubRepository) -> None:
    """A client that got no answer sends it again, and gets the same id, while nobody has made another commit."""
    repository.upload(LARGE)
    repository.committed(put_file("old.txt", b"old"))
    old = repository.head()
    operations = [put_file("a.txt", b"one"), put_object("b", LARGE), line("deletedFile", path="old.txt")]
    made = repository.committed(header(parentCommit=old), *operations)
    assert made == repository.committed(header(parentCommit=old), *operations) == repository.head()
    assert 412 == repository.commit(header("other", parentCommit=old), *operations).status
    assert 412 == repository.commit(header(parentCommit=old), *operations[:1]).status
    repository.committed(put_file("c.txt", b"three"))
    assert 412 == repository.commit(header(parentCommit=old), *operations).status


def test_many_commits_at_once(repository: HubRepository) -> None:
    """Without a parent, each finds its place. With one, exactly one of them does."""
    answers: list[int] = []

    def commit(number: int, *, parent: str | None) -> None:
        first = header() if parent is None else header(parentCommit=parent)
        answers.append(repository.commit(first, put_file(f"{parent is None}/{number}.txt", b"%d" % number)).status)

    for parent in (None, repository.head()):
        answers.clear()
        start = repository.head()
        threads = [threading.Thread(target=commit, args=(number,), kwargs={"parent": parent and start}) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [200] * 4 == answers if parent is None else [200, 412, 412, 412] == sorted(answers)
    assert 5 == len(repository.files())


def test_chunks_that_are_removed_before_the_commit(server: RunningServer, repository: HubRepository) -> None:
    """A collection with a short grace period may do it. The commit stores them once more."""
    with closing(sqlite3.connect(server.root / "index.sqlite", isolation_level=None, timeout=SECONDS)) as connection:
        connection.execute("CREATE TABLE removed (number INTEGER)")
        connection.execute(
            "CREATE TRIGGER removes AFTER INSERT ON chunks WHEN NOT EXISTS (SELECT 1 FROM removed) BEGIN"
            " DELETE FROM chunks WHERE digest = NEW.digest; INSERT INTO removed VALUES (1); END"
        )
        try:
            repository.committed(put_file("a.bin", octets(31, 300_000)))
            assert [(1,)] == connection.execute("SELECT number FROM removed").fetchall()
        finally:
            connection.execute("DROP TRIGGER removes")
            connection.execute("DROP TABLE removed")
    assert octets(31, 300_000) == repository.read("a.bin")


def test_branches(repository: HubRepository) -> None:
    """A commit on a branch leaves main alone."""
    first = repository.committed(put_file("a.txt", b"one"))
    assert 200 == repository.api("POST", "branch/dev").status
    assert 409 == repository.api("POST", "branch/dev", {}).status
    assert 409 == repository.api("POST", "branch/main", {}).status
    assert 200 == repository.api("POST", "branch/feature%2Fx", {"startingPoint": first}).status
    made = repository.committed(put_file("b.txt", b"two"), branch="dev")
    assert (first, made) == (repository.head(), repository.head("dev"))
    assert ["a.txt", "b.txt"] == repository.files("dev")
    refs = repository.api("GET", "refs").json["branches"]
    assert {"main": first, "dev": made, "feature/x": first} == {each["name"]: each["targetCommit"] for each in refs}
    assert 200 == repository.api("DELETE", "branch/feature%2Fx").status
    assert 404 == repository.api("DELETE", "branch/feature%2Fx").status
    assert 400 == repository.api("DELETE", "branch/main").status


def test_tags(repository: HubRepository) -> None:
    """A tag stays where it is, and no commit is made on it."""
    first = repository.committed(put_file("a.txt", b"one"))
    assert 200 == repository.api("POST", "tag/main", {"tag": "v1"}).status
    answer = repository.api("POST", "tag/main", {"tag": "v1"})
    assert (409, "label-exists") == (answer.status, answer.slug)
    repository.committed(put_file("a.txt", b"two"))
    assert (first, b"one") == (repository.head("v1"), repository.read("a.txt", "v1"))
    assert 400 == repository.commit(put_file("b.txt", b""), branch="v1").status
    assert 404 == repository.api("DELETE", "tag/v2").status
    assert 404 == repository.api("DELETE", "branch/v1").status
    assert 200 == repository.api("DELETE", "tag/v1").status
    answer = repository.api("GET", "revision/v1")
    assert (404, "RevisionNotFound") == (answer.status, answer.headers["X-Error-Code"])
    assert 400 == repository.api("POST", "tag/main", {}).status
    assert 404 == repository.api("POST", "tag/nothing", {"tag": "v3"}).status


def test_delete(repository: HubRepository) -> None:
    """All its versions go, also those with a tag."""
    repository.committed(put_file("a.txt", b"one"))
    repository.api("POST", "tag/main", {"tag": "v1"})
    repository.committed(put_file("a.txt", b"two"))
    assert 200 == repository.delete().status
    answer = repository.api("GET", "revision/main")
    assert (404, "RepoNotFound") == (answer.status, answer.headers["X-Error-Code"])
    assert 404 == repository.delete().status
    assert 200 == repository.create().status
    assert [] == repository.files()


def test_a_repository_that_a_pipeline_needs(repository: HubRepository) -> None:
    """It stays as it is."""
    server = repository.server
    record = server.ask("GET", f"{API}/files/find?name={quote(repository.name, safe='')}").json
    use = Use(record["id"], f"pipeline_{32 * '0'}", "a pipeline")
    changed(server, lambda _, transaction: transaction.add_uses(record["namespace"], [use]))
    made = repository.committed(put_file("a.txt", b"one"))
    answer = repository.delete()
    assert (409, "file-in-use") == (answer.status, answer.slug)
    assert made == repository.head()


def test_a_repository_that_is_absent(server: RunningServer) -> None:
    """Nothing is uploaded to it."""
    repository = HubRepository(server, "team/absent")
    for answer in (
        repository.commit(put_file("a.txt", b"")),
        repository.ask_batch({"objects": []}),
        repository.api("POST", "preupload/main", {"files": []}),
        repository.api("POST", "tag/main", {"tag": "v1"}),
        repository.api("POST", "branch/dev", {}),
        repository.api("PUT", "settings", {"private": True}),
    ):
        assert (404, "RepoNotFound") == (answer.status, answer.headers["X-Error-Code"])


def test_a_branch_that_is_absent(repository: HubRepository) -> None:
    """The client learns that it is the revision."""
    for answer in (repository.commit(put_file("a", b""), branch="no"), repository.api("POST", "preupload/no", {"files": []})):
        assert (404, "RevisionNotFound") == (answer.status, answer.headers["X-Error-Code"])


def test_a_single_file_becomes_a_tree(server: RunningServer) -> None:
    """A name that is a file is a repository of this file, to which others are added."""
    server.upload("weights.bin", LARGE)
    repository = HubRepository(server, "weights.bin")
    repository.committed(put_file("README.md", b"# Weights"))
    assert ["README.md", "weights.bin"] == repository.files()
    assert LARGE == repository.read("weights.bin")


def test_settings_and_moves(repository: HubRepository) -> None:
    """What is so anyway is accepted, and the rest is refused with a reason."""
    assert 200 == repository.api("PUT", "settings", {"private": True, "gated": False}).status
    for refused in ({"private": False}, {"visibility": "public"}, {"gated": "auto"}):
        assert 400 == repository.api("PUT", "settings", refused).status
    answer = repository.ask("POST", "/api/repos/move", {"fromRepo": repository.name, "toRepo": "team/else"})
    assert (400, True) == (answer.status, "do not move" in answer.headers["X-Error-Message"])


def test_validate_yaml(repository: HubRepository) -> None:
    """A README is valid."""
    answer = repository.ask("POST", "/api/validate-yaml", {"content": "---\nlicense: mit\n---\n", "repoType": "model"})
    assert (200, {"errors": [], "warnings": []}) == (answer.status, answer.json)
    assert 400 == repository.ask("POST", "/api/validate-yaml", {}).status


def test_pull_requests_are_refused(repository: HubRepository) -> None:
    """The client learns what to do."""
    answer = repository.commit(put_file("a", b""), query="?create_pr=1")
    assert (400, True) == (answer.status, "on a branch" in answer.headers["X-Error-Message"])


def test_xet_is_refused(repository: HubRepository) -> None:
    """A client that asks for it is told in the only place that it shows: the URL."""
    answer = repository.api("GET", "xet-write-token/main")
    assert (307, True) == (answer.status, "HF_HUB_DISABLE_XET=1" in answer.headers["Location"])
    answer = repository.ask("GET", lfs.XET_PATH)
    assert (400, True) == (answer.status, "HF_HUB_DISABLE_XET=1" in answer.json["detail"])
    answer = repository.ask_batch({"objects": [], "transfers": ["basic", "xet"]})
    assert ("basic", lfs.DISABLE_XET) == (answer.json["transfer"], answer.json["message"])


def test_other_namespaces(server: RunningServer, repository: HubRepository) -> None:
    """They see neither the repository nor its objects, and cannot use its owner."""
    repository.upload(LARGE)
    other = HubRepository(server, repository.name, token=OTHER_TOKEN)
    assert (404, "RepoNotFound") == ((answer := other.commit(put_file("a", b""))).status, answer.headers["X-Error-Code"])
    assert (403, "owner-taken") == ((answer := other.create()).status, answer.slug)
    own = HubRepository(server, "others/model", token=OTHER_TOKEN)
    assert own.create().status == 200
    assert "actions" in own.batch(LARGE)[0]
    assert 404 == own.ask("POST", lfs.VERIFY_PATH, {"oid": oid(LARGE), "size": len(LARGE)}).status
    assert 400 == own.commit(put_object("a", LARGE)).status


def test_a_server_that_is_killed_between_upload_and_commit(tmp_path: Path) -> None:
    """What arrived is still there for the next server, whole objects as well as parts."""
    small, large = octets(11, 2 << 20), octets(12, lfs.SINGLE_LIMIT + 99)
    port = lasting_port()
    with running_server(tmp_path / "root", check=False, port=port) as server:
        repository = HubRepository(server)
        assert repository.create().status == 200
        repository.upload(small)
        (described,) = repository.batch(large)
        upload = described["actions"]["upload"]
        size = int(upload["header"]["chunk_size"])
        first = send("PUT", upload["header"]["1"], large[:size])
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with running_server(tmp_path / "root", port=port) as server:
        repository = HubRepository(server)
        assert "actions" not in repository.batch(small)[0]
        second = send("PUT", upload["header"]["2"], large[size:])
        parts = [{"partNumber": number, "etag": part.headers["ETag"]} for number, part in ((1, first), (2, second))]
        assert 200 == repository.complete(described, parts).status
        repository.committed(put_object("small.bin", small), put_object("large.bin", large))
        assert (small, large) == (repository.read("small.bin"), repository.read("large.bin"))
