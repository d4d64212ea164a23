from __future__ import annotations

import io
from dataclasses import replace

import pytest

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


def test_rate_and_time_left(meter: ProgressMeter, clock: Clock) -> None:
    """The rate is bytes done by elapsed time; the time left is the rest at that rate."""
    after(meter, clock, 2, halfway())

    assert meter.rate == 50_000_000
    assert meter.seconds_left == 2


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

        assert sentence(PUSH, meter).endswith("20.0 MB shared, waiting for the server for 42 s")

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


def test_sentence_of_a_push(meter: ProgressMeter, clock: Clock) -> None:
    """Bytes read, sent and shared, rate and time left."""
    after(meter, clock, 2, halfway())

    expected = "50 %, 100 MB of 200 MB, 120 MB read, 60.0 MB sent, 20.0 MB shared, 50.0 MB/s, 2 s left"
    assert expected == sentence(PUSH, meter)


def test_sentence_of_a_fetch(meter: ProgressMeter, clock: Clock) -> None:
    """The same in the words of a fetch."""
    after(meter, clock, 2, halfway())

    assert sentence(FETCH, meter) == "50 %, 100 MB of 200 MB, 60.0 MB received, 20.0 MB reused, 50.0 MB/s, 2 s left"


def test_sentence_of_a_hash(meter: ProgressMeter, clock: Clock) -> None:
    """Nothing moves in a hash."""
    after(meter, clock, 2, halfway())

    assert sentence(HASH, meter) == "50 %, 100 MB of 200 MB, 50.0 MB/s, 2 s left"


def test_sentence_of_a_dry_run(meter: ProgressMeter, clock: Clock) -> None:
    """It has the bytes that were read and that are shared; nothing is sent."""
    after(meter, clock, 2, halfway())

    assert sentence(PLAN, meter) == "50 %, 100 MB of 200 MB, 120 MB read, 20.0 MB shared, 50.0 MB/s, 2 s left"


@pytest.mark.parametrize("activity", [PUSH, PLAN, FETCH, HASH], ids=lambda activity: activity.verb)
def test_a_tree_is_told_by_file_and_by_byte(meter: ProgressMeter, clock: Clock, activity: Activity) -> None:
    """After the bytes, it has the number of finished files and of all files."""
    after(meter, clock, 2, replace(halfway(), file_count=20_000, files_done=12_345))

    assert sentence(activity, meter).startswith("50 %, 100 MB of 200 MB, 12,345 of 20,000 files, ")


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
        assert ", 7 of 1,000 files, " in stream.getvalue()


def test_a_bar_is_there_at_once_and_shows_names_as_they_are(meter: ProgressMeter) -> None:
    """A name in square brackets is a name, not markup."""
    stream = io.StringIO()
    with Bar(PUSH, "[red]model.bin", meter, stream):
        assert "push [red]model.bin" in stream.getvalue()
