"""Say what is wrong where an `async with` block is used without `async with`."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, Never, TypeVar

from filestore.errors import InvalidInput

T = TypeVar("T")


class AsyncBlock(AbstractAsyncContextManager[T], Generic[T]):
    """An `async with` block. Where it is used as the value that it gives, InvalidInput says how to write the block."""

    def __init__(self, block: AbstractAsyncContextManager[T], *, kind: type, how: str) -> None:
        """`kind` is the type of the value that `block` gives, and `how` the first line of such a block."""
        self._block = block
        self._kind = kind
        self._how = how

    async def __aenter__(self) -> T:
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, traceback)

    def __getattr__(self, name: str) -> Never:
        if not name.startswith("_") and hasattr(self._kind, name):
            raise self._refusal()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __await__(self) -> Never:
        raise self._refusal()

    def __enter__(self) -> Never:
        raise self._refusal()

    def __exit__(self, *_: object) -> None:
        """Never called: `with` needs it to get to `__enter__`."""

    def _refusal(self) -> InvalidInput:
        return InvalidInput(f"this call gives its value only to an `async with` block; write `async with {self._how}:`")
