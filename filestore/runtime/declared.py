"""What a pipe's parameter is declared as, as far as files are concerned. Without I/O, and without the Pipeline SDK."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType

from filestore.core.records import Kind

_KINDS = {"File": Kind.FILE, "FileURL": Kind.FILE, "Directory": Kind.DIRECTORY}
_PACKAGES = ("filestore", "pipeline")


def kind_of_class(known: type) -> Kind | None:
    """What a class of ours, or of the Pipeline SDK, stands for, and each class that is made from one; else None."""
    for parent in known.__mro__:
        # By name: the SDK's package is not ours to import, and may not be there.
        if parent.__module__.partition(".")[0] in _PACKAGES and parent.__name__ in _KINDS:
            return _KINDS[parent.__name__]
    return None


def declared_kind(declared: object) -> Kind | None:
    """The kind of file that a parameter takes, which may be optional: that of `File`, `Directory` or `FileURL`; else None."""
    inner = _without_none(declared)
    return kind_of_class(inner) if isinstance(inner, type) and typing.get_origin(inner) is None else None


def allows_none(declared: object) -> bool:
    """Whether a parameter may be None, or is declared as nothing that says so."""
    return declared is None or NoneType in _members(declared)


def declared_item(declared: object) -> object:
    """What each item of a list is declared as; None where nothing says so."""
    return _argument(declared, Sequence, 0)


def is_list(declared: object) -> bool:
    """Whether a parameter takes a list."""
    return _is(declared, Sequence)


def declared_field(declared: object, key: object) -> object:
    """What a value of a dictionary is declared as: by `dict[..., X]`, or by a class whose annotations name its fields."""
    if _is(declared, Mapping):
        return _argument(declared, Mapping, 1)
    inner = _without_none(declared)
    if not isinstance(inner, type) or not isinstance(key, str):
        return None
    try:
        return typing.get_type_hints(inner).get(key)
    except (NameError, TypeError, SyntaxError):
        # An annotation that only its own module understands says nothing to us.
        return None


def _members(declared: object) -> tuple[object, ...]:
    """The members of a union."""
    return typing.get_args(declared) if typing.get_origin(declared) in {typing.Union, UnionType} else ()


def _without_none(declared: object) -> object:
    """What an optional parameter is when it is given; of a union of several classes, the first that is a file."""
    members = [member for member in _members(declared) if member is not NoneType]
    files = [member for member in members if isinstance(member, type) and kind_of_class(member) is not None]
    return (files or members or [declared])[0]


def _is(declared: object, abstract: type) -> bool:
    origin = typing.get_origin(_without_none(declared)) or _without_none(declared)
    return isinstance(origin, type) and issubclass(origin, abstract) and origin not in {str, bytes}


def _argument(declared: object, abstract: type, place: int) -> object:
    arguments = typing.get_args(_without_none(declared)) if _is(declared, abstract) else ()
    return arguments[place] if place < len(arguments) else None
