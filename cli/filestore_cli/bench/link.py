"""Measure the link to a server, and what a plain HTTP client reaches there. Everything here blocks.

The bare body upwards is a batch whose frames have a codec that no server knows. The server reads it as it reads any batch, stores
nothing of it, and answers with `invalid-frame`. The bare body downwards are stored frames, which the server sends as they are.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.errors import FilestoreError, InvalidFrame, NotFound, ScopeMissing, Unreachable
from filestore.http.wire import API, OCTETS, BatchEntry, decode_problem, encode_batch_header
from filestore.system.certificates import load_pair
from filestore.system.connection_errors import failure_reason
from filestore.system.proxies import parse_proxy, proxy_for

PIECE = 1 << 20
FRAMES_MAX = 63
"""Frames of the largest bare body. Each has a MiB, and a batch may have 64 MiB."""
LEAST_SECONDS = 0.5
"""A rate is measured for at least so long."""
ROUND_TRIPS = 20

_FORM_BOUNDARY = "filestore-bench"
_UNKNOWN_CODEC = b"\xff"


class Address(NamedTuple):
    """How a server is reached."""

    url: str
    token: str | None
    proxy: str | None
    """As for `filestore.backends.connect`."""
    certificate: tuple[str | None, str | None]
    """The files of the client's certificate and its key."""
    stall_seconds: float


