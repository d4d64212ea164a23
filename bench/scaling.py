"""Measure one client, and several, against the number of cores: rates, processor time, time under the interpreter lock, memory.

python bench/scaling.py --folder /dev/shm                     # 1, 2, 4, ... cores, as many as there are
python bench/scaling.py --cores 1,2 --size 1GiB --rounds 5 --json scaling.json --plot scaling.png
python bench/scaling.py --cores 16 --size 8GiB --peers "" --folder /dev/shm          # about four minutes

Server and clients share the first 1, 2, 4, ... of the cores that this process may use. The workloads are a push, a push of the
same file that reads and hashes every byte again, a fetch, and several fetches at once. What a machine does only once does not
count: a small file is transferred first, and in a folder in memory, files of zeros take as much as the rounds will. Rounds are
interleaved, and medians are shown. The start of Python does not count. All that was fetched is compared with the source.

py-spy samples in rounds of their own, which count for nothing else, with the largest number of cores unless `--spy-cores` says
others.

Beside filestore, curl with nginx (one, and several at once) and restic do the same, if they are installed. `sync` is called
before each workload. Nothing else is needed but Python packages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.clients import Client, ClientUsage, MemoryWatch, on_cores, usable_cores  # noqa: E402  # found only now
from bench.data import write_safetensors  # noqa: E402
from bench.peer.backups import Restic  # noqa: E402
from bench.peer.base import Peer  # noqa: E402
from bench.peer.nginx import Curl  # noqa: E402
from bench.py_spy import Spy, reason_against  # noqa: E402
from bench.run import TOKEN, Command, Server, parse_size, run_all, start_server, unwind_when_told_to_end  # noqa: E402
from filestore.system.files import free_space  # noqa: E402
from filestore_cli.text import in_units  # noqa: E402

MIB = 1 << 20
_FIRST_SIZE = 64 * MIB
"""Of the file of the first run."""
_PIECE = 8 * MIB
"""What a thread reads, writes or compares at a time."""
T = TypeVar("T")
_PEERS: dict[str, type[Peer]] = {"curl": Curl, "restic": Restic}


class Locks(NamedTuple):
    """How long the interpreter lock was held at most, in seconds."""

    client: float
    """By all processes of all clients together."""
    client_busiest: float
    """By the process that held its lock longest."""
    server: float
    server_busiest: float


class Sample(NamedTuple):
    """One run of one workload."""

    size: int
    """Bytes of content of all clients together."""
    seconds: float
    client_cpu: float
    server_cpu: float
    locks: Locks
    client_memory: int
    """Bytes at the peak, of one client with all its processes: the largest."""
    server_memory: int

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / self.seconds

    @property
    def cores_busy(self) -> float:
        """How many cores client and server kept busy."""
        return (self.client_cpu + self.server_cpu) / self.seconds


class PeerSample(NamedTuple):
    """One run of another program."""

    size: int
    seconds: float
    cpu: float
    """Of client and server."""


class Workload(NamedTuple):
    """What clients do at the same time."""

    name: str
    clients: int


Found = dict[tuple[str, int], list[Sample]]
FoundPeers = dict[tuple[str, str, int], list[PeerSample]]
FoundLocks = dict[tuple[str, int], list[Locks]]


class Bench:
    """One measurement: its folder and its source."""

    def __init__(self, folder: Path, source: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._source = source
        self._size = source.stat().st_size
        self._workers: int | None = options.workers
        self._fetches: int = options.fetches
        self._environment = {"FILESTORE_PUSH_CACHE": str(folder / "journal.sqlite")}
        for name in ("processes", "transfer_memory"):
            if getattr(options, name) is not None:
                self._environment[f"FILESTORE_{name.upper()}"] = str(getattr(options, name))

    def session(self, cores: int, *, spied: bool = False) -> Iterator[tuple[Workload, Sample, Locks | None]]:
        """Do each workload once, with a new server on so many cores. With `spied`, py-spy samples both sides."""
        with on_cores(cores):
            server = start_server(self._folder / "repository", workers=self._workers)
        try:
            push: list[str | Path] = ["push", self._source, "--json"]
            yield self._moved(Workload("push", 1), server, cores, [push], spied=spied)
            yield self._moved(Workload("push-again", 1), server, cores, [[*push, "--rehash"]], spied=spied)
            for name, count in (("fetch", 1), (f"fetch-{self._fetches}", self._fetches)):
                with self._targets(count) as targets:
                    commands: list[list[str | Path]] = [
                        ["fetch", self._source.name, "-o", target, "--json"] for target in targets
                    ]
                    yield self._moved(Workload(name, count), server, cores, commands, spied=spied)
                    if not same_content(self._source, targets):
                        raise SystemExit(f"{name}: a file that was fetched is not the one that was pushed")
        finally:
            server.service.stop()
            shutil.rmtree(server.root)
            (self._folder / "journal.sqlite").unlink(missing_ok=True)

    def _moved(
        self, workload: Workload, server: Server, cores: int, commands: Sequence[Sequence[str | Path]], *, spied: bool
    ) -> tuple[Workload, Sample, Locks | None]:
        os.sync()
        environment = server.environment | self._environment
        with ExitStack() as stack:
            clients: list[Client] = []
            with on_cores(cores):
                for command in commands:
                    clients.append(Client(command, environment=environment, folder=self._folder))
                    stack.callback(clients[-1].end)
            for client in clients:
                client.wait_until_ready()
            pids = [client.pid for client in clients]
            spies = [stack.enter_context(Spy(pid, self._folder)) for pid in (server.pid, *pids)] if spied else []
            # It takes time from the others, and is not looked at where py-spy does.
            watch = stack.enter_context(MemoryWatch([] if spied else [server.pid, *pids]))
            cpu, locks = server.cpu_seconds(), _server_locks(server)
            for client in clients:
                client.begin()
            used = [client.wait() for client in clients]
            server_cpu = server.cpu_seconds() - cpu
            server_locks = [after - before for before, after in zip(locks, _server_locks(server), strict=True)]
        client_locks = [seconds for one in used for seconds in one.lock_seconds]
        sample = Sample(
            self._size * len(used),
            _seconds(used),
            sum(one.cpu_seconds for one in used),
            server_cpu,
            Locks(sum(client_locks), max(client_locks), sum(server_locks), max(server_locks)),
            0 if spied else watch.peak(pids),
            0 if spied else watch.peak([server.pid]),
        )
        late = max((spy.late_seconds for spy in spies), default=0.0)
        if late:
            print(f"py-spy was up to {late:.1f} s late at {workload.name}: it saw too little of the busy time", flush=True)
        return workload, sample, _spied(spies) if spied else None

    def peer(self, name: str, cores: int) -> Iterator[tuple[str, PeerSample]]:
        """Do each workload once with another program."""
        peer = _PEERS[name](self._folder / name, tools=self._folder)
        try:
            with on_cores(cores):
                peer.start()
            yield "push", self._ran(peer, cores, [peer.push(self._source)])
            counts = [1]
            if isinstance(peer, Curl):
                counts.append(self._fetches)
                if free_space(self._folder) > self._size * self._fetches:
                    puts = [
                        Command(["curl", "-sSf", "-T", self._source, f"{peer.url}/{place}"]) for place in range(self._fetches)
                    ]
                    yield f"push-{self._fetches}", self._ran(peer, cores, puts)
                    for place in range(self._fetches):
                        peer.forget(str(place))
            for count in counts:
                with self._targets(count) as targets:
                    for target in targets:
                        target.mkdir()
                    commands = [peer.fetch(self._source.name, target) for target in targets]
                    yield "fetch" if count == 1 else f"fetch-{count}", self._ran(peer, cores, commands)
        finally:
            peer.stop()

    def _ran(self, peer: Peer, cores: int, commands: Sequence[Command | None]) -> PeerSample:
        os.sync()
        before = sum(service.cpu_seconds() for service in peer.services)
        started = time.perf_counter()
        with on_cores(cores):
            done = run_all([command for command in commands if command is not None])
        seconds = time.perf_counter() - started
        server_cpu = sum(service.cpu_seconds() for service in peer.services) - before
        return PeerSample(self._size * len(done), seconds, server_cpu + sum(one.cpu_seconds for one in done))

    @contextmanager
    def _targets(self, count: int) -> Iterator[list[Path]]:
        folder = self._folder / "fetched"
        folder.mkdir()
        try:
            yield [folder / str(place) for place in range(count)]
        finally:
            _side_by_side(lambda path: path.unlink(), [path for path in folder.iterdir() if not path.is_dir()])
            shutil.rmtree(folder)


def _side_by_side(act: Callable[[T], object], items: Iterable[T]) -> list[Any]:
    with ThreadPoolExecutor(max(2, min(16, len(usable_cores())))) as pool:
        return list(pool.map(act, items))


def same_content(source: Path, others: Sequence[Path]) -> bool:
    """Return whether files have the same bytes as `source`, which threads read."""
    size = source.stat().st_size
    if any(other.stat().st_size != size for other in others):
        return False
    with ExitStack() as stack:
        first, *files = (stack.enter_context(path.open("rb", buffering=0)).fileno() for path in (source, *others))

        def is_same(offset: int) -> bool:
            wanted = os.pread(first, _PIECE, offset)
            return all(wanted == os.pread(file, _PIECE, offset) for file in files)

        return all(_side_by_side(is_same, range(0, size, _PIECE)))


def _is_in_memory(folder: Path) -> bool:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    found = [(len(path), kind) for _, path, kind, *_ in mounts if folder.resolve().is_relative_to(path)]
    return max(found, default=(0, ""))[1] in {"tmpfs", "ramfs"}


def touch_space(folder: Path, size: int) -> None:
    """Write and remove files of zeros, so that the system has given their space once. Threads write."""
    count = max(1, min(16, len(usable_cores())))
    zeros = bytes(_PIECE)

    def fill(place: int) -> None:
        with (folder / f"zeros-{place}").open("wb", buffering=0) as file:
            for _ in range(0, size // count, _PIECE):
                file.write(zeros)

    try:
        _side_by_side(fill, range(count))
    finally:
        _side_by_side(lambda place: (folder / f"zeros-{place}").unlink(missing_ok=True), range(count))


def _seconds(used: Sequence[ClientUsage]) -> float:
    return max(one.ended for one in used) - min(one.began for one in used)


def _server_locks(server: Server) -> list[float]:
    """Return the time under the interpreter lock of each process of the server."""
    address = urlsplit(server.url)
    connection = HTTPConnection(str(address.hostname), address.port)
    try:
        connection.request("GET", "/native/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
        return [float(process["lock_seconds"]) for process in json.load(connection.getresponse())["processes"]]
    finally:
        connection.close()


def _spied(spies: Sequence[Spy]) -> Locks:
    server, *clients = (spy.lock_seconds for spy in spies)
    client = [seconds for one in clients for seconds in one]
    return Locks(sum(client), max(client), sum(server), max(server))


def main() -> None:
    """Measure, print tables, and write what the arguments ask for."""
    options = _arguments()
    unwind_when_told_to_end()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-scaling-") as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "xdg"), "XDG_STATE_HOME": str(folder / "xdg"), "HOME": str(folder)}
        needed = options.size * (2 + options.fetches)
        if free_space(folder) < needed:
            raise SystemExit(f"{folder.parent} has less than {in_units(needed)} free; give a smaller --size or fewer --fetches")
        spies = _spies(options, folder)
        peers = _present(options.peers)
        print("a first run of a small file, which does not count", flush=True)
        small = folder / "small.safetensors"
        write_safetensors(small, size=min(options.size, _FIRST_SIZE))
        for _ in Bench(folder, small, options).session(max(options.cores)):
            pass
        small.unlink()
        if sys.platform == "linux" and _is_in_memory(folder):
            touch_space(folder, needed)
        source = folder / "weights.safetensors"
        write_safetensors(source, size=options.size)
        bench = Bench(folder, source, options)
        found, found_peers = _measure(bench, options, peers)
        locks = _spy(bench, options) if spies else {}
    rows = rows_of(found, locks, gil_by=options.gil_by if spies else "processor-time")
    peer_rows = peer_rows_of(found_peers)
    show(rows, peer_rows)
    if options.json is not None:
        told = {"machine": _machine(), "size": options.size, "rounds": options.rounds, "rows": rows, "peers": peer_rows}
        options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    if options.plot is not None:
        plot(rows, peer_rows, options.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    available = len(usable_cores())
    parser.add_argument("--cores", help="numbers of cores, such as 1,2 (default: 1,2,4,... and all)")
    parser.add_argument("--size", type=parse_size, default="2GiB", help="of the file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--fetches", type=int, default=8 if available >= 8 else 4, help="at once (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work, such as /dev/shm (default: the temporary folder)")
    parser.add_argument("--processes", type=int, help="worker processes of a client (default: as many as it chooses)")
    parser.add_argument("--transfer-memory", help="memory of a client, such as 600MiB (default: by the cores)")
    parser.add_argument("--workers", type=int, help="processes of the server (default: as many as it chooses)")
    parser.add_argument("--peers", default=",".join(_PEERS), help="to compare with (default %(default)s; an empty text for none)")
    parser.add_argument(
        "--gil-by",
        choices=["both", "processor-time", "py-spy"],
        default="both",
        help="how the time under the interpreter lock is measured (default %(default)s, if py-spy can be used)",
    )
    parser.add_argument("--spy-cores", help="numbers of cores with which py-spy samples (default: the largest of --cores)")
    parser.add_argument("--spy-rounds", type=int, default=3, help="of py-spy (default %(default)s)")
    parser.add_argument("--json", type=Path, help="a file for all results")
    parser.add_argument("--plot", type=Path, help="a file for a plot: .png, .svg or .pdf; needs matplotlib")
    options = parser.parse_args()
    options.cores = [int(text) for text in options.cores.split(",")] if options.cores else default_cores(available)
    if not all(1 <= cores <= available for cores in options.cores):
        parser.error(f"this process may use {available} cores, so --cores has numbers from 1 to {available}")
    spied = options.spy_cores
    options.spy_cores = [int(text) for text in spied.split(",")] if spied else [max(options.cores)]
    if not set(options.spy_cores) <= set(options.cores):
        parser.error("--spy-cores has numbers of --cores")
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := set(options.peers) - set(_PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known are {', '.join(_PEERS)}")
    if options.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    return options


def default_cores(available: int) -> list[int]:
    """Return the powers of 2 up to `available`, and `available`."""
    powers = [1 << place for place in range(available.bit_length()) if 1 << place <= available]
    return sorted({*powers, available})


def _present(names: Sequence[str]) -> list[str]:
    """Return the peers that are installed, and name the others."""
    present = []
    for name in names:
        missing = [program for program in _PEERS[name].programs if shutil.which(program) is None]
        if missing:
            print(f"not measured: {_PEERS[name].name}, because {' and '.join(missing)} cannot be found", flush=True)
        else:
            present.append(name)
    return present


def _spies(options: argparse.Namespace, folder: Path) -> bool:
    if options.gil_by == "processor-time":
        return False
    reason = reason_against(folder)
    if reason is None:
        return True
    if options.gil_by == "py-spy":
        raise SystemExit(f"py-spy cannot be used: {reason}")
    print(f"py-spy is not used: {reason}", flush=True)
    return False


def _measure(bench: Bench, options: argparse.Namespace, peers: Sequence[str]) -> tuple[Found, FoundPeers]:
    found: Found = defaultdict(list)
    found_peers: FoundPeers = defaultdict(list)
    for number in range(options.rounds):
        for cores in _turned(options.cores, number):
            print(f"round {number + 1} of {options.rounds}, {cores} cores", flush=True)
            for workload, sample, _ in bench.session(cores):
                found[workload.name, cores].append(sample)
            for name in peers:
                for workload_name, peer_sample in bench.peer(name, cores):
                    found_peers[name, workload_name, cores].append(peer_sample)
    return found, found_peers


def _spy(bench: Bench, options: argparse.Namespace) -> FoundLocks:
    """Return the time under the interpreter lock per GB, as py-spy samples it."""
    found: FoundLocks = defaultdict(list)
    for number in range(options.spy_rounds):
        for cores in _turned(options.spy_cores, number):
            print(f"py-spy, round {number + 1} of {options.spy_rounds}, {cores} cores", flush=True)
            for workload, sample, locks in bench.session(cores, spied=True):
                if locks is not None:
                    found[workload.name, cores].append(per_gigabyte(locks, sample.size))
    return found


def _turned(cores: Sequence[int], number: int) -> list[int]:
    place = number % len(cores)
    return [*cores[place:], *cores[:place]]


def per_gigabyte(locks: Locks, size: int) -> Locks:
    """Return the seconds for each GB of content."""
    return Locks(*(seconds / size * 1e9 for seconds in locks))


def rows_of(found: Found, by_py_spy: FoundLocks, *, gil_by: str) -> list[dict[str, Any]]:
    """Return the medians, a row for each workload and number of cores.

    `gil_by` says which measurement of the time under the interpreter lock has the main columns: that of `py-spy`, or else that
    of the processor time. Both are in the row, where both were made.
    """
    rows = []
    for (workload, cores), samples in found.items():

        def middle(value: Callable[[Sample], float], samples: Sequence[Sample] = samples) -> float:
            return median(map(value, samples))

        by_time = _medians([per_gigabyte(one.locks, one.size) for one in samples])
        spied = _medians(by_py_spy[workload, cores]) if (workload, cores) in by_py_spy else None
        locks = spied if gil_by == "py-spy" and spied is not None else by_time
        rows.append(
            {
                "workload": workload,
                "cores": cores,
                "rate": middle(lambda one: one.rate),
                "cores_busy": middle(lambda one: one.cores_busy),
                "cpu_seconds_per_gb": middle(lambda one: (one.client_cpu + one.server_cpu) / one.size * 1e9),
                "client_lock_seconds_per_gb": locks.client,
                "server_lock_seconds_per_gb": locks.server,
                "peak_memory": int(middle(lambda one: one.client_memory)),
                "client_busiest_lock_seconds_per_gb": locks.client_busiest,
                "server_busiest_lock_seconds_per_gb": locks.server_busiest,
                "server_peak_memory": int(middle(lambda one: one.server_memory)),
                "client_cpu_seconds_per_gb": middle(lambda one: one.client_cpu / one.size * 1e9),
                "server_cpu_seconds_per_gb": middle(lambda one: one.server_cpu / one.size * 1e9),
                "lock_seconds_by": "py-spy" if locks is spied else "processor-time",
                "lock_seconds_per_gb_by_processor_time": by_time._asdict(),
                "lock_seconds_per_gb_by_py_spy": None if spied is None else spied._asdict(),
            }
        )
    return rows


def _medians(several: Sequence[Locks]) -> Locks:
    return Locks(*(median(values) for values in zip(*several, strict=True)))


def peer_rows_of(found: FoundPeers) -> list[dict[str, Any]]:
    """Return the medians of the other programs."""
    return [
        {
            "peer": peer,
            "workload": workload,
            "cores": cores,
            "rate": median(one.size / one.seconds for one in samples),
            "cores_busy": median(one.cpu / one.seconds for one in samples),
            "cpu_seconds_per_gb": median(one.cpu / one.size * 1e9 for one in samples),
        }
        for (peer, workload, cores), samples in found.items()
    ]


def show(rows: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    rows, peers = _in_order(rows), _in_order(peers)
    print("\nMedians. Lock: seconds for a GB in which the interpreter lock was held at most, by all processes of a side / by the")
    print("busiest one, by processor time that was not spent in calls which give up the lock. Memory: MiB, client / server.\n")
    print("| workload | cores | GB/s | cores busy | CPU s/GB | lock, client | lock, server | memory |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['rate'] / 1e9:.2f}", f"{row['cores_busy']:.1f}", f"{row['cpu_seconds_per_gb']:.2f}"]
        cells += _lock_cells(Locks(**row["lock_seconds_per_gb_by_processor_time"]))
        cells.append(f"{row['peak_memory'] / MIB:.0f} / {row['server_peak_memory'] / MIB:.0f}")
        print(f"| {row['workload']} | {row['cores']} | {' | '.join(cells)} |")
    if any(row["lock_seconds_per_gb_by_py_spy"] for row in rows):
        print("\nThe same by `py-spy record --gil`, which also counts a thread that holds the lock and waits for a core:\n")
        print("| workload | cores | lock, client | lock, server |\n|---|---|---|---|")
        for row in rows:
            if row["lock_seconds_per_gb_by_py_spy"] is not None:
                cells = _lock_cells(Locks(**row["lock_seconds_per_gb_by_py_spy"]))
                print(f"| {row['workload']} | {row['cores']} | {' | '.join(cells)} |")
    if peers:
        print("\n| peer | workload | cores | GB/s | cores busy | CPU s/GB |\n|---|---|---|---|---|---|")
        for row in peers:
            cells = [f"{row['rate'] / 1e9:.2f}", f"{row['cores_busy']:.1f}", f"{row['cpu_seconds_per_gb']:.2f}"]
            print(f"| {_PEERS[row['peer']].name} | {row['workload']} | {row['cores']} | {' | '.join(cells)} |")


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of each workload together, those of few cores first."""
    places = {row["workload"]: place for place, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: (row.get("peer", ""), places[row["workload"]], row["cores"]))


