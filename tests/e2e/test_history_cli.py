"""Names with owners, and the commands log, tag and `ls NAME`, in a folder and at a server."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pwd import getpwuid
from typing import Any

import pytest

from tests.support.commands import Home
from tests.support.generator import octets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
"""Some tests type twenty commands, each of which takes long on a machine that is busy with other work."""

NAME = "team/my-model"


@pytest.fixture(params=["folder", "server"])
def environ(request: pytest.FixtureRequest, home: Home) -> Iterator[dict[str, str]]:
    """The variables for a repository in a folder, or at a server."""
    if request.param == "folder":
        yield {}
        return
    with home.local_server() as server:
        yield server.environ


def push(home: Home, environ: dict[str, str], number: int, *more: str, name: str = NAME) -> Any:
    """Store the directory `my_model` with content of a number."""
    folder = home.folder / "my_model"
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(octets(number, 30_000))
    return home.result("push", folder, "--name", name, *more, environ=environ)


def log(home: Home, environ: dict[str, str], reference: str = NAME, *more: str) -> list[Any]:
    """The commits of a name, the newest first."""
    commits: list[Any] = home.result("log", reference, *more, environ=environ)["commits"]
    return commits


def test_a_name_with_an_owner_is_used_everywhere(home: Home, environ: dict[str, str], tmp_path: Path) -> None:
    """It is pushed with a message, shown, fetched below its last part, cached and removed."""
    first = push(home, environ, 1, "--message", "The first version.\n\nWith a body.")
    second = push(home, environ, 2)
    assert (("my-model", "team", "directory"),) * 2 == tuple(
        (each["name"], each["owner"], each["kind"]) for each in (first, second)
    )
    assert second["path"].endswith(f"/{second['digest']}/my-model")
    commit_ids = [commit["id"] for commit in log(home, environ)]
    assert commit_ids == [second["commit"], first["commit"]]
    again = home.run("push", home.folder / "my_model", "--name", NAME, environ=environ).stdout
    assert re.search(rf"^commit +{commit_ids[0][:10]}$", again, re.MULTILINE)
    home.result("tag", f"{NAME}@~1", "v1", environ=environ)

    for reference in (NAME, f"{NAME}@main", f"{NAME}@refs/heads/main", f"{NAME}@~0"):
        assert second["id"] == home.result("info", reference, environ=environ)["id"]
    first_commit = log(home, environ)[1]["id"]
    for reference in (f"{NAME}@~1", f"{NAME}@v1", f"{NAME}@refs/tags/v1", f"{NAME}@{first_commit}", f"{NAME}@{first_commit[:7]}"):
        assert first["id"] == home.result("info", reference, environ=environ)["id"]
    assert re.search(rf"^name +{NAME}$", home.run("info", NAME, environ=environ).stdout, re.MULTILINE)
    assert f"  {NAME}  (directory)" in home.run("ls", environ=environ).stdout

    fetched = home.result("fetch", f"{NAME}@v1", environ=environ)
    assert ("my-model", "team", "my-model") == (fetched["path"], fetched["owner"], fetched["name"])
    assert octets(1, 30_000) == (home.folder / "my-model/weights.bin").read_bytes()
    home.result("fetch", NAME, "-o", tmp_path / "here", environ=environ)
    assert octets(2, 30_000) == (tmp_path / "here/weights.bin").read_bytes()
    warmed = home.result("cache", "warm", f"{NAME}@v1", "--cache", tmp_path / "cache", environ=environ)["files"][0]
    assert "my-model" == Path(warmed["path"]).name

    removed = home.result("rm", NAME, environ=environ)
    assert ([second["id"]], {NAME: 1}) == ([record["id"] for record in removed["removed"]], removed["remaining"])
    assert first["id"] == home.result("info", NAME, environ=environ)["id"]


def test_a_file_of_a_typed_name_is_replaced(home: Home, environ: dict[str, str]) -> None:
    """Whoever types the name with its owner and a revision has chosen it."""
    for number in (1, 2):
        (home.folder / "source").write_bytes(octets(number, 1000))
        home.result("push", home.folder / "source", "--name", "team/model.bin", environ=environ)
    for reference, number in (("team/model.bin", 2), ("team/model.bin@~1", 1)):
        home.result("fetch", reference, environ=environ)
        assert octets(number, 1000) == (home.folder / "model.bin").read_bytes()


def test_log_shows_each_commit(home: Home, environ: dict[str, str]) -> None:
    """The newest first, also one that stores what an older one did; with the author, the message, tags and branches."""
    records = [push(home, environ, number, "--message", f"number {number}") for number in (1, 2, 1)]
    push(home, environ, 1, "--message", "the same again makes none")
    home.result("tag", f"{NAME}@~1", "v2", environ=environ)
    home.result("tag", f"{NAME}@~1", "dev", "--branch", environ=environ)

    commits = log(home, environ)
    assert [record["id"] for record in reversed(records)] == [commit["file_id"] for commit in commits]
    assert ["number 1", "number 2", "number 1"] == [commit["message"] for commit in commits]
    assert [["main"], ["dev", "v2"], []] == [commit["labels"] for commit in commits]
    assert [commits[1]["id"], commits[2]["id"], None] == [commit["parent"] for commit in commits]
    assert 3 == len({commit["id"] for commit in commits})
    author = "first token" if environ else getpwuid(os.getuid()).pw_name
    assert {author} == {commit["author"] for commit in commits}
    assert commits[1:] == log(home, environ, f"{NAME}@v2")
    assert commits[:2] == log(home, environ, NAME, "--limit", "2")
    assert commits[1:2] == log(home, environ, f"{NAME}@{commits[1]['id']}", "--limit", "1")

    lines = home.run("log", NAME, environ=environ).stdout.splitlines()
    assert lines[1].startswith(commits[1]["id"][:10])
    assert lines[1].endswith(f"  {author}  (dev, v2)  number 2")
    assert lines[3].startswith(f"3 commits of {NAME} in ")


def test_a_push_can_add_to_a_branch(home: Home, environ: dict[str, str]) -> None:
    """The name means what it did before. A branch that does not exist is refused before anything is sent."""
    first = push(home, environ, 1)
    folder = home.folder / "my_model"
    (folder / "weights.bin").write_bytes(octets(2, 30_000))
    said = home.failure("push", folder, "--name", NAME, "--branch", "dev", environ=environ)
    assert f"{NAME!r} has no version 'refs/heads/dev'" in said
    home.result("tag", NAME, "dev", "--branch", environ=environ)
    second = push(home, environ, 2, "--branch", "dev", "--message", "tried")
    assert second["bytes_sent"] > 30_000
    assert first["id"] == home.result("info", NAME, environ=environ)["id"]
    assert second["id"] == home.result("info", f"{NAME}@dev", environ=environ)["id"]
    assert [("tried", "dev", ["dev"]), ("", "main", ["main"])] == [
        (commit["message"], commit["branch"], commit["labels"]) for commit in log(home, environ, f"{NAME}@dev")
    ]


def test_a_name_whose_versions_are_all_on_a_branch(home: Home, environ: dict[str, str]) -> None:
    """Its branch and its versions are shown, and can be removed."""
    first = push(home, environ, 1)
    home.result("tag", NAME, "dev", "--branch", environ=environ)
    second = push(home, environ, 2, "--branch", "dev")
    home.result("rm", first["id"], "--force", environ=environ)
    assert f"{NAME!r} has no version 'main'" in home.failure("log", NAME, environ=environ)
    assert [["dev"]] == [commit["labels"] for commit in log(home, environ, f"{NAME}@dev")]
    tags = home.result("tag", NAME, environ=environ)
    assert (None, ["dev"]) == (tags["main"], [label["name"] for label in tags["labels"]])
    (shown,) = home.result("ls", NAME, environ=environ)["files"]
    assert (second["id"], ["dev"]) == (shown["id"], shown["labels"])
    home.result("rm", f"{NAME}@dev", "--force", environ=environ)
    assert f"nothing is stored under {NAME!r}" in home.failure("tag", NAME, environ=environ)


def test_log_follows_a_history_of_many_pages(home: Home) -> None:
    """A server answers with at most 300 commits at once."""
    source = home.folder / "source.bin"
    script = (
        "import sys\nfrom filestore import blocking as filestore\n"
        "with filestore.connect(sys.argv[1], token=sys.argv[2]) as repository:\n"
        "    for number in range(310):\n"
        "        open(sys.argv[3], 'w').write(str(number % 2))\n"
        "        filestore.push(repository, sys.argv[3], message=str(number), rehash=True)\n"
    )
    with home.local_server() as server:
        done = home.run("-c", script, server.url, server.token, source, program=sys.executable)
        assert (0, "") == (done.returncode, done.stderr)
        commits = log(home, server.environ, "source.bin")
    assert [str(number) for number in reversed(range(310))] == [commit["message"] for commit in commits]


def test_ls_lists_the_versions_of_a_name(home: Home, environ: dict[str, str]) -> None:
    """Each content once, the one that was stored last first, with its tags and branches, also those of an older commit."""
    first = push(home, environ, 1)
    assert home.run("ls", NAME, environ=environ).stdout.splitlines()[0].endswith("  LABELS")  # and no column without content
    home.result("tag", NAME, "v1", environ=environ)
    second = push(home, environ, 2, "--message", "two")
    push(home, environ, 1, "--message", "one again")
    home.result("tag", f"{NAME}@~1", "dev", "--branch", environ=environ)

    listed = home.result("ls", NAME, environ=environ)
    newest, middle, _ = [commit["id"] for commit in log(home, environ)]
    assert NAME == listed["name"]
    assert [(first["id"], ["main", "v1"], newest), (second["id"], ["dev"], middle)] == [
        (version["id"], version["labels"], version["commit_id"]) for version in listed["files"]
    ]
    assert listed["files"][:1] == home.result("ls", NAME, "--limit", "1", environ=environ)["files"]
    lines = home.run("ls", NAME, environ=environ).stdout.splitlines()
    assert ["COMMIT", "SIZE", "ADDS", "STORED", "(UTC)", "DIGEST", "KIND", "LABELS", "MESSAGE"] == lines[0].split()
    assert lines[1].startswith(f"{newest[:10]}  ")
    assert lines[1].endswith(f"  {first['digest'][:10]}  directory  main, v1  one again")
    assert lines[3].startswith(f"2 versions of {NAME}, ")
    # What means one version lists what is in it.
    for reference in (f"{NAME}:", f"{NAME}@dev", f"{NAME}@dev:", second["id"]):
        assert ["weights.bin"] == [entry["path"] for entry in home.result("ls", reference, environ=environ)["entries"]]
    assert "give its name with a ':' after it" in home.run("ls", NAME, "--recursive", environ=environ).stderr
    assert "nothing is stored under 'team/x'" in home.failure("ls", "team/x", environ=environ)


def test_tags_are_listed_moved_and_removed(home: Home, environ: dict[str, str]) -> None:
    """A tag of another version is moved only by --force. The version stays when its tag goes."""
    push(home, environ, 1)
    made = home.result("tag", NAME, "v1", environ=environ)
    newest = log(home, environ)[0]["id"]
    assert {"name", "label", "kind", "commit_id", "created_at", "repository"} == set(made)
    assert (NAME, "v1", "tag", newest) == (made["name"], made["label"], made["kind"], made["commit_id"])
    assert made["created_at"] == home.result("tag", NAME, "v1", environ=environ)["created_at"]
    push(home, environ, 2)
    refused = home.failure("tag", NAME, "v1", environ=environ)
    assert f"{NAME!r} has the label 'v1' already, at the commit {newest}" in refused
    assert refused.endswith("; `filestore tag --force` moves it")
    moved = home.result("tag", NAME, "v1", "--force", environ=environ)
    assert log(home, environ)[0]["id"] == moved["commit_id"]
    branch = home.result("tag", f"{NAME}@~1", "dev", "--branch", environ=environ)
    assert ("branch", newest) == (branch["kind"], branch["commit_id"])

    listed = home.result("tag", NAME, environ=environ)
    assert (NAME, moved["commit_id"]) == (listed["name"], listed["main"])
    assert [("dev", "branch"), ("v1", "tag")] == [(label["name"], label["kind"]) for label in listed["labels"]]
    lines = home.run("tag", NAME, environ=environ).stdout.splitlines()
    assert ["main", "dev", "v1"] == [line.split()[-1] for line in lines[:3]]
    assert lines[3].startswith(f"1 tag and 2 branches of {NAME} in ")

    removed = home.result("tag", "--delete", NAME, "v1", environ=environ)
    assert ("v1", moved["commit_id"]) == (removed["label"], removed["commit_id"])
    assert ["dev"] == [label["name"] for label in home.result("tag", NAME, environ=environ)["labels"]]
    gone = home.failure("tag", "--delete", NAME, "v1", environ=environ)
    assert gone.startswith(f"{NAME!r} has no version 'v1'; `filestore log {NAME}` shows its versions")
    assert 2 == len(log(home, environ))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((NAME, "--force"), "--branch, --delete and --force need a LABEL"),
        ((NAME, "v1", "--delete", "--branch"), "--delete removes a tag or a branch"),
        ((f"{NAME}@v1", "v1", "--delete"), "give it without '@' and a revision"),
        ((f"{NAME}@v1",), "give it without '@' and a revision"),
    ],
)
def test_tag_refuses_impossible_options(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """They are wrong usage."""
    done = home.run("tag", *arguments)
    assert 2 == done.returncode
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize("label", ["main", "HEAD", "refs/heads/x", "a b", "a..b", "0123456789ab", "-x", "é"])
def test_impossible_labels_are_refused(home: Home, environ: dict[str, str], label: str) -> None:
    """They could not be told from other revisions, or not be written as a reference."""
    push(home, environ, 1)
    assert f"a tag cannot be called {label!r}: " in home.failure("tag", NAME, "--", label, environ=environ)
    assert [] == home.result("tag", NAME, environ=environ)["labels"]


def test_only_names_have_a_history(home: Home) -> None:
    """An id, a digest of a path and an entry of a directory have none. A name may look like a digest."""
    record = push(home, {}, 1)
    for reference in (record["path"], record["run_path"] if "run_path" in record else record["path"], f"{NAME}:weights.bin"):
        assert "belong to a name" in home.failure("log", reference)
        assert "belong to a name" in home.failure("tag", reference, "v1")
    digest_name = "ab" * 32
    push(home, {}, 1, name=digest_name)
    assert 1 == len(log(home, {}, digest_name))


def test_what_is_not_there(home: Home, environ: dict[str, str]) -> None:
    """The error of a missing version says how to see those that are there."""
    push(home, environ, 1)
    assert "nothing is stored under 'team/other'" in home.failure("log", "team/other", environ=environ)
    assert "nothing is stored under 'team/other'" in home.failure("tag", "team/other", environ=environ)
    for command in (("info", f"{NAME}@v9"), ("fetch", f"{NAME}@v9"), ("log", f"{NAME}@v9"), ("tag", f"{NAME}@v9", "v1")):
        said = home.failure(*command, environ=environ)
        assert f"{NAME!r} has no version 'v9'; `filestore log {NAME}` shows its versions" in said


@pytest.mark.parametrize("name", ["api/m", "Datasets/m", "a--b/m", "team/m.git", "team/-m", "a/b/c", "team/a b"])
def test_impossible_owners_are_refused(home: Home, name: str) -> None:
    """Before anything is sent."""
    (home.folder / "source").write_bytes(b"x")
    assert home.failure("push", home.folder / "source", "--name", name).endswith("--name sets it")
    assert [] == home.result("ls")["files"]


def test_impossible_messages_are_refused(home: Home, environ: dict[str, str]) -> None:
    """Before anything is sent."""
    source = home.folder / "source"
    source.write_bytes(octets(1, 1000))
    for message in ("\x1b[31m", "x" * 2049, b"\xff"):
        said = home.failure("push", source, "--message", os.fsdecode(message), environ=environ)
        assert "a commit's message is a text of at most 2048 bytes without control characters" in said
    assert home.result("push", source, environ=environ)["bytes_sent"] > 1000


def test_a_message_cannot_control_the_terminal(home: Home, environ: dict[str, str]) -> None:
    """Neither can a name; both are escaped."""
    push(home, environ, 1, "--message", "left\u202eright")
    assert "left\\u202eright" in home.run("log", NAME, environ=environ).stdout
    assert "left\u202eright" == log(home, environ)[0]["message"]


def test_labels_are_audited(home: Home, tmp_path: Path) -> None:
    """A command on the folder writes a line for each tag that it sets and removes."""
    push(home, {}, 1)
    path = tmp_path / "audit.log"
    home.result("tag", NAME, "v1", environ={"FILESTORE_AUDIT_LOG": str(path)})
    home.result("tag", NAME, "v1", "--delete", environ={"FILESTORE_AUDIT_LOG": str(path)})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [("set-label", NAME, "v1"), ("remove-label", NAME, "v1")] == [
        (line["action"], line["name"], line["label"]) for line in lines
    ]
