"""What the pages about tensors must not show or do, whatever is stored and whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestore.core.digest import token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.scopes import Scope
from filestore.http.server.routes.page.comparison import READ_LIMIT
from tests.support.changed_tokens import changed
from tests.support.commands import Home
from tests.support.models import safetensors_file, safetensors_from_header, tensor
from tests.support.page_tables import PageReader
from tests.support.pages import page_text, sign_in
from tests.support.server import OTHER_TOKEN, RunningServer, running_server

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}\u202e\x1b[2J"
SMALL = 200_000
"""Bytes of a tensor that shares chunks with its neighbours."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with room on its disk."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def push(home: Home, server: RunningServer, path: Path) -> str:
    """Push a file as the owner of the server's token does, and return its id."""
    environ = {"FILESTORE_URL": server.url, "FILESTORE_TOKEN": server.token}
    return str(home.result("push", path, environ=environ)["id"])


@pytest.mark.slow
def test_others_see_no_tensors(home: Home, server: RunningServer, tmp_path: Path) -> None:
    """A token of another namespace or with another prefix gets none, by an id or a reference, also of what was read already."""
    path = tmp_path / "secret.safetensors"
    path.write_bytes(safetensors_file([tensor("very-secret", 10, seed=1)]))
    file_id = push(home, server, path)
    owner = sign_in(server)
    pages = (
        ("/ui/tensors", {"id": file_id}),
        ("/ui/compare", {"old": file_id, "new": file_id}),
        ("/ui/compare", {"old_ref": "secret.safetensors", "new_ref": file_id}),
    )
    for page, query in pages[:2]:
        assert "very-secret" in page_text(owner.get(page, **query))
    changed(
        server,
        lambda _, transaction: transaction.add_token(
            token_digest("outside-the-prefix"), namespace=DEFAULT_NAMESPACE, label="", scope=Scope.ADMIN, prefix="public-"
        ),
    )
    for token in (OTHER_TOKEN, "outside-the-prefix"):
        visitor = sign_in(server, token)
        for page, query in pages:
            answer = visitor.get(page, **query)
            assert answer.status in {404, 422}
            assert b"very-secret" not in answer.body


@pytest.mark.slow
def test_names_in_a_header_do_no_harm(home: Home, server: RunningServer, tmp_path: Path) -> None:
    """Names, types and metadata are text on the page, whatever they have in them, and long ones are cut."""
    member = {"dtype": HOSTILE[:32], "shape": [1], "data_offsets": [0, 1]}
    long = {"dtype": "I8", "shape": [10**18] * 64, "data_offsets": [1, 1]} | {"dtype": "X"}
    header = json.dumps({HOSTILE: member, "n" * 10_000_000: long, "__metadata__": {HOSTILE: HOSTILE, "format": HOSTILE}})
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(safetensors_from_header(header.encode(), b"1"))
    file_id = push(home, server, path)
    visitor = sign_in(server)
    for page, query in (("/ui/tensors", {"id": file_id}), ("/ui/compare", {"old": file_id, "new": file_id})):
        answer = visitor.get(page, **query)
        assert 200 == answer.status
        assert len(answer.body) < 100_000
        text = page_text(answer)
        assert "<img src=x onerror=alert(1)>\"'&{{7*7}}\\u202e\\x1b[2J" in text
        assert "img" not in PageReader(answer).elements
        assert not {"\u202e", "\x1b"} & set(answer.body.decode())
    assert "1 of 2 tensors" in page_text(visitor.get("/ui/tensors", id=file_id, q=HOSTILE))


@pytest.mark.slow
def test_a_comparison_reads_a_limited_part_of_the_content(home: Home, server: RunningServer, tmp_path: Path) -> None:
    """Tensors that share chunks are read. Whoever stores many of them gets a sentence, and the server goes on."""
    count = READ_LIMIT // SMALL * 2 // 3
    paths = []
    for name, first in (("even", 0), ("odd", 2)):
        offsets = [first + number * SMALL for number in range(count + 1)]
        members = {
            f"t{number}": {"dtype": "I8", "shape": [SMALL], "data_offsets": [start, start + SMALL]}
            for number, start in enumerate(offsets[:-1])
        }
        if first:
            members["first"] = {"dtype": "I8", "shape": [first], "data_offsets": [0, first]}
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(safetensors_from_header(json.dumps(members).encode()))
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + offsets[-1])
        paths.append(push(home, server, path))
    visitor = sign_in(server)
    answer = visitor.get("/ui/compare", old=paths[0], new=paths[1])
    assert 422 == answer.status
    [problem] = PageReader(answer).problems
    assert "The content to read for this comparison, in bytes, is " in problem
    assert "The command filestore diff has no such limit" in problem
    assert f"of {count + 1:,} tensors" in page_text(visitor.get("/ui/tensors", id=paths[1]))
