"""What a server or an origin sends to a client: heads of answers, documents, problems, listings, parts of downloads."""

from __future__ import annotations

import io
import json
import math
import socket
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from multidict import CIMultiDict

from filestore.core import records
from filestore.core.digest import chunk_digest
from filestore.core.names import checked_name, checked_namespace
from filestore.core.records import Kind, Record, record_from_json
from filestore.core.references import FileURL
from filestore.core.signing import SigningKeys, signed_path
from filestore.download import addresses
from filestore.download.addresses import is_address, is_plain, is_public
from filestore.download.download import (
    DownloadLimits,
    DownloadOptions,
    PartialDownload,
    Validators,
    _Downloader,
    validators_from,
)
from filestore.errors import (
    ChunksMissing,
    DownloadRefused,
    FilestoreError,
    Interrupted,
    LimitExceeded,
    ServerError,
    Stalled,
    StorageFull,
    UnexpectedRecord,
)
from filestore.http import wire
from filestore.http.client import documents, heads
from filestore.http.client.answers import answer_error
from filestore.http.client.channel import Channel, Peer
from filestore.http.client.chunked import ChunkedCoding
from filestore.http.client.heads import parse_head
from filestore.http.wire import TEXT_LIMIT
from filestore.repository import listing
from filestore.repository.listing import LINE_LIMIT
from filestore.system import http_answers
from filestore.system.http_answers import Said
from tests.fuzz.target import PlantedFault, Target, pieces_of, run, scratch_folder, text_of
from tests.support.coding import decoded

_SERVER = "http://a-server"
_YEARS_SECONDS = 1e12
"""More seconds than until the year 9999, and more than nine digits give."""


def _check_said(said: Said) -> None:
    seconds = said.retry_after_seconds
    assert seconds is None or (math.isfinite(seconds) and 0 <= seconds < _YEARS_SECONDS)


def _check_answer_head(data: bytes) -> None:
    """The head of an answer states a status, and a size that is a number of bytes."""
    head = parse_head(data)
    assert 100 <= head.status <= 599
    assert head.size is None or 0 <= head.size < 10**18
    assert head.size is None or not head.is_chunked
    assert not head.is_chunked or b"content-length" not in data.lower()
    assert all(len(text) <= len(data) for text in head.said)
    _check_said(head.said)


def _answer_heads() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999\r\nServer: filestore\r\nConnection: keep-alive, close",
        b"HTTP/1.0 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\nDate: Sun, 06 Nov 1994 08:49:30 GMT",
        b"HTTP/1.1 204 \r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
    ]


ANSWER_HEAD = Target(
    check=_check_answer_head,
    errors=(ValueError,),
    seeds=_answer_heads,
    fault=PlantedFault(owner=heads, function="_size", old="not _SIZE.fullmatch(sizes[0])", new="not sizes[0].isdigit()"),
    parses=("filestore.http.client.heads", "filestore.system.http_answers"),
)


def _coding_outcome(arriving: list[bytes]) -> bytes | str:
    try:
        return decoded(arriving)[0]
    except (EOFError, ValueError) as error:
        return repr(error)


def _check_chunked(data: bytes) -> None:
    """The chunked coding gives one body, or one error, in any split; and the body is what its lines say."""
    body = _coding_outcome([data])
    assert body == _coding_outcome(pieces_of(data))
    if isinstance(body, str):
        return
    found, rest = bytearray(), data
    while True:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        found += rest[:size]
        assert rest[size : size + 2] == b"\r\n"
        rest = rest[size + 2 :]
    assert found == body
    assert rest.startswith(b"\r\n") or b"\r\n\r\n" in rest


CHUNKED = Target(
    check=_check_chunked,
    errors=(),
    seeds=lambda: [
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\nHTTP/1.1",
        b"5\r\n0\r\n\r\n\r\n00;x\r\n\r\n",
    ],
    fault=PlantedFault(owner=ChunkedCoding, function="_take", old='if line != b"\\r\\n":', new="if not line:"),
    parses=("filestore.http.client.chunked",),
    size_limit=1024,
)


