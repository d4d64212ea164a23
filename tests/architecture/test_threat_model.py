"""The threat model keeps its word: each promise names tests that exist, and each file of attacks shows a promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs/threat-model.md"
PROMISE = re.compile(r"^\| (?P<number>[A-Z]\d+) \| (?P<text>[^|]+) \| (?P<tests>[^|]*) \|$", re.MULTILINE)
TEST = re.compile(r"`(?P<file>[a-z0-9_/]+\.py)::(?P<name>test_\w+)`")
PROMISES = [(found["number"], found["tests"]) for found in PROMISE.finditer(PAGE.read_text(encoding="utf-8"))]


def functions_in(file: Path) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_the_page_has_promises() -> None:
    """The promises are found at all, and each has a number of its own."""
    numbers = [number for number, _ in PROMISES]

    assert len(numbers) >= 30
    assert len(set(numbers)) == len(numbers)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "shown_by"), PROMISES, ids=[number for number, _ in PROMISES])
def test_a_promise_names_tests_that_exist(number: str, shown_by: str) -> None:
    """Each promise names at least one test, and every test that it names is in the file that it names."""
    named = [(found["file"], found["name"]) for found in TEST.finditer(shown_by)]

    assert named, f"promise {number} names no test"
    assert TEST.sub("", shown_by).strip(" ,") == "", f"promise {number} has something that is not the name of a test"
    missing = [f"{file}::{name}" for file, name in named if name not in functions_in(TESTS / file)]
    assert missing == []


def test_every_file_of_attacks_shows_a_promise() -> None:
    """No file of attacks is outside of the threat model."""
    named = {found["file"] for _, shown_by in PROMISES for found in TEST.finditer(shown_by)}

    assert {f"attacks/{file.name}" for file in (TESTS / "attacks").glob("test_*.py")} - named == set()
