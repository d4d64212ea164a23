"""Find out what a namespace takes on disk, what each name needs of it, and what a removal would free.

Both questions are answered for one part of the chunks after the other, in the order of their digests. So the memory is
limited, whatever the number of chunks. Each part reads the manifests of all records once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.core.manifest import HEADER_SIZE, Manifest
from filestore.core.records import Record
from filestore.core.references import Reference
from filestore.errors import DamagedRecord, InvalidManifest, LimitExceeded
from filestore.repository.index.protocol import Index
from filestore.repository.maintenance.growth import GrowthSums
from filestore.repository.maintenance.hold import hold_of
from filestore.repository.manifest_batches import manifest_size, read_together
from filestore.repository.protocol import FreedContent, NameUsage, Usage
from filestore.repository.stores.protocol import ChunkStore
from filestore.system.threads import in_cpu_thread

PART_COUNT = 2 << 20
"""How many chunks are in memory at the same time, about. Each takes less than 80 bytes."""
_PAGE = 1000
_ROWS = 8192
_HOUR = 3600
_SECOND = 1_000_000
_NONE = -1

_ENTRY = np.dtype([("key", ">u8"), ("rest", f"V{DIGEST_SIZE - 8}"), ("size", "<u4")])
"""An entry of a manifest. The key is the first 8 bytes of the digest, which tell all chunks of a namespace apart."""

_Keys = npt.NDArray[np.uint64]


class _Version(NamedTuple):
    """What is needed of a record here."""

    name: str
    digest: Digest
    record: Record | None
    """None for a manifest that no record has."""
    manifest_size: int


class _Part:
    """Frames whose digests are in one range, in the order of their digests, and what is known about each."""

    def __init__(self, digests: Sequence[Digest], stored_sizes: Sequence[int]) -> None:
        self.keys = _keys_of(digests)
        self.stored = np.array(stored_sizes, dtype=np.int64)
        self.sizes = np.zeros(len(digests), dtype=np.int64)
        self.is_free = np.ones(len(digests), dtype=np.bool_)
        """Whether collection may remove the frame, if no record needs it."""
        self.name = np.full(len(digests), _NONE, dtype=np.int32)
        """The number of the last name that needs the chunk."""
        self.is_shared = np.zeros(len(digests), dtype=np.bool_)
        """Whether several names need the chunk."""
        self.is_seen = np.zeros(len(digests), dtype=np.bool_)
        """Whether a name needs the chunk that the report is about."""
        self.interval = np.full(len(digests), np.iinfo(np.int32).max, dtype=np.int32)
        """The number of the interval in which the first version was stored that the report is about and that has the chunk."""

    def note_rows(self, digests: Sequence[Digest], is_free: Sequence[bool]) -> None:
        """Note which chunks have been used lately, so that collection keeps them."""
        places, is_here = self._places(_keys_of(digests))
        self.is_free[places] = np.array(is_free, dtype=np.bool_)[is_here]

    def note_name(self, number: int, entries: npt.NDArray[np.void], *, is_seen: bool, interval: int | None = None) -> int:
        """Note that a name needs the chunks of a manifest. Return the bytes of those frames that it has not needed before.

        `is_seen` says whether the report is about this name, and `interval` when the version was stored, if that matters.

        All manifests of a name must be noted one after the other.
        """
        keys, first = np.unique(entries["key"].astype(np.uint64), return_index=True)
        places, is_here = self._places(keys)
        if interval is not None and is_seen:
            self.interval[places] = np.minimum(self.interval[places], interval)
        is_new = self.name[places] != number
        new = places[is_new]
        self.is_shared[new] |= self.name[new] != _NONE
        self.name[new] = number
        self.is_seen[new] |= is_seen
        self.sizes[new] = entries["size"][first][is_here][is_new]
        return int(self.stored[new].sum())

    def has_waiting(self, entries: npt.NDArray[np.void]) -> bool:
        """Return whether a manifest has a chunk that no record needs, and that collection keeps for now."""
        places, _ = self._places(entries["key"].astype(np.uint64))
        return bool(np.any((self.name[places] == _NONE) & ~self.is_free[places]))

    def sums_by_name(self, count: int) -> npt.NDArray[np.int64]:
        """Return, for each of `count` names, the bytes of the frames that only this name needs."""
        is_own = (self.name != _NONE) & ~self.is_shared
        sums = np.zeros(count, dtype=np.int64)
        np.add.at(sums, self.name[is_own], self.stored[is_own])
        return sums

    def _places(self, keys: _Keys) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return the places of those of `keys` that are in this part, and which of `keys` these are."""
        if not len(self.keys):
            return np.empty(0, dtype=np.intp), np.zeros(len(keys), dtype=np.bool_)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        is_here = self.keys[places] == keys
        return places[is_here], is_here


