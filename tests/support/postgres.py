"""Run PostgreSQL on a free port of loopback, and make databases in it.

    with running_postgres() as server:
        url = server.postgres.new_database()

One server for all tests of a run is the fixture `postgres`; the fixture `postgres_url` is a new database in it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tests.support.daemons import START_SECONDS, Daemons, engine_folder, lasting_port, program
from tests.support.server import eventually

USER = "filestore"
"""The superuser of the server. Only this user needs no password."""
_SETTINGS = {
    "unix_socket_directories": "",
    "max_connections": "400",
    "shared_buffers": "64MB",
    # A wait of a test that is longer than this is a fault of ours.
    "deadlock_timeout": "200ms",
    "log_line_prefix": "%m [%p] %d ",
    "log_min_error_statement": "error",
}
USERS_OF = "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND backend_type <> 'autovacuum worker'"
"""How many sessions prevent a copy of a database. PostgreSQL ends the others for it."""
_ACCESS = f"host all {USER} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


class Postgres(NamedTuple):
    """A server that accepts connections."""

    port: int

    def url(self, database: str, *, user: str = USER) -> str:
        """Return the location of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def new_database(self, *, template: str = "template1") -> str:
        """Make an empty database, or a copy of the database `template`, which nobody uses any more; return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def await_end_of_sessions(self, url: str) -> None:
        """Wait until no session uses a database. One goes on for a moment after its client has left, and prevents copies."""
        users = USERS_OF.format(url.rpartition("/")[2])
        eventually(lambda: self.execute(users) == "0", lambda: f"{url} is still in use")

    def drop_database(self, url: str) -> None:
        """Remove a database, and end its connections."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    def new_user(self) -> tuple[str, str]:
        """Make a user without any right, who needs a password; return the name and the password."""
        name, password = f"user_{secrets.token_hex(4)}", secrets.token_hex(8)
        self.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
        return name, password

    def execute(self, statement: str, *, url: str | None = None) -> str:
        """Run a statement in the database at `url`, by default that of the server itself; return rows as psql prints them."""
        command = [
            postgres_program("psql"),
            "-X",
            "-q",
            "-t",
            "-A",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            statement,
            url or self.url("postgres"),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=START_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        return done.stdout.decode().rstrip("\n")


class PostgresServer:
    """The process of a server, which a test may stop, kill and start again. What is committed stays."""

    def __init__(self, folder: Path, *, durable: bool, addresses: Sequence[str], settings: Mapping[str, str]) -> None:
        self.postgres = Postgres(lasting_port())
        self._data = folder / "data"
        self._daemons = Daemons(folder, user=_user())
        self._process: subprocess.Popen[bytes]
        self._settings = _SETTINGS | {"port": str(self.postgres.port), "listen_addresses": ",".join(["127.0.0.1", *addresses])}
        self._settings |= settings
        if not durable:
            # Commits are still written before they are acknowledged: a killed server may lose nothing.
            self._settings |= {"fsync": "off", "full_page_writes": "off"}
        # A locale that sorts as people do, as servers of others may have: who needs the order of bytes must say so.
        self._daemons.run(
            *(postgres_program("initdb"), "--username", USER, "--auth=trust", "--encoding=UTF8", "--no-sync"),
            *("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "-D", self._data),
        )
        further = (f"host all {USER} {address}/30 trust\n" for address in addresses)
        (self._data / "pg_hba.conf").write_text(_ACCESS + "".join(further))

    def start(self) -> None:
        """Start the server. Return once it answers."""
        settings = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        command: list[str | Path] = [postgres_program("postgres"), "-D", self._data, *settings]
        self._process = self._daemons.start("postgres", command, answers=self._answers)

    def stop(self) -> None:
        """End all connections, and the server."""
        self._daemons.stop(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server and all its processes, as a machine that is switched off does."""
        # Stopped, so that it starts no more of them.
        self._process.send_signal(signal.SIGSTOP)
        descriptors = [os.pidfd_open(child) for child in _children(self._process.pid)]
        try:
            for descriptor in descriptors:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._daemons.stop(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it again, on the same port."""
        self.stop()
        self.start()

    def _answers(self) -> bool:
        command = [postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.postgres.port)]
        return subprocess.run(command, check=False, timeout=START_SECONDS).returncode == 0


@contextmanager
def running_postgres(
    *, durable: bool = False, addresses: Sequence[str] = (), settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[PostgresServer]:
    """Run a server of its own until the end of the block.

    `durable` has it sync what it commits, which a test of power cuts needs, not one of killed processes. `addresses` are those of
    this machine at which `tests.support.hosts` reach it too. `settings` are further ones of the server.
    """
    with engine_folder("postgres", _user()) as folder:
        server = PostgresServer(folder, durable=durable, addresses=addresses, settings=settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _user() -> str | None:
    """Who runs the server, which refuses to be run by root. None means who runs the tests."""
    if os.geteuid() != 0:
        return None
    return "postgres" if any(record.pw_name == "postgres" for record in pwd.getpwall()) else "nobody"


def postgres_program(name: str) -> str:
    """Return the path of a program of PostgreSQL. Skip the test if it is missing. In CI that is a failure."""
    # Debian keeps the programs of each version in a folder of its own.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    return program(name, *folders)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
