"""The Pythons that pipelines run in. Each has a supported version of the Pipeline SDK, and needs nothing of filestore."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filestore.errors import MissingPackage
from filestore.runtime import worker
from filestore.runtime.errors import UnknownEnvironment, UnusableEnvironment

DEFAULT = "default"
"""The name of the Python that the server itself runs in."""
SDK_VERSIONS = ("1.0.12", "1.0.15", "1.0.26")
"""The supported versions of the Pipeline SDK. The tests run each."""

_OLDEST_PYTHON = (3, 10)
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python with a version of the Pipeline SDK."""

    name: str
    python: str
    """The program. It is not resolved, because the path of a link says to which virtual environment it belongs."""
    python_version: str

    @property
    def command(self) -> tuple[str, ...]:
        """The program and the options that start it."""
        # -P: user code must not import the modules next to the worker. Python has it from 3.11 on.
        return (self.python,) if _minor(self.python_version) < (3, 11) else (self.python, "-P")

    def runs_graph_of(self, python_version: str) -> bool:
        """Return whether it can run a graph that was made by a version of Python.

        A graph contains compiled code, and another minor version would crash on it.
        """
        return python_version.split(".")[:2] == self.python_version.split(".")[:2]


OWN = Environment(DEFAULT, sys.executable, platform.python_version())


@dataclass(frozen=True, slots=True)
class Environments:
    """The environments of a runtime by their names."""

    by_name: Mapping[str, Environment] = field(default_factory=lambda: {DEFAULT: OWN})

    def __str__(self) -> str:
        count = "one environment" if len(self.by_name) == 1 else f"{len(self.by_name)} environments"
        return f"{count}: {', '.join(self.by_name)}"

    def find(self, name: str) -> Environment:
        """Return the environment in which a pipeline for `name` runs.

        A runtime that has only its own Python uses it for every name. Raises UnknownEnvironment if there is a choice.
        """
        known = self.by_name.get(name)
        if known is not None:
            return known
        if set(self.by_name) == {DEFAULT}:
            return self.by_name[DEFAULT]
        raise UnknownEnvironment(name, str(self))

    def warning(self, name: str) -> str | None:
        """Return what the person who uploads a pipeline for `name` must be told, or None."""
        return None if name in self.by_name else f"{UnknownEnvironment(name, str(self))}; the pipeline will run in that one"


OWN_ONLY = Environments()


def find_environments(pythons: Mapping[str, Path], *, environ: Mapping[str, str]) -> Environments:
    """Ask each Python for its versions, with the variables `environ`. Blocks.

    The Python of this process is the environment `default`, unless `pythons` names another one. If `pythons` is not
    empty, this process does not need the SDK.

    Raises MissingPackage, UnusableEnvironment.
    """
    found = {}
    if DEFAULT not in pythons:
        own = worker.describe()
        if own["sdk"] is None and not pythons:
            raise MissingPackage(worker.SDK, "a runtime", "runtime")
        if own["sdk"] is not None:
            found[DEFAULT] = _checked(DEFAULT, sys.executable, own)
    for name, python in pythons.items():
        found[name] = _checked(name, str(python), _ask(name, python, environ))
    return Environments(found)


def _ask(name: str, python: Path, environ: Mapping[str, str]) -> Mapping[str, object]:
    """Return what `worker.describe` returns in another Python. Raises UnusableEnvironment."""
    command = [str(python), worker.__file__, "--describe"]
    try:
        done = subprocess.run(  # noqa: S603  # the program that the user of this machine has set
            command, capture_output=True, check=False, env=dict(environ), stdin=subprocess.DEVNULL, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UnusableEnvironment(name, f"{python} did not answer within {_SECONDS:g} seconds") from None
    except OSError as error:
        raise UnusableEnvironment(name, f"{python} cannot be started ({error.strerror})") from None
    try:
        # Code that runs at every start of a Python may print lines before ours.
        described = json.loads(done.stdout.splitlines()[-1])
        _minor(described["python"])
    except (ValueError, LookupError, TypeError, AttributeError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = f"{python} is not a Python that can run pipelines" + (f" (it said: {said[-1][:200]})" if said else "")
        raise UnusableEnvironment(name, reason) from None
    return dict(described)


def _checked(name: str, python: str, described: Mapping[str, object]) -> Environment:
    """Return an environment that fits. Raises UnusableEnvironment."""
    version, sdk = str(described["python"]), described.get("sdk")
    if _minor(version) < _OLDEST_PYTHON:
        oldest = ".".join(map(str, _OLDEST_PYTHON))
        raise UnusableEnvironment(name, f"{python} is Python {version}, and pipelines need {oldest} or newer")
    if sdk not in SDK_VERSIONS:
        what = f"{worker.SDK} {sdk} is installed there" if sdk else f"{worker.SDK} is not installed there"
        versions = f"{', '.join(SDK_VERSIONS[:-1])} and {SDK_VERSIONS[-1]}"
        raise UnusableEnvironment(name, f"{what}; the versions that work are {versions}")
    return Environment(name, python, version)


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
