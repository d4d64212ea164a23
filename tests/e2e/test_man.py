"""The manual pages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from filestore_cli.examples import EXAMPLES
from filestore_cli.main import cli
from tests.support.commands import Home


def pages(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """The name of each page, with its command."""
    yield name, group
    for own_name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), own_name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from pages(command, f"{name}-{own_name}")
        else:
            yield f"{name}-{own_name}", command


def program(name: str) -> str:
    """A program that reads manual pages. CI always has it."""
    if shutil.which(name) is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not installed: bash tests/run.sh does it")
    return name


@pytest.fixture
def folder(home: Home, tmp_path: Path) -> Path:
    """A folder with all pages."""
    made = tmp_path / "new/man1"
    assert {"folder": str(made), "pages": len(dict(pages(cli, "filestore")))} == home.result("man", made)
    return made


@pytest.mark.slow
def test_each_command_has_a_page_with_all_its_options_and_examples(folder: Path) -> None:
    """The page is there under the name by which one asks for it."""
    found = dict(pages(cli, "filestore"))
    assert {f"{name}.1" for name in found} == {path.name for path in folder.iterdir()}
    for name, command in found.items():
        shown = subprocess.run(
            [program("mandoc"), "-Tutf8", "-Owidth=1000", folder / f"{name}.1"], stdout=subprocess.PIPE, check=True
        )
        # Bold letters are printed twice.
        plain = subprocess.run(["col", "-b"], input=shown.stdout, capture_output=True, check=True).stdout.decode()
        lines = [line.strip() for line in plain.split("\n")]
        spellings = [word.rstrip(",") for line in lines for word in line.split() if line.startswith("-")]
        assert {"-h", "--help"} <= set(spellings)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert set(parameter.opts) <= set(spellings), name
        examples = EXAMPLES.get(name.removeprefix("filestore-").replace("-", " "), ())
        assert [] == [line for line in examples if line not in lines]


@pytest.mark.slow
def test_the_pages_are_right_for_programs_that_read_them(folder: Path) -> None:
    """Neither mandoc nor groff has anything to complain of."""
    every = sorted(folder.iterdir())
    linted = subprocess.run([program("mandoc"), "-Tlint", "-Wstyle", *every], capture_output=True, text=True, check=False)
    assert (0, "", "") == (linted.returncode, linted.stdout, linted.stderr)
    formatted = subprocess.run(
        [program("groff"), "-man", "-ww", "-Tutf8", "-z", *every], capture_output=True, text=True, check=False
    )
    assert (0, "") == (formatted.returncode, formatted.stderr)
