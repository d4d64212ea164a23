"""The options that name an object store and its index: what goes together, and what works on folders only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home

STORE = "s3://models/prefix?endpoint=http://127.0.0.1:9"
INDEX = "postgresql://filestore:a-secret@127.0.0.1:9/filestore"
BOTH = {"FILESTORE_STORE": STORE, "FILESTORE_INDEX": INDEX}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user who has no repository."""
    home = Home(tmp_path / "home")
    home.folder.mkdir()
    return home


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("runtime", "serve"), "runtime serve works on folders so far"),
        (("serve", "--upstream", "https://hub.example"), "upstream cannot be used"),
    ],
)
def test_what_works_on_folders_only_says_so(home: Home, command: tuple[str, ...], words: str) -> None:
    """In one sentence, before anything is opened."""
    said = home.failure(*command, environ=BOTH)
    assert words in said
    assert "a-secret" not in said
    if "folders" in words:
        assert "s3://models/prefix with the index postgresql://127.0.0.1:9/filestore" in said


@pytest.mark.parametrize("command", [("gc",), ("token", "ls"), ("ls",), ("serve",)])
def test_an_object_store_needs_its_index(home: Home, command: tuple[str, ...]) -> None:
    """Each command says what is missing, and how to give it."""
    said = home.failure(*command, environ={"FILESTORE_STORE": STORE})
    assert "an object store needs an index" in said
    assert "FILESTORE_INDEX" in said


@pytest.mark.parametrize("command", [("gc",), ("token", "ls"), ("ls",), ("serve",)])
def test_an_index_needs_its_object_store(home: Home, command: tuple[str, ...]) -> None:
    """A folder of this machine is not used instead."""
    assert "no store is set; set FILESTORE_STORE too" in home.failure(*command, environ={"FILESTORE_INDEX": INDEX})
    assert not (home.folder / ".local").exists()


@pytest.mark.parametrize("command", [("gc", "--root", "folder"), ("token", "ls", "--root", "folder"), ("ls", "--url", "folder")])
def test_an_option_that_names_a_folder_beats_the_environment(home: Home, command: tuple[str, ...]) -> None:
    """The folder is not a repository, and the object store is not asked."""
    assert "folder is not a repository" in home.failure(*command, environ=BOTH)


def test_a_server_that_is_set_beats_an_object_store_that_is_set(home: Home) -> None:
    """A command that a server answers asks the server."""
    said = home.failure("ls", environ={**BOTH, "FILESTORE_URL": "http://127.0.0.1:9"})
    assert "127.0.0.1:9" in said
    assert "s3://" not in said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("gc", "--store", STORE, "--root", "folder"), "--store and --root name two repositories"),
        (("gc", "--index", INDEX), "--index is for a repository in an object store"),
        (("gc", "--store", "/srv/models", "--index", INDEX), "the URL of an object store is expected"),
        (("gc", "--store", STORE, "--index", "mysql://root:a-secret@127.0.0.1/x"), "the URL of a database is expected"),
    ],
)
def test_options_that_do_not_go_together(home: Home, command: tuple[str, ...], words: str) -> None:
    """They are wrong usage, and no message shows the password."""
    done = home.run(*command)
    assert 2 == done.returncode
    assert words in done.stderr
    assert "a-secret" not in done.stderr


def test_a_password_in_an_argument_gives_a_warning(home: Home) -> None:
    """Others see it in the list of processes. The messages do not show it."""
    done = home.run("backup", "target", "--store", STORE, "--index", INDEX)
    assert "can see the password in --index" in done.stderr
    assert "a-secret" not in done.stderr


def test_the_settings_are_read_from_the_file(home: Home) -> None:
    """As all others."""
    home.config_file.write_text(f"store = '{STORE}'\nindex = 'mysql://root:a-secret@127.0.0.1/x'\n")
    said = home.failure("gc")
    assert said.startswith("index in ")
    assert "a-secret" not in said
