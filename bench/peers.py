"""Compare filestore with other tools in interleaved rounds: rates, ratios, processor time, memory, bytes.

python bench/peers.py                                          # 1 GiB and a tree of 1 GiB, three rounds
python bench/peers.py --size 256MiB --rounds 1 --peers filestore,curl,restic --workloads push,fetch

The peers run each workload in turn, each with a store of its own on loopback. Each round begins with another peer. Only
ratios within a round count; their medians are shown. Fetched content is compared with its source outside the measured
time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.ceilings import ceilings  # noqa: E402  # a script finds its neighbours only now
from bench.data import write_safetensors, write_tree  # noqa: E402
from bench.peer.backups import Borg, Restic  # noqa: E402
from bench.peer.base import Peer  # noqa: E402
from bench.peer.nginx import Aria2, Curl, CurlHashed, CurlSynced, TarCurl, ZipCurl  # noqa: E402
from bench.peer.ours import CurlFilestore, Filestore, FilestoreRaw, Served  # noqa: E402
from bench.peer.python import Sdk, Xet  # noqa: E402
from bench.peer.rclone import Rclone  # noqa: E402
from bench.peer.registry import Registry  # noqa: E402
from bench.peer.report import Measured, show  # noqa: E402
from bench.run import Command, isolate, loopback_bytes, parse_size, run, run_all, unwind_when_told_to_end  # noqa: E402

PEERS: dict[str, type[Peer]] = {
    "filestore": Filestore,
    "filestore-raw": FilestoreRaw,
    "curl-filestore": CurlFilestore,
    "curl": Curl,
    "curl-sync": CurlSynced,
    "curl-sha256": CurlHashed,
    "aria2": Aria2,
    "zip-curl": ZipCurl,
    "tar-curl": TarCurl,
    "borg": Borg,
    "restic": Restic,
    "rclone": Rclone,
    "registry": Registry,
    "xet": Xet,
    "requests": Sdk,
}
FILE_WORKLOADS = ("push", "push-again", "push-known", "push-tuned", "fetch", "fetch-4")
TREE_WORKLOADS = ("push-tree", "fetch-tree")
COPIES = 4


class Sources(NamedTuple):
    """The content that is pushed."""

    base: Path
    tuned: Path
    tree: Path
    tree_size: int


class Bench:
    """One measurement: its folder, its sources, and its results so far."""

    def __init__(self, folder: Path, sources: Sources, *, tools: Path, isolated: bool) -> None:
        self.measured: list[Measured] = []
        self.failures: dict[tuple[str, str], str] = {}
        self._folder = folder
        self._sources = sources
        self._tools = tools
        self._isolated = isolated

    def run_round(self, number: int, names: Sequence[str], workloads: Sequence[str]) -> None:
        """Run every workload of every peer once, from empty stores."""
        for act, parts in ((FILE_WORKLOADS, (Peer.push, Peer.fetch)), (TREE_WORKLOADS, (Peer.push_tree, Peer.fetch_tree))):
            if set(act) & set(workloads):
                taking_part = [name for name in names if any(getattr(PEERS[name], part.__name__) is not part for part in parts)]
                # A file must be pushed before it is fetched.
                self._act(number, taking_part, [workload for workload in act if workload in {act[0], *workloads}])

    def _act(self, number: int, names: Sequence[str], workloads: Sequence[str]) -> None:
        peers: dict[str, Peer] = {}
        try:
            for name in names:
                peers[name] = PEERS[name](self._folder / name, tools=self._tools)
                try:
                    peers[name].start()
                except SystemExit as error:
                    self._failed(name, "start", error)
                    peers.pop(name).stop()
            for workload in workloads:
                for name, peer in peers.items():
                    try:
                        self._measure(number, name, peer, workload)
                    except SystemExit as error:
                        self._failed(name, workload, error)
        finally:
            for peer in peers.values():
                peer.stop()

    def _failed(self, name: str, workload: str, error: SystemExit) -> None:
        reason = self.failures[name, workload] = str(error).strip().splitlines()[-1]
        print(f"   {workload:10} {name:15} failed: {reason}", flush=True)

    def _measure(self, number: int, name: str, peer: Peer, workload: str) -> None:
        folder = self._folder / "fetched"
        shutil.rmtree(folder, ignore_errors=True)
        targets = [folder / str(copy) for copy in range(COPIES if workload == "fetch-4" else 1)]
        for target in targets:
            target.mkdir(parents=True)
        command = self._command(peer, workload, targets[0])
        if command is None:
            if workload == "push":
                peer.adopt(self._sources.base)
            return
        commands = [command, *(found for target in targets[1:] if (found := self._command(peer, workload, target)))]
        measured = self._run(number, name, peer, workload, commands)
        self._verify(peer, workload, targets)
        shutil.rmtree(folder)
        if workload == "push-tuned":
            peer.forget(self._sources.tuned.name)
        self.measured.append(measured)
        print(f"   {workload:10} {name:15} {measured.rate:6.3f} GB/s", flush=True)

    def _run(self, number: int, name: str, peer: Peer, workload: str, commands: Sequence[Command]) -> Measured:
        os.sync()
        stored, sent = peer.stored_bytes(), loopback_bytes()
        server_cpu = sum(service.cpu_seconds() for service in peer.services)
        started = time.perf_counter()
        done = run_all(commands)
        seconds = time.perf_counter() - started
        return Measured(
            name,
            workload,
            number,
            self._size(workload),
            seconds,
            sum(one.cpu_seconds for one in done),
            sum(service.cpu_seconds() for service in peer.services) - server_cpu,
            max(one.peak_memory for one in done),
            max((service.peak_memory() for service in peer.services), default=0),
            loopback_bytes() - sent if self._isolated and peer.services else None,
            peer.stored_bytes() - stored,
        )

    def _command(self, peer: Peer, workload: str, target: Path) -> Command | None:
        base, tuned, tree, _ = self._sources
        commands: dict[str, Callable[[], Command | None]] = {
            "push": lambda: peer.push(base),
            "push-again": lambda: peer.push_again(base),
            "push-known": lambda: peer.push_known(base),
            "push-tuned": lambda: peer.push(tuned),
            "fetch": lambda: peer.fetch(base.name, target),
            "fetch-4": lambda: peer.fetch(base.name, target) if peer.serves_many else None,
            "push-tree": lambda: peer.push_tree(tree),
            "fetch-tree": lambda: peer.fetch_tree(tree.name, target),
        }
        return commands[workload]()

    def _size(self, workload: str) -> int:
        if workload in TREE_WORKLOADS:
            return self._sources.tree_size
        return self._sources.base.stat().st_size * (COPIES if workload == "fetch-4" else 1)

    def _verify(self, peer: Peer, workload: str, targets: Sequence[Path]) -> None:
        base, _, tree, _ = self._sources
        if workload == "fetch-tree":
            run(["diff", "-rq", tree, peer.fetched_tree(tree.name, targets[0])])
        elif workload in {"fetch", "fetch-4"}:
            for target in targets:
                run(["cmp", base, peer.fetched(base.name, target)])


def main() -> None:
    """Run what the arguments ask for, and print the tables."""
    options = _arguments()
    unwind_when_told_to_end()
    tools = options.tools or Path(options.folder or tempfile.gettempdir()) / "filestore-bench-tools"
    for name in options.peers:
        # Before this process leaves the network from which packages can be installed.
        PEERS[name].prepare(tools)
    isolated = isolate()
    names = _present(options.peers, tools)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="filestore-peers-") as name:
        folder = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "xdg"), "XDG_STATE_HOME": str(folder / "xdg"), "HOME": str(folder)}
        sources = _make_sources(folder / "source", options)
        bench = Bench(folder, sources, tools=tools, isolated=isolated)
        limits: list[dict[str, float]] = []
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            limits.append(ceilings(folder))
            turned = number % len(names)
            bench.run_round(number, names[turned:] + names[:turned], options.workloads)
    if not isolated:
        print("bytes sent are not known, because only root can make a network namespace")
    show(bench.measured, limits, titles={name: f"{peer.name} [{peer.checks}]" for name, peer in PEERS.items()})
    for (peer, workload), reason in bench.failures.items():
        print(f"failed: {peer} {workload}: {reason}")
    if options.json is not None:
        found = [measured._asdict() for measured in bench.measured]
        options.json.write_text(json.dumps({"measured": found, "ceilings": limits}, indent=1), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    workloads = (*FILE_WORKLOADS, *TREE_WORKLOADS)
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the file (default %(default)s)")
    parser.add_argument("--tree-files", type=int, default=20_000, help="small files in the tree (default %(default)s)")
    parser.add_argument(
        "--tree-big", type=parse_size, default="100MiB", help="of each of 4 big files in it (default %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--peers", type=_names(PEERS), default=list(PEERS), help=f"of {','.join(PEERS)} (default: all)")
    parser.add_argument("--workloads", type=_names(workloads), default=list(workloads), help=f"of {','.join(workloads)}")
    parser.add_argument("--workers", type=int, default=1, help="server processes of filestore (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work, such as /dev/shm (default: the temporary folder)")
    parser.add_argument("--tools", type=Path, help="where environments of Python clients are kept for later measurements")
    parser.add_argument("--json", type=Path, help="a file for all results")
    options = parser.parse_args()
    Served.workers = options.workers
    return options


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser for lists such as a,b,c that accepts only known items."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names

    return parse


def _present(names: Sequence[str], tools: Path) -> list[str]:
    """Return the installed peers; print how to install the others."""
    present = []
    for name in names:
        how = PEERS[name].prepare(tools)
        if how is None:
            present.append(name)
        else:
            print(f"not measured: {PEERS[name].name}: {how}", flush=True)
    return present


def _make_sources(folder: Path, options: argparse.Namespace) -> Sources:
    folder.mkdir()
    base, tuned, tree = folder / "base.safetensors", folder / "tuned.safetensors", folder / "tree"
    write_safetensors(base, size=options.size)
    if "push-tuned" in options.workloads:
        write_safetensors(tuned, size=options.size, changed=0.25, header_padding=480)
    has_tree = bool(set(TREE_WORKLOADS) & set(options.workloads))
    size = write_tree(tree, file_count=options.tree_files, big_count=4, big_size=options.tree_big) if has_tree else 0
    return Sources(base, tuned, tree, size)


if __name__ == "__main__":
    main()
