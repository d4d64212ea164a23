"""A server with an upstream, as clients of the Hub see it: real server processes, and a Hub that knows nothing of filestore."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from filestore.backends import open_backend
from filestore.core.names import UPSTREAM_NAMESPACE
from filestore.repository.local import LocalRepository
from filestore.transfer.push import push
from tests.support.hub_upstream import Behaviour, HubUpstream, blob_id, running_hub
from tests.support.server import OTHER_TOKEN, TOKEN, Reply, RunningServer, eventually, running_server

MIB = 1 << 20
READER = "hf_" + "a" * 34
STRANGER = "hf_" + "b" * 34
"""A token that the upstream knows, and that opens nothing here."""
BIG = random.Random(20).randbytes(4 * MIB + 17)
PATIENT: dict[str, Any] = {"upstream_patience_seconds": 60}
"""On a busy machine, the Hub may need longer for an answer than a server waits if it knows the last one."""
FILES = {"config.json": b'{"a": 1}', "sub/model.safetensors": BIG, "sub/deep/empty.txt": b""}


@pytest.fixture
def hub() -> Iterator[HubUpstream]:
    """A Hub."""
    with running_hub() as running:
        yield running


def _read(server: RunningServer, path: str, *, name: str = "team/m", revision: str = "main", token: str | None = None) -> bytes:
    headers = {} if token is None else {"X-Upstream-Authorization": f"Bearer {token}"}
    answer = server.ask("GET", f"/{name}/resolve/{revision}/{path}", headers=headers)
    assert answer.status == 200, answer.body
    return answer.body


def test_files_come_once(hub: HubUpstream, tmp_path: Path) -> None:
    """All files of a repository are served, with the digests that the upstream states, and each is fetched once."""
    commit = hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url, workers=2) as server:
        for _ in range(2):
            assert {path: _read(server, path) for path in FILES} == FILES
        head = server.ask("HEAD", "/team/m/resolve/main/config.json")
        assert (head.headers["X-Repo-Commit"], head.headers["ETag"]) == (commit, f'"{blob_id(FILES["config.json"])}"')
        part = server.ask("GET", f"/team/m/resolve/{commit}/sub/model.safetensors", headers={"Range": "bytes=100-299"})
        assert (part.status, part.body) == (206, BIG[100:300])
    assert hub.sent == {"config.json": len(FILES["config.json"]), "sub/model.safetensors": len(BIG)}
    assert hub.count("/revision/") == 1


def test_long_lists(hub: HubUpstream, tmp_path: Path) -> None:
    """A description and a list of paths that are too long for memory while a client reads them are whole."""
    files = {f"{number:04}-{'x' * 200}": b"" for number in range(2000)}
    hub.commit("team/m", files)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        about = server.ask("GET", "/api/models/team/m/revision/main?blobs=true")
        assert [sibling["rfilename"] for sibling in about.json["siblings"]] == list(files)
        asked = "&".join(f"paths={path}" for path in files).encode()
        found = server.ask("POST", "/api/models/team/m/paths-info/main", asked, headers=form)
        assert [entry["path"] for entry in found.json] == list(files)
        assert about.headers["X-Repo-Commit"] == found.headers["X-Repo-Commit"]
        many = b"&".join([b"paths=a"] * 10_010)
        assert 413 == server.ask("POST", "/api/models/team/m/paths-info/main", many, headers=form).status


def test_what_a_repository_has(hub: HubUpstream, tmp_path: Path) -> None:
    """The description, the list of files in pages and single paths come from one question to the upstream."""
    commit = hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        about = server.ask("GET", "/api/models/team/m/revision/main?blobs=true").json
        assert (about["sha"], about["private"], about["gated"]) == (commit, False, False)
        assert [sibling["rfilename"] for sibling in about["siblings"]] == sorted(FILES)
        first = server.ask("GET", "/api/models/team/m/tree/main?recursive=true&limit=3")
        assert [entry["path"] for entry in first.json] == ["config.json", "sub", "sub/deep"]
        following = first.headers["Link"].split(">")[0].removeprefix(f"<{server.url}")
        assert [entry["path"] for entry in server.ask("GET", following).json] == ["sub/deep/empty.txt", "sub/model.safetensors"]
        top = server.ask("GET", "/api/models/team/m/tree/main").json
        assert [(entry["type"], entry["path"]) for entry in top] == [("file", "config.json"), ("directory", "sub")]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        found = server.ask("POST", "/api/models/team/m/paths-info/main", b"paths=sub&paths=none&paths=config.json", headers=form)
        assert [entry["path"] for entry in found.json] == ["sub", "config.json"]
        assert about["sha"] == commit
    assert len(hub.asked) == 1


def test_branches_and_tags(hub: HubUpstream, tmp_path: Path) -> None:
    """They are those that the upstream lists, also while it is away. `main` is the commit that is served as `main`."""
    first = hub.commit("team/m", {"a": b"first"})
    newest = hub.commit("team/m", FILES)
    hub.repositories["team/m"].labels["v1"] = first
    hub.commit("team/plain", FILES)

    def refs(server: RunningServer, name: str = "team/m") -> list[tuple[str, str]]:
        found = server.ask("GET", f"/api/models/{name}/refs").json
        assert [] == found["converts"]
        return [(each["ref"], each["targetCommit"]) for each in (*found["branches"], *found["tags"])]

    expected = [("refs/heads/main", newest), ("refs/tags/v1", first)]
    options: dict[str, Any] = {**PATIENT, "upstream_url": hub.url, "upstream_retry_seconds": 0}
    with running_server(tmp_path / "r", **options) as server:
        assert [expected] * 2 == [refs(server) for _ in range(2)]
        assert 1 == hub.count("/refs")
        assert b"first" == _read(server, "a", revision="v1")
        hub.behaviours["/api/models/team/plain/refs"] = Behaviour(html=True)
        assert ["refs/heads/main"] == [ref for ref, _ in refs(server, "team/plain")]
    hub.is_away = True
    with running_server(tmp_path / "r", check=False, upstream_max_age_seconds=0, **options) as server:
        assert expected == refs(server)


def test_other_kinds(hub: HubUpstream, tmp_path: Path) -> None:
    """A dataset and a model of one name are two repositories of the upstream."""
    hub.commit("team/m", {"a": b"model"})
    hub.commit("datasets/team/m", {"a": b"dataset"})
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        assert _read(server, "a") == b"model"
        assert _read(server, "a", name="datasets/team/m") == b"dataset"


def test_what_is_absent(hub: HubUpstream, tmp_path: Path) -> None:
    """Absent files, revisions and repositories are told as the Hub tells them."""
    commit = hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        told = [
            server.ask("GET", f"/{place}").headers
            for place in ("team/m/resolve/main/none", "team/m/resolve/none/config.json", "team/none/resolve/main/config.json")
        ]
    assert [headers["X-Error-Code"] for headers in told] == ["EntryNotFound", "RevisionNotFound", "RepoNotFound"]
    assert told[0]["X-Repo-Commit"] == commit


class Told(NamedTuple):
    """What a caller is answered who asks for a repository with a token of the upstream, or without one."""

    name: str
    token: str | None
    status: int
    code: str
    says: str


@pytest.mark.parametrize(
    "told",
    [
        Told("team/private", None, 401, "RepoNotFound", "X-Upstream-Authorization"),
        Told("team/absent", None, 401, "RepoNotFound", "X-Upstream-Authorization"),
        Told("team/private", "hf_unknown", 401, "RepoNotFound", "does not accept the token"),
        Told("team/private", STRANGER, 404, "RepoNotFound", "team/private"),
        Told("team/absent", STRANGER, 404, "RepoNotFound", "team/absent"),
        Told("team/gated", None, 403, "GatedRepo", "gated at the upstream"),
        Told("team/gated", STRANGER, 403, "GatedRepo", "gated at the upstream"),
        Told("team/gated", "hf_unknown", 401, "RepoNotFound", "does not accept the token"),
    ],
)
def test_who_is_told_what(hub: HubUpstream, tmp_path: Path, told: Told) -> None:
    """Without a right token, the status and the code are those of the Hub, before and after the repository is here.

    A private repository is told as an absent one.
    """
    hub.commit("team/private", FILES, private=True, readers=frozenset({READER}))
    hub.commit("team/gated", FILES, gated=True, readers=frozenset({READER}))
    hub.commit("team/other", FILES, private=True, readers=frozenset({STRANGER}))
    sent = {} if told.token is None else {"X-Upstream-Authorization": f"Bearer {told.token}"}
    with running_server(tmp_path / "r", upstream_url=hub.url, upstream_max_age_seconds=0, **PATIENT) as server:
        for is_here in (False, True):
            if is_here and told.name != "team/absent":
                assert FILES["config.json"] == _read(server, "config.json", name=told.name, token=READER)
            answer = server.ask("GET", f"/{told.name}/resolve/main/config.json", headers=sent)
            assert (told.status, told.code) == (answer.status, answer.headers["X-Error-Code"]), answer.body
            assert told.says in answer.headers["X-Error-Message"]


def test_all_namespaces_share_what_was_fetched(hub: HubUpstream, tmp_path: Path) -> None:
    """Tokens of other namespaces read the same bytes, which no token finds under a name."""
    hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        for token in (TOKEN, OTHER_TOKEN):
            assert server.ask("GET", "/team/m/resolve/main/sub/model.safetensors", token=token).body == BIG
            assert server.ask("GET", "/v3/pipeline_files", token=token).json == []
        assert server.ask("GET", "/team/m/resolve/main/config.json", token=None).status == 401
    assert hub.sent["sub/model.safetensors"] == len(BIG)


def test_what_is_here_comes_first(hub: HubUpstream, tmp_path: Path) -> None:
    """A name that is here is never looked for at the upstream, nor are the files that it does not have."""
    hub.commit("mine.bin", {"mine.bin": b"theirs", "other": b"theirs"})
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        server.upload("mine.bin", b"ours")
        assert _read(server, "mine.bin", name="mine.bin") == b"ours"
        assert server.ask("GET", "/mine.bin/resolve/main/other").headers["X-Error-Code"] == "EntryNotFound"
    assert hub.asked == []


def test_an_upload_hides_no_repository_of_the_upstream(hub: HubUpstream, tmp_path: Path) -> None:
    """No repository is created under a name of the upstream. Other names are free, also while the upstream is away."""
    hub.commit("team/m", FILES)

    def create(server: RunningServer, name: str) -> Reply:
        document = json.dumps({"name": name, "organization": "team"}).encode()
        return server.ask("POST", "/api/repos/create", document, headers={"Content-Type": "application/json"})

    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        refused = create(server, "m")
        assert (400, True) == (refused.status, "the upstream of this server has 'team/m'" in refused.json["detail"])
        assert FILES["config.json"] == _read(server, "config.json")
        assert [200, 409] == [create(server, "other").status for _ in range(2)]
    with running_server(tmp_path / "r2", upstream_url="http://127.0.0.1:1", upstream_retry_seconds=0) as server:
        assert 200 == create(server, "m").status


def test_it_is_served_while_it_arrives(hub: HubUpstream, tmp_path: Path) -> None:
    """Clients of both processes get the bytes that are there, before the upstream has sent the rest."""
    hub.commit("team/m", FILES)
    hub.behaviours["sub/model.safetensors"] = Behaviour(hang_at=3 * MIB)
    with running_server(tmp_path / "r", upstream_url=hub.url, workers=2) as server:
        path = "/team/m/resolve/main/sub/model.safetensors"
        connections = [server.begin("GET", path) for _ in range(4)]
        answers = [HTTPResponse(connection) for connection in connections]
        for answer in answers:
            answer.begin()
            assert answer.read(2 * MIB) == BIG[: 2 * MIB]
        hub.go_on.set()
        for answer, connection in zip(answers, connections, strict=True):
            assert answer.read() == BIG[2 * MIB :]
            connection.close()
    assert hub.sent["sub/model.safetensors"] == len(BIG)


def test_a_range_is_served_as_soon_as_it_is_there(hub: HubUpstream, tmp_path: Path) -> None:
    """A client that wants the header of a large file does not wait for the rest. One that wants the end does."""
    hub.commit("team/m", FILES)
    hub.behaviours["sub/model.safetensors"] = Behaviour(hang_at=3 * MIB)
    path = "/team/m/resolve/main/sub/model.safetensors"
    with running_server(tmp_path / "r", upstream_url=hub.url, workers=2) as server:
        for start, stop in ((0, 8), (8, 1000), (MIB, 2 * MIB)):
            answer = server.ask("GET", path, headers={"Range": f"bytes={start}-{stop - 1}"})
            assert (206, BIG[start:stop]) == (answer.status, answer.body)
        # It begins, because a part of it is there, and ends when the rest is.
        with server.begin("GET", path, f"Range: bytes={2 * MIB - 10}-") as connection:
            later = HTTPResponse(connection)
            later.begin()
            assert (206, BIG[2 * MIB - 10 : 2 * MIB]) == (later.status, later.read(10))
            hub.go_on.set()
            assert BIG[2 * MIB :] == later.read()
    assert hub.sent["sub/model.safetensors"] == len(BIG)


def test_many_clients_at_once(hub: HubUpstream, tmp_path: Path) -> None:
    """Eight clients ask for all files at the same time, from several processes, and the upstream sends each once.

    No lock stays.
    """
    hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url, workers=3) as server, ThreadPoolExecutor(8) as pool:
        for read in [pool.submit(_read, server, path) for path in FILES for _ in range(8)]:
            assert read.result() in FILES.values()
    assert [] == list((tmp_path / "r" / "upstream" / "locks").iterdir())
    assert hub.sent == {"config.json": len(FILES["config.json"]), "sub/model.safetensors": len(BIG)}


def test_main_is_asked_for_again(hub: HubUpstream, tmp_path: Path) -> None:
    """After max_age_seconds, `main` means the newest commit of the upstream. Only what has changed is fetched."""
    hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url, upstream_max_age_seconds=0, **PATIENT) as server:
        assert _read(server, "config.json") == FILES["config.json"]
        assert _read(server, "sub/model.safetensors") == BIG
        hub.commit("team/m", {**FILES, "config.json": b"new"})
        assert _read(server, "config.json") == b"new"
        assert _read(server, "sub/model.safetensors") == BIG
    assert hub.sent["sub/model.safetensors"] == len(BIG)


def test_it_is_not_asked_again_too_early(hub: HubUpstream, tmp_path: Path) -> None:
    """Until max_age_seconds have passed, also after a restart, `main` means what it meant."""
    hub.commit("team/m", FILES)
    for _ in range(2):
        with running_server(tmp_path / "r", upstream_url=hub.url) as server:
            assert _read(server, "config.json") == FILES["config.json"]
            hub.commit("team/m", {"config.json": b"new"})
    assert hub.count("/revision/") == 1


def test_the_upstream_is_away(hub: HubUpstream, tmp_path: Path) -> None:
    """What is kept is served while the upstream does not answer, and the rest is an error that clients try again."""
    hub.commit("team/m", FILES)
    options = {"upstream_max_age_seconds": 0, "upstream_retry_seconds": 0}
    with running_server(tmp_path / "r", check=False, upstream_url=hub.url, **options) as server:
        assert _read(server, "sub/model.safetensors") == BIG
        hub.is_away = True
        assert _read(server, "sub/model.safetensors") == BIG
        assert server.ask("GET", "/team/m/resolve/main/config.json").slug == "upstream-failed"
        absent = server.ask("GET", "/team/other/resolve/main/config.json")
        assert (absent.status, absent.slug) == (502, "upstream-failed")


def test_offline(hub: HubUpstream, tmp_path: Path) -> None:
    """An offline server serves what it has, and asks for nothing."""
    commit = hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        assert _read(server, "sub/model.safetensors") == BIG
        eventually(lambda: not list((tmp_path / "r" / "upstream" / "incoming").iterdir()))
    asked = len(hub.asked)
    with running_server(tmp_path / "r", upstream_url=hub.url, upstream_is_offline=1, upstream_max_age_seconds=0) as server:
        assert _read(server, "sub/model.safetensors", revision=commit) == BIG
        assert server.ask("GET", "/team/m/resolve/main/config.json").headers["X-Error-Code"] == "EntryNotFound"
        assert server.ask("GET", "/team/other/resolve/main/config.json").headers["X-Error-Code"] == "RepoNotFound"
    assert len(hub.asked) == asked


def test_private_and_gated(hub: HubUpstream, tmp_path: Path) -> None:
    """Private and gated repositories are served to callers whose token the upstream accepts, also what is here already."""
    hub.commit("team/p", FILES, private=True, readers=frozenset({READER}))
    hub.commit("team/g", {"a": b"gated"}, gated=True, readers=frozenset({READER}))
    hub.commit("team/other", {}, private=True, readers=frozenset({STRANGER}))
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        for name, path in (("team/p", "config.json"), ("team/g", "a")):
            place = f"/{name}/resolve/main/{path}"
            before = [server.ask("GET", place).headers["X-Error-Code"]]
            assert _read(server, path, name=name, token=READER)
            refused = {"X-Upstream-Authorization": f"Bearer {STRANGER}"}
            after = [server.ask("GET", place, headers=sent).headers["X-Error-Code"] for sent in ({}, refused)]
            code = "RepoNotFound" if name == "team/p" else "GatedRepo"
            assert before + after == [code] * 3
    assert {asked.authorization for asked in hub.asked} <= {None, f"Bearer {READER}", f"Bearer {STRANGER}"}


def test_a_private_repository_while_the_upstream_is_away(hub: HubUpstream, tmp_path: Path) -> None:
    """After a restart, and offline, it is served to those whom the upstream accepted, until it refuses them, and to no other."""
    hub.commit("team/p", FILES, private=True, readers=frozenset({READER}))
    hub.commit("team/other", {}, private=True, readers=frozenset({STRANGER}))
    root, path = tmp_path / "r", "/team/p/resolve/main/sub/model.safetensors"
    options: dict[str, Any] = {**PATIENT, "upstream_url": hub.url, "upstream_max_age_seconds": 0, "upstream_retry_seconds": 0}

    def told(server: RunningServer) -> list[int]:
        sent = ({"X-Upstream-Authorization": f"Bearer {token}"} for token in (READER, STRANGER))
        return [server.ask("GET", path, headers=headers).status for headers in (*sent, {})]

    with running_server(root, **options) as server:
        assert [200, 404, 401] == told(server)
        eventually(lambda: not list((root / "upstream" / "incoming").iterdir()))
    kept = [file.read_bytes() for file in (root / "upstream").rglob("*") if file.is_file()]
    assert not [content for content in kept if READER.encode() in content]
    hub.is_away = True
    with running_server(root, check=False, **options) as server:
        assert [200, 502, 502] == told(server)
    with running_server(root, upstream_url=hub.url, upstream_is_offline=1) as server:
        assert [200, 404, 404] == told(server)
    hub.is_away = False
    hub.repositories["team/p"].readers = frozenset({"hf_somebody"})
    with running_server(root, check=False, **options) as server:
        assert [401, 404, 401] == told(server)
        hub.is_away = True
        assert [502, 502, 502] == told(server)


def test_no_token_of_ours_leaves(hub: HubUpstream, tmp_path: Path) -> None:
    """The token of this server is not sent to the upstream, and that of the upstream to no server that it redirects to."""
    hub.commit("team/p", FILES, private=True, readers=frozenset({READER}))
    with running_hub() as storage, running_server(tmp_path / "r", upstream_url=hub.url) as server:
        storage.commit("x/y", FILES)
        hub.behaviours["sub/model.safetensors"] = Behaviour(redirect=f"{storage.url}/x/y/resolve/main/sub/model.safetensors")
        assert _read(server, "sub/model.safetensors", name="team/p", token=READER) == BIG
        assert [asked.authorization for asked in storage.asked] == [None]
    assert all(TOKEN not in str(asked) for asked in hub.asked)


def test_both_tokens_in_one_text(hub: HubUpstream, tmp_path: Path) -> None:
    """A client that sends one text has both tokens in it. Only the second one goes to the upstream, and each must be right."""
    hub.commit("team/p", FILES, private=True, readers=frozenset({READER}))
    with running_server(tmp_path / "r", upstream_url=hub.url) as server:
        path = "/team/p/resolve/main/config.json"
        assert server.ask("GET", path, token=f"{TOKEN}~{READER}").body == FILES["config.json"]
        codes = [
            server.ask("GET", path, token=token).headers["X-Error-Code"] for token in (TOKEN, f"{TOKEN}~hf_other", f"{TOKEN}~")
        ]
        assert codes == ["RepoNotFound", "RepoNotFound", None]
        assert server.ask("GET", path, token=f"wrong~{READER}").status == 401
        assert server.ask("GET", path, token=READER).status == 401
        assert server.ask("GET", "/v3/pipeline_files", token=f"{TOKEN}~{READER}").json == []
    assert {asked.authorization for asked in hub.asked} == {None, f"Bearer {READER}", "Bearer hf_other"}


def test_the_limit_in_bytes(hub: HubUpstream, tmp_path: Path) -> None:
    """Beyond the limit, what was not used for longest goes first. It can be fetched again."""
    files = {f"file-{number}": random.Random(number).randbytes(MIB) for number in range(4)}
    hub.commit("team/m", files)
    with running_server(tmp_path / "r", upstream_url=hub.url, upstream_size_limit=3 * MIB) as server:
        for path in ("file-0", "file-1", "file-2", "file-0", "file-3", "file-0", "file-1"):
            assert _read(server, path) == files[path]
            # A client has the last byte a moment before the file is stored.
            eventually(lambda: not list((tmp_path / "r" / "upstream" / "incoming").iterdir()))
        hub.commit("team/m", {"large": b"x" * (3 * MIB + 1)})
        too_large = server.ask("GET", f"/team/m/resolve/{hub.repositories['team/m'].revisions[-1].commit}/large")
        assert (too_large.status, too_large.slug) == (413, "limit-exceeded")
    sent = {path: size // MIB for path, size in hub.sent.items()}
    assert sent == {"file-0": 1, "file-1": 2, "file-2": 1, "file-3": 1}
    assert len(list((tmp_path / "r" / "upstream" / "contents").iterdir())) == 3


def test_damage_is_fetched_again(hub: HubUpstream, tmp_path: Path) -> None:
    """A content whose stored bytes are damaged is never sent, and the upstream gives it once more."""
    hub.commit("team/m", FILES)
    with running_server(tmp_path / "r", check=False, upstream_url=hub.url) as server:
        assert _read(server, "sub/model.safetensors") == BIG
        eventually(lambda: not list((tmp_path / "r" / "upstream" / "incoming").iterdir()))
        frames = [path for path in (tmp_path / "r" / "chunks").rglob("*") if path.is_file()]
        for path in frames:
            path.write_bytes(bytes(path.stat().st_size))
        damaged = server.ask("GET", "/team/m/resolve/main/sub/model.safetensors")
        assert (damaged.status, damaged.slug) == (500, "damaged-chunk")
        assert _read(server, "sub/model.safetensors") == BIG
    assert hub.sent["sub/model.safetensors"] == 2 * len(BIG)


def test_what_was_forgotten_is_found_again(hub: HubUpstream, tmp_path: Path) -> None:
    """Without the folder of the upstream, as after the restore of a backup, contents that are stored are not fetched again.

    They are verified first: the name of a stored file proves nothing.
    """
    hub.commit("team/m", FILES)
    root = tmp_path / "r"
    with running_server(root, upstream_url=hub.url) as server:
        assert {path: _read(server, path) for path in FILES} == FILES
        eventually(lambda: not list((root / "upstream" / "incoming").iterdir()))
    shutil.rmtree(root / "upstream")
    with running_server(root, upstream_url=hub.url) as server:
        assert {path: _read(server, path) for path in FILES} == FILES
        eventually(lambda: len(list(root.glob("upstream/contents/[!.]*"))) == len(FILES))
    assert hub.sent == {path: len(content) for path, content in FILES.items() if content}


def test_a_wrong_content_under_the_right_name(hub: HubUpstream, tmp_path: Path) -> None:
    """A stored file that has the name of a content, and other bytes, is not served as that content."""
    hub.commit("team/m", {"a": b"right"})
    root = tmp_path / "r"
    with running_server(root, upstream_url=hub.url) as server:
        assert _read(server, "a") == b"right"
        eventually(lambda: bool(list(root.glob("upstream/contents/[!.]*"))))
        (content,) = root.glob("upstream/contents/[!.]*")
    shutil.rmtree(root / "upstream")

    async def planted() -> None:
        store, index = await open_backend(root)
        repository = LocalRepository(store, index, location=str(root), namespace=UPSTREAM_NAMESPACE)
        (tmp_path / "wrong").write_bytes(b"wrong")
        await push(repository, tmp_path / "wrong", name=f"upstream-{content.name}")
        await index.close()
        await store.close()

    asyncio.run(planted())
    with running_server(root, upstream_url=hub.url) as server:
        assert _read(server, "a") == b"right"
    assert hub.sent == {"a": 2 * len(b"right")}
