"""Measure how long the requests of one namespace wait while another namespace works as much as it can.

python bench/fairness.py                               # every attack, with one and with two workers
python bench/fairness.py --seconds 5 --workers 1 --only commits,batches

A real server runs, and a process of its own attacks it with one token. This process sends one small request after the
other with a second token: a put, a commit, a `missing` and a GET. The median and the longest time of each are printed. The
attacks: `commits` of manifests of 64 MiB, `batches` of 4,096 tiny frames, `missing` about 65,536 chunks, `gets` of a file,
and `removals` of files with 4,096 chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from filestore.backends import open_backend  # noqa: E402  # a script finds its neighbours only now
from filestore.core.digest import DIGEST_SIZE, Digest, chunk_digest  # noqa: E402
from filestore.core.manifest import Chunk, Manifest  # noqa: E402
from filestore.core.names import DEFAULT_NAMESPACE  # noqa: E402
from filestore.format.chunking import CHUNKING_VERSION  # noqa: E402
from filestore.http import wire  # noqa: E402
from filestore.repository.index.protocol import ChunkRow  # noqa: E402
from tests.support.frames import encoded  # noqa: E402
from tests.support.server import FORM, OTHER_TOKEN, TOKEN, RunningServer, batch, form, running_server  # noqa: E402

ATTACKS = ("nothing", "commits", "batches", "missing", "gets", "removals")
_THREADS = 8
_CHUNK_SIZE = 1 << 20
_ROWS_AT_ONCE = 10_000
_GET_SIZE = 16 << 20
_TINY_SIZE = 20
_NONE: Mapping[str, str] = {}

Once = Callable[[HTTPConnection, int], object]
"""A function that sends one request of an attack, or a few. It gets the number of its thread."""


def main() -> None:
    """Measure, and print a table for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each attack (default %(default)s)")
    parser.add_argument("--workers", default="1,2", help="numbers of worker processes (default %(default)s)")
    parser.add_argument("--only", default=",".join(ATTACKS), help="attacks (default: all)")
    parser.add_argument("--chunks", type=int, default=1_860_000, help="of a manifest of `commits` (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--attack", nargs=3, metavar=("NAME", "PORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        _attack(*options.attack)
        return
    for workers in options.workers.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-fairness-") as name:
            root = Path(name, "repository")
            attacks = options.only.split(",")
            if "commits" in attacks:
                Path(name, "manifest").write_bytes(asyncio.run(_large_manifest(root, options.chunks)))
            with running_server(root, check=False, workers=workers) as server:
                print(f"{workers} workers; milliseconds, median and longest")
                for attack in attacks:
                    _measure(server, attack, Path(name), options.seconds)


async def _large_manifest(root: Path, count: int) -> bytes:
    """Return a manifest of `count` chunks that are live. Only their rows exist."""
    store, index = await open_backend(root, create=True)
    chunks = [Chunk(Digest(number.to_bytes(8, "big") + bytes(DIGEST_SIZE - 8)), _CHUNK_SIZE) for number in range(count)]
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = [ChunkRow(chunk.digest, chunk.size, chunk.size) for chunk in chunks[start : start + _ROWS_AT_ONCE]]
        async with index.transaction() as transaction:
            await transaction.add_chunks(DEFAULT_NAMESPACE, rows)
    await store.close()
    await index.close()
    return bytes(Manifest.build(chunks, chunking_version=CHUNKING_VERSION).encoded)


def _measure(server: RunningServer, attack: str, folder: Path, seconds: float) -> None:
    times: dict[str, list[float]] = {"put": [], "commit": [], "missing": [], "GET": []}
    command = [sys.executable, __file__, "--attack", attack, str(server.port), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as attacker:
        try:
            if attacker.stdout is not None:
                attacker.stdout.readline()
            time.sleep(1)
            ends, number = time.monotonic() + seconds, 0
            while time.monotonic() < ends:
                _small_requests(server, times, f"{attack} {number}".encode())
                number += 1
        finally:
            attacker.kill()
    shown = (f"{verb} {median(found) * 1000:.0f} {max(found) * 1000:.0f}" for verb, found in times.items())
    print(f"  {attack:9} {', '.join(shown)}  ({number} rounds)", flush=True)


def _small_requests(server: RunningServer, times: dict[str, list[float]], content: bytes) -> None:
    def timed(verb: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        started = time.perf_counter()
        reply = server.ask(method, path, body, headers=headers, token=OTHER_TOKEN)
        times[verb].append(time.perf_counter() - started)
        if reply.status >= 300:
            raise SystemExit(f"{verb}: {reply.status} {reply.body[:200]!r}")
        return reply.body

    manifest = Manifest.build([Chunk(chunk_digest(content), len(content))], chunking_version=CHUNKING_VERSION)
    timed("put", "POST", f"{wire.API}/chunks", batch([encoded(content)]))
    timed("commit", "POST", f"{wire.API}/files", bytes(manifest.encoded), {wire.NAME_HEADER: "small"})
    timed("missing", "POST", f"{wire.API}/chunks/missing", chunk_digest(content))
    timed("GET", "GET", f"{wire.API}/manifests/{manifest.digest}")


def _attack(name: str, port: str, folder: str) -> None:
    """Attack in several threads until this process is killed."""
    once = _prepared(name, port, folder)
    print(flush=True)
    for number in range(_THREADS if name != "nothing" else 0):
        threading.Thread(target=_repeat, args=(once, port, number)).start()
    threading.Event().wait()


def _prepared(name: str, port: str, folder: str) -> Once:
    """Return the function that each thread of an attack calls again and again."""
    if name == "commits":
        manifest = Path(folder, "manifest").read_bytes()
        return lambda connection, number: _send(connection, "POST", f"{wire.API}/files", manifest, _named(number))
    if name == "missing":
        digests = os.urandom(wire.DIGESTS_LIMIT * DIGEST_SIZE)
        return lambda connection, _: _send(connection, "POST", f"{wire.API}/chunks/missing", digests)
    if name == "gets":
        connection = HTTPConnection("127.0.0.1", int(port))
        content = form("large.bin", os.urandom(_GET_SIZE))
        file_id = json.loads(_send(connection, "POST", "/v3/pipeline_files", content, FORM))["id"]
        return lambda connection, _: _send(connection, "GET", f"/v3/pipeline_files/download/{file_id}")
    return {"nothing": _push_tiny, "batches": _push_tiny, "removals": _remove}[name]


def _repeat(once: Once, port: str, number: int) -> None:
    while True:
        connection = HTTPConnection("127.0.0.1", int(port), timeout=600)
        # The server may cut a connection of an attacker.
        with suppress(OSError, HTTPException):
            while True:
                once(connection, number)


def _send(connection: HTTPConnection, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = _NONE) -> bytes:
    connection.request(method, path, body or None, {"Authorization": f"Bearer {TOKEN}", **headers})
    return connection.getresponse().read()


def _named(number: int) -> dict[str, str]:
    return {wire.NAME_HEADER: f"large-{number}"}


def _push_tiny(connection: HTTPConnection, _: int) -> list[bytes]:
    """Send a batch of new tiny frames. Return their contents."""
    random = os.urandom(_TINY_SIZE * wire.BATCH_COUNT_LIMIT)
    contents = [random[start : start + _TINY_SIZE] for start in range(0, len(random), _TINY_SIZE)]
    _send(connection, "POST", f"{wire.API}/chunks", batch([encoded(content) for content in contents]))
    return contents


def _remove(connection: HTTPConnection, number: int) -> None:
    """Push a file of tiny chunks, and remove it with its chunks."""
    chunks = [Chunk(chunk_digest(content), len(content)) for content in _push_tiny(connection, number)]
    manifest = bytes(Manifest.build(chunks, chunking_version=CHUNKING_VERSION).encoded)
    record = json.loads(_send(connection, "POST", f"{wire.API}/files", manifest, _named(number)))
    _send(connection, "DELETE", f"{wire.API}/files/{record['id']}?chunks=true")


if __name__ == "__main__":
    main()
