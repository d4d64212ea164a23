"""The page about the chunks of a file, at a real server: what it says is what is stored, and nothing of others."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from html import unescape
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import quote

import pytest

from filestore.core.digest import token_digest
from filestore.core.scopes import Scope
from filestore.http.wire import API, NAME_HEADER
from tests.support.changed_tokens import changed
from tests.support.frames import encoded, manifest
from tests.support.generator import octets
from tests.support.page_tables import PageReader
from tests.support.pages import Visitor, page_text, sign_in
from tests.support.server import RunningServer, running_server

HOSTILE = "<script>alert('1')<img onerror=x>&quot;\".safetensors"
PREFIX_TOKEN = "a-token-of-one-prefix"
OTHER_TOKEN = "a-token-of-another-namespace"
CHUNK_SIZE = 70_000
FRESH = [bytes([number]) * CHUNK_SIZE for number in range(4)]


class Stored(NamedTuple):
    """A server, and the ids of what is stored there."""

    server: RunningServer
    visitor: Visitor
    first: str
    """Twelve chunks that do not compress."""
    second: str
    """A version that has the first eight of them, four of another file, and four that are new and compress well."""
    hostile: str
    """A file whose name is code, with the chunks of `second` in another order."""
    empty: str


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A server with some files that share chunks."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        chunks = [octets(number, CHUNK_SIZE) for number in range(20)]
        store(server, "secret-donor", chunks[12:16])
        first = store(server, "model", chunks[:12])
        second = store(server, "model", [*chunks[:8], *chunks[12:16], *FRESH])
        hostile = store(server, HOSTILE, [*FRESH, *chunks[:8]])
        give(server, PREFIX_TOKEN, namespace="default", prefix="model")
        give(server, OTHER_TOKEN, namespace="other")
        yield Stored(server, sign_in(server), first, second, hostile, store(server, "empty", []))


def store(server: RunningServer, name: str, chunks: list[bytes]) -> str:
    """Store a file, and return its id."""
    if chunks:
        assert 200 == server.put([encoded(chunk) for chunk in dict.fromkeys(chunks)]).status
    reply = server.ask("POST", f"{API}/files", manifest(chunks).encoded, headers={NAME_HEADER: quote(name)})
    assert 201 == reply.status, reply.body
    return str(reply.json["id"])


def give(server: RunningServer, token: str, *, namespace: str, prefix: str = "") -> None:
    """Make a token that reads."""
    given = {"namespace": namespace, "label": "", "scope": Scope.READ, "prefix": prefix}
    changed(server, lambda _, transaction: transaction.add_token(token_digest(token), **given))  # type: ignore[arg-type]


def rows_of(page: str, heading: str) -> list[str]:
    """Return the rows of the table in a region, as a reader sees them."""
    region = re.search(rf'<div class="table" role="region" aria-label="{heading}" tabindex="0">(.*?)</div>\n', page, re.DOTALL)
    assert region is not None, heading
    body = region.group(1).partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in rows]


def test_the_page_says_what_is_shared_with_which_file(stored: Stored) -> None:
    """By numbers, with links to the other files."""
    reply = stored.visitor.get("/ui/chunks", id=stored.second)
    page = reply.body.decode()
    assert 200 == reply.status
    text = page_text(reply)
    assert "1.12 MB in 16 chunks" in text
    assert re.search(r"Compared with (\d+) of \1 other stored versions", text)
    left = sum(len(encoded(each).data) for each in FRESH)
    assert [
        f"new with this version, and in later ones 4 280 kB {left} B 0 %",
        "from an earlier version 8 560 kB 560 kB 100 %",
        "from another file 4 280 kB 280 kB 100 %",
    ] == rows_of(page, "What is new, and what is shared")
    shared = rows_of(page, "Shared with")
    assert ["model", "secret-donor"] == sorted(row.split()[0] for row in shared if HOSTILE[:8] not in row)
    assert f'href="/ui/file?id={stored.first}"' in page
    assert f"/ui/compare?old={stored.first}&amp;new={stored.second}" in page
    runs = rows_of(page, "All chunks, in the order of the file")
    assert 3 == len(runs)
    assert [True, True] == [
        runs[0].startswith("1 to 8 0 B 560 kB 560 kB (100 %) from an earlier version: model"),
        "raw" not in runs[0],
    ]
    assert ["not compressed 12", "zstd 4"] == rows_of(page, "How the chunks are stored")


def test_the_picture_has_a_text_alternative(stored: Stored) -> None:
    """A screen reader gets a name and a sentence, and no style is in the page."""
    page = stored.visitor.get("/ui/chunks", id=stored.second).body.decode()
    assert '<svg role="img" aria-labelledby="chunks-title chunks-text"' in page
    assert '<title id="chunks-title">Chunks of model</title>' in page
    assert re.search(r'<desc id="chunks-text">25 % is new with this version, and in later ones, 50 % is .*</desc>', page)
    assert {"since", "version", "other"} == set(re.findall(r'<path class="box ([a-z-]+)"', page))
    assert {"raw", "zstd"} == set(re.findall(r'<path class="codec ([a-z-]+)"', page))
    assert "style=" not in page


def test_a_first_file_and_an_empty_one(stored: Stored) -> None:
    """A first file has only later ones to share with. An empty one has no chunks."""
    text = page_text(stored.visitor.get("/ui/chunks", id=stored.first))
    assert "new with this version, and in later ones 8" in text
    assert "new with this version 4 280 kB" in text
    assert "This file is empty" in page_text(stored.visitor.get("/ui/chunks", id=stored.empty))


def test_a_name_is_never_code(stored: Stored) -> None:
    """It is in the title, the heading, the picture and the tables of others."""
    for file_id in (stored.hostile, stored.second):
        page = stored.visitor.get("/ui/chunks", id=file_id).body.decode()
        assert "<script>alert" not in page
        assert HOSTILE in unescape(page)
    assert "default-src 'none'" in stored.visitor.get("/ui/chunks", id=stored.hostile).headers["Content-Security-Policy"]


def test_a_token_sees_only_its_names(stored: Stored) -> None:
    """Neither the other names, nor how many there are, nor that a chunk is shared with one of them."""
    visitor = sign_in(stored.server, PREFIX_TOKEN)
    reply = visitor.get("/ui/chunks", id=stored.second)
    page = reply.body.decode()
    assert "Compared with 1 other stored versions" in page_text(reply)
    assert "secret-donor" not in page
    assert "alert" not in page
    assert ["new with this version 8", "from an earlier version 8"] == [
        row.rpartition(" kB ")[0].rpartition(" kB ")[0].rpartition(" ")[0]
        for row in rows_of(page, "What is new, and what is shared")
    ]
    assert 404 == visitor.get("/ui/chunks", id=stored.hostile).status
    assert 404 == sign_in(stored.server, OTHER_TOKEN).get("/ui/chunks", id=stored.second).status


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 400),
        ({"id": "file_1"}, 400),
        ({"id": f"file_{'0' * 32}"}, 404),
        ({"id": "<script>"}, 400),
    ],
)
def test_a_file_that_is_not_there_is_told_as_a_page(stored: Stored, query: dict[str, str], status: int) -> None:
    """The answer is HTML, and says nothing of what was asked but as text."""
    reply = stored.visitor.get("/ui/chunks", **query)
    assert (status, "text/html; charset=utf-8") == (reply.status, reply.headers["Content-Type"])
    assert b"<script>" not in reply.body


@pytest.mark.parametrize("page", ["0", "2", "999999999999"])
def test_a_page_that_does_not_exist_is_the_nearest_one(stored: Stored, page: str) -> None:
    """A number that is none is an error."""
    assert 200 == stored.visitor.get("/ui/chunks", id=stored.second, page=page).status
    assert 400 == stored.visitor.get("/ui/chunks", id=stored.second, page=f"-{page}").status


def test_many_runs_are_paged(stored: Stored) -> None:
    """Each page has a part of the table, and the picture of the whole file."""
    half = [octets(1000 + number, 1000) for number in range(140)]
    store(stored.server, "half", half[::2])
    whole = store(stored.server, "whole", half)
    found: list[str] = []
    for number in (1, 2, 3):
        page = stored.visitor.get("/ui/chunks", id=whole, page=number).body.decode()
        assert (number > 1, number < 3) == ('rel="prev"' in page, 'rel="next"' in page)
        found += rows_of(page, "All chunks, in the order of the file")
    assert [str(number + 1) for number in range(140)] == [row.split()[0] for row in found]
    assert ["another", "this"] == [found[0].split("from ")[-1].split()[0], found[1].split("with ")[-1].split()[0]]


def test_what_is_new_comes_before_what_is_large(stored: Stored) -> None:
    """Of more tensors than a page lists, the smallest one is listed if it is what has changed."""
    sizes = {f"t{number:02}": 70_000 - number for number in range(40)}
    offsets = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    header = json.dumps(
        {
            name: {"dtype": "U8", "shape": [size], "data_offsets": [offsets[name], offsets[name] + size]}
            for name, size in sizes.items()
        }
    ).encode()
    begin = struct.pack("<Q", len(header)) + header
    data = [octets(100 + number, size) for number, size in enumerate(sizes.values())]
    store(stored.server, "tensors.safetensors", [begin, *data])
    second = store(stored.server, "tensors.safetensors", [begin, *data[:-1], octets(1, 70_000 - 39)])
    table = PageReader(stored.visitor.get("/ui/chunks", id=second)).tables["What lies where"]
    shown = {row[0]: row[3] for row in table[1:]}
    assert (20, "100 %") == (len(shown), shown["t39"])
    assert ["t00", "t18"] == [name for name in ("t00", "t18", "t19", "t38") if name in shown], "the largest of the others"


def test_a_reader_without_a_session_is_sent_to_sign_in(stored: Stored) -> None:
    """Neither page says anything before."""
    for path in (f"/ui/chunks?id={stored.second}", "/ui/space"):
        reply = stored.server.ask("GET", path, token=None, headers={"Accept": "text/html"})
        assert (303, b"") == (reply.status, reply.body)


def test_a_file_of_many_chunks_makes_a_small_page(stored: Stored) -> None:
    """Its chunks are in groups, of which the picture has a limited number."""
    chunks = [octets(2000, 60), octets(2001, 61)]
    assert 200 == stored.server.put([encoded(chunk) for chunk in chunks]).status
    # As many as a file of this size may have.
    file_id = store(stored.server, "many", [chunks[number % 2] for number in range(16_000)])
    reply = stored.visitor.get("/ui/chunks", id=file_id)
    assert 200 == reply.status
    assert "15,998 chunks repeat an earlier one" in page_text(reply)
    assert len(reply.body) < 60_000
