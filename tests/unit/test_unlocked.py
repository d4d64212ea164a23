"""Calls without the interpreter lock, and how they are measured."""

from __future__ import annotations

from filestore.core.unlocked import MEASURED_EACH, measure_unlocked, unlocked_in_series


def test_short_series_are_measured_right_on_the_average() -> None:
    """A connection may receive once. If that counted for seven, much time would seem to be without the lock."""
    lengths = range(1, MEASURED_EACH + 1)
    made: list[int] = []
    counted: list[int] = []

    def measure(function, args, times=1):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        counted.append(times)
        return function(*args)

    measure_unlocked(measure)
    try:
        for length in lengths:
            for number in range(length):
                unlocked_in_series(number, made.append, number)
    finally:
        measure_unlocked(None)
    assert sum(lengths) == len(made)
    assert sum(lengths) == sum(counted)
