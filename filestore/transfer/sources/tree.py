"""A directory as a source: its zip is made and cut while each byte of each file is read once."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, partial
from itertools import chain

from blake3 import blake3

from filestore.core.digest import DIGEST_AND_NUMBER, DIGEST_SIZE
from filestore.core.manifest import Manifest
from filestore.errors import InvalidName, SourceChanged, SourceRefused, SourceUnreadable
from filestore.format.chunking import CHUNKING_VERSION
from filestore.format.zip.chunker import Cut, TreeChunker
from filestore.format.zip.virtual import VirtualZip
from filestore.format.zip.write import Entry
from filestore.system.metrics import Stage, span
from filestore.system.writeback import Writeback, begin_write_back, write_back, write_back_part, writeback_of
from filestore.transfer.sources.file import (
    PACKED_SIZE,
    STATE_SIZE,
    CachedPush,
    DescriptorOwner,
    FileState,
    Origin,
    Window,
    check_end,
    read_exactly,
    unpacked,
)
from filestore.transfer.sources.walk import LEAVE_OUT, NO_STATE, WalkResult, shown_path, unreadable_reason

_FINGERPRINT_MAGIC = b"tree2"
"""Files were not written back before a fingerprint with another magic was made, so it is not trusted."""
_COUNTS = struct.Struct("<II")
"""The number of files, and the number of segments."""
_FILE = struct.Struct("<HI")
"""The length of a name, and a checksum. The name and the state follow."""
_SEGMENT = DIGEST_AND_NUMBER
"""The key of a segment, and the number of its chunks."""
_UNKNOWN = bytes(DIGEST_SIZE)

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

    The fingerprint has the name, the state and the checksum of each file. It also has the key of each segment of the
    zip: a digest of everything that the chunks of the segment depend on, except the content of the files. So a segment
    whose files and headers are the same is not made again. Each file is written back before it is read, as in `FileSource`; one
    that is not is left out of the fingerprint, so that the next push reads it.
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
        self._chunks = [bytearray() for _ in self._chunker.segments]
        self._cut_sizes: dict[int, int] = {}
        """Bytes of each large file that were cut so far, by the number of its segment."""
        self._fingerprint: bytes | None = None
        self._opened = -1
        self._opened_path = ""

    def close(self) -> None:
        super().close()
        self._opened = -1

    @property
    def is_finished(self) -> bool:
        return self._chunker.is_finished

    def load_fingerprint(self, cached: CachedPush) -> None:
        try:
            fingerprint = _TreeFingerprint(cached)
            unchanged = dict(fingerprint.unchanged(self._walked))
            segments = fingerprint.segments()
        except (ValueError, struct.error):
            return  # a damaged fingerprint has no effect
        for place, crc in unchanged.items():
            self._chunker.remember(place, crc)
        for number, segment in enumerate(self._chunker.segments):
            if any(place not in unchanged for place in segment.entries if self._walked.states.packed(place) != NO_STATE):
                continue
            chunks = segments.get(self._segment_key(number), b"")
            if sum(chunk.size for chunk in unpacked(chunks)) == segment.size:
                self._chunker.skip(number)
                self._chunks[number] += chunks
                self.cached_size += segment.size
                self.files_done += sum(_is_read(self._chunker.entries[place]) for place in segment.entries)
        if self.is_finished:
            self._fingerprint = cached.fingerprint  # to make it takes a second for 200,000 files, and gives the same

    def fingerprint(self) -> bytes:
        if self._fingerprint is not None:
            return self._fingerprint
        segments = (_SEGMENT.pack(self._segment_key(number), len(row) // PACKED_SIZE) for number, row in enumerate(self._chunks))
        files = bytearray()
        file_count = 0
        for place, (entry, crc) in enumerate(zip(self._chunker.entries, self._chunker.crcs, strict=True)):
            state = self._walked.states.packed(place)
            if state != NO_STATE and place not in self._unnoticed:
                name = entry.stored_name
                files += _FILE.pack(len(name), crc or 0) + name + state
                file_count += 1
        fingerprint = bytearray(_FINGERPRINT_MAGIC + _COUNTS.pack(file_count, len(self._chunks)))
        fingerprint += b"".join(segments)
        fingerprint += files
        return bytes(fingerprint)

    def scan_limit(self, wanted: int) -> int:  # noqa: ARG002
        return 1

    def scan(self, buffer: memoryview) -> list[Window]:
        with span(Stage.CUT) as cutting:
            cuts = self._chunker.scan(buffer)
            cutting.add(sum(len(cut.content) for cut in cuts))
        return [Window.cut(cut.content, cut.sizes, self._chunks[cut.segment], self._origin(cut)) for cut in cuts]

    def manifest(self) -> Manifest:
        return Manifest.build(chain.from_iterable(map(unpacked, self._chunks)), chunking_version=self._chunking_version)

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
    def _virtual(self) -> VirtualZip:
        crcs = [crc or 0 for crc in self._chunker.crcs]
        return VirtualZip(self._chunker.entries, crcs, self._chunker.offsets, self._read_again)

    def _segment_key(self, number: int) -> bytes:
        """Return a digest of everything that the chunks of a segment depend on, except file content.

        It is zeros if a part of this is not known yet.
        """
        segment = self._chunker.segments[number]
        if segment.is_content:
            return blake3(b"content" + self._chunker.entries[segment.entries.start].stored_name).digest()
        headers = blake3()
        try:
            for piece in self._chunker.headers_of(number):
                headers.update(piece)
        except ValueError:
            return _UNKNOWN
        return headers.digest()

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
        return Origin(partial(self._open_again, segment.entries.start), offset)

    def _open_again(self, place: int) -> int:
        """Return a new descriptor, and leave the one of this source as it is."""
        path = self._walked.path(place)
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
            if state is not None and self._is_fresh(state):
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


class _TreeFingerprint:
    """The fingerprint of an earlier push. Its methods raise ValueError or struct.error if it is malformed."""

    def __init__(self, cached: CachedPush) -> None:
        data = cached.fingerprint
        if not data.startswith(_FINGERPRINT_MAGIC):
            raise ValueError("it is not the fingerprint of a directory")
        self._data = data
        self._chunks = cached.manifest.chunks.encoded
        self._recorded_at = cached.recorded_at
        self._file_count, self._segment_count = _COUNTS.unpack_from(data, len(_FINGERPRINT_MAGIC))

    def segments(self) -> dict[bytes, memoryview]:
        """Return the packed chunks of each segment, by the key of the segment."""
        found = {}
        start = len(_FINGERPRINT_MAGIC) + _COUNTS.size
        at = 0
        for number in range(self._segment_count):
            key, count = _SEGMENT.unpack_from(self._data, start + number * _SEGMENT.size)
            found[key] = self._chunks[at : at + count * PACKED_SIZE]
            at += count * PACKED_SIZE
        found.pop(_UNKNOWN, None)
        return found

    def unchanged(self, walked: WalkResult) -> Iterator[tuple[int, int]]:
        """Yield the place and the checksum of each file whose state is the same as then, and settled."""
        waiting = self._files()
        name, packed_state, crc = next(waiting, (b"", b"", 0))
        for place, entry in enumerate(walked.entries):
            # Both are in the order of names.
            while name and name < entry.stored_name:
                name, packed_state, crc = next(waiting, (b"", b"", 0))
            is_same = name == entry.stored_name and packed_state == walked.states.packed(place)
            if is_same and FileState.unpack(packed_state).is_settled(self._recorded_at):
                yield place, crc

    def _files(self) -> Iterator[tuple[bytes, bytes, int]]:
        at = len(_FINGERPRINT_MAGIC) + _COUNTS.size + self._segment_count * _SEGMENT.size
        for _ in range(self._file_count):
            length, crc = _FILE.unpack_from(self._data, at)
            at += _FILE.size
            yield self._data[at : at + length], self._data[at + length : at + length + STATE_SIZE], crc
            at += length + STATE_SIZE


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
