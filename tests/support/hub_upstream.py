"""A small Hub for tests: the read routes of the Hugging Face Hub, written after what its clients ask.

It knows nothing of filestore. It counts the bytes that it sends of each file, and can be told to lie, to stall, to cut, to
redirect, or to answer with a page for people.

Source: `huggingface_hub` 2.4: `file_download.py`, `hf_api.py` (`repo_info`, `list_repo_tree`, `get_paths_info`,
`list_repo_refs`, `whoami`, `auth_check`), `utils/_http.py` (`hf_raise_for_status`).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SIZE = 1000
"""Files from this size on are kept by LFS: they have a SHA-256, and their blob is a pointer."""
_PIECE = 16 << 10
_HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to the network."
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?((?:[^/]+/)?[^/]+)/resolve/([^/]+)/(.+)\Z")
_API = re.compile(r"/api/(models|datasets|spaces)/([^?]+)\Z")
_ROUTE = re.compile(
    r"((?:[^/]+/)?[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?|/(refs|auth-check))?\Z",
)


@dataclass
class Behaviour:
    """How one file is sent otherwise than it should be. Bytes are counted from the start of the file."""

    content: bytes | None = None
    """Other bytes than those whose digest is stated. Their number is stated as the size."""
    hang_at: int | None = None
    """Send no byte from this one on, until `HubUpstream.go_on`."""
    cut_at: int | None = None
    """Close the connection before this byte, each time that it would be sent."""
    redirect: str | None = None
    """Answer with a redirect to this URL."""
    html: bool = False
    """Answer 200 with a page for people."""
    status: int | None = None
    """Answer with this status."""


class Revision(NamedTuple):
    """The files of a repository at one commit."""

    commit: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A repository of the Hub."""

    revisions: list[Revision] = field(default_factory=list)
    """The oldest first."""
    labels: dict[str, str] = field(default_factory=dict)
    """Commits by the names of tags."""
    private: bool = False
    gated: bool = False
    readers: frozenset[str] = frozenset()
    """The tokens that may read it, if it is private or gated."""


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    authorization: str | None
    headers: dict[str, str]


class HubUpstream:
    """The state of a Hub that is running. `running_hub` makes it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        """By their ids, with `datasets/` or `spaces/` before those of other kinds than models."""
        self.behaviours: dict[str, Behaviour] = {}
        """By the paths of files, or of requests, which begin with a slash."""
        self.sent: Counter[str] = Counter()
        """The bytes of contents that were sent, by the paths of files."""
        self.asked: list[Asked] = []
        self.is_away = False
        """Whether all connections are closed without an answer."""
        self.etags = True
        """Whether answers have an ETag, so that an interrupted download can be continued."""
        self.go_on = threading.Event()
        self.reached = threading.Event()
        """Set when a `hang_at` is reached."""

    def commit(self, name: str, files: Mapping[str, bytes], **properties: Any) -> str:
        """Add a commit to a repository, and make that if it is not there. Return the id of the commit."""
        repository = self.repositories.setdefault(name, Repository())
        for key, value in properties.items():
            setattr(repository, key, value)
        parent = repository.revisions[-1].commit if repository.revisions else ""
        state = json.dumps([name, parent, {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}])
        commit = hashlib.sha1(state.encode()).hexdigest()  # as git does
        repository.revisions.append(Revision(commit, dict(files)))
        return commit

    def count(self, path_part: str) -> int:
        """How many requests there were whose path contains this text."""
        return sum(path_part in asked.path for asked in self.asked)


def blob_id(content: bytes) -> str:
    """The id that git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # as git does


def pointer(content: bytes) -> bytes:
    """The file that git keeps in the place of a content that LFS keeps."""
    digest = hashlib.sha256(content).hexdigest()
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (digest.encode(), len(content))


