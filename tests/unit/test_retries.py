"""When a failed request is sent again: the time since the last progress counts, and not the number of attempts."""

from __future__ import annotations

from filestore.errors import ForeignAnswer, Interrupted, InvalidInput, ServerError
from filestore.system.retries import LONGEST_PAUSE_SECONDS, STRANGER_SECONDS, Retries
from tests.support.clock import Clock

CUT = Interrupted("http://server", "it was cut")


def later(seconds: float) -> ServerError:
    """Return the error of a server that asks for a pause."""
    error = ServerError("http://server", 503, "later")
    error.retry_after_seconds = seconds
    return error


def test_server_is_tried_again_until_its_time_is_over() -> None:
    """The pauses add up to the time of the setting. The last try is at its end."""
    clock = Clock()
    retries = Retries(retry_seconds=300, clock=clock)
    pauses = []
    with retries.request() as request:
        while (pause := request.next_pause(CUT)) is not None:
            pauses.append(pause)
            clock.now += pause
    assert 300 == round(sum(pauses), 6)
    assert max(pauses) <= LONGEST_PAUSE_SECONDS
    assert pauses[0] < 1


def test_progress_of_any_request_gives_all_of_them_the_whole_time() -> None:
    """A server that answers one of two requests is there."""
    clock = Clock()
    retries = Retries(retry_seconds=300, clock=clock)
    with retries.request() as request:
        for _ in range(5):
            assert request.next_pause(CUT) is not None
            clock.now += 299
            retries.note_progress()
            clock.now += 1
        assert 1 == retries.waited_seconds
        assert request.next_pause(CUT) is not None
        clock.now += 301
        assert request.next_pause(CUT) is None


def test_longer_pause_that_the_server_asks_for_is_taken() -> None:
    """It may be longer than any pause of our own, and not longer than the time that is left."""
    clock = Clock()
    with Retries(retry_seconds=300, clock=clock).request() as request:
        pause = request.next_pause(later(200))
        assert pause is not None
        assert 200 <= pause <= 220
        clock.now += 200
        assert request.next_pause(later(101)) is None
        # What is added at random does not exceed the time either.
        pause = request.next_pause(later(99))
        assert pause is not None
        assert 99 <= pause <= 100


def test_requests_with_the_same_answer_do_not_come_back_together() -> None:
    """Each waits for the time that the server asked for, and for a random time after it."""
    retries = Retries(retry_seconds=300, clock=Clock())
    pauses = set()
    for _ in range(20):
        with retries.request() as request:
            pauses.add(request.next_pause(later(10)))
    assert 20 == len(pauses)


def test_an_error_that_needs_somebody_is_tried_again_once() -> None:
    """However much time is left, and also if another error comes in between."""
    error = later(10)
    error.is_retried_once = True
    with Retries(retry_seconds=300, clock=Clock()).request() as request:
        assert request.next_pause(error) is not None
        assert request.next_pause(CUT) is not None
        assert request.next_pause(error) is None


def test_error_that_would_come_again_is_not_tried_again() -> None:
    """Only errors that say so are."""
    with Retries().request() as request:
        assert request.next_pause(InvalidInput("wrong")) is None


def test_proxy_that_never_led_to_the_server_is_given_less_time() -> None:
    """Its URL is probably wrong. After one success, the proxy is known to be the right one."""
    clock = Clock()
    retries = Retries(retry_seconds=300, clock=clock)
    foreign = ForeignAnswer("http://server", 502, "nginx", "check the URL")
    with retries.request() as request:
        assert request.next_pause(foreign) is not None
        clock.now += STRANGER_SECONDS
        assert request.next_pause(foreign) is None
    retries.note_progress()
    with retries.request() as request:
        assert request.next_pause(foreign) is not None
        clock.now += STRANGER_SECONDS
        assert request.next_pause(foreign) is not None


def test_waiting_is_shown_only_while_a_request_waits() -> None:
    """A request that has ended, or that has not failed, does not wait."""
    clock = Clock()
    retries = Retries(clock=clock)
    with retries.request() as request:
        assert retries.waited_seconds is None
        request.next_pause(CUT)
        clock.now += 7
        waited = [retries.waited_seconds]
    assert [7, None] == [*waited, retries.waited_seconds]
