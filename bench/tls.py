"""Measure what TLS costs: push, fetch and plain GET of one file, beside curl from nginx, in the same run.

python bench/tls.py                                    # 1 GiB, three rounds after one that does not count
python bench/tls.py --size 128MiB --rounds 1 --folder /dev/shm
python bench/tls.py --content bf16                     # weights, which filestore compresses to 0.7 and curl does not

The ways are `http` (our server), `https` (our server with a certificate) and `nginx` (nginx speaks TLS in front of our server).
All take turns in each round. The content is random bytes by default, so that nothing is compressed. Each push is to a new
repository. Without nginx, its rows are left out. `lock` is the processor time in which a process may have held the interpreter
lock. At the end, 1,000 connections begin a handshake and do not finish it, and the growth of the server is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import ssl
import statistics
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import bf16  # noqa: E402
from bench.peer.nginx import HEAD  # noqa: E402
from bench.run import FILESTORE, TOKEN, Command, Server, Service, free_port, parse_size, run, serving, unwind_when_told_to_end  # noqa: E402
from filestore import connect, fetch, push  # noqa: E402  # found only now
from filestore.system.metrics import StageTimes, count_into, own_usage  # noqa: E402
from tests.support.authority import Authority, Pair  # noqa: E402
from tests.support.process_memory import memory  # noqa: E402
from tests.support.slow_clients import allow_many_files  # noqa: E402

_PLAIN = ("--insecure",)
_HANDSHAKES = 1000
_HELLO_BEGUN = bytes.fromhex("160301020001")
_PART = 1 << 20
_VERBS = ("push", "fetch", "GET by curl")
_CURL = "curl from nginx"
_CONFIGURATION = (
    HEAD
    + """\
        ssl_certificate {pair.cert};
        ssl_certificate_key {pair.key};
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_buffer_size 64k;
        proxy_buffers 4 64k;
        proxy_http_version 1.1;
        server {{ listen 127.0.0.1:{files} ssl; root {root}; }}
        server {{ listen 127.0.0.1:{proxy} ssl; location / {{ proxy_pass {url}; proxy_set_header Host $http_host; }} }}
    }}
