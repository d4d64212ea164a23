"""What clients of the Hub write, and our own clients then read."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.hub.conftest import MODEL
from tests.support.commands import REPOSITORY, Home
from tests.support.hub_clients import Hub, HubClient, contents, steps
from tests.support.runtimes import TOKEN, running_runtime, with_sdk

pytestmark = pytest.mark.slow
BY_XET = pytest.mark.parametrize("client", ["newest"], indirect=True)


def add(path: str, content: bytes) -> dict[str, object]:
    """An operation of a commit, as `calls.py` takes it."""
    return {"CommitOperationAdd": {"path_in_repo": path, "path_or_fileobj": {"base64": base64.b64encode(content).decode()}}}


def fetched(hub: Hub, reference: str, target: Path) -> dict[str, bytes]:
    """The files of a repository as our own command fetches them."""
    hub.filestore("fetch", reference, "-o", target)
    return contents(target)


def test_a_command_uploads_a_folder(hub: Hub, client: HubClient, name: str, model: Path, tmp_path: Path) -> None:
    """Our own command and another user of the client get the same files. A second run sends no content."""
    client.hf("upload", name, model)
    sent = Counter(steps(hub.relay.asked))
    assert (1, 1) == (sent["POST create"], sent["POST commit"])
    hub.relay.asked.clear()
    client.hf("upload", name, model)
    again = Counter(steps(hub.relay.asked))
    assert not [step for step in again if step.startswith("PUT ")]
    assert contents(model) == fetched(hub, name, tmp_path / "ours")
    client.hf("download", name, "--local-dir", tmp_path / "theirs")
    assert contents(model) == contents(tmp_path / "theirs")


def test_a_changed_folder_is_uploaded_again(hub: Hub, client: HubClient, name: str, model: Path, tmp_path: Path) -> None:
    """Only changed files are sent, and files that match `--delete` and are not in the folder any more are removed."""
    client.hf("upload", name, model)
    changed = bytearray((model / "model.safetensors").read_bytes())
    changed[-len(name) :] = name.encode()  # which no other test has stored
    (model / "model.safetensors").write_bytes(changed)
    (model / "data.bin").unlink()
    (model / "more.txt").write_text("more")
    hub.relay.asked.clear()
    client.hf("upload", name, model, "--delete", "*.bin", "--commit-message", "the second one")
    received = sum(one.body_size for one in hub.relay.asked if one.method == "PUT")
    assert len(changed) == received
    assert contents(model) == fetched(hub, name, tmp_path / "ours")
    commits = client.call("list_repo_commits", repo_id=name)
    assert "the second one" == commits[0]["title"]
    assert changed != fetched(hub, f"{name}@~1", tmp_path / "before")["model.safetensors"]


def test_files_are_added_copied_and_removed(hub: Hub, client: HubClient, name: str, tmp_path: Path) -> None:
    """Every operation of a commit, each alone and several in one commit, by the methods of the client."""
    large = bytes(range(256)) * 4000
    encoded = base64.b64encode(large).decode()
    results = client.calls(
        ("create_repo", {"repo_id": name}),
        ("create_repo", {"repo_id": name, "exist_ok": True}),
        ("upload_file", {"repo_id": name, "path_in_repo": "a/large.bin", "path_or_fileobj": {"base64": encoded}}),
        (
            "create_commit",
            {
                "repo_id": name,
                "commit_message": "several",
                "commit_description": "with a description",
                "operations": [
                    add("b.txt", b"b"),
                    add("c/d.txt", b"d"),
                    {"CommitOperationCopy": {"src_path_in_repo": "a/large.bin", "path_in_repo": "copied.bin"}},
                ],
            },
        ),
        ("delete_file", {"repo_id": name, "path_in_repo": "b.txt"}),
        ("delete_folder", {"repo_id": name, "path_in_repo": "a"}),
        ("list_repo_commits", {"repo_id": name}),
        ("list_repo_files", {"repo_id": name}),
    )
    *_, commits, files = results
    assert ["c/d.txt", "copied.bin"] == [path for path in sorted(files) if path != ".gitattributes"]
    assert "several" in [commit["title"] for commit in commits]
    found = fetched(hub, name, tmp_path / "ours")
    assert (b"d", large) == (found["c/d.txt"], found["copied.bin"])


def test_tags_and_branches(hub: Hub, client: HubClient, stored: str, model: Path, tmp_path: Path) -> None:
    """They name commits for the client and for our own command, are listed, and can be removed."""
    before = contents(model)
    _, _, _, refs, _, again = client.calls(
        ("create_tag", {"repo_id": stored, "tag": "v1", "tag_message": "the first"}),
        ("create_branch", {"repo_id": stored, "branch": "dev"}),
        (
            "upload_file",
            {
                "repo_id": stored,
                "path_in_repo": "new.txt",
                "path_or_fileobj": {"base64": base64.b64encode(b"new").decode()},
                "revision": "dev",
            },
        ),
        ("list_repo_refs", {"repo_id": stored}),
        ("create_tag", {"repo_id": stored, "tag": "v1", "exist_ok": True}),
        ("create_tag", {"repo_id": stored, "tag": "v1"}),
    )
    assert "HfHubHTTPError" in again.classes
    assert ({"main", "dev"}, ["v1"]) == ({one["name"] for one in refs["branches"]}, [one["name"] for one in refs["tags"]])
    assert before == fetched(hub, stored, tmp_path / "main")
    assert before == fetched(hub, f"{stored}@v1", tmp_path / "tagged")
    assert before | {"new.txt": b"new"} == fetched(hub, f"{stored}@dev", tmp_path / "dev")
    _, _, refs = client.calls(
        ("delete_tag", {"repo_id": stored, "tag": "v1"}),
        ("delete_branch", {"repo_id": stored, "branch": "dev"}),
        ("list_repo_refs", {"repo_id": stored}),
    )
    assert (["main"], []) == ([one["name"] for one in refs["branches"]], refs["tags"])


def test_a_commit_against_an_old_parent(client: HubClient, stored: str) -> None:
    """It is refused when the branch has moved on, and nothing of it is stored."""
    old = client.call("repo_info", repo_id=stored)["sha"]
    commit = {"repo_id": stored, "commit_message": "x", "parent_commit": old}
    _, refused = client.calls(
        ("create_commit", {**commit, "operations": [add("first.txt", b"1")]}),
        ("create_commit", {**commit, "operations": [add("second.txt", b"2")]}),
    )
    assert "HfHubHTTPError" in refused.classes
    files = client.call("list_repo_files", repo_id=stored)
    assert ("first.txt" in files, "second.txt" in files) == (True, False)


def test_a_repository_is_created_once(client: HubClient, name: str) -> None:
    """A second creation fails, unless the client allows it, and a removed repository can be created again."""
    _, again = client.calls(("create_repo", {"repo_id": name}), ("create_repo", {"repo_id": name}))
    assert "HfHubHTTPError" in again.classes
    url, _, there, _ = client.calls(
        ("create_repo", {"repo_id": name, "exist_ok": True}),
        ("delete_repo", {"repo_id": name}),
        ("repo_exists", {"repo_id": name}),
        ("create_repo", {"repo_id": name}),
    )
    assert url.endswith(f"/{name}")
    assert there is False


def test_pull_requests_are_refused(client: HubClient, stored: str) -> None:
    """A sentence says so."""
    commit = {"repo_id": stored, "commit_message": "x", "operations": [add("x", b"x")], "create_pr": True}
    failure = client.failure("create_commit", **commit)
    assert "pull request" in failure.message.lower()


def test_the_owner_of_another_namespace(hub: Hub, client: HubClient, stored: str) -> None:
    """A token of another namespace neither sees nor writes a repository of this owner."""
    made = hub.home.run("token", "new", "--namespace", "other", "--root", hub.server.root)
    assert 0 == made.returncode, made.stderr
    token = made.stdout.split()[-1]
    (hidden,) = client.calls(("repo_exists", {"repo_id": stored}), environ={"HF_TOKEN": token})
    assert hidden is False
    (refused,) = client.calls(("create_repo", {"repo_id": "team/x"}), environ={"HF_TOKEN": token})
    assert "HfHubHTTPError" in refused.classes


def test_commands_for_repositories(hub: Hub, client: HubClient, stored: str, model: Path, tmp_path: Path) -> None:
    """`hf auth` and the commands for repositories, tags, branches and single files."""
    repos = "repos" if client.version in {"1.19", "newest"} else "repo"
    assert "default" in client.hf("auth", "whoami")
    client.hf("auth", "login", "--token", hub.server.token)
    client.hf(repos, "create", f"{stored}.new")
    client.hf(repos, "tag", "create", stored, "v1")
    assert "v1" in client.hf(repos, "tag", "list", stored)
    if repos == "repos":
        client.hf("repos", "branch", "create", stored, "dev")
        client.hf("repos", "delete-files", stored, "data.bin")
        assert "data.bin" not in client.hf("models", "ls", stored)
        assert stored in client.hf("models", "ls", "--author", "team", "--format", "json")
        client.hf("cp", f"hf://{stored}/config.json", tmp_path / "config.json")
        assert (model / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    else:
        client.hf("repo-files", "delete", stored, "data.bin")
    assert contents(model) == fetched(hub, f"{stored}@v1", tmp_path / "tagged")
    assert {*contents(model)} - {"data.bin"} == {*fetched(hub, stored, tmp_path / "main")}


@pytest.mark.parametrize("client", ["0.36", "1.0", "1.19"], indirect=True)
def test_a_large_folder_is_uploaded(hub: Hub, client: HubClient, name: str, model: Path, tmp_path: Path) -> None:
    """`upload_large_folder`, which is gone in 2.0, sends the same files in several commits."""
    client.call("upload_large_folder", repo_id=name, folder_path=str(model), repo_type="model", print_report=False)
    assert contents(model) == fetched(hub, name, tmp_path / "ours")


@BY_XET
def test_an_upload_by_xet_is_explained(client: HubClient, name: str, model: Path) -> None:
    """The client shows only the status and the URL of the last answer, so that URL names the variable."""
    done = client.run("upload", name, model, environ={"HF_HUB_DISABLE_XET": "0"})
    assert 0 != done.returncode
    assert "HF_HUB_DISABLE_XET=1" in done.stderr


@pytest.mark.parametrize("client", ["0.36", "newest"], indirect=True)
def test_the_real_model_is_uploaded(hub: Hub, client: HubClient, name: str, tmp_path: Path) -> None:
    """90 MB of weights arrive."""
    client.hf("upload", name, MODEL)
    assert contents(MODEL) == fetched(hub, name, tmp_path / "ours")


@pytest.mark.parametrize("client", ["1.19", "newest"], indirect=True)
def test_an_uploaded_folder_is_a_directory_of_a_pipeline(client: HubClient, user: Home, tmp_path: Path) -> None:
    """What a command of the Hub uploads to a runtime, the Pipeline SDK takes as a `Directory`."""
    with running_runtime(user, tmp_path / "root", complains=None) as runtime:
        hf = {"HF_ENDPOINT": runtime.server.url, "HF_TOKEN": TOKEN}
        client.hf("upload", "team/for-a-pipeline", MODEL, environ=hf)
        ours = {"FILESTORE_URL": runtime.server.url, "FILESTORE_TOKEN": TOKEN}
        stored = user.result("info", "team/for-a-pipeline", environ=ours)
        environ = {"PIPELINE_API_URL": runtime.server.url, "PIPELINE_API_TOKEN": TOKEN}
        program = REPOSITORY / "tests/support/model_folder.py"
        used, read = json.loads(with_sdk(user, program, stored["id"], environ=environ).splitlines()[-1])
    assert [stored["id"], ["now", "_name_or_path", "pooling_mode_cls_token"]] == [used, read]
