"""Filters for the entries of a cache: `size>1GB`, `accessed>7d`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Self

from filestore_cli.settings import AGES, SIZE_WORDS, parse_size

_FILTER = re.compile(r"\s*(size|accessed)\s*(>=|<=|>|<)\s*(([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*))\s*\Z")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


class Filter(NamedTuple):
    """A condition that an entry of a cache must match to be listed or removed."""

    name: str
    comparison: str
    value: float
    """Bytes of disk, or seconds since the last use."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `size` or `accessed`, a comparison, a number and a unit. Raises ValueError."""
        match = _FILTER.match(text)
        if match is not None and match[1] == "size":
            with suppress(ValueError):
                return cls("size", match[2], parse_size(match[3], minimum=0))
        if match is None or match[1] == "size" or match[5] not in AGES:
            expected = f"size>1GB ({SIZE_WORDS}) or accessed>7d (units {', '.join(AGES)})"
            raise ValueError(f"{text!r} is not a filter; write one such as {expected}, with >, <, >= or <=")
        return cls("accessed", match[2], float(match[4]) * AGES[match[5]])

    def takes(self, *, stored_size: int, age: float) -> bool:
        """Return whether an entry of this size matches, if it was last used `age` seconds ago."""
        return _COMPARE[self.comparison](stored_size if self.name == "size" else age, self.value)
