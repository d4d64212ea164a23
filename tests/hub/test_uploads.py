"""What clients of the Hub write, and our own clients then read."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.hub.conftest import MODEL, by
from tests.support.commands import REPOSITORY, Home
from tests.support.hub_clients import Hub, HubClient, contents, steps
from tests.support.runtimes import TOKEN, running_runtime, with_sdk

pytestmark = pytest.mark.slow


def add(path: str, content: bytes) -> dict[str, object]:
    """An operation of a commit, as `calls.py` takes it."""
    return {"CommitOperationAdd": {"path_in_repo": path, "path_or_fileobj": {"base64": base64.b64encode(content).decode()}}}


def fetched(hub: Hub, reference: str, target: Path) -> dict[str, bytes]:
    """The files of a repository as our own command fetches them."""
    hub.filestore("fetch", reference, "-o", target)
    return contents(target)


def test_a_command_uploads_a_folder(hub: Hub, client: HubClient, name: str, model: Path, tmp_path: Path) -> None:
    """Our own command gets the same files."""
    client.hf("upload", name, model)
    sent = Counter(steps(hub.relay.asked))
    assert (1, 1) == (sent["POST create"], sent["POST commit"])
    assert contents(model) == fetched(hub, name, tmp_path / "ours")


@by("1.19")
def test_a_changed_folder_is_uploaded_again(hub: Hub, client: HubClient, name: str, own_model: Path, tmp_path: Path) -> None:
    """Only changed files are sent, and files that match `--delete` and are not in the folder any more are removed.

    A second upload of an unchanged folder sends no content. Another user of the client gets the last files.
    """
    client.hf("upload", name, own_model)
    hub.relay.asked.clear()
    client.hf("upload", name, own_model)
    assert not [step for step in steps(hub.relay.asked) if step.startswith("PUT ")]
    changed = bytearray((own_model / "model.safetensors").read_bytes())
    changed[-len(name) :] = name.encode()  # which no other test has stored
    (own_model / "model.safetensors").write_bytes(changed)
    (own_model / "data.bin").unlink()
    (own_model / "more.txt").write_text("more")
    hub.relay.asked.clear()
    client.hf("upload", name, own_model, "--delete", "*.bin", "--commit-message", "the second one")
    received = sum(one.body_size for one in hub.relay.asked if one.method == "PUT")
    assert len(changed) == received
    commits, _ = client.calls(
        ("list_repo_commits", {"repo_id": name}),
        ("snapshot_download", {"repo_id": name, "local_dir": str(tmp_path / "theirs")}),
    )
    assert "the second one" == commits[0]["title"]
    assert contents(own_model) == fetched(hub, name, tmp_path / "ours") == contents(tmp_path / "theirs")
    assert changed != fetched(hub, f"{name}@~1", tmp_path / "before")["model.safetensors"]


@by("1.0")
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


def test_tags_branches_and_removals(hub: Hub, client: HubClient, name: str, tmp_path: Path) -> None:
    """They name commits for the client and for our own command, are listed, and can be removed, as the repository can."""
    on_main, on_dev = ({"commit_message": "x", "operations": [add(path, path.encode())]} for path in ("old.txt", "new.txt"))
    *_, refs = client.calls(
        ("create_repo", {"repo_id": name}),
        ("create_commit", {"repo_id": name, **on_main}),
        ("create_tag", {"repo_id": name, "tag": "v1", "tag_message": "the first"}),
        ("create_branch", {"repo_id": name, "branch": "dev"}),
        ("create_commit", {"repo_id": name, "revision": "dev", **on_dev}),
        ("create_tag", {"repo_id": name, "tag": "v1", "exist_ok": True}),
        ("list_repo_refs", {"repo_id": name}),
    )
    assert ({"main", "dev"}, ["v1"]) == ({one["name"] for one in refs["branches"]}, [one["name"] for one in refs["tags"]])
    for revision, paths in (("main", ["old.txt"]), ("v1", ["old.txt"]), ("dev", ["new.txt", "old.txt"])):
        found = fetched(hub, f"{name}@{revision}", tmp_path / revision)
        assert {path: path.encode() for path in paths} == found
    again, there, *_, refs, url, _, is_there, _ = client.attempts(
        ("create_tag", {"repo_id": name, "tag": "v1"}),
        ("create_repo", {"repo_id": name}),
        ("delete_tag", {"repo_id": name, "tag": "v1"}),
        ("delete_branch", {"repo_id": name, "branch": "dev"}),
        ("delete_file", {"repo_id": name, "path_in_repo": "old.txt"}),
        ("list_repo_refs", {"repo_id": name}),
        ("create_repo", {"repo_id": name, "exist_ok": True}),
        ("delete_repo", {"repo_id": name}),
        ("repo_exists", {"repo_id": name}),
        ("create_repo", {"repo_id": name}),
    )
    assert ["HfHubHTTPError" in failure.classes for failure in (again, there)] == [True, True]
    assert (["main"], []) == ([one["name"] for one in refs["branches"]], refs["tags"])
    assert (url.endswith(f"/{name}"), is_there) == (True, False)
    assert 200 == hub.ask("GET", f"/api/models/{name}").status


@by("0.36")
def test_what_a_commit_is_refused_for(hub: Hub, client: HubClient, own: str) -> None:
    """An old parent when the branch has moved on, of which nothing is stored; and a pull request, with a sentence."""
    commit = {"repo_id": own, "commit_message": "x"}
    on_old = {**commit, "parent_commit": hub.ask("GET", f"/api/models/{own}").json["sha"]}
    _, moved, pull_request, files = client.attempts(
        ("create_commit", {**on_old, "operations": [add("first.txt", b"1")]}),
        ("create_commit", {**on_old, "operations": [add("second.txt", b"2")]}),
        ("create_commit", {**commit, "operations": [add("x", b"x")], "create_pr": True}),
        ("list_repo_files", {"repo_id": own}),
    )
    assert "HfHubHTTPError" in moved.classes
    assert "pull request" in pull_request.message.lower()
    assert [True, False, False] == [path in files for path in ("first.txt", "second.txt", "x")]


@by("1.0")
def test_the_owner_of_another_namespace(hub: Hub, client: HubClient, stored: str) -> None:
    """A token of another namespace neither sees nor writes a repository of this owner."""
    made = hub.home.run("token", "new", "--namespace", "other", "--root", hub.server.root)
    assert 0 == made.returncode, made.stderr
    hidden, refused = client.attempts(
        ("repo_exists", {"repo_id": stored}),
        ("create_repo", {"repo_id": "team/x"}),
        environ={"HF_TOKEN": made.stdout.split()[-1]},
    )
    assert hidden is False
    assert "HfHubHTTPError" in refused.classes


@by("0.36", "newest")
def test_commands_for_repositories(hub: Hub, client: HubClient, own: str, model: Path, tmp_path: Path) -> None:
    """`hf auth` and the commands for repositories, tags, branches and single files."""
    repos = "repos" if client.version in {"1.19", "newest"} else "repo"
    assert "default" in client.hf("auth", "whoami")
    client.hf("auth", "login", "--token", hub.server.token)
    client.hf(repos, "create", f"{own}.new")
    client.hf(repos, "tag", "create", own, "v1")
    assert "v1" in client.hf(repos, "tag", "list", own)
    if repos == "repos":
        client.hf("repos", "branch", "create", own, "dev")
        client.hf("repos", "delete-files", own, "data.bin")
        assert "data.bin" not in client.hf("models", "ls", own)
        assert own in client.hf("models", "ls", "--author", "team", "--format", "json")
        client.hf("cp", f"hf://{own}/config.json", tmp_path / "config.json")
        assert (model / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    else:
        client.hf("repo-files", "delete", own, "data.bin")
    assert contents(model) == fetched(hub, f"{own}@v1", tmp_path / "tagged")
    assert {*contents(model)} - {"data.bin"} == {*fetched(hub, own, tmp_path / "main")}


@by("1.19")
def test_a_large_folder_is_uploaded(hub: Hub, client: HubClient, name: str, model: Path, tmp_path: Path) -> None:
    """`upload_large_folder`, which is gone in 2.0, sends the same files in several commits."""
    client.call("upload_large_folder", repo_id=name, folder_path=str(model), repo_type="model", print_report=False)
    assert contents(model) == fetched(hub, name, tmp_path / "ours")


@by("newest")
def test_an_upload_by_xet_is_explained(client: HubClient, name: str, model: Path) -> None:
    """The client shows only the status and the URL of the last answer, so that URL names the variable."""
    done = client.run("upload", name, model, environ={"HF_HUB_DISABLE_XET": "0"})
    assert 0 != done.returncode
    assert "HF_HUB_DISABLE_XET=1" in done.stderr


@by("newest")
def test_the_real_model_is_uploaded(hub: Hub, client: HubClient, name: str, tmp_path: Path) -> None:
    """90 MB of weights arrive."""
    client.hf("upload", name, MODEL)
    assert contents(MODEL) == fetched(hub, name, tmp_path / "ours")


@by("1.19")
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