@contextmanager
def running_hub(*, port: int = 0) -> Iterator[HubUpstream]:
    """Answer requests on a port of loopback, in threads, until the end of the block."""
    server = _Server(("127.0.0.1", port), _Handler)
    hub = server.hub = HubUpstream(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: HubUpstream

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # What is counted as sent and never received is small.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients of tests hang up."""


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # as the base class has it
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    @property
    def _hub(self) -> HubUpstream:
        return self.server.hub

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else b""
        authorization = self.headers.get("Authorization")
        self._hub.asked.append(Asked(self.command, self.path, authorization, dict(self.headers.items())))
        if self._hub.is_away:
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        try:
            behaviour = self._hub.behaviours.get(path)
            if behaviour is not None and self._odd(behaviour):
                return
            if path == "/api/whoami-v2":
                self._whoami()
            elif (found := _RESOLVE.match(urlsplit(self.path).path)) is not None:
                self._resolve(*found.groups())
            elif (found := _API.match(urlsplit(self.path).path)) is not None:
                self._api(found[1], found[2], parse_qs(urlsplit(self.path).query), body)
            else:
                raise _Refused(404)
        except _Refused as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send(refusal.status, b"{}", headers | {"X-Error-Message": refusal.message})
        except ConnectionError:
            self.close_connection = True

    def _odd(self, behaviour: Behaviour) -> bool:
        """Answer as a behaviour says, if it concerns the whole answer."""
        if behaviour.redirect is not None:
            self._send(302, b"", {"Location": behaviour.redirect})
        elif behaviour.html:
            self._send(200, _HTML, {"Content-Type": "text/html; charset=utf-8"})
        elif behaviour.status is not None:
            self._send(behaviour.status, b"")
        else:
            return False
        return True

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | dict(headers or {}))

    @property
    def _token(self) -> str | None:
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if kind == "Bearer" and token else None

    def _whoami(self) -> None:
        if not any(self._token in repository.readers for repository in self._hub.repositories.values()):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        self._json({"type": "user", "name": "somebody", "orgs": [], "auth": {"type": "access_token"}})

    def _repository(self, kind: str, name: str, *, for_content: bool) -> Repository:
        known = {token for repository in self._hub.repositories.values() for token in repository.readers}
        if self._token is not None and self._token not in known:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        found = self._hub.repositories.get(name if kind == "models" else f"{kind}/{name}")
        may_read = found is not None and self._token in found.readers
        if found is None or (found.private and not may_read):
            raise _Refused(404 if self._token else 401, "RepoNotFound", "Repository not found")
        if for_content and found.gated and not may_read:
            raise _Refused(403 if self._token else 401, "GatedRepo", "Access to this repository is restricted")
        return found

    def _revision(self, repository: Repository, text: str) -> Revision:
        wanted = unquote(text).removeprefix("refs/heads/")
        if wanted == "main":
            return repository.revisions[-1]
        wanted = repository.labels.get(wanted, wanted)
        for revision in repository.revisions:
            if revision.commit == wanted:
                return revision
        raise _Refused(404, "RevisionNotFound", "Invalid rev id")

    def _resolve(self, prefix: str | None, name: str, rev: str, path: str) -> None:
        repository = self._repository(prefix or "models", unquote(name), for_content=True)
        revision = self._revision(repository, rev)
        path = unquote(path)
        headers = {"X-Repo-Commit": revision.commit, "Accept-Ranges": "bytes"}
        if path not in revision.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        behaviour = self._hub.behaviours.get(path, Behaviour())
        if self._odd(behaviour):
            return
        stated = revision.files[path]
        content = stated if behaviour.content is None else behaviour.content
        if self._hub.etags:
            digest = hashlib.sha256(stated).hexdigest() if len(stated) >= LFS_SIZE else blob_id(stated)
            headers["ETag"] = f'"{digest}"'
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if_range = self.headers.get("If-Range", headers.get("ETag"))
        start, stop = 0, len(content)
        if asked is not None and if_range == headers.get("ETag") and int(asked[1]) < stop:
            start, stop = int(asked[1]), min(stop, int(asked[2]) + 1) if asked[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_content(path, content, start, stop, behaviour)

    def _send_content(self, path: str, content: bytes, start: int, stop: int, behaviour: Behaviour) -> None:
        hub = self._hub
        marks = [mark for mark in (behaviour.cut_at, behaviour.hang_at) if mark is not None]
        place = start
        while place < stop:
            if behaviour.cut_at is not None and place == behaviour.cut_at > start:
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            if place == behaviour.hang_at:
                hub.reached.set()
                hub.go_on.wait()
            end = min([place + _PIECE, stop, *(mark for mark in marks if mark > place)])
            # Counted before: the client may go on as soon as it has them.
            hub.sent[path] += end - place
            try:
                self.wfile.write(content[place:end])
            except OSError:
                hub.sent[path] -= end - place
                raise
            place = end

    def _api(self, kind: str, rest: str, query: dict[str, list[str]], body: bytes) -> None:
        for cut in (1, 0):
            # A name has an owner, or none.
            match = _ROUTE.match(rest)
            if match is not None and (match[1].count("/") == cut or rest.count("/") == 0):
                break
        if match is None:
            raise _Refused(404)
        name, route, rev, folder, plain = match.groups()
        repository = self._repository(kind, unquote(name), for_content=plain == "auth-check")
        revision = self._revision(repository, rev or "main")
        if plain == "auth-check":
            self._json({})
        elif plain == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.revisions[-1].commit}]
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in repository.labels.items()]
            self._json({"branches": branches, "tags": tags, "converts": []})
        elif route == "tree":
            self._tree(revision, unquote(folder or ""), query)
        elif route == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._json([_tree_entry(path, revision.files[path]) for path in wanted if path in revision.files])
        else:
            self._info(unquote(name), repository, revision, with_blobs="true" in query.get("blobs", []))

    def _tree(self, revision: Revision, folder: str, query: dict[str, list[str]]) -> None:
        inside = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(revision.files.items()):
            if not path.startswith(inside):
                continue
            parts = path.removeprefix(inside).split("/")
            for depth in range(1, len(parts)):
                above = inside + "/".join(parts[:depth])
                entries[above] = {"type": "directory", "oid": blob_id(above.encode()), "size": 0, "path": above}
            entries[path] = _tree_entry(path, content)
        if "true" not in query.get("recursive", []) and "1" not in query.get("recursive", []):
            entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(inside)}
        if folder and not entries:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        limit = int(query.get("limit", ["1000"])[0])
        start = int(query.get("cursor", ["0"])[0])
        listed = list(entries.values())
        headers = {}
        if start + limit < len(listed):
            path = urlsplit(self.path).path
            more = {**query, "cursor": [str(start + limit)]}
            text = "&".join(f"{key}={quote(value)}" for key, values in more.items() for value in values)
            headers["Link"] = f'<{self._hub.url}{path}?{text}>; rel="next"'
        self._json(listed[start : start + limit], headers)

    def _info(self, name: str, repository: Repository, revision: Revision, *, with_blobs: bool) -> None:
        siblings = []
        for path, content in revision.files.items():
            sibling: dict[str, Any] = {"rfilename": path}
            if with_blobs:
                entry = _tree_entry(path, content)
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    lfs = entry["lfs"]
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        self._json(
            {
                "_id": "0" * 24,
                "id": name,
                "modelId": name,
                "sha": revision.commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "tags": ["a-tag"],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    if len(content) < LFS_SIZE:
        return {"type": "file", "oid": blob_id(content), "size": len(content), "path": path}
    kept = pointer(content)
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": len(kept)}
    return {"type": "file", "oid": blob_id(kept), "size": len(content), "path": path, "lfs": lfs}
