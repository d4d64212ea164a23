"""Forged frames. Each is refused with InvalidFrame, takes no memory, and leaves the decoder usable."""

from __future__ import annotations

import struct

import pytest

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidFrame
from filestore.format.codec import Codec, Decoder, Encoder, Frame, frame_limit

CONTENT = b"".join(f"{place} bottles of beer on the wall\n".encode() for place in range(99))
WEIGHTS = b"".join(bytes([place * 97 % 251, 0x3C + place % 3]) for place in range(2000))
MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x50\x2a\x4d\x18"
RAW_BLOCK, RESERVED_BLOCK = 0, 3

SCRATCH = memoryview(bytearray(CHUNK_LIMIT))
DECODER = Decoder()


def encoded(content: bytes, codec: Codec) -> bytes:
    """Return a valid frame."""
    out = memoryview(bytearray(frame_limit(len(content))))
    frame = bytes(out[: Encoder(codec=codec).encode(memoryview(content), out)])
    assert codec is Codec(frame[0])
    return frame


HONEST = {
    Codec.RAW: encoded(CONTENT, Codec.RAW),
    Codec.ZSTD: encoded(CONTENT, Codec.ZSTD),
    Codec.PLANES2_ZSTD: encoded(WEIGHTS, Codec.PLANES2_ZSTD),
    Codec.PLANES4_ZSTD: encoded(WEIGHTS, Codec.PLANES4_ZSTD),
}
CONTENTS = {codec: CONTENT if codec in (Codec.RAW, Codec.ZSTD) else WEIGHTS for codec in Codec}

each_codec = pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)


def frame_of(codec: int, size: int, payload: bytes) -> bytes:
    """Return a frame with this header."""
    return struct.pack("<B3xI", codec, size) + payload


def block(content: bytes, *, kind: int = RAW_BLOCK, is_last: bool = True) -> bytes:
    """Return a zstd block that contains `content` without compression."""
    return (len(content) << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def zstd_frame(blocks: bytes, *, stated: int) -> bytes:
    """Return a zstd frame of one segment that states an unpacked size of `stated` bytes."""
    return MAGIC + bytes([0xE0]) + stated.to_bytes(8, "little") + blocks


def zeros(size: int) -> bytes:
    """Return the last block of a zstd frame, of 4 bytes, that unpacks to `size` zeros."""
    return (size << 3 | 0b011).to_bytes(3, "little") + b"\0"


def zeros_frame(size: int, *, stated: int) -> bytes:
    """Return a zstd frame that unpacks to `size` zeros, and states `stated` bytes."""
    return zstd_frame(zeros(size), stated=stated)


def assert_refused(frame: bytes, content: bytes, reason: str) -> None:
    """Check that `frame` is refused for `reason` as `content`, and that a valid frame is decoded after that."""
    with pytest.raises(InvalidFrame, match=reason):
        DECODER.decode(Frame(chunk_digest(content), frame), SCRATCH)
    for codec, honest in HONEST.items():
        assert CONTENTS[codec] == DECODER.decode(Frame(chunk_digest(CONTENTS[codec]), honest), SCRATCH)


def test_forged_zstd_frames_are_right_but_for_the_forgery() -> None:
    """A frame that these tests build without a forgery is valid."""
    frame = frame_of(Codec.ZSTD, 100, zeros_frame(100, stated=100))

    assert bytes(100) == DECODER.decode(Frame(chunk_digest(bytes(100)), frame), SCRATCH)


@each_codec
def test_content_of_another_chunk(codec: Codec) -> None:
    """The frame is valid, and its digest is that of another content."""
    assert_refused(HONEST[codec], b"something else", "another digest")


@each_codec
@pytest.mark.parametrize("lie", [-1, 1, 1000])
def test_declared_size_that_lies(codec: Codec, lie: int) -> None:
    """The header states more or less than the payload contains."""
    frame = frame_of(codec, len(CONTENTS[codec]) + lie, HONEST[codec][8:])

    assert_refused(frame, CONTENTS[codec], "header states|does not state|add up|allowed are")


@pytest.mark.parametrize("size", [0, CHUNK_LIMIT + 1, 2**32 - 1])
def test_declared_size_beyond_the_limits(size: int) -> None:
    """A chunk is never empty, and never larger than 4 MiB."""
    assert_refused(frame_of(Codec.ZSTD, size, HONEST[Codec.ZSTD][8:]), CONTENT, "allowed are 1 to")


@pytest.mark.parametrize("codec", [4, 127, 255])
def test_unknown_codec(codec: int) -> None:
    """A codec that this version does not know."""
    assert_refused(frame_of(codec, len(CONTENT), HONEST[Codec.RAW][8:]), CONTENT, f"codec, {codec}")


@each_codec
@pytest.mark.parametrize("place", [1, 2, 3])
def test_reserved_bytes_that_are_not_zero(codec: Codec, place: int) -> None:
    """A frame has only one valid form."""
    frame = bytearray(HONEST[codec])
    frame[place] = 1

    assert_refused(bytes(frame), CONTENTS[codec], "reserved bytes")


@each_codec
def test_bytes_after_the_end(codec: Codec) -> None:
    """No bytes are allowed after a frame."""
    for extra in (b"\0", bytes(8), MAGIC, HONEST[codec]):
        assert_refused(HONEST[codec] + extra, CONTENTS[codec], "allowed are|blocks|add up")


@each_codec
def test_frame_cut_off_anywhere(codec: Codec) -> None:
    """The frame lacks its last bytes, from one byte to all."""
    for length in range(len(HONEST[codec])):
        with pytest.raises(InvalidFrame):
            DECODER.decode(Frame(chunk_digest(CONTENTS[codec]), HONEST[codec][:length]), SCRATCH)


def test_frame_longer_than_its_content_and_8_bytes() -> None:
    """A frame that wastes storage is refused, although its content is right."""
    noise = chunk_digest(b"noise")
    frame = frame_of(Codec.ZSTD, len(noise), zstd_frame(block(noise), stated=len(noise)))

    assert_refused(frame, noise, "allowed are 40")


@pytest.mark.parametrize("size", [101, 4096, 1 << 17])
def test_payload_that_unpacks_to_more_than_it_says(size: int) -> None:
    """Both headers state 100 bytes, and the blocks have more."""
    frame = frame_of(Codec.ZSTD, 100, zeros_frame(size, stated=100))
    untouched = b"\xaa" * CHUNK_LIMIT
    scratch = memoryview(bytearray(untouched))

    assert_refused(frame, bytes(100), "zstd")
    with pytest.raises(InvalidFrame):
        DECODER.decode(Frame(chunk_digest(bytes(100)), frame), scratch)
    assert untouched[100:] == scratch[100:]


def test_payload_that_unpacks_to_less_than_it_says() -> None:
    """Both headers state 100 bytes, and the block has 99."""
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(99, stated=100)), bytes(100), "zstd")


