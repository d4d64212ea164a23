"""The command copy, between real servers and folders."""

from __future__ import annotations

import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from filestore.core.quotas import Quota
from filestore.repository.folder import INDEX_NAME
from tests.support.ceph import Bucket
from tests.support.commands import SCRIPTS, Home, Server
from tests.support.generator import octets
from tests.support.hostile_server import IDENTITY, Asked, document, hostile_server
from tests.support.quotas import set_quota
from tests.support.server import eventually

pytestmark = pytest.mark.slow

NAME = "team/my-model"


def push(home: Home, *seeds: int, name: str = NAME, size: int = 300_000) -> dict[str, str]:
    """Store a file in the local folder."""
    path = home.folder / "model.bin"
    path.write_bytes(b"".join(octets(seed, size) for seed in seeds))
    pushed: dict[str, str] = home.result("push", path, "--name", name, "--message", f"Seeds {seeds}.")
    return pushed


def token_file(server: Server, folder: Path) -> Path:
    """A file that has the token of a server."""
    path = folder / "token"
    path.touch(0o600)
    path.write_text(server.token)
    return path


def test_copy_to_a_server_and_back(home: Home, tmp_path: Path) -> None:
    """Each repository gets its own token, a dry run records nothing, and what comes back is equal."""
    first = push(home, 1)
    second = push(home, 1, 2)
    home.result("tag", NAME, "v2")
    with home.server(root=tmp_path / "other") as server:
        to = ("--to", server.url, "--to-token-file", token_file(server, tmp_path))
        planned = home.result("copy", f"{NAME}@~1", *to, "--dry-run")
        assert (first["digest"], 300_000, 1) == (planned["digest"], planned["bytes_new"], planned["version_count"])
        assert 0 == home.result("copy", f"{NAME}@~1", *to)["bytes_shared"]
        copied = home.result("copy", NAME, *to, "--all-versions")
        assert (second["digest"], 1, 1) == (copied["digest"], copied["version_count"], copied["tag_count"])
        messages = [commit["message"] for commit in home.result("log", NAME, environ=server.environ)["commits"]]
        assert ["Seeds (1, 2).", "Seeds (1,)."] == messages

        back = home.run("copy", f"{NAME}@v2", "again", "--to", tmp_path / "back", "--create", environ=server.environ)
        assert 0 == back.returncode, back.stderr
        assert re.search(rf"^to +{tmp_path / 'back'}$", back.stdout, re.MULTILINE)
    home.result("fetch", "again", "-o", tmp_path / "fetched", "--url", tmp_path / "back")
    assert octets(1, 300_000) + octets(2, 300_000) == (tmp_path / "fetched").read_bytes()


