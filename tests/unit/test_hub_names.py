"""What the paths of the Hub API name, the documents of its answers, and the owners that nobody can have."""

from __future__ import annotations

import re
from typing import cast
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from filestore.core.commits import Commit
from filestore.core.content_digests import FileDigests
from filestore.core.digest import Digest
from filestore.core.names import RESERVED_OWNERS
from filestore.core.records import Kind
from filestore.core.signing import PREFIX as SIGNED_PREFIX
from filestore.errors import NotFound
from filestore.http.server.app import ROUTES
from filestore.http.server.routes.hub.dialect import header_text
from filestore.http.server.routes.hub.documents import (
    Entry,
    blob_id,
    commit_document,
    cursor_after,
    entry_document,
    moment,
    place_of,
    pointer_file,
)
from filestore.http.server.routes.hub.names import PREFIXES, entry_path, repository_in
from filestore.runtime.routes.pipelines import PipelineRoutes
from filestore.runtime.routes.pointers import PointerRoutes
from filestore.runtime.routes.runs import RunRoutes

DIGEST = Digest(bytes(32))


def asked(path: str) -> web.Request:
    """A request of a path that a route of the Hub takes."""
    for route in ROUTES:
        resource = web.DynamicResource(route.path) if "{" in route.path else None
        found = None if resource is None else resource._match(path)
        if found is not None:
            request = make_mocked_request("GET", "/")
            request._match_info = cast("web.UrlMappingMatchInfo", found)
            return request
    raise AssertionError(path)


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("/team/model/resolve/main/a.txt", "models", "team/model"),
        ("/model/resolve/main/a/b.txt", "models", "model"),
        ("/datasets/team/texts/resolve/main/a", "datasets", "team/texts"),
        ("/datasets/texts/resolve/main/a", "datasets", "texts"),
        ("/kernels/team/resolve/resolve/main/x", "kernels", "team/resolve"),
        ("/a/resolve/resolve/x", "models", "a"),
        ("/api/models/team/model", "models", "team/model"),
        ("/api/spaces/demo/tree/main/a/b", "spaces", "demo"),
        ("/api/datasets/team/tree/tree/main", "datasets", "team/tree"),
        ("/api/models/team/model/revision/refs%2Fpr%2F1", "models", "team/model"),
    ],
)
def test_a_repository_is_found_in_a_path(path: str, kind: str, name: str) -> None:
    """With and without an owner, also where a name is a word of a route."""
    found = repository_in(asked(path))
    assert (kind, name) == (found.type, found.name)


@pytest.mark.parametrize(
    "name",
    [
        "../model",
        "team/..",
        ".",
        "-team/model",
        "team/a--b",
        "team/model.git",
        "a%2Fb%2Fc",
        "my team/model",
        "a/x\x7f",
        "x" * 300,
    ],
)
def test_a_name_that_nothing_can_have_is_absent(name: str) -> None:
    """It never comes to the index."""
    with pytest.raises(NotFound):
        repository_in(asked(f"/api/models/{name}/refs"))


def test_a_path_that_escapes_is_that_of_no_entry() -> None:
    """Neither upwards nor to nothing."""
    assert ["", "a", "a/b c", "%2e%2e"] == [entry_path(path) for path in ("", "a", "a/b c", "%2e%2e")]
    bad = ("..", "../a", "a/../b", "a//b", "/a", "a/", ".", "a/./b", "a\0b", "x" * 5000)
    assert {None} == {entry_path(path) for path in bad}


def test_a_cursor_is_what_it_was_made_of() -> None:
    """Anything else is refused."""
    for place in ("a", "größe/x.txt", "x" * 4096, "17"):
        assert place == place_of(cursor_after(place))
    assert {None} == {place_of(cursor) for cursor in ("ä", "a", "!!!!", "_-8", "x" * 10_000, "a b", "====")}


def test_ids_are_those_of_git() -> None:
    """Computed by `git hash-object` and `git lfs pointer`."""
    assert "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391" == blob_id(b"")
    assert "ce013625030ba8dba906f756967f9e9ca394464a" == blob_id(b"hello\n")
    pointer = pointer_file(bytes.fromhex("00" * 32), 12345)
    assert b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n" == pointer


def test_an_entry_of_unknown_digests_has_a_tag_that_is_none() -> None:
    """So no client compares it with a SHA-256 or an id of git. Tags differ by path and by content. Lists have no id."""
    entry = Entry("a.bin", 5, False, DIGEST, None)  # noqa: FBT003  # a row
    assert not re.fullmatch("[0-9a-f]+", entry.tag)
    assert (None, None) == (entry_document(entry)["oid"], entry_document(entry).get("lfs"))
    others = (entry._replace(path="b.bin"), entry._replace(content=Digest(bytes([1]) * 32)))
    assert 3 == len({entry.tag, *(other.tag for other in others)})
    known = entry._replace(digests=FileDigests(bytes(32), bytes(20)))
    assert ("00" * 20, "00" * 32) == (known.tag, known._replace(size=1 << 20).tag)


def test_a_commit_is_described() -> None:
    """Its message has a title, and text after it."""
    commit = Commit(
        "0" * 40, 3, None, "main", "file_1", DIGEST, 1, Kind.FILE, "Add <b>\n\nBecause.\n", "ann", 1_700_000_000_123_456
    )
    document = commit_document(commit, is_formatted=True)
    assert ("Add <b>", "Because.", [{"user": "ann"}]) == (document["title"], document["message"], document["authors"])
    assert "2023-11-14T22:13:20.123Z" == document["date"] == moment(commit.created_at)
    assert "Store version 3" == commit_document(commit._replace(message=""))["title"]


def test_a_message_fits_into_a_header() -> None:
    """A line of ASCII without control characters."""
    assert "a?b ?" == header_text("a\0b \x7f")
    assert "a b ? c" == header_text("a\r\nb ö\tc")
    assert 1000 == len(header_text("x" * 5000))


def test_no_owner_can_be_taken_for_a_route() -> None:
    """Of a server or of a runtime: nobody can have the first part of the path of a route as an owner."""
    routes = [*ROUTES, *(route for kind in (PipelineRoutes, PointerRoutes, RunRoutes) for route in kind(Mock()).all)]
    paths = [re.sub(r"\{path:(\w+)/\.\*\}", r"\1/x", route.path) for route in routes]
    firsts = {path.split("/")[1] for path in paths if not path.startswith("/{")}
    firsts |= {SIGNED_PREFIX.split("/")[1], "healthz", "readyz", *PREFIXES}
    assert {"api", "v3", "native", "metrics", "pipeline_files", "run_files", "storage", "signed", "datasets"} <= firsts
    assert set() == firsts - RESERVED_OWNERS
