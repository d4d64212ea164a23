"""The process of one fuzzer: python -m tests.fuzz.process MODULE TARGET COVERED [--planted] [arguments of libFuzzer].

MODULE of `tests.fuzz.targets` has the constant TARGET. COVERED are the modules whose coverage guides the fuzzer, with commas.
`tests.fuzz` starts it, with the Python of `.venv-fuzz`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from types import FunctionType

import atheris

from tests.fuzz.target import Target


def main() -> None:
    """Fuzz one target until libFuzzer ends the process, at a fault or at its limit."""
    module, name, covered, *arguments = sys.argv[1:]
    target: Target = getattr(import_module(f"tests.fuzz.targets.{module}"), name)
    with ExitStack() as stack:
        if "--planted" in arguments:
            arguments.remove("--planted")
            stack.enter_context(target.fault.planted())
        _count_coverage(covered.split(","))
        atheris.Setup([sys.argv[0], *arguments], target.run, enable_python_coverage=True)
        atheris.Fuzz()


def _count_coverage(covered: Sequence[str]) -> None:
    """Count the coverage of these modules and of those below them.

    The import hook of atheris would instrument the whole library, and a process would take four seconds to start.
    """
    for name, module in list(sys.modules.items()):
        if any(f"{name}.".startswith(f"{each}.") for each in covered):
            for function in set(_functions(module, name)):
                atheris.instrument_func(function)


def _functions(owner: object, module: str) -> Iterator[FunctionType]:
    """Yield the functions and methods that a module defines."""
    for value in vars(owner).values():
        if inspect.isclass(value) and value.__module__ == module:
            yield from _functions(value, module)
        for inner in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func", "__wrapped__"))):
            if inspect.isfunction(inner) and inner.__module__ == module:
                yield inner


if __name__ == "__main__":
    main()
