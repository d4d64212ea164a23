"""What clients of the Hub download from a repository that our own command has pushed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.hub.conftest import by
from tests.support.commands import Home, notes
from tests.support.hub_clients import Failed, Hub, HubClient, contents, named_digests, steps

pytestmark = pytest.mark.slow


def snapshot(client: HubClient, name: str, kind: str = "models") -> Path:
    """Return the only snapshot of a repository in the cache of a client."""
    (folder,) = (client.hub_home / "hub" / f"{kind}--{name.replace('/', '--')}" / "snapshots").iterdir()
    return folder


@pytest.fixture(scope="module")
def large(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The paths of the 10,000 files of team/large."""
    folder = tmp_path_factory.mktemp("large")
    paths = [f"{number // 100:03}/{number:05}.txt" for number in range(10_000)]
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(path)
    hub.filestore("push", folder, "--name", "team/large")
    return paths


def test_a_command_downloads_a_pushed_folder(hub: Hub, client: HubClient, stored: str, model: Path) -> None:
    """Every file arrives, its blob has the name of its digest, and the next run asks only whether there is a newer commit."""
    said = client.hf("download", stored)
    asked = Counter(steps(hub.relay.asked))
    hub.relay.asked.clear()
    again = client.hf("download", stored)
    assert said == again
    assert ["GET info"] == steps(hub.relay.asked)
    files = contents(model)
    assert files == contents(snapshot(client, stored))
    tree = {"GET tree": 1} if client.version == "newest" else {}
    # Nothing is left to ask about a file whose size is 0.
    full = len([content for content in files.values() if content])
    assert {"GET info": 1, "HEAD resolve": len(files), "GET resolve": full, **tree} == asked
    for path, content in files.items():
        assert (snapshot(client, stored) / path).resolve().name in named_digests(content)


@by("0.36", "newest")
def test_a_snapshot_is_pushed_again(client: HubClient, stored: str, model: Path, tmp_path: Path) -> None:
    """Our command takes the folder of the repository in the cache of a client: under the name of the Hub, with its revision."""
    client.hf("download", stored)
    home = Home(tmp_path)
    folder = client.hub_home / "hub" / f"models--{stored.replace('/', '--')}"
    done = home.run("push", folder, "--create")
    assert 0 == done.returncode, done.stderr
    assert f"it is stored as {stored} (--name changes that)" in notes(done)
    assert f"hf-{snapshot(client, stored).name}" in [label["name"] for label in home.result("tag", stored)["labels"]]
    home.result("fetch", stored, "-o", tmp_path / "fetched")
    assert contents(model) == contents(tmp_path / "fetched")


@by("1.0")
def test_a_command_downloads_into_a_folder(hub: Hub, client: HubClient, stored: str, model: Path, tmp_path: Path) -> None:
    """The folder equals the pushed one, and a second run into it asks only whether there is a newer commit."""
    client.hf("download", stored, "--local-dir", tmp_path / "here")
    hub.relay.asked.clear()
    client.hf("download", stored, "--local-dir", tmp_path / "here")
    assert ["GET info"] == steps(hub.relay.asked)
    assert contents(model) == contents(tmp_path / "here")


@by("0.36")
def test_a_changed_file_alone_is_sent_again(hub: Hub, client: HubClient, own: str, own_model: Path) -> None:
    """After a second push, one file is new: only its content is asked for."""
    client.hf("download", own)
    (own_model / "config.json").write_text('{"changed": true}')
    hub.push(own_model, own)
    hub.relay.asked.clear()
    client.call("snapshot_download", repo_id=own)
    gets = [one.path.rpartition("/")[2] for one in hub.relay.asked if "/resolve/" in one.path and one.method == "GET"]
    assert ["config.json"] == gets


@pytest.mark.parametrize(("client", "kind"), [("1.19", "dataset"), ("newest", "space")], indirect=["client"])
def test_the_other_kinds_of_repositories(client: HubClient, stored: str, model: Path, kind: str) -> None:
    """A name is served as a dataset and as a space, too."""
    client.hf("download", stored, "--repo-type", kind)
    assert contents(model) == contents(snapshot(client, stored, f"{kind}s"))


