"""The file that a content arrives in, and what its readers see of it."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from filestore.download.download import Validators
from filestore.upstream.arriving import ArrivingFile, ArrivingReader, Look
from filestore.upstream.listing import UpstreamFile
from tests.support.hub_upstream import blob_id

CONTENT = bytes(range(256)) * 16
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LARGE = UpstreamFile(len(CONTENT), "0" * 40, SHA256)
SMALL = UpstreamFile(len(CONTENT), blob_id(CONTENT), None)


def _begun(folder: Path, *pieces: bytes, expected: UpstreamFile = LARGE) -> ArrivingFile:
    """An open file with these bytes."""
    folder.mkdir(exist_ok=True)
    file = ArrivingFile(folder, expected)
    file.open()
    file.begin(Validators(), len(CONTENT))
    for piece in pieces:
        file.write([piece])
    return file


@pytest.mark.parametrize("expected", [LARGE, SMALL])
def test_a_whole_file_is_marked(tmp_path: Path, expected: UpstreamFile) -> None:
    """Readers see the mark on the open file, also when it has no name any more."""
    file = _begun(tmp_path / "in", CONTENT[:1000], CONTENT[1000:], expected=expected)
    reader = ArrivingReader(tmp_path / "in")
    assert reader.look() == Look(len(CONTENT), is_verified=False, is_taken_back=False)
    assert file.verify() == expected.tag
    file.path.unlink()
    assert reader.look() == Look(len(CONTENT), is_verified=True, is_taken_back=False)
    memory = bytearray(len(CONTENT))
    assert (reader.read(memoryview(memory), 0), bytes(memory)) == (len(CONTENT), CONTENT)
    reader.close()
    file.close()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!", b""])
def test_another_content_is_not_marked(tmp_path: Path, content: bytes) -> None:
    """A file that is shorter, or has other bytes, never gets the mark."""
    file = _begun(tmp_path / "in", content)
    assert file.verify() != SHA256
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.close()


def test_bytes_that_are_taken_back(tmp_path: Path) -> None:
    """A download that starts over gets a new file, and readers of the old one learn it."""
    file = _begun(tmp_path / "in", b"x" * 1000)
    reader, later = ArrivingReader(tmp_path / "in"), ArrivingReader(tmp_path / "in")
    assert reader.look() == Look(1000, is_verified=False, is_taken_back=False)
    file.begin(Validators(), len(CONTENT))
    file.write([CONTENT])
    assert file.verify() == SHA256
    assert reader.look() == Look(1000, is_verified=False, is_taken_back=True)
    assert later.look() == Look(len(CONTENT), is_verified=True, is_taken_back=False)
    for each in (reader, later, file):
        each.close()


def test_an_answer_that_begins_earlier(tmp_path: Path) -> None:
    """Bytes that an origin sends again replace the first ones in a new file only, and the digest is that of the new file."""
    file = _begun(tmp_path / "in", CONTENT[:500], b"x" * 500)
    reader = ArrivingReader(tmp_path / "in")
    reader.look()
    file.size = 500
    file.write([CONTENT[500:]])
    assert file.verify() == SHA256
    found = reader.look()
    assert found is not None
    assert found.is_taken_back
    reader.close()
    file.close()


def test_the_process_was_killed(tmp_path: Path) -> None:
    """All bytes that were written count after a kill, without a sync, and the digest goes on with them."""
    killed = _begun(tmp_path / "in", CONTENT[:3000])
    later = ArrivingFile(tmp_path / "in", LARGE)
    later.open()
    assert later.size == 3000
    later.write([CONTENT[3000:]])
    assert later.verify() == SHA256
    later.close()
    killed.close()


def test_the_machine_was_started_again(tmp_path: Path) -> None:
    """Only bytes that were synced count after a crash of the machine. Other ones may be zeros."""
    crashed = _begun(tmp_path / "in", CONTENT[:1000])
    crashed.note()
    crashed.write([CONTENT[1000:3000]])
    (tmp_path / "in" / "boot").write_text("another one\n")
    later = ArrivingFile(tmp_path / "in", LARGE)
    later.open()
    assert later.size == 1000
    later.write([CONTENT[1000:]])
    assert later.verify() == SHA256
    later.close()


def test_a_verified_file_is_opened_again(tmp_path: Path) -> None:
    """A process that ended before it stored a verified file leaves it to the next one."""
    file = _begun(tmp_path / "in", CONTENT)
    file.verify()
    file.close()
    later = ArrivingFile(tmp_path / "in", LARGE)
    later.open()
    assert later.is_whole
    assert later.verify() == SHA256
    later.close()


def test_nothing_is_there(tmp_path: Path) -> None:
    """A reader may come before the file."""
    reader = ArrivingReader(tmp_path / "in")
    assert reader.look() is None
    assert not reader.is_open
    reader.close()
