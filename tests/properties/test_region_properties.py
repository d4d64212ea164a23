"""A file whose structure is known is cut by several threads. The chunks are those of one `Chunker`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.digest import chunk_digest
from filestore.core.manifest import Chunk, Manifest
from filestore.errors import SourceChanged
from filestore.format.chunking import CHUNKING_VERSION, LOOKAHEAD
from filestore.system.writeback import Writeback
from filestore.transfer.sources import file as file_module
from filestore.transfer.sources.file import FileSource, Hashed, Region, RegionScanner
from tests.support.chunking import chunk_sizes
from tests.support.generator import octets, prose
from tests.support.models import Tensor, gguf_file, safetensors_file, safetensors_from_header, torch_file

MIB = 1 << 20
BUFFER_SIZE = LOOKAHEAD + MIB
CONTENT = octets(5, 9 * MIB) + prose(5, 9 * MIB)
SIZES = st.one_of(st.integers(0, 600_000), st.integers(0, 3 * MIB), st.just(0), st.just(9 * MIB))


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    """Up to 12 tensors, tiny and huge."""
    sizes = draw(st.lists(SIZES, max_size=12))
    return [Tensor(f"t{place}", "I8", (size,), CONTENT[place * 7 :][:size]) for place, size in enumerate(sizes)]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Files whose structure is known, with tails without structure, cut short, or with a broken header."""
    kinds = [tensors().map(safetensors_file), tensors().map(gguf_file), tensors().map(torch_file)]
    content = bytearray(draw(st.one_of(kinds)))
    change = draw(st.sampled_from(["nothing", "nothing", "tail", "cut", "header", "claim"]))
    if change == "tail":
        content += CONTENT[: draw(SIZES)]
    elif change == "cut":
        del content[draw(st.integers(0, len(content))) :]
    elif change == "header":
        for place in draw(st.lists(st.integers(0, 300), max_size=3)):
            if place < len(content):
                content[place] ^= 1
    elif change == "claim":
        content[:0] = safetensors_from_header(b"{", claimed=draw(st.integers(0, 1 << 24)))
    return bytes(content)


