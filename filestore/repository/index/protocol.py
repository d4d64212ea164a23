"""The protocol of an index. `tests/contracts/test_index.py` runs every rule against every implementation.

An index has one row for each chunk of the repository. A row is *live* or *condemned*. A condemned row means that the
chunk is being removed, so it counts as absent everywhere (I2). The last-seen time of a row says when a push last used
the chunk. Times are in microseconds since 1970 in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

from filestore.core.commits import PLAIN_COMMIT, Commit, Label, NewCommit
from filestore.core.digest import Digest
from filestore.core.object_names import NO_OBJECT_ID, ObjectName
from filestore.core.quotas import Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Reference
from filestore.core.scopes import Scope
from filestore.core.signing import SigningKeys

TOKEN_ID_LENGTH = 16
"""The digits of the digest of a token by which logs and lists name it."""
USED_MICROSECONDS = 60 * 1_000_000
"""The time of last use of a token is written again after this time."""
REFRESH_MICROSECONDS = 3600 * 1_000_000
"""The last-seen time of a chunk is not updated more often than this, because a write is expensive."""


class ChunkRow(NamedTuple):
    """The row of a chunk. `size` is the decoded size of the chunk, and `stored_size` is the size of its frame."""

    digest: Digest
    size: int
    stored_size: int
    frame_digest: Digest | None = None
    """BLAKE3 of the frame. None where nobody has computed it yet."""
    object_id: bytes = NO_OBJECT_ID
    """The id of its object, in an object store. Only an index for such a store keeps it."""


class ChunkState(NamedTuple):
    """The row of a chunk, and what collection needs to know about it."""

    row: ChunkRow
    is_live: bool
    last_seen: int


class Base(NamedTuple):
    """An edge: the frame of the chunk `digest` can be decoded only together with the chunk `base`."""

    digest: Digest
    base: Digest


class RemovedRows(NamedTuple):
    """What was condemned or removed in a namespace since some moment."""

    number: int
    """How often rows were condemned or removed so far."""
    digests: set[Digest] | None
    """The chunks whose rows were condemned or removed since, and perhaps others. None if nobody knows any more."""


class Heads(NamedTuple):
    """A page of names."""

    heads: list[tuple[str, Commit]]
    """Each full name, with the newest commit of `main`."""
    next_after: str | None
    """The name after which the next page begins. None if this is the last one."""


class ContentDigests(NamedTuple):
    """The secondary digests of some content: a stored file, or a file of a stored tree that has chunks of its own."""

    digest: Digest
    """Its file digest, which is the digest of its manifest."""
    size: int
    sha256: bytes
    """The 32 bytes of SHA-256 of the content."""
    blob_id: bytes
    """The 20 bytes of the id that git gives the content. Zeros above `core.content_digests.BLOB_ID_LIMIT`."""
    source: Digest
    """The digest of a record in whose content it lies. It is `digest` itself for a stored file."""
    start: int
    """Where it begins in the content of `source`."""


class PositionedRecord(NamedTuple):
    """A record, and its position in the order in which the records of a namespace were stored."""

    position: int
    record: Record
    manifest_size: int = 0
    """The bytes of its manifest. 0 where they are not known: in a listing, and for a record of an earlier version."""


@dataclass(slots=True)
class ListingGrowth:
    """How far a listing is. The thread that writes it sets this, and others read it meanwhile."""

    limit: int | None = None
    """The largest number of bytes that the listing can have. None until it is known."""
    size: int = 0
    """Bytes of the whole lines that are in the file."""
    writes: Callable[[int], None] = lambda _: None
    """Called in the thread with the number of bytes that it writes next. It may raise MinFreeReached, StorageError."""


class Policy(NamedTuple):
    """Which versions of a name collection removes by itself. Without limits, it removes none."""

    keep_last: int | None = None
    """How many versions of each name stay, the newest ones."""
    older_than_seconds: int | None = None
    """The age from which on a version is removed, if it is not the newest one of its name."""


class NamespaceUsage(NamedTuple):
    """What a namespace keeps, by the rows of its records and chunks."""

    namespace: str
    record_count: int = 0
    """Records, with those of graphs."""
    name_count: int = 0
    """Different names of records."""
    size: int = 0
    """Bytes of content of all records. Content that several records share counts for each of them."""
    manifests_size: int = 0
    """Bytes of the manifests of all records, in the same way. 0 for records that a version before 5 of the tables stored."""
    chunk_count: int = 0
    """Rows of chunks, live and condemned, also of those that no record needs."""
    stored_size: int = 0
    """Bytes of their frames."""

    @property
    def whole_stored_size(self) -> int:
        """The stored bytes that count for a quota: those of frames and manifests."""
        return self.stored_size + self.manifests_size


class QuotaRow(NamedTuple):
    """The quota of a namespace, or of one of its tokens."""

    namespace: str
    """An empty text means every namespace that has no quota of its own."""
    token: Digest | None
    """The digest of the token. None means the namespace itself."""
    quota: Quota


class IndexVersion(NamedTuple):
    """What tells an index from others, and from an earlier copy of itself."""

    index_id: str
    """32 hexadecimal digits. They are random, and made together with the index."""
    commits: int
    """How many records were stored. It only grows."""


class IndexProblem(NamedTuple):
    """Something that is wrong in an index."""

    namespace: str | None
    """None if it concerns more than one namespace."""
    detail: str
    is_record: bool = False
    """Whether a record has values that are not valid. All other problems concern the file, or the rows of chunks and tokens."""


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

    During a transaction, no other process or task can write to the index, or to the namespace that it was begun for.
    """

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Return the decoded size of each of `digests` that has a live row. The others are not in the result."""

    async def add_chunks(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        """Add live rows, and set their last-seen time to now. Existing rows are replaced, also condemned ones."""

    async def refresh(self, namespace: str, digests: Sequence[Digest]) -> None:
        """Set the last-seen time of live rows to now. Skip rows whose time is less than an hour ago.

        A time in the future, from a clock that was wrong, is also set to now.
        """

    async def forget_chunks(self, namespace: str, digests: Sequence[Digest]) -> list[ObjectName]:
        """Remove the rows of `digests`, both live and condemned ones. Return what names their frames.

        In an index that keeps no ids of objects, a digest without a row is returned too.
        """

    async def condemn(self, namespace: str, digests: Sequence[Digest], *, unseen_since: int) -> list[Digest]:
        """Condemn each live row of `digests` that was last seen before `unseen_since`. Return their digests."""

    async def set_frame_digests(self, namespace: str, rows: Sequence[ChunkRow]) -> None:
        """Set the digest of the frame in the live rows that have none, and whose sizes are those of `rows`."""

    async def add_bases(self, namespace: str, bases: Sequence[Base]) -> None:
        """Add edges. They are removed together with the row of their `digest`."""

    async def needed_bases(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests that are the base of a chunk that has a row, live or condemned, in order."""

    async def lose_chunks(self, namespace: str, names: Sequence[ObjectName]) -> list[Digest]:
        """Remove the rows that name these frames, which could not be read. Return the digests of the rows that were removed.

        A row stays that names another object by now. The reason may pass, so an index for an object store keeps the names: until
        the chunk is put again, `Index.lost_frames` has the name, and `ChunkStore.remove_abandoned` leaves the object.
        """

    async def forget_lost(self, namespace: str, names: Sequence[ObjectName]) -> list[ObjectName]:
        """Forget names that `lose_chunks` has kept. Return those that were kept. Nothing names these objects afterwards."""

    async def keep_manifest(self, namespace: str, name: ObjectName) -> bytes:
        """Let the manifest with a digest be this object, unless it is one already. Return the id of the object that it is.

        An index that keeps no ids of objects returns NO_OBJECT_ID, and does nothing else.
        """

    async def forget_manifest(self, namespace: str, digest: Digest) -> ObjectName:
        """Forget which object a manifest is, and return what names it."""

    async def removals(self, namespace: str) -> int:
        """Return how often rows of a namespace were condemned or removed. The number only grows.

        While it stays the same, every row that was live is live.
        """

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        """Return what was condemned or removed since `removals` returned `number`. Only the last few removals are known."""

    async def condemned(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests whose row is condemned, in the order of `digests`."""

    async def usage(self, namespace: str) -> NamespaceUsage:
        """Return what a namespace keeps, as it is in the transaction."""

    async def count_again(self) -> None:
        """Count all rows, and correct what `usage` returns. This reads all rows. It is needed only after a problem."""

    async def add_record(
        self,
        namespace: str,
        *,
        name: str,
        digest: Digest,
        size: int,
        kind: Kind,
        manifest_size: int = 0,
        commit: NewCommit = PLAIN_COMMIT,
    ) -> Record:
        """Insert a record and return it. If a record with this name, kind and digest exists, only update its time.

        `name` may have an owner, which must be one of the namespace: see `claim_owner`. `manifest_size` is the number of bytes
        of its manifest, for `usage`.

        It is now the newest record of the namespace: its position is larger than that of every other one, whatever the
        clock says. Its `updated_at` is the time of the clock, or a moment later if another record has this time.

        It is also a commit, unless the newest one of the branch has the same record. Raises HeadMoved, and RevisionNotFound if
        the branch does not exist.
        """

    async def claim_owner(self, namespace: str, owner: str) -> None:
        """Give an owner that nobody has to a namespace. Owners are compared without case.

        Raises OwnerTaken if another namespace has it, and LimitExceeded.
        """

    async def remove_owner(self, owner: str) -> bool:
        """Give up an owner, so that any namespace can have it. Return whether a namespace had it."""

    async def remove_owners(self, namespace: str) -> None:
        """Give up all owners of a namespace."""

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        """Return the tags and branches at commits of a record."""

    async def set_label(self, namespace: str, name: str, label: Label, *, force: bool = False) -> Label:
        """Set a tag or a branch of a name, and return it. One that is there already stays as it is.

        Raises LabelExists if it is there for another commit or of the other kind, unless `force` is set; RevisionNotFound if the
        commit does not exist, and LimitExceeded.
        """

    async def remove_label(self, namespace: str, name: str, label: str) -> Label | None:
        """Remove a tag or a branch of a name, and return it. Return None if it does not exist."""

    async def remove_record(self, namespace: str, file_id: str) -> Record | None:
        """Remove the record with this id, its uses and its commits, and return it. Return None if it does not exist.

        Tags of the commits are removed too, and branches go to the commit before them.
        """

    async def add_uses(self, namespace: str, uses: Sequence[Use]) -> None:
        """Add uses of records that exist, and skip the others. A use of a record by a pipeline that exists is replaced."""

    async def remove_uses(self, namespace: str, pipeline_id: str) -> None:
        """Remove all uses by a pipeline. The records stay."""

    async def uses_of(self, namespace: str, file_id: str) -> list[Use]:
        """Return the uses of a record, in the order of the pipelines' names."""

    async def add_token(
        self,
        token_digest: Digest,
        *,
        namespace: str,
        label: str,
        scope: Scope = Scope.ADMIN,
        prefix: str = "",
        expires_at: int | None = None,
    ) -> None:
        """Add a token. If it already exists, change everything but the times of its creation and its last use."""

    async def remove_token(self, token_digest: Digest) -> bool:
        """Remove a token. Return whether it existed."""

    async def signing_keys(self) -> SigningKeys:
        """Return the keys that sign URLs, as they are in the transaction. The secret must exist."""

    async def set_signing_keys(self, keys: SigningKeys) -> None:
        """Replace the keys that sign URLs. The secret stays as it is."""

    async def set_policy(self, namespace: str, policy: Policy) -> None:
        """Set the policy of a namespace."""

    async def set_quota(self, namespace: str, quota: Quota, *, token: Digest | None = None) -> None:
        """Set the quota of a namespace, or of one of its tokens. One without limits is removed.

        It is removed together with its token.
        """

    async def add_content_digests(self, namespace: str, rows: Sequence[ContentDigests]) -> None:
        """Add the secondary digests of contents. A row whose source has no record is skipped, so add the record first.

        They were computed from the content: a row that exists keeps its digests. It gets the new source if a record of that
        is newer. A row is removed with the last record of its source.
        """

    async def set_tree_digests(self, namespace: str, digest: Digest, packed: bytes) -> None:
        """Add the secondary digests of the files of a stored tree, as `Index.tree_digests` returns them.

        Without a record of the tree nothing is added. What is there stays. It is removed with the last record of the tree.
        """

    async def set_task_state(self, namespace: str, task: str, state: dict[str, Any] | None) -> None:
        """Keep the state of a maintenance task, which must be valid JSON. None removes it."""


class TokenRow(NamedTuple):
    """The row of a token, which gives access to one namespace. Only the digest of the token is stored."""

    digest: Digest
    namespace: str
    label: str
    created_at: int
    """In microseconds since 1970, as the other times."""
    scope: Scope = Scope.ADMIN
    prefix: str = ""
    """The beginning of all names that the token sees. An empty text means all names."""
    expires_at: int | None = None
    """From this time on the token is not valid. None means that it does not expire."""
    used_at: int | None = None
    """When a server last accepted the token, to about a minute. None means never."""

    @property
    def id(self) -> str:
        """The beginning of the digest, by which logs and lists name the token."""
        return str(self.digest)[:TOKEN_ID_LENGTH]

    def has_expired(self, now: int) -> bool:
        """Return whether the token is not valid any more at the time `now`."""
        return self.expires_at is not None and now >= self.expires_at


class Publication(Protocol):
    """Verified and synced frames that become readable together with their rows. All methods block; a thread calls them.

    A failure of a method is that of the publication. `close` is called in the end, whatever happens.
    """

    @property
    def namespace(self) -> str:
        """The namespace of the rows."""

    @property
    def rows(self) -> Sequence[ChunkRow]:
        """The rows of all frames, with different digests."""

    @property
    def is_limited(self) -> bool:
        """Whether `check` may refuse anything."""

    def prepare(self) -> None:
        """Do what needs no transaction. It is called before it."""

    def check(self, stored_size: int) -> None:
        """Raise QuotaExceeded if the namespace may not store so many bytes, which it would with the new frames."""

    def rename(self, digests: Container[Digest]) -> None:
        """Make these frames, which have no live row, readable. This is called in the transaction."""

    def sync(self) -> None:
        """Make that durable. This is called after `rename`, and before the rows are written."""

    def close(self) -> None:
        """Free the resources."""


class Index(Protocol):
    """An index of a repository. A read sees all data that was committed before it began.

    Rows and records of different namespaces are separate.
    """

    @property
    def waiting(self) -> dict[str, int]:
        """How many tasks of this process wait for a turn to write, and for one to look at many rows."""

    async def stored_size(self) -> int:
        """Return how many bytes the files of the index have. Raises StorageError."""

    def transaction(self, namespace: str | None = None) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction, which excludes all other writers. At the end of the block it is committed durably.

        With `namespace`, it is only used for what belongs to this namespace, and may exclude only the writers of this one.

        If the block raises an error or is cancelled, the transaction is rolled back. The start waits for other writers.
        Raises Busy if this takes longer than the time limit with which the index was opened.
        """

    async def publish(self, publication: Publication) -> list[ChunkRow]:
        """Make frames readable, and add the rows of those that have no live row, durably. Return these rows.

        The last-seen times of live rows are set to now, as by `Transaction.refresh`. One transaction may do this for several
        callers, each of which has its own outcome. After a cancel the rows may be there or not, and no thread uses the
        publication any more. Raises what the publication raises, and Busy as `transaction` does.
        """

    async def missing(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests that have no live row, in order and without repeats.

        The last-seen time of the other digests is set to now, if it is more than an hour ago (I9).
        """

    async def refreshed_rows(self, namespace: str, digests: Sequence[Digest]) -> list[ChunkRow]:
        """Return the live rows of `digests`, in any order, and set their last-seen times as `missing` does."""

    async def refreshed_sizes(self, namespace: str, digests: Sequence[Digest]) -> Mapping[Digest, int]:
        """Return the decoded size of each of `digests` that has a live row, and set their last-seen times as `missing` does.

        Only look digests up in it: its keys may be bytes that are equal to them.
        """

    async def removals(self, namespace: str) -> int:
        """Return what `Transaction.removals` returns, without a transaction."""

    async def removed_since(self, namespace: str, number: int) -> RemovedRows:
        """Return what `Transaction.removed_since` returns, without a transaction."""

    async def record(self, namespace: str, reference: Reference, *, prefix: str = "") -> Record | None:
        """Return the record to which a reference points, or None. If there are several, return the newest one.

        Records whose names do not begin with `prefix` do not count, here and in the other methods that have it.

        If only a digest is given, a directory has priority over a file. So a stored directory is still found after its
        zip was pushed as a file. `name_otherwise` is ignored. Raises InvalidReference if several versions have digests that
        begin with the digits of the revision.
        """

    async def versions(
        self, namespace: str, reference: Reference, *, limit: int, before: int | None = None, prefix: str = ""
    ) -> list[Record]:
        """Return at most `limit` records that have the id, the digest and the name of a reference, the newest first.

        With `before`, return only the records that follow the record that was updated at this time, as `records` does. The
        revision and `name_otherwise` are ignored.
        """

    async def version_count(self, namespace: str, reference: Reference, *, before: int | None = None, prefix: str = "") -> int:
        """Return how many records `versions` returns without a limit."""

    async def commit(self, namespace: str, name: str, revision: str | None = None) -> Commit | None:
        """Return the commit of a name that a revision means, or None. None of both means the newest commit of `main`.

        Raises InvalidReference if the revision may mean several versions.
        """

    async def history(
        self, namespace: str, name: str, revision: str | None = None, *, limit: int, before: int | None = None
    ) -> list[Commit] | None:
        """Return at most `limit` commits from that of a revision back to the first one. None if it does not exist.

        With `before`, return only the commits whose number is smaller.
        """

    async def labels(self, namespace: str, name: str) -> list[Label]:
        """Return the tags and branches of a name, in the order of their names."""

    async def labels_of(self, namespace: str, file_id: str) -> list[str]:
        """Return the names of the tags and branches at commits of a record, in their order."""

    async def list_names(
        self,
        namespace: str,
        *,
        search: str | None = None,
        owner: str | None = None,
        after: str | None = None,
        limit: int,
        prefix: str = "",
    ) -> Heads:
        """Return at most `limit` names that follow `after`, each with the newest commit of `main`.

        Only names that contain `search`, in whatever case, that have this owner, and that begin with `prefix`.
        """

    async def owner_namespace(self, owner: str) -> str | None:
        """Return the namespace that an owner of names belongs to, whatever the case of its letters. None if nobody has it."""

    async def owners(self) -> list[tuple[str, str]]:
        """Return each owner of names, and its namespace, in the order of namespaces."""

    async def ids_of_content(self, namespace: str, digest: Digest) -> list[str]:
        """Return the ids of all records with a digest, the newest first."""

    async def records(
        self, namespace: str, *, limit: int, before: int | None = None, with_graphs: bool = False, prefix: str = ""
    ) -> list[Record]:
        """Return at most `limit` records, the newest first, which is the one with the largest position.

        With `before`, return only the records that follow the record that was updated at this time. If this record
        does not exist any more, return only records updated before it.

        The graphs of pipelines are left out, unless `with_graphs` is set.
        """

    async def records_after(
        self, namespace: str, position: int, *, limit: int, only_valid: bool = False
    ) -> list[PositionedRecord]:
        """Return at most `limit` records whose position is larger than `position`, in the order of their positions.

        A record that is not valid is an error. With `only_valid`, it is left out, for a reader that also asks for
        `problems`.

        The graphs of pipelines are included. A record that is stored again gets a larger position. So a reader who goes
        on until nothing follows has seen every record that existed all the time, and every one that was stored since.
        Positions are larger than 0.
        """

    async def newest_positions(self) -> dict[str, int]:
        """Return the position of the newest record of each namespace that has one. This takes a moment."""

    async def record_count(self, namespace: str) -> int:
        """Return the number of records, with those of graphs."""

    async def superseded(
        self, namespace: str, position: int, *, newer_count: int, updated_before: int | None, limit: int
    ) -> list[PositionedRecord]:
        """Return at most `limit` records that have at least `newer_count` newer versions of their name.

        They come in the order of their positions, from `position` on as in `records_after`. With `updated_before`, only
        records that were updated before this time. Records that pipelines use, that have a label, or that their name means, are
        left out, and count as versions.
        """

    async def write_listing(self, namespace: str, file: BinaryIO, growth: ListingGrowth, *, prefix: str = "") -> None:
        """Replace the content of `file` by a listing of a namespace: all records, as they are at one moment.

        `filestore.repository.listing` says what is in it. The graphs of pipelines are left out. Neither other reads nor writes
        wait for it. `growth` says meanwhile how far it is, so that the lines can be sent before the end.
        """

    async def namespaces(self) -> list[str]:
        """Return the namespaces that have anything here, such as a record, a row, a token or a quota, in their order."""

    async def usage(self, namespace: str) -> NamespaceUsage:
        """Return what a namespace keeps. This takes a moment, whatever the size of the index."""

    async def usages(self) -> list[NamespaceUsage]:
        """Return what each namespace keeps, in their order. A namespace that keeps nothing may be left out."""

    async def lost_frames(self, namespace: str, after: ObjectName | None = None, *, limit: int) -> list[ObjectName]:
        """Return at most `limit` names that `Transaction.lose_chunks` has kept and that are larger than `after`, in their order.

        An index that keeps no ids of objects has none.
        """

    async def chunk_rows(self, namespace: str, after: Digest | None = None, *, limit: int) -> list[ChunkState]:
        """Return at most `limit` rows whose digest is larger than `after`, live and condemned ones, in order of digests."""

    async def sizes(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        """Return the decoded size of each of `digests` that has a live row, as `Transaction.sizes` does.

        The last-seen times stay as they are, so this does not protect a chunk from collection.
        """

    async def problems(self) -> list[IndexProblem]:
        """Check the index itself, and the values in it. Return what is wrong, at most 100 problems of each kind.

        This reads the whole index. Other reads and writes go on meanwhile. Raises StorageError if it cannot be read.
        """

    async def unknown(self, namespace: str, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests without a row, live or condemned, in order. Unlike `missing`, this changes nothing."""

    async def content_digests(self, namespace: str, digests: Sequence[Digest]) -> dict[Digest, ContentDigests]:
        """Return the secondary digests of contents by their file digests. Those that are not known are left out."""

    async def contents_by_sha256(self, namespace: str, sha256s: Sequence[bytes]) -> dict[bytes, ContentDigests]:
        """Return a stored content for each SHA-256. Those that are not known are left out."""

    async def tree_digests(self, namespace: str, digest: Digest) -> bytes | None:
        """Return SHA-256 and git's blob id (32 and 20 bytes) of each file of a stored tree, in the order of its members.

        Folders and links are left out. Return None if they are not known yet. `FileDigests.unpack` reads one of them.
        """

    async def known_trees(self, namespace: str, digests: Sequence[Digest]) -> set[Digest]:
        """Return those of `digests` for which `tree_digests` returns something, without reading it."""

    async def policy(self, namespace: str) -> Policy:
        """Return the policy of a namespace."""

    async def quotas(self) -> list[QuotaRow]:
        """Return all quotas, in the order of namespaces, with those of tokens after that of their namespace."""

    async def task_state(self, namespace: str, task: str) -> dict[str, Any] | None:
        """Return the state of a maintenance task, as it was last set, or None. A state that cannot be read is an empty one."""

    async def version(self) -> IndexVersion | None:
        """Return what identifies the index. None if an earlier version of filestore made it and nobody has written since."""

    def try_lock(self, name: str) -> AbstractAsyncContextManager[bool]:
        """Try to take the lock `name` for a block, without waiting. The block learns whether it has the lock.

        One process has it at a time, and one block of that process. It is released when its process ends. Where the
        file system has no locks, every block has it: it may only save work, and nothing may depend on it.
        """

    async def uses(self, namespace: str, file_ids: Collection[str] | None = None) -> list[Use]:
        """Return all uses, or those of the records with these ids, in the order of the pipelines' ids."""

    async def token(self, token_digest: Digest) -> TokenRow | None:
        """Return the row of a token, also of one that has expired. Return None if the token is unknown."""

    async def tokens(self) -> list[TokenRow]:
        """Return all tokens, the oldest first."""

    async def note_token_uses(self, digests: Sequence[Digest]) -> None:
        """Set the times of last use of tokens to now, where they are more than a minute ago. Others are skipped.

        It does not wait: it raises Busy if anybody writes, or waits for it in this process. Raises ReadOnly, StorageError.
        """

    async def secret(self) -> bytes:
        """Return 32 random bytes that only servers of this repository know. They are made at the first call and never change.

        Raises ReadOnly if they do not exist and the index was opened for reading.
        """

    async def signing_keys(self) -> SigningKeys:
        """Return the keys that sign URLs. They hold the secret, which is made if it does not exist.

        Raises ReadOnly as `secret` does, IndexDamaged.
        """

    async def compact(self) -> None:
        """Return the space of removed rows to the file system, in small steps between which others can write.

        Raises Busy, StorageError, StorageFull.
        """

    async def close(self) -> None:
        """Close the connections. An open transaction is rolled back."""
