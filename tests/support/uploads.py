"""Upload in parts as the Pipeline SDK does, one request at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from blake3 import blake3

from tests.support.server import SECONDS, TOKEN, Reply, RunningServer

PARTS = "/v3/pipeline_files"


class Sent(NamedTuple):
    """A part that the server accepted, as the request to finish lists it."""

    number: int
    tag: str

    @property
    def as_json(self) -> dict[str, str | int]:
        """The form in which the SDK lists it."""
        return {"ETag": self.tag, "PartNumber": self.number}


class PartsUpload:
    """An upload in parts at a server."""

    def __init__(self, server: RunningServer, name: str | None, *, owner: str | None = None, token: str = TOKEN) -> None:
        self.server = server
        self.token = token
        answer = begin(server, {"name": name} if owner is None else {"name": name, "owner": owner}, token=token)
        assert answer.status == 201, answer.body
        self.ids: dict[str, str] = answer.json

    @property
    def id(self) -> str:
        """The id of the upload."""
        return self.ids["upload_id"]

    @property
    def folder(self) -> Path:
        """The folder where the server keeps it."""
        (folder,) = (self.server.root / "tmp").glob(f"uploads-*/{self.id}")
        return folder

    def url(self, number: object) -> Reply:
        """Ask for the URL of a part."""
        return self._post("presigned-url", {**self.ids, "part_num": number})

    def put(self, number: int, content: bytes) -> Sent:
        """Send a part, which must be accepted."""
        answer = put(self.url(number).json["upload_url"], content)
        assert answer.status == 200, answer.body
        return Sent(number, answer.headers["ETag"])

    def copy(self, number: int, file_id: str, offset: int, content: bytes) -> Reply:
        """Ask for a part that has these bytes, which a stored file has at `offset`."""
        source = {"file_id": file_id, "offset": offset, "size": len(content), "tag": blake3(content).hexdigest()}
        return self.copy_of(number, source)

    def copy_of(self, number: int, source: object) -> Reply:
        """Ask for a copied part with any JSON."""
        return self._post(f"uploads/{self.id}/parts/{number}/copy", source)

    def parts(self) -> Reply:
        """Ask what has arrived."""
        return self.server.ask("GET", f"{PARTS}/uploads/{self.id}/parts", token=self.token)

    def cancel(self) -> Reply:
        """Cancel the upload."""
        return self.server.ask("DELETE", f"{PARTS}/uploads/{self.id}", token=self.token)

    def finish(self, parts: Sequence[Sent], **more: object) -> Reply:
        """Finish the upload with these parts. `more` is added to the request."""
        listed = [part.as_json for part in parts]
        return self._post("finalise-multipart-upload", {**self.ids, "multipart_metadata": listed, **more})

    def finish_with(self, metadata: object) -> Reply:
        """Finish the upload with any JSON in the place of the list."""
        return self._post("finalise-multipart-upload", {**self.ids, "multipart_metadata": metadata})

    def _post(self, route: str, question: object) -> Reply:
        return self.server.ask("POST", f"{PARTS}/{route}", json.dumps(question).encode(), token=self.token)


def begin(server: RunningServer, question: object, *, token: str = TOKEN) -> Reply:
    """Ask for an upload with any JSON."""
    return server.ask("POST", f"{PARTS}/initiate-multipart-upload", json.dumps(question).encode(), token=token)


def put(url: str, content: bytes) -> Reply:
    """Send bytes to a URL, without a token or a content type."""
    where = urlsplit(url)
    connection = HTTPConnection(str(where.hostname), where.port, timeout=SECONDS)
    try:
        connection.request("PUT", where.path, content)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def read(url: str) -> Reply:
    """Read a URL without a token."""
    where = urlsplit(url)
    connection = HTTPConnection(str(where.hostname), where.port, timeout=SECONDS)
    try:
        connection.request("GET", where.path)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def listed(server: RunningServer) -> list[Any]:
    """Return the records of a server."""
    return list(server.ask("GET", PARTS).json)