@contextmanager
def opened(content: bytes, *, region_size: int) -> Iterator[FileSource]:
    """Give a source of a file with this content, which is divided into regions of this size."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patches:
        patches.setattr(file_module, "REGION_SIZE", region_size)
        path = Path(folder) / "file"
        path.write_bytes(content)
        with FileSource(path) as source:
            yield source


def scanned(source: FileSource, threads: int) -> Manifest:
    """Scan the source by so many threads as it allows, as `push` does."""

    def scan() -> None:
        for window in source.scan(memoryview(bytearray(BUFFER_SIZE))):
            window.hash()

    with ThreadPoolExecutor(threads) as pool:
        while not source.is_finished:
            calls = [pool.submit(scan) for _ in range(source.scan_limit(threads))]
            for call in calls:
                call.result()
    return source.manifest()


def expected(content: bytes) -> Manifest:
    """Return the manifest of the chunks of one chunker for the whole."""
    view, chunks, start = memoryview(content), list[Chunk](), 0
    for size in chunk_sizes(content, [len(content)]):
        chunks.append(Chunk(chunk_digest(view[start : start + size]), size))
        start += size
    return Manifest.build(chunks, chunking_version=CHUNKING_VERSION)


@settings(max_examples=40)
@given(files(), st.sampled_from([1, MIB, 5 * MIB]), st.integers(1, 4))
def test_regions_have_the_chunks_of_the_whole(content: bytes, region_size: int, threads: int) -> None:
    """Whatever a header says, true or broken, several threads cut the same chunks, and read each byte once."""
    with opened(content, region_size=region_size) as source:
        assert expected(content) == scanned(source, threads)
        assert len(content) == source.read


@settings(max_examples=40)
@given(files(), st.sampled_from([1, MIB, 5 * MIB, 9 * MIB]), st.data())
def test_regions_that_other_processes_scan_have_the_chunks_of_the_whole(
    content: bytes, region_size: int, data: st.DataObject
) -> None:
    """Also what is left of a region that was begun here. Windows may be told in any order, and each byte counts once."""
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with opened(content, region_size=region_size) as source:
        while not source.is_finished:
            source.scan_limit(2)
            if data.draw(st.booleans()):
                source.share_regions(data.draw(st.sampled_from([0, MIB, 9 * MIB, len(content)])))
            if source.is_next_shared and data.draw(st.booleans()):
                region = source.next_region()
                assert region is not None
                told = hashed_elsewhere(source, region, buffer)
                for hashed in data.draw(st.permutations(told)):
                    source.take_hashed(region, hashed)
            else:
                for window in source.scan(buffer):
                    window.hash()
        assert expected(content) == source.manifest()
        assert (len(content), 1) == (source.read, source.files_done)


def hashed_elsewhere(source: FileSource, region: Region, buffer: memoryview) -> list[Hashed]:
    """Do what a worker process does with a region, which it gets as a pickle."""
    scanner = RegionScanner(pickle.loads(pickle.dumps(region)))
    descriptor = source.open_again()
    told = []
    while not scanner.is_finished:
        hashed, chunks = scanner.scan(descriptor, buffer)
        assert hashed.size == sum(len(piece) for _, piece in chunks)
        told.append(hashed)
    os.close(descriptor)
    return told


def test_a_region_of_another_process_counts_until_it_is_hashed() -> None:
    """A bar must not show a file as done that is still read elsewhere."""
    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with opened(content, region_size=3 * MIB) as source:
        assert source.next_region() is None
        source.scan(buffer)
        source.share_regions(len(content))
        regions = []
        while (region := source.next_region()) is not None:
            regions.append(region)
        assert source.is_finished
        assert source.files_done == 0
        told = [(region, hashed) for region in regions for hashed in hashed_elsewhere(source, region, buffer)]
        for region, hashed in told:
            source.take_hashed(region, hashed)
        assert (len(content), 1) == (source.read, source.files_done)


def test_a_large_region_is_not_for_another_process() -> None:
    """It is scanned here, before the others, until the rest of it is small enough."""
    sizes = [MIB] * 8 + [16 * MIB] + [MIB] * 8
    content = safetensors_file(
        [Tensor(str(place), "I8", (size,), (CONTENT * 2)[place:][:size]) for place, size in enumerate(sizes)]
    )
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with opened(content, region_size=MIB) as source:
        source.scan(buffer)
        source.share_regions(8 * MIB)
        shared: list[bool] = []
        while not (shared and shared[-1]):
            shared.append(source.is_next_shared)
            if not shared[-1]:
                source.scan(buffer)
        assert [False, False, True] == shared
        largest = 0
        while (region := source.next_region()) is not None:
            largest = max(largest, region.size)
        assert 4 * MIB < largest <= 8 * MIB


def test_a_file_without_structure_stays_here() -> None:
    """It has one region, which several processes share window by window."""
    with opened(CONTENT, region_size=MIB) as source:
        source.scan(memoryview(bytearray(BUFFER_SIZE)))
        source.share_regions(5 * MIB)
        assert not source.is_next_shared
        assert source.next_region() is None


def test_what_another_process_could_not_write_back_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is written back before it is read there too. Where that fails, a later store may go unnoticed."""
    steps: list[tuple[str, int, int]] = []

    def write_back(_: int, start: int, size: int) -> bool:
        steps.append(("write back", start, size))
        return start < 10 * MIB

    def read(_: int, memory: memoryview, offset: int, path: Path) -> None:
        memory[:] = content[offset : offset + len(memory)]
        steps.append(("read", offset, len(memory)))

    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    monkeypatch.setattr(file_module, "writeback_of", lambda _: Writeback.PARTS)
    monkeypatch.setattr(file_module, "write_back_part", write_back)
    monkeypatch.setattr(file_module, "read_exactly", read)
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with opened(content, region_size=8 * MIB) as source:
        source.scan(buffer)
        source.share_regions(len(content))
        assert source.fingerprint()
        while (region := source.next_region()) is not None:
            for hashed in hashed_elsewhere(source, region, buffer):
                source.take_hashed(region, hashed)
        assert not source.fingerprint()
    tried = [step for step in steps if step[1] < 10 * MIB]
    assert all(tried[place - 1] == ("write back", *step[1:]) for place, step in enumerate(tried) if step[0] == "read")


def test_a_file_of_tensors_is_divided() -> None:
    """All threads get work as soon as the header is read, in regions of the size that is asked for, and less at the end."""
    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    with opened(content, region_size=3 * MIB) as source:
        buffer = memoryview(bytearray(BUFFER_SIZE))
        assert source.scan_limit(3) == 1
        source.scan(buffer)
        limits = []
        while not source.is_finished:
            limits.append(source.scan_limit(3))
            source.scan(buffer)
        assert limits[0] == 3
        assert limits[-1] == 1
        assert sorted(limits, reverse=True) == limits


