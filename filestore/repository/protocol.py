"""The protocol of a repository: the methods that push, fetch and the server use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, Reference
from filestore.errors import InvalidInput
from filestore.format.codec import Frame

SIGNED_SECONDS = 86400
"""The number of seconds for which a signed path is valid by default."""

VERIFY_LIMIT = 4096
"""The largest number of digests in one call of `Repository.verify_chunks`."""

Moved = Callable[[int], None]
"""A callback that a transfer calls with the number of encoded bytes that were just sent or received."""

Wanted: TypeAlias = str | Reference | Record | File | Directory
"""The ways to name a stored file: a text that `Reference.parse` accepts, or an object of one of these classes."""


class Identity(NamedTuple):
    """What identifies a repository. Caches and push caches use `id` and `namespace` in their keys."""

    id: str
    """32 hexadecimal digits. They are random, and made together with the repository."""
    namespace: str
    chunking_version: int
    """The cutting version that a push must use."""


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

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        """Record a file whose chunks were put.

        The same manifest, name and kind give the same record, which is now the newest.

        Raises ChunksMissing with the chunks that must be sent first, InvalidManifest, InvalidName, LimitExceeded.
        """

    async def manifest(self, digest: Digest) -> bytes:
        """Return the canonical bytes of a manifest, and verify its digest. Raises NotFound, InvalidManifest."""

    async def record(self, wanted: Wanted) -> Record:
        """Return the newest record that `wanted` names. For a digest alone, a directory has priority over a file.

        A `Record` means its id, so that the answer is what the repository knows now.

        Raises InvalidReference for a text that cannot name a stored file, a local path and a URL; NotFound if there is no such
        record, and UnexpectedRecord if a server answers with another record.
        """

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Return at most `limit` records, the newest first. With `before`, return only records updated before it.

        Raises StorageError, TransferError.
        """

    async def sign(self, file_id: str) -> str:
        """Return a path below the server's URL at which any HTTP client can read a record's bytes without a token.

        The path is valid for a time that the server sets, a day by default.

        Raises NotFound.
        """

    async def remove(self, file_id: str, *, with_chunks: bool = False, force: bool = False) -> Record:
        """Remove a record. `force` removes it also if a pipeline needs it.

        Its chunks stay, unless `with_chunks` is set: then chunks that no other record needs are removed too.

        Removing chunks reads the manifest of every record of the namespace. A push in progress may have learned that
        such a chunk is present. Its commit reports the chunk as missing, and the push sends it.

        Raises NotFound; FileInUse if a pipeline needs the file. Raises DamagedRecord, and removes nothing, if one of
        these manifests is missing or damaged.
        """

    async def close(self) -> None:
        """Close connections and files. The block of `connect` does this at its end.

        A verb that is called afterwards raises InvalidInput.
        """


async def find_record(repository: Repository, wanted: Wanted) -> Record:
    """Return the record that `wanted` names. A `Record` is returned unchanged, without a request to the repository.

    Raises InvalidReference for a text that cannot name a stored file, a local path and a URL; NotFound, TransferError.
    """
    repository = checked_repository(repository)
    return wanted if isinstance(wanted, Record) else await repository.record(reference_of(wanted))


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