def _check_channel(data: bytes) -> None:
    """The body of an answer is as long as its head says, and the connection is not used again if bytes are left."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        opened = Channel(ours, Peer(_SERVER, "", []), stall_seconds=5)
        head = opened.ask("/native/v1/repository", method="GET", is_late=len(data) % 2 == 1)
        piece, size = memoryview(bytearray(7)), 0
        while received := opened.receive_into(piece):
            size += received
            assert head.is_chunked or size <= (head.size or 0)
        assert head.is_chunked or size == (head.size or 0)
        assert opened.left == 0


def _answers() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b"twelve bytes",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n9\r\nten bytes\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://u:p@elsewhere/native/v1\r\n\r\n",
    ]


CHANNEL = Target(
    check=_check_channel,
    errors=(Interrupted, ServerError, Stalled),
    seeds=_answers,
    fault=PlantedFault(owner=Channel, function="receive_into", old="wanted = memory[: self.left]", new="wanted = memory"),
    parses=("filestore.http.client.channel", "filestore.http.client.chunked", "filestore.http.client.foreign"),
)


def _record() -> Record:
    digest = chunk_digest(b"content")
    return Record(f"file_{'0' * 32}", "näme.bin", digest, (1 << 63) - 1, Kind.FILE, "default", 1_700_000_000_000_000, 0)


_DIGESTS = tuple(chunk_digest(bytes([number])) for number in range(3))
_PARSERS = "identity", "record", "records", "versions", "freed", "usage", "signed path", "late", "digests"


def _check_document(data: bytes) -> None:
    """What a server says has valid names, and numbers that a database can keep."""
    if not data:
        return
    parser, answer = _PARSERS[data[0] % len(_PARSERS)], data[1:]
    if parser == "digests":
        assert set(documents.parse_digests_among(_SERVER, _DIGESTS, answer)) <= set(_DIGESTS)
    elif parser == "late":
        documents.parse_late_document(_SERVER, answer)
    else:
        document = documents.parse_document(_SERVER, answer)
        json.dumps(document, allow_nan=False)
        _check_facts(parser, document)


def _check_facts(parser: str, document: dict[str, Any]) -> None:
    match parser:
        case "identity":
            identity = documents.parse_identity(_SERVER, document)
            checked_namespace(identity.namespace)
            assert identity.upload_limit is None or 0 <= identity.upload_limit < 1 << 63
        case "record":
            _check_record(documents.parse_record(_SERVER, document))
        case "records":
            for record in documents.parse_records(_SERVER, document, limit=2, before=5):
                _check_record(record)
        case "versions":
            page = documents.parse_versions(_SERVER, document, limit=2, before=None)
            assert len(page.records) <= page.total < 1 << 63
        case "freed":
            freed = documents.parse_freed(_SERVER, document)
            assert all(0 <= number < 1 << 63 for number in (freed.chunk_count, freed.stored_size))
        case "usage":
            usage = documents.parse_usage(_SERVER, document)
            assert math.isfinite(usage.grace_seconds)
            assert all(checked_name(name.name) for name in usage.names)
        case _:
            assert documents.parse_signed_path(_SERVER, document, file_id=_record().id).isascii()


def _check_record(record: Record) -> None:
    assert 0 <= record.size < 1 << 63
    assert record == record_from_json(json.loads(json.dumps(record.as_json())))
    assert len(record.run_path.encode()) < 512


def _documents() -> list[bytes]:
    record = _record().as_json()
    path = signed_path(SigningKeys.first(b"s"), "GET", f"/{_record().run_path}", namespace="default", expires_at=2_000_000_000)
    count = 1 << 40
    usage: dict[str, Any] = dict.fromkeys(_usage_numbers(), count) | {"namespace": "default", "grace_seconds": 60.0}
    usage |= {"damaged": ["file_1"], "names": [_name_usage()]}
    contents: dict[str, object] = {
        "identity": {"format": 1, "chunking_version": 1, "id": "0" * 32, "namespace": "default", "upload_limit": count},
        "record": record,
        "records": {"files": [record]},
        "versions": {"files": [record | {"pipelines": "p"}], "total": 2},
        "freed": {"chunk_count": 2, "stored_size": (1 << 63) - 1, "is_held": True},
        "usage": usage,
        "signed path": {"path": path.removeprefix("/")},
        "late": wire.encode_problem(LimitExceeded("a size", 2, 1)).document,
    }
    made = [bytes([_PARSERS.index(kind)]) + json.dumps(content).encode() for kind, content in contents.items()]
    return [*made, bytes([_PARSERS.index("digests")]) + b"".join(_DIGESTS), b"\x01" + b"[" * 200]


def _usage_numbers() -> list[str]:
    from filestore.repository.protocol import Usage

    return [name for name in Usage._fields if name not in {"namespace", "grace_seconds", "damaged", "names", "hold"}]


def _name_usage() -> dict[str, object]:
    return {"name": "a.bin", "version_count": 1, "logical_size": 2, "own_size": 3, "shared_size": 4}


DOCUMENT = Target(
    check=_check_document,
    errors=(FilestoreError,),
    seeds=_documents,
    fault=PlantedFault(
        owner=records, function="checked_record", old="if not 0 <= record.size < 1 << 63:", new="if not 0 <= record.size:"
    ),
    parses=(
        "filestore.http.client.documents",
        "filestore.core",
        "filestore.repository.protocol",
        "filestore.repository.format_file",
    ),
)


def _check_problem(data: bytes) -> None:
    """An unsuccessful answer becomes an error of ours, with texts of limited length, that can be sent on unchanged."""
    status = 100 + int.from_bytes(data[:2], "big") % 500
    said = Said(server=text_of(data[2:12]), content_type="text/html" if data[1:2] == b"h" else "", location=text_of(data[2:20]))
    error = answer_error(_SERVER, status, data[2:], said, sent_size=1, has_token=True)
    assert isinstance(error, FilestoreError)
    assert str(error)
    if not isinstance(error, ChunksMissing):
        assert all(len(fact) <= TEXT_LIMIT for fact in error.args if isinstance(fact, str))
    problem = wire.encode_problem(error)
    again = wire.decode_problem(_SERVER, problem.status, json.loads(json.dumps(problem.document)))
    assert str(error.args) == str(again.args) or type(error) is not type(again)
    assert type(error).slug == type(again).slug


def _problems() -> list[bytes]:
    errors: list[FilestoreError] = [
        LimitExceeded("a size in bytes", 5, 4, "upload_limit"),
        StorageFull("/a/folder", "x" * (TEXT_LIMIT - 1)),
        Stalled("a client", 1.5),
        ChunksMissing(*map(str, _DIGESTS)),
        UnexpectedRecord("a", "b", "c"),
    ]
    documents_of = [wire.encode_problem(error).document for error in errors]
    for document in documents_of:
        del document["detail"], document["title"]
    made = [b"\x01\x90" + json.dumps(document).encode() for document in documents_of]
    return [*made, b'\x01\x91{"type": "about:blank", "title": "Not Found", "detail": "404"}', b"\x01h<html>", b"\x00\x00"]


PROBLEM = Target(
    check=_check_problem,
    errors=(),
    seeds=_problems,
    fault=PlantedFault(
        owner=wire,
        function="_made_again",
        old="and not (isinstance(fact, str) and len(fact) > TEXT_LIMIT)",
        new="",
    ),
    parses=("filestore.http.wire", "filestore.http.client.answers", "filestore.http.client.foreign"),
    size_limit=8192,
)


class _ListingFile(io.BytesIO):
    """A file of which no line may be read without a limit."""

    def readline(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 < size <= LINE_LIMIT
        return super().readline(size)


def _check_listing(data: bytes) -> None:
    """A line of a listing has one record, which is written as it was read."""
    file, count = _ListingFile(data), 0
    while found := listing._next_records(file):
        count += len(found)
        assert count <= data.count(b"\n")
        for position, record, _ in found:
            assert type(position) is int
            assert type(record.size) is int
            assert (position, record) == listing._record(listing.line(position, record))[:2]


LISTING = Target(
    check=_check_listing,
    errors=(ValueError,),
    seeds=lambda: [
        listing.line(9, _record()) + b"   \n" + listing.line(8, _record()),
        listing.line(8, _record()),
        b" \n \n",
        b"{}\n",
    ],
    fault=PlantedFault(owner=listing, function="record_from_json", old="if type(size) is not int or not all(", new="if not all("),
    parses=("filestore.repository.listing", "filestore.core"),
)


def _check_retry_after(data: bytes) -> None:
    """A server can ask for a wait, which is a number of seconds."""
    retry_after, _, date = text_of(data).partition("\n")
    _check_said(Said(retry_after=retry_after, date=date))


RETRY_AFTER = Target(
    check=_check_retry_after,
    errors=(),
    seeds=lambda: [
        b"120",
        b"Sun, 06 Nov 1994 08:49:37 GMT\nSun, 06 Nov 1994 08:49:30 GMT",
        b"Fri, 31 Dec 9999 23:59:59 -2359\nSun, 06 Nov 1994 08:49:30 -0000",
    ],
    fault=PlantedFault(
        owner=http_answers.Said,
        function="retry_after_seconds",
        old="return float(text[:9])",
        new="return float(text)",
    ),
    parses=("filestore.system.http_answers", "email._parseaddr"),
    size_limit=200,
)

_DOWNLOAD_LIMIT = 1 << 20


async def _begun(data: bytes) -> None:
    first, *lines = text_of(data).split("\n")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in lines:
        name, _, value = line.partition(":")
        headers.add(name, value.strip())
    staging = PartialDownload(scratch_folder())
    staging.open()
    try:
        staging.size, staging.total, staging.validators = 5, 9, Validators('"a"')
        reserved = []

        async def reserve(size: int) -> None:
            reserved.append(size)

        limits = DownloadLimits(size=_DOWNLOAD_LIMIT)
        options = DownloadOptions()
        url = FileURL("https://origin.example/a")
        downloader = _Downloader(url, staging, limits=limits, known=None, report=None, reserve=reserve, options=options)
        status = (200, 206, 416, 304, 302)[len(first) % 5]
        length = headers.get("Content-Length", "")
        announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
        response = SimpleNamespace(status=status, headers=headers, content_length=announced)
        if status == 302:
            target = FileURL(downloader._next("https://origin.example/b", headers.get("Location", "")))
            assert target.url.startswith("https:")
            assert "@" not in target.url.partition("#")[0].partition("?")[0].split("/")[2]
            return
        part = await downloader._begin(cast(aiohttp.ClientResponse, response))
        if part is not None:
            assert 0 <= part.start <= 5
            assert part.stop is None or part.start <= part.stop <= _DOWNLOAD_LIMIT
        assert all(size <= 2 * _DOWNLOAD_LIMIT for size in reserved)
        assert staging.validators == validators_from(json.loads(json.dumps(staging.validators)))
    finally:
        staging.close()


def _check_download(data: bytes) -> None:
    """An answer of an origin continues what is here, or begins again, and is never larger than the limit."""
    run(_begun(data))


def _downloads() -> list[bytes]:
    return [
        b'\nContent-Length: 1048576\nETag: "b"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\nDate: Sun, 6 Nov 1994 09:49:37 GMT',
        b'1\nContent-Range: bytes 5-8/9\nETag: "a"',
        b'1\nContent-Range: bytes 0-8/*\nETag: "a"',
        b"\nContent-Range: bytes 0-8/9\nContent-Encoding: gzip",
        b"22\nContent-Range: bytes */5",
        b"4444\nLocation: //elsewhere.example/c?d",
        b"4444\nLocation: http://user@[::1]:80/",
    ]


DOWNLOAD = Target(
    check=_check_download,
    errors=(DownloadRefused, Interrupted, LimitExceeded, ServerError, StorageFull),
    seeds=_downloads,
    fault=PlantedFault(owner=_Downloader, function="_reserve_more", old="if size > self._limits.size:", new="if size < 0:"),
    parses=("filestore.download.download", "filestore.core.references"),
    size_limit=1024,
)


def _check_address(data: bytes) -> None:
    """An address that counts as public is one, also by Python's own table."""
    text = text_of(data)
    is_address(text)
    if is_public(text):
        assert is_plain(text)
        assert ip_address(text).is_global
        assert addresses.network_of(text, [addresses.parse_network("0.0.0.0/0"), addresses.parse_network("::/0")])


ADDRESS = Target(
    check=_check_address,
    errors=(),
    seeds=lambda: [b"8.8.8.8", b"2606:4700::1111", b"64:ff9b::808:808", b"2002:808:808::", b"0x7f.1"],
    fault=PlantedFault(
        owner=addresses,
        function="_is_public_4",
        old="return not any(address in network for network in _NOT_PUBLIC)",
        new="return not address.is_loopback",
    ),
    parses=("filestore.download.addresses", "ipaddress"),
    size_limit=64,
)
