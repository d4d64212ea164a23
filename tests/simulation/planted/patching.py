"""Bring a known fault back by changing a few characters of the product's own code, for the length of a block.

A change names the text that it replaces. If the text is not there exactly once, the change raises: the code was
changed, and whoever changed it says how the fault would come back now.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType


class PatchDoesNotFitError(AssertionError):
    """The text that a planted fault replaces is not in the product's code exactly once."""


@contextmanager
def rewritten_function(owner: ModuleType | type, name: str, *, old: str, new: str) -> Iterator[None]:
    """Replace the text `old` by `new` in the source of a function of a module, or of a method of a class."""
    there = inspect.getattr_static(owner, name)
    function = there.__func__ if isinstance(there, classmethod | staticmethod) else there
    function = function.fget if isinstance(function, property) else function
    if not isinstance(function, FunctionType):
        raise PatchDoesNotFitError(f"{name} of {owner.__name__} is not a function")
    source = _rewritten(textwrap.dedent(inspect.getsource(function)), f"{owner.__name__}.{name}", old, new)
    made: dict[str, object] = {}
    code = compile(source, inspect.getfile(function), "exec", flags=__future__.annotations.compiler_flag)
    exec(code, function.__globals__, made)  # it is the product's own text
    setattr(owner, name, made[name])
    try:
        yield
    finally:
        setattr(owner, name, there)


@contextmanager
def rewritten_text(module: ModuleType, name: str, *, old: str, new: str) -> Iterator[None]:
    """Replace `old` by `new` in a text of a module, or in the one text of a tuple that has it."""
    before = getattr(module, name)
    after: str | tuple[str, ...]
    if isinstance(before, str):
        after = _rewritten(before, f"{module.__name__}.{name}", old, new)
    else:
        _rewritten("\n".join(before), f"{module.__name__}.{name}", old, new)
        after = tuple(each.replace(old, new) for each in before)
    setattr(module, name, after)
    try:
        yield
    finally:
        setattr(module, name, before)


def _rewritten(source: str, where: str, old: str, new: str) -> str:
    count = source.count(old)
    if count != 1:
        raise PatchDoesNotFitError(f"{where} has the text {old!r} {count} times; the planted fault needs it once")
    return source.replace(old, new)
