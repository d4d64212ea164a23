"""promtool and Prometheus, which tests/prometheus.sh unpacks, or which are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_UNPACKED = Path(__file__).parents[2] / ".prometheus" / "usr" / "bin"
_NAME = re.compile(r"filestore_[a-z0-9_]+")
_LABELS = re.compile(r'"[^"]*"')


def program(name: str) -> str:
    """Return the path of one of the programs. Skip the test if it is missing. In CI that is a failure."""
    found = shutil.which(name, path=f"{_UNPACKED}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing: tests/prometheus.sh unpacks it")
        pytest.skip(f"{name} is missing: tests/prometheus.sh unpacks it")
    return found


def promtool(*arguments: str | Path, text: bytes = b"") -> None:
    """Run promtool, which must find nothing to complain about."""
    done = subprocess.run([program("promtool"), *arguments], input=text, capture_output=True, check=False, timeout=60)
    assert 0 == done.returncode, (done.stdout + done.stderr).decode()
    if arguments[:2] == ("check", "metrics"):
        # It also prints what it would do better, and ends well.
        assert b"" == done.stdout + done.stderr


def metric_names(expression: str) -> set[str]:
    """Return the names of the metrics in an expression of PromQL."""
    return set(_NAME.findall(_LABELS.sub('""', expression)))
