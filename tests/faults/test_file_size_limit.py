"""A file is larger than its file system, or the limit of a process, allows. The error names the file and the cause."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.commands import SCRIPTS, Home, notes
from tests.support.generator import octets
from tests.support.trees import plant

SIZE = 2 << 20
CAUSE = "a file there may not have that many bytes, by the limit of its file system or by that of this process (`ulimit -f`)"


def limited(home: Home, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot make files of more than 1 MiB."""
    return home.run("-c", 'ulimit -f 1024; exec "$0" "$@"', SCRIPTS / "filestore", *arguments, program="bash")


@pytest.fixture
def large(home: Home, tmp_path: Path) -> dict[str, str]:
    """A directory with one file that is too large."""
    pushed: dict[str, str] = home.result("push", plant(tmp_path / "model", {"small": b"1", "weights.bin": octets(1, SIZE)}))
    return pushed


@pytest.mark.slow
def test_a_file_that_is_too_large_is_named(home: Home, tmp_path: Path) -> None:
    """The error has the path of the target, and nothing of the file is left."""
    (tmp_path / "weights.bin").write_bytes(octets(1, SIZE))
    pushed = home.result("push", tmp_path / "weights.bin")
    target = tmp_path / "out/weights.bin"
    target.parent.mkdir()
    done = limited(home, "fetch", pushed["id"], "-o", target)
    assert (1, "") == (done.returncode, done.stdout)
    assert f"Error: {target} failed: {CAUSE}; use another file system, or raise that limit\n" == notes(done)
    assert [] == list(target.parent.iterdir())


@pytest.mark.slow
def test_an_entry_that_is_too_large_is_named(home: Home, large: dict[str, str], tmp_path: Path) -> None:
    """The error has its path in the tree."""
    done = limited(home, "fetch", large["id"], "-o", tmp_path / "out")
    assert (1, "") == (done.returncode, done.stdout)
    assert f"Error: {tmp_path}/out/weights.bin failed: {CAUSE}" in done.stderr


@pytest.mark.slow
def test_an_entry_of_the_cache_that_is_too_large_is_named(home: Home, large: dict[str, str]) -> None:
    """The zip of a directory is one file."""
    done = limited(home, "cache", "warm", large["id"], "--zip", "--quiet")
    assert (1, "") == (done.returncode, done.stdout)
    assert f"model.zip failed: {CAUSE}" in done.stderr
