"""A log file goes on in whichever way it is rotated, and no line of it is lost or torn."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from filestore.http.server.log_file import LogFile


def lines_of(path: Path) -> list[bytes]:
    """Return the lines of a file."""
    return path.read_bytes().splitlines(keepends=True)


def test_a_file_is_made_for_its_user_alone(tmp_path: Path) -> None:
    """Lines are appended to what is there. The folder is not made."""
    path = tmp_path / "log"
    log = LogFile(path)
    assert 2 == log.append([b"a\n", b"b\n"])
    assert 0o600 == path.stat().st_mode & 0o777
    log.close()
    assert 1 == LogFile(path).append([b"c\n"])
    assert [b"a\n", b"b\n", b"c\n"] == lines_of(path)
    with pytest.raises(FileNotFoundError):
        LogFile(tmp_path / "no" / "log").check()


def test_a_file_that_was_moved_is_followed(tmp_path: Path) -> None:
    """As logrotate moves it, with and without a new file at its place. What was written stays in the file that was moved."""
    path = tmp_path / "log"
    log = LogFile(path)
    for number, is_created in enumerate((True, False)):
        log.append([b"%d\n" % number])
        path.rename(tmp_path / f"old-{number}")
        if is_created:
            path.touch(0o640)
            path.chmod(0o640)
    log.append([b"2\n"])
    found = [lines_of(tmp_path / name) for name in ("old-0", "old-1", "log")]
    assert [[b"0\n"], [b"1\n"], [b"2\n"]] == found


def test_a_file_that_is_cut_to_nothing_begins_again(tmp_path: Path) -> None:
    """As copytruncate of logrotate does, without a hole at its beginning."""
    log = LogFile(tmp_path / "log")
    log.append([b"before\n"])
    os.truncate(tmp_path / "log", 0)
    log.append([b"after\n"])
    assert b"after\n" == (tmp_path / "log").read_bytes()


def test_a_folder_that_was_removed_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    """Nothing is written into a file that has no name any more."""
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    log = LogFile(path)
    log.append([b"a\n"])
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        log.append([b"b\n"])
    path.parent.mkdir()
    log.append([b"b\n"])
    assert b"b\n" == path.read_bytes()


def test_large_files_are_renamed(tmp_path: Path) -> None:
    """The newest of them is FILE.1, and only so many are kept. Two processes rename a file once."""
    path = tmp_path / "log"
    logs = [LogFile(path, size_limit=10, old_files=2) for _ in range(2)]
    for number in range(7):
        logs[number % 2].append([b"line-%04d\n" % number])
    found = [lines_of(tmp_path / name) for name in ("log", "log.1", "log.2")]
    assert [[b"line-0006\n"], [b"line-0005\n"], [b"line-0004\n"]] == found
    assert 3 == len(list(tmp_path.iterdir()))


def test_a_file_that_cannot_be_renamed_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lines are worth more than the limit. The log of the server says it once for each limit that is reached."""
    path = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "x").touch()
    log = LogFile(path, size_limit=10, old_files=1)
    for _ in range(4):
        log.append([b"12345\n"])
    assert 4 == len(lines_of(path))
    assert 1 == caplog.text.count("cannot be rotated")


def test_a_line_that_a_full_disk_has_cut_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    """The number of whole lines is returned. The rest of the line stays on a line of its own."""

    def write(descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data[:7])

    path = tmp_path / "log"
    assert 1 == LogFile(path, write=write).append([b"one\n", b"two-and-more\n"])
    assert 1 == LogFile(path).append([b"two-and-more\n"])
    assert [b"one\n", b"two\n", b"two-and-more\n"] == lines_of(path)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """A pipe that nobody reads would stop the thread that writes."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is not a file"):
        LogFile(tmp_path / "pipe").check()
    with pytest.raises(IsADirectoryError):
        LogFile(tmp_path).check()


def test_a_link_in_a_folder_of_all_users_is_not_followed(tmp_path: Path) -> None:
    """Another user could make us write into a file of ours. In a folder of our own, a link is followed."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for folder in (shared, tmp_path):
        (folder / "link").symlink_to(tmp_path / "target")
    LogFile(tmp_path / "link").check()
    shared.chmod(0o1777)
    with pytest.raises(OSError, match="symbolic links") as raised:
        LogFile(shared / "link").check()
    assert errno.ELOOP == raised.value.errno
    (shared / "open").touch()
    (shared / "open").chmod(0o666)
    with pytest.raises(PermissionError, match="another user may have made it"):
        LogFile(shared / "open").check()
