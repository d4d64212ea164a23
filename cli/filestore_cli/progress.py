"""Progress on standard error: a bar in a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TextIO

from filestore.core.progress import Progress, Report
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
COPY = Activity("copy", moved="sent", shared="shared")
SYNC = Activity("sync", read="read", moved="moved")
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
        """Seconds until the end at the current rate. None if nothing moves."""
        if self.latest is None or not self.rate:
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
    amounts = [f"{100 * progress.done // progress.total} %"] if progress.total else []
    amounts.append(f"{in_units(progress.done)} of {in_units(progress.total)}")
    if progress.file_count > 1:
        amounts.append(f"{progress.files_done:,} of {progress.file_count:,} files")
    for size, word in ((progress.read, activity.read), (progress.moved, activity.moved), (progress.shared, activity.shared)):
        if word:
            amounts.append(f"{in_units(size)} {word}")
    return amounts


class _Display(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self) -> None: ...


class PlainLines:
    """Print a line when the work has taken a second, and then one every few seconds."""

    def __init__(self, activity: Activity, name: str, meter: ProgressMeter, stream: TextIO) -> None:
        self._activity = activity
        self._label = f"{activity.verb} {name}"
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
            self._stream.write(f"{self._label}: {sentence(self._activity, self._meter)}\n")
            self._stream.flush()


class Bar:
    """Show progress in two lines of a terminal. They are removed when the work is done."""

    def __init__(self, activity: Activity, name: str, meter: ProgressMeter, stream: TextIO) -> None:
        from rich.console import Console  # heavy
        from rich.live import Live  # heavy

        self._activity = activity
        self._label = f"{activity.verb} {name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + '…'}"
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
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(self._label), ProgressBar(total=total, completed=done, width=_BAR_WIDTH))
        self._live.update(Group(line, Text(sentence(self._activity, self._meter))), refresh=True)


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
    make = Bar if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else PlainLines
    with make(activity, for_display(name), meter, sys.stderr) as display:
        showing = asyncio.create_task(_keep_showing(meter, display))
        try:
            yield meter.report
        finally:
            showing.cancel()
            await asyncio.wait([showing])


async def _keep_showing(meter: ProgressMeter, display: _Display) -> None:
    # Standard error may be closed before the end. Then the work goes on without a display.
    with suppress(OSError):
        while True:
            await asyncio.sleep(TICK_SECONDS)
            meter.look()
            display.show()
