"""Run a real peer, by its command, and ask it for frames."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filestore.core.digest import Digest
from filestore.http import wire
from tests.support.commands import SCRIPTS
from tests.support.server import TOKEN, Reply, RunningServer

GET = f"{wire.API}/chunks/get"


class RunningPeer(RunningServer):
    """A peer that accepts connections. `token` is the ticket, and `root` its cache."""

    def get(self, digests: Sequence[Digest], *, ticket: str | None = None) -> Reply:
        """Ask for frames, with a right ticket unless another one is given."""
        return self.ask("POST", GET, b"".join(digests), token=self.token if ticket is None else ticket)

    def frames(self, digests: Sequence[Digest]) -> list[bytes]:
        """Return frames. An absent one is empty."""
        answer = self.get(digests)
        assert 200 == answer.status, answer
        return frames_of(answer.body)

    def kept(self) -> list[Path]:
        """Return the files of its folder."""
        return [path for path in (self.root / "peers").rglob("*") if path.is_file()]


def frames_of(body: bytes) -> list[bytes]:
    """Return the frames of a batch."""
    count = wire.decode_batch_count(body)
    size = wire.batch_header_size(count)
    entries = wire.decode_batch_entries(body[4:size], absent_allowed=True)
    frames, place = [], size
    for entry in entries:
        frames.append(body[place : place + entry.stored_size])
        place += entry.stored_size
    assert place == len(body)
    return frames


def ticket_of(server: RunningServer, *, token: str = TOKEN) -> str:
    """Return the ticket that a server gives."""
    return str(server.ask("POST", f"{wire.API}/peer-ticket", token=token).json["ticket"])


def start_peer(server: RunningServer, cache: Path, *options: str, token: str = TOKEN) -> subprocess.Popen[str]:
    """Start a peer of a server, on any free port, and do not wait until it is ready."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FILESTORE_")}
    return subprocess.Popen(
        [SCRIPTS / "filestore", "cache", "serve", "--listen", "127.0.0.1:0", "--cache", cache, "--url", server.url, *options],
        env={**environment, "HOME": str(server.root), "FILESTORE_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@contextmanager
def running_peer(
    server: RunningServer, cache: Path, *options: str, check: bool = True, token: str = TOKEN
) -> Iterator[RunningPeer]:
    """Run a peer of a server until the end of the block. With `check`, it must then stop in order and without a message."""
    process = start_peer(server, cache, *options, token=token)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(process.communicate()[1])
        url = line.split()[-1]
        assert urlsplit(url).port
        yield RunningPeer(url, ticket_of(server, token=token), cache, process)
        if check:
            end = stopped(process)
            assert (0, "") == end, end
    finally:
        process.kill()
        process.communicate()


def stopped(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Stop a peer as a service manager does. Return its exit status, and its standard error."""
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def sent_by(server: RunningServer) -> int:
    """Return how many bytes of frames a server has sent."""
    stages = server.ask("GET", f"{wire.API}/status").json["stages"]
    return int(stages["send"]["size"]) if "send" in stages else 0