def _lock_cells(locks: Locks) -> list[str]:
    return [f"{locks.client:.3f} / {locks.client_busiest:.3f}", f"{locks.server:.3f} / {locks.server_busiest:.3f}"]


def plot(rows: Sequence[dict[str, Any]], peers: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw rates, processor time and time under the interpreter lock against the number of cores."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # not everywhere

    figure = Figure(figsize=(16, 5.5), layout="constrained")
    rates, costs, locks = figure.subplots(1, 3)
    curves: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        curves[row["workload"]].append(row)
    for row in peers:
        curves[f"{row['peer']}, {row['workload']}"].append(row)
    for label, points in curves.items():
        points.sort(key=lambda row: row["cores"])
        cores = [row["cores"] for row in points]
        style = "--" if "peer" in points[0] else "-"
        rates.plot(cores, [row["rate"] / 1e9 for row in points], style, marker="o", label=label)
        costs.plot(cores, [row["cpu_seconds_per_gb"] for row in points], style, marker="o", label=label)
        if "peer" not in points[0]:
            for side, mark in (("client", "-"), ("server", ":")):
                seconds = [row[f"{side}_lock_seconds_per_gb"] for row in points]
                locks.plot(cores, seconds, mark, marker="o", label=f"{label}, {side}")
    for axes, title in ((rates, "GB/s"), (costs, "processor seconds for a GB"), (locks, "lock held, seconds for a GB")):
        axes.set(xlabel="cores", ylabel=title)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    figure.savefig(path)


def _machine() -> dict[str, object]:
    return {"cores": len(usable_cores()), "system": platform.platform(), "python": platform.python_version()}


if __name__ == "__main__":
    main()
