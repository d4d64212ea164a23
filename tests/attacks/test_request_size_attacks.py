"""Requests that are small for a client and large for a server: their answers, their memory and their time are bounded."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from filestore.core.digest import DIGEST_AND_NUMBER, DIGEST_SIZE, Digest
from filestore.core.manifest import MANIFEST_LIMIT, Chunk, Manifest
from filestore.errors import ChunksMissing
from filestore.format.chunking import CHUNKING_VERSION
from tests.support.process_memory import peak_growth
from tests.support.server import RunningServer, running_server

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the default limits, which must log nothing about these attacks."""
    with running_server(tmp_path_factory.mktemp("served") / "root") as server:
        yield server


def manifest_of_absent_chunks() -> bytes:
    """Return the largest manifest. Each of its chunks has one byte."""
    count = (MANIFEST_LIMIT - 24) // DIGEST_AND_NUMBER.size
    raw = random.Random(1).randbytes(count * DIGEST_SIZE)
    digests = (Digest(raw[start : start + DIGEST_SIZE]) for start in range(0, len(raw), DIGEST_SIZE))
    return Manifest.build((Chunk(digest, 1) for digest in digests), chunking_version=CHUNKING_VERSION).encoded


@pytest.mark.slow
def test_a_huge_manifest_of_absent_chunks(server: RunningServer) -> None:
    """The answer lists 4,096 of 1.9 million chunks, in 0.3 MiB. The server holds the manifest, and little more."""
    encoded = manifest_of_absent_chunks()
    for _ in range(2):
        with peak_growth(server.pid) as grown:
            answer = server.commit(encoded, name="huge.bin")
        assert (409, "chunks-missing") == (answer.status, answer.slug)
        assert ChunksMissing.limit == len(set(answer.json["digests"]))
        assert len(answer.body) < MIB // 2
        assert grown() < len(encoded) + 64 * MIB
