"""Run a real server process, started as `serve` is, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from email.message import Message
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from filestore.backends import open_backend
from filestore.core.digest import Digest, parse_digests, token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.format.codec import Frame
from filestore.http import wire
from filestore.repository.index.protocol import Index
from filestore.repository.stores.protocol import ChunkStore
from tests.support.fork_server import Program

SECONDS = 100
"""How long a test waits before it fails."""

TOKEN = "a-token-for-tests"
OTHER_TOKEN = "a-token-of-another-namespace"
OTHER_NAMESPACE = "other"


_REPORT = re.compile(r"\S+ \S+ \d+ INFO ")
"""The beginning of a line in the log of a server that only tells what it did."""
FORM = {"Content-Type": "multipart/form-data; boundary=boundary-of-tests"}


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """Which error of ours the body is a problem document of."""
        return str(self.json["type"]).removeprefix("urn:filestore:error:")


class RunningServer(NamedTuple):
    """A server that accepts connections."""

    url: str
    token: str
    root: Path
    process: subprocess.Popen[str]
    tls: ssl.SSLContext | None = None
    """What a client needs to speak TLS with it. None means plain HTTP."""

    @property
    def pid(self) -> int:
        """The process to signal. With several workers, it is the parent."""
        return self.process.pid

    @property
    def headers(self) -> dict[str, str]:
        """The headers with a valid token."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def host(self) -> str:
        """The address at which it listens."""
        host = urlsplit(self.url).hostname
        assert host is not None
        return host

    @property
    def port(self) -> int:
        """The port on which it listens."""
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def ask(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, token: str | None = TOKEN
    ) -> Reply:
        """Return the answer to one request, whose path is sent as it is."""
        connection = HTTPConnection(self.host, self.port, timeout=SECONDS)
        if self.tls is not None:
            connection = HTTPSConnection(self.host, self.port, timeout=SECONDS, context=self.tls)
        try:
            sent = {"Authorization": f"Bearer {token}"} if token is not None else {}
            connection.request(method, path, body or None, sent | dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def connection(self) -> socket.socket:
        """Return a connection on which nothing was sent."""
        plain = socket.create_connection((self.host, self.port), timeout=SECONDS)
        return plain if self.tls is None else self.tls.wrap_socket(plain, server_hostname="127.0.0.1")

    def begin(self, method: str, path: str, *headers: str, body: bytes = b"") -> socket.socket:
        """Return a connection on which a request was sent, with `body` so far."""
        connection = self.connection()
        lines = [f"{method} {path} HTTP/1.1", "Host: server", f"Authorization: Bearer {self.token}", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)
        return connection

    def put(self, frames: Sequence[Frame]) -> Reply:
        """Send a batch."""
        return self.ask("POST", f"{wire.API}/chunks", batch(frames))

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Ask which chunks are missing."""
        return parse_digests(self.ask("POST", f"{wire.API}/chunks/missing", b"".join(digests)).body)

    def commit(self, manifest: bytes, *, name: str) -> Reply:
        """Commit a manifest under a name that needs no encoding."""
        return self.ask("POST", f"{wire.API}/files", manifest, headers={wire.NAME_HEADER: name})

    def upload(self, name: str, content: bytes, *, query: str = "") -> Reply:
        """Send a form with a file, whose name is sent as it is."""
        return self.ask("POST", f"/v3/pipeline_files{query}", form(name, content), headers=FORM)

    def stop(self) -> tuple[int, str]:
        """Stop it as a service manager does; return its exit status, and its standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextmanager
def running_server(root: Path, *, check: bool = True, **settings: str | float) -> Iterator[RunningServer]:
    """Serve `root` on a free port, or `port`, until the end of the block.

    With `check`, the server must then stop without an error message. `settings` are arguments of `serve`. With `opens`,
    a path, the server logs there what it opens (`tests.support.opens`). `jwt_keys` and `jwt_rules` are those of `JwtOptions`, and
    `upstream_url` and others those of `UpstreamOptions`. For `upstream_patience_seconds`, a request waits for the upstream, also
    if its last answer is known.
    `frame_urls` is what the URLs of frames begin with (`tests.support.frame_urls`). Below `objects`, a path,
    uploads are kept as in an object store. For `patience` seconds, a worker leaves a connection to those with less load, and an
    idle connection counts as load. During a stop, a transfer may pause for `lull` seconds.
    """
    process = start_server(root, **settings)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(process.communicate()[1])
        server = RunningServer(line.split()[-1], TOKEN, root, process)
        yield server
        if check:
            status, log = server.stop()
            # On a busy machine, a request whose client has just gone may be in progress for a second longer.
            told = (line for line in log.splitlines(keepends=True) if "stopping: " not in line and _REPORT.match(line) is None)
            found = status, "".join(told)
            assert (0, "") == found, found
    finally:
        process.kill()
        process.communicate()


def start_server(root: Path, **settings: str | float) -> subprocess.Popen[str]:
    """Start a server process, and do not wait until it is ready."""
    return Program(
        [sys.executable, "-m", "tests.support.server", root, *(f"{key}={value}" for key, value in settings.items())],
        cwd=Path(__file__).parents[2],
        env={key: value for key, value in os.environ.items() if not key.startswith("FILESTORE_")},
    )


def form(name: str, content: bytes, *, after: Mapping[str, str] | None = None) -> bytes:
    """Return the body of a form with a file, and other parts after it."""
    parts = [b'Content-Disposition: form-data; name="pfile"; filename="%s"\r\n\r\n%s' % (name.encode(), content)]
    parts += [
        b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (key.encode(), value.encode())
        for key, value in (after or {}).items()
    ]
    return b"".join(b"--boundary-of-tests\r\n%s\r\n" % part for part in parts) + b"--boundary-of-tests--\r\n"


def batch(frames: Sequence[Frame]) -> bytes:
    """Return frames in the form in which they are sent."""
    header = wire.encode_batch_header([wire.BatchEntry(frame.digest, len(frame.data)) for frame in frames])
    return header + b"".join(frame.data for frame in frames)


def reply(connection: socket.socket) -> Reply:
    """Return the whole answer that comes on a connection, to any request but HEAD.

    Raises http.client.HTTPException, OSError.
    """
    with closing(HTTPResponse(connection)) as answer:
        answer.begin()
        return Reply(answer.status, answer.headers, answer.read())


def eventually(reached: Callable[[], bool], said: Callable[[], object] = lambda: "it is not reached") -> None:
    """Ask until the condition is true. If it never is, the failure has what `said` returns."""
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, said()
        os.sched_yield()


def _grouped(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The arguments KEY=VALUE by the options that they belong to. A wrong one fails where the server is made."""
    groups: dict[str, dict[str, Any]] = {group: {} for group in ("server", "limits", "logs", "jwt", "tls", "upstream")}
    for argument in arguments:
        key, _, value = argument.partition("=")
        group, name, parsed = _parsed(key, value)
        groups[group][name] = parsed
    return groups


def _parsed(key: str, value: str) -> tuple[str, str, Any]:
    group, _, name = key.partition("_")
    if key in {"host", "port", "workers", "patience", "lull", "opens", "min_free", "frame_urls", "objects"}:
        found: tuple[str, str, Any] = "server", key, value
    elif key in {"access_log", "access_log_file", "audit_log", "audit_log_size"}:
        found = "logs", key, int(value) if key == "audit_log_size" else value if key == "access_log" else Path(value)
    elif key in {"trusted_proxies", "tls_by_proxy"}:
        found = "limits", key, tuple(map(ip_network, value.split(",")))
    elif group == "upstream":
        found = group, name, value if name == "url" else float(value) if name.endswith("_seconds") else int(value)
    elif group == "tls":
        found = group, name, Path(value)
    elif group == "jwt":
        found = group, name, value if "://" in value else Path(value)
    else:
        found = "limits", key, value if key == "public_url" else float(value) if key.endswith("_seconds") else int(value)
    return found


def _upstream(options: dict[str, Any]) -> Any:
    from filestore.download.download import DownloadLimits
    from filestore.upstream.options import UpstreamOptions

    limits = {name: options.pop(name) for name in ("stall_seconds", "retry_seconds", "first_byte_seconds") if name in options}
    return UpstreamOptions(**options, limits=DownloadLimits(**limits))


def _main() -> None:
    # Only here: the process of a test has no need of it.
    from filestore.errors import FilestoreError
    from filestore.http.limits import ServerLimits
    from filestore.http.server import acceptor, serve, traffic
    from filestore.http.server.jwt_tokens import JwtOptions
    from filestore.http.server.request_logs import LogOptions
    from filestore.http.server.tls import TlsFiles
    from filestore.http.server.worker import no_extension
    from filestore.upstream import hub, upstream
    from filestore.upstream.extension import upstream_extension
    from tests.support.frame_urls import SigningStore
    from tests.support.opens import log_opens
    from tests.support.temporary_objects import FolderObjects

    if any(argument.startswith("jwt_") for argument in sys.argv):
        from tests.support.jwts import AUDIENCE, ISSUER

    root = Path(sys.argv[1])
    options = _grouped(sys.argv[2:])
    server = options["server"]
    min_free = int(server["min_free"]) if "min_free" in server else None
    if "patience" in server:
        acceptor.PATIENCE_SECONDS = acceptor.REST_SECONDS = float(server["patience"])
    if "patience_seconds" in options["upstream"]:
        upstream.PATIENCE_SECONDS = hub._ANSWER_SECONDS = options["upstream"].pop("patience_seconds")
    if "lull" in server:
        traffic.LULL_SECONDS = float(server["lull"])
    if "opens" in server:
        log_opens(Path(server["opens"]))

    async def opened() -> tuple[ChunkStore, Index]:
        store, index = await open_backend(root, create=True, min_free=min_free)
        if "objects" in server:
            store.temporary = FolderObjects(Path(server["objects"]))
        return (SigningStore(store, server["frame_urls"]) if "frame_urls" in server else store), index

    try:
        serve(
            opened,
            host=server.get("host", "127.0.0.1"),
            port=int(server.get("port", 0)),
            tokens={token_digest(TOKEN): DEFAULT_NAMESPACE, token_digest(OTHER_TOKEN): OTHER_NAMESPACE},
            announce=lambda url: print(f"listening on {url}", flush=True),  # noqa: T201  # what its parent waits for
            spool_folder=root / "tmp",
            workers=int(server.get("workers", 1)),
            announce_stop=lambda sentence: print(sentence, flush=True),  # noqa: T201  # what a command prints
            logs=LogOptions(**options["logs"]),
            jwt=JwtOptions(issuer=ISSUER, audience=AUDIENCE, **options["jwt"]) if options["jwt"] else None,
            limits=ServerLimits(**options["limits"]),
            tls=TlsFiles(**options["tls"]) if options["tls"] else None,
            extension=upstream_extension(root, _upstream(options["upstream"])) if options["upstream"] else no_extension,
        )
    except FilestoreError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _main()
