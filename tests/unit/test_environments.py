"""The Pythons of a runtime. They are real programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from filestore.errors import MissingPackage
from filestore.runtime.environments import DEFAULT, OWN, OWN_ONLY, Environment, Environments, find_environments
from filestore.runtime.errors import UnknownEnvironment, UnusableEnvironment


def program(path: Path, says: str, *, status: int = 0) -> Path:
    """Make a program that prints a text whatever it is asked."""
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\necho trouble >&2\nexit {status}\n")
    path.chmod(0o755)
    return path


def described(python: str, sdk: str | None) -> str:
    """Return what the worker prints about a Python."""
    return json.dumps({"python": python, "sdk": sdk})


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (described("3.11.4", None), "pipeline-ai is not installed there; the versions that work are 1.0.12, 1.0.15 and 1.0.26"),
        (described("3.11.4", "1.0.16"), "pipeline-ai 1.0.16 is installed there; the versions that work are 1.0.12, 1.0.15 and"),
        (described("3.9.1", "1.0.15"), "PROGRAM is Python 3.9.1, and pipelines need 3.10 or newer"),
        (described("next", "1.0.15"), "PROGRAM is not a Python that can run pipelines (it said: trouble)"),
        ("{", "PROGRAM is not a Python that can run pipelines"),
        ("[]", "PROGRAM is not a Python that can run pipelines"),
        ("null", "PROGRAM is not a Python that can run pipelines"),
    ],
)
def test_a_python_that_does_not_fit_is_refused(tmp_path: Path, says: str, reason: str) -> None:
    """One sentence names the environment and says why."""
    path = program(tmp_path / "python", says)
    with pytest.raises(UnusableEnvironment) as refused:
        find_environments({"numpy": path}, environ={})

    assert str(refused.value).startswith(f"the environment 'numpy' cannot be used: {reason.replace('PROGRAM', str(path))}")


def test_a_path_without_a_program_is_refused(tmp_path: Path) -> None:
    """Nothing is there, or a folder."""
    for path, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Permission denied")):
        with pytest.raises(UnusableEnvironment) as refused:
            find_environments({"a": path}, environ={})
        assert str(refused.value) == f"the environment 'a' cannot be used: {path} cannot be started ({reason})"


def test_a_python_without_the_sdk_is_asked_by_a_real_process() -> None:
    """The Python of these tests has no SDK; it can run the file of the worker."""
    with pytest.raises(UnusableEnvironment, match="pipeline-ai is not installed there"):
        find_environments({"numpy": Path(sys.executable)}, environ={})


def test_a_runtime_needs_the_sdk_unless_it_is_given_a_python(tmp_path: Path) -> None:
    """Its own Python is then not an environment."""
    with pytest.raises(MissingPackage):
        find_environments({}, environ={})
    python = program(tmp_path / "python", "a line of a start script\n" + described("3.10.2", "1.0.12"))
    found = find_environments({"numpy": python}, environ={})

    assert {"numpy": Environment("numpy", str(python), "3.10.2")} == dict(found.by_name)
    assert (str(python),) == found.find("numpy").command


def test_any_name_means_the_only_environment() -> None:
    """As it did before there were others; the person who uploads is told."""
    assert OWN is OWN_ONLY.find("numpy")
    assert (sys.executable, "-P") == OWN.command
    assert OWN_ONLY.warning(DEFAULT) is None
    assert (
        "the environment 'numpy' is not known here; this runtime has one environment: default; the pipeline will run in that one"
        == OWN_ONLY.warning("numpy")
    )


def test_an_unknown_name_is_refused_if_there_is_a_choice() -> None:
    """The error lists the environments."""
    numpy = Environment("numpy", "/opt/numpy/bin/python", "3.10.2")
    environments = Environments({DEFAULT: OWN, "numpy": numpy})

    assert numpy is environments.find("numpy")
    with pytest.raises(UnknownEnvironment) as refused:
        environments.find("torch")
    expected = "the environment 'torch' is not known here; this runtime has 2 environments: default, numpy"
    assert expected == str(refused.value)


def test_a_graph_needs_the_minor_version_of_its_environment() -> None:
    """The third number makes no difference."""
    numpy = Environment("numpy", "/opt/numpy/bin/python", "3.10.2")

    assert [True, False, False] == [numpy.runs_graph_of(version) for version in ("3.10.9", "3.1.2", "3.11.2")]
