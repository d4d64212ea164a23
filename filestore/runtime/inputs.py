"""Find the files in a run's `input_data`, and note the position of each in the arguments. No I/O.

The declared types of the pipe's parameters say which values are files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from filestore.core.records import Kind
from filestore.core.references import Directory, File
from filestore.errors import InvalidInput
from filestore.runtime.declared import allows_none, declared_field, declared_item, declared_kind, is_list
from filestore.runtime.errors import InvalidRun
from filestore.runtime.own_urls import OwnUrls
from filestore.runtime.values import Stored, for_display

Make = Callable[[Kind, Path], object]
"""A function that makes the value which a pipe gets for a local path: the path itself, or an object of the declared
class.
"""

DEPTH_LIMIT = 64
"""How deep lists and dictionaries may be inside each other. InvalidRun is raised for more."""

TEXT_LIMIT = 8192
"""The largest number of characters in a path or a URL. InvalidRun is raised for more."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    # The SDK calls booleans integers, and uses pkl for types that it cannot name. A value of type pkl is plain JSON
    # here.
    "integer": (int,),
    "fp": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "none": (type(None),),
    "dictionary": (dict,),
    "array": (list,),
    "pkl": (object,),
}


class InputFile(NamedTuple):
    """A file and its position in the arguments of a run."""

    container: Any
    """The list or the dictionary that holds the file."""
    key: Any
    wanted: Stored
    kind: Kind


class Inputs:
    """The arguments of one run without their files. `places` lists the files that must be resolved and put in."""

    def __init__(self, input_data: object, declared: Sequence[object] | None, *, own_urls: OwnUrls) -> None:
        """`own_urls` recognises the URLs of the repository's own server. Raises InvalidRun."""
        self.places: list[InputFile] = []
        self._own_urls = own_urls
        if not isinstance(input_data, list):
            raise InvalidRun("input_data", f"it is {for_display(input_data)}; a list of inputs is expected")
        if declared is not None and len(declared) != len(input_data):
            raise InvalidRun("input_data", f"it has {len(input_data)} inputs, but the pipeline takes {len(declared)}")
        self.arguments: list[object] = [None] * len(input_data)
        for place, given in enumerate(input_data):
            self._add_input(place, given, None if declared is None else declared[place])

    def _add_input(self, place: int, given: object, declared: object) -> None:
        where = f"input_data[{place}]"
        if not isinstance(given, dict):
            raise InvalidRun(
                where, f'it is {for_display(given)}; an object such as {{"type": "string", "value": "..."}} is expected'
            )
        if given.get("type") == "file" or _names_file(given):
            self._add_file(self.arguments, place, given, declared, where)
            return
        known = given.get("type")
        if not isinstance(known, str) or known not in _TYPES:
            types = ", ".join(sorted({*_TYPES, "file"}))
            raise InvalidRun(where, f"its type is {for_display(known)}; allowed are {types}")
        value = given.get("value")
        # A parameter that may be None accepts null for every type.
        if value is not None and not isinstance(value, _TYPES[known]):
            raise InvalidRun(where, f"its type is {known}, but its value is {for_display(value)}")
        if value is None and known not in {"none", "pkl"} and not allows_none(declared):
            raise InvalidRun(where, f"its type is {known}, but it has no value")
        self._add(self.arguments, place, value, declared, f"{where}.value")

    def _add(self, container: Any, key: Any, value: object, declared: object, where: str, *, depth: int = 0) -> None:
        """Put a value into the arguments, without the files in it."""
        if depth > DEPTH_LIMIT:
            raise InvalidRun(where[:100], f"it is nested more than {DEPTH_LIMIT} levels deep")
        if isinstance(value, dict) and _names_file(value):
            self._add_file(container, key, value, declared, where)
        elif value is None and allows_none(declared):
            container[key] = None
        elif declared_kind(declared) is not None:
            raise InvalidRun(
                where, f'it is {for_display(value)}; a file such as {{"type": "file", "file_path": "..."}} is expected'
            )
        elif isinstance(value, dict | list):
            container[key] = copied = copy(value)
            for part, inner, inner_declared in _parts(value, declared):
                self._add(copied, part, inner, inner_declared, f"{where}[{for_display(part)}]", depth=depth + 1)
        elif is_list(declared):
            raise InvalidRun(where, f"it is {for_display(value)}; a list is expected")
        else:
            container[key] = value

    def _add_file(self, container: Any, key: Any, given: Mapping[str, object], declared: object, where: str) -> None:
        if is_list(declared):
            raise InvalidRun(where, "it is one file; a list of files is expected")
        kind = declared_kind(declared) or Kind.FILE
        try:
            self.places.append(InputFile(container, key, self._wanted(given, kind, where), kind))
        except InvalidInput as error:
            raise error if isinstance(error, InvalidRun) else InvalidRun(where, str(error)) from None

    def _wanted(self, given: Mapping[str, object], kind: Kind, where: str) -> Stored:
        """Return the reference of a file. Raises InvalidRun, InvalidInput."""
        named = list(_named(given))
        for text in named:
            if not isinstance(text, str):
                raise InvalidRun(where, f"its file_path or file_url is {for_display(text)}; a text is expected")
            if len(text) > TEXT_LIMIT:
                raise InvalidRun(where, f"its file_path or file_url has {len(text)} characters; allowed are {TEXT_LIMIT}")
        if not named:
            raise InvalidRun(where, "it is a file, but has neither a file_path nor a file_url")
        make = Directory if kind is Kind.DIRECTORY else File
        text = str(named[0])
        if "://" in text:
            return self._own_urls.stored(make(url=text))
        wanted = make(text)
        _ = wanted.reference  # raises an error for an invalid path before anything is fetched
        return wanted


def _parts(value: dict[str, object] | list[object], declared: object) -> Iterator[tuple[str | int, object, object]]:
    """Yield the items of a dictionary or a list that may be a file or contain one.

    Each is yielded as its key, its value and its declared type.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name, inner, declared_field(declared, name)
        return
    item = declared_item(declared)
    for place, inner in enumerate(value):
        # Do not visit each item of a list of a million numbers.
        if item is not None or isinstance(inner, dict | list):
            yield place, inner, item


def _names_file(given: Mapping[Any, object]) -> bool:
    """Return whether a dictionary stands for a file: it has a file's type and a member that may name one."""
    known = given.get("type")
    if known == "file":
        return "file_path" in given or "file_url" in given
    return known == "pkl" and any(True for _ in _named(given))


def _named(given: Mapping[Any, object]) -> Iterator[object]:
    """Yield the names of a file, the path before the URL.

    The path is first, because it holds the digest, and the file may be in the cache.
    """
    return (given[member] for member in ("file_path", "file_url") if given.get(member) not in (None, ""))
