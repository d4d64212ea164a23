# ruff: noqa: UP006, UP007, UP035, UP045  # parameters are declared as users of older Pythons declare them, too
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Dict, List, Optional, Tuple, Union

import pytest

from filestore import Directory, File, FileURL
from filestore.core.records import Kind
from filestore.runtime.declared import allows_none, declared_field, declared_item, declared_kind, is_list
from tests.support import sdk_values


class Mine(sdk_values.InputSchema):
    """A class of inputs, as users write one."""

    image: sdk_values.File | None
    models: list[sdk_values.Directory]
    size: int


class Broken:
    """A class whose annotations only its own module understands."""

    image: "Nowhere"  # type: ignore[name-defined]  # noqa: F821, UP037  # that is the point


class Stranger:
    """A class that is called `File` by accident."""


Stranger.__name__ = "File"


class Better(sdk_values.Directory):
    """A class that is made from one of the SDK's."""


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        (File, Kind.FILE),
        (FileURL, Kind.FILE),
        (Directory, Kind.DIRECTORY),
        (sdk_values.File, Kind.FILE),
        (sdk_values.FileURL, Kind.FILE),
        (sdk_values.Directory, Kind.DIRECTORY),
        (Better, Kind.DIRECTORY),
        (Optional[File], Kind.FILE),
        (Directory | None, Kind.DIRECTORY),
        (Union[None, str, File], Kind.FILE),
        (Stranger, None),
        (list[File], None),
        (int, None),
        (None, None),
        (Any, None),
        ("File", None),
        (File("name"), None),
    ],
)
def test_the_kind_of_a_parameter(declared: object, kind: Kind | None) -> None:
    """It follows from the class (ours, the SDK's, or a subclass), and is None for anything but a single file."""
    assert kind == declared_kind(declared)


@pytest.mark.parametrize(
    "declared", [list[File], List[File], Sequence[File], Optional[List[File]], tuple[File, ...], Tuple[File]]
)
def test_the_items_of_a_list(declared: object) -> None:
    """However it is spelt."""
    assert (True, Kind.FILE) == (is_list(declared), declared_kind(declared_item(declared)))


@pytest.mark.parametrize("declared", [None, str, bytes, dict[str, File], File, int | None])
def test_what_is_not_a_list(declared: object) -> None:
    """A text is none either."""
    assert (False, None) == (is_list(declared), declared_item(declared))


@pytest.mark.parametrize(
    ("declared", "key", "kind"),
    [
        (dict[str, File], "any", Kind.FILE),
        (Dict[str, Directory], "any", Kind.DIRECTORY),
        (Mapping[str, File] | None, "any", Kind.FILE),
        (Mine, "image", Kind.FILE),
        (Mine | None, "image", Kind.FILE),
        (Mine, "size", None),
        (Mine, "nothing", None),
        (Broken, "image", None),
        (dict, "any", None),
        (dict[str, int], "any", None),
        (None, "any", None),
    ],
)
def test_the_fields_of_a_dictionary(declared: object, key: str, kind: Kind | None) -> None:
    """By `dict[...]` or by the annotations of a class."""
    assert kind == declared_kind(declared_field(declared, key))


def test_a_field_that_is_a_list() -> None:
    """The items have the type that the annotation gives."""
    assert Kind.DIRECTORY == declared_kind(declared_item(declared_field(Mine, "models")))


@pytest.mark.parametrize(
    ("declared", "allowed"), [(None, True), (File | None, True), (Optional[int], True), (File, False), (int, False)]
)
def test_whether_none_will_do(declared: object, allowed: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """A parameter without an annotation accepts None."""
    assert allowed is allows_none(declared)
