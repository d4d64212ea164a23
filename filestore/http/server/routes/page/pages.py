"""A long list, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cut(Generic[T]):
    """One page of a list."""

    rows: Sequence[T]
    count: int
    """How many rows the whole list has."""
    number: int
    """The number of this page, from 1 on."""
    last: int
    """The number of the last page, at least 1."""

    @classmethod
    def of(cls, rows: Sequence[T], asked: str | None, *, limit: int) -> Cut[T]:
        """Return the page of `rows` whose number a query has, or the nearest one that exists."""
        last = max(1, -(-len(rows) // limit))
        number = int(asked) if asked is not None and asked.isascii() and asked.isdigit() and len(asked) < 10 else 1
        number = min(max(1, number), last)
        return cls(rows[(number - 1) * limit : number * limit], len(rows), number, last)
