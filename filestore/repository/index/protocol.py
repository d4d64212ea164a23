"""What an index must do. `tests/contracts/test_index.py` runs every rule against every implementation.

A chunk's row is *live* or *condemned*; a condemned one counts as absent everywhere (I2). Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference


class ChunkRow(NamedTuple):
    """What an index knows of a chunk: decoded size, and size of its frame at rest."""

    digest: Digest
    size: int
    stored_size: int


class Transaction(Protocol):
    """Writes that become visible and durable together, or not at all. Excludes every other writer, in any process."""

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """The decoded size of each of `digests` whose row is live; the others are not in the answer."""

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        """Make rows live, whether absent, condemned or live before; last seen is now."""

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Set last seen of live rows to now, where it is older than an hour."""

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Remove rows, live or condemned."""

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        """Mark those of `digests` going that are live and were last seen before `unseen_since`; return them."""

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` whose row is condemned, in the order asked."""

    async def add_record(self, namespace: str, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
        """Insert a record, or, where name, kind and digest are those of one, return that one with a new `updated_at`.

        `updated_at` is later than that of every record before.
        """

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        """Remove a record; return what it was, or None."""

    async def add_token(self, token_digest: Digest, *, namespace: str, label: str) -> None:
        """Let the token in; doing it again changes its namespace and label."""

    async def remove_token(self, token_digest: Digest) -> bool:
        """Whether there was one."""


class TokenRow(NamedTuple):
    """A token that is let in. The token itself is not kept."""

    digest: Digest
    namespace: str
    label: str
    created_at: int


class Index(Protocol):
    """Reads see what was committed before they began. Every argument `namespace` is part of the key."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A write transaction from its first moment: committed and durable on a clean exit, rolled back on an error or a cancel.

        Waits for other writers; raises Busy after the time that the index was opened with.
        """

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Those of `digests` that have no live row, once each, in the order asked.

        Sets last seen of those that have one to now, where it is older than an hour (I9).
        """

    async def record(self, namespace: str, reference: Reference) -> Record | None:
        """The record that a reference means, the newest by `updated_at` where there are several.

        Under a digest alone, the record of a directory comes before that of a file: whoever pushes the zip of a stored directory
        as a file does not hide the directory. `name_otherwise` is not looked at.
        """

    async def records(self, namespace: str, *, limit: int, before: int | None = None) -> list[Record]:
        """Records from the newest `updated_at` down; with `before`, only those updated earlier than that."""

    async def token_namespace(self, token_digest: Digest) -> str | None:
        """The namespace that a token belongs to, or None for a stranger's."""

    async def tokens(self) -> list[TokenRow]:
        """All tokens, the oldest first."""

    async def secret(self) -> bytes:
        """32 random bytes, made on first need and the same ever after: what the servers over this index sign URLs with."""

    async def close(self) -> None:
        """Give up connections. A transaction that is open is rolled back."""
