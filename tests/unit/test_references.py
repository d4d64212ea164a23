"""References, as docs/references.md has them: each of its examples is executed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from filestore.core.digest import Digest
from filestore.core.names import checked_name, checked_new_name, replace_separators
from filestore.core.references import PipelineReference, Reference
from filestore.errors import InvalidInput, InvalidName, InvalidReference

PAGE = (Path(__file__).parents[2] / "docs/references.md").read_text()
ID = "file_" + "0a" * 16
DIGEST = "ab" * 32


def rows(header: str) -> list[tuple[str, ...]]:
    """The rows of the tables of the page that have this header, with its abbreviations written out."""
    tables = [table for table in PAGE.split("\n\n") if table.startswith(header)]
    assert tables
    lines = [line for table in tables for line in table.strip().split("\n")[2:]]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def text_of(cell: str) -> str:
    """The text in a cell."""
    return re.sub(r"\bID\b", ID, re.sub(r"\bDIGEST\b", DIGEST, cell.strip("`")))


def described(**parts: object) -> str:
    """Parts of a reference, as the page writes them."""
    return ", ".join(f"{part} `{value}`" for part, value in parts.items() if value is not None)


def parts_of(text: str) -> str:
    """What a text is read as, as the page writes it."""
    read = Reference.parse(text)
    return described(
        id=read.id, digest=read.digest, name=read.name, owner=read.owner, revision=read.revision, path=read.entry_path
    )


def example(cell: str) -> str:
    """The second column of an example, in full."""
    return re.sub(r"\bID\b", ID, re.sub(r"\bDIGEST\b", DIGEST, cell))


FILES = rows("| reference | is read as |\n")
PIPELINES = rows("| pipeline | is read as |")


def test_the_page_has_examples() -> None:
    """Every table of the page is found."""
    assert [23, 20, 5] == [len(FILES), len(rows("| text |")), len(PIPELINES)]


@pytest.mark.parametrize(("text", "parts"), FILES)
def test_examples_that_are_read(text: str, parts: str) -> None:
    """A reference is read as the page says."""
    assert example(parts) == parts_of(text_of(text))


@pytest.mark.parametrize(
    ("revision", "back", "prefix"),
    [
        ("~0", 0, None),
        ("~12", 12, None),
        ("0" * 7, None, "0" * 7),
        (DIGEST, None, DIGEST),
        (None, None, None),
        ("v2", None, None),
        ("~01", None, None),
        ("~1234567890", None, None),
        ("ABABABAB", None, None),
        ("ababab", None, None),
        (f"{DIGEST}a", None, None),
    ],
)
def test_a_revision_is_a_number_of_versions_or_digits(revision: str | None, back: int | None, prefix: str | None) -> None:
    """The text of a reference with a revision is parsed to an equal reference."""
    reference = Reference(name="model", revision=revision)
    assert (back, prefix) == (reference.versions_back, reference.digits)
    assert reference == Reference.parse(str(reference))


@pytest.mark.parametrize(
    "given", [{"id": ID}, {"digest": Digest.parse(DIGEST)}, {"digest": Digest.parse(DIGEST), "name": "a"}, {}]
)
def test_a_revision_needs_a_name(given: dict[str, Any]) -> None:
    """An id, a digest and a stored path mean one state of a file."""
    with pytest.raises(InvalidReference, match="a revision can only follow a name"):
        Reference(**given, revision="~1")


@pytest.mark.parametrize(("text", "reason"), rows("| text | is refused, because |"))
def test_examples_that_are_not_references(text: str, reason: str) -> None:
    """What does not fit the grammar is refused for the reason on the page.

    The message begins with the text that was given.
    """
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text_of(text))
    assert f"{text_of(text)!r} names no file: " in str(caught.value)
    assert reason.replace("`", "") in str(caught.value)


@pytest.mark.parametrize(("text", "parts"), PIPELINES)
def test_examples_of_pipelines(text: str, parts: str) -> None:
    """A pipeline is named by its id, or by a name and a pointer."""
    read = PipelineReference.parse(text_of(text))
    assert parts == described(id=read.id, name=read.name, pointer=read.pointer)


@pytest.mark.parametrize("text", ["", ":v1", "a\nb", "\udc80", "x" * 256])
def test_what_names_no_pipeline(text: str) -> None:
    """A pipeline's name is one line of printable text."""
    with pytest.raises(InvalidInput):
        PipelineReference.parse(text)


@pytest.mark.parametrize("owner", ["a" * 96, "Team-1_x.y", "a", "_"])
def test_owners(owner: str) -> None:
    """An owner is what the Hugging Face Hub allows as one."""
    assert Reference(owner=owner, name="model") == Reference.parse(f"{owner}/model")


@pytest.mark.parametrize("owner", ["a" * 97, "a--b", "a..b", "-a", "a-", ".a", "a.", "ä", "a b", "a\n"])
def test_owners_that_are_refused(owner: str) -> None:
    """Anything else before the slash is not an owner."""
    with pytest.raises(InvalidReference, match="an owner has up to 96 letters"):
        Reference.parse(f"{owner}/model")


@pytest.mark.parametrize("rest", ["@a\0", "@\udc80", "@" + "x" * 256, ":a\nb", ":\udc80", ":a//b", ":.", ":a/./b"])
def test_revisions_and_paths_that_are_refused(rest: str) -> None:
    """A revision and a path are one line of valid text, and a path stays in its directory."""
    with pytest.raises(InvalidReference, match=r"what follows its '[@:]' is not a"):
        Reference.parse("name" + rest)


@pytest.mark.parametrize(("name", "found"), [("a:b.txt", ":"), ("v@2", "@"), ("a@b:c", "@"), (":", ":")])
def test_names_that_no_new_record_gets(name: str, found: str) -> None:
    """They could not be written as a reference; older records may have them."""
    assert name == checked_name(name)
    with pytest.raises(InvalidName, match=f"it contains '{found}', which separates the parts .*; choose another name"):
        checked_new_name(name)


def test_new_names_are_names() -> None:
    """A name for a new record is refused for all that a name is refused for."""
    assert "my model v2.zip" == checked_new_name("my model v2.zip")
    with pytest.raises(InvalidName):
        checked_new_name("a/b")


def test_replace_separators() -> None:
    """What is left is a name that a new record can have."""
    assert "12_30_noon.png" == checked_new_name(replace_separators("12:30@noon.png"))
