"""Start fuzzers, one process for each target, and read what libFuzzer reports."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.all_targets import TARGETS

REPOSITORY = Path(__file__).parents[2]
FOUND = Path(__file__).with_name("found")
"""The inputs that are kept as tests: one folder for each target."""
OWN_PYTHON = REPOSITORY / ".venv-fuzz" / "bin" / "python"
SECONDS_LIMIT = 10
"""How long one input may take."""
MEMORY_LIMIT_MB = 1024
"""MiB that a fuzzer may have."""

_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*([0-9]+)")
_PROGRESS = re.compile(r"#([0-9]+)\s.*?cov: ([0-9]+) ft: ([0-9]+)(?: corp: ([0-9]+))?")


class Outcome(NamedTuple):
    """What one fuzzer did."""

    target: str
    executions: int
    coverage: int
    """The places in the code of filestore that its inputs reached, as atheris counts them."""
    features: int
    corpus_count: int
    seconds: float
    is_found: bool
    """Whether an input broke a rule."""
    output: str
    inputs: list[Path]
    """The files with the inputs that broke a rule."""

    def __str__(self) -> str:
        found = "found a fault" if self.is_found else "found nothing"
        return (
            f"{self.target:16} {found:14} {self.executions:>10} executions  {self.seconds:7.1f} s  coverage {self.coverage:>5}"
            f"  features {self.features:>6}  inputs {self.corpus_count:>5}"
        )


def python() -> str | None:
    """Return the Python that has atheris: this one, or that of `.venv-fuzz`. None if neither has it."""
    if find_spec("atheris") is not None:
        return sys.executable
    return str(OWN_PYTHON) if OWN_PYTHON.exists() else None


def fuzz(
    name: str,
    corpus: Path,
    *,
    seed: int | None = None,
    runs: int | None = None,
    seconds: int | None = None,
    is_planted: bool = False,
) -> Outcome:
    """Fuzz one target until it breaks a rule, or for so many `runs` or `seconds`.

    `corpus` is a folder that keeps what the fuzzer learns; the seeds are written to it. With `runs` and a `seed`, a run with
    the same corpus is the same again. Raises FileNotFoundError if no Python here has atheris.
    """
    target, used = TARGETS[name], python()
    if used is None:
        raise FileNotFoundError("atheris is not installed; tests/run.sh makes .venv-fuzz, which has it")
    learned, faults = corpus / name, corpus / "faults" / name
    for folder in (learned, faults):
        folder.mkdir(parents=True, exist_ok=True)
    _write_seeds(learned, [*target.seeds(), *(path.read_bytes() for path in found_inputs(name))])
    before = set(faults.iterdir())
    limits = [f"-seed={seed}"] if seed is not None else []
    limits += [f"-runs={runs}"] if runs is not None else []
    limits += [f"-max_total_time={seconds}"] if seconds is not None else []
    module, constant = target.check.__module__.rpartition(".")[2], name.upper().replace("-", "_")
    command = [
        # A shell between: Linux counts the peak memory of this process as that of its child, but not of a child of that.
        *("sh", "-c", '"$@"; exit "$?"', "sh"),
        used,
        "-m",
        "tests.fuzz.process",
        module,
        constant,
        ",".join(target.parses),
        *(["--planted"] if is_planted else []),
        *limits,
    ]
    command += [f"-max_len={target.size_limit}", f"-timeout={SECONDS_LIMIT}", f"-rss_limit_mb={MEMORY_LIMIT_MB}"]
    command += [f"-artifact_prefix={faults}/", "-len_control=0", "-keep_seed=1", "-print_final_stats=1", str(learned)]
    began = time.monotonic()
    # The order of sets is an input of what the fuzzer learns.
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "cli")])}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False)
    output = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    return _outcome(
        name, output, time.monotonic() - began, is_found=done.returncode != 0, inputs=sorted(set(faults.iterdir()) - before)
    )


def found_inputs(name: str) -> Iterator[Path]:
    """Yield the inputs of a target that are kept as tests, in the order of their names."""
    yield from sorted((FOUND / name).glob("*"))


def _write_seeds(folder: Path, seeds: Sequence[bytes]) -> None:
    for seed in seeds:
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


def _outcome(name: str, output: str, seconds: float, *, is_found: bool, inputs: list[Path]) -> Outcome:
    progress = [tuple(int(number or 0) for number in found) for found in _PROGRESS.findall(output)]
    last = progress[-1] if progress else (0, 0, 0, 0)
    executed = _EXECUTIONS.search(output)
    executions = int(executed[1]) if executed is not None else last[0]
    return Outcome(name, executions, last[1], last[2], last[3], seconds, is_found, output, inputs)
