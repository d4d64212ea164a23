"""Commit the publications of a group in a transaction of SQLite."""

from __future__ import annotations

import sqlite3

from filestore.repository.index import chunks, usage
from filestore.repository.index.protocol import Publication
from filestore.repository.index.publishing import Waiter, own_failure


class Group:
    """Publications that one transaction commits. All methods block."""

    def __init__(self, waiters: list[Waiter]) -> None:
        self.waiters = waiters
        self._prepared: list[Publication] = []

    def prepare(self) -> None:
        """Do what can be done before the transaction. Later calls do nothing."""
        if not self._prepared:
            for waiter in self.waiters:
                self._prepared.append(waiter.publication)
                with own_failure(waiter):
                    waiter.publication.prepare()

    def write(self, connection: sqlite3.Connection, now: int) -> None:
        """Rename the frames of rows that are not live, and then write the rows (I2)."""
        namespace = self.waiters[0].publication.namespace
        live = chunks.select_sizes(connection, namespace, [digest for waiter in self._good() for digest in waiter.digests])
        is_limited = any(waiter.publication.is_limited for waiter in self._good())
        stored_size = _StoredSize(connection, namespace, is_limited=is_limited)
        for waiter in self._good():
            # I1: the frame of a live row is not changed. I2: for any other row, the frame is renamed into place, even if a
            # file is there.
            waiter.new = [row for row in waiter.publication.rows if row.digest not in live]
            with own_failure(waiter):
                size = stored_size.checked(waiter)
                waiter.publication.rename({row.digest for row in waiter.new})
                stored_size.size = size
        for waiter in self._good():
            with own_failure(waiter):
                waiter.publication.sync()
        good = self._good()
        # I2: frame before row.
        chunks.insert_chunks(connection, namespace, [row for waiter in good for row in waiter.new], now)
        seen = [digest for waiter in good for digest in waiter.digests if digest in live]
        if seen:
            chunks.update_last_seen(connection, namespace, seen, now)

    def close(self) -> None:
        """Free the resources of all publications, also of those that have left the group."""
        while self._prepared:
            self._prepared.pop().close()

    def _good(self) -> list[Waiter]:
        return [waiter for waiter in self.waiters if waiter.failure is None]


class _StoredSize:
    """What a namespace would store with the new rows of the publications that were checked so far."""

    def __init__(self, connection: sqlite3.Connection, namespace: str, *, is_limited: bool) -> None:
        """`is_limited` is whether any publication may be refused. Otherwise nothing is counted."""
        self._connection = connection
        self._namespace = namespace
        self._is_limited = is_limited
        self.size: int | None = None
        """None until it is needed."""

    def checked(self, waiter: Waiter) -> int | None:
        """Return the size with the new rows of a publication, unless that refuses it."""
        if not self._is_limited or not waiter.new:
            return self.size
        if self.size is None:
            self.size = usage.select_usage(self._connection, self._namespace).whole_stored_size
        # Condemned rows are replaced, and count already.
        counted = chunks.select_stored_size(self._connection, self._namespace, [row.digest for row in waiter.new])
        size = self.size - counted + sum(row.stored_size for row in waiter.new)
        waiter.publication.check(size)
        return size
