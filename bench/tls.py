"""Measure what TLS at the server costs: push, fetch and plain GET of one file over https, and over http in the same run.

python bench/tls.py                                    # 1 GiB, three times each, in turn
python bench/tls.py --size 128MiB --times 1 --folder /var/tmp

The content is random bytes, so that nothing is compressed. Each push is to a new repository. curl does the plain GET. At the end,
1,000 connections begin a handshake and do not finish it, and the growth of the server is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.run import FILESTORE, Server, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402  # found only now
from tests.support.authority import Authority  # noqa: E402
from tests.support.process_memory import memory  # noqa: E402
from tests.support.slow_clients import allow_many_files  # noqa: E402

_PLAIN = ("--insecure",)
_HANDSHAKES = 1000
_HELLO_BEGUN = bytes.fromhex("160301020001")
_VERBS = ("push", "fetch", "GET by curl")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=1 << 30)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        _measure(Path(name), asked.size, asked.times)


def _measure(folder: Path, size: int, times: int) -> None:
    authority = Authority(folder / "authority")
    pair = authority.pair("server")
    options = {"http": _PLAIN, "https": ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))}
    source = folder / "model.bin"
    with source.open("wb") as file:
        for start in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - start)))
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    cpu: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(times):
        for scheme, tls in options.items():
            with serving(folder / f"{scheme}-{number}", tls=tls) as server:
                for verb in _VERBS:
                    before = server.cpu_seconds()
                    seconds[scheme, verb].append(_moved(server, verb, folder, authority))
                    cpu[scheme, verb].append(server.cpu_seconds() - before)
    print("what | http MB/s | https MB/s | server CPU s, http | server CPU s, https")
    print("---|---|---|---|---")
    for verb in _VERBS:
        rates = (f"{size / statistics.median(seconds[scheme, verb]) / 1e6:.0f}" for scheme in options)
        used = (f"{statistics.median(cpu[scheme, verb]):.2f}" for scheme in options)
        print(" | ".join([verb, *rates, *used]), flush=True)
    with serving(folder / "handshakes", tls=options["https"]) as server:
        print(f"{_HANDSHAKES} unfinished handshakes: {_growth(server) / _HANDSHAKES / 1024:.0f} KiB each")


def _moved(server: Server, verb: str, folder: Path, authority: Authority) -> float:
    """Return the seconds of one transfer of the file."""
    back = folder / "back.bin"
    environment = {**server.environment, "SSL_CERT_FILE": str(authority.path)}
    commands = {
        "push": [*FILESTORE, "push", str(folder / "model.bin"), "--quiet"],
        "fetch": [*FILESTORE, "fetch", "model.bin", "-o", str(back), "--quiet"],
    }
    command = commands.get(verb) or _get(server, environment, authority, back)
    done = run(command, environment=environment)
    if verb != "push":
        if back.stat().st_size != (folder / "model.bin").stat().st_size:
            raise RuntimeError(f"{verb} did not give the file")
        back.unlink()
    return done.seconds


def _get(server: Server, environment: dict[str, str], authority: Authority, back: Path) -> list[str]:
    found = run([*FILESTORE, "info", "model.bin", "--json"], environment=environment).json["path"]
    header = f"Authorization: Bearer {environment['FILESTORE_TOKEN']}"
    return ["curl", "-sSf", "--cacert", str(authority.path), "-H", header, "-o", str(back), f"{server.url}/{found}"]


def _growth(server: Server) -> int:
    """Return by how many bytes the server grows when many connections begin a handshake."""
    allow_many_files()
    where = urlsplit(server.url)
    with ExitStack() as held:
        before = memory(server.pid, "VmRSS")
        for _ in range(_HANDSHAKES):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", where.port or 0)))
            connection.sendall(_HELLO_BEGUN)
        time.sleep(1)
        return memory(server.pid, "VmRSS") - before


if __name__ == "__main__":
    main()