@by("1.0")
def test_patterns_choose_files(client: HubClient, stored: str, model: Path) -> None:
    """`--include` and `--exclude` download a part."""
    client.hf("download", stored, "--include", "*.json", "--exclude", "tokenizer*")
    assert ["1_Pooling/config.json", "config.json"] == list(contents(snapshot(client, stored)))


@by("0.36", "newest")
def test_an_absent_file_is_remembered(hub: Hub, client: HubClient, stored: str) -> None:
    """One request says that the file is absent, and at which commit: the client asks no more for that commit."""
    commit = hub.ask("HEAD", f"/{stored}/resolve/main/config.json").headers["X-Repo-Commit"]
    absent = {"repo_id": stored, "filename": "absent.json"}
    failures = client.attempts(("hf_hub_download", absent), ("hf_hub_download", {**absent, "revision": commit}))
    assert [True, True] == ["EntryNotFoundError" in failure.classes for failure in failures]
    assert "HEAD resolve" == steps(hub.relay.asked)[0]
    assert len(steps(hub.relay.asked)) <= 2
    (marked,) = (client.hub_home / "hub" / f"models--{stored.replace('/', '--')}" / ".no_exist").iterdir()
    assert (commit, ["absent.json"]) == (marked.name, [path.name for path in marked.iterdir()])


@by("0.36", "newest")
def test_what_is_absent_has_errors_of_its_own(client: HubClient, stored: str) -> None:
    """An absent revision and an absent repository, each by its name. A wrong token, or none, hides the repository."""
    file, absent, hidden, unnamed, *are_there = client.attempts(
        ("hf_hub_download", {"repo_id": stored, "filename": "config.json", "revision": "absent"}),
        ("hf_hub_download", {"repo_id": "team/absent", "filename": "config.json"}),
        ("snapshot_download", {"repo_id": stored, "token": "hf_wrong"}),
        ("snapshot_download", {"repo_id": stored, "token": False}),
        ("repo_exists", {"repo_id": "team/absent"}),
        ("revision_exists", {"repo_id": stored, "revision": "absent"}),
        ("file_exists", {"repo_id": stored, "filename": "config.json"}),
        ("file_exists", {"repo_id": stored, "filename": "absent.json"}),
        ("repo_exists", {"repo_id": stored}),
        ("snapshot_download", {"repo_id": stored, "revision": "absent"}),
    )
    revision = are_there.pop()
    assert "RevisionNotFoundError" in file.classes
    assert "RevisionNotFoundError" in revision.classes
    assert "RepositoryNotFoundError" in absent.classes
    for failure in (hidden, unnamed):
        assert isinstance(failure, Failed)
        # The client wraps it, since the repository might be in its cache.
        assert {"RepositoryNotFoundError", "HfHubHTTPError", "LocalEntryNotFoundError"} & set(failure.classes), failure
    assert [False, False, True, False, True] == are_there


@by("1.0")
def test_lists_of_a_repository(client: HubClient, stored: str, model: Path) -> None:
    """Files, folders, sizes, digests, branches and commits are those of the pushed folder."""
    files = contents(model)
    names, tree, top, info, refs, commits, paths = client.calls(
        ("list_repo_files", {"repo_id": stored}),
        ("list_repo_tree", {"repo_id": stored, "recursive": True, "expand": True}),
        ("list_repo_tree", {"repo_id": stored}),
        ("repo_info", {"repo_id": stored, "files_metadata": True}),
        ("list_repo_refs", {"repo_id": stored}),
        ("list_repo_commits", {"repo_id": stored}),
        ("get_paths_info", {"repo_id": stored, "paths": ["config.json", "notes", "absent"]}),
    )
    assert sorted(files) == sorted(names)
    entries = {entry["path"]: entry for entry in tree}
    assert sorted([*files, "1_Pooling", "notes"]) == sorted(entries)
    for path, content in files.items():
        assert len(content) == entries[path]["size"]
        # For a large file, `blob_id` is that of the pointer which git would keep.
        digest = entries[path]["lfs"]["sha256"] if entries[path]["lfs"] else entries[path]["blob_id"]
        assert digest in named_digests(content)
    at_top = {path.partition("/")[0] for path in files}
    assert at_top == {entry["path"] for entry in top}
    assert sorted(files) == sorted(sibling["rfilename"] for sibling in info["siblings"])
    assert (stored, [("main", info["sha"])]) == (info["id"], [(one["name"], one["target_commit"]) for one in refs["branches"]])
    assert [info["sha"]] == [commit["commit_id"] for commit in commits]
    assert ["config.json", "notes"] == sorted(entry["path"] for entry in paths)


