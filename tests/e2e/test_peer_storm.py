"""Many machines fetch the same file at the same moment: real processes, and a link that counts what leaves the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, Home
from tests.support.generator import octets
from tests.support.links import running_link
from tests.support.server import TOKEN, running_server

MACHINES = 10
"""Each has two processes: a peer and a reader."""
SIZE = 8_000_000
PATIENT = (sys.executable, "-m", "tests.support.patient")
"""The command. A peer that is given up because the machine is busy would cost the server more bytes."""


@contextmanager
def running_peer(home: Home, cache: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `filestore cache serve`. Yield its process."""
    process = subprocess.Popen(
        [*PATIENT, "cache", "serve", "--listen", "127.0.0.1:0", "--cache", cache, "--json"],
        env=home.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening_url(process: subprocess.Popen[str]) -> str:
    """Return the URL that a peer prints when it accepts connections."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return str(json.loads(line)["url"])


async def warm(home: Home, cache: Path, name: str, peers: list[str]) -> dict[str, Any]:
    """Warm a cache, and return what the command printed. It must print nothing else."""
    options = [option for url in peers for option in ("--peers", url)]
    process = await asyncio.create_subprocess_exec(
        *map(str, (*PATIENT, "cache", "warm", name, "--cache", cache, "--json", *options)),
        env=home.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    output, errors = await process.communicate()
    assert (0, b"") == (process.returncode, errors), errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.timeout(600)  # on a machine that is busy with other work
async def test_many_machines_fetch_at_once(tmp_path: Path) -> None:
    """Ten machines read a file from each other. It leaves the server at most three times, also if peers are killed meanwhile."""
    home = Home(tmp_path)
    home.environ |= {"PYTHONPATH": str(REPOSITORY), "FILESTORE_STALL_SECONDS": "100"}
    content = octets(1, SIZE)
    (tmp_path / "model.bin").write_bytes(content)
    with running_server(tmp_path / "root", check=False) as server, ExitStack() as stack:
        async with running_link(server.port) as link:
            home.environ |= {"FILESTORE_URL": f"http://127.0.0.1:{link.port}", "FILESTORE_TOKEN": TOKEN}
            await asyncio.to_thread(home.result, "push", tmp_path / "model.bin", "--codec", "raw")
            before = link.down_size
            machines = [tmp_path / f"machine-{number}" for number in range(MACHINES)]
            processes = [stack.enter_context(running_peer(home, machine)) for machine in machines]
            peers = [await asyncio.to_thread(listening_url, process) for process in processes]
            half = MACHINES // 2
            warmed = await asyncio.gather(*(warm(home, machine, "model.bin", peers) for machine in machines[:half]))
            assert link.down_size - before < 2.1 * SIZE
            for process in processes[:2]:
                process.kill()
            warmed += await asyncio.gather(*(warm(home, machine, "model.bin", peers) for machine in machines[half:]))
            assert link.down_size - before < 3 * SIZE
    assert all(each["bytes_from_peers"] == each["bytes_received"] for each in warmed)
    assert [content] * MACHINES == [Path(each["files"][0]["path"]).read_bytes() for each in warmed]
