"""A file that is removed with its chunks while clients read it."""

from __future__ import annotations

import zipfile
from http.client import HTTPResponse, IncompleteRead
from io import BytesIO
from pathlib import Path

import pytest

from filestore.http.wire import API
from tests.support.generator import octets
from tests.support.hub import push_zip
from tests.support.server import running_server

SIZE = 32 << 20


@pytest.mark.parametrize("way", ["a stored member", "a deflated member", "the whole file"])
def test_a_removal_is_not_damage(tmp_path: Path, way: str) -> None:
    """The answer ends early, and the server writes nothing about damage to its log."""
    made = BytesIO()
    method = zipfile.ZIP_DEFLATED if way == "a deflated member" else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("weights.bin", octets(1, SIZE))
    with running_server(tmp_path / "root") as server:
        record = push_zip(server, tmp_path / "archive.zip", made.getvalue(), "team/model")
        path = f"/{record.path}" if way == "the whole file" else "/team/model/resolve/main/weights.bin"
        with server.begin("GET", path, "Connection: close") as connection:
            answer = HTTPResponse(connection)
            answer.begin()
            assert (200, 1) == (answer.status, len(answer.read(1)))
            stored = server.ask("GET", f"{API}/files").json["files"]
            for each in stored:
                assert 200 == server.ask("DELETE", f"{API}/files/{each['id']}?chunks=true&force=true").status
            with pytest.raises((IncompleteRead, ConnectionResetError)):
                answer.read()
        assert "RepoNotFound" == server.ask("GET", "/team/model/resolve/main/weights.bin").headers["X-Error-Code"]
