from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.repository.protocol import Identity
from filestore.transfer.sources import push_cache as push_cache_module
from filestore.transfer.sources.file import CachedPush
from filestore.transfer.sources.push_cache import PushCache

IDENTITY = Identity("0" * 32, "default", 0)
MANIFEST = Manifest.build([Chunk(chunk_digest(b"abc"), 3)], chunking_version=0)
FINGERPRINT = b"what a source knows of itself"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the file that was pushed."""
    return tmp_path / "model.bin"


def _found(push_cache: PushCache, path: Path) -> tuple[Manifest, bytes] | None:
    cached: CachedPush | None = push_cache.find(IDENTITY, path)
    return None if cached is None else (cached.manifest, cached.fingerprint)


def test_what_was_recorded_is_found(tmp_path: Path, path: Path) -> None:
    """The same file, in the same state, at the same repository; also in the next process."""
    with PushCache(tmp_path / "new" / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
    with PushCache(tmp_path / "new" / "push_cache") as push_cache:
        assert (MANIFEST, FINGERPRINT) == _found(push_cache, path)


@pytest.mark.parametrize("change", [{"id": "1" * 32}, {"namespace": "other"}, {"chunking_version": 1}])
def test_another_repository_knows_nothing_of_it(tmp_path: Path, path: Path, change: dict[str, str]) -> None:
    """An entry holds for one repository, one namespace and one chunking version."""
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
        assert None is push_cache.find(IDENTITY._replace(**change), path)  # type: ignore[arg-type]  # cutting is an int


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_push_cache_is_as_good_as_an_empty_one(tmp_path: Path, path: Path, content: bytes) -> None:
    """A push cache only saves work: nothing that is wrong with it fails a push."""
    (tmp_path / "push_cache").write_bytes(content)
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
        assert _found(push_cache, path) in {None, (MANIFEST, FINGERPRINT)}


def test_a_push_cache_of_another_version_is_left_alone(tmp_path: Path, path: Path) -> None:
    """A newer program's push cache is neither read nor written."""
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / "push_cache").read_bytes()
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
        assert None is push_cache.find(IDENTITY, path)
    assert before == (tmp_path / "push_cache").read_bytes()


def test_a_manifest_that_was_damaged_in_the_push_cache_is_not_used(tmp_path: Path, path: Path) -> None:
    """A manifest from the push cache is parsed and checked like any other."""
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        connection.execute("UPDATE pushed SET manifest = x'00'")
    connection.close()
    with PushCache(tmp_path / "push_cache") as push_cache:
        assert None is push_cache.find(IDENTITY, path)


@pytest.mark.parametrize("place", [0, 10, 40, -1])
def test_what_was_damaged_in_the_push_cache_is_not_used(tmp_path: Path, path: Path, place: int) -> None:
    """A flipped bit is found, at any place of the fingerprint."""
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        damaged = bytearray(connection.execute("SELECT known FROM pushed").fetchone()[0])
        damaged[place] ^= 4
        connection.execute("UPDATE pushed SET known = ?", (damaged,))
    connection.close()
    with PushCache(tmp_path / "push_cache") as push_cache:
        assert None is push_cache.find(IDENTITY, path)


def test_another_manifest_in_the_push_cache_is_not_used(tmp_path: Path, path: Path) -> None:
    """One whose digests are others is a manifest all the same, yet not the one of this push."""
    other = Manifest.build([Chunk(chunk_digest(b"other"), 3)], chunking_version=0)
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        connection.execute("UPDATE pushed SET manifest = ?", (other.encoded,))
    connection.close()
    with PushCache(tmp_path / "push_cache") as push_cache:
        assert None is push_cache.find(IDENTITY, path)


def test_what_claims_to_be_huge_is_not_unpacked(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is looked at before memory is taken for it."""
    monkeypatch.setattr(push_cache_module, "FINGERPRINT_LIMIT", len(FINGERPRINT) - 1)
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
        assert None is push_cache.find(IDENTITY, path)


def test_the_oldest_entries_are_forgotten(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push cache does not grow for ever."""
    monkeypatch.setattr(push_cache_module, "ENTRY_LIMIT", 2)
    with PushCache(tmp_path / "push_cache") as push_cache:
        for name in ("a", "b", "c"):
            push_cache.record(IDENTITY, path.with_name(name), MANIFEST, FINGERPRINT)
        found = [_found(push_cache, path.with_name(name)) for name in ("a", "b", "c")]
    assert [None, (MANIFEST, FINGERPRINT), (MANIFEST, FINGERPRINT)] == found


def test_entries_that_are_large_are_forgotten_sooner(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size has a limit too: directories of many files write down much."""
    monkeypatch.setattr(push_cache_module, "SIZE_LIMIT", 2 * len(MANIFEST.encoded) + 200)
    with PushCache(tmp_path / "push_cache") as push_cache:
        for name in ("a", "b", "c"):
            push_cache.record(IDENTITY, path.with_name(name), MANIFEST, FINGERPRINT)
        found = [_found(push_cache, path.with_name(name)) for name in ("a", "b", "c")]
    assert [None, (MANIFEST, FINGERPRINT), (MANIFEST, FINGERPRINT)] == found


def test_a_push_cache_of_an_older_version_is_made_again(tmp_path: Path, path: Path) -> None:
    """The entries of an older program are dropped, without an error."""
    with sqlite3.connect(tmp_path / "push_cache") as connection:
        connection.execute("CREATE TABLE pushed (repository TEXT)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with PushCache(tmp_path / "push_cache") as push_cache:
        assert None is _found(push_cache, path)
        push_cache.record(IDENTITY, path, MANIFEST, FINGERPRINT)
        assert (MANIFEST, FINGERPRINT) == _found(push_cache, path)


def test_a_link_and_its_file_are_one_entry(tmp_path: Path, path: Path) -> None:
    """Entries go by the file itself, however it is reached."""
    path.write_bytes(b"abc")
    link = tmp_path / "link"
    link.symlink_to(path)
    with PushCache(tmp_path / "push_cache") as push_cache:
        push_cache.record(IDENTITY, link, MANIFEST, FINGERPRINT)
        assert (MANIFEST, FINGERPRINT) == _found(push_cache, path)
