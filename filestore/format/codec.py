"""Encode chunks to frames, for storage and transfer, and decode frames.

Normative text and golden frames: `docs/format.md`, `tests/golden/`. A frame is never part of a chunk's identity (I8)
and is never encoded again (I7). Layout, little-endian:

    offset 0   u8        codec
           1   3 bytes   zero
           4   u32       decoded size, 1 to 4 MiB
           8   payload   raw              the content
                         zstd             one zstd frame
                         planesN+zstd     N x u32 lengths, N planes, the decoded size mod N bytes left over

Plane i of N holds the bytes at i, i + N, i + 2N, ... Weights are floats of N bytes. Their exponents repeat and their
mantissas do not, so the bytes compress better when they are separated.

Source: RFC 8878, Zstandard Compression, section 3.1.1 (frames and blocks).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from filestore.core.digest import Buffer, Digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.core.unlocked import unlocked
from filestore.errors import InvalidFrame
from filestore.format.entropy import huffman_shares, sample
from filestore.format.planes import PLAIN_ENCODED_LIMIT, copy, merge_planes, numpy_for, take_plane

if TYPE_CHECKING:  # the import takes 0.02 s, and a program that only names a codec must not pay for it
    from types import ModuleType

    from zstandard import ZstdCompressor, ZstdDecompressor


HEADER_SIZE = 8

_HEADER = struct.Struct("<B3sI")
_RESERVED = bytes(3)

_WORTHWHILE = 0.03
"""The share of a chunk or plane that encoding must save. Below it, raw or the faster codec is used."""
_WORTHWHILE_PLANES = 0.01
"""Planes cost at most one pass of Huffman coding over the whole chunk, so a smaller saving is enough to choose them."""
_SMALLEST = 64
"""A chunk with fewer bytes stays raw, because no codec saves more than its own headers take."""

_REPETITION_SLICE_SIZE = 2048
"""To show that text repeats itself, a sample needs 16 KiB."""
_PLANNED_AT_ONCE = 24
"""Chunks that are planned in one pass: those of a usual window. Their samples and counts take 3 MiB of memory."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOCK_HEADER = struct.Struct("<I")
_BLOCK_HEADER_SIZE = 3
_IS_LAST, _BLOCK_KIND, _RLE_BLOCK, _BLOCK_SIZE_SHIFT = 1 << 8, 3 << 9, 1 << 9, 11
_RLE_BLOCK_SIZE = _BLOCK_HEADER_SIZE + 1
_BLOCK_RATIO = 256
"""A zstd frame may have one block for this many bytes of content. Encoders make blocks of some KiB and more."""


class Codec(IntEnum):
    """How the payload of a frame is encoded. The value is the first byte of the frame.

    RAW: not compressed.
    ZSTD: compressed with zstd.
    PLANES2_ZSTD: for numbers of 2 bytes, such as bf16: first all first bytes, then all second bytes, each with zstd.
    PLANES4_ZSTD: the same for numbers of 4 bytes, such as fp32.
    """

    RAW = 0
    ZSTD = 1
    PLANES2_ZSTD = 2
    PLANES4_ZSTD = 3


_CODECS = {int(codec): codec for codec in Codec}
_LENGTHS = {Codec.PLANES2_ZSTD: struct.Struct("<2I"), Codec.PLANES4_ZSTD: struct.Struct("<4I")}
"""The layout of the lengths of the planes."""


def frame_limit(size: int) -> int:
    """Return the largest size that the frame of a chunk of `size` bytes can have."""
    return HEADER_SIZE + size


FRAME_LIMIT = frame_limit(CHUNK_LIMIT)
"""The largest size of a frame in bytes."""


def decoded_size(header: Buffer, *, digest: Digest) -> int:
    """Return the decoded size in the header of a frame, its first 8 bytes. Raises InvalidFrame if it is not valid."""
    _, size = _parse_header(header, digest)
    return size


def stated_codec(header: Buffer, *, digest: Digest) -> Codec:
    """Return the codec in the header of a frame, its first 8 bytes. Raises InvalidFrame if it is not valid."""
    codec, _ = _parse_header(header, digest)
    return codec


