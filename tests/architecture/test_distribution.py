from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from filestore_cli.version import DISTRIBUTION

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
INSTALLS = re.compile(r"(?:pip|pipx|uv tool|uv pip|uv|poetry) (?:install|add|download)\s(?P<arguments>[^\n`]*)")
OURS = re.compile(rf"(?<![\w/.])(?:filestore|{re.escape(DISTRIBUTION)})(?![\w/.])")
NOT_OURS_TO_CHANGE = {
    "tests/architecture/test_distribution.py",
}


def installed_by_name(text: str) -> list[str]:
    """The lines of a text that install filestore from a package index."""
    return [found[0] for found in INSTALLS.finditer(text) if OURS.search(found["arguments"].partition("#")[0])]


def test_the_commands_ask_for_the_distribution_that_the_project_makes() -> None:
    """The name of the distribution is stated in pyproject.toml and once in the code."""
    assert PROJECT["name"] == DISTRIBUTION


def test_no_line_installs_filestore_from_a_package_index() -> None:
    """Another project owns the name `filestore` there, and ours is not published: every line installs from a checkout."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    found = {}
    for name in (
        {*names, *(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("docs/**/*") if path.is_file())}
        - NOT_OURS_TO_CHANGE
        - {""}
    ):
        try:
            lines = installed_by_name((REPOSITORY / name).read_text())
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if lines:
            found[name] = lines

    assert found == {}


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("pip install filestore", True),
        ("pip install 'filestore[runtime]'", True),
        (".venv/bin/pip install --quiet -U filestore==0.1.0", True),
        ("pip install --force-reinstall --no-deps filestore", True),
        (f"pipx install {DISTRIBUTION}", True),
        ("uv tool install filestore", True),
        ("pip install .", False),
        ("pip install '.[runtime]'", False),
        ("pip install ./filestore", False),
        ("pip install .                # filestore, in its folder", False),
        ("git clone ADDRESS filestore && cd filestore", False),
        ("pip install 'pipeline-ai==2.8.0' 'setuptools<81'", False),
    ],
)
def test_what_counts_as_such_a_line(line: str, *, is_found: bool) -> None:
    """The rule finds each way to write it, and no install from a checkout."""
    assert is_found is (installed_by_name(line) != [])


def site_without(folder: Path, *, old: str | None = None) -> Path:
    """A copy of the installed packages, by links, in which only the metadata of filestore is missing."""
    site = folder / "site"
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith((f"{DISTRIBUTION.replace('-', '_')}-", "filestore-")) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    if old is not None:
        (site / f"{old}-0.0.9.dist-info").mkdir()
        (site / f"{old}-0.0.9.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {old}\nVersion: 0.0.9\n")
    return site


def from_checkout(site: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the command of this checkout with other installed packages."""
    return subprocess.run(
        [sys.executable, "-S", "-m", "filestore", *arguments],
        env={"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'cli'}:{site}", "HOME": str(site.parent)},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("old", [None, "filestore"])
def test_a_checkout_that_was_updated_and_not_installed_again(tmp_path: Path, old: str | None) -> None:
    """Its version is not known, also where an older state installed the name `filestore`; the commands work."""
    site = site_without(tmp_path, old=old)
    (tmp_path / "file").write_bytes(b"")
    asked = from_checkout(site, ["--version"])

    assert (1, "") == (asked.returncode, asked.stdout)
    assert asked.stderr == (
        "Error: the version is not known, because the metadata of the installed package model-filestore are missing; "
        "run `pip install .` in the folder of filestore again\n"
    )
    assert 0 == from_checkout(site, ["hash", "file"]).returncode


@pytest.mark.slow
def test_an_environment_that_has_the_old_name_too(tmp_path: Path) -> None:
    """The script that makes environments removes the old name: its uninstall would remove our scripts later."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=100)
    site = next(folder.glob("lib/python*/site-packages"))
    # An environment gets its own pip only in seconds.
    (site / "pip").symlink_to(Path(sysconfig.get_path("purelib")) / "pip")
    old = site / "filestore-0.0.9.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: filestore\nVersion: 0.0.9\n")
    (old / "INSTALLER").write_text("pip\n")
    (old / "RECORD").write_text("".join(f"{old.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
    subprocess.run(["bash", REPOSITORY / "tests/make_venv.sh", folder], check=True, timeout=100)

    assert not old.exists()
