"""Write to a running server as clients of the Hub do, one request at a time."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from tests.support.server import SECONDS, TOKEN, Reply, RunningServer

Line = dict[str, Any]


def header(summary: str = "a commit", **more: object) -> Line:
    """Return the first line of a commit."""
    return {"key": "header", "value": {"summary": summary, "description": "", **more}}


def put_file(path: str, content: bytes) -> Line:
    """Return the line of a file that comes with the commit."""
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}}


def put_object(path: str, content: bytes) -> Line:
    """Return the line of a file that came as an LFS object."""
    return {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid(content), "size": len(content)}}


def line(key: str, **value: object) -> Line:
    """Return any other line."""
    return {"key": key, "value": value}


def oid(content: bytes) -> str:
    """Return the name of an LFS object."""
    return hashlib.sha256(content).hexdigest()


class HubRepository:
    """A repository at a server."""

    def __init__(self, server: RunningServer, name: str = "team/my-model", *, token: str = TOKEN) -> None:
        self.server = server
        self.name = name
        self.token = token

    def ask(self, method: str, path: str, document: object = None) -> Reply:
        """Send JSON."""
        body = b"" if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        return self.server.ask(method, path, body, headers=headers, token=self.token)

    def api(self, method: str, path: str, document: object = None) -> Reply:
        """Send JSON to a route of the repository."""
        return self.ask(method, f"/api/models/{self.name}/{path}", document)

    def create(self) -> Reply:
        """Create it."""
        owner, _, name = self.name.rpartition("/")
        return self.ask("POST", "/api/repos/create", {"name": name, "organization": owner or None})

    def delete(self) -> Reply:
        """Delete it."""
        owner, _, name = self.name.rpartition("/")
        return self.ask("DELETE", "/api/repos/delete", {"name": name, "organization": owner or None})

    def commit(self, *lines: Line, branch: str = "main", query: str = "") -> Reply:
        """Make a commit. A header is sent first if there is none."""
        sent = lines if lines and lines[0]["key"] == "header" else (header(), *lines)
        body = b"".join(json.dumps(each).encode() + b"\n" for each in sent)
        return self.commit_body(body, branch=branch, query=query)

    def commit_body(self, body: bytes, *, branch: str = "main", query: str = "") -> Reply:
        """Send any bytes as a commit."""
        path = f"/api/models/{self.name}/commit/{branch}{query}"
        return self.server.ask("POST", path, body, headers={"Content-Type": "application/x-ndjson"}, token=self.token)

    def committed(self, *lines: Line, branch: str = "main") -> str:
        """Make a commit, which must succeed. Return its id."""
        answer = self.commit(*lines, branch=branch)
        assert answer.status == 200, answer.body
        return str(answer.json["commitOid"])

    def batch(self, *contents: bytes) -> list[Any]:
        """Ask which objects are missing."""
        return self.batch_of([{"oid": oid(content), "size": len(content)} for content in contents])

    def batch_of(self, objects: Sequence[Mapping[str, object]]) -> list[Any]:
        """Ask about any objects, which must be permitted."""
        answer = self.ask_batch({"objects": list(objects)})
        assert answer.status == 200, answer.body
        found: list[Any] = answer.json["objects"]
        return found

    def ask_batch(self, document: Mapping[str, object]) -> Reply:
        """Ask by any document."""
        question = {"operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256", **document}
        return self.ask("POST", f"/{self.name}.git/info/lfs/objects/batch", question)

    def upload(self, content: bytes) -> None:
        """Send an object in one request, if it is not there."""
        (described,) = self.batch(content)
        if "actions" in described:
            answer = send("PUT", described["actions"]["upload"]["href"], content)
            assert answer.status == 200, answer.body

    def upload_parts(self, described: Mapping[str, Any], content: bytes) -> Reply:
        """Send an object in parts, and complete it."""
        upload = described["actions"]["upload"]
        size = int(upload["header"]["chunk_size"])
        parts = []
        for number in range(1, -(-len(content) // size) + 1):
            answer = send("PUT", upload["header"][str(number)], content[(number - 1) * size : number * size])
            assert answer.status == 200, answer.body
            parts.append({"partNumber": number, "etag": answer.headers["ETag"]})
        return self.complete(described, parts)

    def complete(self, described: Mapping[str, Any], parts: object) -> Reply:
        """Complete an object of parts."""
        body = json.dumps({"oid": described["oid"], "parts": parts}).encode()
        return send("POST", described["actions"]["upload"]["href"], body)

    def files(self, revision: str = "main") -> list[str]:
        """Return the paths of all files."""
        answer = self.api("GET", f"revision/{revision}")
        assert answer.status == 200, answer.body
        return [each["rfilename"] for each in answer.json["siblings"]]

    def head(self, revision: str = "main") -> str:
        """Return the id of the newest commit."""
        answer = self.api("GET", f"revision/{revision}")
        assert answer.status == 200, answer.body
        return str(answer.json["sha"])

    def read(self, path: str, revision: str = "main") -> bytes:
        """Return the content of a file."""
        answer = self.server.ask("GET", f"/{self.name}/resolve/{revision}/{path}", token=self.token)
        assert answer.status == 200, answer.body
        return answer.body


def send(method: str, url: str, content: bytes, *, announced: int | None = None) -> Reply:
    """Send bytes to a URL without a token."""
    where = urlsplit(url)
    connection = HTTPConnection(str(where.hostname), where.port, timeout=SECONDS)
    try:
        connection.request(method, where.path, content, {} if announced is None else {"Content-Length": str(announced)})
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()