@dataclass(slots=True)
class _Sums:
    """The sums over all parts."""

    frame_count: int = 0
    needed: int = 0
    needed_decoded: int = 0
    free: int = 0
    waiting: int = 0

    def add(self, part: _Part, *, is_whole: bool) -> None:
        """Add a part. If the report `is_whole`, it is also about the frames that no name needs."""
        self.needed += int(part.stored[part.is_seen].sum())
        self.needed_decoded += int(part.sizes[part.is_seen].sum())
        if not is_whole:
            self.frame_count += int(part.is_seen.sum())
            return
        is_needed = part.name != _NONE
        self.frame_count += len(part.keys)
        self.free += int(part.stored[~is_needed & part.is_free].sum())
        self.waiting += int(part.stored[~is_needed & ~part.is_free].sum())


async def measure_usage(
    store: ChunkStore,
    index: Index,
    namespace: str,
    *,
    now: int,
    grace_seconds: float,
    name_limit: int,
    prefix: str = "",
    part_count: int = PART_COUNT,
    growth: GrowthSums | None = None,
) -> Usage:
    """Measure what a namespace takes on disk. Pushes and removals may run meanwhile.

    With a `prefix`, the report is only about the names that begin with it, and about the frames that these need. Frames that
    no name needs are left out. A frame that such a name shares with any other name counts as shared.

    `now` is the time in microseconds since 1970, and `grace_seconds` the grace period of collection. The sizes are those
    of the files in the store. `name_limit` is the largest number of names in the result. It lists all frames, and reads
    the manifests of all records once for each part. It takes memory for `part_count` chunks and for all records.

    If `growth` is given, it gets when what is needed was first stored.

    Raises StorageError.
    """
    versions = sorted(await _versions(index, namespace), key=lambda version: version[:2])
    names = list(dict.fromkeys(version.name for version in versions))
    numbers = {name: number for number, name in enumerate(names)}
    manifests_size, left = await _manifest_sizes(store, namespace, versions, prefix=prefix)
    sums, damaged, waiting = _Sums(), dict[str, None](), set[Digest]()
    own, all_of_name = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    if growth is not None:
        seen_records = (each.record for each in versions if each.record is not None and each.name.startswith(prefix))
        await in_cpu_thread(growth.begin, seen_records)
    unseen_since = now - int((grace_seconds + min(grace_seconds, _HOUR)) * _SECOND)
    async for part in _parts(store, namespace, part_count):
        await _note_rows(index, namespace, part, unseen_since)

        def note(version: _Version, entries: npt.NDArray[np.void], part: _Part = part) -> None:
            number = numbers[version.name]
            interval = None if growth is None or version.record is None else growth.interval_of(version.record.created_at)
            is_seen = version.name.startswith(prefix)
            all_of_name[number] += part.note_name(number, entries, is_seen=is_seen, interval=interval)

        def note_left(version: _Version, entries: npt.NDArray[np.void], part: _Part = part) -> None:
            if part.has_waiting(entries):
                waiting.add(version.digest)

        damaged |= dict.fromkeys(await _read_manifests(store, index, namespace, versions, note))
        await _read_manifests(store, index, namespace, [_Version("", digest, None, left[digest]) for digest in left], note_left)
        own += await in_cpu_thread(part.sums_by_name, len(names))
        sums.add(part, is_whole=not prefix)
        if growth is not None:
            await in_cpu_thread(growth.add, part.interval[part.is_seen], part.sizes[part.is_seen], part.stored[part.is_seen])
    # Collection removes a manifest after its chunks.
    waiting_size = sum(left[digest] for digest in waiting)
    seen = [version for version in versions if version.name.startswith(prefix)]
    names_usage = [usage for usage in _names_usage(versions, numbers, own, all_of_name) if usage.name.startswith(prefix)]
    return Usage(
        namespace=namespace,
        record_count=len(seen),
        logical_size=sum(version.record.size for version in seen if version.record is not None),
        distinct_size=sums.needed_decoded,
        frame_count=sums.frame_count,
        needed_size=sums.needed,
        free_size=sums.free + sum(left.values()) - waiting_size,
        waiting_size=sums.waiting + waiting_size,
        manifests_size=manifests_size,
        grace_seconds=grace_seconds,
        damaged=tuple(name for name in damaged if name.startswith(prefix))[:name_limit],
        name_count=len(names_usage),
        names=tuple(names_usage)[:name_limit],
        hold=await hold_of(index, namespace),
    )


