"""Where commands make a repository, and where they make none: success in the wrong place is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home, notes

READING_VERBS = (
    ["ls"],
    ["info", "model.bin"],
    ["fetch", "model.bin", "-o", "back.bin"],
    ["cache", "warm", "model.bin", "--cache", "cache"],
    ["push", "model.bin", "--dry-run"],
    ["rm", "file_" + "0" * 32],
)


@pytest.fixture
def model(new_home: Home) -> Path:
    """A file, in the folder that commands run in."""
    path = new_home.folder / "model.bin"
    path.write_bytes(b"weights" * 1000)
    return path


def visible(home: Home) -> set[str]:
    """Return what is in the folder of the commands, without the user's own folders."""
    return {path.name for path in home.folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
@pytest.mark.parametrize("url", ["localhost:8080", "//localhost", "http:/localhost:8080", "https:localhost"])
@pytest.mark.parametrize("command", [["push", "model.bin"], ["push", "model.bin", "--create"], ["create", "file", "model.bin"]])
def test_push_to_a_mistyped_url_makes_no_folder(new_home: Home, model: Path, url: str, command: list[str]) -> None:
    """The URL that was probably meant is said."""
    sentence = new_home.failure(*command, "--url", url)
    assert f"{url!r} names no repository: " in sentence
    assert "did you mean 'http" in sentence
    assert {model.name} == visible(new_home)


@pytest.mark.slow
def test_verbs_that_only_read_make_nothing_at_a_mistyped_path(new_home: Home, model: Path) -> None:
    """Nor does any verb that is not asked to."""
    for verb in READING_VERBS:
        assert "modles is not a repository: there is no such folder; check the path" in new_home.failure(*verb, "--url", "modles")
    for verb in (["token", "ls"], ["token", "rm", "0" * 64], ["token", "new"], ["serve"]):
        assert "modles is not a repository: there is no such folder; check the path" in new_home.failure(
            *verb, "--root", "modles"
        )
    assert {model.name} == visible(new_home)


@pytest.mark.slow
def test_local_folder_is_not_made_by_a_command_that_is_not_asked_to(new_home: Home, model: Path) -> None:
    """A push without a repository, before any server was started, is refused; the error says what to do."""
    for verb in (*READING_VERBS, ["push", "model.bin"], ["create", "file", "model.bin"], ["token", "new"]):
        sentence = new_home.failure(*verb)
        assert sentence.startswith(f"{new_home.data} is not a repository: there is no such folder; `filestore serve` makes it at")
        assert "`filestore push --create`" in sentence
        assert "--url" in sentence
    assert not new_home.data.exists()
    assert {model.name} == visible(new_home)


@pytest.mark.slow
def test_local_folder_is_made_by_the_first_serve(new_home: Home) -> None:
    """Which says so; from then on it is served as it is."""
    for said in (f"folder  {new_home.data} (a new repository, made just now)", f"folder  {new_home.data}"):
        with new_home.local_server() as server:
            assert said == server.said.splitlines()[0]


@pytest.mark.slow
def test_serve_makes_a_folder_that_is_named_by_create_only(new_home: Home) -> None:
    """Whether an option or the environment names it: a disk that is not mounted is an empty folder, too."""
    root = new_home.folder / "disk"
    root.mkdir()
    for arguments, environ in (["--root", str(root)], {}), ([], {"FILESTORE_ROOT": str(root)}):
        sentence = new_home.failure("serve", "--port", "0", *arguments, environ=environ)
        assert sentence.startswith(f"{root} is not a repository: the folder is empty; mount the disk that belongs there, if one")
        assert "`filestore serve --create`" in sentence
    assert [] == list(root.iterdir())
    with new_home.server(root=root) as server:
        assert f"folder  {root} (a new repository, made just now)" == server.said.splitlines()[0]


@pytest.mark.slow
def test_push_makes_a_folder_by_create_and_says_so(new_home: Home, model: Path) -> None:
    """A person on standard error, a program in the result."""
    done = new_home.run("push", model, "--url", "new", "--create")
    assert (0, f"A new repository was made in {new_home.folder}/new.\n") == (done.returncode, notes(done))
    assert not new_home.result("push", model, "--url", "new", "--create")["repository_created"]
    assert new_home.result("create", "file", model, "--url", "other", "--create")["repository_created"]
    assert new_home.result("token", "new", "--root", "third", "--create")["repository_created"]
    assert {model.name, "new", "other", "third"} == visible(new_home)


@pytest.mark.slow
def test_nothing_is_scattered_into_a_folder_that_holds_other_things(new_home: Home, model: Path) -> None:
    """Every command refuses such a folder."""
    before = visible(new_home)
    for verb in (["push", model, "--url"], ["create", "file", model, "--url"], ["serve", "--root"], ["token", "new", "--root"]):
        sentence = new_home.failure(*verb, new_home.folder, "--create")
        assert "is not a repository: the folder holds other things ('" in sentence
        assert "a new one is made in a new or an empty folder only" in sentence
    assert before == visible(new_home)


def test_create_is_for_folders(new_home: Home, model: Path) -> None:
    """The repository of a server is not made from afar, and a dry run makes nothing."""
    assert "is the URL of a server" in new_home.failure("push", model, "--create", "--url", "http://127.0.0.1:9")
    done = new_home.run("push", model, "--create", "--dry-run", "--url", "new")
    assert (2, {model.name}) == (done.returncode, visible(new_home))


@pytest.mark.slow
def test_server_of_a_folder_that_was_lost_makes_no_other(new_home: Home) -> None:
    """Once it was mounted and served, an empty folder in its place is not served as a new repository."""
    root = new_home.folder / "disk"
    with new_home.server(root=root):
        pass
    root.rename(new_home.folder / "unmounted")
    root.mkdir()
    done = new_home.run("serve", "--root", root, "--port", "0", program=SCRIPTS / "filestore")
    assert (1, "") == (done.returncode, done.stdout)
    assert [] == list(root.iterdir())
