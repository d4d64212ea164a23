"""References, stored paths, URLs and names: texts that users, graphs and servers give."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote, unquote

from filestore.core import names, paths, references
from filestore.core.digest import Digest, chunk_digest
from filestore.core.names import NAME_LIMIT, SEGMENT_LIMIT, checked_name, checked_new_name, plain_name, shortened, tree_name
from filestore.core.paths import file_path, parse_file_path, parse_run_path, run_path, unhashed
from filestore.core.references import FileURL, PipelineReference, Reference
from filestore.errors import InvalidDigest, InvalidInput, InvalidName, InvalidReference
from filestore.http.server.body.forms import last_part
from tests.fuzz.target import PlantedFault, Target, text_of

_DIGEST = chunk_digest(b"content")
_ID = f"file_{'0a' * 16}"


def _check_reference(data: bytes) -> None:
    """A reference is printed in the form from which it was parsed, and its parts have limited lengths."""
    text = text_of(data)
    try:
        pipeline = PipelineReference.parse(text)
        assert pipeline == PipelineReference.parse(str(pipeline))
    except InvalidInput:
        pass
    reference = Reference.parse(text)
    assert reference == Reference.parse(str(reference))
    assert reference.revision is None or 0 < len(reference.revision.encode()) <= 255
    assert reference.name is None or checked_name(reference.name) == reference.name


def _references() -> list[bytes]:
    texts = (
        "model.safetensors",
        "owner-1/name@~3:folder/file",
        f"{_ID}:inner",
        str(_DIGEST),
        f"name@{'ab' * 8}",
        "name@" + "r" * 255,
        file_path(_DIGEST, "näme"),
        run_path(_ID, "name"),
        "pipeline:latest",
        "a:v1",
    )
    return [text.encode() for text in texts]


REFERENCE = Target(
    check=_check_reference,
    errors=(InvalidInput,),
    seeds=_references,
    fault=PlantedFault(
        owner=references, function="_checked_revision", old="len(revision.encode()) > _REVISION_LIMIT", new="not revision"
    ),
    parses=("filestore.core",),
    size_limit=1024,
)


def _check_stored_path(data: bytes) -> None:
    """A stored path has one form: what parses is what would be made from its parts."""
    path = text_of(data)
    plain = path.removeprefix("/")
    with suppress(InvalidReference):
        assert plain == file_path(*parse_file_path(path))
    with suppress(InvalidReference):
        assert plain == run_path(*parse_run_path(path))
    try:
        assert plain == paths.hashed(unhashed(plain))
        assert len(Digest.parse(plain.rpartition("/")[2])) == 32
    except (InvalidReference, InvalidDigest):
        pass
    reference = Reference.parse_path(path)
    assert reference.name is None or len(reference.name.encode()) <= NAME_LIMIT


STORED_PATH = Target(
    check=_check_stored_path,
    errors=(InvalidReference, InvalidDigest),
    seeds=lambda: [
        file_path(_DIGEST, "n" * 254).encode(),
        run_path(_ID, "n" * 250).encode(),
        paths.hashed(_DIGEST).encode(),
        f"/{file_path(_DIGEST, 'a')}".encode(),
    ],
    fault=PlantedFault(owner=paths, function="unhashed", old="if hashed(digest) != path:", new="if not digest:"),
    parses=("filestore.core",),
    size_limit=1024,
)


def _check_url(data: bytes) -> None:
    """The name of a download is a valid file name, and what is printed of a URL has no secrets."""
    url = FileURL(text_of(data))
    assert checked_name(url.name) == url.name
    assert url.redacted_url.partition("?")[2] in {"", "..."}
    assert "@" not in url.url.partition("#")[0].partition("?")[0].split("/")[2]
    assert len(repr(url)) < 4 * len(data) + 100


def _urls() -> list[bytes]:
    return [
        b"https://example.org/weights/model.safetensors?X-Signature=secret#part",
        b"http://[::1]:80/%2e%2e/a%00b%2Fc",
        b"https://example.org/" + b"n" * 250 + b".bin",
        "https://münchen.example/ä".encode(),
    ]


URL = Target(
    check=_check_url,
    errors=(InvalidReference,),
    seeds=_urls,
    fault=PlantedFault(owner=references, function="plain_name", old="if len(whole) > NAME_LIMIT:", new="if not whole:"),
    parses=("filestore.core",),
    size_limit=1024,
)


def _check_name(data: bytes) -> None:
    """A valid name stays valid when it is shortened, becomes a folder, or comes from a URL."""
    text = text_of(data)
    if text.isprintable():
        assert checked_name(plain_name(quote(text)))
        assert len(quote(shortened(text), safe="")) <= SEGMENT_LIMIT
    name = checked_new_name(last_part(text))
    assert len(name.encode()) <= NAME_LIMIT
    assert not set(name) & set("/\0\r\n@:")
    assert checked_name(tree_name(name))
    assert checked_name(shortened(name))
    assert name == unquote(quote(name))


NAME = Target(
    check=_check_name,
    errors=(InvalidName,),
    seeds=lambda: [b"model.zip", b"C:\\folder\\a.bin", b"n" * 255, b".." + b"x" * 250, "ä".encode() * 120, b"a@b:c", b".zip"],
    fault=PlantedFault(owner=names, function="_fault", old="if length > NAME_LIMIT else", new="if length < 0 else"),
    parses=("filestore.core.names", "filestore.http.server.body.forms"),
    size_limit=1024,
)
