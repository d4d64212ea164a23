"""Progress on standard error: a bar in a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TextIO

from filestore.core.progress import Progress, Report
from filestore_cli.start import say
from filestore_cli.text import duration, for_display, in_units

if TYPE_CHECKING:
    # Heavy: a command imports these when it runs.
    from rich.text import Text

    from filestore.repository.protocol import Repository

TICK_SECONDS = 0.125
RATE_SECONDS = 10.0
"""The rate is measured over this time. It is long enough for a steady rate, and short enough for a current one."""
STILL_SECONDS = 3.0
"""After this time without a byte, the text says that nothing moved."""
STABLE_SECONDS = 4.0
"""Before a rate was measured for this time, the text does not say how long the rest takes."""
LINE_SECONDS = 5.0
SHORT_SECONDS = 1.0
"""Work that ends sooner prints no plain line."""
_LEAST_NAME_WIDTH, _NAME_WIDTH = 20, 32
_LEAST_BAR_WIDTH, _BAR_WIDTH = 8, 24
_GAP = " "
_LONGEST_SECONDS = 48 * 3600
"""A longer estimate would say nothing."""


class Activity(NamedTuple):
    """The verb for the work, and the words for its bytes. Bytes without a word are not shown."""

    verb: str
    read: str | None = None
    moved: str | None = None
    shared: str | None = None
    counts: bool = True
    """Whether it tells how many bytes are done. Otherwise only its time is shown."""


PUSH = Activity("push", read="read", moved="sent", shared="shared")
PLAN = Activity("look at", read="read", shared="shared")
FETCH = Activity("fetch", moved="received", shared="reused")
COPY = Activity("copy", moved="sent", shared="shared")
SYNC = Activity("sync", read="read", moved="moved")
HASH = Activity("hash")
CHECK = Activity("check")


class _Sample(NamedTuple):
    """What was reported until a moment, in seconds."""

    at: float
    done: int
    moved: int


class ProgressMeter:
    """Compute rates from reports of progress. Reports may come at any time.

    A rate counts only what happens while it is measured. What was done before the first report, and what is found on this
    machine while it is looked at, is not in any rate.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, repository: Repository | None = None) -> None:
        """`repository` is what the work waits for, if it uses one."""
        self._clock = clock
        self._repository = repository
        self.started = self._moved_at = self._looked_at = clock()
        self.latest: Progress | None = None
        self._seen: Progress | None = None
        self._samples: deque[_Sample] = deque()

    def report(self, progress: Progress) -> None:
        """Note a report. It costs almost nothing."""
        before, self.latest = self.latest, progress
        if before is None or bool(before.to_check) != bool(progress.to_check):
            # What follows is another kind of work.
            self._samples.clear()
            self._samples.append(_Sample(self._clock(), progress.done, progress.moved))

    def look(self) -> None:
        """Take a sample. The rates are computed from the samples until now."""
        self._looked_at = now = self._clock()
        if self.latest != self._seen:
            self._seen = self.latest
            self._moved_at = now
        if self.latest is None:
            return
        self._samples.append(_Sample(now, self.latest.done, self.latest.moved))
        while self._samples[1].at <= now - RATE_SECONDS:
            self._samples.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._looked_at - self.started

    @property
    def rate(self) -> float:
        """Decoded bytes per second, over the last `RATE_SECONDS`."""
        return self._rate(lambda sample: sample.done)

    @property
    def moved_rate(self) -> float:
        """Bytes per second that went over the network, over the last `RATE_SECONDS`."""
        return self._rate(lambda sample: sample.moved)

    def _rate(self, size_of: Callable[[_Sample], int]) -> float:
        if len(self._samples) < 2:
            return 0.0
        first, last = self._samples[0], self._samples[-1]
        return max(0.0, (size_of(last) - size_of(first)) / (last.at - first.at)) if last.at > first.at else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the current rate.

        None if nothing moves, if nobody knows how much is to come, and until the rate is stable: it was measured for
        `STABLE_SECONDS`, and was about the same in the first half of this time as in the second.
        """
        latest = self.latest
        if latest is None or not latest.is_total_known or latest.to_check or not self._is_stable():
            return None
        return (latest.total - latest.done) / self.rate if latest.done <= latest.total else None

    def _is_stable(self) -> bool:
        if not self.rate:
            return False
        first, last = self._samples[0], self._samples[-1]
        if last.at - first.at < STABLE_SECONDS:
            return False
        middle = min(self._samples, key=lambda sample: abs(sample.at - (first.at + last.at) / 2))
        if not first.at < middle.at < last.at:
            return False
        halves = ((middle.done - first.done) / (middle.at - first.at), (last.done - middle.done) / (last.at - middle.at))
        return max(halves) <= 2 * min(halves)

    @property
    def waited_seconds(self) -> float | None:
        """For how many seconds the work has waited for a server that fails. None if it does not wait."""
        return None if self._repository is None else self._repository.waited_seconds

    @property
    def waited_because(self) -> str:
        """Why the last request failed that is tried again. Empty if that is not known."""
        return "" if self._repository is None else self._repository.waited_because

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        """For how many more seconds the work waits because the server asked for it, and why. None if it does not."""
        return None if self._repository is None else self._repository.asked_pause

    @property
    def still_seconds(self) -> float:
        """Seconds since a byte was moved."""
        return self._looked_at - self._moved_at


class Words(NamedTuple):
    """The parts of a sentence about progress."""

    amount: list[str]
    """How much of the whole is done."""
    details: list[tuple[int, str]]
    """What became of the bytes, each with its weight: what has the least weight is left out first."""
    state: list[str]
    """What the work does now: its rate, or what it waits for."""

    def fitted(self, width: int | None = None) -> str:
        """Return the sentence, without as many details as it takes to have at most `width` characters."""
        details = list(self.details)
        while True:
            text = ", ".join([*self.amount, *(detail for _, detail in details), *self.state])
            if not details or width is None or len(text) <= width:
                return text
            details.remove(min(details))


def sentence(activity: Activity, meter: ProgressMeter) -> str:
    """Return the text of a line: `45 %, 1.20 GB of 2.70 GB, 0.90 GB sent, ...`."""
    return words(activity, meter).fitted()


def words(activity: Activity, meter: ProgressMeter) -> Words:
    """Return the parts of the sentence about the progress now."""
    latest = meter.latest
    if latest is not None and latest.to_check:
        return Words([], [], [f"checking what is here, {in_units(latest.checked)} of {in_units(latest.to_check)}"])
    amount, details = ([], []) if latest is None else (_amount(latest), _details(activity, latest))
    state = _state(activity, meter)
    return Words(amount, details, state if amount or details or state else ["starting"])


def _state(activity: Activity, meter: ProgressMeter) -> list[str]:
    waited, asked = meter.waited_seconds, meter.asked_pause
    if asked is not None:
        return [f"waiting {duration(math.ceil(asked[0]), digits=0)}, {asked[1]}"]
    if waited is not None and waited >= STILL_SECONDS:
        reason = f" ({for_display(meter.waited_because)})" if meter.waited_because else ""
        return [f"waiting for the server for {duration(waited, digits=0)}{reason}"]
    if not activity.counts:
        return [f"for {duration(meter.elapsed, digits=0)}"]
    if meter.still_seconds >= STILL_SECONDS:
        return [f"nothing moved for {duration(meter.still_seconds, digits=0)}"]
    if meter.latest is None:
        return ["starting"]
    rate = meter.moved_rate if activity.moved else meter.rate
    left = meter.seconds_left
    state = [f"{in_units(rate)}/s"] if rate else []
    if left is not None:
        state.append("more than 2 days left" if left > _LONGEST_SECONDS else f"{duration(left, digits=0)} left")
    return state


def _amount(progress: Progress) -> list[str]:
    if not progress.is_total_known or progress.done > progress.total:
        return [f"{in_units(progress.done)} so far"]
    if not progress.total:
        return []
    return [f"{100 * progress.done // progress.total} %", f"{in_units(progress.done)} of {in_units(progress.total)}"]


def _details(activity: Activity, progress: Progress) -> list[tuple[int, str]]:
    details = [(3, f"{progress.files_done:,} of {progress.file_count:,} files")] if progress.file_count > 1 else []
    for weight, size, word in (
        (0, progress.read, activity.read),
        (2, progress.moved, activity.moved),
        (1, progress.shared, activity.shared),
    ):
        if word:
            details.append((weight, f"{in_units(size)} {word}"))
    return details


class Display(Protocol):
    """Shows what a meter measures."""

    name: str
    """The name of what is being worked on."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self) -> None:
        """Show the progress now."""

    def tell(self, line: str) -> None:
        """Print a line that stays."""


