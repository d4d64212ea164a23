"""The CRC-32 of content."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest

from filestore.core.unlocked import measure_unlocked
from filestore.format.zip.checksum import crc32
from tests.support.generator import octets

CONTENT = octets(1, 200 << 10)


@pytest.mark.parametrize("size", [0, 1, (64 << 10) - 1, 64 << 10, 200 << 10])
def test_the_checksum_is_that_of_zlib(size: int) -> None:
    """Also if it goes on from the checksum of the bytes before."""
    assert zlib.crc32(CONTENT[:size]) == crc32(CONTENT[:size])
    assert zlib.crc32(b"before" + CONTENT[:size]) == crc32(memoryview(CONTENT)[:size], crc32(b"before"))


def test_only_large_content_is_measured() -> None:
    """A measurement takes as long as the checksum of a small file."""
    sizes: list[int] = []

    def measure(function: Callable[..., Any], args: tuple[Any, ...], times: int = 1) -> Any:
        sizes.append(len(args[0]))
        return function(*args)

    measure_unlocked(measure)
    try:
        for size in (1, 65_535, 65_536, 200_000):
            crc32(CONTENT[:size])
    finally:
        measure_unlocked(None)
    assert sizes == [65_536, 200_000]
