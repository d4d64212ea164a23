from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from filestore.core.progress import Progress
from filestore.errors import Interrupted
from filestore.http.client.repository import RemoteRepository
from filestore.system.retries import Retries
from filestore_cli.progress import FETCH, HASH, PLAN, PUSH, Activity, Bar, PlainLines, ProgressMeter, sentence
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    """A clock at some time."""
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> ProgressMeter:
    """A meter by that clock."""
    return ProgressMeter(clock)


def after(meter: ProgressMeter, clock: Clock, seconds: float, progress: Progress | None = None) -> None:
    """Let time pass, then a report come, then somebody look."""
    clock.now += seconds
    if progress is not None:
        meter.report(progress)
    meter.look()


def halfway() -> Progress:
    """Half of 200 MB."""
    return Progress(total=200_000_000, done=100_000_000, moved=60_000_000, shared=20_000_000, read=120_000_000)


def begun() -> Progress:
    """The first report of the same work."""
    return Progress(total=200_000_000, done=0, moved=0, shared=0, read=0)


def steadily(meter: ProgressMeter, clock: Clock, seconds: int, *, first: Progress | None = None, rate: int = 10_000_000) -> None:
    """Begin with a report, and then move the same number of bytes in each second. Half of them go over the network."""
    first = begun() if first is None else first
    after(meter, clock, 0, first)
    for second in range(1, seconds + 1):
        after(meter, clock, 1, replace(first, done=first.done + second * rate, moved=first.moved + second * rate // 2))


def test_rate_and_time_left(meter: ProgressMeter, clock: Clock) -> None:
    """The rates are bytes by elapsed time; the time left is the rest at the rate of what is done."""
    steadily(meter, clock, 4)

    assert (meter.rate, meter.moved_rate) == (10_000_000, 5_000_000)
    assert meter.seconds_left == 16


def test_no_time_left_before_the_rate_is_stable(meter: ProgressMeter, clock: Clock) -> None:
    """Neither in the first seconds, nor while the rate changes much."""
    steadily(meter, clock, 3)
    assert (meter.rate, meter.seconds_left) == (10_000_000, None)
    done = 30_000_000
    for _ in range(4):
        done += 1_000_000
        after(meter, clock, 1, replace(begun(), done=done))
    assert meter.seconds_left is None
    for _ in range(10):
        done += 1_000_000
        after(meter, clock, 1, replace(begun(), done=done))
    assert meter.seconds_left == 156


def test_what_was_there_before_is_in_no_rate(meter: ProgressMeter, clock: Clock) -> None:
    """After a resume, a rate counts only what moves."""
    there = replace(begun(), done=150_000_000, shared=150_000_000)
    steadily(meter, clock, 4, first=there, rate=1_000_000)

    assert (meter.rate, meter.moved_rate, meter.seconds_left) == (1_000_000, 500_000, 46)


def test_what_is_found_here_is_in_no_rate(meter: ProgressMeter, clock: Clock) -> None:
    """While a fetch looks at what is on this machine it says so, and nothing of a rate and of a time left."""
    for second in range(6):
        found = second * 20_000_000
        after(meter, clock, 1, replace(begun(), done=found, shared=found, checked=found, to_check=160_000_000))
        assert sentence(FETCH, meter).startswith("checking what is here, ")
        assert sentence(FETCH, meter).endswith(" of 160 MB")
    assert sentence(FETCH, meter) == "checking what is here, 100 MB of 160 MB"

    steadily(meter, clock, 5, first=replace(begun(), done=100_000_000, shared=100_000_000))
    assert sentence(FETCH, meter) == "75 %, 150 MB of 200 MB, 25.0 MB received, 100 MB reused, 5.00 MB/s, 5 s left"


def test_no_rate_where_nothing_was_sent(meter: ProgressMeter, clock: Clock) -> None:
    """The repository has all of it: the push only reads."""
    after(meter, clock, 0, begun())
    after(meter, clock, 1, replace(begun(), done=100_000_000, shared=100_000_000, read=100_000_000))

    assert sentence(PUSH, meter) == "50 %, 100 MB of 200 MB, 100 MB read, 0 B sent, 100 MB shared"


def test_work_without_a_size_has_no_time_left(meter: ProgressMeter, clock: Clock) -> None:
    """A part of a benchmark reports bytes of which nobody knows the total, or no bytes at all."""
    after(meter, clock, 0, replace(begun(), total=0))
    assert sentence(HASH, meter) == "starting"
    steadily(meter, clock, 6, first=replace(begun(), total=0))
    assert sentence(HASH, meter) == "60.0 MB so far, 10.0 MB/s"

    assert sentence(Activity("measure", counts=False), ProgressMeter(clock)) == "for 0 s"


def test_no_absurd_time_is_left(meter: ProgressMeter, clock: Clock) -> None:
    """A long time is not told by the second."""
    steadily(meter, clock, 5, rate=100)
    assert sentence(HASH, meter).endswith(", 100 B/s, more than 2 days left")


def test_a_size_that_nobody_knows(meter: ProgressMeter, clock: Clock) -> None:
    """A stream has no part that is done, and no time left."""
    unknown = replace(begun(), total=0, is_total_known=False)
    steadily(meter, clock, 5, first=unknown)
    assert sentence(PUSH, meter) == "50.0 MB so far, 0 B read, 25.0 MB sent, 0 B shared, 5.00 MB/s"


def test_a_rate_forgets(meter: ProgressMeter, clock: Clock) -> None:
    """A transfer that stops has soon no rate, and no time left."""
    after(meter, clock, 1, halfway())
    for _ in range(12):
        after(meter, clock, 1)

    assert meter.rate == 0
    assert meter.seconds_left is None
    assert "nothing moved for 12 s" in sentence(PUSH, meter)


def test_wait_for_a_server_is_told(clock: Clock) -> None:
    """It says for how long, and nothing of a rate."""
    repository = RemoteRepository("http://server", token=None)
    repository._requests.retries = Retries(clock=clock)
    meter = ProgressMeter(clock, repository)
    after(meter, clock, 1, halfway())
    with repository._requests.retries.request() as request:
        request.next_pause(Interrupted("http://server", "it was cut"))
        after(meter, clock, 42)

        assert sentence(PUSH, meter).endswith("20.0 MB shared, waiting for the server for 42 s (it was cut)")

    assert "waiting" not in sentence(PUSH, meter)


def test_wait_that_the_server_asks_for_is_told(clock: Clock) -> None:
    """It says how long it still takes, and why."""
    repository = RemoteRepository("http://server", token=None)
    retries = repository._requests.retries = Retries(clock=clock)
    meter = ProgressMeter(clock, repository)
    after(meter, clock, 1, halfway())
    error = Interrupted("http://server", "later")
    error.retry_after_seconds, error.wait_reason = 7, "the server limits requests"
    with retries.request() as request:
        pause = request.next_pause(error)
        assert pause is not None
        after(meter, clock, pause - 2.5)

        assert sentence(PUSH, meter).endswith("20.0 MB shared, waiting 3 s, the server limits requests")

        after(meter, clock, 3)

        assert "20.0 MB shared, waiting for the server for " in sentence(PUSH, meter)


def test_what_is_taken_back_is_not_a_negative_rate(meter: ProgressMeter, clock: Clock) -> None:
    """A retry may lower the bytes done, but the rate is never below zero."""
    after(meter, clock, 1, halfway())
    for _ in range(11):
        after(meter, clock, 1)
    after(meter, clock, 1, replace(halfway(), done=0))

    assert meter.rate == 0


@pytest.mark.parametrize(
    ("activity", "expected"),
    [
        (PUSH, "90.0 MB read, 45.0 MB sent, 20.0 MB shared, 10.0 MB/s, 4 s left"),
        (FETCH, "45.0 MB received, 20.0 MB reused, 10.0 MB/s, 4 s left"),
        (HASH, "20.0 MB/s, 4 s left"),
        (PLAN, "90.0 MB read, 20.0 MB shared, 20.0 MB/s, 4 s left"),
    ],
    ids=["push", "fetch", "hash", "dry run"],
)
def test_sentences(meter: ProgressMeter, clock: Clock, activity: Activity, expected: str) -> None:
    """Bytes by what became of them, the rate of what moves, and the time left. Nothing moves in a hash and in a dry run."""
    first = replace(begun(), done=20_000_000, moved=5_000_000, shared=20_000_000, read=90_000_000)
    steadily(meter, clock, 5, first=replace(first, moved=-5_000_000), rate=20_000_000)

    assert f"60 %, 120 MB of 200 MB, {expected}" == sentence(activity, meter)


@pytest.mark.parametrize("activity", [PUSH, PLAN, FETCH, HASH], ids=lambda activity: activity.verb)
def test_a_tree_is_told_by_file_and_by_byte(meter: ProgressMeter, clock: Clock, activity: Activity) -> None:
    """After the bytes, it has the number of finished files and of all files."""
    after(meter, clock, 2, replace(halfway(), file_count=20_000, files_done=12_345))

    assert sentence(activity, meter).startswith("50 %, 100 MB of 200 MB, 12,345 of 20,000 files")


def test_one_file_is_not_counted(meter: ProgressMeter, clock: Clock) -> None:
    """Neither a single file nor a tree of one file or none says how many files there are."""
    for file_count in (0, 1):
        after(meter, clock, 2, replace(halfway(), file_count=file_count))
        assert "files" not in sentence(PUSH, meter)


def test_before_the_first_report(meter: ProgressMeter, clock: Clock) -> None:
    """Nothing is known, and nothing is made up; that a server does not answer is said."""
    after(meter, clock, 1)
    assert sentence(FETCH, meter) == "starting"

    after(meter, clock, 4)
    assert sentence(FETCH, meter) == "nothing moved for 5 s"


def test_plain_lines(meter: ProgressMeter, clock: Clock) -> None:
    """There is one line after a second, then one every five seconds, and none for shorter work."""
    stream = io.StringIO()
    with PlainLines(HASH, "model.bin", meter, stream) as lines:
        for _ in range(50):
            after(meter, clock, 0.125, halfway())
            lines.show()
            assert (meter.elapsed >= 1) + (meter.elapsed >= 6) == stream.getvalue().count("\n")
    assert stream.getvalue().startswith("hash model.bin: 50 %, 100 MB of 200 MB")


def test_plain_lines_and_the_bar_count_files(meter: ProgressMeter, clock: Clock) -> None:
    """A tree's progress is the same in a terminal and elsewhere."""
    after(meter, clock, 2, replace(halfway(), file_count=1000, files_done=7))
    for display in (PlainLines, Bar):
        stream = io.StringIO()
        with display(FETCH, "my_model.zip", meter, stream) as shown:
            shown.show()
        assert ", 7 of 1,000 files" in stream.getvalue()


@pytest.mark.parametrize("name", ["m", "my_model.safetensors", "a-name-that-is-very-long-" * 8, "模型" * 30])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_bar_is_one_line_that_never_wraps(
    meter: ProgressMeter, clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    """It leaves details out, and shortens the name, the bar and then the text, until it fits."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    first = replace(begun(), total=20_000_000_000, file_count=123_456, files_done=12_345, shared=1_234_567_890)
    with Bar(PUSH, name, meter, stream) as bar:
        steadily(meter, clock, 6, first=first)
        bar.show()
    shown = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()))
    lines = [line for line in shown if "push" in line]
    assert lines
    assert all(cell_len(line) < width for line in shown)
    assert "60.0 MB of 20.0 GB" in lines[-1] or width == 40
    assert ("12,345 of 123,456 files" in lines[-1]) == (width == 200) or width == 80


def test_a_bar_is_there_at_once_and_shows_names_as_they_are(meter: ProgressMeter) -> None:
    """A name in square brackets is a name, not markup."""
    stream = io.StringIO()
    with Bar(PUSH, "[red]model.bin", meter, stream):
        assert "push [red]model.bin" in stream.getvalue()
