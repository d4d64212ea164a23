"""A file system reports wrong sizes of files. A file is stored with all of its content, or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from filestore.errors import SourceChanged, SourceUnreadable
from filestore.transfer.sources.file import CachedPush, FileSource
from filestore.transfer.sources.tree import TreeSource
from filestore.transfer.sources.walk import Symlinks, walk
from tests.support.chunking import scan
from tests.support.commands import AS_ANY_USER, SCRIPTS, Home
from tests.support.generator import octets
from tests.support.trees import plant

REPORTS_NOTHING = Path("/proc/version")
REPORTS_TOO_MUCH = Path("/sys/kernel/cpu_byteorder")

needs_proc = pytest.mark.skipif(not REPORTS_NOTHING.exists(), reason="needs the /proc of Linux")
needs_sys = pytest.mark.skipif(not REPORTS_TOO_MUCH.exists(), reason="needs the /sys of Linux")


@pytest.mark.slow
@needs_proc
def test_a_file_of_reported_size_0_is_not_stored_empty(home: Home) -> None:
    """It is refused, and nothing is recorded. A copy of its content can be pushed."""
    sentence = home.failure("push", REPORTS_NOTHING)
    assert sentence.startswith(f"{REPORTS_NOTHING} cannot be read: it has more bytes than the 0 that it reports; copy its")
    assert [] == home.result("ls")["files"]
    assert str(REPORTS_NOTHING) in home.failure("hash", REPORTS_NOTHING)
    copy = home.folder / "copy"
    copy.write_bytes(REPORTS_NOTHING.read_bytes())
    assert len(copy.read_bytes()) == home.result("push", copy)["size"]


@pytest.mark.slow
@needs_proc
def test_a_file_of_reported_size_0_in_a_directory_is_not_stored_empty(home: Home) -> None:
    """It is refused by its own path. Files that are really empty are not refused."""
    folder = home.folder / "system"
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "version").symlink_to(REPORTS_NOTHING)
    sentence = home.failure("push", folder, "--symlinks", "follow")
    assert sentence.startswith(f"{REPORTS_NOTHING} cannot be read: it has more bytes than the 0 that it reports")
    assert [] == home.result("ls")["files"]
    (folder / "version").unlink()
    assert 1 == home.result("push", folder)["file_count"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), [("closed", b""), ("closed", b"content"), ("folder", b"")])
def test_what_may_not_be_read_is_told_by_name(home: Home, name: str, content: bytes) -> None:
    """This includes files of reported size 0, which may have content. Nothing is recorded.

    The user can allow access or exclude them.
    """
    tree = plant(home.folder / "tree", {"closed": content, "folder/inner": b"1", "open": b""})
    (tree / name).chmod(0)
    program, *before = (*AS_ANY_USER, SCRIPTS / "filestore")
    done = home.run(*before, "push", tree, program=program)
    assert 1 == done.returncode
    advice = "make it readable with `chmod`, or leave it out; --exclude does that"
    assert f"{tree / name} cannot be read: Permission denied; {advice}" in done.stderr
    assert [] == home.result("ls")["files"]
    assert 0 == home.run(*before, "push", tree, "--exclude", name, program=program).returncode
    (tree / name).chmod(0o755)
    assert 0 == home.run(*before, "push", tree, program=program).returncode


@needs_proc
def test_a_file_that_was_recorded_as_empty_is_looked_at_again(tmp_path: Path) -> None:
    """The push cache of an earlier version may have recorded a file of /proc as empty."""
    empty = tmp_path / "empty"
    empty.touch()
    with FileSource(empty) as source:
        scan(source)
        manifest = source.manifest()
    with FileSource(REPORTS_NOTHING) as source:
        source.load_fingerprint(CachedPush(manifest, source.fingerprint(), time.time_ns() + 3_000_000_000))
        assert source.is_finished
        with pytest.raises(SourceUnreadable):
            source.check_unchanged()


@needs_sys
def test_a_file_with_less_than_it_reports_is_not_said_to_have_changed(home: Home) -> None:
    """Another push would not help, and the sentence does not suggest one."""
    sentence = home.failure("push", REPORTS_TOO_MUCH)
    assert "bytes and reports 4096; copy its content to another file" in sentence


@pytest.mark.parametrize("is_tree", [False, True])
def test_an_append_that_the_state_does_not_show_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_tree: bool
) -> None:
    """Some file systems update size and times late. So a push tries to read one byte after the last one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "log"
    path.write_bytes(octets(1, 1000))
    before = path.stat()
    source = TreeSource(walk(folder, symlinks=Symlinks.INSIDE)) if is_tree else FileSource(path)
    with path.open("ab") as file:
        file.write(b"more")
    monkeypatch.setattr(os, "fstat", lambda _: before)
    with source, pytest.raises((SourceChanged, SourceUnreadable), match="more bytes than the 1000"):
        scan(source)
        source.check_unchanged()


def test_an_append_while_a_push_ends_is_noticed(tmp_path: Path) -> None:
    """The stored file is the one that was opened."""
    path = tmp_path / "log"
    path.touch()
    with FileSource(path) as source:
        scan(source)
        path.write_bytes(b"first line")
        with pytest.raises(SourceChanged):
            source.check_unchanged()
