"""What a client sends to a server: heads, ranges, forms, lists of parts, tokens, signed paths, headers of proxies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from multidict import CIMultiDict

from filestore.core import signing
from filestore.core.digest import DIGEST_SIZE, token_digest
from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.signing import SigningKeys, is_signed_path, signed_path, unsigned_path
from filestore.errors import InvalidInput, InvalidRange, LimitExceeded, Unauthorized, UrlRefused
from filestore.http.server import auth, origin, request_head, validators
from filestore.http.server.body import forms
from filestore.http.server.body.forms import FIELDS_LIMIT, PARTS_LIMIT, receive_form
from filestore.http.server.context import RequestContext
from filestore.http.server.origin import HOST_LIMIT, Origin, TrustedProxies
from filestore.http.server.request_head import FIELD_LIMIT, HEAD_LIMIT, HeadReader, HeadRefused, UnfinishedHeads
from filestore.http.server.routes.sdk import multipart
from filestore.http.server.routes.sdk.multipart import json_body
from filestore.http.server.routes.sdk.upload_store import PART_LIMIT
from filestore.http.server.validators import attachment
from tests.fuzz.target import PlantedFault, Target, pieces_of, run, text_of

_FILLER = b"~"
"""Stands for 4 KiB of a letter in the head of a request: limits are at 16 and 32 KiB."""
_EXPANDED_LIMIT = 96 << 10


def _check_request_head(data: bytes) -> None:
    """A head that arrives in pieces is the same as in one piece. An unfinished one never takes more than its limit."""
    data = data.replace(_FILLER, b"a" * 4096)[:_EXPANDED_LIMIT]
    sizes = UnfinishedHeads()
    pieces = [data[start : start + 4099] for start in range(0, len(data), 4099)] if len(data) > 4096 else pieces_of(data)
    piecewise = HeadReader(sizes, lambda: None)
    found = None
    for number, piece in enumerate(pieces):
        found = piecewise.read(piece)
        assert piecewise.size <= HEAD_LIMIT
        assert sizes.size == piecewise.size
        if found is not None:
            found = found[0], found[1] + b"".join(pieces[number + 1 :])
            break
    whole = HeadReader(UnfinishedHeads(), lambda: None).read(data)
    if found is not None:
        assert found == whole
        head, rest = found
        assert head.endswith(b"\r\n\r\n")
        assert len(head) <= HEAD_LIMIT
        assert max(map(len, head.split(b"\r\n"))) <= FIELD_LIMIT
        assert data.endswith(rest)


def _request_heads() -> list[bytes]:
    fields = b"\r\n".join(b"X-%d: ~" % number for number in range(7))
    return [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
        b"\r\n\r\nPOST /native/v1/chunks HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\n" + fields + b"\r\nEnd: of",
        b"GET /" + b"~" * 3 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ]


REQUEST_HEAD = Target(
    check=_check_request_head,
    errors=(HeadRefused,),
    seeds=_request_heads,
    fault=PlantedFault(
        owner=request_head,
        function="_check_unfinished",
        old="if len(head) > HEAD_LIMIT:",
        new="if len(head) > 1 << 30:",
    ),
    parses=("filestore.http.server.request_head",),
)

_SIZES = (0, 1, 1000, 1 << 40)


def _check_range(data: bytes) -> None:
    """A range is inside the file, and names are written so that they are one header field."""
    header, size = text_of(data[1:]), _SIZES[data[0] % len(_SIZES)] if data else 0
    if header.isprintable():
        field = attachment(header.encode("utf-8", "replace").decode())
        assert "\r" not in field
        assert "\n" not in field
        assert field.count('"') == 2
    found = validators.parse_range(header, size)
    if found is not None:
        assert 0 <= found.start < found.stop <= size


def _ranges() -> list[bytes]:
    texts = ("bytes=0-0", "bytes=5-", "bytes=-5", "bytes=0-00000000000000000000", "BYTES = 1 - 999", "bytes=0-1,3-4", "lines=1-2")
    return [bytes([number]) + text.encode() for text in texts for number in (2, 3)]


RANGE = Target(
    check=_check_range,
    errors=(InvalidRange,),
    seeds=_ranges,
    fault=PlantedFault(
        owner=validators,
        function="parse_range",
        old="start, stop = int(first), min(size, int(last) + 1) if last is not None else size",
        new="start, stop = int(first), int(last) + 1 if last is not None else size",
    ),
    parses=("filestore.http.server.validators",),
    size_limit=200,
)

_UPLOAD_LIMIT = 64
_BOUNDARY = b"b0undary"


class _Spool:
    """Takes the file of a form, as the file of a spool does."""

    def __init__(self) -> None:
        self.size = 0

    async def write(self, content: bytearray) -> int:
        self.size += len(content)
        return len(content)


@dataclass
class _FormRequest:
    """As much of a request as the reader of a form uses."""

    content: StreamReader
    headers: CIMultiDict[str]
    content_type: str = "multipart/form-data"


class _FormContext:
    """As much of a context as the reader of a form uses."""

    stall_seconds = 30.0

    def __init__(self, request: _FormRequest) -> None:
        self.request = request

    @asynccontextmanager
    async def moving(self, _: float) -> AsyncIterator[None]:
        yield

    async def passed(self, size: int) -> None:
        """Nothing limits how fast the body comes."""

    def check_upload_size(self, size: int) -> None:
        if size > _UPLOAD_LIMIT:
            raise LimitExceeded("the file's size in bytes", size, _UPLOAD_LIMIT)


def _check_form(data: bytes) -> None:
    """A form has the same file and the same fields in one piece and in many, within its limits."""
    whole = run(_received([data]))
    assert whole == run(_received(pieces_of(data)))


async def _received(pieces: list[bytes]) -> tuple[object, int] | type[Exception]:
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 1 << 16, loop=asyncio.get_running_loop())
    for piece in pieces:
        content.feed_data(piece)
    content.feed_eof()
    header = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
    context, spool = _FormContext(_FormRequest(content, CIMultiDict({"Content-Type": header}))), _Spool()
    try:
        form = await receive_form(cast(RequestContext, context), cast(Any, spool), file_part="pfile", check_name=lambda _: None)
    except (InvalidInput, LimitExceeded) as error:
        return type(error)
    assert form.size == spool.size <= _UPLOAD_LIMIT
    assert sum(map(len, form.fields.values())) <= PARTS_LIMIT
    assert sum(len(value) for values in form.fields.values() for value in values) <= FIELDS_LIMIT
    assert form.file_name is None or "/" not in form.file_name
    return form, spool.size


def _forms() -> list[bytes]:
    def form(*parts: tuple[str, bytes]) -> bytes:
        lines = [
            b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (_BOUNDARY, head.encode(), body) for head, body in parts
        ]
        return b"".join(lines) + b"--%b--\r\n" % _BOUNDARY

    return [
        form(('name="pfile"; filename="model.bin"', b"w" * 60), ('name="note"', b"text")),
        form(("name=note; filename*=UTF-8''na%20me", b""), ('name="pfile"; filename="C:\\\\a\\b.bin"', b"x")),
        form(('name="_charset_"', b"utf-8"), ('name="a"', b"1"), ('name="a"', b"2")),
        b"preamble\r\n" + form(('name="pfile"; filename="%22"', b"--b0undar\r\n--")) + b"epilogue",
    ]


FORM = Target(
    check=_check_form,
    errors=(),
    seeds=_forms,
    fault=PlantedFault(owner=forms, function="_spool", old="context.check_upload_size(size)", new="pass"),
    parses=("filestore.http.server.body.forms", "aiohttp.multipart"),
)


class _BodyContext:
    """As much of a context as the reader of a JSON body uses."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    @asynccontextmanager
    async def whole_body(self, *, what: str, limit: int) -> AsyncIterator[bytes]:
        if len(self._body) > limit:
            raise LimitExceeded(what, len(self._body), limit)
        yield self._body


