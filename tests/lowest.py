"""Print the lowest versions that pyproject.toml allows of what filestore and three extras need, as constraints for pip."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = ("jwt", "postgres", "s3")
"""Those that the tests with the lowest versions need."""


def lowest(requirement: str) -> str:
    """The constraint that takes a requirement at its lower bound."""
    found = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
    if found is None:
        raise SystemExit(f"{requirement!r} in pyproject.toml has no lower bound; write NAME>=VERSION")
    return f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    needed = [*PROJECT["dependencies"], *(each for extra in EXTRAS for each in PROJECT["optional-dependencies"][extra])]
    sys.stdout.write("".join(f"{lowest(requirement)}\n" for requirement in needed))
