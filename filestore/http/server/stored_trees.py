"""Share the opened directories of a server process between its requests, within a limit of memory (I6)."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from typing import NamedTuple

from filestore.core.content_digests import PACKED_SIZE, FileDigests
from filestore.core.digest import Digest
from filestore.core.manifest import Manifest
from filestore.core.references import Reference
from filestore.errors import Busy, ChunksMissing, DamagedChunk, FilestoreError, InvalidArchive, NotAnArchive
from filestore.format.zip.read import ZipLimits
from filestore.format.zip.tree import LINK_TARGET_LIMIT
from filestore.http.server.model_card import CARD_LIMIT, NO_CARD, ModelCard, parse_card
from filestore.http.server.shared_loads import Key, SharedLoad, SharedLoads
from filestore.repository.local import LocalRepository
from filestore.system.threads import in_cpu_thread
from filestore.transfer.stored_tree import EntryKind, StoredEntry, StoredTree, read_entry

TREES_LIMIT = 64 << 20
"""Bytes of memory for the opened trees of a process, unless one that is in use takes more."""
OPENINGS_LIMIT = 2
"""Trees that are opened at the same time. While it is checked, a tree takes 1 KB for each member."""
SERVED_TREES = ZipLimits(entries=200_000, directory_size=32 << 20)
"""The largest trees whose entries are served."""
LINKS_LIMIT = 1000
"""The most links of a tree that are followed, in the order of their paths. Each is read when the tree is opened."""
UNPACKINGS_LIMIT = 8
"""Entries that are unpacked while they are sent, at the same time. Each takes about 10 MiB, also while its client is slow."""
PREVIEWS_LIMIT = 4
"""Beginnings of files that are read for pages at the same time. Each takes about 10 MiB for a moment."""
FOLLOWED_LIMIT = 40
"""The most links on the way to one file, as Linux follows."""


class OpenedTree:
    """A stored tree, with the targets of its links and the secondary digests of its files."""

    def __init__(self, tree: StoredTree, links: Mapping[str, str], files: _Files, card: ModelCard) -> None:
        self.tree = tree
        self.card = card
        self.used_storage = files.size
        """Bytes of all files together."""
        self.file_list: bytes | None = None
        """The names of all files, as the one who asked first has put them together for others. Smaller than the directory."""
        self._links = links
        self._places = files.places
        self._file_count = files.file_count
        self._digests: bytes | None = None

    @property
    def size_in_memory(self) -> int:
        """Bytes of memory that it takes, with the digests and the list of its files, also if they are not there yet."""
        own = len(self._places) * (self._places.itemsize + PACKED_SIZE) + len(self.tree.tail)
        return self.tree.size_in_memory + own + sum(len(path) + len(target) + 200 for path, target in self._links.items())

    @property
    def has_digests(self) -> bool:
        """Whether the digests of the files are known."""
        return self._digests is not None

    async def learn(self, repository: LocalRepository, digest: Digest) -> None:
        """Ask for the digests of the files, if they are not known."""
        if self._digests is None:
            found = await repository.tree_digests(digest)
            if found is not None and len(found) == self._file_count * PACKED_SIZE:
                self._digests = found

    def digests_of(self, entry: StoredEntry) -> FileDigests | None:
        """Return the digests of a file. Return None if they are not known, or if it is not a file."""
        if self._digests is None or entry.kind is not EntryKind.FILE or entry.member_number is None:
            return None
        return FileDigests.unpack(self._digests, self._places[entry.member_number])

    def find(self, path: str) -> StoredEntry | None:
        """Return the file or folder at `path`, which may lead through links. Return None if there is none.

        The entry has the path that was found, where the links lead to.
        """
        for _ in range(FOLLOWED_LIMIT):
            entry = self.tree.entry(path)
            if entry is not None and entry.kind is not EntryKind.LINK:
                return entry
            link = next((link for link in _with_parents(path) if link in self._links), None) if self._links else None
            if link is None:
                return None
            followed = _joined(link.rpartition("/")[0], self._links[link] + path[len(link) :])
            if followed is None:
                return None
            path = followed
        return None


class SharedTrees:
    """The opened trees of one process. Requests for the same tree use one copy, which is opened once.

    While those in use take all memory, no further one is opened.
    """

    def __init__(self, *, wait_seconds: float, limit: int = TREES_LIMIT, limits: ZipLimits = SERVED_TREES) -> None:
        """`wait_seconds` is how long a request waits for memory."""
        refusal = "readers of other large directories use all memory for lists of files"
        self._loads = SharedLoads[OpenedTree]("trees", wait_seconds=wait_seconds, limit=limit, refusal=refusal)
        self._wait_seconds = wait_seconds
        self._limits = limits
        self._openings = asyncio.Semaphore(OPENINGS_LIMIT)
        self._previews = asyncio.Semaphore(PREVIEWS_LIMIT)
        self._unpackings: Counter[str] = Counter()
        """How many entries of each namespace are unpacked now."""

    @property
    def size(self) -> int:
        """Bytes of memory that all trees take."""
        return self._loads.size

    @asynccontextmanager
    async def reading(self, repository: LocalRepository, digest: Digest) -> AsyncIterator[OpenedTree]:
        """Give a stored tree during the block.

        Raises NotFound, StorageError, DamagedChunk, InvalidArchive, LimitExceeded if it has too many members, and Busy if others
        use all memory for too long.
        """
        key = (repository.namespace, digest)
        async with self._loads.using(key, lambda: self._begin(repository, key)) as opened:
            await opened.learn(repository, digest)
            yield opened

    async def check(self, repository: LocalRepository, manifest: Manifest) -> None:
        """Check that a file whose chunks are stored is a zip file whose entries can be served and fetched. It needs no record.

        The central directory is read, and not the content of the entries: a fetch checks that. Raises InvalidArchive,
        LimitExceeded if it has too many members, DamagedChunk, ChunksMissing, StorageError.
        """
        async with self._openings:
            try:
                await StoredTree.open(repository, manifest.digest, manifest=manifest, limits=self._limits)
            except NotAnArchive as error:
                raise InvalidArchive("", f"{error.reason}; store it as a file, or send the zip file of the directory") from None

    @asynccontextmanager
    async def unpacking(self, namespace: str) -> AsyncIterator[None]:
        """Permit to send an entry during the block that is unpacked on the way. Raises Busy if others do so for too long.

        One namespace has at most half of the entries that may be unpacked at the same time.
        """
        taken = self._unpackings
        try:
            async with asyncio.timeout(self._wait_seconds):
                while taken.total() >= UNPACKINGS_LIMIT or taken[namespace] >= UNPACKINGS_LIMIT // 2:
                    await self._loads.wait_for_release()
        except TimeoutError:
            raise Busy("the server", "it is unpacking files for others; fetch the whole directory, or push it unpacked") from None
        taken[namespace] += 1
        try:
            yield
        finally:
            taken[namespace] -= 1
            if not taken[namespace]:
                del taken[namespace]
            self._loads.tell_waiting()

    @asynccontextmanager
    async def previewing(self) -> AsyncIterator[None]:
        """Wait until a page may read the beginning of a file of a tree, which it does during the block."""
        async with self._previews:
            yield

    async def _begin(self, repository: LocalRepository, key: Key) -> SharedLoad[OpenedTree] | None:
        """Begin to open a tree. Return None while those in use take all memory. How much it takes is known when it is open."""
        if self._loads.used_size >= self._loads.limit:
            return None
        return self._loads.add(key, self._open(repository, key[1]), measure=lambda opened: opened.size_in_memory)

    async def _open(self, repository: LocalRepository, digest: Digest) -> OpenedTree:
        async with self._openings, lost_as_damaged(repository, digest):
            tree = await StoredTree.open(repository, digest, limits=self._limits)
            files = await in_cpu_thread(_survey, tree)
            links = {link.path: await _target(repository, tree, link) for link in files.links}
            return OpenedTree(tree, links, files, await _card(repository, tree))


@asynccontextmanager
async def lost_as_damaged(repository: LocalRepository, digest: Digest) -> AsyncIterator[None]:
    """Raise DamagedChunk if a chunk is missing that the block reads of a file. ChunksMissing would ask the client to send it.

    Raises NotFound if the file was removed meanwhile: that is not damage.
    """
    try:
        yield
    except (ChunksMissing, DamagedChunk) as error:
        await repository.record(Reference(digest=digest))
        if isinstance(error, DamagedChunk):
            raise
        raise DamagedChunk(error.digests[0], "its frame is gone or cannot be read") from None


class _Files(NamedTuple):
    """What is known of a tree after a look at each member."""

    places: array[int]
    """The number of files before each member, in the order of the members."""
    file_count: int
    size: int
    links: list[StoredEntry]
    """Those that are followed."""


def _survey(tree: StoredTree) -> _Files:
    places = array("I")
    file_count = size = 0
    has_links = False
    for member in tree.members:
        places.append(file_count)
        is_file = not member.is_folder and not member.is_link
        has_links = has_links or member.is_link
        file_count += is_file
        size += member.size * is_file
    all_links = (entry for entry in tree.entries(recursive=True) if entry.kind is EntryKind.LINK) if has_links else iter(())
    links = [link for link in islice(all_links, LINKS_LIMIT) if link.size <= LINK_TARGET_LIMIT]
    return _Files(places, file_count, size, links)


async def _target(repository: LocalRepository, tree: StoredTree, link: StoredEntry) -> str:
    return b"".join([piece async for piece in read_entry(repository, tree, link)]).decode(errors="replace")


async def _card(repository: LocalRepository, tree: StoredTree) -> ModelCard:
    found = tree.entry("README.md")
    if found is None or found.kind is not EntryKind.FILE:
        return NO_CARD
    try:
        return parse_card(b"".join([piece async for piece in read_entry(repository, tree, found, 0, CARD_LIMIT)]))
    except FilestoreError:
        return NO_CARD  # the other files can be read without it


def _with_parents(path: str) -> Iterator[str]:
    """Yield the path and the folders that it is in, the outermost first."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)
    yield path


def _joined(folder: str, target: str) -> str | None:
    """Return where `target` leads to from a folder. Return None if that is outside of the tree."""
    if target.startswith("/"):
        return None
    parts = folder.split("/") if folder else []
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)
