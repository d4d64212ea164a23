"""How reads of PostgreSQL about many digests are divided."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from filestore.repository.index.postgres.parts import read_parts


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, [0]), (1, [1]), (1024, [1024]), (1025, [1024, 1]), (4096, [1024] * 4), (10_001, [2501, 2501, 2501, 2498])],
)
async def test_parts_are_few_and_large(count: int, sizes: list[int]) -> None:
    """Also nothing is a part, so that a call of an index that is closed fails."""

    async def read(part: Sequence[int]) -> Sequence[int]:
        return part

    found = await read_parts(read, range(count))
    assert sizes == [len(part) for part in found]
    assert list(range(count)) == [number for part in found for number in part]
