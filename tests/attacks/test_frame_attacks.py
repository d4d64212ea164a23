"""Frames made to deceive: each is refused with InvalidFrame, takes no memory, and leaves the decoder in working order."""

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
    """An honest frame."""
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
    """A frame with this header."""
    return struct.pack("<B3xI", codec, size) + payload


def block(content: bytes, *, kind: int = RAW_BLOCK, is_last: bool = True) -> bytes:
    """A zstd block that holds `content` as it is."""
    return (len(content) << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def zstd_frame(blocks: bytes, *, stated: int) -> bytes:
    """A zstd frame that says to unpack to `stated` bytes, in one segment."""
    return MAGIC + bytes([0xE0]) + stated.to_bytes(8, "little") + blocks


def zeros(size: int) -> bytes:
    """The last block of a zstd frame, of 4 bytes, that unpacks to `size` zeros."""
    return (size << 3 | 0b011).to_bytes(3, "little") + b"\0"


def zeros_frame(size: int, *, stated: int) -> bytes:
    """A zstd frame that unpacks to `size` zeros, and says to unpack to `stated` bytes."""
    return zstd_frame(zeros(size), stated=stated)


def assert_refused(frame: bytes, content: bytes, reason: str) -> None:
    """`frame` is refused for `reason` when given for `content`, and an honest frame is decoded afterwards."""
    with pytest.raises(InvalidFrame, match=reason):
        DECODER.decode(Frame(chunk_digest(content), frame), SCRATCH)
    for codec, honest in HONEST.items():
        assert CONTENTS[codec] == DECODER.decode(Frame(chunk_digest(CONTENTS[codec]), honest), SCRATCH)


def test_forged_zstd_frames_are_right_but_for_the_forgery() -> None:
    """Without a lie in it, what these tests build is a frame like any other."""
    frame = frame_of(Codec.ZSTD, 100, zeros_frame(100, stated=100))

    assert bytes(100) == DECODER.decode(Frame(chunk_digest(bytes(100)), frame), SCRATCH)


@each_codec
def test_content_of_another_chunk(codec: Codec) -> None:
    """A well-formed frame, kept under a digest that is not its content's."""
    assert_refused(HONEST[codec], b"something else", "another digest")


@each_codec
@pytest.mark.parametrize("lie", [-1, 1, 1000])
def test_declared_size_that_lies(codec: Codec, lie: int) -> None:
    """The header says more or less than the payload holds."""
    frame = frame_of(codec, len(CONTENTS[codec]) + lie, HONEST[codec][8:])

    assert_refused(frame, CONTENTS[codec], "but states|does not state|add up|allowed are")


@pytest.mark.parametrize("size", [0, CHUNK_LIMIT + 1, 2**32 - 1])
def test_declared_size_beyond_the_limits(size: int) -> None:
    """No chunk is empty, none is larger than 4 MiB."""
    assert_refused(frame_of(Codec.ZSTD, size, HONEST[Codec.ZSTD][8:]), CONTENT, "allowed are 1 to")


@pytest.mark.parametrize("codec", [4, 127, 255])
def test_unknown_codec(codec: int) -> None:
    """A codec that this version does not know."""
    assert_refused(frame_of(codec, len(CONTENT), HONEST[Codec.RAW][8:]), CONTENT, f"codec, {codec}")


@each_codec
@pytest.mark.parametrize("place", [1, 2, 3])
def test_reserved_bytes_that_are_not_zero(codec: Codec, place: int) -> None:
    """A second form of the same frame is no frame."""
    frame = bytearray(HONEST[codec])
    frame[place] = 1

    assert_refused(bytes(frame), CONTENTS[codec], "reserved bytes")


@each_codec
def test_bytes_after_the_end(codec: Codec) -> None:
    """Nothing hides behind a frame."""
    for extra in (b"\0", bytes(8), MAGIC, HONEST[codec]):
        assert_refused(HONEST[codec] + extra, CONTENTS[codec], "allowed are|blocks|add up")


@each_codec
def test_frame_cut_off_anywhere(codec: Codec) -> None:
    """Whatever is missing is missed."""
    for length in range(len(HONEST[codec])):
        with pytest.raises(InvalidFrame):
            DECODER.decode(Frame(chunk_digest(CONTENTS[codec]), HONEST[codec][:length]), SCRATCH)


def test_frame_longer_than_its_content_and_8_bytes() -> None:
    """Storage is not to be filled by frames that waste it, right as they may be."""
    noise = chunk_digest(b"noise")
    frame = frame_of(Codec.ZSTD, len(noise), zstd_frame(block(noise), stated=len(noise)))

    assert_refused(frame, noise, "allowed are 40")


@pytest.mark.parametrize("size", [101, 4096, 1 << 17])
def test_payload_that_unpacks_to_more_than_it_says(size: int) -> None:
    """Both headers say 100, the blocks hold more."""
    frame = frame_of(Codec.ZSTD, 100, zeros_frame(size, stated=100))
    untouched = b"\xaa" * CHUNK_LIMIT
    scratch = memoryview(bytearray(untouched))

    assert_refused(frame, bytes(100), "zstd")
    with pytest.raises(InvalidFrame):
        DECODER.decode(Frame(chunk_digest(bytes(100)), frame), scratch)
    assert untouched[100:] == scratch[100:]


def test_payload_that_unpacks_to_less_than_it_says() -> None:
    """Both headers say 100, the block holds 99."""
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(99, stated=100)), bytes(100), "zstd")


