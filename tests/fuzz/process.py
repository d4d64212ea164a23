"""The process of one fuzzer: python -m tests.fuzz.process MODULE TARGET COVERED [--planted] [arguments of libFuzzer].

MODULE of `tests.fuzz.targets` has the constant TARGET. COVERED are the modules whose coverage guides the fuzzer, with commas.
`tests.fuzz` starts it, with the Python of `.venv-fuzz`.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:  # what is imported before the instrumentation has no coverage
    from tests.fuzz.target import PlantedFault, Target


def main() -> None:
    """Fuzz one target until libFuzzer ends the process, at a fault or at its limit."""
    module, name, covered, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=covered.split(","), enable_loader_override=False):
        target: Target = getattr(import_module(f"tests.fuzz.targets.{module}"), name)
    with ExitStack() as stack:
        if "--planted" in arguments:
            arguments.remove("--planted")
            stack.enter_context(target.fault.planted())
            _count_coverage(target.fault)
        atheris.Setup([sys.argv[0], *arguments], target.run, enable_python_coverage=True)
        atheris.Fuzz()


def _count_coverage(fault: PlantedFault) -> None:
    """Count the coverage of the function that has the fault, which was just compiled."""
    made = inspect.getattr_static(fault.owner, fault.function)
    for inner in (getattr(made, "__func__", None), getattr(made, "fget", None), made):
        if inspect.isfunction(inner):
            atheris.instrument_func(inner)
            return


if __name__ == "__main__":
    main()
