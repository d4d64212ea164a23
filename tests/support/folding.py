"""Simulate a file system that ignores the case of names, as those of macOS and Windows do.

The files are real, and so is exclusive creation. A name relative to a folder's descriptor is first looked up as such a
file system does; then the operating system sees it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_CALLS = ("open", "mkdir", "stat", "readlink", "unlink", "symlink")


@contextmanager
def names_without_case() -> Iterator[None]:
    """Ignore the case of names during the block."""
    with pytest.MonkeyPatch.context() as patch:
        plain_open = os.open
        for name in _CALLS:
            patch.setattr(os, name, _folding(getattr(os, name), plain_open, place=int(name == "symlink")))
        yield


def _folding(call: Callable[..., Any], plain_open: Callable[..., int], *, place: int) -> Callable[..., Any]:
    def folded(*arguments: Any, dir_fd: int | None = None, **options: Any) -> Any:
        if dir_fd is None:
            return call(*arguments, **options)
        found = list(arguments)
        found[place] = _kept(os.fspath(arguments[place]), dir_fd, plain_open)
        return call(*found, dir_fd=dir_fd, **options)

    return folded


def _kept(path: str, root: int, plain_open: Callable[..., int]) -> str:
    """Return the path under which the same thing exists already, as far as it exists."""
    found = ""
    for part in path.split("/"):
        try:
            folder = plain_open(found or ".", os.O_RDONLY, dir_fd=root)
        except OSError:
            return path
        try:
            names = os.listdir(folder)  # noqa: PTH208  # of a descriptor
        except NotADirectoryError:
            return path
        finally:
            os.close(folder)
        same = part if part in names else next((name for name in names if name.casefold() == part.casefold()), part)
        found = f"{found}/{same}" if found else same
    return found