"""
)


class Spent(NamedTuple):
    """What one transfer took, in seconds."""

    seconds: float
    client_cpu: float
    server_cpu: float
    client_lock: float
    server_lock: float


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--content", choices=["random", "bf16"], default="random")
    parser.add_argument("--client", nargs=2, metavar=("VERB", "PATH"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        asyncio.run(_transfer(*asked.client))
        return
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        _measure(Path(name), asked.size, asked.rounds, content=asked.content)


async def _transfer(verb: str, path: str) -> None:
    """Push or fetch a file in this process, and print what that took."""
    count_into(StageTimes())
    before = own_usage()
    started = time.perf_counter()
    async with connect(os.environ["FILESTORE_URL"], token=TOKEN) as repository:
        if verb == "push":
            await push(repository, path)
        else:
            await fetch(repository, "model.bin", target=path)
    seconds, after = time.perf_counter() - started, own_usage()
    print(json.dumps([seconds, after.cpu_seconds - before.cpu_seconds, after.lock_seconds - before.lock_seconds]))


class _Way(NamedTuple):
    """A way to reach a server: its processes, and the URL."""

    url: str
    server: Server
    services: list[Service]

    def cpu_seconds(self) -> float:
        return sum(service.cpu_seconds() for service in self.services)

    def lock_seconds(self) -> float:
        """Return what the processes of filestore say of themselves."""
        request = urllib.request.Request(f"{self.server.url}/native/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
        with urllib.request.urlopen(request, context=_untrusting()) as answer:  # noqa: S310  # a server of this measurement
            return sum(float(process["lock_seconds"]) for process in json.load(answer)["processes"])


def _untrusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _measure(folder: Path, size: int, rounds: int, *, content: str) -> None:
    authority = Authority(folder / "authority")
    pair = authority.pair("server")
    (folder / "source").mkdir()
    source = folder / "source" / "model.bin"
    with source.open("wb") as file:
        for start in range(0, size, _PART):
            part = bf16(start, _PART) if content == "bf16" else os.urandom(_PART)
            file.write(part[: size - start])
    ways = ["http", "https", *(["nginx"] if shutil.which("nginx") else [])]
    found: dict[tuple[str, str], list[Spent]] = defaultdict(list)
    for number in range(rounds + 1):
        for name in ways:
            with _reached(name, folder / f"{name}-{number}", folder / "source", pair) as (way, files_url):
                rows = {(name, verb): _moved(way, verb, source, authority) for verb in _VERBS}
                if files_url is not None:
                    rows[_CURL, "GET by curl"] = _got(way, f"{files_url}/model.bin", authority, folder / "back.bin", size)
            if number:
                for key, spent in rows.items():
                    found[key].append(spent)
            shutil.rmtree(folder / f"{name}-{number}", ignore_errors=True)
    medians = {key: Spent(*map(statistics.median, zip(*each, strict=True))) for key, each in found.items()}
    of_curl = medians.get((_CURL, "GET by curl"))
    print("way | what | MB/s | of curl from nginx | client CPU s | server CPU s | client lock s | server lock s")
    print("---|---|---|---|---|---|---|---")
    for (name, verb), spent in medians.items():
        ratio = "" if of_curl is None else f"{of_curl.seconds / spent.seconds:.2f}"
        print(
            f"{name} | {verb} | {size / spent.seconds / 1e6:.0f} | {ratio} | {' | '.join(f'{value:.2f}' for value in spent[1:])}"
        )
    sys.stdout.flush()
    with serving(folder / "handshakes", tls=("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))) as server:
        print(f"{_HANDSHAKES} unfinished handshakes: {_growth(server) / _HANDSHAKES / 1024:.0f} KiB each")


@contextmanager
def _reached(name: str, root: Path, files: Path, pair: Pair) -> Iterator[tuple[_Way, str | None]]:
    """Give a new server, reached in one way, and the URL of the files that nginx has, where it runs."""
    tls = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key)) if name == "https" else _PLAIN
    with serving(root, tls=tls) as server:
        if name != "nginx":
            yield _Way(server.url, server, [server.service]), None
            return
        folder = root.with_name(f"{root.name}-nginx")
        folder.mkdir()
        for_files, for_proxy = free_port(), free_port()
        path = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        text = textwrap.dedent(_CONFIGURATION)
        path.write_text(
            text.format(folder=folder, pair=pair, files=for_files, proxy=for_proxy, root=files, url=server.url, user=user)
        )
        command = Command(["nginx", "-p", folder, "-c", path, "-e", folder / "error.log"])
        nginx = Service(command, log=folder / "nginx.log", port=for_proxy)
        try:
            yield (
                _Way(f"https://127.0.0.1:{for_proxy}", server, [server.service, nginx]),
                f"https://127.0.0.1:{for_files}",
            )
        finally:
            nginx.stop()


def _moved(way: _Way, verb: str, source: Path, authority: Authority) -> Spent:
    """Return what one transfer of the file took."""
    back = source.parent.parent / "back.bin"
    environment = {**way.server.environment, "FILESTORE_URL": way.url, "SSL_CERT_FILE": str(authority.path)}
    cpu, lock = way.cpu_seconds(), way.lock_seconds()
    if verb == "GET by curl":
        record = run([*FILESTORE, "info", "model.bin", "--json"], environment=environment).json
        return _got(way, f"{way.url}/{record['path']}", authority, back, source.stat().st_size)
    path = source if verb == "push" else back
    done = run([sys.executable, __file__, "--client", verb, path], environment=environment)
    seconds, client_cpu, client_lock = json.loads(done.output)
    if verb == "fetch":
        _check(back, source.stat().st_size)
    return Spent(seconds, client_cpu, way.cpu_seconds() - cpu, client_lock, way.lock_seconds() - lock)


def _got(way: _Way, url: str, authority: Authority, back: Path, size: int) -> Spent:
    """Return what a GET by curl took."""
    cpu, lock = way.cpu_seconds(), way.lock_seconds()
    trust = ["--cacert", str(authority.path)] if url.startswith("https:") else []
    done = run(["curl", "-sSf", *trust, "-H", f"Authorization: Bearer {TOKEN}", "-o", back, url])
    _check(back, size)
    return Spent(done.seconds, done.cpu_seconds, way.cpu_seconds() - cpu, 0.0, way.lock_seconds() - lock)


def _check(back: Path, size: int) -> None:
    if back.stat().st_size != size:
        raise RuntimeError("the file did not arrive")
    back.unlink()


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
