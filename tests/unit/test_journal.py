from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.repository.protocol import Identity
from filestore.transfer.sources import push_cache as journal_module
from filestore.transfer.sources.file import Remembered
from filestore.transfer.sources.push_cache import Journal

IDENTITY = Identity("0" * 32, "default", 0)
MANIFEST = Manifest.build([Chunk(chunk_digest(b"abc"), 3)], cutting=0)
KNOWN = b"what a source knows of itself"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file that was pushed lies."""
    return tmp_path / "model.bin"


def _found(journal: Journal, path: Path) -> tuple[Manifest, bytes] | None:
    remembered: Remembered | None = journal.find(IDENTITY, path)
    return None if remembered is None else (remembered.manifest, remembered.known)


def test_what_was_recorded_is_found(tmp_path: Path, path: Path) -> None:
    """The same file, in the same state, at the same repository; also in the next process."""
    with Journal(tmp_path / "new" / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
    with Journal(tmp_path / "new" / "journal") as journal:
        assert (MANIFEST, KNOWN) == _found(journal, path)


@pytest.mark.parametrize("change", [{"id": "1" * 32}, {"namespace": "other"}, {"cutting": 1}])
def test_another_repository_knows_nothing_of_it(tmp_path: Path, path: Path, change: dict[str, str]) -> None:
    """What one repository has, in one namespace and cutting, says nothing of another."""
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
        assert None is journal.find(IDENTITY._replace(**change), path)  # type: ignore[arg-type]  # cutting is an int


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_journal_is_as_good_as_an_empty_one(tmp_path: Path, path: Path, content: bytes) -> None:
    """A journal only saves work: nothing that is wrong with it fails a push."""
    (tmp_path / "journal").write_bytes(content)
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
        assert _found(journal, path) in {None, (MANIFEST, KNOWN)}


def test_a_journal_of_another_version_is_left_alone(tmp_path: Path, path: Path) -> None:
    """A newer program's journal is neither read nor written."""
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / "journal").read_bytes()
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
        assert None is journal.find(IDENTITY, path)
    assert before == (tmp_path / "journal").read_bytes()


def test_a_manifest_that_was_damaged_in_the_journal_is_not_used(tmp_path: Path, path: Path) -> None:
    """What comes out of the journal is parsed like any manifest."""
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute("UPDATE pushed SET manifest = x'00'")
    connection.close()
    with Journal(tmp_path / "journal") as journal:
        assert None is journal.find(IDENTITY, path)


@pytest.mark.parametrize("place", [0, 10, 40, -1])
def test_what_was_damaged_in_the_journal_is_not_used(tmp_path: Path, path: Path, place: int) -> None:
    """A flipped bit is found, wherever it is in what the source wrote down."""
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
    with sqlite3.connect(tmp_path / "journal") as connection:
        damaged = bytearray(connection.execute("SELECT known FROM pushed").fetchone()[0])
        damaged[place] ^= 4
        connection.execute("UPDATE pushed SET known = ?", (damaged,))
    connection.close()
    with Journal(tmp_path / "journal") as journal:
        assert None is journal.find(IDENTITY, path)


def test_another_manifest_in_the_journal_is_not_used(tmp_path: Path, path: Path) -> None:
    """One whose digests are others is a manifest all the same, yet not the one of this push."""
    other = Manifest.build([Chunk(chunk_digest(b"other"), 3)], cutting=0)
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute("UPDATE pushed SET manifest = ?", (other.encoded,))
    connection.close()
    with Journal(tmp_path / "journal") as journal:
        assert None is journal.find(IDENTITY, path)


def test_what_claims_to_be_huge_is_not_unpacked(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is looked at before memory is taken for it."""
    monkeypatch.setattr(journal_module, "KNOWN_LIMIT", len(KNOWN) - 1)
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
        assert None is journal.find(IDENTITY, path)


def test_the_oldest_entries_are_forgotten(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal does not grow for ever."""
    monkeypatch.setattr(journal_module, "ENTRY_LIMIT", 2)
    with Journal(tmp_path / "journal") as journal:
        for name in ("a", "b", "c"):
            journal.record(IDENTITY, path.with_name(name), MANIFEST, KNOWN)
        found = [_found(journal, path.with_name(name)) for name in ("a", "b", "c")]
    assert [None, (MANIFEST, KNOWN), (MANIFEST, KNOWN)] == found


def test_entries_that_are_large_are_forgotten_sooner(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size has a limit too: directories of many files write down much."""
    monkeypatch.setattr(journal_module, "SIZE_LIMIT", 2 * len(MANIFEST.encoded) + 200)
    with Journal(tmp_path / "journal") as journal:
        for name in ("a", "b", "c"):
            journal.record(IDENTITY, path.with_name(name), MANIFEST, KNOWN)
        found = [_found(journal, path.with_name(name)) for name in ("a", "b", "c")]
    assert [None, (MANIFEST, KNOWN), (MANIFEST, KNOWN)] == found


def test_a_journal_of_an_older_version_is_made_anew(tmp_path: Path, path: Path) -> None:
    """What an older program remembered is forgotten, and nothing else happens."""
    with sqlite3.connect(tmp_path / "journal") as connection:
        connection.execute("CREATE TABLE pushed (repository TEXT)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Journal(tmp_path / "journal") as journal:
        assert None is _found(journal, path)
        journal.record(IDENTITY, path, MANIFEST, KNOWN)
        assert (MANIFEST, KNOWN) == _found(journal, path)


def test_a_link_and_its_file_are_one_entry(tmp_path: Path, path: Path) -> None:
    """Entries go by the file itself, however it is reached."""
    path.write_bytes(b"abc")
    link = tmp_path / "link"
    link.symlink_to(path)
    with Journal(tmp_path / "journal") as journal:
        journal.record(IDENTITY, link, MANIFEST, KNOWN)
        assert (MANIFEST, KNOWN) == _found(journal, path)
