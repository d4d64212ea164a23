from __future__ import annotations

import hashlib
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import SimpleNamespace

import pyfastcdc
import pyfastcdc.py
import pytest
import safetensors

from filestore.core.manifest import CHUNK_LIMIT
from filestore.errors import MissingCompiledPart, UnknownFormat
from filestore.format.chunking import LOOKAHEAD, Chunker
from filestore.format.chunking.containers import segmenter
from tests.support.chunking import boundaries, chunk_sizes, cut, pieces
from tests.support.generator import octets, prose
from tests.support.golden import weights
from tests.support.models import (
    Tensor,
    ZipEntry,
    gguf_file,
    safetensors_file,
    safetensors_from_header,
    tensor,
    torch_file,
    zip_file,
)

KIB = 1 << 10
LEAST = 256 * KIB


def found(content: bytes) -> list[int]:
    """The boundaries in `content`, given whole."""
    return boundaries(content, [len(content)])


def ends_of(data: bytes, content: bytes) -> list[int]:
    """Both ends of `data` in `content`."""
    start = content.index(data)
    return [start, start + len(data)]


def test_refuses_a_chunking_version_that_it_does_not_know() -> None:
    """Another version cuts otherwise, so no Cutter is made for it."""
    with pytest.raises(UnknownFormat, match="format 2, this program knows 1"):
        Chunker(chunking_version=2)


