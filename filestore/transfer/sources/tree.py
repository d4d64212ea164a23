"""A directory as a source: its zip is made and cut while each byte of each file is read once."""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import NamedTuple

from filestore.core.manifest import Manifest
from filestore.errors import InvalidName, SourceChanged, SourceRefused, SourceUnreadable
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.zip.chunker import Cut, RecalledCut, TreeChunker
from filestore.format.zip.virtual import VirtualZip
from filestore.format.zip.write import Entry
from filestore.system.metrics import Stage, span
from filestore.system.writeback import Writeback, begin_write_back, write_back, write_back_part, writeback_of
from filestore.transfer.sources.file import (
    CachedPush,
    DescriptorOwner,
    FileState,
    Origin,
    Window,
    check_end,
    read_exactly,
)
from filestore.transfer.sources.segment_chunks import HeldChunks, SegmentChunks
from filestore.transfer.sources.tree_fingerprint import EntryKind, Fingerprint, Listing, are_chunks_of, held_chunks
from filestore.transfer.sources.walk import LEAVE_OUT, NO_STATE, WalkResult, shown_path, unreadable_reason

_SYNCED_SIZE = 1 << 20
"""A smaller file is not synced by `fdatasync`, which would take longer than to read it."""
_WRITTEN_BACK_NANOSECONDS = 600_000_000_000
"""The kernel has written back by itself what was stored before this time. Linux does so after 35 s by default."""

