"""The branches and tags that an upstream lists."""

from __future__ import annotations

import json

import pytest

from filestore.errors import UpstreamFailed
from filestore.upstream.refs import REFS_LIMIT, UpstreamRef, parse_refs, refs_document

COMMIT = "a" * 40


def ref(name: object, commit: object = COMMIT) -> dict[str, object]:
    """One ref, as the upstream sends it."""
    return {"name": name, "ref": "refs/anything", "targetCommit": commit}


def test_what_clients_get() -> None:
    """The full name of a ref is made of its kind and its name, whatever the upstream says."""
    document = json.dumps({"branches": [ref("main")], "tags": [ref("v1")], "converts": [ref("parquet")], "pullRequests": [1]})
    found = parse_refs("team/m", document.encode())
    assert [
        UpstreamRef(kind, name, COMMIT)
        for kind, name in zip(("branches", "tags", "converts"), ("main", "v1", "parquet"), strict=True)
    ] == found
    made = refs_document(found)
    assert ["refs/heads/main", "refs/tags/v1", "refs/convert/parquet"] == [
        each["ref"] for listed in made.values() for each in listed
    ]
    assert found == parse_refs("team/m", json.dumps(made).encode())


@pytest.mark.parametrize("each", [ref(""), ref("x" * 256), ref("a\nb"), ref(7), ref("a", "main"), ref("a", None), [], None])
def test_what_no_request_could_name_is_left_out(each: object) -> None:
    """The others are there."""
    document = json.dumps({"branches": [each, ref("main")], "tags": each}).encode()
    assert [UpstreamRef("branches", "main", COMMIT)] == parse_refs("team/m", document)


@pytest.mark.parametrize("document", [b"<html>", b"[" + b"[]," * 8 * REFS_LIMIT + b"[]]"])
def test_what_is_not_a_list_of_refs(document: bytes) -> None:
    """A page for people, or what would take much memory, is an error of the upstream."""
    with pytest.raises(UpstreamFailed):
        parse_refs("team/m", document)