def test_refuses_to_cut_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pure Python is a hundred times slower: an error says so, where the package only warns."""
    monkeypatch.setattr(pyfastcdc, "FastCDC", pyfastcdc.py.FastCDC)
    with pytest.raises(MissingCompiledPart, match="pyfastcdc was installed without its compiled part"):
        Chunker()


def test_importing_does_not_load_the_scanner() -> None:
    """The first Cutter loads pyfastcdc, not the import."""
    program = "import sys, filestore.format.chunking; print('pyfastcdc' in sys.modules)"
    assert "False\n" == subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_an_empty_file_has_no_chunks() -> None:
    """Nothing is cut where there is nothing."""
    assert [] == chunk_sizes(b"", [0])


def described_chunks(segment: bytes) -> Iterator[int]:
    """Chunk sizes by the description in `docs/format.md`, word for word."""
    gear = [int.from_bytes(hashlib.md5(bytes([value]) * 64).digest()[:8], "big") for value in range(256)]
    while segment:
        n = min(len(segment), 4194304)
        size = n
        h = 0
        for p in range(524288, n if n % 2 == 0 else n - 1):
            h = (2 * h + gear[segment[p]]) % (1 << 64)
            if h & (0x0000D91767537000 if p < 786432 else 0x0000D91707537000) == 0:
                size = p
                break
        yield size
        segment = segment[size:]


@pytest.mark.slow
@pytest.mark.parametrize("size", [524288, 524289, 3_000_001])
def test_the_description_in_the_docs_suffices(size: int) -> None:
    """An implementation of docs/format.md, section Chunks, cuts as ours does."""
    content = octets(3, size)
    assert list(described_chunks(content)) == chunk_sizes(content, [size])


@pytest.mark.parametrize(
    "content",
    [
        octets(1, LOOKAHEAD),
        bytes(LOOKAHEAD),
        zip_file([ZipEntry("a", octets(1, LOOKAHEAD), sizes_behind=True)])[:LOOKAHEAD],
        zip_file([ZipEntry("a", octets(1, LEAST - 29), sizes_behind=True), ZipEntry("b", octets(2, LOOKAHEAD))])[:LOOKAHEAD],
        safetensors_from_header(b"{" + b" " * LOOKAHEAD, claimed=16 << 20)[:LOOKAHEAD],
        struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + bytes(LOOKAHEAD - 24),
    ],
    ids=["random", "zeros", "entry of unknown size", "two entries", "header still open", "table still open"],
)
def test_decides_a_chunk_when_the_lookahead_is_there(content: bytes) -> None:
    """With LOOKAHEAD uncut bytes a caller never has to read more to go on."""
    assert [] != Chunker().cut(memoryview(content), final=False)


def test_decides_nothing_before_the_lookahead_is_there() -> None:
    """With less, only `final` makes it cut, so that every byte is looked at a bounded number of times."""
    view = memoryview(octets(1, LOOKAHEAD - 1))
    chunker = Chunker()
    assert [] == chunker.cut(view, final=False)
    assert len(view) == sum(chunker.cut(view, final=True))


@pytest.mark.parametrize("content", [octets(5, 24 << 20), bytes(24 << 20), prose(5, 24 << 20)], ids=["random", "zeros", "text"])
def test_scans_each_byte_twice_at_most(content: bytes) -> None:
    """The cost is linear for pieces of any size: undecided bytes are scanned only once more."""
    chunker = Chunker()
    scanner, scanned = chunker._scanner, list[int]()

    def cut_buf(view: memoryview) -> Iterator[pyfastcdc.Chunk]:
        scanned.append(len(view))
        return scanner.cut_buf(view)

    chunker._scanner = SimpleNamespace(cut_buf=cut_buf)  # type: ignore[assignment]  # counts, and passes on
    view, start = memoryview(content), 0
    for end in pieces(1000, whole=len(view)):
        start += sum(chunker.cut(view[start:end], final=end == len(view)))
    assert len(view) == start
    assert sum(scanned) <= 2 * len(view)


def test_chunks_are_neither_larger_than_the_limit_nor_empty() -> None:
    """A chunk has 1 byte to 4 MiB."""
    sizes = chunk_sizes(bytes(9 << 20), [9 << 20])
    assert [CHUNK_LIMIT, CHUNK_LIMIT, 1 << 20] == sizes


@pytest.mark.slow
@pytest.mark.parametrize("step", [100, 300_000])
@pytest.mark.parametrize(
    "content",
    [
        safetensors_file(weights()),
        gguf_file(weights(), metadata={"words": ["word"] * 1000}),
        torch_file(weights()),
        zip_file([ZipEntry("a.pt", torch_file(weights()))]),
    ],
    ids=["safetensors", "gguf", "torch", "nested"],
)
def test_keeps_no_hold_on_the_buffer(content: bytes, step: int) -> None:
    """The caller may reuse, resize or free its memory after each call."""
    segments = segmenter()
    buffer = bytearray()
    for start in range(0, len(content), step):
        buffer[:] = content[start : start + step]
        with memoryview(buffer) as view:
            segments.feed(view)
        buffer.clear()  # raises BufferError while a view of it lives


def test_segments_of_safetensors_are_large_tensors() -> None:
    """Both ends of the data of tensors of at least 256 KiB are boundaries; smaller ones run together."""
    tensors = weights()
    content = safetensors_file(tensors)
    assert ends_of(tensors[0].data, content) + ends_of(tensors[2].data, content) == found(content)


def test_neighbouring_tensors_share_a_boundary() -> None:
    """Where one large tensor ends and the next begins there is one boundary."""
    tensors = [tensor(name, 300_000, seed=seed, dtype="I8") for seed, name in enumerate("ab")]
    content = safetensors_file(tensors)
    start = content.index(tensors[0].data)
    assert [start, start + 300_000] == found(content)  # the third one is the end of the file


def test_safetensors_in_any_order_with_gaps() -> None:
    """Offsets need not be sorted, nor leave no gap; a tensor of no bytes is none."""
    header = b'{"b":{"data_offsets":[300100,600100]},"a":{"data_offsets":[50,300050]},"c":{"data_offsets":[10,10]}} \n'
    content = safetensors_from_header(header, octets(1, 600_200))
    data = 8 + len(header)
    assert [data + 50, data + 300_050, data + 300_100, data + 600_100] == found(content)


def test_segments_of_gguf_are_large_tensors_without_padding() -> None:
    """Positions follow the alignment, and sizes the type. Padding does not belong to a tensor."""
    tensors = [Tensor("q", "Q8_0", (280, 1024), octets(1, 304_640)), tensor("w", 3, 87_382, seed=2, dtype="I8"), *weights()]
    content = gguf_file(tensors, alignment=128)
    large = [item for item in tensors if len(item.data) >= LEAST]
    assert sorted({end for item in large for end in ends_of(item.data, content)}) == found(content)
    assert 0 == found(content)[0] % 128


def gguf_of_type(kind: int) -> tuple[bytes, int]:
    """A GGUF file of two tensors of 300,000 bytes and an unused one, typed I8 but for the type `kind`; and where data begins."""
    table = b"".join(
        struct.pack("<Q1sIQIQ", 1, name, 1, 300_000, kind, offset)
        for name, offset in ((b"a", 0), (b"b", 300_032), (b"c", 600_064))
    )
    head = struct.pack("<4sIQQ", b"GGUF", 2, 3, 0) + table
    head += bytes(-len(head) % 32)
    return head + octets(1, 900_064), len(head)


def test_gguf_of_an_unknown_type_ends_where_the_next_tensor_begins() -> None:
    """A type that came later still gives segments, padding included; the last one has none, since its size is not known."""
    content, data = gguf_of_type(999)
    assert [data, data + 300_032, data + 600_064] == found(content)


def test_gguf_of_a_known_type_in_version_2() -> None:
    """The same with a known type: exact ends, the last one too."""
    content, data = gguf_of_type(24)
    starts = (data, data + 300_032, data + 600_064)
    assert [position for start in starts for position in (start, start + 300_000)][:-1] == found(content)[:5]


def test_big_endian_gguf_is_one_segment() -> None:
    """Its version reads as another number."""
    assert [] == found(struct.pack(">4sIQQ", b"GGUF", 3, 0, 0) + octets(1, 600_000))


@pytest.mark.parametrize("wide", [False, True], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("behind", [False, True], ids=["size before", "size behind"])
def test_segments_of_zip_are_large_entries(*, wide: bool, behind: bool) -> None:
    """Both ends of the data of entries of at least 256 KiB are boundaries, wherever and however their size is written."""
    contents = [octets(seed, size) for seed, size in enumerate((10, LEAST, LEAST - 1, 0, 300_001))]
    content = zip_file(ZipEntry(str(len(item)), item, wide=wide, sizes_behind=behind) for item in contents)
    assert ends_of(contents[1], content) + ends_of(contents[4], content) == found(content)


def test_deflated_and_encrypted_entries_of_known_size_are_opaque_segments() -> None:
    """Their data is a segment too, and nothing inside it is looked at."""
    model = safetensors_file(weights())
    content = zip_file([ZipEntry("a", model, encrypted=True), ZipEntry("b", model, deflated=True), ZipEntry("c", model)])
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = [entry.compress_size for entry in archive.infolist()]
    starts = [31, 31 + sizes[0] + 31, 31 + sizes[0] + 31 + sizes[1] + 31]
    assert [starts[0], starts[0] + sizes[0], starts[1], starts[1] + sizes[1], starts[2]] == found(content)[:5]


OPAQUE = ZipEntry("b", octets(3, 300_000), sizes_behind=True)


@pytest.mark.parametrize(
    "entry", [OPAQUE._replace(deflated=True), OPAQUE._replace(encrypted=True)], ids=["deflated", "encrypted"]
)
def test_an_opaque_entry_of_unknown_size_ends_segmentation(entry: ZipEntry) -> None:
    """Its data does not show where it ends, so the rest of the file is one segment."""
    first, last = octets(1, 300_000), octets(2, 300_000)
    content = zip_file([ZipEntry("a", first), entry, ZipEntry("c", last)])
    assert ends_of(first, content) == found(content)


def test_the_central_directory_starts_no_segment() -> None:
    """Everything after the last large entry is one segment."""
    data = octets(1, 300_000)
    content = zip_file([ZipEntry("a", data), ZipEntry("b", b"small")])
    assert [31, 31 + len(data), len(content) - 31 - len(data)] == [
        *ends_of(data, content),
        chunk_sizes(content, [len(content)])[-1],
    ]


def descriptor(size: int, *, behind: bytes = b"PK\3\4") -> bytes:
    """Return a data descriptor with 32-bit sizes, and the bytes after it."""
    return struct.pack("<4s3I", b"PK\7\10", 0, size, size) + behind


def test_what_only_looks_like_a_descriptor_ends_no_entry() -> None:
    """A descriptor needs the signature, the right size twice, and a header after it."""
    data = b"".join(
        [
            octets(1, 100_000),
            b"PK\7\10" * 50,
            descriptor(100_201),  # of another size
            descriptor(100_220, behind=b"PK\5\6"),  # nothing behind it that could follow
            octets(2, 200_000),
            b"PK\7\10",  # swallowed by none: the true one begins 4 bytes on
        ]
    )
    content = zip_file([ZipEntry("a", data, sizes_behind=True), ZipEntry("b", b"")])
    assert ends_of(data, content) == found(content)


TENSOR = tensor("t", 1500, 1000, seed=40)
OTHERS = weights()


@pytest.mark.parametrize(
    "make",
    [
        lambda: safetensors_file([*OTHERS, TENSOR]),
        lambda: safetensors_file([TENSOR, OTHERS[0]], metadata={"note": "x" * 999}),
        lambda: gguf_file([OTHERS[1], TENSOR, *OTHERS[2:]]),
        lambda: torch_file([OTHERS[3], TENSOR]),
        lambda: zip_file([ZipEntry("small", b"s"), ZipEntry("raw.bin", TENSOR.data)]),
        lambda: zip_file([ZipEntry("model.safetensors", safetensors_file([OTHERS[1], TENSOR]))]),
        lambda: zip_file([ZipEntry("model.gguf", gguf_file([TENSOR]), wide=True)]),
        lambda: zip_file([ZipEntry("model.pt", torch_file([OTHERS[0], TENSOR]))]),
        lambda: zip_file([ZipEntry("inner.zip", zip_file([ZipEntry("model.pt", torch_file([TENSOR]))]), sizes_behind=True)]),
    ],
    ids=[
        "shard",
        "other shard",
        "gguf",
        "torch",
        "zip",
        "safetensors in zip",
        "gguf in zip",
        "torch in zip",
        "torch in zip in zip",
    ],
)
def test_a_tensor_is_cut_alike_wherever_it_stands(make: Callable[[], bytes]) -> None:
    """Its chunks depend only on its data, so checkpoints of any layout share them."""
    alone = cut(TENSOR.data)
    chunks = cut(make())
    place = chunks.index(alone[0])
    assert alone == chunks[place : place + len(alone)]
    assert len(alone) > 1


@pytest.mark.parametrize("behind", [False, True], ids=["size before", "size behind"])
@pytest.mark.parametrize(
    "inner",
    [
        safetensors_file(weights()),
        gguf_file(weights()),
        torch_file(weights()),
        zip_file([ZipEntry("a", prose(1, 1_200_000), deflated=True)]),
        safetensors_from_header(b'{"a":{"data_offsets":[0,9000000]}}', octets(1, 400_000)),
        safetensors_file(weights())[:400_000],
        torch_file(weights())[:400_000],
        prose(2, 1_500_000),
    ],
    ids=["safetensors", "gguf", "torch", "zip", "lying header", "cut off", "torch cut off", "text"],
)
def test_a_file_in_a_zip_is_cut_as_the_file_alone(inner: bytes, *, behind: bool) -> None:
    """A stored entry of 256 KiB and more gives exactly the chunks of its content, between two boundaries."""
    outer = zip_file([ZipEntry("b", b"before"), ZipEntry("i", inner, sizes_behind=behind), ZipEntry("a", octets(1, 5000))])
    alone = cut(inner)
    chunks = cut(outer)
    start = outer.index(inner)
    place = [0, *accumulate(map(len, chunks))].index(start)
    assert alone == chunks[place : place + len(alone)]


def test_containers_are_looked_into_two_levels_below_the_file() -> None:
    """Deeper containers are one segment, so that the cost of a nested file is bounded."""
    content = safetensors_file([TENSOR])
    for depth in range(4):
        content = zip_file([ZipEntry(f"{depth}", content)])
        start = content.index(TENSOR.data)
        assert (depth < 2) == (start in found(content))


def test_fixtures_are_read_by_those_whose_formats_they_are() -> None:
    """The builders in tests/support/models.py write valid files."""
    tensors = weights()
    raw = safetensors_file(tensors, metadata={"format": "pt"})
    read = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]  # it ships no types
    assert {item.name: item.data for item in tensors} == {name: bytes(value["data"]) for name, value in read.items()}
    with zipfile.ZipFile(io.BytesIO(torch_file(tensors))) as archive:
        assert archive.testzip() is None
        assert {0x808} == {entry.flag_bits for entry in archive.infolist()}
        assert tensors[3].data == archive.read("archive/data/3")
