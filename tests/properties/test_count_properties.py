"""How many chunks our own chunker makes of content that wants many: far fewer than a repository refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filestore.format.chunking.segments import SEGMENT_MIN
from filestore.repository.manifest_check import COUNT_SIZE, count_limit
from tests.support.chunking import chunk_sizes
from tests.support.generator import octets
from tests.support.models import Tensor, ZipEntry, gguf_file, safetensors_file, torch_file, zip_file

OCTETS = octets(5, SEGMENT_MIN + 1)
MARGIN = 20
"""The worst content has so many times fewer chunks than the limit permits for each byte."""


def tensors(sizes: list[int]) -> list[Tensor]:
    """Tensors of these sizes."""
    return [Tensor(f"t{place}", "I8", (size,), OCTETS[:size]) for place, size in enumerate(sizes)]


def entries(contents: list[bytes], *, sizes_behind: bool = False) -> list[ZipEntry]:
    """Entries with these contents."""
    return [ZipEntry(str(place), content, sizes_behind=sizes_behind) for place, content in enumerate(contents)]


def nested(sizes: list[int]) -> bytes:
    """A zip of zips of safetensors files, each of one tensor: every header is between two segments."""
    leaf = [safetensors_file(tensors([size])) for size in sizes]
    return zip_file(entries([zip_file(entries([content])) for content in leaf]))


FORMS: dict[str, Callable[[list[int]], bytes]] = {
    "octets": lambda sizes: b"".join(OCTETS[:size] for size in sizes),
    "safetensors": lambda sizes: safetensors_file(tensors(sizes)),
    "gguf": lambda sizes: gguf_file(tensors(sizes)),
    "torch": lambda sizes: torch_file(tensors(sizes)),
    "zip": lambda sizes: zip_file(entries([OCTETS[:size] for size in sizes])),
    "streamed zip": lambda sizes: zip_file(entries([OCTETS[:size] for size in sizes], sizes_behind=True)),
    "nested zip": nested,
    "zip of safetensors": lambda sizes: zip_file(entries([safetensors_file(tensors(sizes))])),
}
SIZES = st.one_of(st.integers(0, 100), st.integers(SEGMENT_MIN - 2, SEGMENT_MIN + 1))


def check(content: bytes) -> int:
    """Check the number of chunks of a content. Return it."""
    count = len(chunk_sizes(content, [len(content)]))
    # The few chunks around the whole content, and those that its size permits.
    assert count <= 16 + len(content) / (MARGIN * COUNT_SIZE)
    assert count < count_limit(len(content))
    return count


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(sizes=st.lists(SIZES, max_size=20))
def test_no_content_makes_many_chunks(form: str, sizes: list[int]) -> None:
    """Tensors and entries of no bytes, of few, and just at the size of a segment, in any order."""
    check(FORMS[form](sizes))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "sizes", [[SEGMENT_MIN] * 100, [SEGMENT_MIN, 1] * 100, [SEGMENT_MIN - 1] * 100, [1] * 20_000, [0] * 20_000]
)
def test_the_worst_content_makes_few_chunks(form: str, sizes: list[int]) -> None:
    """Small pieces are in one chunk together, so the worst case are segments of the least size with headers between them."""
    if form == "torch" and len(sizes) > 1000:
        sizes = sizes[:2000]
    check(FORMS[form](sizes))
