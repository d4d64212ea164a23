"""Measure bf16 weights over links of a fixed rate, in both directions, relative to the rate of the link. Needs root.

python bench/shaped.py                        # 512 MiB over 1 and 2.5 Gbit/s, three rounds
python bench/shaped.py --rates 1 --size 1GiB

Two network namespaces have a pair of virtual interfaces, each shaped by `tc ... tbf`. The server runs in one, the
client in the other. A bare socket measures the rate of the link. Rounds are interleaved, and medians of the ratios
within a round are shown.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import FILESTORE, Command, Service, parse_size, run, start_server, unwind_when_told_to_end  # noqa: E402

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
DEVICE = "shaped"
PORT = 9000
MTU = 1500


class Link:
    """Two network namespaces, and the processes in them."""

    def __init__(self) -> None:
        self.server, self.client = (f"filestore-{side}-{os.getpid()}" for side in ("server", "client"))

    def inside(self, namespace: str) -> list[str]:
        """Return the start of a command that runs in a namespace."""
        return ["ip", "netns", "exec", namespace]

    def shape(self, gigabits: float) -> None:
        """Limit both directions to this rate."""
        for namespace in (self.server, self.client):
            # A burst of at least a millisecond, because the kernel's timers are not finer.
            options = ["rate", f"{gigabits}gbit", "burst", f"{max(256, int(gigabits * 250))}kb", "latency", "20ms"]
            run([*self.inside(namespace), "tc", "qdisc", "replace", "dev", DEVICE, "root", "tbf", *options])


@contextmanager
def linked() -> Iterator[Link]:
    """Give a link, which is removed at the end."""
    link = Link()
    try:
        for namespace in (link.server, link.client):
            run(["ip", "netns", "add", namespace])
        ends = ["name", DEVICE, "netns", link.server, "type", "veth", "peer", "name", DEVICE, "netns", link.client]
        run(["ip", "link", "add", *ends])
        for namespace, address in ((link.server, SERVER), (link.client, CLIENT)):
            inside = link.inside(namespace)
            run([*inside, "ip", "link", "set", "lo", "up"])
            run([*inside, "ip", "address", "add", f"{address}/24", "dev", DEVICE])
            run([*inside, "ip", "link", "set", DEVICE, "mtu", str(MTU), "up"])
        yield link
    finally:
        for namespace in (link.server, link.client):
            run(["ip", "netns", "delete", namespace])


def main() -> None:
    """Measure at each rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="1,2.5", help="Gbit/s (default %(default)s)")
    parser.add_argument("--size", type=parse_size, default="512MiB", help="of the file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--bare", choices=["receive", "send"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    unwind_when_told_to_end()
    if options.bare:
        _bare(options.bare, options.size)
        return
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-shaped-") as name, linked() as link:
        os.environ |= {"XDG_CACHE_HOME": f"{name}/xdg", "XDG_STATE_HOME": f"{name}/xdg"}
        source = Path(name) / "weights.safetensors"
        write_safetensors(source, size=options.size)
        print("| link | bare socket | push | fetch | push, times the link | fetch, times the link |")
        print("|---|---|---|---|---|---|")
        for gigabits in map(float, options.rates.split(",")):
            link.shape(gigabits)
            rounds = [_round(link, Path(name), source) for _ in range(options.rounds)]
            bare, pushed, fetched = (median(rates) for rates in zip(*rounds, strict=True))
            ratios = [median(one[place] / one[0] for one in rounds) for place in (1, 2)]
            rates = " | ".join(f"{rate:.3f} GB/s" for rate in (bare, pushed, fetched))
            print(f"| {gigabits:g} Gbit/s | {rates} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


def _round(link: Link, folder: Path, source: Path) -> tuple[float, float, float]:
    """Return the rates of a bare socket, of a push and of a fetch, in bytes of content."""
    size = source.stat().st_size
    bare = size / _bare_seconds(link, size, folder) / 1e9
    server = start_server(folder / "repository", host=SERVER, prefix=link.inside(link.server))
    target = folder / "fetched.safetensors"
    try:
        client = [*link.inside(link.client), *FILESTORE]
        environment = {**server.environment, "FILESTORE_PUSH_CACHE": str(folder / "journal.sqlite")}
        pushed = run([*client, "push", source, "--rehash", "--json"], environment=environment)
        fetched = run([*client, "fetch", pushed.json["id"], "-o", target, "--json"], environment=environment)
    finally:
        server.service.stop()
    run(["cmp", source, target])
    run(["rm", "-r", target, server.root])
    return bare, size / pushed.seconds / 1e9, size / fetched.seconds / 1e9


def _bare_seconds(link: Link, size: int, folder: Path) -> float:
    script = [sys.executable, __file__, "--size", str(size), "--bare"]
    receiver = Service(Command([*link.inside(link.server), *script, "receive"]), log=folder / "bare.log")
    try:
        receiver.wait_until(lambda: "ready" in receiver.log.read_text(encoding="utf-8"))
        return float(run([*link.inside(link.client), *script, "send"]).output)
    finally:
        receiver.stop()


def _bare(side: str, size: int) -> None:
    """Run one end of a bare socket. The sender prints the seconds until the receiver had all bytes."""
    piece = memoryview(bytearray(1 << 20))
    if side == "receive":
        with socket.create_server((SERVER, PORT)) as listener:
            print("ready", flush=True)
            connection, _ = listener.accept()
            with connection:
                while connection.recv_into(piece):
                    pass
        return
    with socket.create_connection((SERVER, PORT)) as connection:
        started = time.perf_counter()
        for start in range(0, size, len(piece)):
            connection.sendall(piece[: size - start])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