def _parse_header(data: Buffer, digest: Digest) -> tuple[Codec, int]:
    """Return the codec and the decoded size of a frame. Raises InvalidFrame."""
    if len(data) < HEADER_SIZE:
        raise InvalidFrame(str(digest), "it is shorter than its header")
    codec, reserved, size = _HEADER.unpack_from(data)
    if reserved != _RESERVED:
        raise InvalidFrame(str(digest), "its reserved bytes are not zero")
    if not 0 < size <= CHUNK_LIMIT:
        raise InvalidFrame(str(digest), f"it states a decoded size of {size} bytes; allowed are 1 to {CHUNK_LIMIT}")
    if codec not in _CODECS:
        raise InvalidFrame(str(digest), f"this program does not know its codec, {codec}")
    return _CODECS[codec], size


class _Plan(NamedTuple):
    """The way in which one chunk will be encoded."""

    codec: Codec
    is_huffman: tuple[bool, ...] = ()
    """For each plane, or for a whole zstd chunk: True if it is Huffman coded. A plane with False stays raw."""


class _Choice(NamedTuple):
    """A codec that a chunk may get."""

    codec: Codec
    part: slice
    """The shares of `huffman_shares` that belong to it."""
    worthwhile: float
    """By how much of the chunk it must be better than the choice before it."""


_CHOICES = (
    _Choice(Codec.ZSTD, slice(0, 1), _WORTHWHILE),
    _Choice(Codec.PLANES2_ZSTD, slice(1, 3), _WORTHWHILE_PLANES),
    _Choice(Codec.PLANES4_ZSTD, slice(3, 7), _WORTHWHILE_PLANES),
)
_CODED_LIMIT = 1 - _WORTHWHILE
"""The largest share for which a plane is coded."""
_AS_IT_IS = _Plan(Codec.RAW)
_ORDINARY = _Plan(Codec.ZSTD, (False,))


