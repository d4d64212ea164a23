"""Push what the cache of Hugging Face's programs has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Home, notes
from tests.support.trees import snapshot, standing

pytestmark = pytest.mark.slow

NAME = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize("is_server", [False, True])
def test_a_snapshot_gets_the_name_and_the_revision_of_the_hub(home: Home, tmp_path: Path, *, is_server: bool) -> None:
    """Links are followed, a note says the name, and the revision is a tag. A second push changes nothing."""
    found = snapshot(tmp_path / "hub")
    cache = found.path.parent.parent
    (cache / "refs/v1.0").write_text(found.path.name)
    with home.local_server() as server:
        environ = server.environ if is_server else {}
        done = home.run("push", cache, environ=environ)
        assert 0 == done.returncode, done.stderr
        assert f"it is stored as {NAME} (--name changes that)" in done.stderr
        home.result("fetch", NAME, "-o", tmp_path / "back", environ=environ)
        assert found.contents == standing(tmp_path / "back")
        pushed = home.result("info", NAME, environ=environ)
        for tag in ("v1.0", f"hf-{found.path.name}"):
            assert pushed["id"] == home.result("info", f"{NAME}@{tag}", environ=environ)["id"]
        [commit] = home.result("log", NAME, environ=environ)["commits"]
        assert f"Revision {found.path.name} of {NAME}." == commit["message"]

        assert pushed["id"] == home.result("push", found.path, environ=environ)["id"]
        assert 1 == len(home.result("log", NAME, environ=environ)["commits"])
        named = home.run("push", found.path, "--name", "team/other", environ=environ)
        assert (0, "") == (named.returncode, notes(named))
        assert pushed["digest"] == home.result("info", f"team/other@hf-{found.path.name}", environ=environ)["digest"]


def test_a_tag_that_is_elsewhere_stays(home: Home, tmp_path: Path) -> None:
    """The Hub may move a tag. The snapshot is stored, and a note says what was not done."""
    found = snapshot(tmp_path / "hub")
    cache = found.path.parent.parent
    (cache / "refs/v1.0").write_text(found.path.name)
    first = home.result("push", cache)
    (found.path / "config.json").unlink()
    (found.path / "config.json").write_text("{}")
    done = home.run("push", cache)
    assert 0 == done.returncode
    assert "The tag v1.0 stays at another version; `filestore tag --force` moves it." in done.stderr
    assert first["id"] == home.result("info", f"{NAME}@v1.0")["id"]
    assert first["id"] != home.result("info", NAME)["id"]


def test_what_is_missing_is_an_error(home: Home, tmp_path: Path) -> None:
    """It names the file, also in a dry run, and nothing is stored."""
    found = snapshot(tmp_path / "hub")
    (found.path / "onnx/model.onnx").resolve().unlink()
    for options in ((), ("--dry-run",)):
        assert "onnx/model.onnx" in home.failure("push", found.path, *options)
    assert [] == home.result("ls")["files"]
    (found.path.parent.parent / "blobs/0a.incomplete").touch()
    done = home.run("push", found.path, "--exclude", "onnx")
    assert 0 == done.returncode
    assert "was interrupted, so files may be missing" in done.stderr


def test_a_dry_run_of_a_snapshot(home: Home, tmp_path: Path) -> None:
    """It follows links too."""
    found = snapshot(tmp_path / "hub")
    plan = home.result("push", found.path.parent.parent, "--dry-run")
    assert set(found.contents) == {entry["name"] for entry in plan["entries"]}