class PlainConnection:
    """One connection to a server, which is opened with the first request. Use it as a context manager."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._parts = urlsplit(address.url)
        self._headers: dict[str, str] = {}
        self._prefix = self._parts.path.rstrip("/")
        self._connection = self._new_connection()
        if address.token is not None:
            self._headers["Authorization"] = f"Bearer {address.token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def exchange(
        self,
        method: str,
        path: str,
        *,
        pieces: Iterable[bytes | memoryview] = (),
        size: int = 0,
        headers: dict[str, str] | None = None,
    ) -> HTTPResponse:
        """Send a request with a body of `size` bytes, and return the head of its answer. Raises Unreachable."""
        try:
            self._connection.putrequest(method, self._prefix + path)
            fields = {**self._headers, **(headers or {}), **({"Content-Length": str(size)} if method != "GET" else {})}
            for name, value in fields.items():
                self._connection.putheader(name, value)
            self._connection.endheaders()
            # A server that refuses a body early has answered already.
            with suppress(ConnectionError):
                for piece in pieces:
                    self._connection.send(piece)
            return self._connection.getresponse()
        except OSError as error:
            raise Unreachable(self._address.url, failure_reason(error)) from error

    def document(self, response: HTTPResponse, *, expected: int) -> Any:
        """Return the JSON document of an answer. Raises the error that the server reports if the status is another one."""
        found = _document(response)
        if response.status != expected:
            raise decode_problem(self._address.url, response.status, found)
        return found

    def refusal(self, response: HTTPResponse, expected: type[FilestoreError]) -> None:
        """Read an answer that must be this error. Raises the error that the server reports if it is another one."""
        error = decode_problem(self._address.url, response.status, _document(response))
        if not isinstance(error, expected):
            raise error

    def _new_connection(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        given = self._address.proxy
        if given is None:
            proxy = proxy_for(os.environ, self._address.url)
        else:
            proxy = parse_proxy(given, source="proxy") if given else None
        authorization = {} if proxy is None or proxy.authorization is None else {"Proxy-Authorization": proxy.authorization}
        timeout = self._address.stall_seconds
        if self._parts.scheme != "https":
            if proxy is None:
                return HTTPConnection(host, port, timeout=timeout, blocksize=PIECE)
            # A proxy for http:// gets the whole URL.
            self._prefix = f"{self._parts.scheme}://{self._parts.netloc}{self._prefix}"
            self._headers |= authorization
            return HTTPConnection(proxy.host, proxy.port, timeout=timeout, blocksize=PIECE)
        context = ssl.create_default_context()
        certificate, key = self._address.certificate
        if certificate is not None:
            load_pair(context, Path(certificate), None if key is None else Path(key), name="tls_client")
        if proxy is None:
            return HTTPSConnection(host, port, timeout=timeout, blocksize=PIECE, context=context)
        connection = HTTPSConnection(proxy.host, proxy.port, timeout=timeout, blocksize=PIECE, context=context)
        connection.set_tunnel(host, port or 443, headers=authorization)
        return connection


def _document(response: HTTPResponse) -> Any:
    try:
        return json.loads(response.read())
    except ValueError:
        return None


def round_trip_seconds(address: Address) -> float:
    """Return the median time of a small request on a connection that is open."""
    seconds = []
    with PlainConnection(address) as connection:
        for _ in range(ROUND_TRIPS + 1):
            started = time.perf_counter()
            connection.exchange("GET", "/healthz").read()
            seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def may_remove(address: Address) -> bool:
    """Return whether the token may remove records, by removing one that is not there. Raises what the server reports."""
    with PlainConnection(address) as connection:
        response = connection.exchange("DELETE", f"{API}/files/file_{os.urandom(16).hex()}")
        try:
            connection.refusal(response, NotFound)
        except ScopeMissing:
            return False
        return True


def send_bare_body(connection: PlainConnection, size: int) -> int:
    """Send a body of about `size` bytes that the server reads and does not store. Return its size."""
    count = min(max(size // PIECE, 1), FRAMES_MAX)
    header = encode_batch_header([BatchEntry(Digest(os.urandom(DIGEST_SIZE)), PIECE) for _ in range(count)])
    # Not zeros, which a network may compress.
    pieces = [header] + [_UNKNOWN_CODEC + os.urandom(PIECE - len(_UNKNOWN_CODEC))] * count
    whole = len(header) + count * PIECE
    response = connection.exchange("POST", f"{API}/chunks", pieces=pieces, size=whole, headers={"Content-Type": OCTETS})
    connection.refusal(response, InvalidFrame)
    return whole


def receive_bare_body(connection: PlainConnection, digests: bytes) -> int:
    """Receive the frames with these digests, and throw them away. Return their size."""
    headers = {"Content-Type": OCTETS}
    response = connection.exchange("POST", f"{API}/chunks/get", pieces=[digests], size=len(digests), headers=headers)
    if response.status != 200:
        connection.document(response, expected=200)
    return _receive(response, lambda _: None)


def _receive(response: HTTPResponse, take: Callable[[memoryview], object]) -> int:
    place = memoryview(bytearray(PIECE))
    received = 0
    while size := response.readinto(place):
        take(place[:size])
        received += size
    return received


def goodput(address: Address, move: Callable[[PlainConnection, int], int], *, largest: int) -> tuple[float, int]:
    """Return the bytes a second of one connection, and the size of a body that takes long enough.

    `move` moves a body of about the given size, and returns its size. The bodies grow up to `largest`.
    """
    with PlainConnection(address) as connection:
        size = min(PIECE, largest)
        # Not counted: the connection is made.
        move(connection, size)
        while True:
            started = time.perf_counter()
            moved = move(connection, size)
            seconds = time.perf_counter() - started
            if seconds >= LEAST_SECONDS or size >= largest:
                break
            size = min(4 * size, largest)
        while seconds < LEAST_SECONDS:
            moved += move(connection, size)
            seconds = time.perf_counter() - started
    return moved / seconds, size


def goodput_together(address: Address, move: Callable[[PlainConnection, int], int], *, size: int, connections: int) -> float:
    """Return the bytes a second of several connections at the same time."""
    moved: list[int] = []
    failed: list[BaseException] = []
    started = time.perf_counter()

    def go_on() -> None:
        try:
            with PlainConnection(address) as connection:
                while True:
                    moved.append(move(connection, size))
                    if time.perf_counter() - started >= LEAST_SECONDS:
                        return
        except BaseException as error:  # noqa: BLE001  # it is raised below
            failed.append(error)

    threads = [threading.Thread(target=go_on) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(moved) / (time.perf_counter() - started)


def upload_plainly(address: Address, path: Path, *, name: str, done: Callable[[int], None]) -> str:
    """Send a file as a form, as `curl -F` does. Return the path at which it can be read."""
    size = path.stat().st_size
    head = (
        f'--{_FORM_BOUNDARY}\r\nContent-Disposition: form-data; name="pfile"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{_FORM_BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={_FORM_BOUNDARY}"}

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        place = memoryview(bytearray(PIECE))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(place):
                yield place[:count]
                done(count)
        yield tail

    with PlainConnection(address) as connection:
        whole = len(head) + size + len(tail)
        response = connection.exchange("POST", "/v3/pipeline_files", pieces=pieces(), size=whole, headers=headers)
        return str(connection.document(response, expected=201)["path"])


def download_plainly(address: Address, stored: str, path: Path, *, done: Callable[[int], None]) -> int:
    """Write the file at the path `stored` of a server to `path`, as `curl -o` does. Return its size."""
    with PlainConnection(address) as connection, path.open("wb", buffering=0) as file:
        response = connection.exchange("GET", "/" + quote(stored.lstrip("/")))
        if response.status != 200:
            connection.document(response, expected=200)

        def take(piece: memoryview) -> None:
            file.write(piece)
            done(len(piece))

        return _receive(response, take)
