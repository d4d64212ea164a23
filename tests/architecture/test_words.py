"""Words that have no ordinary use here appear neither in names nor in prose. `WORDS_LEFT` may only shrink."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
WORDS_LEFT = Path(__file__).with_name("words_left.txt")
"""One line for each file whose prose still has such words: the number, and the path. Numbers may only become smaller."""
NAME_WORD = re.compile(r"(?:^|_)(?:lanes?|doors?|shelf|shelves|knobs?|anew|let_in|is_no|of_someone_elses?)(?=_|$)")
PROSE = re.compile(
    r"\b(?:lanes?|doors?|shelf|shelves|knobs?|anew|let[\s#]+in|is[\s#]+no(?![\s#]+longer)|of[\s#]+someone[\s#]+else's)\b",
    re.IGNORECASE,
)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def tracked() -> Iterator[str]:
    """Every tracked file but this test, and the golden files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout
    for name in listed.split("\0"):
        is_text = Path(name).suffix in {".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"} or name == ".ci/run"
        if is_text and (REPOSITORY / name).exists() and name not in {"tests/architecture/test_words.py", "LICENSE"}:
            yield name


def words_of(name: str) -> str:
    """An identifier in lower case with underscores, so that `EntryShelf` has the word "shelf"."""
    return HUMP.sub("_", name).lower()


def names_in(text: str) -> Iterator[str]:
    """The identifiers of a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.string


def left() -> dict[str, int]:
    """How many of the words each file has in its prose."""
    found = {name: len(PROSE.findall((REPOSITORY / name).read_text(encoding="utf-8"))) for name in tracked()}
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("name", ["shelf", "EntryShelf", "_knob", "free_doors", "is_let_in", "what_is_no_zip"])
def test_words_are_found_in_names(name: str) -> None:
    """A word is found in every place of a name, in both ways of writing one."""
    assert NAME_WORD.search(words_of(name))


@pytest.mark.parametrize("name", ["planes", "indoors", "is_not_a_zip", "PLANES2_ZSTD", "renewed", "is_none"])
def test_other_names_are_allowed(name: str) -> None:
    """A part of a word is not the word."""
    assert None is NAME_WORD.search(words_of(name))


@pytest.mark.parametrize("text", ["a Lane", "the knobs", "it is no zip", "it is\n    # no zip", "let in", "fetched anew."])
def test_words_are_found_in_prose(text: str) -> None:
    """Also in another case, and across the end of a line."""
    assert PROSE.search(text)


@pytest.mark.slow
def test_names_have_none_of_the_words() -> None:
    """Neither identifiers nor the paths of files."""
    names = {
        (file, name) for file in tracked() if file.endswith(".py") for name in names_in((REPOSITORY / file).read_text("utf-8"))
    }
    paths = {(file, part) for file in tracked() for part in re.split(r"[/.-]", file)}

    assert [] == sorted(where for where in names | paths if NAME_WORD.search(words_of(where[1])))


def test_prose_has_no_more_of_the_words() -> None:
    """Exactly those of the list: whoever removes some lowers the number too, so that none comes back."""
    allowed = {name: int(count) for count, name in (line.split(" ", 1) for line in WORDS_LEFT.read_text("utf-8").splitlines())}

    assert allowed == left()
