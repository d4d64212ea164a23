"""What a fuzz target is: a function that gives bytes to a parser, and what must hold of the result."""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFault:
    """A check that is taken out of a parser, so that a target must find it: `old` becomes `new` in one function."""

    owner: ModuleType | type
    function: str
    old: str
    new: str

    def planted(self) -> AbstractContextManager[None]:
        """Bring the fault in for the length of a block. Raises PatchDoesNotFitError if the code was changed."""
        # Its package imports much of the library, which a fuzzer without a fault does without.
        from tests.simulation.planted.patching import rewritten_function

        return rewritten_function(self.owner, self.function, old=self.old, new=self.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A parser of bytes from outside, and what it may do with any bytes.

    check: Gives the bytes to the parser. It raises AssertionError if a property of the result does not hold.
    errors: What the parser may raise. Any other exception is a fault.
    seeds: Makes the inputs that the fuzzer begins with, from real content.
    fault: A length, a number or a form that is no longer checked. The fuzzer must find it within a minute.
    parses: The module that has the parser, and others whose coverage guides the fuzzer.
    size_limit: The largest input in bytes.
    """

    check: Callable[[bytes], None]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], Iterable[bytes]]
    fault: PlantedFault
    parses: tuple[str, ...]
    size_limit: int = 4096

    def run(self, data: bytes) -> None:
        """Give an input to the parser. Raises what is a fault: AssertionError, or an error that is not declared."""
        with suppress(*self.errors):
            self.check(data)


def pieces_of(data: bytes) -> list[bytes]:
    """Cut an input into pieces of sizes that depend on it: one byte, a few, many."""
    sizes = (1, 3, 7, 30, 64, 255) if len(data) % 2 else (9, 100, 2, 1000)
    pieces, start, turn = [], 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[start : start + size])
        start, turn = start + size, turn + 1
    return pieces


def text_of(data: bytes) -> str:
    """Return an input as the text of a header field: bytes that are not UTF-8 become lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def run(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine. All of them share one event loop, because to make one takes longer than most parsers."""
    return _loop().run_until_complete(work)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def scratch_folder() -> Path:
    """Return a folder of this process for the files that a parser reads. It is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="filestore-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