@pytest.mark.parametrize("stated", [0, 99, 101, 1 << 40, 2**64 - 2])
def test_zstd_header_that_states_another_size(stated: int) -> None:
    """The inner header never causes extra bytes to be unpacked, nor a terabyte to be allocated."""
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(100, stated=stated)), bytes(100), "does not state|too much memory")


def test_zstd_frame_that_states_no_size() -> None:
    """A frame whose size is only known after unpacking is not unpacked."""
    frame = MAGIC + bytes([0x00, 0x38]) + zeros(100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "does not state a content size of 100 bytes")


@pytest.mark.parametrize("window_log", [23, 27, 31, 41])
def test_zstd_frame_with_a_huge_window(window_log: int) -> None:
    """To decode in pieces, zstd would allocate the window."""
    frame = MAGIC + bytes([0xC0, window_log - 10 << 3]) + (100).to_bytes(8, "little") + zeros(100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "window|too much memory")


def test_zstd_frame_with_a_dictionary() -> None:
    """The content of a frame must depend only on the frame."""
    frame = MAGIC + bytes([0xE1, 7]) + zeros_frame(100, stated=100)[5:]

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "dictionary")


def test_zstd_frame_with_a_checksum() -> None:
    """The digest verifies the content. With a checksum, the same frame would have a second form."""
    frame = MAGIC + bytes([0xE4]) + zeros_frame(100, stated=100)[5:] + bytes(4)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "checksum")


def test_zstd_block_of_a_reserved_kind() -> None:
    """An error of zstd becomes InvalidFrame."""
    frame = zstd_frame(block(b"\0", kind=RESERVED_BLOCK), stated=100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "zstd")


def test_two_zstd_frames_in_a_row() -> None:
    """Two halves, or an empty frame after a whole one, are refused."""
    half = zeros_frame(50, stated=50)
    whole = zeros_frame(100, stated=100)
    empty = zstd_frame(block(b""), stated=0)

    assert_refused(frame_of(Codec.ZSTD, 100, half + half), bytes(100), "does not state a content size of 100 bytes")
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(50, stated=100) + half), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + whole), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + empty), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, empty + whole), bytes(100), "does not state a content size of 100 bytes")


def test_skippable_zstd_frame() -> None:
    """A frame that decodes to nothing is refused before, after and instead of a frame, with any stated size."""
    whole = zeros_frame(100, stated=100)
    hidden = SKIPPABLE + (8).to_bytes(4, "little") + b"a secret"
    in_place = SKIPPABLE + (100).to_bytes(4, "little") + bytes(92)

    assert_refused(frame_of(Codec.ZSTD, 100, hidden + whole), bytes(100), "zstd frame is missing")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + hidden), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, in_place), bytes(100), "zstd frame is missing")