class PlainLines:
    """Print a line when the work has taken a second, and then one every few seconds."""

    def __init__(self, activity: Activity, name: str, meter: ProgressMeter, stream: TextIO) -> None:
        self._activity = activity
        self.name = name
        self._meter = meter
        self._stream = stream
        self._next = SHORT_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self) -> None:
        """Print a line, if it is time for one."""
        if self._meter.elapsed >= self._next:
            self._next = self._meter.elapsed + LINE_SECONDS
            self.tell(f"{self._activity.verb} {self.name}: {sentence(self._activity, self._meter)}")

    def tell(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class Bar:
    """Show progress in one line of a terminal, which never wraps. It is removed when the work is done."""

    def __init__(self, activity: Activity, name: str, meter: ProgressMeter, stream: TextIO) -> None:
        from rich.console import Console  # heavy
        from rich.live import Live  # heavy

        self._activity = activity
        self.name = name
        self._meter = meter
        # Only `show` redraws it, without a thread.
        self._live = Live(
            console=Console(file=stream, force_terminal=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self) -> None:
        """Redraw the bar."""
        from rich.text import Text  # heavy

        # The last column stays empty: some terminals begin a new line after it.
        width = self._live.console.width - 1
        label = Text(f"{self._activity.verb} {self.name}".rstrip())
        label.truncate(_NAME_WIDTH, overflow="ellipsis")
        others = min(label.cell_len, _LEAST_NAME_WIDTH) + _LEAST_BAR_WIDTH + 2 * len(_GAP)
        text = words(self._activity, self._meter).fitted(width - others)
        label.truncate(max(_LEAST_NAME_WIDTH, width - len(text) - _LEAST_BAR_WIDTH - 2 * len(_GAP)), overflow="ellipsis")
        line = Text.assemble(label, _GAP, self._bar(width - label.cell_len - len(text) - 2 * len(_GAP)), text)
        line.truncate(width, overflow="ellipsis")
        self._live.update(line, refresh=True)

    def _bar(self, room: int) -> Text | str:
        """Return a bar and a gap, if there is enough room for it."""
        from rich.text import Text  # heavy

        progress = self._meter.latest
        if room < _LEAST_BAR_WIDTH or progress is None or not progress.total or not progress.is_total_known:
            return ""
        done, total = (progress.checked, progress.to_check) if progress.to_check else (progress.done, progress.total)
        width = min(room, _BAR_WIDTH)
        filled = width * done // total
        mark = "-" if self._live.console.options.ascii_only else "━"
        return Text.assemble((mark * filled, "bar.complete"), (mark * (width - filled), "bar.back"), _GAP)

    def tell(self, line: str) -> None:
        from rich.text import Text  # heavy

        self._live.console.print(Text(line), soft_wrap=True)


class Items:
    """The progress of several items, one after the other, as that of one work."""

    def __init__(self, sizes: Sequence[int | None], meter: ProgressMeter | None, display: Display | None) -> None:
        """`sizes` has the size of each item in bytes, or None where nobody knows it before the item begins."""
        self._sizes = sizes
        self._meter = meter
        self._display = display
        self._number = 0
        self._before = self._latest = Progress(0, 0, 0, 0, 0)

    @contextmanager
    def item(self, name: str) -> Iterator[Report | None]:
        """Begin the next item, which ends with the block. Yield the function that receives reports of its progress."""
        self._number += 1
        self._latest = Progress(self._sizes[self._number - 1] or 0, 0, 0, 0, 0)
        if self._display is None:
            yield None
            return
        place = f"{self._number} of {len(self._sizes)}, " if len(self._sizes) > 1 else ""
        self._display.name = f"{place}{for_display(name)}"
        with suppress(OSError):
            self._display.show()
        try:
            yield self._report
        finally:
            # What has failed is not done later.
            latest = self._latest
            self._before = self._added(replace(latest, total=latest.done))

    def tell(self, line: str) -> None:
        """Print a line to standard error that stays, beside the display."""
        if self._display is None:
            say(line)
            return
        with suppress(OSError):
            self._display.tell(for_display(line))

    def _report(self, progress: Progress) -> None:
        self._latest = progress
        rest = self._sizes[self._number :]
        added = self._added(progress)
        assert self._meter is not None  # noqa: S101  # there is a display
        self._meter.report(
            replace(
                added,
                total=added.total + sum(size or 0 for size in rest),
                is_total_known=progress.is_total_known and None not in rest,
            )
        )

    def _added(self, progress: Progress) -> Progress:
        """Return a progress with that of the items before it. The files are those of this item."""
        before = self._before
        return replace(
            progress,
            total=before.total + progress.total,
            done=before.done + progress.done,
            moved=before.moved + progress.moved,
            shared=before.shared + progress.shared,
            read=before.read + progress.read,
        )


@asynccontextmanager
async def show_progress(
    activity: Activity, name: str, *, enabled: bool, repository: Repository | None = None
) -> AsyncIterator[Report | None]:
    """Yield a function that receives reports of progress. They are shown on standard error during the block.

    If `repository` waits for its server, that is shown too.
    """
    if not enabled:
        yield None
        return
    meter = ProgressMeter(repository=repository)
    async with _shown(activity, name, meter):
        yield meter.report


@asynccontextmanager
async def show_items(
    activity: Activity, sizes: Sequence[int | None], *, enabled: bool, repository: Repository | None = None
) -> AsyncIterator[Items]:
    """Show the progress of several items as `show_progress` does. `Items` says what the sizes are."""
    if not enabled:
        yield Items(sizes, None, None)
        return
    meter = ProgressMeter(repository=repository)
    async with _shown(activity, "", meter) as display:
        yield Items(sizes, meter, display)


@asynccontextmanager
async def _shown(activity: Activity, name: str, meter: ProgressMeter) -> AsyncIterator[Display]:
    make = Bar if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else PlainLines
    with make(activity, for_display(name), meter, sys.stderr) as display:
        showing = asyncio.create_task(_keep_showing(meter, display))
        try:
            yield display
        finally:
            showing.cancel()
            await asyncio.wait([showing])


async def _keep_showing(meter: ProgressMeter, display: Display) -> None:
    # Standard error may be closed before the end. Then the work goes on without a display.
    with suppress(OSError):
        while True:
            await asyncio.sleep(TICK_SECONDS)
            meter.look()
            display.show()