def _check_parts(data: bytes) -> None:
    """A list of parts has numbers within the limit, and one tag for each."""
    message = run(json_body(cast(RequestContext, _BodyContext(data))))
    metadata = message.get("multipart_metadata")
    listed = multipart.listed_parts(metadata, what="multipart_metadata", number_key="PartNumber", tag_key="ETag")
    assert all(1 <= number <= PART_LIMIT for number in listed)
    assert all(isinstance(tag, str) for tag in listed.values())


def _parts() -> list[bytes]:
    parts = [{"PartNumber": number, "ETag": f'"{"ab" * 4}{number}"'} for number in (1, 2, PART_LIMIT)]
    return [
        json.dumps({"multipart_metadata": parts}).encode(),
        b'{"multipart_metadata": []}',
        b"[[[[[[[[",
        b'{"multipart_metadata": [{}]}',
    ]


UPLOAD_PARTS = Target(
    check=_check_parts,
    errors=(InvalidInput, LimitExceeded),
    seeds=_parts,
    fault=PlantedFault(owner=multipart, function="_part_number", old="1 <= number <= PART_LIMIT", new="1 <= number"),
    parses=("filestore.http.server.routes.sdk.multipart", "json.decoder"),
)


def _check_authorization(data: bytes) -> None:
    """A token is a text without blanks around it, whatever bytes it has."""
    header = text_of(data)
    assert len(token_digest(auth._required_token(header))) == DIGEST_SIZE
    token = auth._token(header)
    assert token not in {None, "", "None"}
    assert auth.gives_token(header)


