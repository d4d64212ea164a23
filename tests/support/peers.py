"""Peers that answer as a test says, in the process of the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from filestore.core.digest import DIGEST_SIZE, Digest
from filestore.format.codec import Frame
from filestore.http import wire
from tests.support.hostile_server import Answer, Asked, answering

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
"""The answer of a peer that has no room for another request."""


def asked_digests(asked: Asked) -> list[Digest]:
    """Return the chunks that a request wants."""
    return [Digest(asked.body[start : start + DIGEST_SIZE]) for start in range(0, len(asked.body), DIGEST_SIZE)]


def frames_answer(wanted: Sequence[Digest], held: Mapping[Digest, bytes]) -> bytes:
    """Return the answer of a peer that holds these frames."""
    entries = [wire.BatchEntry(digest, len(held.get(digest, b""))) for digest in wanted]
    body = wire.encode_batch_header(entries) + b"".join(held.get(digest, b"") for digest in wanted)
    return answering(body, content_type=wire.OCTETS)


def giving(frames: Iterable[Frame]) -> Answer:
    """Return what answers as a peer that holds these frames."""
    held = {frame.digest: bytes(frame.data) for frame in frames}
    return lambda asked: frames_answer(asked_digests(asked), held)