async def measure_freed(
    store: ChunkStore, index: Index, namespace: str, file_ids: Collection[str], *, prefix: str = "", part_count: int = PART_COUNT
) -> FreedContent:
    """Find out what the removal of records lets collection free: the frames that no other record needs.

    It reads the manifests of all records. Ids that do not exist are skipped, and those of records whose names do not begin
    with `prefix`. Raises DamagedRecord, StorageError.
    """
    removed, others = list[_Version](), list[_Version]()
    gone = set(file_ids)
    for version in await _versions(index, namespace):
        is_removed = version.record is not None and version.record.id in gone and version.name.startswith(prefix)
        (removed if is_removed else others).append(version)
    stays = {version.digest for version in others}
    removed = list({version.digest: version for version in removed if version.digest not in stays}.values())
    others = list({version.digest: version for version in others}.values())
    counts = list[int]()
    await _read_whole(store, index, namespace, removed, lambda _, entries: counts.append(len(entries)))
    freed = FreedContent(0, sum(HEADER_SIZE + count * _ENTRY.itemsize for count in counts))
    parts = -(-sum(counts) // part_count)
    for number in range(parts):
        chunks = _Candidates(number, parts)
        await _read_whole(store, index, namespace, removed, lambda _, entries, chunks=chunks: chunks.add(entries))  # type: ignore[misc]  # called at once
        await in_cpu_thread(chunks.sort)
        await _read_whole(store, index, namespace, others, lambda _, entries, chunks=chunks: chunks.keep(entries))  # type: ignore[misc]  # called at once
        for start in range(0, len(chunks), _ROWS):
            sizes = await store.sizes(namespace, chunks.free(start, start + _ROWS))
            freed = FreedContent(freed.chunk_count + sum(map(bool, sizes)), freed.stored_size + sum(sizes))
    return freed._replace(is_held=await hold_of(index, namespace) is not None)


async def measure_freed_each(
    store: ChunkStore, index: Index, namespace: str, file_ids: Collection[str], *, prefix: str = "", part_count: int = PART_COUNT
) -> dict[str, int]:
    """Return, by the ids of records, the bytes that collection can free after the removal of this record alone.

    They are what `measure_freed` finds for each of them: bytes of the frames that no other record needs, and of the manifest. All
    are measured together, so it takes about as long as for one. Ids that do not exist are left out, and those of records whose
    names do not begin with `prefix`. Raises DamagedRecord, StorageError.
    """
    versions = await _versions(index, namespace)
    wanted = set(file_ids)
    counts = Counter(version.digest for version in versions)
    found = {
        version.record.id: version.digest
        for version in versions
        if version.record is not None and version.record.id in wanted and version.name.startswith(prefix)
    }
    alone = {digest for digest in found.values() if counts[digest] == 1}
    distinct = {version.digest: version for version in versions}
    removed = [version for digest, version in distinct.items() if digest in alone]
    others = [version for digest, version in distinct.items() if digest not in alone]
    numbers = {version.digest: number for number, version in enumerate(removed)}
    freed = [0] * len(removed)
    chunk_counts = list[int]()

    def note(version: _Version, entries: npt.NDArray[np.void]) -> None:
        chunk_counts.append(len(entries))
        freed[numbers[version.digest]] = HEADER_SIZE + len(entries) * _ENTRY.itemsize

    await _read_whole(store, index, namespace, removed, note)
    parts = -(-sum(chunk_counts) // part_count)
    for number in range(parts):
        chunks = _Candidates(number, parts)

        def add(version: _Version, entries: npt.NDArray[np.void], chunks: _Candidates = chunks) -> None:
            chunks.add(entries, owner=numbers[version.digest])

        await _read_whole(store, index, namespace, removed, add)
        await in_cpu_thread(chunks.sort)
        await _read_whole(store, index, namespace, others, lambda _, entries, chunks=chunks: chunks.keep(entries))  # type: ignore[misc]  # called at once
        for start in range(0, len(chunks), _ROWS):
            sizes = await store.sizes(namespace, chunks.free(start, start + _ROWS))
            for owner, size in zip(chunks.owners_of_free(start, start + _ROWS), sizes, strict=True):
                freed[owner] += size
    return {file_id: freed[numbers[digest]] if digest in numbers else 0 for file_id, digest in found.items()}


class _Candidates:
    """The distinct chunks of manifests whose keys are in one of several equal ranges, and which of them are needed."""

    def __init__(self, number: int, parts: int) -> None:
        self._range = (number << 64) // parts, ((number + 1 << 64) // parts) - 1
        self._added: list[bytes] = []
        self._owners: list[npt.NDArray[np.int32]] = []
        self._entries = np.empty(0, dtype=_ENTRY)
        self._keys: _Keys = np.empty(0, dtype=np.uint64)
        self._is_needed = np.empty(0, dtype=np.bool_)
        self._owner = np.empty(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, entries: npt.NDArray[np.void], *, owner: int = 0) -> None:
        """Add the chunks of a manifest that are in the range. `owner` is a number for the manifest."""
        keys = entries["key"]
        first, last = self._range
        added = entries[(keys >= np.uint64(first)) & (keys <= np.uint64(last))]
        self._added.append(added.tobytes())
        self._owners.append(np.full(len(added), owner, dtype=np.int32))

    def sort(self) -> None:
        """Make the added chunks distinct. A chunk of two owners is needed. Call it once, before `keep`."""
        # As bytes, because numpy would bring the keys into the order of bytes of this machine.
        entries = np.frombuffer(b"".join(self._added), dtype=_ENTRY)
        owners = np.concatenate(self._owners) if self._owners else self._owner
        self._added.clear()
        self._owners.clear()
        self._keys, first, places = np.unique(entries["key"].astype(np.uint64), return_index=True, return_inverse=True)
        self._entries, self._owner = entries[first], owners[first]
        self._is_needed = np.zeros(len(self._keys), dtype=np.bool_)
        self._is_needed[places[owners != self._owner[places]]] = True

    def keep(self, entries: npt.NDArray[np.void]) -> None:
        """Note that the chunks of a manifest are needed."""
        if len(self._keys):
            keys = entries["key"].astype(np.uint64)
            places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            self._is_needed[places[self._keys[places] == keys]] = True

    def free(self, start: int, stop: int) -> list[Digest]:
        """Return the digests of those chunks from `start` to `stop` that nothing needs."""
        raw = self._entries[start:stop][~self._is_needed[start:stop]].tobytes()
        return [Digest(raw[place : place + DIGEST_SIZE]) for place in range(0, len(raw), _ENTRY.itemsize)]

    def owners_of_free(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the manifests that those chunks are from which `free` returns."""
        owners: list[int] = self._owner[start:stop][~self._is_needed[start:stop]].tolist()
        return owners


def _keys_of(digests: Sequence[Digest]) -> _Keys:
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=">u8").astype(np.uint64)


def _names_usage(
    versions: Iterable[_Version], numbers: Mapping[str, int], own: npt.NDArray[np.int64], all_of_name: npt.NDArray[np.int64]
) -> tuple[NameUsage, ...]:
    """Return the usage of each name, the largest first."""
    counts, sizes = [0] * len(numbers), [0] * len(numbers)
    for version in versions:
        counts[numbers[version.name]] += 1
        sizes[numbers[version.name]] += 0 if version.record is None else version.record.size
    usages = [
        NameUsage(name, counts[number], sizes[number], int(own[number]), int(all_of_name[number] - own[number]))
        for name, number in numbers.items()
    ]
    return tuple(sorted(usages, key=lambda usage: (-usage.own_size - usage.shared_size, usage.name)))


async def _versions(index: Index, namespace: str) -> list[_Version]:
    """Return all records of a namespace, once each, also the graphs of pipelines."""
    position = 0
    found: dict[str, _Version] = {}
    while page := await index.records_after(namespace, position, limit=_PAGE):
        position = page[-1].position
        # A record that is stored again meanwhile comes again.
        for each in page:
            record = each.record
            found[record.id] = _Version(record.full_name, record.digest, record, manifest_size(each))
    return list(found.values())


async def _parts(store: ChunkStore, namespace: str, part_count: int) -> AsyncIterator[_Part]:
    """Yield the frames of a namespace in parts, in the order of their digests."""
    digests, sizes = list[Digest](), list[int]()
    async for page in store.frame_pages(namespace):
        digests += [digest for digest, _ in page]
        sizes += [size for _, size in page]
        if len(digests) >= part_count:
            yield await in_cpu_thread(_Part, digests, sizes)
            digests, sizes = [], []
    yield await in_cpu_thread(_Part, digests, sizes)


async def _note_rows(index: Index, namespace: str, part: _Part, unseen_since: int) -> None:
    if not len(part.keys):
        return
    after: Digest | None = _before(int(part.keys[0]))
    last = int(part.keys[-1])
    while rows := await index.chunk_rows(namespace, after, limit=_ROWS):
        after = rows[-1].row.digest
        is_free = [not state.is_live or state.last_seen < unseen_since for state in rows]
        await in_cpu_thread(part.note_rows, [state.row.digest for state in rows], is_free)
        if int.from_bytes(after[:8], "big") > last:
            break


def _before(key: int) -> Digest | None:
    """Return a digest that is smaller than every digest with this key, or None."""
    return Digest((key - 1).to_bytes(8, "big") + b"\xff" * (DIGEST_SIZE - 8)) if key else None


async def _manifest_sizes(
    store: ChunkStore, namespace: str, versions: Sequence[_Version], *, prefix: str
) -> tuple[int, dict[Digest, int]]:
    """Return the bytes of the manifests that the names with `prefix` need, and those of each manifest that no name needs.

    With a `prefix`, the second part is empty.
    """
    needed = {version.digest for version in versions}
    seen = {version.digest for version in versions if version.name.startswith(prefix)}
    size = 0
    left = dict[Digest, int]()
    async for page in store.manifest_pages(namespace):
        size += sum(each for digest, each in page if digest in seen)
        left |= {digest: each for digest, each in page if digest not in needed and not prefix}
    return size, left


async def _read_whole(
    store: ChunkStore,
    index: Index,
    namespace: str,
    versions: Sequence[_Version],
    note: Callable[[_Version, npt.NDArray[np.void]], None],
) -> None:
    """Do what `_read_manifests` does. Raises DamagedRecord for the first record without an intact manifest."""
    damaged = await _read_manifests(store, index, namespace, versions, note)
    if damaged:
        version = next(version for version in versions if version.name == damaged[0])
        file_id = "" if version.record is None else version.record.id
        raise DamagedRecord(file_id, version.name, f"its manifest {version.digest} is missing or damaged")


async def _read_manifests(
    store: ChunkStore,
    index: Index,
    namespace: str,
    versions: Sequence[_Version],
    note: Callable[[_Version, npt.NDArray[np.void]], None],
) -> list[str]:
    """Call `note` with the entries of the manifest of each version, in a thread.

    Return the names of the records whose manifests are missing or damaged.
    """
    damaged: list[str] = []

    def note_batch(batch: Sequence[tuple[_Version, bytes | None]]) -> None:
        for version, encoded in batch:
            entries = None if encoded is None else _entries(encoded, version.digest)
            if entries is not None:
                note(version, entries)
            elif encoded is not None:
                damaged.append(version.name)

    async for batch in read_together(
        versions, lambda version: store.manifest(namespace, version.digest), size=lambda version: version.manifest_size
    ):
        await in_cpu_thread(note_batch, batch)
        for version, encoded in batch:
            # It may have been removed since, and then its manifest too.
            record = version.record
            if encoded is None and record is not None and await index.record(namespace, Reference(id=record.id)) is not None:
                damaged.append(version.name)
    return damaged


def _entries(encoded: bytes, digest: Digest) -> npt.NDArray[np.void] | None:
    """Return the entries of a manifest, or None if it is damaged."""
    try:
        manifest = Manifest.parse(encoded)
    except (InvalidManifest, LimitExceeded):
        return None
    return np.frombuffer(manifest.chunks.encoded, dtype=_ENTRY) if manifest.digest == digest else None
