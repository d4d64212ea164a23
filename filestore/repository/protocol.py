"""The protocol of a repository: the methods that push, fetch and the server use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from filestore.core.commits import MAIN, PLAIN_COMMIT, Commit, Label, LabelKind, NewCommit
from filestore.core.digest import Digest
from filestore.core.links import Link
from filestore.core.names import checked_name, checked_namespace, split_full_name
from filestore.core.quotas import Quota
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, Reference
from filestore.errors import InvalidInput, InvalidReference
from filestore.format.codec import Frame
from filestore.repository.maintenance.hold import Hold, hold_from_json

SIGNED_SECONDS = 86400
"""The number of seconds for which a signed path is valid by default."""

VERIFY_LIMIT = 4096
"""The largest number of digests in one call of `Repository.verify_chunks`."""

GRACE_SECONDS = 86400.0
"""The default grace period of collection: chunks that a push has used within this time are kept."""

Moved = Callable[[int], None]
"""A callback that a transfer calls with the number of encoded bytes that were just sent or received."""

Wanted: TypeAlias = str | Reference | Record | File | Directory
"""The ways to name a stored file: a text that `Reference.parse` accepts, or an object of one of these classes."""


class Opening(Protocol):
    """How another process of this machine opens the same repository. It can be pickled, and may contain a token."""

    def open(self, *, share: int) -> AbstractAsyncContextManager[Repository]:
        """Open it for a block. `share` is the number of processes that share the connections, with the one that asks for it."""


class TransferLimits(NamedTuple):
    """How much one push or fetch may use. None follows the cores: see `filestore.transfer.parallelism`."""

    processes: int | None = None
    """Worker processes of a large transfer; 0 means none."""
    memory: int | None = None
    """Bytes of memory of all processes of the transfer together."""
    connections: int | None = None
    """Connections of all processes together. None means no limit."""


BY_CORES = TransferLimits()
"""No limits of the user: a transfer follows the cores."""


class Identity(NamedTuple):
    """What identifies a repository. Caches and push caches use `id` and `namespace` in their keys."""

    id: str
    """32 hexadecimal digits. They are random, and made together with the repository."""
    namespace: str
    chunking_version: int
    """The cutting version that a push must use."""
    upload_limit: int | None = None
    """Bytes of the largest file that the repository accepts. None if it has no such limit."""


class VersionPage(NamedTuple):
    """Records of one reference, the newest first."""

    records: list[Record]
    total: int
    """How many records the reference covers in all, on all pages and whatever rule selects some of them."""
    users: dict[str, str]
    """By the ids of those `records` that pipelines need: the names of these pipelines."""


class FreedContent(NamedTuple):
    """Content that collection can remove."""

    chunk_count: int
    stored_size: int
    """Bytes of the frames and manifests."""
    is_held: bool = False
    """Whether collection removes nothing, because the collection of the namespace is held."""


class NameUsage(NamedTuple):
    """What the records of one name take."""

    name: str
    version_count: int
    logical_size: int
    """Bytes of the content of all versions together."""
    own_size: int
    """Bytes of the frames that no other name needs."""
    shared_size: int
    """Bytes of the frames that other names need too."""


class QuotaUse(NamedTuple):
    """The limits of a namespace, and what counts for those of them that limit what is kept."""

    limits: Quota
    size: int
    stored_size: int
    name_count: int

    @property
    def used(self) -> dict[str, int]:
        """What counts for each of these limits, by its name."""
        return {"size": self.size, "stored_size": self.stored_size, "name_count": self.name_count}

    def as_json(self) -> dict[str, Any]:
        """Return the form in which it is sent. `quota_from_json` is the inverse."""
        return {"limits": self.limits._asdict(), "used": self.used}


def quota_from_json(values: dict[str, Any]) -> QuotaUse:
    """Make a `QuotaUse` from its JSON form. Raises KeyError, TypeError, ValueError. A newer server may have other limits."""
    limits = {name: values["limits"].get(name) for name in Quota._fields}
    used = {name: values["used"][name] for name in ("size", "stored_size", "name_count")}
    numbers = [number for number in (*limits.values(), *used.values()) if number is not None]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers) or None in used.values():
        raise ValueError("a limit is not a number")
    return QuotaUse(Quota(**limits), **used)


class Usage(NamedTuple):
    """What a namespace takes on disk. Sizes of frames and manifests are those of their files.

    `needed_size`, `free_size`, `waiting_size` and `manifests_size` together are the bytes of all these files.
    """

    namespace: str
    record_count: int
    logical_size: int
    """Bytes of the content of all records. The difference to `distinct_size` is what sharing saves."""
    distinct_size: int
    """Bytes of the chunks that records need, each counted once. The difference to `needed_size` is what encoding saves."""
    frame_count: int
    needed_size: int
    """Bytes of the frames that records need."""
    free_size: int
    """Bytes of the frames and manifests that a collection removes now."""
    waiting_size: int
    """Bytes of the frames that no record needs, and that a push has used within the grace period, and of their manifests."""
    manifests_size: int
    """Bytes of the manifests of records."""
    grace_seconds: float
    """The grace period for which the result holds."""
    damaged: tuple[str, ...]
    """Names of records whose manifests are missing or damaged. If there is one, nothing is known about its chunks, and a
    collection removes nothing.
    """
    name_count: int
    names: tuple[NameUsage, ...]
    """The names that take the most, the largest first."""
    hold: Hold | None = None
    """Why the collection of the namespace is held. Then it removes nothing before the hold has ended."""
    quota: QuotaUse | None = None
    """The limits of the namespace, and what counts for them. None if there are none."""

    def as_json(self) -> dict[str, Any]:
        """Return the form in which it is sent and printed. `usage_from_json` is the inverse."""
        hold = None if self.hold is None else self.hold.as_json()
        quota = None if self.quota is None else self.quota.as_json()
        return self._asdict() | {"names": [name._asdict() for name in self.names], "hold": hold, "quota": quota}


def usage_from_json(values: dict[str, Any]) -> Usage:
    """Make a `Usage` from its JSON form, an object of its members.

    Raises KeyError, TypeError, ValueError or a FilestoreError if a value is missing or not valid. An earlier version of
    filestore does not say whether there is a hold or a quota.
    """
    members = {name: values[name] for name in Usage._fields if name not in {"hold", "quota"}}
    names = [NameUsage(**{name: entry[name] for name in NameUsage._fields}) for entry in members["names"]]
    counts = members.keys() - {"namespace", "grace_seconds", "damaged", "names"}
    numbers = [members[name] for name in counts] + [number for name in names for number in name[1:]]
    words = [members["namespace"], *members["damaged"], *(name.name for name in names)]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a count or a size is not a number")
    if type(members["grace_seconds"]) not in {int, float} or not 0 <= members["grace_seconds"] < 1 << 63:
        raise ValueError("the grace period is not a number of seconds")
    if not all(type(word) is str for word in words):
        raise TypeError("a name is not a text")
    namespace = checked_namespace(members["namespace"])
    for name in names:
        checked_name(split_full_name(name.name)[1])
    found = values.get("hold")
    hold = hold_from_json(namespace, found) if isinstance(found, dict) else None
    limits = values.get("quota")
    quota = quota_from_json(limits) if isinstance(limits, dict) else None
    return Usage(**members | {"damaged": tuple(members["damaged"]), "names": tuple(names), "hold": hold, "quota": quota})


@runtime_checkable
class AsksPeers(Protocol):
    """A repository that asks peers for frames, and counts what they give."""

    peers_size: int
    """Bytes of the frames that peers have given, to the worker processes of ended jobs too."""


def take_peers_size(repository: Repository) -> int:
    """Return how many bytes peers gave since the last call, in a worker process. They are added in the process that transfers."""
    if not isinstance(repository, AsksPeers):
        return 0
    taken, repository.peers_size = repository.peers_size, 0
    return taken


@runtime_checkable
class NamesPlaces(Protocol):
    """A repository whose server may name the places of frames. The process that transfers asks for those of the worker processes.

    It can ask about more frames at a time than a worker process, which knows only its own batches.
    """

    async def name_places(self, digests: Sequence[Digest]) -> object | None:
        """Return where frames are, for `take_places` in another process. It can be pickled.

        Return None if the other process asks itself, as before it is known whether the server names places. Raises Unauthorized
        and TransferError.
        """

    def take_places(self, digests: Sequence[Digest], places: object) -> None:
        """Remember for a `get` that comes next where these frames are, as `name_places` has returned it in another process."""


class Repository(Protocol):
    """What `connect` gives: a repository in a folder of this machine, or at a server. Both have the same verbs.

    Users call `push`, `fetch` and `fetch_tree` with it, and `record`, `records`, `sign` and `remove`.

    All verbs are idempotent and may be cancelled at any await. Then something is there as a whole or not at all. Besides what
    they name, all of them raise StorageError and Busy for a folder, Unauthorized and TransferError for a server.
    `tests/contracts/test_repository.py` runs every rule against every implementation.
    """

    @property
    def location(self) -> str:
        """The URL of the server or the path of the folder, as the user gave it."""

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, computed from the location and the token without a request. They hide the token."""

    @property
    def waited_seconds(self) -> float | None:
        """For how many seconds a verb has waited for a server that fails. None if none waits, and for a folder.

        A verb tries a server that it has reached again and again for a time, and continues when the server is back.
        """

    @property
    def waited_because(self) -> str:
        """Why the last request failed for which `waited_seconds` counts. Empty if none waits."""

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        """For how many more seconds a verb waits because the server asked for it, and why. None if none does, and for a folder.

        A server asks for it when a namespace or a token has reached a limit. The verb then continues.
        """

    @property
    def transfer_limits(self) -> TransferLimits:
        """How much one push or fetch may use."""

    def opening(self) -> Opening | None:
        """Return how another process of this machine opens this repository. None where none can, as of one in memory."""

    def lending(self, processes: int) -> AbstractAsyncContextManager[int]:
        """Let so many other processes have a part of the connections for a block. It gets how many of them have one.

        All parts are equal. They are all that `opening` gives to as many processes and this one.
        """

    async def identity(self) -> Identity:
        """Return the identity. It is requested once and then kept. Raises UnknownFormat if its version is unknown."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return the digests of the chunks that must be sent, in order and without repeats.

        The chunks that are reported present stay for the grace period (I9). Raises StorageError, TransferError.
        """

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        """Verify frames (I4), and store them durably. The caller may reuse their memory afterwards.

        `moved` is called with the number of encoded bytes of each step. A retry calls it with a negative number.

        Raises InvalidFrame for the first frame that does not decode to its digest. Valid frames before and after it may
        be kept.
        """

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames into `buffer` one after the other. Return the part of `buffer` for each, or None if it is absent.

        `buffer` must have the decoded sizes and 8 bytes for each frame. Frames are not verified; the caller's decoder
        verifies them.

        Raises StorageError, TransferError.
        """

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        """Verify stored frames again.

        Forget the damaged ones, so that the next push sends them, and return their digests.

        A client that found damage calls this. The repository does not trust the client but checks the frames itself. At
        most 4096 digests. A repository that was opened for reading forgets damaged frames only if this process may
        write; it returns their digests in any case.

        Raises StorageError, TransferError.
        """

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE, commit: NewCommit = PLAIN_COMMIT) -> Record:
        """Record a file whose chunks were put.

        `name` may have an owner, `OWNER/NAME`. The first name with an owner makes it one of the namespace. The same manifest,
        name and kind give the same record, which is now the newest. `commit` says what its commit says, which is made unless the
        newest commit of the branch is the same record. A server says itself who the author is.

        Raises ChunksMissing with the chunks that must be sent first, InvalidManifest, InvalidName, InvalidInput, LimitExceeded,
        OwnerTaken, HeadMoved, and RevisionNotFound if the branch does not exist.
        """

    async def check_new_name(self, name: str, *, branch: str = MAIN) -> None:
        """Raise what `commit` would raise because of this name and branch, before content is sent for it.

        Raises InvalidName, OwnerTaken, OutsidePrefix, ReadOnly; NotFound or RevisionNotFound if the branch does not exist.
        """

    async def find_commit(self, name: str, revision: str | None = None) -> Commit:
        """Return the commit of a name that a revision means: `main` or None, a label, `~N`, the id of a commit, or first digits.

        Raises NotFound; RevisionNotFound if the name exists, also where all its commits are on other branches than `main`;
        InvalidReference if the digits are those of several versions.
        """

    async def history(
        self, name: str, *, revision: str | None = None, limit: int = 1000, before: int | None = None
    ) -> list[Commit]:
        """Return at most `limit` commits of a name, from that of `revision` back to the first one.

        With `before`, return only commits whose number is smaller. `limit` is at most 1000. This costs what it returns, and a
        step for each commit of another branch than `main` that `before` passes over. Raises what `find_commit` raises.
        """

    async def labels(self, name: str) -> list[Label]:
        """Return the tags and branches of a name, in the order of their names. Raises NotFound if nothing is stored under it."""

    async def set_label(
        self, name: str, label: str, *, kind: LabelKind = LabelKind.TAG, revision: str | None = None, force: bool = False
    ) -> Label:
        """Give the commit that `revision` means a tag or a branch. `force` moves one that is there.

        Raises what `find_commit` raises, LabelExists, LimitExceeded, and InvalidInput for a text that cannot be a label.
        """

    async def remove_label(self, name: str, label: str) -> Label:
        """Remove a tag or a branch, and return it. The commits stay. Raises NotFound; RevisionNotFound if the name exists."""

    async def manifest(self, digest: Digest) -> bytes:
        """Return the canonical bytes of a manifest, and verify its digest. Raises NotFound, InvalidManifest."""

    async def record(self, wanted: Wanted) -> Record:
        """Return the newest record that `wanted` names. For a digest alone, a directory has priority over a file.

        A `Record` means its id, so that the answer is what the repository knows now.

        Raises InvalidReference for a text that cannot name a stored file, a local path, a URL, and the first digits of the
        digests of several versions; NotFound if there is no such
        record, and UnexpectedRecord if a server answers with another record.
        """

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Return at most `limit` records, the newest first. With `before`, return only records updated before it.

        Raises StorageError, TransferError.
        """

    async def versions(
        self,
        wanted: Wanted,
        *,
        limit: int = 1000,
        before: int | None = None,
        keep_last: int | None = None,
        older_than_seconds: float | None = None,
    ) -> VersionPage:
        """Return records that `wanted` covers, the newest first: all versions of a name, or all records of a digest.

        An id, and a name with a revision, cover one record. `total` is then the number of versions of the name. With
        `before`, return only the records that follow the record that was updated at this time. With `keep_last` or
        `older_than_seconds`, return only the records that a `VersionRule` with these limits selects, by the clock of the
        repository. `limit` is at most 1000.

        Raises InvalidReference as `record` does; NotFound if `wanted` covers no record.
        """

    async def freed_by(self, file_ids: Sequence[str]) -> FreedContent:
        """Return what collection can free after the removal of these records: what no other record needs.

        Ids that do not exist are skipped. At most 65536 ids. It reads the manifests of all records of the namespace.

        Raises DamagedRecord if one of these manifests is missing or damaged, because nobody knows what its record needs.
        """

    async def usage(self, *, grace_seconds: float | None = None, name_limit: int = 1000) -> Usage:
        """Measure what the namespace takes on disk, and which names take the most. `name_limit` is at most 1000.

        Without `grace_seconds`, the grace period is that of the repository. It lists all frames and reads the
        manifests of all records.

        Raises StorageError, TransferError.
        """

    def iter_records(self) -> AsyncGenerator[Record, None]:
        """Yield all records, the newest first, as they are at the first step.

        A record that is stored again meanwhile is neither left out nor yielded twice, and memory does not grow with their number:
        they are first written to a temporary file.

        Raises StorageError, StorageFull, TransferError.
        """

    async def sign(self, file_id: str) -> str:
        """Return a path below the server's URL at which any HTTP client can read a record's bytes without a token.

        The path is valid for a time that the server sets, a day by default. It ends earlier if the token is removed by
        which this repository was opened.

        Raises NotFound.
        """

    async def make_link(self, file_id: str, *, seconds: float) -> Link:
        """Make a link to a record: a signed URL that lasts `seconds`, is listed, and can be revoked.

        Its `path` is below the server's URL, and is not told again. It ends no later than the token by which this repository
        was opened.

        Raises NotFound, InvalidInput, LimitExceeded, StorageError, TransferError.
        """

    async def links(self) -> list[Link]:
        """Return the links that are valid, the oldest first. Raises StorageError, TransferError."""

    async def revoke_link(self, link_id: str) -> Link:
        """End a link. Return it. Raises NotFound, StorageError, TransferError."""

    async def remove(
        self,
        file_id: str,
        *,
        with_chunks: bool = False,
        force: bool = False,
        updated_at: int | None = None,
        unless_newest: bool = False,
    ) -> Record:
        """Remove a record, and its commits. `force` removes it also if a pipeline needs it, or if it has a label.

        With `updated_at`, the record is removed only if nobody has stored it again since that time. With `unless_newest`, it
        is removed only if a newer version of its name exists. This is checked in the transaction that removes it.

        Its chunks stay, unless `with_chunks` is set: then chunks that no other record needs are removed too.
        They also stay while the collection of the namespace is held.

        Removing chunks reads the manifest of every record of the namespace. A push in progress may have learned that
        such a chunk is present. Its commit reports the chunk as missing, and the push sends it.

        Raises NotFound; RecordChanged if `updated_at` or `unless_newest` forbids it; FileInUse if a pipeline needs the file;
        VersionLabelled if it has a tag or a branch. With `force`, its tags go too.
        Raises DamagedRecord, and removes nothing, if one of these manifests is missing or damaged.
        """

    async def close(self) -> None:
        """Close connections and files. The block of `connect` does this at its end.

        A verb that is called afterwards raises InvalidInput.
        """


