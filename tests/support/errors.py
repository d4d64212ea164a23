"""One error of each class. Run as `python -m tests.support.errors` this writes their golden files: a change of the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_type_hints

import filestore.runtime.errors  # noqa: F401  # a branch of the tree
from filestore.errors import FilestoreError
from filestore.http.wire import encode_problem, status_of
from tests.support.golden import FOLDER, Vector

SAMPLES: dict[object, object] = {str: "a fact", int: 7, float: 2.5, tuple[str, ...]: "a fact"}


def classes(parent: type[FilestoreError] = FilestoreError) -> Iterator[type[FilestoreError]]:
    """The whole error tree."""
    yield parent
    for below in parent.__subclasses__():
        yield from classes(below)


def fact_types(kind: type[FilestoreError]) -> dict[str, Any]:
    """The facts of a class, with their types."""
    types = get_type_hints(kind)
    return {name: types.get(name, str) for name in kind.facts}


def example(kind: type[FilestoreError]) -> FilestoreError:
    """An error with facts of the types that its class names."""
    return kind(*(SAMPLES[needed] for needed in fact_types(kind).values()))  # type: ignore[arg-type]  # of those types


def error_vectors() -> Vector:
    """What `tests/golden/errors.json` holds: slug to class, facts and status."""
    return {
        kind.slug: {
            "class": kind.__name__,
            "facts": {name: getattr(needed, "__name__", str(needed)) for name, needed in fact_types(kind).items()},
            "status": status_of(kind),
        }
        for kind in sorted(classes(), key=lambda kind: kind.slug)
    }


def problem_vectors() -> Vector:
    """What `tests/golden/problems.json` holds: slug to a problem document."""
    return {kind.slug: encode_problem(example(kind)).document for kind in sorted(classes(), key=lambda kind: kind.slug)}


if __name__ == "__main__":
    for name, vector in {"errors.json": error_vectors(), "problems.json": problem_vectors()}.items():
        (FOLDER / name).write_text(json.dumps(vector, indent=1) + "\n")
