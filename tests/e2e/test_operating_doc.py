"""The lines of docs/operating.md, from the top to the end, with a real server.

`test_deploy_systemd.py` types those for systemd.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.commands import REPOSITORY, SCRIPTS, Home
from tests.support.generator import octets

PAGE = (REPOSITORY / "docs/operating.md").read_text()
DAMAGE_IS_FOUND = 'filestore check --read-data --root "$FOLDER"'


class Line(NamedTuple):
    """A command, and the heading that it is under."""

    heading: str
    text: str


def lines() -> list[Line]:
    """Return the commands of the page in its order."""
    found = []
    for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found += [Line(heading, line) for line in block.splitlines()]
    return found


class Typist:
    """Types the commands, with the variables that the page uses."""

    def __init__(self, home: Home, folder: Path) -> None:
        self._home = home
        places = {"FOLDER": folder / "served", "TARGET": folder / "backups", "ORIGINAL": folder / "model.bin"}
        self.environ = {name: str(path) for name, path in places.items()} | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}"}

    def type(self, line: Line, status: int = 0) -> str:
        """Run a command, which must end with this status, and return what it prints."""
        done = self._home.run("-euo", "pipefail", "-c", line.text, program="bash", environ=self.environ)
        assert status == done.returncode, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


def flip(folder: Path) -> None:
    """Damage the largest frame of a repository."""
    path = max((path for path in (folder / "chunks").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_every_line_does_what_it_says(home: Home, tmp_path: Path) -> None:
    """A folder is set up, served, backed up, restored, cleared and repaired, while its server runs."""
    typist = Typist(home, tmp_path)
    first, *others = lines()
    assert "By hand" == first.heading
    token = typist.type(first).strip()
    (tmp_path / "model.bin").write_bytes(octets(1, 2_000_000))
    (tmp_path / "old-model.bin").write_bytes(octets(2, 2_000_000))
    with home.server("--scrub-rate", "0", root=tmp_path / "served", complains=None) as server:
        typist.environ |= {"FILESTORE_URL": server.url}
        for name in ("model.bin", "old-model.bin"):
            home.result("push", tmp_path / name, environ={"FILESTORE_URL": server.url, "FILESTORE_TOKEN": token})
        for line in others:
            if line.heading == "A chunk is damaged" and line.text == DAMAGE_IS_FOUND:
                flip(tmp_path / "served")
                assert "damaged   frame" in typist.type(line, status=1)
                continue
            printed = typist.type(line)
            if "--label alice" in line.text:
                typist.environ["LEAKED"] = printed.strip()
    listed = home.result("ls", environ={"FILESTORE_URL": str(tmp_path / "served")})["files"]

    assert ["model.bin"] == [record["name"] for record in listed]
    assert "whole again" not in typist.type(Line("", DAMAGE_IS_FOUND))


def test_every_command_of_the_page_exists() -> None:
    """Also in the blocks that no test executes: a subcommand with a typing error would be found by a reader only."""
    page = (REPOSITORY / "docs/cli.md").read_text()
    typed = re.findall(r"^(?:\$ )?(?:.* -- )?filestore ((?:[a-z-]+ ?){1,2})", PAGE, re.MULTILINE)
    quoted = re.findall(r"`filestore ((?:[a-z-]+ ?){1,2})", PAGE)

    assert typed
    for words in [*typed, *quoted]:
        command = " ".join(word for word in shlex.split(words) if not word.startswith("-"))
        names = {command, command.partition(" ")[0]}
        assert any(f"### filestore {name}\n" in page for name in names), command
