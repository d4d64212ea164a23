"""Numbers by name and labels that a process writes and other processes read, in memory that they share.

The memory holds the number of bytes in use, and then entries. Each has a value, the length of its key, and the key: the
name and the labels in UTF-8, with a separator between them, filled up to a multiple of eight bytes. An entry never
moves, and is there only when the bytes in use say so. So a reader needs no lock, and a writer that is killed leaves no
half of an entry.
"""

from __future__ import annotations

import threading

KEYS_SIZE = 256 << 10
"""Bytes of memory for the numbers of a process. A page of it that is not needed is never made."""
_SEPARATOR = "\x1f"
_WORD = 8
_FIRST = 2
"""The word at which the first entry begins."""

Key = tuple[str, ...]
"""The name of a number, and the values of its labels."""


class Numbers:
    """The numbers of one process. All its threads may change them."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """Use `memory`, which may hold numbers already, or new memory."""
        if memory is None:
            memory = memoryview(bytearray(KEYS_SIZE))
        self._bytes = memory.cast("B")
        # Doubles and words of eight bytes are read and written in one step.
        self._values = self._bytes.cast("d")
        self._words = self._bytes.cast("q")
        self._lock = threading.Lock()
        self._places: dict[Key, int] = {}
        self._end = _FIRST
        """The word after the last entry that is known."""
        self._read()

    @property
    def left_out(self) -> int:
        """How often a number was not kept because the memory was full."""
        return self._words[1]

    def add(self, key: Key, amount: float = 1.0) -> None:
        """Add `amount` to a number, which begins with 0."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                place = self._make(key)
            if place:
                self._values[place] += amount

    def set(self, key: Key, value: float) -> None:
        """Set a number."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                place = self._make(key)
            if place:
                self._values[place] = value

    def all(self) -> dict[Key, float]:
        """Return all numbers. Another process may write them."""
        with self._lock:
            self._read()
            return {key: self._values[place] for key, place in self._places.items()}

    def _make(self, key: Key) -> int:
        """Append an entry with the value 0. Return the word of its value, or 0 if the memory is full."""
        encoded = _SEPARATOR.join(key).encode()
        place = self._end
        end = place + 2 + -(-len(encoded) // _WORD)
        if end > len(self._words):
            self._words[1] += 1
            return 0
        start = (place + 2) * _WORD
        self._values[place] = 0.0
        self._words[place + 1] = len(encoded)
        self._bytes[start : start + len(encoded)] = encoded
        # Last: a reader that sees this sees the whole entry.
        self._words[0] = self._end = end
        self._places[key] = place
        return place

    def _read(self) -> None:
        """Find the entries that were made since the last call, by whichever process."""
        while self._end < self._words[0]:
            place, size = self._end, self._words[self._end + 1]
            start = (place + 2) * _WORD
            key = bytes(self._bytes[start : start + size]).decode()
            self._places[tuple(key.split(_SEPARATOR))] = place
            self._end = place + 2 + -(-size // _WORD)
