"""What docs/deploy has, and the programs that check it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import REPOSITORY, scripts_of

DEPLOY = REPOSITORY / "docs/deploy"
CHART = DEPLOY / "helm/filestore"


def checked_by(tool: str, *arguments: str | Path) -> str:
    """Run a program of `.venv-deploy`, which must find nothing wrong. Return what it printed."""
    done = tool_run(tool, *arguments)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def tool_run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of `.venv-deploy` to its end."""
    return subprocess.run([scripts_of(".venv-deploy") / tool, *arguments], capture_output=True, text=True, check=False)


def debian_program(name: str) -> str:
    """Return the path of a program of Debian that `tests/run.sh` installs. CI always has it."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if path is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not there: bash tests/run.sh installs it")
    assert path is not None
    return path


def manifests(**values: str) -> dict[str, Any]:
    """Return what helm makes of the chart, by kind. `__` in the name of a value stands for a dot."""
    given = [option for name, value in values.items() for option in ("--set", f"{name.replace('__', '.')}={value}")]
    made = yaml.safe_load_all(checked_by("helm", "template", "release", CHART, *given))
    return {manifest["kind"]: manifest for manifest in made}


def refusal(**values: str) -> str:
    """Return why helm does not render the chart with these values."""
    given = [option for name, value in values.items() for option in ("--set", f"{name.replace('__', '.')}={value}")]
    done = tool_run("helm", "template", "release", CHART, *given)
    assert 0 != done.returncode, done.stdout
    return done.stderr


def unit(path: Path) -> Mapping[str, list[str]]:
    """Return the lines of a unit of systemd, by key, of all its sections."""
    lines: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        key, is_line, value = line.partition("=")
        if is_line and not line.startswith("#"):
            lines.setdefault(key, []).append(value)
    return lines
