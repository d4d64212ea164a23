"""The repository protocol is what push, fetch and the server need from any repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, Reference
from filestore.format.codec import Frame

SIGNED_SECONDS = 86400
"""How long a signed path is valid by default, in seconds."""

Moved = Callable[[int], None]
"""The one callback from a transfer to its caller. It gets the number of encoded bytes that were just moved."""

Wanted: TypeAlias = str | Reference | Record | File | Directory
"""How a caller names a stored file: a text as `Reference.parse` reads it, or one of these values."""


class Identity(NamedTuple):
    """A repository's description of itself. Caches and push caches use `id` and `namespace` in their keys."""

    id: str
    """32 hex digits, made with the repository."""
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
        """The user's name for it: a URL, or the path of a folder."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that identify location and token without a request. They do not reveal the token."""

    async def identity(self) -> Identity:
        """Return the identity, which is requested once and then kept. Raises UnknownFormat for an unknown version."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return those of `digests` that must be sent, once each, in order.

        The chunks that are reported present stay for the grace period (I9). Raises StorageError, TransferError.
        """

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        """Keep frames, durably, after each was verified (I4). The caller may reuse their memory afterwards.

        `moved` is called with the number of encoded bytes of each step. A retry calls it with a negative number.

        Raises InvalidFrame for the first frame that does not decode to its digest. Valid frames before and after it may
        be kept.
        """

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames into `buffer` without gaps; return each one's part of it, None for an absent chunk.

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
        """Return the canonical bytes of a file's manifest, verified. Raises NotFound, InvalidManifest."""

    async def record(self, reference: Reference) -> Record:
        """Return the newest record that `reference` names. For a digest alone, a directory comes before a file.

        Raises NotFound, and UnexpectedRecord where a server answers with another record.
        """

    async def records(self, *, limit: int = 1000, before: int | None = None) -> list[Record]:
        """Return records from the newest down; with `before`, those with an earlier `updated_at`, for the next page.

        Raises StorageError, TransferError.
        """

    async def sign(self, file_id: str) -> str:
        """Return a path below the server's URL at which any HTTP client can read a record's bytes without a token.

        The path is valid for a time that the server sets, a day by default.

        Raises NotFound.
        """

    async def remove(self, file_id: str, *, with_chunks: bool = False) -> Record:
        """Remove a record.

        Its chunks stay, unless `with_chunks` is set: then chunks that no other record needs are removed too.

        Removing chunks reads the manifest of every record of the namespace. A push in progress may have learned that
        such a chunk is present. Its commit reports the chunk as missing, and the push sends it.

        Raises NotFound. Raises DamagedRecord, and removes nothing, if one of these manifests is missing or damaged.
        """

    async def close(self) -> None:
        """Close connections and files; the end of `connect`'s block does this. No verb may be called afterwards."""


async def find_record(repository: Repository, wanted: Wanted) -> Record:
    """Ask a repository for the record that `wanted` names. A `Record` is returned as it is, and nothing is asked.

    Raises InvalidReference for a text that cannot name a stored file, a local path and a URL; NotFound, TransferError.
    """
    if isinstance(wanted, Record):
        return wanted
    if isinstance(wanted, str):
        wanted = Reference.parse(wanted)
    return await repository.record(wanted if isinstance(wanted, Reference) else wanted.reference)
