"""What `filestore` exports: each name is documented, has a docstring, and is what it is called whatever was imported before."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest

import filestore
from filestore import blocking, errors

REPOSITORY = Path(__file__).parents[2]
DOC = REPOSITORY / "docs/python.md"
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
RAISES = re.compile(r"Raises (.*?)(?:\n\s*\n|\Z)", re.DOTALL)
HUMPS = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b|\bBusy\b|\bStalled\b|\bInterrupted\b|\bUnauthorized\b|\bUnreachable\b")
OTHER_NAMES = {"FetchTreeResult", "StreamingFile", "TensorFile"}
"""Names with two humps that are no errors, and that a list of errors may mention."""
RAISES_NOTHING = {
    "FileURL.redacted_url",
    "FileURL.name",
    "FileURL.expected",
    "File.origin",
    "Directory.origin",
    "Reference.means",
    "Reference.versions_back",
    "Reference.digits",
    "Reference.full_name",
    "Reference.of_name",
    "Reference.without_entry",
    "Record.full_name",
    "Record.path",
    "Record.run_path",
    "Record.as_json",
    "Commit.as_json",
    "Label.as_json",
    "Repository.lending",
    "Repository.opening",
    "Repository.transfer_limits",
    "StreamingFile.size",
    "StreamingFile.whole",
    "StreamingFile.ready",
    "StreamingFile.close",
    "Cache.close",
    "Cache.after_fork",
    "PushCache.after_fork",
    "PushCache.close",
    "PushCache.find",
    "PushCache.record",
    "Repository.location",
    "Repository.fingerprint",
    "Repository.waited_seconds",
    "Repository.waited_because",
    "Repository.asked_pause",
    "Repository.close",
    "blocking.Repository.location",
    "blocking.StreamingFile.size",
    "blocking.Cache.close_in_loop",
}
"""What has no error of its own to tell of."""

CLASSES = {name: value for name in filestore.__all__ if isinstance(value := getattr(filestore, name), type)}
FUNCTIONS = {name: value for name in filestore.__all__ if inspect.isfunction(value := getattr(filestore, name))}


def fields_of(kind: type) -> list[str]:
    """Return the public fields of a dataclass or of a named tuple, or the members of an enumeration."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]
    if issubclass(kind, Enum):
        return [member.name for member in kind]
    return list(getattr(kind, "_fields", ()))


VALUES = {name: fields for name, value in CLASSES.items() if (fields := fields_of(value))}


def public(owner: str, kind: type) -> Iterator[tuple[str, Callable[..., object]]]:
    """The public methods and properties that a class of ours has, by dotted names."""
    for name, value in inspect.getmembers(kind):
        function = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("filestore"):
            yield f"{owner}.{name}", function


def callables() -> dict[str, Callable[..., object]]:
    """Every exported function, and every public method of an exported class, of `filestore` and of its blocking module."""
    found: dict[str, Callable[..., object]] = dict(FUNCTIONS)
    for name, kind in CLASSES.items():
        if not issubclass(kind, Enum | errors.FilestoreError):
            found.update(public(name, kind))
    for name in blocking.__all__:
        value = getattr(blocking, name)
        if getattr(value, "__module__", "") != "filestore.blocking":
            continue
        if isinstance(value, type):
            found.update(public(f"blocking.{name}", value))
        else:
            found[f"blocking.{name}"] = value
    return found


CALLABLES = callables()


def test_what_is_exported_is_what_is_documented() -> None:
    """`__all__`, the rows of docs/python.md, and what can be imported are the same names, in alphabetical order."""
    assert sorted(filestore.__all__) == sorted(ROW.findall(DOC.read_text()))
    assert sorted(filestore.__all__) == filestore.__all__ == dir(filestore)
    assert [] == [name for name in filestore.__all__ if getattr(filestore, name) is None]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = filestore.absent


def test_types_are_shipped() -> None:
    """A type checker reads the annotations of an installed package only where this file is."""
    assert Path(filestore.__file__).with_name("py.typed").is_file()
    assert '\npackages = ["filestore", "cli/filestore_cli"]\n' in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["filestore.transfer.push", "filestore.transfer.fetch", "filestore.backends", "filestore"])
def test_no_module_takes_the_place_of_a_function(first: str) -> None:
    """`filestore.push` is the function whatever was imported before, and after."""
    names = sorted(FUNCTIONS)
    script = f"""
import inspect, {first}
import filestore
import filestore.transfer.push, filestore.transfer.fetch, filestore.transfer.fetch_tree, filestore.blocking, filestore.backends
from filestore import {", ".join(names)}
for name in {names}:
    assert inspect.isfunction(getattr(filestore, name)) and inspect.isfunction(globals()[name]), name
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    inside = {path.stem for path in (REPOSITORY / "filestore").iterdir()}
    assert {"blocking", "errors"} == inside & set(filestore.__all__)


@pytest.mark.parametrize("name", filestore.__all__)
def test_every_exported_name_has_a_docstring(name: str) -> None:
    """Of its own, and not what `dataclass` or a built-in class gives; its first line is a full sentence."""
    value = getattr(filestore, name)
    text = value.__doc__ if isinstance(value, type | ModuleType) else inspect.getdoc(value)
    assert text is not None
    assert not text.startswith(f"{name}(")
    assert text.strip().splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", CALLABLES)
def test_every_function_says_what_it_does_and_raises(name: str) -> None:
    """The first line of a docstring ends as a sentence does; the errors that it names exist."""
    text = inspect.getdoc(CALLABLES[name])
    assert text is not None
    assert text.splitlines()[0].endswith(".")
    raised = RAISES.findall(text)
    assert bool(raised) is (name not in RAISES_NOTHING), "what it raises"
    named = {error for part in raised for error in HUMPS.findall(part)} - OTHER_NAMES
    assert set() == {error for error in named if not issubclass(getattr(errors, error, int), errors.FilestoreError)}


@pytest.mark.parametrize("name", VALUES)
def test_help_describes_every_field_of_a_value(name: str) -> None:
    """The docstring of the class does, because `help` does not show a text under a field."""
    kind = CLASSES[name]
    inherited = "".join(each.__doc__ or "" for each in kind.__mro__)
    assert [] == [field for field in VALUES[name] if f"`{field}`" not in inherited and f"\n    {field}: " not in inherited]


@pytest.mark.parametrize("name", [name for name in VALUES if dataclasses.is_dataclass(CLASSES[name])])
def test_values_are_frozen(name: str) -> None:
    """A value does not change."""
    assert CLASSES[name].__dataclass_params__.frozen  # type: ignore[attr-defined]  # a dataclass has it


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_two_arguments_of_a_verb_have_places(name: str) -> None:
    """All others are given by name; each argument is described in the docstring."""
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters.values())
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[2:])
    if name not in {"plan_push", "plan_copy"}:
        assert [] == [each.name for each in parameters if not re.search(rf"^(\w+, )?{each.name}(, \w+)?: ", text, re.MULTILINE)]