@pytest.mark.parametrize("stated", [0, 99, 101, 1 << 40, 2**64 - 2])
def test_zstd_header_that_states_another_size(stated: int) -> None:
    """Nothing is unpacked, or made room for, on the word of the inner header: not a byte more, and no terabyte."""
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(100, stated=stated)), bytes(100), "does not state|too much memory")


def test_zstd_frame_that_states_no_size() -> None:
    """A frame whose size is found out by unpacking it is not unpacked."""
    frame = MAGIC + bytes([0x00, 0x38]) + zeros(100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "does not state a content size of 100 bytes")


@pytest.mark.parametrize("window_log", [23, 27, 31, 41])
def test_zstd_frame_with_a_huge_window(window_log: int) -> None:
    """The window is what zstd would allocate to decode piece by piece."""
    frame = MAGIC + bytes([0xC0, window_log - 10 << 3]) + (100).to_bytes(8, "little") + zeros(100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "window|too much memory")


def test_zstd_frame_with_a_dictionary() -> None:
    """What a frame decodes to depends on nothing but the frame."""
    frame = MAGIC + bytes([0xE1, 7]) + zeros_frame(100, stated=100)[5:]

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "dictionary")


def test_zstd_frame_with_a_checksum() -> None:
    """The digest verifies; a checksum would be a second form of the same frame."""
    frame = MAGIC + bytes([0xE4]) + zeros_frame(100, stated=100)[5:] + bytes(4)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "checksum")


def test_zstd_block_of_a_reserved_kind() -> None:
    """What zstd itself does not know is translated into our error."""
    frame = zstd_frame(block(b"\0", kind=RESERVED_BLOCK), stated=100)

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "zstd")


def test_two_zstd_frames_in_a_row() -> None:
    """Two halves that add up, or an empty frame behind a whole one, are no frame."""
    half = zeros_frame(50, stated=50)
    whole = zeros_frame(100, stated=100)
    empty = zstd_frame(block(b""), stated=0)

    assert_refused(frame_of(Codec.ZSTD, 100, half + half), bytes(100), "does not state a content size of 100 bytes")
    assert_refused(frame_of(Codec.ZSTD, 100, zeros_frame(50, stated=100) + half), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + whole), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + empty), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, empty + whole), bytes(100), "does not state a content size of 100 bytes")


