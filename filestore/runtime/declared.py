"""Read the declared types of a pipe's parameters, which say which values are files.

No I/O, and no import of the Pipeline SDK.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType

from filestore.core.records import Kind

_KINDS = {"File": Kind.FILE, "FileURL": Kind.FILE, "Directory": Kind.DIRECTORY}
_PACKAGES = ("filestore", "pipeline")


def kind_of_class(known: type) -> Kind | None:
    """Return the kind of file that a class stands for, or None.

    The class is one of filestore or the Pipeline SDK, or a subclass of one.
    """
    for parent in known.__mro__:
        # Compare names: the SDK may not be installed, and must not be imported here.
        if parent.__module__.partition(".")[0] in _PACKAGES and parent.__name__ in _KINDS:
            return _KINDS[parent.__name__]
    return None


def declared_kind(declared: object) -> Kind | None:
    """Return the kind of file that a parameter takes, or None if it does not take a file.

    The parameter is declared as `File`, `Directory` or `FileURL`, and may be optional.
    """
    inner = _without_none(declared)
    return kind_of_class(inner) if isinstance(inner, type) and typing.get_origin(inner) is None else None


def allows_none(declared: object) -> bool:
    """Return whether a parameter may be None. A parameter without a declared type may be None."""
    return declared is None or NoneType in _members(declared)


def declared_item(declared: object) -> object:
    """Return the declared type of a list's items, or None if it is not declared."""
    return _argument(declared, Sequence, 0)


def is_list(declared: object) -> bool:
    """Return whether a parameter takes a list."""
    return _is(declared, Sequence)


def declared_field(declared: object, key: object) -> object:
    """Return the declared type of the value at `key` in a dictionary, or None if it is not declared.

    The dictionary is declared as `dict[..., X]`, or as a class whose annotations name the fields.
    """
    if _is(declared, Mapping):
        return _argument(declared, Mapping, 1)
    inner = _without_none(declared)
    if not isinstance(inner, type) or not isinstance(key, str):
        return None
    try:
        return typing.get_type_hints(inner).get(key)
    except (NameError, TypeError, SyntaxError):
        # The annotation can be evaluated only in its own module, so the type counts as not declared.
        return None


def _members(declared: object) -> tuple[object, ...]:
    """Return the members of a union, or nothing for any other type."""
    return typing.get_args(declared) if typing.get_origin(declared) in {typing.Union, UnionType} else ()


def _without_none(declared: object) -> object:
    """Return the type of an optional parameter without None.

    For a union of classes, this is the first one that is a file.
    """
    members = [member for member in _members(declared) if member is not NoneType]
    files = [member for member in members if isinstance(member, type) and kind_of_class(member) is not None]
    return (files or members or [declared])[0]


def _is(declared: object, abstract: type) -> bool:
    origin = typing.get_origin(_without_none(declared)) or _without_none(declared)
    return isinstance(origin, type) and issubclass(origin, abstract) and origin not in {str, bytes}


def _argument(declared: object, abstract: type, place: int) -> object:
    arguments = typing.get_args(_without_none(declared)) if _is(declared, abstract) else ()
    return arguments[place] if place < len(arguments) else None
