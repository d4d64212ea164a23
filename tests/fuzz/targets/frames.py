"""Frames, manifests and batches: what clients and servers send each other."""

from __future__ import annotations

from functools import cache
from itertools import accumulate

from filestore.core import manifest as manifests
from filestore.core.digest import Digest, chunk_digest, manifest_digest
from filestore.core.manifest import CHUNK_LIMIT, Chunk, Manifest, stated_count, stated_size
from filestore.errors import Interrupted, InvalidBatch, InvalidFrame, InvalidManifest, LimitExceeded
from filestore.format import codec
from filestore.format.codec import Codec, Decoder, Encoder, Frame, decoded_size, frame_limit
from filestore.http import wire
from filestore.http.client import answers
from filestore.http.client.answers import BatchAnswer
from filestore.http.wire import BATCH_COUNT_LIMIT, BatchEntry, BatchParser, batch_header_size, encode_batch_header
from tests.fuzz.target import PlantedFault, Target, pieces_of

_ENCODED_AGAIN_LIMIT = 64 << 10
_FRAMES_LIMIT = 96
"""The memory that a client has for the frames that it asked for."""


class _AnyDigest(Digest):
    """A digest that equals every other one, so that the fuzzer gets past the comparison with the digest of the content."""

    __slots__ = ()
    __hash__ = Digest.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


_ANY = _AnyDigest(bytes(32))


@cache
def _codecs() -> tuple[Encoder, Decoder, memoryview]:
    return Encoder(), Decoder(), memoryview(bytearray(CHUNK_LIMIT))


def _check_frame(data: bytes) -> None:
    """The content has the stated size, and encoding it again gives a frame that decodes to it."""
    size = decoded_size(data, digest=_ANY)
    assert 0 < size <= CHUNK_LIMIT
    encoder, decoder, scratch = _codecs()
    content = decoder.decode(Frame(_ANY, data), scratch)
    assert len(content) == size
    assert len(data) <= frame_limit(size)
    if size <= _ENCODED_AGAIN_LIMIT:
        kept, out = bytes(content), memoryview(bytearray(frame_limit(size)))
        length = encoder.encode(memoryview(kept), out)
        again = decoder.decode(Frame(chunk_digest(kept), out[:length]), scratch)
        assert kept == again


def _frames() -> list[bytes]:
    contents = [b"a", b"text that repeats itself, " * 40, bytes(range(256)) * 4, b"\x00\x3f" * 700, b"\x01\x02\x80\x3f" * 300]
    made = []
    for content in contents:
        for kind in (None, *Codec):
            out = memoryview(bytearray(frame_limit(len(content))))
            made.append(bytes(out[: Encoder(codec=kind).encode(memoryview(content), out)]))
    return list(dict.fromkeys(made))


FRAME = Target(
    check=_check_frame,
    errors=(InvalidFrame,),
    seeds=_frames,
    fault=PlantedFault(owner=codec, function="_parse_header", old="if not 0 < size <= CHUNK_LIMIT:", new="if not 0 < size:"),
    parses=("filestore.format.codec",),
)


def _check_manifest(data: bytes) -> None:
    """A manifest has one form: what parses is what its chunks encode to."""
    found = Manifest.parse(data)
    assert data == Manifest.build(iter(found.chunks), chunking_version=found.chunking_version).encoded
    assert manifest_digest(data) == found.digest
    assert (stated_size(data), stated_count(data)) == (found.size, len(found.chunks))
    assert list(accumulate(found.chunks.sizes(), initial=0))[:-1] == list(found.offset_table())


def _manifests() -> list[bytes]:
    sizes: list[list[int]] = [[], [1], [CHUNK_LIMIT], [5, CHUNK_LIMIT, 700_000]]
    return [
        Manifest.build((Chunk(chunk_digest(bytes([size % 256])), size) for size in each), chunking_version=1).encoded
        for each in sizes
    ]


