"""A directory that is pushed: the zip that stands for it is cut while each byte of each file is read once."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Self

from blake3 import blake3

from filestore.archive.cutter import TreeCutter
from filestore.archive.virtual import VirtualZip
from filestore.chunking import CUTTING_VERSION
from filestore.digest import DIGEST_SIZE, chunk_digest
from filestore.errors import SourceChanged, SourceUnreadable
from filestore.manifest import Chunk, Manifest
from filestore.source import STATE_SIZE, FileState, Remembered, Window, read_exactly
from filestore.walk import Walked

_KNOWN_MAGIC = b"tree1"
_COUNTS = struct.Struct("<II")
"""How many files and how many segments are known."""
_FILE = struct.Struct("<HI")
"""The length of a name, and a checksum; the name and the state follow."""
_SEGMENT = struct.Struct(f"<{DIGEST_SIZE}sI")
"""What a segment is known by, and how many chunks it has."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class TreeSource:
    """The zip of a directory, as a source. Planning takes a second or two for 200,000 entries.

    Each file must be in the state in which the walk found it when it is opened, and when all of it was read.

    What it writes down for `recall` is, of each file, name, state and checksum, and of each segment of the zip the digest of
    what its chunks hang on beside the files' content, so that a segment whose files and headers are the same is not made again.
    """

    def __init__(self, walked: Walked, *, cutting: int = CUTTING_VERSION) -> None:
        """Raises InvalidName, LimitExceeded, UnknownFormat."""
        self.path = walked.root
        self.read = self.remembered_size = self.files_done = 0
        self._walked = walked
        self._cutting = cutting
        self._cutter = TreeCutter(walked.entries, self._read, cutting=cutting)
        self.size = self._cutter.size
        self.file_count = sum(not entry.is_folder for entry in self._cutter.entries)
        self._chunks: list[list[Chunk]] = [[] for _ in self._cutter.segments]
        self._descriptor = -1
        self._opened = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._opened = -1

    @property
    def is_finished(self) -> bool:
        return self._cutter.is_finished

    def recall(self, remembered: Remembered) -> None:
        try:
            known = _Known(remembered)
            unchanged = dict(known.unchanged(self._walked))
            segments = known.segments()
        except (ValueError, struct.error, StopIteration):
            return  # as good as nothing
        for place, crc in unchanged.items():
            self._cutter.remember(place, crc)
        for number, segment in enumerate(self._cutter.segments):
            if any(place not in unchanged for place in segment.entries if self._walked.states[place] is not None):
                continue
            chunks = segments.get(self._segment_key(number))
            if chunks is not None and sum(chunk.size for chunk in chunks) == segment.size:
                self._cutter.skip(number)
                self._chunks[number] = chunks
                self.remembered_size += segment.size
                self.files_done += sum(not self._cutter.entries[place].is_folder for place in segment.entries)

    def known(self) -> bytes:
        files = bytearray()
        count = 0
        for entry, crc, state in zip(self._cutter.entries, self._cutter.crcs, self._walked.states, strict=True):
            if state is not None:
                name = entry.stored_name
                files += _FILE.pack(len(name), crc or 0) + name + state.pack()
                count += 1
        segments = b"".join(_SEGMENT.pack(self._segment_key(number), len(chunks)) for number, chunks in enumerate(self._chunks))
        return _KNOWN_MAGIC + _COUNTS.pack(count, len(self._chunks)) + segments + files

    def scan(self, buffer: memoryview) -> list[Window]:
        windows = []
        for cut in self._cutter.scan(buffer):
            chunks = []
            start = 0
            for size in cut.sizes:
                chunks.append(Chunk(chunk_digest(cut.content[start : start + size]), size))
                start += size
            self._chunks[cut.segment] += chunks
            windows.append(Window(cut.content, chunks))
        return windows

    def manifest(self) -> Manifest:
        return Manifest.build(chain.from_iterable(self._chunks), cutting=self._cutting)

    def read_into(self, memory: memoryview, offset: int) -> None:
        self._virtual.read_into(memory, offset)

    def spans(self) -> Iterator[tuple[str, int, int]]:
        for place, entry in enumerate(self._cutter.entries):
            yield entry.stored_name.decode(), self._cutter.offsets[place], self._cutter.offsets[place + 1]

    def check_unchanged(self) -> None:
        """Each file was checked when it was read."""

    @cached_property
    def _virtual(self) -> VirtualZip:
        crcs = [crc or 0 for crc in self._cutter.crcs]
        return VirtualZip(self._cutter.entries, crcs, self._cutter.offsets, self._read_again)

    def _segment_key(self, number: int) -> bytes:
        """What the chunks of a segment hang on beside the content of its files; zeros where that is not known."""
        segment = self._cutter.segments[number]
        if segment.is_content:
            return blake3(b"content" + self._cutter.entries[segment.entries.start].stored_name).digest()
        around = range(segment.entries.start, segment.entries.stop + (number + 1 < len(self._cutter.segments)))
        if number + 1 == len(self._cutter.segments):
            around = range(len(self._cutter.entries))
        if any(self._cutter.crcs[place] is None for place in around):
            return bytes(DIGEST_SIZE)
        return blake3(self._cutter.headers_of(number)).digest()

    def _read(self, place: int, offset: int, memory: memoryview) -> None:
        """Read content for the first time, in order."""
        if place != self._opened:
            self._open(place)
        read_exactly(self._descriptor, memory, offset, self._walked.path(place))
        self.read += len(memory)
        if offset + len(memory) == self._cutter.entries[place].size:
            self._check(place)
            self.files_done += 1
            self.close()

    def _read_again(self, place: int, offset: int, memory: memoryview) -> None:
        try:
            if place != self._opened:
                self._open(place)
            read_exactly(self._descriptor, memory, offset, self._walked.path(place))
            self._check(place)
        finally:
            self.close()

    def _open(self, place: int) -> None:
        self.close()
        path = self._walked.path(place)
        try:
            self._descriptor = os.open(path, _READ)
        except FileNotFoundError:
            raise SourceChanged(path, "it vanished") from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SourceChanged(path, "a link was put in its place") from None
            raise SourceUnreadable(path, error.strerror or str(error)) from None
        self._opened = place
        self._check(place)

    def _check(self, place: int) -> None:
        state = self._walked.states[place]
        if state is not None:
            state.check(FileState.of(os.fstat(self._descriptor)), self._walked.path(place))