def test_skippable_zstd_frame() -> None:
    """Frames that decode to nothing hide nothing: before, behind, or in place of a frame, whatever size they state."""
    whole = zeros_frame(100, stated=100)
    hidden = SKIPPABLE + (8).to_bytes(4, "little") + b"a secret"
    in_place = SKIPPABLE + (100).to_bytes(4, "little") + bytes(92)

    assert_refused(frame_of(Codec.ZSTD, 100, hidden + whole), bytes(100), "zstd frame is missing")
    assert_refused(frame_of(Codec.ZSTD, 100, whole + hidden), bytes(100), "blocks")
    assert_refused(frame_of(Codec.ZSTD, 100, in_place), bytes(100), "zstd frame is missing")


def test_zstd_frame_of_an_older_format() -> None:
    """Formats from before RFC 8878, which some builds of zstd still read, are not ours."""
    frame = b"\x27" + zeros_frame(100, stated=100)[1:]

    assert_refused(frame_of(Codec.ZSTD, 100, frame), bytes(100), "zstd frame is missing")


def test_a_million_empty_zstd_blocks() -> None:
    """Blocks that hold nothing are not counted to their end: 100 bytes may have two, and that is where counting stops."""
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
    """Lengths that do not add up, that overflow 32 bits when added, that name more than a plane holds."""
    payload = struct.pack("<2I", *lengths) + WEIGHTS[0::2] + WEIGHTS[1::2]

    assert_refused(frame_of(Codec.PLANES2_ZSTD, len(WEIGHTS) + 8, payload), WEIGHTS, "add up|zstd frame is missing")
    assert_refused(frame_of(Codec.PLANES2_ZSTD, len(WEIGHTS), payload), WEIGHTS, "allowed are")


def test_plane_longer_than_its_share() -> None:
    """One plane too long, another shorter by as much."""
    size = 2000
    plane = zeros_frame(size // 2, stated=size // 2)
    payload = struct.pack("<2I", size // 2 + 1, len(plane)) + bytes(size // 2 + 1) + plane

    assert_refused(frame_of(Codec.PLANES2_ZSTD, size, payload), bytes(size), "one of its planes has 1001 bytes; allowed are 1000")


@pytest.mark.parametrize(("size", "stated"), [(1001, 1000), (1001, 1001), (999, 1000), (1000, 1 << 40)])
def test_plane_that_unpacks_to_another_size(size: int, stated: int) -> None:
    """What holds for a whole chunk holds for each plane."""
    plane = zeros_frame(size, stated=stated)
    payload = struct.pack("<2I", 1000, len(plane)) + bytes(1000) + plane

    assert_refused(frame_of(Codec.PLANES2_ZSTD, 2000, payload), bytes(2000), "zstd")


def test_plane_without_a_byte() -> None:
    """A plane of length 0 stands for nothing."""
    payload = struct.pack("<2I", 1000, 0) + bytes(1000)

    assert_refused(frame_of(Codec.PLANES2_ZSTD, 2000, payload), bytes(2000), "zstd frame is missing")


@pytest.mark.parametrize("size", [1, 3, 7, 8, 15, 16, 17])
def test_chunk_too_small_for_its_planes(size: int) -> None:
    """Fewer bytes than planes, or than their lengths take."""
    for codec, count in ((Codec.PLANES2_ZSTD, 2), (Codec.PLANES4_ZSTD, 4)):
        for payload in (bytes(size), struct.pack(f"<{count}I", *[size // count] * count) + bytes(size)):
            assert_refused(frame_of(codec, size, payload), bytes(size), "shorter|add up|allowed are|zstd frame is missing")


def test_broken_frames_take_no_memory() -> None:
    """A frame of the largest window, cut off in a block, does not make zstd take a window for it."""
    decoder = Decoder()
    decoder.decode(Frame(chunk_digest(CONTENT), HONEST[Codec.ZSTD]), SCRATCH)
    taken = decoder._zstd.memory_size()
    size = CHUNK_LIMIT
    for blocks in (block(bytes(1000), is_last=False), block(bytes(1000))[:-1], block(bytes(1000))):
        frame = frame_of(Codec.ZSTD, size, zstd_frame(blocks, stated=size))
        with pytest.raises(InvalidFrame):
            decoder.decode(Frame(chunk_digest(bytes(size)), frame), SCRATCH)

    assert taken == decoder._zstd.memory_size()