MANIFEST = Target(
    check=_check_manifest,
    errors=(InvalidManifest, LimitExceeded),
    seeds=_manifests,
    fault=PlantedFault(
        owner=manifests.Manifest,
        function="parse",
        old="if len(raw) != _HEADER.size + count * DIGEST_AND_NUMBER.size:",
        new="if len(raw) < _HEADER.size + count * DIGEST_AND_NUMBER.size:",
    ),
    parses=("filestore.core.manifest",),
)


def _parsed(parser: BatchParser, pieces: list[bytes]) -> tuple[list[BatchEntry], bytes, str]:
    """Feed a batch. Return what came out, and the error at which it ended."""
    entries, content = [], bytearray()
    try:
        for piece in pieces:
            for part in parser.feed(piece):
                if isinstance(part, BatchEntry):
                    entries.append(part)
                else:
                    content += part
            assert 0 <= parser.count <= BATCH_COUNT_LIMIT
            assert parser.reach(64) >= 0
    except InvalidBatch as error:
        return entries, bytes(content), str(error)
    return entries, bytes(content), ""


def _check_batch(data: bytes) -> None:
    """A batch gives the same frames in one piece and in many, and no byte is lost."""
    whole, piecewise = BatchParser(size=len(data)), BatchParser(size=len(data))
    found = _parsed(whole, [data])
    assert found == _parsed(piecewise, pieces_of(data))
    assert whole.finished == piecewise.finished
    entries, content, _ = found
    if whole.finished:
        assert data == encode_batch_header(entries) + content


def _batches() -> list[bytes]:
    frames = [b"f" * 20, b"g" * 9, b"h" * 64]
    whole = encode_batch_header([BatchEntry(chunk_digest(frame), len(frame)) for frame in frames]) + b"".join(frames)
    return [whole, encode_batch_header([]), whole[: batch_header_size(3)], whole + b"more"]


BATCH = Target(
    check=_check_batch,
    errors=(),
    seeds=_batches,
    fault=PlantedFault(
        owner=wire, function="decode_batch_count", old="if not count <= BATCH_COUNT_LIMIT:", new="if not count <= 1 << 32:"
    ),
    parses=("filestore.http.wire",),
)

_ASKED = tuple(chunk_digest(frame) for frame in (b"f" * 20, b"g" * 9, b"h" * 64))


def _check_batch_answer(data: bytes) -> None:
    """The frames of an answer are those that were asked for, and fit into the memory that the client has for them."""
    moved: list[int] = []
    answer = BatchAnswer("a server", _ASKED, memoryview(bytearray(_FRAMES_LIMIT)), moved=moved.append)
    answer.expect(len(data) if len(data) % 3 else None, wire.OCTETS)
    for piece in pieces_of(data):
        rest = memoryview(piece)
        while rest:
            memory = answer.memory()[: len(rest)]
            if not memory:
                raise answers.longer_than_announced("a server")
            memory[:] = rest[: len(memory)]
            rest = rest[len(memory) :]
            answer.add(len(memory))
            frames = [frame for frame in answer.frames() if frame is not None]
            assert answer.size <= _FRAMES_LIMIT
            assert sum(entry.stored_size for entry in answer._entries) <= _FRAMES_LIMIT
    answer.end()
    frames = [frame for frame in answer.frames() if frame is not None]
    assert sum(moved) == sum(map(len, frames)) == answer.size
    assert data[batch_header_size(len(_ASKED)) :] == b"".join(frames)


def _batch_answers() -> list[bytes]:
    frames = [b"f" * 20, b"g" * 9, b"h" * 64]
    all_of_them = encode_batch_header(list(map(BatchEntry, _ASKED, map(len, frames)))) + b"".join(frames)
    one = encode_batch_header(list(map(BatchEntry, _ASKED, (0, 9, 0)))) + frames[1]
    return [all_of_them, one, encode_batch_header([BatchEntry(digest, 0) for digest in _ASKED])]


BATCH_ANSWER = Target(
    check=_check_batch_answer,
    errors=(InvalidBatch, Interrupted),
    seeds=_batch_answers,
    fault=PlantedFault(owner=BatchAnswer, function="_claim", old="if size > len(self._buffer):", new="if size > 1 << 40:"),
    parses=("filestore.http.client.answers", "filestore.http.wire"),
)