AUTHORIZATION = Target(
    check=_check_authorization,
    errors=(Unauthorized,),
    seeds=lambda: [b"Bearer hf_" + b"a" * 37, b"Basic YTpi", b"Bearer  \xff\xfe "],
    fault=PlantedFault(owner=auth, function="_token", old='or token in {"", "None"}', new=""),
    parses=("filestore.http.server.auth",),
)

_KEYS = SigningKeys.first(b"s" * 32)
_EXPIRES_AT = 2_000_000_000


def _check_signed_path(data: bytes) -> None:
    """Only a URL that was signed is accepted, in the one form in which it was made."""
    path = text_of(data)
    if is_signed_path(path):
        assert unsigned_path(path).startswith("/")
        assert len(unsigned_path(path)) < len(path)
    found = path.split("/", 5)
    if len(found) < 6 or found[:2] != ["", "signed"]:
        raise UrlRefused("it is too short")
    namespace, expires_at, signature, rest = found[2:]
    signing.verify_path(_KEYS, "GET", f"/{rest}", namespace=namespace, expires_at=expires_at, signature=signature, now=1)
    assert len(expires_at) <= 15
    assert path == signed_path(_KEYS, "GET", f"/{rest}", namespace=namespace, expires_at=int(expires_at))


def _signed_paths() -> list[bytes]:
    paths = ("/pipeline_files/ab/cd/x/name", "/v4/files/posts/1/content/n")
    made = [signed_path(_KEYS, "GET", path, namespace=DEFAULT_NAMESPACE, expires_at=_EXPIRES_AT) for path in paths]
    return [path.encode() for path in made]


SIGNED_PATH = Target(
    check=_check_signed_path,
    errors=(UrlRefused,),
    seeds=_signed_paths,
    fault=PlantedFault(
        owner=signing, function="verify_path", old="or key is None or not _SECONDS.fullmatch(expires_at)", new="or key is None"
    ),
    parses=("filestore.core.signing",),
    size_limit=512,
)

_PROXY = "10.0.0.1"


def _check_forwarded(data: bytes) -> None:
    """The address of a client is an address, and the host of a base URL is a host."""
    names = ("Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded")
    headers: CIMultiDict[str] = CIMultiDict()
    for line in text_of(data).split("\n"):
        if line:
            headers.add(names[ord(line[0]) % len(names)], line[1:])
    transport = SimpleNamespace(get_extra_info=lambda name: (_PROXY, 1) if name == "peername" else ("127.0.0.1", 80))
    request = cast(web.BaseRequest, SimpleNamespace(headers=headers, transport=transport, scheme="http"))
    way = Origin(None, TrustedProxies([ip_network("10.0.0.0/8")]))
    way.check(request)
    client = way.client_address(request)
    assert client == _PROXY or ip_address(client)
    assert len(origin.client_group(client)) <= 64
    scheme, _, host = way.base_url(request).partition("://")
    assert scheme in {"http", "https"}
    assert 0 < len(host) <= HOST_LIMIT
    assert not set(host) & set("/@?# \r\n")


def _forwarded() -> list[bytes]:
    def fields(**given: str) -> bytes:
        first = {"Host": "F", "For": "G", "Proto": "H", "XHost": "I", "Forwarded": "J"}
        return "\n".join(first[name] + value for name, value in given.items()).encode()

    return [
        fields(Host="example.org:8000"),
        fields(Host="h", For="203.0.113.9, 10.1.2.3", Proto="https", XHost="a." * 127),
        fields(Host="[::1]:80", Forwarded='for="[2001:db8::1]:4711";proto=https;host=example.org, for=10.0.0.2'),
    ]


FORWARDED = Target(
    check=_check_forwarded,
    errors=(InvalidInput,),
    seeds=_forwarded,
    fault=PlantedFault(owner=origin, function="_is_host", old=" if len(text) <= HOST_LIMIT else None", new=""),
    parses=("filestore.http.server.origin",),
    size_limit=1024,
)
