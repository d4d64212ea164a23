"""Tell which files of an upload are ignored, by the lines of a `.gitignore`.

Source: gitignore(5). Only the rules at the root of a tree are known: those of its folders stay with the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

PATTERNS_LIMIT = 200
"""Lines that count. What follows is left out: nothing more is ignored."""
_PATTERN_LIMIT = 256
"""Characters of a line that counts."""
_PARTS_LIMIT = 8
"""Parts of a pattern that counts."""
_DEPTH_LIMIT = 32
"""Parts of a path that are looked at. So one path takes at most so many comparisons as the product of these limits."""


class _Rule(NamedTuple):
    parts: tuple[str, ...]
    ignores: bool
    """False for a line that begins with `!`, which takes a file back."""
    is_for_folders: bool


class IgnoreRules:
    """The rules of a `.gitignore`. The last one that matches a path decides."""

    def __init__(self, text: str) -> None:
        self._rules = list(_parsed(text.splitlines()))

    def ignores(self, path: str) -> bool:
        """Return whether a file is ignored, by itself or because a folder above it is."""
        parts = path.split("/")
        depth = len(parts)
        decided: dict[int, bool] = {}
        for rule in self._rules:
            ends = _matched(rule.parts, parts[:_DEPTH_LIMIT])
            decided |= {end: rule.ignores for end in ends if end < depth or not rule.is_for_folders}
        # A file in a folder that is ignored cannot be taken back.
        return any(decided.values())


def _parsed(lines: Iterable[str]) -> Iterable[_Rule]:
    count = 0
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#") or len(text) > _PATTERN_LIMIT:
            continue
        ignores = not text.startswith("!")
        text = text.removeprefix("!").removeprefix("\\")
        is_for_folders = text.endswith("/")
        text = text.rstrip("/")
        # A pattern without a slash, apart from one at its end, matches at any depth.
        parts = ("**", text) if "/" not in text else tuple(filter(None, text.split("/")))
        if text and len(parts) <= _PARTS_LIMIT:
            yield _Rule(parts, ignores, is_for_folders)
            count += 1
        if count == PATTERNS_LIMIT:
            return


def _matched(pattern: Sequence[str], parts: Sequence[str]) -> list[int]:
    """Return how many of the first parts of a path a pattern matches, each time it does. A part `**` stands for any number."""
    # The ends in `pattern` that are reached after the parts so far.
    reached = _passed({0}, pattern)
    # `folder/**` is everything in it, and not the folder itself.
    least = len(pattern) if pattern[-1] == "**" else 1
    found = []
    for number, part in enumerate(parts, start=1):
        following = set()
        for at in reached:
            if at < len(pattern) and pattern[at] == "**":
                following.add(at)
            elif at < len(pattern) and fnmatchcase(part, pattern[at]):
                following.add(at + 1)
        reached = _passed(following, pattern)
        if len(pattern) in reached and number >= least:
            found.append(number)
    return found


def _passed(ends: set[int], pattern: Sequence[str]) -> set[int]:
    """Return `ends`, and those that are reached if a `**` stands for nothing."""
    found = set(ends)
    for end in ends:
        at = end
        while at < len(pattern) and pattern[at] == "**":
            at += 1
            found.add(at)
    return found
