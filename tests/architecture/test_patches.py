"""Tests give another value as an argument. They replace nothing by its path as a string, which ties them to a module."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
BY_STRING = re.compile(r"""\b(?:setattr|patch)\(\s*f?["']filestore""")


def test_nothing_of_ours_is_patched_by_its_path() -> None:
    """A size or a time is an argument; a function that a test watches is patched on the imported module."""
    found = [str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("*.py")) if BY_STRING.search(path.read_text())]
    assert [] == found
