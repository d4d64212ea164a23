"""Remember earlier pushes, so that a second push of an unchanged file or directory does not read it.

It is only a cache: a push works with a push cache that is damaged, locked or of another version as with an empty one.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

from zstandard import ZstdCompressor, ZstdError, decompress, get_frame_parameters

from filestore.core.digest import DIGEST_SIZE
from filestore.core.manifest import Manifest
from filestore.errors import FilestoreError
from filestore.repository.protocol import Identity
from filestore.system.files import given_path
from filestore.system.owners import PRIVATE_FILE, make_private, tighten
from filestore.system.threads import abandon, tell_of_forks
from filestore.transfer.sources.file import CachedPush

ENTRY_LIMIT = 10_000
SIZE_LIMIT = 1 << 30
"""Bytes of all entries together."""
FINGERPRINT_LIMIT = 256 << 20
"""Bytes of the largest fingerprint that is accepted. The fingerprint of 200,000 files has a tenth of this size."""

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE pushed (
    repository TEXT, namespace TEXT, path BLOB,
    cutting INTEGER, recorded_at INTEGER, manifest BLOB, known BLOB,
    PRIMARY KEY (repository, namespace, path)
)
"""


class PushCache:
    """Remember what was pushed from where, so that the next push of an unchanged file or directory does not read it.

    >>> with PushCache("push-cache.sqlite") as push_cache:
    ...     await push(repository, "my_model/", push_cache=push_cache)

    path: a file, which is made with its folders where there is none. Several processes may use the same file.

    Where the file cannot be used, everything is read, as without a push cache. No error is raised. Its methods block: `push`
    calls them in a thread, one at a time.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file at `path`."""
        self._path = given_path(path)
        self._connection = self._open()
        tell_of_forks(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_fork(self) -> None:
        """Leave the connection to the parent, since SQLite does not survive a fork.

        In a child, the push cache is empty.
        """
        if self._connection is not None:
            abandon(self._connection)
            self._connection = None

    def close(self) -> None:
        """Close the file. Another call does nothing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, identity: Identity, path: Path) -> CachedPush | None:
        """Return what was recorded at the last push of `path` to that repository, or None."""
        if self._connection is None:
            return None
        try:
            with closing(
                self._connection.execute(
                    "SELECT manifest, known, recorded_at FROM pushed"
                    " WHERE repository = ? AND namespace = ? AND path = ? AND cutting = ?",
                    (identity.id, identity.namespace, _key(path), identity.chunking_version),
                )
            ) as rows:
                row = rows.fetchone()
            if row is None:
                return None
            encoded, kept, recorded_at = row
            manifest = Manifest.parse(encoded)
            return CachedPush(manifest, _fingerprint(kept, manifest), int(recorded_at))
        except (sqlite3.Error, ZstdError, FilestoreError, TypeError, ValueError):
            return None

    def record(
        self, identity: Identity, path: Path, manifest: Manifest, fingerprint: bytes, *, opened_at: int | None = None
    ) -> None:
        """Record a push that was committed. The oldest entries beyond `ENTRY_LIMIT` and `SIZE_LIMIT` are removed.

        `opened_at` is that of the source; the default is now.
        """
        if self._connection is None:
            return
        recorded_at = time.time_ns() if opened_at is None else opened_at
        key = (identity.id, identity.namespace, _key(path))
        # One checksum covers both, so that damage in either is found.
        kept = ZstdCompressor(write_checksum=True).compress(manifest.digest + fingerprint)
        row = (*key, identity.chunking_version, recorded_at, manifest.encoded, kept)
        try:
            with self._connection:
                self._connection.execute("INSERT OR REPLACE INTO pushed VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                self._connection.execute(
                    "DELETE FROM pushed WHERE rowid NOT IN (SELECT id FROM (SELECT rowid AS id, recorded_at,"
                    " SUM(LENGTH(manifest) + LENGTH(known)) OVER (ORDER BY recorded_at DESC, rowid DESC) AS size"
                    " FROM pushed) WHERE size <= ? ORDER BY recorded_at DESC LIMIT ?)",
                    (SIZE_LIMIT, ENTRY_LIMIT),
                )
        except sqlite3.Error:
            return

    def _open(self) -> sqlite3.Connection | None:
        try:
            make_private(self._path.parent)
            if not _is_private(self._path):
                return None
            # Used from one thread at a time, but not always the same one.
            connection = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
        except (OSError, sqlite3.Error):
            return None
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < _SCHEMA_VERSION:
                with connection:
                    connection.execute("DROP TABLE IF EXISTS pushed")
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                connection.close()
                return None
        except sqlite3.Error:
            connection.close()
            return None
        return connection


def _is_private(path: Path) -> bool:
    """Make the file at `path` if it does not exist, and take the permissions of other users from it. Raises OSError.

    Return whether it belongs to this user. SQLite gives its other files the permissions of this one.
    """
    with suppress(FileExistsError):
        # A file that exists is not opened here, since to close it would release the locks that SQLite has on it.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"):
        tighten(path.with_name(name))
    return path.stat().st_uid == os.geteuid()


def _fingerprint(kept: bytes, manifest: Manifest) -> bytes:
    """Return the fingerprint that was stored with a manifest. Raises ValueError, ZstdError if either is damaged."""
    if get_frame_parameters(kept).content_size > DIGEST_SIZE + FINGERPRINT_LIMIT:
        raise ValueError("it is larger than any fingerprint")
    plain = decompress(kept)
    if plain[:DIGEST_SIZE] != manifest.digest:
        raise ValueError("it belongs to another manifest")
    return plain[DIGEST_SIZE:]


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.realpath(path))
