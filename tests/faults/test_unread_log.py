"""Nobody reads the standard error of a server. Its pipe is full, and the server goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from filestore.backends import connect
from filestore.errors import FilestoreError
from tests.support.frames import contents, encoded
from tests.support.server import SECONDS

LINES = 3000
WRITES = f"""
import logging, sys
from filestore.http.server.log import DirectHandler, log_by_thread

logging.basicConfig(handlers=[DirectHandler()])
with log_by_thread():
    for number in range({LINES}):
        logging.warning("line %d", number)
    print("written", flush=True)
    sys.stdin.readline()
logging.warning("the last one")
print("ended", flush=True)
"""


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe that takes no more bytes."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):  # the test has closed it
            os.close(end)


def start(writer: int) -> subprocess.Popen[str]:
    """Start a process that writes more lines than may wait."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer, text=True
    )


@pytest.mark.slow
def test_a_process_whose_log_nobody_reads_ends(full_pipe: tuple[int, int]) -> None:
    """It neither waits when it writes a line, nor for ever at its end."""
    with start(full_pipe[1]) as process:
        out, _ = process.communicate("\n", timeout=SECONDS)
    assert (0, "written\nended\n") == (process.returncode, out)


def test_how_many_lines_were_left_out_is_told(full_pipe: tuple[int, int]) -> None:
    """When a reader comes, the lines that waited and the number of the others are written."""
    reader, writer = full_pipe
    with start(writer) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "written\n" == process.stdout.readline()
        os.close(writer)
        process.stdin.write("\n")
        process.stdin.flush()
        with os.fdopen(reader) as log:
            lines = log.read().lstrip("x").splitlines()
        process.wait(SECONDS)
    assert lines[-1].endswith("the last one")
    (told,) = [line for line in lines if "were left out" in line]
    assert LINES == int(told.split()[2]) + sum("WARNING line " in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("access_log", ["off", "plain"])
async def test_a_server_whose_log_is_full_answers(
    full_pipe: tuple[int, int], tmp_path: Path, workers: str, access_log: str
) -> None:
    """Requests that log a line get their answers, and a signal ends the server."""
    root, token = tmp_path / "root", "t" * 40
    command = [sys.executable, "-m", "filestore", "serve", "--root", str(root), "--create", "--port", "0", "--workers", workers]
    command += ["--access-log", access_log]
    environ = os.environ | {"FILESTORE_TOKEN": token, "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=full_pipe[1], text=True) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("listening on ")).split()[-1]
            shutil.rmtree(root / "tmp")
            (root / "tmp").write_bytes(b"")
            async with connect(url, token=token, retry_seconds=0) as repository:
                for content in contents(4):
                    with pytest.raises(FilestoreError, match=r"500|failed"):
                        await repository.put([encoded(content)])
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, SECONDS)
        finally:
            process.kill()
    assert 0 == process.returncode
