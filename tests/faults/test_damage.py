"""A disk returns wrong bytes. The damage is reported, never served, and repaired by the next push."""

from __future__ import annotations

import filecmp
import random
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import Home, Server

SIZE = 5 << 20


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["fetch", "curl"])
def test_damage_is_said_and_the_next_push_mends_it(home: Home, tmp_path: Path, reader: str) -> None:
    """A read finds it, and the repository forgets the frame.

    The push cache does not keep the next push from sending it.
    """
    source, target = tmp_path / "model.bin", tmp_path / "back.bin"
    source.write_bytes(random.Random(9).randbytes(SIZE))
    with home.server(root=tmp_path / "root", complains=reader == "curl") as server:
        pushed = home.result("push", source, environ=server.environ)
        damage(max((tmp_path / "root").glob("chunks/*/*/*/*"), key=lambda path: path.stat().st_size))
        if reader == "fetch":
            assert "is damaged in the repository" in home.failure("fetch", pushed["id"], "-o", target, environ=server.environ)
            assert not target.exists()
        else:
            assert curl(server, pushed["path"], target) != 0
        again = home.result("push", source, environ=server.environ)
        assert 0 < again["bytes_sent"] < pushed["bytes_sent"]
        if reader == "fetch":
            home.result("fetch", pushed["id"], "-o", target, environ=server.environ)
        else:
            assert curl(server, pushed["path"], target) == 0
    assert filecmp.cmp(source, target, shallow=False)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    frame = bytearray(path.read_bytes())
    frame[len(frame) // 2] ^= 1
    path.write_bytes(frame)


def curl(server: Server, path: str, target: Path) -> int:
    """Return the exit status of a plain GET that treats an error status and a short answer as failures."""
    command = ["curl", "-sf", "-H", f"Authorization: Bearer {server.token}", "-o", str(target), f"{server.url}/{path}"]
    return subprocess.run(command, check=False).returncode
