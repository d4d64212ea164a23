"""What a README.md says about a model at its beginning, between two lines of `---`, as far as clients of the Hub use it.

Source: the Hub's documentation, "Model Cards". The text is YAML. Only its plain forms are read, and nothing else is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

CARD_LIMIT = 64 << 10
"""Bytes of a README.md that are read."""
_TAGS_LIMIT = 100
_TEXT_LIMIT = 100
"""Characters of a tag."""


class ModelCard(NamedTuple):
    """Facts that tools choose a program by."""

    pipeline_tag: str | None = None
    library_name: str | None = None
    tags: tuple[str, ...] = ()


NO_CARD = ModelCard()


def parse_card(content: bytes) -> ModelCard:
    """Return what the beginning of a README.md says. Return an empty card if it says nothing."""
    lines = content.decode(errors="replace").splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in (line.rstrip() for line in lines[1:]):
        return NO_CARD
    values: dict[str, list[str]] = {}
    for key, text in _pairs(lines[1:]):
        if 0 < len(text) <= _TEXT_LIMIT:
            values.setdefault(key, []).append(text)
    first = {key: texts[0] for key, texts in values.items()}
    tags = [*values.get("tags", ()), *(f"license:{text}" for text in values.get("license", ())[:1])]
    named = [first[key] for key in ("library_name", "pipeline_tag") if key in first]
    return ModelCard(first.get("pipeline_tag"), first.get("library_name"), tuple(dict.fromkeys([*named, *tags]))[:_TAGS_LIMIT])


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each value with its key, of keys that are not inside of others. A key may have a list of values."""
    key = ""
    for line in lines:
        if line.rstrip() == "---":
            return
        if line.lstrip().startswith("- "):
            yield key, _plain(line.lstrip()[2:])
        elif line[:1].isalpha():
            key, _, value = line.partition(":")
            value = value.strip()
            items = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
            yield from ((key, _plain(item)) for item in items)
        elif line.strip() and not line.lstrip().startswith("#"):
            key = ""  # what is inside of another value


def _plain(text: str) -> str:
    """Return a text without the quotes around it. A text with another form of YAML is left out."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return "" if text.startswith(("{", "[", "&", "*", "!", "|", ">", "'", '"')) or ": " in text else text
