"""What a token permits. A scope contains all scopes below it."""

from __future__ import annotations

from enum import IntEnum
from typing import Self

from filestore.errors import InvalidInput


class Scope(IntEnum):
    """A scope of a token. `write` permits to add files, and not to remove or change any."""

    READ = 1
    WRITE = 2
    DELETE = 3
    ADMIN = 4

    def __str__(self) -> str:
        return self.name.lower()

    def permits(self, needed: Scope) -> bool:
        """Return whether a token with this scope may do what needs the scope `needed`."""
        return self >= needed

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the scope with this name. Raises InvalidInput."""
        for scope in cls:
            if str(scope) == text:
                return scope
        raise InvalidInput(f"the scope {text!r} does not exist; give one of {', '.join(map(str, cls))}")
