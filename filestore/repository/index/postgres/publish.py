"""Commit the publications of a group in a transaction of PostgreSQL."""

from __future__ import annotations

from filestore.core.digest import Digest
from filestore.repository.index.postgres import chunks, usage
from filestore.repository.index.postgres.connection import Connection
from filestore.repository.index.protocol import REFRESH_MICROSECONDS, Publication
from filestore.repository.index.publishing import Waiter, own_failure
from filestore.system.threads import in_disk_thread


class Group:
    """Publications that one transaction commits."""

    def __init__(self, waiters: list[Waiter]) -> None:
        self.waiters = waiters
        self._prepared: list[Publication] = []

    async def write(self, connection: Connection, now: int) -> None:
        """Rename the frames of rows that are not live, and then write the rows (I2)."""
        namespace = self.waiters[0].publication.namespace
        digests = [digest for waiter in self.waiters for digest in waiter.digests]
        states = {state.row.digest: state for state in await chunks.select_rows_of(connection, namespace, digests)}
        live = {digest for digest, state in states.items() if state.is_live}
        # Condemned rows are replaced, and count already.
        counted = {digest: state.row.stored_size for digest, state in states.items() if not state.is_live}
        stored_size = None
        if any(waiter.publication.is_limited for waiter in self.waiters):
            stored_size = (await usage.select_usage(connection, namespace)).whole_stored_size
        await in_disk_thread(self._place, live, counted, stored_size)
        good = self._good()
        # I2: frame before row.
        await chunks.insert_chunks(connection, namespace, [row for waiter in good for row in waiter.new], now)
        seen = [digest for waiter in good for digest in waiter.digests if digest in live]
        old = [digest for digest in seen if not now - REFRESH_MICROSECONDS <= states[digest].last_seen <= now]
        await chunks.update_last_seen(connection, namespace, old, now)

    async def close(self) -> None:
        """Free the resources of all publications."""
        if self._prepared:
            await in_disk_thread(self._close)

    def _place(self, live: set[Digest], counted: dict[Digest, int], stored_size: int | None) -> None:
        """Make frames readable. `stored_size` is what counts for the quota so far, or None if nothing may be refused. Blocks."""
        for waiter in self.waiters:
            self._prepared.append(waiter.publication)
            with own_failure(waiter):
                waiter.publication.prepare()
        for waiter in self._good():
            # I1: the frame of a live row is not changed. I2: for any other row, the frame is renamed into place, even if a
            # file is there.
            waiter.new = [row for row in waiter.publication.rows if row.digest not in live]
            with own_failure(waiter):
                size = stored_size
                if size is not None and waiter.new:
                    size += sum(row.stored_size - counted.get(row.digest, 0) for row in waiter.new)
                    waiter.publication.check(size)
                waiter.publication.rename({row.digest for row in waiter.new})
                stored_size = size
        for waiter in self._good():
            with own_failure(waiter):
                waiter.publication.sync()

    def _close(self) -> None:
        while self._prepared:
            self._prepared.pop().close()

    def _good(self) -> list[Waiter]:
        return [waiter for waiter in self.waiters if waiter.failure is None]
