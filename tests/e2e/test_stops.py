"""A server that is stopped says what it waits for, and what it has cut."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.support.generator import octets
from tests.support.server import RunningServer, running_server

LARGE = 40 << 20
"""Bytes: more than the buffers of both ends of a connection hold."""


@contextmanager
def downloads(server: RunningServer, count: int) -> Iterator[list[HTTPResponse]]:
    """Yield answers that have begun, each on its own connection."""
    path = server.upload("large.bin", octets(9, LARGE)).json["path"]
    with ExitStack() as stack:
        answers = []
        for _ in range(count):
            connection = stack.enter_context(server.begin("GET", f"/{path}"))
            answer = stack.enter_context(closing(HTTPResponse(connection)))
            answer.begin()
            answers.append(answer)
        yield answers


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_says_how_many_transfers_may_finish(tmp_path: Path, workers: int) -> None:
    """They are counted over all processes. When they have finished, the server has cut nothing."""
    with running_server(tmp_path / "root", check=False, workers=workers, drain_seconds=300) as server:
        with downloads(server, 3) as answers:
            server.process.send_signal(signal.SIGTERM)
            assert server.process.stdout is not None
            first = server.process.stdout.readline()
            assert "stopping, 3 transfers may finish within 300 s; a second signal stops the server at once\n" == first
            assert [LARGE] * 3 == [len(answer.read()) for answer in answers]
        said, log = server.process.communicate(timeout=60)
    assert (0, "stopped\n") == (server.process.returncode, said), log


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_signalled", [False, True])
def test_a_stop_says_how_many_transfers_it_has_cut(tmp_path: Path, *, workers: int, is_signalled: bool) -> None:
    """After the time for them, and after a second signal. The log says which transfers they were."""
    drain_seconds = 600.0 if is_signalled else 0.1
    with (
        running_server(tmp_path / "root", check=False, workers=workers, drain_seconds=drain_seconds) as server,
        downloads(server, 2),
    ):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("stopping, 2 transfers may finish within ")
        if is_signalled:
            server.process.send_signal(signal.SIGTERM)
        said, log = server.process.communicate(timeout=60)
    assert (0, "stopped, and cut 2 transfers\n") == (server.process.returncode, said)
    if not is_signalled:
        assert "by GET /{path} of 'default', " in log
