"""What the beginning of a README.md says about a model."""

from __future__ import annotations

import pytest

from filestore.http.server.model_card import NO_CARD, ModelCard, parse_card

CARD = b"""---
license: apache-2.0
language:
- en
- "de"
library_name: sentence-transformers
pipeline_tag: 'sentence-similarity'
tags:
  - feature-extraction
  # a remark
  - transformers
model-index:
- name: x
  results:
    - task:
        type: other
    tags:
    - hidden
---
tags:
- after the card
"""


def test_a_card_is_read() -> None:
    """What is inside of other values, or after the card, does not count."""
    tags = ("sentence-transformers", "sentence-similarity", "feature-extraction", "transformers", "license:apache-2.0")
    assert ModelCard("sentence-similarity", "sentence-transformers", tags) == parse_card(CARD)
    assert ("a", "b c") == parse_card(b"---\r\ntags: [a, 'b c']\r\n---\r\n").tags


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# x",
        b"---",
        b"---\ntags:\n- a\n",
        b"\xff\xfe---",
        b"---\n---\n",
        b"---\ntags: {a: b}\n---",
        b"---\n- a\n- b: c\n---\n",
    ],
)
def test_what_is_not_a_card_says_nothing(content: bytes) -> None:
    """It is not an error."""
    assert NO_CARD == parse_card(content)


def test_a_card_is_bounded() -> None:
    """However many tags it has, and however long they are."""
    many = b"---\ntags:\n" + b"".join(b"- tag%d\n" % number for number in range(5000)) + b"- " + b"x" * 5000 + b"\n---\n"
    assert 100 == len(parse_card(many).tags)
