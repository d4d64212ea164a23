"""The repository protocol: what push, fetch and the server need from any repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from filestore.core.digest import Digest
from filestore.core.records import Kind, Record
from filestore.core.references import Directory, File, Reference
from filestore.format.codec import Frame

SIGNED_SECONDS = 86400
"""How long a signed path holds where nobody says."""

Moved = Callable[[int], None]
"""The one upward signal of a transfer: encoded bytes that moved just now."""

Wanted: TypeAlias = str | Reference | Record | File | Directory
"""How a caller names a stored file: a text as `Reference.parse` reads it, or one of these values."""


class Identity(NamedTuple):
    """What a repository says of itself. Caches and push caches key what they keep by `id` and `namespace`."""

    id: str
    """32 hex digits, made with the repository."""
    namespace: str
    chunking_version: int
    """The cutting version that pushers follow."""


class Repository(Protocol):
    """What `connect` gives: a repository in a folder of this machine, or at a server. Both have the same verbs.

    Users call `push`, `fetch` and `fetch_tree` with it, and `record`, `records`, `sign` and `remove`.

    All verbs are idempotent and may be cancelled at any await. Then something is there as a whole or not at all. Besides what
    they name, all of them raise StorageError and Busy for a folder, Unauthorized and TransferError for a server.
    `tests/contracts/test_repository.py` runs every rule against every implementation.
    """

    @property
    def location(self) -> str:
        """What a user calls it: a URL, or the path of a folder."""

    @property
    def fingerprint(self) -> str:
        """64 hex digits that stand for location and token, known without asking anyone; no secret can be had from them."""

    async def identity(self) -> Identity:
        """Asked once, then remembered. Raises UnknownFormat for a repository of another version."""

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Return those of `digests` that must be sent, once each, in order.

        The other chunks stay for the grace period (I9). Raises StorageError, TransferError.
        """

    async def put(self, frames: Sequence[Frame], *, moved: Moved | None = None) -> None:
        """Keep frames, durably; each is verified first (I4). The caller may reuse their memory afterwards.

        `moved` is called with the number of encoded bytes of every step forward; a retry takes back with a negative one.

        Raises InvalidFrame for the first that does not decode to its digest; the whole ones before and after it may be kept.
        """

    async def get(self, digests: Sequence[Digest], buffer: memoryview, *, moved: Moved | None = None) -> list[memoryview | None]:
        """Read frames into `buffer`, one after the other; give each one's part of it, None where a chunk is absent.

        `buffer` must hold decoded sizes and 8 bytes a frame. Frames are not verified: whoever decodes them does that.

        Raises StorageError, TransferError.
        """

    async def verify_chunks(self, digests: Sequence[Digest]) -> list[Digest]:
        """Verify kept frames once more, and forget those that are damaged, so that the next push sends them again; returns these.

        For whoever met damage: it is not believed, but looked at. At most 4096 digests. A repository that was opened for reading
        only forgets them where this process may write; where it may not, they are returned all the same.

        Raises StorageError, TransferError.
        """

    async def commit(self, manifest: bytes, *, name: str, kind: Kind = Kind.FILE) -> Record:
        """Record a file whose chunks were put. The same manifest, name and kind again is the same record, now the newest.

        Raises ChunksMissing with what must be sent first, InvalidManifest, InvalidName, LimitExceeded.
        """

    async def manifest(self, digest: Digest) -> bytes:
        """The canonical bytes of a file's manifest, verified. Raises NotFound, InvalidManifest."""

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

        The path holds for a time that the server sets, a day by default.

        Raises NotFound.
        """

    async def remove(self, file_id: str, *, with_chunks: bool = False) -> Record:
        """Remove a record. Its chunks stay, unless `with_chunks`: then those that no other record needs are removed as well.

        That reads the manifest of every record of the namespace. A push in progress that was told that such a chunk is there is
        told at its commit that it is missing, and sends it.

        Raises NotFound; DamagedRecord, and nothing is removed, where one of these manifests is missing or damaged.
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