def test_a_new_name(home: Home) -> None:
    """Without --to, the repository gets a further name, and nothing is sent."""
    pushed = push(home, 1)
    copied = home.result("copy", f"{NAME}@~0", "stable")
    assert (pushed["digest"], "stable", 0, 300_000) == tuple(
        copied[each] for each in ("digest", "name", "bytes_sent", "bytes_shared")
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model",), "neither a new name nor --to"),
        (("model", "https://models.example"), "is the URL of a repository, and not a new name; give it by --to"),
        (("model", "../mirror"), "../mirror is a path of this machine, and not a new name; give a repository by --to"),
        (("model", "other", "--create"), "--create is about the repository to copy to"),
        (("model", "other", "--to-token-file", "token"), "--to-token-file is about the repository to copy to"),
        (("model", "--to", ""), "--to is empty"),
        (("model", "--to", "s3://bucket/models"), "--to s3://... and --to-index go together"),
        (("model", "--to", "folder", "--to-index", "postgresql://127.0.0.1/x"), "--to s3://... and --to-index go together"),
        (("model", "--to", "folder", "--create", "--dry-run"), "--dry-run makes nothing"),
        (("model", "other", "--all-versions", "--message", "Why."), "leave out --message"),
    ],
)
def test_wrong_usage(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """It is said before anything is opened."""
    done = home.run("copy", *arguments)
    assert (2, "") == (done.returncode, done.stdout)
    assert said in " ".join(done.stderr.split())


def test_a_copy_of_what_is_not_there(home: Home, tmp_path: Path) -> None:
    """The message says what the user may have meant, or which folder is not a repository."""
    push(home, 1, name="model.zip")
    assert "did you mean 'model.zip'?" in home.failure("copy", "model", "other")
    assert "not a repository" in home.failure("copy", "model.zip", "--to", tmp_path / "nowhere")


def test_the_token_of_the_target_is_asked_for(home: Home, tmp_path: Path) -> None:
    """The message names its option, and not where the token of the source is from."""
    (tmp_path / "wrong").write_text("x" * 40)
    (tmp_path / "wrong").chmod(0o600)
    push(home, 1)
    with home.local_server() as server:
        environ = {"FILESTORE_TOKEN": server.token}
        missing = home.run("copy", NAME, "--to", server.url, environ=environ).stderr
        assert "needs a token" in missing
        assert "--to-token-file gives it" in missing
        wrong = home.run("copy", NAME, "--to", server.url, "--to-token-file", tmp_path / "wrong", environ=environ).stderr
        assert "(this one is from --to-token-file)" in wrong
        assert "FILESTORE_TOKEN" not in missing + wrong


def test_the_token_of_the_source_is_sent_to_no_other_server(home: Home, tmp_path: Path) -> None:
    """Neither that of the environment nor that of an option."""
    with home.local_server() as server, hostile_server(lambda _: document(IDENTITY)) as other:
        (tmp_path / "model").write_bytes(b"content")
        home.result("push", tmp_path / "model", environ=server.environ)
        home.run("copy", "model", "--to", other.url, "--retry-seconds", "1", environ=server.environ)
        asked: list[Asked] = other.asked
        assert asked
        assert not any(server.token in repr(each) for each in asked)


def test_a_quota_of_the_target(home: Home, tmp_path: Path) -> None:
    """The copy ends with what the server says, and nothing is recorded."""
    push(home, 1)
    set_quota(tmp_path / "other", Quota(size=100_000))
    with home.server(root=tmp_path / "other") as server:
        said = home.failure("copy", NAME, "--to", server.url, "--to-token-file", token_file(server, tmp_path))
        assert "its quota is 100000" in said
        assert [] == home.result("ls", environ=server.environ)["files"]


def has_chunks(root: Path) -> bool:
    """Whether the index of a folder has chunks already, which are then there for the next copy."""
    with closing(sqlite3.connect(f"file:{root / INDEX_NAME}?mode=ro", uri=True)) as index:
        return bool(index.execute("SELECT count(*) FROM chunks").fetchone()[0])


@pytest.mark.parametrize("is_server", [False, True])
def test_a_copy_that_is_killed_continues(home: Home, tmp_path: Path, *, is_server: bool) -> None:
    """Whatever was sent before SIGKILL is not sent again, and the target is whole."""
    size = 60 << 20
    pushed = push(home, 1, size=size)
    other = tmp_path / "other"

    def copy_and_kill(*to: str | Path) -> None:
        process = subprocess.Popen([SCRIPTS / "filestore", "copy", NAME, *to], env=home.environ, stderr=subprocess.DEVNULL)
        eventually(lambda: has_chunks(other))
        process.kill()
        process.wait()

    if is_server:
        with home.server(root=other, complains=None) as server:
            to = ("--to", server.url, "--to-token-file", token_file(server, tmp_path), "--quiet")
            copy_and_kill(*to)
            copied = home.result("copy", NAME, *to)
    else:
        home.create_repository(other)
        copy_and_kill("--to", other)
        copied = home.result("copy", NAME, "--to", other, "--quiet")
    assert pushed["digest"] == copied["digest"]
    assert copied["bytes_sent"] < size
    home.result("check", "--url", other)
    fetched = home.result("fetch", NAME, "-o", tmp_path / "fetched", "--url", other, "--quiet")
    assert size == fetched["size"]


def test_copy_to_an_object_store_and_back(home: Home, tmp_path: Path, bucket: Bucket, postgres_index_url: str) -> None:
    """A command makes the repository there, and copies without a server."""
    pushed = push(home, 1)
    to = ("--to", bucket.location("models"), "--to-index", postgres_index_url, "--create", "--quiet")
    copied = home.result("copy", NAME, *to, environ=bucket.environ)
    assert (pushed["digest"], True) == (copied["digest"], copied["repository_created"])
    place = {**bucket.environ, "FILESTORE_STORE": bucket.location("models"), "FILESTORE_INDEX": postgres_index_url}
    back = home.result("copy", NAME, "--to", tmp_path / "back", "--create", environ=place)
    assert copied["bytes_sent"] == back["bytes_sent"]
    assert 0 == home.result("copy", NAME, "again", environ=place)["bytes_sent"]