class Encoder:
    """Encodes chunks to frames. It chooses the codec by a sample of each chunk. Use one encoder for each thread.

    If `codec` is given, it is used for every chunk in which it saves enough; the others stay raw. The encoder keeps
    scratch memory of 2 MiB and zstd contexts.
    """

    def __init__(self, *, codec: Codec | None = None) -> None:
        self._codec = codec
        self._choices = [choice for choice in _CHOICES if codec in (None, choice.codec)]
        self._plane: memoryview | None = None

    @cached_property
    def _ordinary(self) -> ZstdCompressor:
        """The compressor for content that repeats itself: text, tables, code.

        It is as fast as zstd's level 1, and compresses nearly as well as level 3, which leaves 2 to 7 % less and costs
        1.2 to 2.2 times as much. The reasons: the hash table has 128 KiB, which stay in the processor's cache, and
        matches have at least 6 bytes.
        """
        return _fast_compressor(window_log=22, hash_log=15, min_match=6)

    @cached_property
    def _huffman(self) -> ZstdCompressor:
        """The compressor for exponents and small integers, in which only the frequencies of bytes are uneven.

        It uses the smallest search for matches that zstd allows, and still codes literals with Huffman, which the
        negative levels do not. For such content it is better and 3 to 4 times faster than level 1, which spends time
        and bytes on useless matches.
        """
        return _fast_compressor(window_log=17, hash_log=6, min_match=7)

    def encode(self, content: memoryview, out: memoryview) -> int:
        """Write the frame of `content` at the start of `out`, and return the length of the frame.

        `content` has 1 byte to 4 MiB. `out` must have at least `frame_limit(len(content))` bytes and must not overlap
        with `content`.
        """
        return self.encode_all([content], out)[0]

    def encode_all(self, contents: Sequence[memoryview], out: memoryview) -> list[int]:
        """Write the frames of `contents`, one after the other, at the start of `out`, and return the length of each.

        It ends before the first chunk whose frame might not fit into the rest of `out`. It costs less than `encode` for
        each chunk: all are planned in one pass.
        """
        lengths: list[int] = []
        start = 0
        for first in range(0, len(contents), _PLANNED_AT_ONCE):
            group = contents[first : first + _PLANNED_AT_ONCE]
            np = numpy_for(sum(map(len, group)), limit=PLAIN_ENCODED_LIMIT)
            for content, plan in zip(group, self._plans(group, np), strict=True):
                if frame_limit(len(content)) > len(out) - start:
                    return lengths
                lengths.append(self._write(content, out[start:], plan, np))
                start += lengths[-1]
        return lengths

    def _plans(self, contents: Sequence[memoryview], np: ModuleType | None) -> list[_Plan]:
        """Choose the codec for each chunk. This costs a tenth of the time of encoding bf16."""
        if self._codec is Codec.RAW:
            return [_AS_IT_IS] * len(contents)
        large = [content for content in contents if len(content) >= _SMALLEST]
        shares = iter(huffman_shares(large, np) if large else ())
        return [self._plan(content, next(shares)) if len(content) >= _SMALLEST else _AS_IT_IS for content in contents]

    def _plan(self, content: memoryview, shares: list[float]) -> _Plan:
        """Choose the codec that saves most by a sample, or the faster one if they are about equal.

        `shares` has what Huffman coding would leave of the whole, of each of 2 planes, and of each of 4 planes.
        """
        best, share = _AS_IT_IS, 1.0
        for codec, part, worthwhile in self._choices:
            planes = shares[part]
            left = sum([plane if plane <= _CODED_LIMIT else 1 for plane in planes]) / len(planes)
            if left <= share - worthwhile and left <= _CODED_LIMIT:
                best, share = _Plan(codec, tuple([plane <= _CODED_LIMIT for plane in planes])), left
        if self._codec is not Codec.PLANES2_ZSTD and self._codec is not Codec.PLANES4_ZSTD:
            piece = sample(content, _REPETITION_SLICE_SIZE)
            if len(unlocked(self._ordinary.compress, piece)) <= (share - _WORTHWHILE) * len(piece):
                return _ORDINARY
        return best

    def _write(self, content: memoryview, out: memoryview, plan: _Plan, np: ModuleType | None) -> int:
        """Write one frame at the start of `out`, and return its length."""
        length = 0
        if plan.codec is Codec.ZSTD:
            length = self._write_zstd(content, out, plan, np)
        elif plan.codec is not Codec.RAW:
            length = self._write_planes(content, out, plan, np)
        return length or _write_raw(content, out, np)

    def _write_zstd(self, content: memoryview, out: memoryview, plan: _Plan, np: ModuleType | None) -> int:
        """Return the length of the frame that was written, or 0 if encoding does not save enough."""
        compressor = self._huffman if plan.is_huffman[0] else self._ordinary
        # compress() and a copy: stream_reader().readinto(out) would save the copy, but it holds the interpreter's lock
        # while it compresses the last block, which costs two threads a fifth of their speed.
        payload = unlocked(compressor.compress, content)
        length = HEADER_SIZE + len(payload)
        if length > _worthwhile_limit(len(content)):
            return 0
        _HEADER.pack_into(out, 0, plan.codec, _RESERVED, len(content))
        copy(payload, out[HEADER_SIZE:length], np)
        return length

    def _write_planes(self, content: memoryview, out: memoryview, plan: _Plan, np: ModuleType | None) -> int:
        """Return the length of the frame that was written, or 0 if encoding does not save enough."""
        count = len(plan.is_huffman)
        size, left_over = divmod(len(content), count)
        limit = _worthwhile_limit(len(content)) - left_over
        layout = _LENGTHS[plan.codec]
        end = HEADER_SIZE + layout.size
        lengths = []
        for place, is_huffman in enumerate(plan.is_huffman):
            coded = self._coded_plane(content, place, count, np) if is_huffman else None
            start, end = end, end + (len(coded) if coded else size)
            if end > limit:
                return 0
            if coded:
                copy(coded, out[start:end], np)
            else:
                take_plane(content, place, count, out[start:end], np)
            lengths.append(end - start)
        _HEADER.pack_into(out, 0, plan.codec, _RESERVED, len(content))
        layout.pack_into(out, HEADER_SIZE, *lengths)
        if left_over:
            out[end : end + left_over] = content[size * count :]
        return end + left_over

    def _coded_plane(self, content: memoryview, place: int, count: int, np: ModuleType | None) -> bytes | None:
        """Return one plane with Huffman coding. Return None if this does not save enough: it then stays raw."""
        if self._plane is None:
            # Memory of numpy is not cleared, which would take 0.5 ms under the lock.
            size = CHUNK_LIMIT // 2
            self._plane = memoryview(bytearray(size) if np is None else np.empty(size, "u1"))
        plane = self._plane[: len(content) // count]
        take_plane(content, place, count, plane, np)
        coded = unlocked(self._huffman.compress, plane)
        return coded if len(coded) <= _worthwhile_limit(len(plane)) else None


class Decoder:
    """Decodes frames and verifies their content. Use one decoder for each thread.

    It trusts nothing (I4). For any bytes, InvalidFrame is the only error that it raises. Besides the given scratch
    memory, it needs only 2 MiB and a zstd context, which it keeps from frame to frame.
    """

    def __init__(self) -> None:
        self._plane = memoryview(bytearray(CHUNK_LIMIT // 2))

    @cached_property
    def _zstd(self) -> ZstdDecompressor:
        from zstandard import ZstdDecompressor  # noqa: PLC0415  # on first use

        return ZstdDecompressor()

    @cached_property
    def _error(self) -> type[Exception]:
        from zstandard import ZstdError  # noqa: PLC0415  # on first use

        return ZstdError

    def decode(self, frame: Frame, scratch: memoryview) -> memoryview:
        """Return the content of `frame`.

        The result is a part of `frame.data` if the frame is raw, else a part of `scratch`, which is valid until
        `scratch` is used again. `scratch` has the decoded size that the frame states, or 4 MiB, and does not overlap
        with `frame.data`. Merging planes is faster if it starts at a multiple of 4.

        Raises InvalidFrame unless the frame is whole, is well formed, and decodes to content with its digest.
        """
        return self.decode_checked(check_frame(frame), scratch)

    def decode_checked(self, frame: CheckedFrame, scratch: memoryview) -> memoryview:
        """Return the content of a frame that `check_frame` has checked, as `decode` does. Raises InvalidFrame.

        To check all frames of a batch first costs less: the program is then in the processor's cache.
        """
        content = scratch[: frame.size]
        if frame.codec is Codec.RAW:
            [content] = frame.parts
        elif frame.codec is Codec.ZSTD:
            self._unpack(frame.parts[0], content, frame.digest)
        else:
            size = frame.size - len(frame.left_over)
            if frame.left_over:
                content[size:] = frame.left_over
            merge_planes(self._planes(frame), content[:size], len(frame.parts), numpy_for(size))
        if unlocked(blake3, content).digest() != frame.digest:
            raise InvalidFrame(str(frame.digest), "its content has another digest")
        return content

    def _planes(self, frame: CheckedFrame) -> Iterator[memoryview]:
        """Yield the planes of a frame in the order of its parts. Each is valid until the next. Raises InvalidFrame."""
        size = frame.size // len(frame.parts)
        for part in frame.parts:
            if len(part) == size:
                yield part
            else:
                plane = self._plane[:size]
                self._unpack(part, plane, frame.digest)
                yield plane

    def _unpack(self, payload: memoryview, content: memoryview, digest: Digest) -> None:
        """Fill `content` from a zstd frame that was checked. Raises InvalidFrame."""
        try:
            # The content size was checked, and the blocks end where the payload ends. So zstd decodes in one step and
            # in place, and never makes a window buffer for decoding piece by piece.
            size = unlocked(self._zstd.stream_reader(payload).readinto, content)
        except self._error as error:
            raise InvalidFrame(str(digest), str(error)) from None
        if size != len(content):
            raise InvalidFrame(str(digest), f"its header states {len(content)} bytes, but it unpacks to {size}")


class CheckedFrame(NamedTuple):
    """A frame of which everything but the content is checked."""

    digest: Digest
    codec: Codec
    size: int
    """Its decoded size."""
    parts: list[memoryview]
    """Its payload: the content, one zstd frame, or the stored planes, the last one first. These are views of the frame."""
    left_over: Buffer = b""
    """The bytes after the planes."""


def check_frame(frame: Frame) -> CheckedFrame:
    """Check the headers of a frame and of the zstd frames in it, without decoding them. Raises InvalidFrame."""
    data = memoryview(frame.data)
    codec, size = _parse_header(data, frame.digest)
    if len(data) > frame_limit(size):
        raise InvalidFrame(str(frame.digest), f"it has {len(data)} bytes; allowed are {frame_limit(size)}")
    payload = data[HEADER_SIZE:]
    if codec is Codec.RAW:
        if len(payload) != size:
            raise InvalidFrame(str(frame.digest), f"its header states {size} bytes, but it holds {len(payload)}")
        return CheckedFrame(frame.digest, codec, size, [payload])
    if codec is Codec.ZSTD:
        _check_zstd(payload, size, frame.digest)
        return CheckedFrame(frame.digest, codec, size, [payload])
    return _check_planes(payload, codec, size, frame.digest)


def _check_planes(payload: memoryview, codec: Codec, size: int, digest: Digest) -> CheckedFrame:
    layout = _LENGTHS[codec]
    plane_size, left_over = divmod(size, layout.size // 4)
    if len(payload) < layout.size + left_over:
        raise InvalidFrame(str(digest), "it is shorter than the lengths of its planes")
    lengths = layout.unpack_from(payload)
    if layout.size + sum(lengths) + left_over != len(payload):
        found = layout.size + sum(lengths) + left_over
        raise InvalidFrame(str(digest), f"its parts add up to {found} bytes, but it holds {len(payload)}")
    parts = []
    end = len(payload) - left_over
    for length in reversed(lengths):
        part = payload[end - length : end]
        end -= length
        if length > plane_size:
            raise InvalidFrame(str(digest), f"one of its planes has {length} bytes; allowed are {plane_size}")
        if length < plane_size:
            _check_zstd(part, plane_size, digest)
        parts.append(part)
    return CheckedFrame(digest, codec, size, parts, payload[len(payload) - left_over :])


def _fast_compressor(*, window_log: int, hash_log: int, min_match: int) -> ZstdCompressor:
    from zstandard import STRATEGY_FAST, ZstdCompressionParameters, ZstdCompressor  # noqa: PLC0415  # on first use

    parameters = ZstdCompressionParameters(
        strategy=STRATEGY_FAST,
        window_log=window_log,
        hash_log=hash_log,
        chain_log=hash_log,
        search_log=1,
        min_match=min_match,
        target_length=0,
        write_content_size=True,
        write_checksum=False,
        write_dict_id=False,
    )
    return ZstdCompressor(compression_params=parameters)


def _worthwhile_limit(size: int) -> int:
    """Return the largest encoded size for which `size` bytes are not kept raw."""
    return int(size * (1 - _WORTHWHILE))


def _write_raw(content: memoryview, out: memoryview, np: ModuleType | None) -> int:
    length = frame_limit(len(content))
    _HEADER.pack_into(out, 0, Codec.RAW, _RESERVED, len(content))
    copy(content, out[HEADER_SIZE:length], np)
    return length


def _check_zstd(payload: memoryview, size: int, digest: Digest) -> None:
    """Check that `payload` is exactly one zstd frame with a stated content size of `size` bytes.

    The content of its blocks is not checked. Raises InvalidFrame.
    """
    import zstandard  # noqa: PLC0415  # on first use

    if payload[: len(_MAGIC)] != _MAGIC:
        raise InvalidFrame(str(digest), "a zstd frame is missing in it")
    try:
        parameters, start = zstandard.get_frame_parameters(payload), zstandard.frame_header_size(payload)
    except zstandard.ZstdError as error:
        raise InvalidFrame(str(digest), str(error)) from None
    if parameters.content_size != size:
        raise InvalidFrame(str(digest), f"its zstd frame does not state a content size of {size} bytes")
    if parameters.window_size > CHUNK_LIMIT:
        raise InvalidFrame(str(digest), f"its zstd window has {parameters.window_size} bytes; allowed are {CHUNK_LIMIT}")
    if parameters.dict_id or parameters.has_checksum:
        raise InvalidFrame(str(digest), "its zstd frame has a dictionary or a checksum")
    if _zstd_end(payload, start, block_limit=size // _BLOCK_RATIO + 2) != len(payload):
        raise InvalidFrame(str(digest), "the blocks of its zstd frame do not end at its own end")


def _zstd_end(payload: memoryview, start: int, *, block_limit: int) -> int:
    """Follow the headers of the blocks of a zstd frame from `start` on, and return where the last block ends.

    Returns -1 if none of the first `block_limit` blocks is the last one.
    """
    # The three bytes of a header are read with the byte before it, which belongs to the header of the frame or to another
    # block. A frame of 1 MiB has 16 blocks and more, so this loop does as little as possible.
    unpack, place, last_place = _BLOCK_HEADER.unpack_from, start - 1, len(payload) - _BLOCK_HEADER.size
    for _ in range(block_limit):
        if place > last_place:
            break
        (header,) = unpack(payload, place)
        place += _RLE_BLOCK_SIZE if header & _BLOCK_KIND == _RLE_BLOCK else _BLOCK_HEADER_SIZE + (header >> _BLOCK_SIZE_SHIFT)
        if header & _IS_LAST:
            return place + 1
    return -1


class Frame(NamedTuple):
    """An encoded chunk. `data` is the complete frame with its header. Its memory belongs to the maker of the frame."""

    digest: Digest
    data: Buffer