def test_zstd_frame_of_an_older_format() -> None:
    """Formats from before RFC 8878 are refused, although some builds of zstd read them."""
    frame = b"\x27" + zeros_frame(100, stated=100)[1:]

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "zstd frame is missing")


def test_a_million_empty_zstd_blocks() -> None:
    """100 bytes may have two empty blocks. Counting stops at that number."""
    empty = block(b"", is_last=False)
    two, three = (frame_of(Codec.ZSTD, 100, zstd_frame(empty * count + zeros(100), stated=100)) for count in (1, 2))
    million = frame_of(Codec.ZSTD, CHUNK_LIMIT, zstd_frame(empty * 1_000_000 + zeros(100), stated=CHUNK_LIMIT))

    assert bytes(100) == DECODER.decode(Frame(chunk_digest(bytes(100)), two), SCRATCH)
    assert_refused(three, bytes(100), "blocks")
    assert_refused(million, bytes(CHUNK_LIMIT), "blocks")


@pytest.mark.parametrize(
    "lengths",
    [
        (0, 0),
        (2000, 1999),
        (2001, 1999),
        (2**32 - 1, 2**32 - 1),
        (2**32 - 2000, 4000),
        (2000, 2**31),
    ],
)
def test_plane_lengths_that_lie(lengths: tuple[int, int]) -> None:
    """The lengths do not add up, overflow 32 bits in their sum, or are larger than a plane."""
    payload = struct.pack("<2I", *lengths) + WEIGHTS[0::2] + WEIGHTS[1::2]

    assert_refused(frame_of(Codec.PLANES2_ZSTD, len(WEIGHTS) + 8, payload), WEIGHTS, "add up|zstd frame is missing")
    assert_refused(frame_of(Codec.PLANES2_ZSTD, len(WEIGHTS), payload), WEIGHTS, "allowed are")


def test_plane_longer_than_its_share() -> None:
    """One plane is too long, and another one is shorter by the same number of bytes."""
    size = 2000
    plane = zeros_frame(size // 2, stated=size // 2)
    payload = struct.pack("<2I", size // 2 + 1, len(plane)) + bytes(size // 2 + 1) + plane

    assert_refused(frame_of(Codec.PLANES2_ZSTD, size, payload), bytes(size), "one of its planes has 1001 bytes; allowed are 1000")


@pytest.mark.parametrize(("size", "stated"), [(1001, 1000), (1001, 1001), (999, 1000), (1000, 1 << 40)])
def test_plane_that_unpacks_to_another_size(size: int, stated: int) -> None:
    """The rules for a whole chunk also apply to each plane."""
    plane = zeros_frame(size, stated=stated)
    payload = struct.pack("<2I", 1000, len(plane)) + bytes(1000) + plane

    assert_refused(frame_of(Codec.PLANES2_ZSTD, 2000, payload), bytes(2000), "zstd")


def test_plane_without_a_byte() -> None:
    """A plane of length 0 is refused."""
    payload = struct.pack("<2I", 1000, 0) + bytes(1000)

    assert_refused(frame_of(Codec.PLANES2_ZSTD, 2000, payload), bytes(2000), "zstd frame is missing")


@pytest.mark.parametrize("size", [1, 3, 7, 8, 15, 16, 17])
def test_chunk_too_small_for_its_planes(size: int) -> None:
    """The chunk has fewer bytes than planes, or than their lengths take."""
    for codec, count in ((Codec.PLANES2_ZSTD, 2), (Codec.PLANES4_ZSTD, 4)):
        for payload in (bytes(size), struct.pack(f"<{count}I", *[size // count] * count) + bytes(size)):
            assert_refused(frame_of(codec, size, payload), bytes(size), "shorter|add up|allowed are|zstd frame is missing")


def test_broken_frames_take_no_memory() -> None:
    """A frame with the largest window is cut off in a block. zstd does not allocate the window."""
    decoder = Decoder()
    decoder.decode(Frame(chunk_digest(CONTENT), HONEST[Codec.ZSTD]), SCRATCH)
    taken = decoder._zstd.memory_size()
    size = CHUNK_LIMIT
    for blocks in (block(bytes(1000), is_last=False), block(bytes(1000))[:-1], block(bytes(1000))):
        frame = frame_of(Codec.ZSTD, size, zstd_frame(blocks, stated=size))
        with pytest.raises(InvalidFrame):
            decoder.decode(Frame(chunk_digest(bytes(size)), frame), SCRATCH)

    assert taken == decoder._zstd.memory_size()
