"""Measure what slow clients cost a server: its peak memory, its descriptors, and how long `/healthz` takes meanwhile.

python -m bench.attacks                                 # 200 clients of each kind, one kind after the other
python -m bench.attacks --clients 1000 --kind forms
python -m bench.attacks --clients 100 --together        # all kinds at once

Each kind meets a server of its own. `healthz` is asked by an ordinary client while the slow ones open their requests and for some
seconds more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.server import running_server  # noqa: E402  # a script finds the library only now
from tests.support.slow_clients import descriptor_count, peak_memory, slow_clients  # noqa: E402
from tests.support.slow_kinds import KINDS, MIB, SlowKind  # noqa: E402


def main() -> None:
    """Measure, and print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="of each kind (default %(default)s)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="(default: all kinds)")
    parser.add_argument("--together", action="store_true", help="attack one server by all kinds at once")
    parser.add_argument("--workers", type=int, default=1, help="server processes (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the attack goes on (default %(default)s)")
    options = parser.parse_args()
    kinds = [KINDS[name] for name in options.kind or KINDS]
    _print("| kind | clients | ended | peak MiB | descriptors | healthz, ms: median | longest |")
    _print("|---|---|---|---|---|---|---|")
    for attackers in [kinds] if options.together else [[kind] for kind in kinds]:
        _measure(attackers, options.clients, workers=options.workers, seconds=options.seconds)


def _measure(kinds: Sequence[SlowKind], count: int, *, workers: int, seconds: float) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="filestore-attacks-") as folder,
        running_server(Path(folder) / "root", check=False, workers=workers) as server,
    ):
        before = peak_memory(server.pid)
        with slow_clients(server, kinds, count) as clients:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                clients.step()
                clients.ask_health()
                time.sleep(0.1)
            took = [1000 * latency for latency in clients.latencies]
            name = kinds[0].name if len(kinds) == 1 else "all kinds at once"
            memory = f"{before / MIB:.0f} to {peak_memory(server.pid) / MIB:.0f}"
            row = [name, count * len(kinds), clients.ended_count, memory, descriptor_count(server.pid)]
            _print(f"| {' | '.join(map(str, row))} | {median(took):.0f} | {max(took):.0f} |")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
