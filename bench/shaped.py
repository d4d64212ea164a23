"""Measure bf16 weights over links of a fixed rate, in both directions, relative to the rate of the link. Needs root.

python bench/shaped.py                        # 512 MiB over 1, 2.5 and 10 Gbit/s, three rounds
python bench/shaped.py --rates 1 --size 1GiB

Two network namespaces have a pair of virtual interfaces, each shaped by `tc ... tbf`. The server runs in one, the
client in the other. A bare socket measures the rate of the link. Rounds are interleaved, and medians of the ratios
within a round are shown. Three tables are printed: the rates, the processor time for a GB at each end, and the time line of
each command as the link saw it.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.data import write_safetensors  # noqa: E402  # a script finds its neighbours only now
from bench.run import (  # noqa: E402
    FILESTORE,
    Command,
    Done,
    Server,
    Service,
    parse_size,
    run,
    start_server,
    unwind_when_told_to_end,
)

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
DEVICE = "shaped"
PORT = 9000
MTU = 1500
_SAMPLE_SECONDS = 0.002
_CONTENT_MIN = 64 << 10
"""Bytes that the small requests before and after the content do not reach."""


class TimeLine(NamedTuple):
    """What the link saw of one command. Seconds since the start of its process."""

    packet: float
    """The first packet."""
    first: float
    """The first 64 KiB."""
    last: float
    """The last bytes but 64 KiB."""
    end: float
    """The end of the process."""
    idle: float
    """Seconds between the first and the last bytes that the link did not need for the bytes that it carried."""


class Moved(NamedTuple):
    """One push or one fetch."""

    rate: float
    """GB/s of content."""
    client_cpu: float
    """Seconds for a GB."""
    server_cpu: float
    line: TimeLine


class Round(NamedTuple):
    """One measurement at one rate."""

    bare: float
    """GB/s of a bare socket."""
    push: Moved
    fetch: Moved


def time_line(samples: Sequence[tuple[float, int]], *, started: float, ended: float, gigabits: float) -> TimeLine:
    """Return when the link began and ended to carry content. A sample is a time and the bytes that were carried until then.

    `gigabits` is the rate of the link in Gbit/s.
    """
    before, after = samples[0][1], samples[-1][1]

    def reached(size: int) -> float:
        return next((moment for moment, carried in samples if carried - before >= size), ended)

    margin = min(_CONTENT_MIN, (after - before) // 2)
    first, last = reached(margin), reached(after - before - margin)
    needed = (after - before - 2 * margin) * 8 / gigabits / 1e9
    idle = max(0.0, last - first - needed)
    return TimeLine(reached(1) - started, first - started, last - started, ended - started, idle)


class _Watch:
    """Counts the bytes that the interface of a process has carried in one direction, in a thread of its own."""

    def __init__(self, pid: int, *, received: bool) -> None:
        self.samples: list[tuple[float, int]] = []
        self._path = Path(f"/proc/{pid}/net/dev")
        self._column = 0 if received else 8
        self._ended = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> None:
        """Stop. A second call does nothing."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._sample()
        self._sample()

    def _sample(self) -> None:
        for line in self._path.read_text(encoding="ascii").splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == DEVICE:
                self.samples.append((time.perf_counter(), int(counters.split()[self._column])))


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
    parser.add_argument("--rates", default="1,2.5,10", help="Gbit/s (default %(default)s)")
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
        found: dict[float, list[Round]] = {gigabits: [] for gigabits in map(float, options.rates.split(","))}
        for _ in range(options.rounds):
            for gigabits, rounds in found.items():
                link.shape(gigabits)
                rounds.append(_round(link, Path(name), source, gigabits))
    show(found)


def show(found: dict[float, list[Round]]) -> None:
    """Print the medians: rates, processor time, and the time line of each command."""
    print("| link | bare socket | push | fetch | push, times the link | fetch, times the link |")
    print("|---|---|---|---|---|---|")
    for gigabits, rounds in found.items():
        rates = [median(values) for values in zip(*((one.bare, one.push.rate, one.fetch.rate) for one in rounds), strict=True)]
        pairs = [(one.push.rate / one.bare, one.fetch.rate / one.bare) for one in rounds]
        ratios = [median(values) for values in zip(*pairs, strict=True)]
        cells = [f"{gigabits:g} Gbit/s", *(f"{rate:.3f} GB/s" for rate in rates), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {' | '.join(cells)} |")
    print("\nProcessor time for a GB of content, seconds (client / server), and the content a second of one core:")
    print("| link | push | one core of a client | fetch | one core of a client |\n|---|---|---|---|---|")
    for gigabits, rounds in found.items():
        cells = [f"{gigabits:g} Gbit/s"]
        for moved in ([one.push for one in rounds], [one.fetch for one in rounds]):
            client, server = (median(values) for values in zip(*((one.client_cpu, one.server_cpu) for one in moved), strict=True))
            cells += [f"{client:.2f} / {server:.2f}", f"{1 / client:.2f} GB/s"]
        print(f"| {' | '.join(cells)} |")
    print("\nSeconds from the start of the command, the median and the fastest round:")
    print("| link | | first packet | first byte | last byte | end | link idle between first and last |")
    print("|---|---|---|---|---|---|---|")
    for gigabits, rounds in found.items():
        for what, lines in (("push", [one.push.line for one in rounds]), ("fetch", [one.fetch.line for one in rounds])):
            middle = TimeLine(*(median(values) for values in zip(*lines, strict=True)))
            for which, line in (("", middle), (", fastest", min(lines, key=lambda line: line.end))):
                cells = [f"{gigabits:g} Gbit/s", what + which, *(f"{seconds:.3f}" for seconds in line)]
                print(f"| {' | '.join(cells)} |")


def _round(link: Link, folder: Path, source: Path, gigabits: float) -> Round:
    """Measure a bare socket, a push and a fetch."""
    size = source.stat().st_size
    bare = size / _bare_seconds(link, size, folder) / 1e9
    server = start_server(folder / "repository", host=SERVER, prefix=link.inside(link.server))
    target = folder / "fetched.safetensors"
    try:
        client = [*link.inside(link.client), *FILESTORE]
        os.environ["FILESTORE_PUSH_CACHE"] = str(folder / "journal.sqlite")
        pushed, push = _watched(server, [*client, "push", source, "--rehash", "--json"], size, gigabits, received=True)
        command = [*client, "fetch", pushed.json["id"], "-o", target, "--json"]
        _, fetch = _watched(server, command, size, gigabits, received=False)
    finally:
        server.service.stop()
    run(["cmp", source, target])
    run(["rm", "-r", target, server.root])
    return Round(bare, push, fetch)


def _watched(server: Server, command: Sequence[str | Path], size: int, gigabits: float, *, received: bool) -> tuple[Done, Moved]:
    """Run a command. `received` says whether the server receives the content."""
    before = server.cpu_seconds()
    watch = _Watch(server.pid, received=received)
    try:
        started = time.perf_counter()
        done = run(command, environment=server.environment)
        ended = started + done.seconds
    finally:
        watch.end()
    line = time_line(watch.samples, started=started, ended=ended, gigabits=gigabits)
    client_cpu, server_cpu = (seconds / size * 1e9 for seconds in (done.cpu_seconds, server.cpu_seconds() - before))
    return done, Moved(size / done.seconds / 1e9, client_cpu, server_cpu, line)


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
