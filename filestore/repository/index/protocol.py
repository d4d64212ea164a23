"""The protocol of an index. `tests/contracts/test_index.py` runs every rule against every implementation.

An index has one row for each chunk of the repository. A row is *live* or *condemned*. A condemned row means that the
chunk is being removed, so it counts as absent everywhere (I2). The last-seen time of a row says when a push last used
the chunk. Times are in microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Reference


class ChunkRow(NamedTuple):
    """The row of a chunk. `size` is the decoded size of the chunk, and `stored_size` is the size of its frame."""

    digest: Digest
    size: int
    stored_size: int


class Use(NamedTuple):
    """The use of a record by a pipeline."""

    file_id: str
    pipeline_id: str
    pipeline_name: str
    """The name of the pipeline in messages."""
    is_graph: bool = False
    """Whether the record is the graph of the pipeline. Then it does not count as a file of a user."""


class Transaction(Protocol):
    """Writes to an index. They become visible and durable all together, or not at all.

    During a transaction, no other process or task can write to the index.
    """

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Return the decoded size of each of `digests` that has a live row. The others are not in the result."""

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        """Add live rows, and set their last-seen time to now. Existing rows are replaced, also condemned ones."""

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Set the last-seen time of live rows to now. Skip rows whose time is less than an hour ago."""

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Remove the rows of `digests`, both live and condemned ones."""

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        """Condemn each live row of `digests` that was last seen before `unseen_since`. Return their digests."""

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests whose row is condemned, in the order of `digests`."""

    async def add_record(self, namespace: str, *, name: str, digest: Digest, size: int, kind: Kind) -> Record:
        """Insert a record and return it. If a record with this name, kind and digest exists, only update its time.

        The `updated_at` of the returned record is later than the `updated_at` of all other records of the namespace.
        """

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        """Remove the record with this id and its uses, and return it. Return None if it does not exist."""

    async def add_uses(self, namespace: str, uses: Sequence[Use]) -> None:
        """Add uses of records that exist, and skip the others. A use of a record by a pipeline that exists is replaced."""

    async def remove_uses(self, namespace: str, pipeline_id: str) -> None:
        """Remove all uses by a pipeline. The records stay."""

    async def uses_of(self, namespace: str, file_id: str) -> list[Use]:
        """Return the uses of a record, in the order of the pipelines' names."""

    async def add_token(self, token_digest: Digest, *, namespace: str, label: str) -> None:
        """Add a token. If it already exists, change its namespace and label."""

    async def remove_token(self, token_digest: Digest) -> bool:
        """Remove a token. Return whether it existed."""


class TokenRow(NamedTuple):
    """The row of a token, which gives access to one namespace. Only the digest of the token is stored."""

    digest: Digest
    namespace: str
    label: str
    created_at: int


class Index(Protocol):
    """An index of a repository. A read sees all data that was committed before it began.

    Rows and records of different namespaces are separate.
    """

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction, which excludes all other writers. At the end of the block it is committed durably.

        If the block raises an error or is cancelled, the transaction is rolled back. The start waits for other writers.
        Raises Busy if this takes longer than the time limit with which the index was opened.
        """

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests that have no live row, in order and without repeats.

        The last-seen time of the other digests is set to now, if it is more than an hour ago (I9).
        """

    async def record(self, namespace: str, reference: Reference) -> Record | None:
        """Return the record to which a reference points, or None. If there are several, return the newest one.

        If only a digest is given, a directory has priority over a file. So a stored directory is still found after its
        zip was pushed as a file. `name_otherwise` is ignored.
        """

    async def ids_of_content(self, namespace: str, digest: Digest) -> list[str]:
        """Return the ids of all records with a digest, the newest first."""

    async def records(self, namespace: str, *, limit: int, before: int | None = None, with_graphs: bool = False) -> list[Record]:
        """Return at most `limit` records, the newest first. With `before`, return only records updated before it.

        The graphs of pipelines are left out, unless `with_graphs` is set.
        """

    async def uses(self, namespace: str) -> list[Use]:
        """Return all uses, in the order of the pipelines' ids."""

    async def token_namespace(self, token_digest: Digest) -> str | None:
        """Return the namespace of a token. Return None if the token is unknown."""

    async def tokens(self) -> list[TokenRow]:
        """Return all tokens, the oldest first."""

    async def secret(self) -> bytes:
        """Return 32 random bytes, with which servers sign URLs. They are made at the first call and never change.

        Raises ReadOnly if they do not exist and the index was opened for reading.
        """

    async def close(self) -> None:
        """Close the connections. An open transaction is rolled back."""