def test_a_file_that_cannot_be_divided_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look takes time for each segment, of which a file may have very many, and a file has many windows."""
    looks: list[int] = []

    def look(boundaries: Sequence[int], start: int, end: int) -> list[int]:
        looks.append(start)
        return region_starts(boundaries, start, end)

    region_starts = file_module._region_starts
    monkeypatch.setattr(file_module, "_region_starts", look)
    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    with opened(content, region_size=20 * MIB) as source:
        assert expected(content) == scanned(source, 3)
    assert 1 == len(looks)


@given(st.lists(st.integers(1, 1 << 50), max_size=5000), st.integers(0, 1 << 40), st.sampled_from([1, 100, 64 * MIB]))
@settings(max_examples=30)
def test_regions_are_long_and_few(places: list[int], start: int, region_size: int) -> None:
    """Whatever the number of segments: each region takes memory."""
    end = 1 << 50
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(file_module, "REGION_SIZE", region_size)
        starts = file_module._region_starts(sorted(set(places) - {end}), start, end)
    assert len(starts) < 256
    assert all(after - before >= region_size for before, after in pairwise([start, *starts, end]))


def test_a_file_of_many_regions_is_divided_no_further() -> None:
    """A part of a TB is larger than one of a GB."""
    tebibyte = 1 << 40
    starts = file_module._region_starts(range(0, tebibyte, MIB), 0, tebibyte)
    assert 255 == len(starts)
    assert 1 << 32 == starts[0]


def test_one_thread_reads_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread, a file is never divided: the parts that are read follow each other."""
    reads: list[tuple[int, int]] = []

    def read(_: int, memory: memoryview, offset: int, path: Path) -> None:
        memory[:] = content[offset : offset + len(memory)]
        reads.append((offset, offset + len(memory)))

    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    monkeypatch.setattr(file_module, "read_exactly", read)
    with opened(content, region_size=1) as source:
        assert expected(content) == scanned(source, 1)
    assert reads[0][0] == 0
    assert len(content) == reads[-1][1]
    assert all(before[1] == after[0] for before, after in pairwise(reads))


def test_each_region_is_written_back_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store to a mapped file between a read and a later writeback would not be noticed, in whichever region it is."""
    steps: list[tuple[str, int, int]] = []

    def write_back(_: int, start: int, size: int) -> bool:
        steps.append(("write back", start, size))
        return True

    def read(_: int, memory: memoryview, offset: int, path: Path) -> None:
        memory[:] = content[offset : offset + len(memory)]
        steps.append(("read", offset, len(memory)))

    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    monkeypatch.setattr(file_module, "writeback_of", lambda _: Writeback.PARTS)
    monkeypatch.setattr(file_module, "write_back_part", write_back)
    monkeypatch.setattr(file_module, "read_exactly", read)
    with opened(content, region_size=3 * MIB) as source:
        scanned(source, 3)
    reads = [(start, size) for step, start, size in steps if step == "read"]
    assert len(content) == sum(size for _, size in reads)
    assert all(steps.index(("write back", *part)) < steps.index(("read", *part)) for part in reads)


def test_the_origin_of_a_window_has_its_content() -> None:
    """Each window says where its content is in the file, in every region."""
    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    with opened(content, region_size=3 * MIB) as source:
        buffer = memoryview(bytearray(BUFFER_SIZE))
        while not source.is_finished:
            source.scan_limit(3)
            for window in source.scan(buffer):
                assert window.origin is not None
                descriptor = window.origin.open()
                assert window.content == os.pread(descriptor, len(window.content), window.origin.offset)
                os.close(descriptor)


def test_a_region_that_fails_ends_the_scan(tmp_path: Path) -> None:
    """A file that becomes shorter is noticed in whichever region it is, and the source is not finished."""
    content = safetensors_file([Tensor(str(place), "I8", (MIB,), CONTENT[place:][:MIB]) for place in range(24)])
    with opened(content, region_size=3 * MIB) as source:
        buffer = memoryview(bytearray(BUFFER_SIZE))
        source.scan(buffer)
        assert source.scan_limit(3) == 3
        os.truncate(source.path, 20 * MIB)
        with pytest.raises(SourceChanged):
            scanned(source, 3)
        assert not source.is_finished