@by("newest")
def test_the_pages_of_a_large_repository(hub: Hub, client: HubClient, large: list[str]) -> None:
    """The client follows the pages of a repository of 10,000 files to their end."""
    assert large == sorted(client.call("list_repo_files", repo_id="team/large"))
    # A page has a thousand entries, and there are a hundred folders.
    assert ["GET tree"] * 11 == steps(hub.relay.asked)
    client.hf("download", "team/large", "--include", "042/*")
    assert [path for path in large if path.startswith("042/")] == list(contents(snapshot(client, "team/large")))


@by("1.19")
def test_who_asks_and_what_there_is(client: HubClient, stored: str) -> None:
    """The user has a name, may read the repository, and finds it in the list of its owner."""
    user, allowed, found = client.calls(
        ("whoami", {}),
        ("auth_check", {"repo_id": stored}),
        ("list_models", {"author": "team", "search": stored.partition("/")[2]}),
    )
    assert isinstance(user["name"], str)
    assert allowed is None
    assert [stored] == [one["id"] for one in found]


@by("newest")
def test_a_cache_is_verified(client: HubClient, stored: str) -> None:
    """`hf cache verify` compares every file with the digests of the server, and finds a byte that was changed."""
    client.hf("download", stored)
    assert "All checksums match" in client.hf("cache", "verify", stored)
    blob = (snapshot(client, stored) / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    done = client.run("cache", "verify", stored)
    assert 0 != done.returncode
    assert "model.safetensors" in done.stdout + done.stderr


@by("1.19")
def test_a_folder_is_verified(client: HubClient, stored: str, tmp_path: Path) -> None:
    """`hf cache verify --local-dir` does the same for a downloaded folder."""
    client.hf("download", stored, "--local-dir", tmp_path / "here")
    assert "All checksums match" in client.hf("cache", "verify", stored, "--local-dir", tmp_path / "here")


@by("1.0")
def test_a_name_without_an_owner(hub: Hub, client: HubClient, model: Path) -> None:
    """The Hub has names without a slash, too."""
    hub.push(model, "alone")
    client.hf("download", "alone")
    assert contents(model) == contents(snapshot(client, "alone"))


@by("0.36")
def test_a_single_file_is_a_repository_of_one(hub: Hub, client: HubClient, model: Path, name: str) -> None:
    """A pushed file is served under its own name."""
    hub.push(model / "model.safetensors", name)
    file = name.partition("/")[2]
    files, found = client.calls(("list_repo_files", {"repo_id": name}), ("hf_hub_download", {"repo_id": name, "filename": file}))
    assert [file] == files
    assert (model / "model.safetensors").read_bytes() == Path(found).read_bytes()


@by("1.19")
def test_revisions_by_every_name(hub: Hub, client: HubClient, own: str, own_model: Path) -> None:
    """A tag, a branch, a whole commit id and a part of one name the older content after a second push."""
    old = (own_model / "config.json").read_bytes()
    commit = str(hub.ask("GET", f"/api/models/{own}").json["sha"])
    hub.filestore("tag", own, "v1")
    (own_model / "config.json").write_text('{"second": true}')
    hub.push(own_model, own)
    revisions = ("v1", "refs/tags/v1", commit, commit[:12])
    file = {"repo_id": own, "filename": "config.json"}
    *found, newest = client.calls(
        *(("hf_hub_download", {**file, "revision": revision}) for revision in revisions), ("hf_hub_download", file)
    )
    assert dict.fromkeys(revisions, old) == {name: Path(path).read_bytes() for name, path in zip(revisions, found, strict=True)}
    assert '{"second": true}' == Path(newest).read_text()


@by("newest")
def test_the_header_of_safetensors_is_read_from_afar(hub: Hub, client: HubClient, stored: str, model: Path) -> None:
    """The client learns the number of parameters from a small part of the file."""
    metadata = client.call("get_safetensors_metadata", repo_id=stored)
    assert {"F32": 512 * 512 + 256 * 512} == metadata["parameter_count"]
    received = sum(int(one.answered.get("content-length", 0)) for one in hub.relay.asked if one.method == "GET")
    assert received < (model / "model.safetensors").stat().st_size / 2
