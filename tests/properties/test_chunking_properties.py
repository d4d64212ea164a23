from __future__ import annotations

from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.core.manifest import CHUNK_LIMIT
from filestore.format.chunking import LOOKAHEAD
from tests.support.chunking import boundaries, chunk_sizes, relayed_sizes
from tests.support.generator import octets, prose
from tests.support.models import Tensor, ZipEntry, gguf_file, safetensors_file, tensor, torch_file, zip_file

SIZES = st.one_of(st.integers(0, 3000), st.integers(200_000, 400_000))
OCTETS = octets(77, 400_000)
FEW = settings(max_examples=60)


@st.composite
def tensors(draw: st.DrawFn) -> list[Tensor]:
    """Up to 4 tensors, large and small."""
    sizes = draw(st.lists(SIZES, max_size=4))
    return [Tensor(f"t{place}", "I8", (size,), OCTETS[:size]) for place, size in enumerate(sizes)]


@st.composite
def archives(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Zip files of up to 4 entries, written in every way."""
    flags = st.booleans()
    entry = st.builds(
        ZipEntry, st.text("ab", max_size=5), contents, deflated=flags, sizes_behind=flags, wide=flags, encrypted=flags
    )
    return zip_file(draw(st.lists(entry, max_size=4)))


LEAVES = st.one_of(
    SIZES.map(lambda size: OCTETS[:size]),
    tensors().map(safetensors_file),
    tensors().map(gguf_file),
    tensors().map(torch_file),
)
FILES = st.one_of(LEAVES, archives(LEAVES), archives(archives(LEAVES)))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Files of every kind, some cut short, some with bytes changed near their beginning."""
    content = bytearray(draw(FILES))
    del content[draw(st.one_of(st.just(len(content)), st.integers(0, len(content)))) :]
    for place, value in draw(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=3)):
        if place < len(content):
            content[place] = value
    return bytes(content)


@st.composite
def split(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> tuple[bytes, list[int]]:
    """A content, and the ends of the pieces that it comes in."""
    content = draw(contents)
    size = len(content)
    near = st.integers(-70, 70).map(lambda distance: min(max(0, distance % (size + 1)), size))
    ends = draw(st.lists(st.one_of(st.integers(0, size), near), max_size=30))
    return content, sorted([*ends, size])


@pytest.mark.slow
@FEW
@given(split(damaged_files()))
def test_any_split_gives_the_same_segments(case: tuple[bytes, list[int]]) -> None:
    """Boundaries depend on the content alone, also where it is broken, and never run backwards."""
    content, ends = case
    whole = boundaries(content, [len(content)])
    assert whole == boundaries(content, ends)
    assert sorted(set(whole)) == whole


@cache
def large_files() -> list[bytes]:
    """Files of several times the lookahead: a cutter decides the chunks of each in many steps."""
    weights = [tensor(str(seed), 700 + 300 * seed, 1000, seed=seed) for seed in range(4)]
    return [
        octets(1, 3 * LOOKAHEAD),
        bytes(3 * LOOKAHEAD),
        safetensors_file([*weights, tensor("large", 2048, 2048, seed=9)]),
        torch_file([*weights, tensor("large", 2048, 2048, seed=9)]),
        zip_file([ZipEntry("a.gguf", gguf_file(weights)), ZipEntry("b.txt", prose(1, LOOKAHEAD), sizes_behind=True)]),
        zip_file([ZipEntry(str(place), OCTETS[:250_000], sizes_behind=True) for place in range(60)]),
    ]


@pytest.mark.slow
@FEW
@given(split(st.integers(0, 5).map(lambda place: large_files()[place])))
def test_any_split_gives_the_same_chunks(case: tuple[bytes, list[int]]) -> None:
    """Chunks depend on the content alone; every boundary ends one; they add up to the file; none is empty or too large."""
    content, ends = case
    sizes = chunk_sizes(content, ends)
    assert chunk_sizes(content, [len(content)]) == sizes
    assert len(content) == sum(sizes)
    assert set(boundaries(content, [len(content)])) <= set(accumulate(sizes))
    assert all(0 < size <= CHUNK_LIMIT for size in sizes)


@settings(max_examples=20)
@given(split(st.integers(0, len(large_files()) - 1).map(lambda place: large_files()[place])))
def test_whoever_cuts_where_another_one_stopped_cuts_the_same_chunks(case: tuple[bytes, list[int]]) -> None:
    """A chunk's end depends on no other chunk: what was cut elsewhere is looked through for boundaries only."""
    content, ends = case
    assert chunk_sizes(content, [len(content)]) == relayed_sizes(content, ends)


@pytest.mark.slow
@FEW
@given(damaged_files())
def test_whatever_a_file_holds_all_of_it_is_cut(content: bytes) -> None:
    """No structure, true or broken, makes chunks that do not add up, or raises."""
    sizes = chunk_sizes(content, [len(content)])
    assert len(content) == sum(sizes)
    assert all(0 < size <= CHUNK_LIMIT for size in sizes)