def whole_reference_of(wanted: object) -> Reference:
    """Return what `reference_of` returns. Raises InvalidReference if it names an entry of a directory."""
    reference = reference_of(wanted)
    if reference.entry_path is not None:
        raise InvalidReference(
            str(reference), "it has a path inside a directory; here a whole file or directory is needed, without the ':'"
        )
    return reference


async def find_record(repository: Repository, wanted: Wanted) -> Record:
    """Return the record that `wanted` names. A `Record` is returned unchanged, without a request to the repository.

    Raises InvalidReference for a text that cannot name a stored file, a local path and a URL; NotFound, TransferError.
    """
    repository = checked_repository(repository)
    return wanted if isinstance(wanted, Record) else await repository.record(wanted)


def reference_of(wanted: object) -> Reference:
    """Return the reference that `wanted` means; for a record, that of its id.

    Raises InvalidReference for a text that cannot name a stored file, a local path and a URL. Raises InvalidInput for a value of
    another type.
    """
    if isinstance(wanted, str):
        return Reference.parse(wanted)
    if isinstance(wanted, Record):
        return Reference(id=wanted.id)
    if isinstance(wanted, File | Directory):
        return wanted.reference
    if not isinstance(wanted, Reference):
        kind = type(wanted).__name__
        raise InvalidInput(
            f"a value of the type {kind} names no stored file; give a text, a Reference, a Record, a File or a Directory"
        )
    return wanted


def checked_repository(repository: Repository) -> Repository:
    """Return `repository`. Raises InvalidInput for a value that is not a repository, such as a URL."""
    # What `connect` returns has no attribute either, and raises InvalidInput itself.
    if not hasattr(repository, "identity"):
        kind = f"{type(repository).__module__}.{type(repository).__qualname__}".removeprefix("builtins.")
        raise InvalidInput(
            f"a value of the type {kind} cannot be used as a repository here;"
            " give what `async with filestore.connect(...) as repository:` gives"
        )
    return repository


def closed_error(location: str) -> InvalidInput:
    """Return the error of a verb that is called after `Repository.close`."""
    return InvalidInput(f"the repository {location} was closed; open it again by connect")
