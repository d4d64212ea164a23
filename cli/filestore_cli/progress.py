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
    # Heavy: a command imports it when it runs.
    from filestore.repository.protocol import Repository

TICK_SECONDS = 0.125
RATE_SECONDS = 10.0
"""The rate is measured over this time. It is long enough for a steady rate, and short enough for a current one."""
STILL_SECONDS = 3.0
"""After this time without a byte, the text says that nothing moved."""
LINE_SECONDS = 5.0
SHORT_SECONDS = 1.0
"""Work that ends sooner prints no plain line."""
_NAME_WIDTH = 32
_BAR_WIDTH = 32


class Activity(NamedTuple):
    """The verb for the work, and the words for its bytes. Bytes without a word are not shown."""

    verb: str
    read: str | None = None
    moved: str | None = None
    shared: str | None = None


PUSH = Activity("push", read="read", moved="sent", shared="shared")
PLAN = Activity("look at", read="read", shared="shared")
FETCH = Activity("fetch", moved="received", shared="reused")
HASH = Activity("hash")
CHECK = Activity("check")


class ProgressMeter:
    """Compute rates from reports of progress. Reports may come at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, repository: Repository | None = None) -> None:
        """`repository` is what the work waits for, if it uses one."""
        self._clock = clock
        self._repository = repository
        self.started = clock()
        self.latest: Progress | None = None
        self._seen: Progress | None = None
        self._moved_at = self.started
        self._samples = deque([(self.started, 0)])

    def report(self, progress: Progress) -> None:
        """Note a report. It costs almost nothing."""
        self.latest = progress

    def look(self) -> None:
        """Take a sample. `rate` is computed from the samples until now."""
        now = self._clock()
        if self.latest != self._seen:
            self._seen = self.latest
            self._moved_at = now
        self._samples.append((now, 0 if self.latest is None else self.latest.done))
        while self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._samples[-1][0] - self.started

    @property
    def rate(self) -> float:
        """Decoded bytes per second, over the last `RATE_SECONDS`."""
        (first, before), (last, done) = self._samples[0], self._samples[-1]
        return max(0.0, (done - before) / (last - first)) if last > first else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at the current rate. None if nothing moves, or if nobody knows how much is to come."""
        if self.latest is None or not self.latest.is_total_known or not self.rate:
            return None
        return (self.latest.total - self.latest.done) / self.rate

    @property
    def waited_seconds(self) -> float | None:
        """For how many seconds the work has waited for a server that fails. None if it does not wait."""
        return None if self._repository is None else self._repository.waited_seconds

    @property
    def asked_pause(self) -> tuple[float, str] | None:
        """For how many more seconds the work waits because the server asked for it, and why. None if it does not."""
        return None if self._repository is None else self._repository.asked_pause

    @property
    def still_seconds(self) -> float:
        """Seconds since a byte was moved."""
        return self._samples[-1][0] - self._moved_at


def sentence(activity: Activity, meter: ProgressMeter) -> str:
    """Return the text of a line and of a bar: `45 %, 1.20 GB of 2.70 GB, 0.90 GB sent, ...`."""
    parts = [] if meter.latest is None else _amounts(activity, meter.latest)
    waited, asked = meter.waited_seconds, meter.asked_pause
    if asked is not None:
        parts.append(f"waiting {duration(math.ceil(asked[0]), digits=0)}, {asked[1]}")
    elif waited is not None and waited >= STILL_SECONDS:
        parts.append(f"waiting for the server for {duration(waited, digits=0)}")
    elif meter.still_seconds >= STILL_SECONDS:
        parts.append(f"nothing moved for {duration(meter.still_seconds, digits=0)}")
    elif meter.latest is None:
        parts.append("starting")
    else:
        parts.append(f"{in_units(meter.rate)}/s")
        left = meter.seconds_left
        parts.append("time left unknown" if left is None else f"{duration(left, digits=0)} left")
    return ", ".join(parts)


def _amounts(activity: Activity, progress: Progress) -> list[str]:
    if progress.is_total_known:
        amounts = [f"{100 * progress.done // progress.total} %"] if progress.total else []
        amounts.append(f"{in_units(progress.done)} of {in_units(progress.total)}")
    else:
        amounts = [f"{in_units(progress.done)} so far"]
    if progress.file_count > 1:
        amounts.append(f"{progress.files_done:,} of {progress.file_count:,} files")
    for size, word in ((progress.read, activity.read), (progress.moved, activity.moved), (progress.shared, activity.shared)):
        if word:
            amounts.append(f"{in_units(size)} {word}")
    return amounts


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
    """Show progress in two lines of a terminal. They are removed when the work is done."""

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
        from rich.console import Group  # heavy
        from rich.progress_bar import ProgressBar  # heavy
        from rich.table import Table  # heavy
        from rich.text import Text  # heavy

        progress = self._meter.latest
        total, done = (progress.total, progress.done) if progress is not None and progress.total else (1, 0)
        name = self.name if len(self.name) <= _NAME_WIDTH else f"{self.name[: _NAME_WIDTH - 1]}…"
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(f"{self._activity.verb} {name}"), ProgressBar(total=total, completed=done, width=_BAR_WIDTH))
        self._live.update(Group(line, Text(sentence(self._activity, self._meter))), refresh=True)

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
