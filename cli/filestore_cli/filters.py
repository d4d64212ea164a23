"""Filters of what a cache holds: `size>1GB`, `accessed>7d`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import NamedTuple, Self

_FILTER = re.compile(r"\s*(size|accessed)\s*(>=|<=|>|<)\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_SIZES = {"": 1, "B": 1} | {
    unit: base**power
    for base, infix in ((1000, ""), (1024, "i"))
    for power, unit in enumerate([f"{p}{infix}B" for p in "KMGTP"], 1)
}
_SIZES["kB"] = _SIZES["KB"]
_AGES = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Filter(NamedTuple):
    """What an entry must be, to be listed or removed."""

    name: str
    comparison: str
    value: float
    """Bytes of disk, or seconds since the last use."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`size` or `accessed`, a comparison, a number and a unit. Raises ValueError."""
        match = _FILTER.match(text)
        units = {} if match is None else _SIZES if match[1] == "size" else _AGES
        if match is None or match[4] not in units:
            expected = f"size>1GB (units {', '.join(filter(None, _SIZES))}) or accessed>7d (units {', '.join(_AGES)})"
            raise ValueError(f"{text!r} is no filter; write one such as {expected}, with >, <, >= or <=")
        return cls(match[1], match[2], float(match[3]) * units[match[4]])

    def takes(self, *, stored_size: int, age: float) -> bool:
        """Whether something of so many bytes, last used so many seconds ago, is what is wanted."""
        return _COMPARE[self.comparison](stored_size if self.name == "size" else age, self.value)
