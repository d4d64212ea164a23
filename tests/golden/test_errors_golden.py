from __future__ import annotations

import json
import re
from typing import Any

import pytest

from filestore.errors import FilestoreError
from filestore.http.wire import decode_problem, encode_problem
from tests.support.errors import classes, error_vectors, example
from tests.support.golden import read

ERRORS: dict[str, Any] = read("errors.json")
PROBLEMS: dict[str, Any] = read("problems.json")
KINDS = sorted(classes(), key=lambda kind: kind.slug)
RESERVED = {"type", "title", "status", "detail", "instance"}
"""Members that RFC 9457 defines."""


def test_errors() -> None:
    """Slugs, facts with their types and order, and statuses are those of the committed file."""
    assert json.dumps(ERRORS) == json.dumps(error_vectors())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_problem_document(kind: type[FilestoreError]) -> None:
    """It is the committed one, and the committed one is read as the same error."""
    document = PROBLEMS[kind.slug]
    assert document == json.loads(json.dumps(encode_problem(example(kind)).document))
    if kind is not FilestoreError:
        arrived = decode_problem("http://server", document["status"], document)
        assert (kind, example(kind).args) == (type(arrived), arrived.args)


def test_every_error_has_a_slug_of_its_own() -> None:
    """Each class states one, in lower case, and no two are the same."""
    assert [] == [kind.__name__ for kind in KINDS if "slug" not in vars(kind)]
    assert len(KINDS) == len({kind.slug for kind in KINDS}) == len(PROBLEMS)
    assert [] == [kind.slug for kind in KINDS if not re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.slug)]


def test_facts_have_names_that_a_document_can_have() -> None:
    """Source: RFC 9457, sections 3.1 and 3.2. Nor does a fact hide something that every error has."""
    names = {name for kind in KINDS for name in kind.facts}
    assert set() == names & (RESERVED | set(dir(FilestoreError)))
    assert [] == [name for name in names if not re.fullmatch(r"[a-z][a-z_]{2,}", name)]
