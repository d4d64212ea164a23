"""What this machine keeps where others may write: files of a cache, the push cache; and what the code of a pipeline sends."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, cast

from zstandard import ZstdCompressor, ZstdError

from filestore.cache import entries
from filestore.cache.cache import _read_identity
from filestore.cache.entries import FileEntry, TreeEntry, encode_entry, read_entry
from filestore.cache.entry_store import _read_record, read_manifest
from filestore.core.manifest import Manifest
from filestore.core.records import Kind, parse_json, record_from_json
from filestore.download.download import validators_from
from filestore.errors import InvalidInput, LimitExceeded, NotABackup, UnknownFormat
from filestore.format.chunking import CHUNKING_VERSION
from filestore.repository import format_file
from filestore.repository.format_file import REPOSITORY_ID_PATTERN, REPOSITORY_VERSION
from filestore.repository.maintenance import backup
from filestore.repository.stores.protocol import ChunkStore
from filestore.runtime import printed, worker
from filestore.runtime.printed import RunLog
from filestore.runtime.routes import bodies
from filestore.runtime.worker import MESSAGE_LIMIT
from filestore.runtime.worker_protocol import HEADER_SIZE, body_size, decode, decode_value
from filestore.transfer.sources import push_cache
from tests.fuzz.target import PlantedFault, Target, run, scratch_folder, text_of
from tests.fuzz.targets.answers import _record


def _check_cache_file(data: bytes) -> None:
    """A file of a cache is understood or ignored, whatever is in it, and no path in it leads out of its tree."""
    if not data:
        return
    path = scratch_folder() / "entry.json"
    path.write_bytes(data[1:])
    match data[0] % 5:
        case 0:
            _check_entry(read_entry(scratch_folder(), Kind.FILE))
        case 1:
            _check_entry(read_entry(scratch_folder(), Kind.DIRECTORY))
        case 2:
            record = _read_record(path)
            assert record is None or record == record_from_json(record.as_json())
        case 3:
            identity = _read_identity(path)
            assert identity is None or len(identity.id) == 32
        case _:
            (scratch_folder() / "manifest").write_bytes(data[1:])
            manifest = read_manifest(scratch_folder())
            assert manifest is None or manifest.encoded == data[1:]
            assert len(validators_from(parse_json(data[1:]))) == 3


def _check_entry(entry: FileEntry | TreeEntry | None) -> None:
    if entry is None:
        return
    sizes = (
        [entry.size]
        if isinstance(entry, FileEntry)
        else [entry.size, entry.stored_size, *(size for size, _ in entry.files.values())]
    )
    assert all(0 <= size < 1 << 63 for size in sizes)
    assert not entry.is_intact(scratch_folder() / "nothing")
    (scratch_folder() / "entry.json").write_bytes(encode_entry(entry))
    assert entry == read_entry(scratch_folder(), Kind.FILE if isinstance(entry, FileEntry) else Kind.DIRECTORY)


def _cache_files() -> list[bytes]:
    most = (1 << 63) - 1
    tree = TreeEntry(1, most, 2, {"a/b.bin": (3, -4)})
    identity = {"id": "0" * 32, "namespace": "default", "cutting": CHUNKING_VERSION}
    manifest = Manifest.build(iter(()), chunking_version=CHUNKING_VERSION).encoded
    return [
        b"\x00" + encode_entry(FileEntry(most, 5, CHUNKING_VERSION)),
        b"\x01" + encode_entry(tree),
        b"\x02" + json.dumps(_record().as_json()).encode(),
        b"\x03" + json.dumps(identity).encode(),
        b"\x04" + manifest,
        b'\x04["\\"etag\\"", "Sun, 06 Nov 1994 08:49:37 GMT", true]',
    ]


CACHE_FILE = Target(
    check=_check_cache_file,
    errors=(ValueError, TypeError),
    seeds=_cache_files,
    fault=PlantedFault(owner=entries, function="_size", old="not 0 <= value < 1 << 63", new="value < 0"),
    parses=("filestore.cache.entries", "filestore.cache.entry_store", "filestore.core.records"),
)


class _Store:
    """As much of a store as the reader of a format file uses."""

    def __init__(self, kept: bytes) -> None:
        self._kept = kept

    async def initialise(self, _: bytes) -> bytes:
        return self._kept


def _check_repository_file(data: bytes) -> None:
    """A file that identifies a repository or a backup has values of the right types, or is refused."""
    if not data:
        return
    content = data[1:]
    match data[0] % 3:
        case 0:
            (scratch_folder() / backup.FACTS_NAME).write_bytes(content)
            facts = backup.read_facts(scratch_folder())
            assert isinstance(facts["repository_id"], str)
            assert type(facts["has_content"]) is bool
        case 1:
            (scratch_folder() / backup.MARK_NAME).write_bytes(content)
            backup.target_id(scratch_folder())
        case _:
            repository_id, _ = run(format_file.read_format(cast(ChunkStore, _Store(content)), location="a folder"))
            assert REPOSITORY_ID_PATTERN.fullmatch(repository_id)


def _repository_files() -> list[bytes]:
    facts = {"version": backup.BACKUP_VERSION, "repository_id": "0" * 32, "has_content": True}
    kept = {"format": REPOSITORY_VERSION, "cutting": CHUNKING_VERSION, "id": "0" * 32}
    return [bytes([number]) + json.dumps(values).encode() for number, values in enumerate((facts, facts, kept))]


REPOSITORY_FILE = Target(
    check=_check_repository_file,
    errors=(NotABackup, UnknownFormat),
    seeds=_repository_files,
    fault=PlantedFault(
        owner=format_file,
        function="read_format",
        old="if not REPOSITORY_ID_PATTERN.match(repository_id):",
        new="if not repository_id:",
    ),
    parses=("filestore.repository.maintenance.backup", "filestore.repository.format_file"),
)

_MANIFEST = Manifest.build(iter(()), chunking_version=CHUNKING_VERSION)


def _check_push_cache(data: bytes) -> None:
    """A fingerprint belongs to its manifest, and is never larger than its limit."""
    fingerprint = push_cache._fingerprint(data, _MANIFEST)
    assert len(fingerprint) <= push_cache.FINGERPRINT_LIMIT


def _fingerprints() -> list[bytes]:
    compressor = ZstdCompressor(write_checksum=True)
    other = ZstdCompressor(write_content_size=False)
    return [compressor.compress(_MANIFEST.digest + b"f" * 100), other.compress(_MANIFEST.digest), compressor.compress(b"")]


PUSH_CACHE = Target(
    check=_check_push_cache,
    errors=(ValueError, ZstdError),
    seeds=_fingerprints,
    fault=PlantedFault(
        owner=push_cache,
        function="_fingerprint",
        old="if get_frame_parameters(kept).content_size > DIGEST_SIZE + FINGERPRINT_LIMIT:",
        new="if not kept:",
    ),
    parses=("filestore.transfer.sources.push_cache",),
)


def _check_message(data: bytes) -> None:
    """The process of a pipeline sends messages of limited size, and values that are JSON."""
    if len(data) < HEADER_SIZE:
        return
    size = body_size(data[:HEADER_SIZE])
    assert 0 <= size <= MESSAGE_LIMIT
    message = decode(data[HEADER_SIZE:][:size])
    for value in message.get("outputs") or []:
        decode_value(value, lambda file: Path(str(file["path"])))


def _messages() -> list[bytes]:
    messages: list[dict[str, Any]] = [
        {"outputs": [{"value": 1.5}, {"items": [{"path": "/a", "kind": "file", "url": None}]}, {"fields": {"a": {"value": []}}}]},
        {"error": {"exception": "ValueError", "traceback": None}, "is_spent": True},
        {"values": [{"value": "text"}], "has_ended": False},
    ]
    nested = b'{"outputs": [' + b'{"items": [' * 150 + b"]}" * 150 + b"]}"
    made = [worker.encode(message) for message in messages]
    return [*made, struct.pack("<I", MESSAGE_LIMIT) + b"{}", struct.pack("<I", len(nested)) + nested]


WORKER_MESSAGE = Target(
    check=_check_message,
    errors=(LimitExceeded, ValueError, KeyError, TypeError, AttributeError),
    seeds=_messages,
    fault=PlantedFault(owner=worker, function="body_size", old="if size > MESSAGE_LIMIT:", new="if size < 0:"),
    parses=("filestore.runtime.worker",),
    size_limit=8192,
)


def _check_printed(data: bytes) -> None:
    """Lines that a pipeline prints cannot control a terminal, and take limited memory."""
    log = RunLog(kept_size=200)
    log.add(data.split(b"\n"))
    log.add_rest(data)
    lines = log.lines()
    assert len(log.first_lines()) <= 3
    assert all(printed._HARMFUL.search(line.text) is None for line in lines)
    assert sum(len(line.text) for line in log.first_lines()) <= 4 * (200 + len(max(data.split(b"\n"), key=len)))


PRINTED = Target(
    check=_check_printed,
    errors=(),
    seeds=lambda: [b"a line\rnot\n\x1b[31mred\x1b[0m", "\u202eleft".encode(), b"\xff\xfe"],
    fault=PlantedFault(
        owner=RunLog, function="add", old="if self._first_size >= self._kept_size:", new="if self._first_size < 0:"
    ),
    parses=("filestore.runtime.printed",),
)


def _check_run_inputs(data: bytes) -> None:
    """The body of a run is a JSON object, or refused with the place at which it breaks."""
    found = bodies.json_object(text_of(data), "the body")
    assert isinstance(found, dict)
    json.dumps(found)


RUN_BODY = Target(
    check=_check_run_inputs,
    errors=(InvalidInput,),
    seeds=lambda: [b'{"pipeline": "a:v1", "inputs": [{"type": "integer", "value": 1}]}', b'{"a": NaN, "b": 1e400}', b"[" * 300],
    fault=PlantedFault(owner=bodies, function="json_object", old="if not isinstance(value, dict):", new="if value is None:"),
    parses=("filestore.runtime.routes.bodies", "filestore.core.records"),
)
