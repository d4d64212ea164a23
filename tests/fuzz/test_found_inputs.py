"""What fuzzers have found, and what they begin with, without a fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz.all_targets import TARGETS
from tests.fuzz.fuzzer import FOUND, found_inputs


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_kept_input_breaks_a_rule(name: str) -> None:
    """The seeds of a target, and the inputs that once broke a rule, break none."""
    target = TARGETS[name]
    for data in [*target.seeds(), b"", *(path.read_bytes() for path in found_inputs(name))]:
        target.run(data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_each_planted_fault_still_fits_the_code(name: str) -> None:
    """A planted fault raises if the check that it takes out was changed, so that it cannot stop being one unnoticed."""
    with TARGETS[name].fault.planted():
        pass


def test_each_kept_input_has_a_target_and_is_small() -> None:
    """A folder of kept inputs has the name of a target, and none of its files is larger than the fuzzer makes."""
    for folder in FOUND.iterdir():
        assert folder.name in TARGETS
        assert all(path.stat().st_size <= TARGETS[folder.name].size_limit for path in folder.iterdir())
