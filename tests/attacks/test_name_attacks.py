"""Another user chose the names of stored files. A fetch without a target writes to the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home
from tests.support.trees import plant, standing

CONTENT = b"echo attacked"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def stored(home: Home, tmp_path: Path, name: str) -> dict[str, str]:
    """A file that another user stored under a name."""
    (tmp_path / "source").write_bytes(CONTENT)
    pushed: dict[str, str] = home.result("push", tmp_path / "source", "--name", name)
    return pushed


@pytest.mark.slow
@pytest.mark.parametrize("key", ["id", "digest"])
def test_a_file_that_the_user_has_is_not_replaced(home: Home, tmp_path: Path, here: Path, key: str) -> None:
    """The user who stored it must not replace files in this folder. With --force, it is replaced under its own name."""
    pushed = stored(home, tmp_path, "run.sh")
    (here / "run.sh").write_bytes(b"mine")
    sentence = home.failure("fetch", pushed[key], cwd=here)
    assert sentence.startswith("run.sh cannot be written: another file is there")
    assert sentence.endswith("give another target, or replace it by force; -o and --force do that")
    assert {"run.sh": b"mine"} == standing(here)
    home.result("fetch", pushed[key], "--force", cwd=here)
    assert {"run.sh": CONTENT} == standing(here)
    (here / "run.sh").write_bytes(b"mine")
    home.result("fetch", "run.sh", cwd=here)
    assert {"run.sh": CONTENT} == standing(here)


@pytest.mark.slow
def test_a_second_fetch_of_the_same_is_not_a_replacement(home: Home, tmp_path: Path, here: Path) -> None:
    """An identical file that is already there is accepted."""
    pushed = stored(home, tmp_path, "run.sh")
    home.result("fetch", pushed["id"], cwd=here)
    assert len(CONTENT) == home.result("fetch", pushed["id"], cwd=here)["bytes_reused"]


@pytest.mark.slow
@pytest.mark.parametrize("leads_to", ["outside", "nowhere"])
def test_a_link_by_that_name_is_not_followed(home: Home, tmp_path: Path, here: Path, leads_to: str) -> None:
    """The target of the link stays as it is, also if it does not exist."""
    pushed = stored(home, tmp_path, "run.sh")
    outside = tmp_path / leads_to
    if leads_to == "outside":
        outside.write_bytes(b"mine")
    (here / "run.sh").symlink_to(outside)
    home.failure("fetch", pushed["id"], cwd=here)
    assert (here / "run.sh").is_symlink()
    assert (leads_to == "outside") == outside.exists()
    assert not outside.exists() or b"mine" == outside.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["id", "digest", "path of another name"])
def test_a_name_with_a_dot_is_not_written(home: Home, tmp_path: Path, here: Path, way: str) -> None:
    """It is refused whether the file exists or not. With --force, a target, or the typed name, it is written."""
    pushed = stored(home, tmp_path, ".bashrc")
    reference = pushed["digest" if way == "digest" else "id"]
    if way == "path of another name":
        reference = f"run_files/{'/'.join((pushed['id'][5:7], pushed['id'][7:9]))}/{_uuid(pushed['id'])}/harmless"
    sentence = home.failure("fetch", reference, cwd=here)
    assert sentence.startswith(".bashrc cannot be written: you did not type this name, and it begins with a dot")
    assert [] == list(here.iterdir())
    home.result("fetch", reference, "-o", "theirs", cwd=here)
    home.result("fetch", reference, "--force", cwd=here)
    (here / ".bashrc").unlink()
    home.result("fetch", ".bashrc", cwd=here)
    (here / ".bashrc").unlink()
    home.result("fetch", pushed["path"], cwd=here)
    assert {".bashrc": CONTENT, "theirs": CONTENT} == standing(here)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "inner", "inner/"])
def test_a_folder_as_the_target_does_not_choose_the_name(home: Home, tmp_path: Path, here: Path, folder: str) -> None:
    """`-o FOLDER` names a folder, and the name in it is still another person's: the same rules hold."""
    inside = here / folder
    inside.mkdir(exist_ok=True)
    (inside / "run.sh").write_bytes(b"mine")
    pushed = stored(home, tmp_path, "run.sh")
    sentence = home.failure("fetch", pushed["id"], "-o", folder, cwd=here)
    assert "another file is there" in sentence
    assert {"run.sh": b"mine"} == standing(inside)
    home.result("fetch", pushed["id"], "-o", folder, "--force", cwd=here)
    assert {"run.sh": CONTENT} == standing(inside)
    (inside / "run.sh").write_bytes(b"mine")
    home.result("fetch", "run.sh", "-o", folder, cwd=here)
    home.result("fetch", pushed["id"], "-o", f"{folder.rstrip('/')}/run.sh", cwd=here)
    assert {"run.sh": CONTENT} == standing(inside)


@pytest.mark.slow
def test_a_name_with_a_dot_is_not_written_in_a_folder(home: Home, tmp_path: Path, here: Path) -> None:
    """Also a link by that name is neither followed nor replaced, with the folder given as the target."""
    pushed = stored(home, tmp_path, ".bashrc")
    for key in ("id", "digest"):
        assert "it begins with a dot" in home.failure("fetch", pushed[key], "-o", here, cwd=tmp_path)
    assert [] == list(here.iterdir())
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    plain = stored(home, tmp_path, "plain")
    (here / "plain").symlink_to(outside)
    home.failure("fetch", plain["id"], "-o", here, cwd=tmp_path)
    assert (here / "plain").is_symlink()
    assert b"mine" == outside.read_bytes()


def _uuid(file_id: str) -> str:
    digits = file_id.removeprefix("file_")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["id", "name"])
def test_a_directory_with_a_dot_is_not_written(home: Home, tmp_path: Path, here: Path, key: str) -> None:
    """`.ssh.zip` would become `./.ssh`, a name that nobody typed."""
    pushed = home.result("push", plant(tmp_path / "tree", {"authorized_keys": CONTENT}), "--name", ".ssh.zip")
    sentence = home.failure("fetch", pushed[key], cwd=here)
    assert sentence.startswith(".ssh cannot be written: you did not type this name, and it begins with a dot")
    assert [] == list(here.iterdir())
    (here / ".ssh").mkdir()
    home.failure("fetch", pushed[key], cwd=here)
    assert [] == list((here / ".ssh").iterdir())
    home.result("fetch", pushed[key], "-o", "keys", cwd=here)
    assert {"authorized_keys": CONTENT} == standing(here / "keys")
    (here / ".ssh").rmdir()
    home.result("fetch", pushed[key], "--force", cwd=here)
    assert {"authorized_keys": CONTENT} == standing(here / ".ssh")


@pytest.mark.slow
def test_a_zip_with_a_dot_is_not_written(home: Home, tmp_path: Path, here: Path) -> None:
    """The tree of a zip file is not written either, nor is a directory as its zip."""
    pushed = home.result("push", plant(tmp_path / "tree", {"a": CONTENT}), "--name", ".profile.zip")
    assert ".profile.zip cannot be written" in home.failure("fetch", pushed["id"], "--zip", cwd=here)
    assert ".profile cannot be written" in home.failure("fetch", pushed["id"], "--unzip", cwd=here)
    assert [] == list(here.iterdir())
