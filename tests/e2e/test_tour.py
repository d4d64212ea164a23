"""docs/tour.md shows what its commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tour


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_the_tour_shows_what_the_commands_print(tmp_path: Path) -> None:
    """A recording from an empty folder gives the page as it is; `python -m tests.tour` writes it again."""
    page = tour.PAGE.read_text()

    assert page == tour.recorded(page, tmp_path)


def test_what_differs_between_recordings_is_not_compared() -> None:
    """That are ids, dates and times, and the numbers of a block with an interruption; all else is compared."""
    block = "$ filestore push my_model\nid          file_{id}\nsent        {sent} MB\ntime        {time} s (12.5 MB/s)\n"
    first = block.format(id="0" * 32, sent="15.9", time="0.43")

    assert tour.compared(first) == tour.compared(block.format(id="1" * 32, sent="15.9", time="12.43"))
    assert tour.compared(first) != tour.compared(block.format(id="0" * 32, sent="16.0", time="0.43"))
    cut = "$ filestore fetch my_model.zip\n^C\nfetch my_model.zip: {} %, {} MB of 50.3 MB\n"
    assert tour.compared(cut.format("9", "4.75")) == tour.compared(cut.format("57", "31"))


def test_the_commands_of_a_block() -> None:
    """A line that begins with a dollar is a command, and `^C` below it interrupts it."""
    block = "$ filestore ls\n1 file\n$ filestore fetch a\n^C\nInterrupted\n$ filestore fetch a\n"

    assert [("filestore ls", False), ("filestore fetch a", True), ("filestore fetch a", False)] == list(tour.commands(block))
