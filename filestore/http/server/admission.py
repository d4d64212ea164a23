"""Whether a connection is accepted, and what it counts for until it ends."""

from __future__ import annotations

from collections.abc import Callable


class Admission:
    """What a server process has decided about one connection."""

    def __init__(self, refusal: str | None, *, may_answer: bool, release: Callable[[], None]) -> None:
        """`refusal` says why the connection is refused, if it is. `release` is called once, when it has ended."""
        self.refusal = refusal
        self.may_answer = may_answer
        """Whether the client gets an answer. Otherwise the connection is closed before a byte is read."""
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Count the connection no longer."""
        if self._release is not None:
            self._release()
            self._release = None
