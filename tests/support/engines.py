"""Start each engine once in a run of tests, whatever the number of its workers, and end it with the run.

A process of its own keeps an engine: the first worker that needs one starts it. The keeper watches the process that leads
the run (`pytest`, also above the workers of pytest-xdist), and ends the engine when that one ends, in whatever way.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.support.ceph import Gateway, gateway_programs, running_gateway
from tests.support.postgres import Postgres, postgres_program, running_postgres
from tests.support.s3_requests import Credentials

_RUN = "FILESTORE_TESTS_RUN"
"""The id of the process that leads the run, a hyphen, and digits that no other run has."""


@contextmanager
def _postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server.postgres


_ENGINES: dict[str, Callable[[], AbstractContextManager[Postgres | Gateway]]] = {"postgres": _postgres, "ceph": running_gateway}


def lead_run() -> None:
    """Have this process lead a run. Its workers inherit that from its environment."""
    os.environ[_RUN] = f"{os.getpid()}-{secrets.token_hex(8)}"


def shared_postgres() -> Postgres:
    """Return the server of this run. Start it if it is the first that is needed."""
    postgres_program("initdb")
    return Postgres(*_shared("postgres"))


def shared_gateway() -> Gateway:
    """Return the gateway of this run. Start it if it is the first that is needed."""
    gateway_programs()
    port, configuration, credentials = _shared("ceph")
    return Gateway(port, configuration, Credentials(*credentials))


def end_engines() -> None:
    """End the engines of the run that this process leads. Return when they have ended."""
    for engine in _ENGINES:
        path = _path(engine)
        with suppress(FileNotFoundError):
            kept = json.loads(path.read_text())
            with suppress(ProcessLookupError):
                _end(kept["keeper"])
            path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _end(process: int) -> None:
    descriptor = os.pidfd_open(process)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


def _path(engine: str) -> Path:
    return Path(tempfile.gettempdir()) / f"filestore-{engine}-{os.environ[_RUN]}.json"


def _shared(engine: str) -> Any:
    path = _path(engine)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            command = [sys.executable, "-m", "tests.support.engines", engine]
            subprocess.run(command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, check=True)
    kept = json.loads(path.read_text())
    if "error" in kept:
        raise RuntimeError(kept["error"])
    return kept["engine"]


def _main() -> None:
    """Start the engine that the command line names, leave its keeper behind, and end once others can use it."""
    leader = os.pidfd_open(int(os.environ[_RUN].partition("-")[0]))
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(read)
        _keep(sys.argv[1], leader, write)
    os.close(write)
    os.read(read, 1)


def _keep(engine: str, leader: int, ready: int) -> NoReturn:
    # A session of its own: Ctrl-C ends the run, which then ends the engine. Whoever reads what the run prints must see its end.
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    signal.signal(signal.SIGTERM, _leave)
    path = _path(engine)
    with suppress(SystemExit):
        try:
            with _ENGINES[engine]() as running:
                _publish(path, {"keeper": os.getpid(), "engine": running})
                os.close(ready)
                select.select([leader], [], [])
        except Exception:  # noqa: BLE001 (those who need the engine show it)
            _publish(path, {"keeper": os.getpid(), "error": traceback.format_exc()})
            os.close(ready)
            # Until then, nobody tries again.
            select.select([leader], [], [])
    for left in (path, path.with_suffix(".lock")):
        left.unlink(missing_ok=True)
    os._exit(0)


def _leave(number: int, _frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit


def _publish(path: Path, content: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.rename(path)


if __name__ == "__main__":
    _main()
