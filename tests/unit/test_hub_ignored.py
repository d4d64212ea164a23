"""The rules of a `.gitignore`, as they are applied to the files of an upload."""

from __future__ import annotations

import pytest

from filestore.http.server.routes.hub.ignored import PATTERNS_LIMIT, IgnoreRules


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("*.tmp", "a.tmp"),
        ("*.tmp", "deep/in/a.tmp"),
        ("/a.bin", "a.bin"),
        ("b/a.bin", "b/a.bin"),
        ("out/", "out/a/b"),
        ("out/", "deep/out/a"),
        ("*.bin\n!keep.bin", "other.bin"),
        ("out/\n!out/keep", "out/keep"),
        ("a/**/z", "a/z"),
        ("a/**/z", "a/b/c/z"),
        ("a/**", "a/b"),
        ("**/z", "z"),
        ("\\#yes", "#yes"),
    ],
)
def test_what_is_ignored(text: str, path: str) -> None:
    """The rules match as git matches them."""
    assert IgnoreRules(text).ignores(path)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("*.tmp", "a.tmp.bin"),
        ("/a.bin", "b/a.bin"),
        ("b/a.bin", "c/b/a.bin"),
        ("out/", "out"),
        ("*.bin\n!keep.bin", "keep.bin"),
        ("# no\n\n  \n", "# no"),
        ("", "a"),
    ],
)
def test_what_is_not_ignored(text: str, path: str) -> None:
    """The rules match no more than git does."""
    assert not IgnoreRules(text).ignores(path)


def test_a_pattern_that_would_take_long_does_not() -> None:
    """The work is the product of the lengths, and lines beyond the limit do not count."""
    rules = IgnoreRules("\n".join(["/".join(["**", "a*a*a*a*a*b"] * 4)] * (PATTERNS_LIMIT + 1)) + "\nx")
    assert not rules.ignores("/".join(["a" * 100] * 8))
    assert not rules.ignores("x")