_AHEAD = 256
"""The number of files that are written back at a time. To wait for one after the other would take 0.1 ms and more for each."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class TreeSource(DescriptorOwner):
    """The zip of a directory, as a source. To make one takes one or two seconds for 200,000 entries.

    When a file is opened, its state must be the one that the walk found. At the end, all files are checked once more.
    So the tree that is recorded existed as a whole at one moment.

    The fingerprint has the name, the state and the checksum of each entry. So a chunk that lies in unchanged entries is neither
    read nor cut again, but where the chunks before it end elsewhere now. Each file is written back before it is read, as in
    `FileSource`; one that is not is marked in the fingerprint, so that the next push reads it.
    """

    def __init__(self, walked: WalkResult, *, chunking_version: int = CHUNKING_VERSION, is_remembered: bool = True) -> None:
        """Plan the zip. No file is read. `is_remembered` is as in `FileSource`.

        Raises SourceRefused, LimitExceeded, UnknownFormat.
        """
        self.path = walked.root
        self.opened_at = walked.started_at
        self._is_remembered = is_remembered
        self._writebacks: dict[int, Writeback] = {}
        self._unnoticed: set[int] = set()
        self._begun = 0
        self.read = self.cached_size = 0
        self._walked = walked
        self._chunking_version = chunking_version
        try:
            self._chunker = TreeChunker(walked.entries, self._read, chunking_version=chunking_version)
        except InvalidName as error:
            name, reason = error.args
            raise SourceRefused(
                shown_path(walked.root, name), f"no archive can hold it: {reason}; {LEAVE_OUT}", hint="exclude"
            ) from None
        self.size = self._chunker.size
        self.file_count = sum(not entry.is_folder for entry in self._chunker.entries)
        self.files_done = self.file_count - sum(map(_is_read, self._chunker.entries))
        self._chunks = SegmentChunks(self._chunker)
        self._cut_sizes: dict[int, int] = {}
        """Bytes of the content of each large file that were cut so far."""
        self._cached: CachedPush | None = None
        self._opened = -1
        self._opened_path = ""

    def close(self) -> None:
        super().close()
        self._opened = -1

    @property
    def is_finished(self) -> bool:
        return self._chunker.is_finished

    def located_size(self, least: int) -> int:
        return sum(size for size in self._chunker.waiting_contents() if size >= least)

    def load_fingerprint(self, cached: CachedPush) -> None:
        """Skip the chunks that still hold, as `Source` says.

        Chunks that hold only if a cut falls on their start are counted as cached when they are passed over, in a scan.
        """
        try:
            fingerprint = Fingerprint.parse(cached.fingerprint)
            if self._is_as_in(fingerprint, cached):
                self._skip_all(fingerprint, cached)
                return
            then, ends = fingerprint.layout()
            if not are_chunks_of(cached.manifest.chunks.sizes(), ends):
                return  # an earlier version left out folders, links and unnoticed files
            unchanged = _Unchanged(array("I"), array("I"))
            for before, place in fingerprint.unchanged(self._listing, cached.recorded_at):
                unchanged.then.append(before)
                unchanged.now.append(place)
            offsets = self._chunker.offsets
            chunks = cached.manifest.chunks
            held = HeldChunks.of(chunks, held_chunks(chunks.sizes(), ends, zip(*unchanged, strict=True), then, offsets))
        except (ValueError, OverflowError, struct.error):
            return  # a damaged fingerprint has no effect
        for before, place in zip(*unchanged, strict=True):
            self._chunker.remember(place, fingerprint.crcs[before])
        for segment in self._chunks.hold(held):
            self.cached_size += segment.size
            self.files_done += self._count_read(segment.entries)

    def fingerprint(self) -> bytes:
        if self._cached is not None:
            return self._cached.fingerprint
        kinds = bytearray(self._listing.kinds)
        for place in self._unnoticed:
            kinds[place] = EntryKind.UNNOTICED
        crcs = [crc or 0 for crc in self._chunker.crcs]
        return Fingerprint(self._listing._replace(kinds=bytes(kinds)), crcs).pack()

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002
        return 1

    def scan(self, buffer: memoryview) -> list[Window]:
        with span(Stage.CUT) as cutting:
            cuts = self._chunker.scan(buffer)
            cutting.add(sum(len(cut.content) for cut in cuts if isinstance(cut, Cut)))
        windows = []
        for cut in cuts:
            if isinstance(cut, RecalledCut):
                self.cached_size += self._chunks.take_recalled(cut)
                self.files_done += self._count_read(cut.passed)
            else:
                windows.append(Window.cut(cut.content, cut.sizes, self._chunks.row(cut.segment), self._origin(cut)))
        return windows

    def manifest(self) -> Manifest:
        if self._cached is not None:
            return self._cached.manifest
        return Manifest.build(self._chunks, chunking_version=self._chunking_version)

    def read_into(self, memory: memoryview, offset: int) -> None:
        self._virtual.read_into(memory, offset)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        for place, entry in enumerate(self._chunker.entries):
            yield entry.stored_name.decode(), self._chunker.offsets[place], self._chunker.offsets[place + 1]

    def check_unchanged(self) -> None:
        """Raise SourceChanged if a file changed since the walk. This takes some microseconds for each file.

        Files of size 0 are opened here for the first time. A file that may not be read is refused even then, since a
        file that reports size 0 may have content.
        """
        states = self._walked.states
        for place in range(len(states)):
            if states.packed(place) != NO_STATE:
                path = self._walked.path(place)
                try:
                    now = os.stat(path, follow_symlinks=False)  # noqa: PTH116  # a `Path` costs more than the call
                except OSError as error:
                    raise _failed(path, error) from None
                states.check(place, now, path)
                if not now.st_size:
                    self._open(place)
                    check_end(self._descriptor, 0, path)
        self.close()

    @cached_property
    def _listing(self) -> Listing:
        return Listing.of(self._chunker.entries, self._walked.states)

    @cached_property
    def _virtual(self) -> VirtualZip:
        crcs = [crc or 0 for crc in self._chunker.crcs]
        return VirtualZip(self._chunker.entries, crcs, self._chunker.offsets, self._read_again)

    def _is_as_in(self, fingerprint: Fingerprint, cached: CachedPush) -> bool:
        """Return whether nothing in the tree has changed."""
        if not fingerprint.knows_kinds or fingerprint.listing != self._listing:
            return False
        ends = [segment.start + segment.size for segment in self._chunker.segments]
        return self._listing.are_settled(cached.recorded_at) and are_chunks_of(cached.manifest.chunks.sizes(), ends)

    def _skip_all(self, fingerprint: Fingerprint, cached: CachedPush) -> None:
        for place, crc in enumerate(fingerprint.crcs):
            self._chunker.remember(place, crc)
        for number in range(len(self._chunker.segments)):
            self._chunker.skip(number)
        self._cached = cached
        self.cached_size = self.size
        self.files_done = self.file_count

    def _count_read(self, places: range) -> int:
        """Return how many of these entries have content that a push reads."""
        return sum(_is_read(self._chunker.entries[place]) for place in places)

    def _read(self, place: int, offset: int, memory: memoryview) -> None:
        """Read content for the first time, in order."""
        with span(Stage.READ, len(memory)):
            if place != self._opened:
                self._open(place)
            if self._is_remembered and not self._is_written_back(place, offset, len(memory)):
                self._unnoticed.add(place)
            read_exactly(self._descriptor, memory, offset, self._opened_path)
        self.read += len(memory)
        if offset + len(memory) == self._chunker.entries[place].size:
            check_end(self._descriptor, offset + len(memory), self._opened_path)
            if offset:
                self._check(place)  # so that a change of a large file is found early
            self.files_done += 1
            self.close()

    def _read_again(self, place: int, offset: int, memory: memoryview) -> None:
        if place != self._opened:
            self._open(place)
        read_exactly(self._descriptor, memory, offset, self._opened_path)

    def _open(self, place: int) -> None:
        self.close()
        path = self._walked.path(place)
        try:
            self._descriptor = os.open(path, _READ)
        except OSError as error:
            raise _failed(path, error) from None
        self._opened, self._opened_path = place, path
        self._check(place)

    def _origin(self, cut: Cut) -> Origin | None:
        """Return where the next content of a large file is. It is called once for each cut, in order."""
        segment = self._chunker.segments[cut.segment]
        if not segment.is_content:
            return None
        offset = self._cut_sizes.get(cut.segment, 0)
        self._cut_sizes[cut.segment] = offset + len(cut.content)
        place = segment.entries.start
        path = self._walked.path(place)
        return Origin(partial(self._open_again, place, path), offset, path)

    def _open_again(self, place: int, path: str) -> int:
        """Return a new descriptor, and leave the one of this source as it is."""
        try:
            descriptor = os.open(path, _READ)
        except OSError as error:
            raise _failed(path, error) from None
        try:
            self._walked.states.check(place, os.fstat(descriptor), path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _is_written_back(self, place: int, offset: int, size: int) -> bool:
        """Write a part of the open file back, and return whether each later store to it will move the mtime."""
        state = self._walked.states[place]
        if state is None or place in self._unnoticed:
            return False
        # A device number may mean another file system at the next push, so it is not remembered for longer.
        found = self._writebacks.get(state.device) or self._writebacks.setdefault(state.device, writeback_of(self._descriptor))
        if found is Writeback.PARTS:
            self._begin_ahead(place)
            return write_back_part(self._descriptor, offset, size)
        if found is Writeback.WHOLE and state.size < _SYNCED_SIZE:
            return not self._is_fresh(state)
        return found is Writeback.WHOLE and (offset > 0 or write_back(self._descriptor))

    def _begin_ahead(self, place: int) -> None:
        """Begin to write back the fresh files at the next places, which the disk does meanwhile."""
        if place < self._begun:
            return
        self._begun = min(place + _AHEAD, len(self._walked.states))
        for ahead in range(place + 1, self._begun):
            state = self._walked.states[ahead]
            # What an earlier push remembers was written back then.
            if state is not None and self._chunker.crcs[ahead] is None and self._is_fresh(state):
                with suppress(OSError):  # it is opened again to be read
                    descriptor = os.open(self._walked.path(ahead), _READ)
                    try:
                        begin_write_back(descriptor, 0, min(state.size, _SYNCED_SIZE))
                    finally:
                        os.close(descriptor)

    def _is_fresh(self, state: FileState) -> bool:
        """Return whether the kernel may not have written back the file by itself."""
        return max(state.mtime, state.ctime) + _WRITTEN_BACK_NANOSECONDS >= self.opened_at

    def _check(self, place: int) -> None:
        self._walked.states.check(place, os.fstat(self._descriptor), self._opened_path)


class _Unchanged(NamedTuple):
    """The places of the unchanged entries, in the zip of an earlier push and in that of now."""

    then: array[int]
    now: array[int]


def _is_read(entry: Entry) -> bool:
    """Return whether an entry has content that is in a file."""
    return entry.size > 0 and entry.target is None


def _failed(path: str, error: OSError) -> SourceChanged | SourceUnreadable:
    """Return the error for a file that the walk found and that cannot be opened."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SourceChanged(path, "it vanished")
    if error.errno == errno.ELOOP:
        return SourceChanged(path, "a link was put in its place")
    return SourceUnreadable(path, unreadable_reason(error, LEAVE_OUT), hint="exclude")
