"""Batches by size."""

from __future__ import annotations

import pytest

from filestore.core.batches import batched_by_size


@pytest.mark.parametrize(
    ("sizes", "limit", "count_limit", "expected"),
    [
        ([], 10, None, []),
        ([3, 3, 4], 10, None, [[3, 3, 4]]),
        ([3, 3, 5], 10, None, [[3, 3], [5]]),
        ([11, 12, 1], 10, None, [[11], [12], [1]]),
        ([1, 11, 1], 10, None, [[1], [11], [1]]),
        ([0, 0, 0], 0, None, [[0, 0, 0]]),
        ([1, 1, 1, 1, 1], 10, 2, [[1, 1], [1, 1], [1]]),
        ([9, 1, 1], 10, 2, [[9, 1], [1]]),
    ],
)
def test_batches_are_as_full_as_both_limits_allow(
    sizes: list[int], limit: int, count_limit: int | None, expected: list[list[int]]
) -> None:
    """What is larger than the limit is alone, and nothing is lost."""
    assert expected == list(batched_by_size(sizes, lambda size: size, limit=limit, count_limit=count_limit))


def test_first_batch_takes_one_item_more() -> None:
    """What comes later is not made yet."""
    items = iter(range(1, 100))
    assert [1, 2, 3] == next(batched_by_size(items, lambda size: size, limit=7))
    assert 5 == next(items)
