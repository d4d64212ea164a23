"""The protocol of an index. `tests/contracts/test_index.py` runs every rule against every implementation.

A chunk's row is *live* or *condemned*. A condemned row counts as absent everywhere (I2). Times are microseconds since
1970, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference


class ChunkRow(NamedTuple):
    """An index's row of a chunk: decoded size, and size of the stored frame."""

    digest: Digest
    size: int
    stored_size: int


class Transaction(Protocol):
    """Writes that become visible and durable together, or not at all. No other writer of any process runs meanwhile."""

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Return the decoded size of each of `digests` that has a live row. The others are not in the result."""

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        """Make rows live, whether they were absent, condemned or live. Their last-seen time is now."""

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Set the last-seen time of live rows to now, if it is older than an hour."""

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Remove rows, live or condemned."""

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        """Condemn those of `digests` that are live and were last seen before `unseen_since`; return them."""

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return those of `digests` whose row is condemned, in the order of `digests`."""

    async def add_record(self, namespace: str, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
        """Insert a record. If one with this name, kind and digest exists, return that one with a new `updated_at`.

        `updated_at` is later than that of every earlier record.
        """

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        """Remove a record; return it, or None if there was none."""

    async def add_token(self, token_digest: Digest, *, namespace: str, label: str) -> None:
        """Add a token. If it exists, change its namespace and label."""

    async def remove_token(self, token_digest: Digest) -> bool:
        """Remove a token; return whether it existed."""


class TokenRow(NamedTuple):
    """A token that grants access. Only its digest is kept."""

    digest: Digest
    namespace: str
    label: str
    created_at: int


class Index(Protocol):
    """Reads see all data that was committed before they began. Every argument `namespace` is part of the key."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Give a write transaction that excludes other writers from its start. It is committed durably on a clean exit.

        After an error or a cancel it is rolled back. Waits for other writers; raises Busy after the time with which the
        index was opened.
        """

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return those of `digests` that have no live row, once each, in order.

        Sets the last-seen time of the others to now, if it is older than an hour (I9).
        """

    async def record(self, namespace: str, reference: Reference) -> Record | None:
        """Return the record that a reference means. If there are several, return the one with the latest `updated_at`.

        For a digest alone, the record of a directory comes before that of a file. So a push of the zip of a stored
        directory as a file does not hide the directory. `name_otherwise` is ignored.
        """

    async def records(self, namespace: str, *, limit: int, before: int | None = None) -> list[Record]:
        """Return records by `updated_at`, the latest first; with `before`, only those updated earlier than that."""

    async def token_namespace(self, token_digest: Digest) -> str | None:
        """Return the namespace of a token, or None if the token is unknown."""

    async def tokens(self) -> list[TokenRow]:
        """Return all tokens, the oldest first."""

    async def secret(self) -> bytes:
        """Return 32 random bytes, made at the first call and then never changed.

        The servers of this index sign URLs with them.
        """

    async def close(self) -> None:
        """Close the connections. An open transaction is rolled back."""
