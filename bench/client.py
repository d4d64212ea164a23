"""One client of a measurement: the command `filestore`, which tells what it used.

python bench/client.py FILE ARGUMENTS...

It imports what a transfer needs, prints `ready`, and waits for a line on standard input, so that the start of Python does not
count. Then it runs `filestore ARGUMENTS...`, and writes a JSON object to FILE: when the command began and ended (of
`time.monotonic`), its exit status, and the processor time and the time under the interpreter lock of each of its processes.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

from filestore.system.metrics import StageTimes, Usage, count_into, own_usage
from filestore.system.own_process import tune_process
from filestore_cli.bench.worker import worker_usages
from filestore_cli.start import run

_HEAVY = (
    "numpy",
    "filestore_cli.main",
    "filestore_cli.fetching",
    "filestore_cli.transfer",
    "filestore.backends",
    "filestore.http.client.repository",
    "filestore.transfer.fetch",
    "filestore.transfer.push",
    "filestore.transfer.sources.push_cache",
)


def main() -> None:
    """Run the command of the arguments when standard input says so."""
    tune_process()
    for name in _HEAVY:
        import_module(name)
    told = Path(sys.argv[1])
    sys.argv = ["filestore", *sys.argv[2:]]
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    before = own_usage()
    count_into(StageTimes())
    began = time.monotonic()
    status: object = 1
    try:
        run("filestore")
    except SystemExit as ended:
        status = ended.code
    moment = time.monotonic()
    own = own_usage()
    processes = [(own.cpu_seconds - before.cpu_seconds, own.lock_seconds - before.lock_seconds), *map(_times, worker_usages())]
    found = {"began": began, "ended": moment, "status": status, "cpu_seconds_before": before.cpu_seconds, "processes": processes}
    told.write_text(json.dumps(found), encoding="utf-8")
    sys.exit(1 if status else 0)


def _times(used: Usage) -> tuple[float, float]:
    return used.cpu_seconds, used.lock_seconds


if __name__ == "__main__":
    main()