class _Known:
    """What an earlier push wrote down. Raises ValueError for anything else."""

    def __init__(self, remembered: Remembered) -> None:
        data = remembered.known
        if not data.startswith(_KNOWN_MAGIC):
            raise ValueError("it is not what a directory writes down")
        self._data = data
        self._manifest = remembered.manifest
        self._recorded_at = remembered.recorded_at
        self._file_count, self._segment_count = _COUNTS.unpack_from(data, len(_KNOWN_MAGIC))

    def segments(self) -> dict[bytes, list[Chunk]]:
        """The chunks of each segment by what it is known by."""
        found = {}
        chunks = iter(self._manifest.chunks)
        start = len(_KNOWN_MAGIC) + _COUNTS.size
        for number in range(self._segment_count):
            key, count = _SEGMENT.unpack_from(self._data, start + number * _SEGMENT.size)
            found[key] = [next(chunks) for _ in range(count)]
        found.pop(bytes(DIGEST_SIZE), None)
        return found

    def unchanged(self, walked: Walked) -> Iterator[tuple[int, int]]:
        """The place and the checksum of each file that is in the same state as it was then, and is settled."""
        waiting = self._files()
        name, packed, crc = next(waiting, (b"", b"", 0))
        for place, entry in enumerate(walked.entries):
            # Both are in the order of names.
            while name and name < entry.stored_name:
                name, packed, crc = next(waiting, (b"", b"", 0))
            state = walked.states[place]
            is_same = state is not None and name == entry.stored_name and state.pack() == packed
            if state is not None and is_same and state.is_settled(self._recorded_at):
                yield place, crc

    def _files(self) -> Iterator[tuple[bytes, bytes, int]]:
        at = len(_KNOWN_MAGIC) + _COUNTS.size + self._segment_count * _SEGMENT.size
        for _ in range(self._file_count):
            length, crc = _FILE.unpack_from(self._data, at)
            at += _FILE.size
            yield self._data[at : at + length], self._data[at + length : at + length + STATE_SIZE], crc
            at += length + STATE_SIZE
