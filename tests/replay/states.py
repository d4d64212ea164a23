"""Choose what a power cut keeps of the changes that are not durable."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.replay.disk import SECTOR_SIZE, Change, Rename, Tear, Write


class Choice(NamedTuple):
    """What a power cut keeps."""

    kept: tuple[Change, ...]
    tear: Tear | None = None


def choices(pending: Sequence[Change], sample: random.Random, *, limit: int | None) -> Iterator[Choice]:
    """Yield what a power cut may keep of `pending`, in order.

    Always: no change, and all. Then all, or only the last write, with the last write torn; and pairs, of which the later
    change is kept and the earlier one is not: with all others before the later one, and with none of them. `limit` is
    the most of these, of which a sample is taken. None means all.
    """
    yield Choice(())
    yield Choice(tuple(pending))
    torn = list(_torn(pending))
    count = len(pending)
    pairs = range(count * (count + 1) // 2)
    if limit is None or len(torn) + len(pairs) <= limit:
        yield from torn
        chosen: Sequence[int] = pairs
    else:
        # More of the pairs with the last change, because the others were pairs at earlier calls too.
        kinds = [kind for kind in (torn, pairs, pairs[-count:]) if kind]
        taken = [sample.choice(sample.choice(kinds)) for _ in range(limit)]
        yield from (each for each in taken if isinstance(each, Choice))
        chosen = [each for each in taken if isinstance(each, int)]
    for number in chosen:
        yield Choice(_possible(pending, _pair(pending, number)))


def _pair(pending: Sequence[Change], number: int) -> list[Change]:
    """Return what the choice with a number keeps. Each change has a choice for each earlier one, and one alone."""
    later = 0
    while number > later:
        number -= later + 1
        later += 1
    if number == later:
        return [pending[later]]
    return [*pending[:number], *pending[number + 1 : later + 1]]


def _possible(pending: Sequence[Change], kept: Sequence[Change]) -> tuple[Change, ...]:
    """Leave out what cannot be durable without a change that is dropped."""
    waiting = {change.number for change in pending}
    numbers = {change.number for change in kept}
    return tuple(
        change
        for change in kept
        if not (isinstance(change, Rename) and change.requires in waiting and change.requires not in numbers)
    )


def _torn(pending: Sequence[Change]) -> Iterator[Choice]:
    """Tear the last write, if it has several sectors: after the first one, in the middle, before the last one."""
    last = next((change for change in reversed(pending) if isinstance(change, Write)), None)
    if last is None:
        return
    end = last.offset + len(last.data)
    borders = range((last.offset // SECTOR_SIZE + 1) * SECTOR_SIZE, end, SECTOR_SIZE)
    for border in dict.fromkeys([borders[0], borders[len(borders) // 2], borders[-1]] if borders else []):
        for tear in (
            Tear(last.number, last.offset, border, is_sized=False),
            Tear(last.number, last.offset, border, is_sized=True),
            Tear(last.number, border, end, is_sized=True),
        ):
            yield Choice(tuple(pending), tear)
            yield Choice((last,), tear)
