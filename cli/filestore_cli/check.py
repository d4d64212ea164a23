"""The command check."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.core.object_location import shown_url
from filestore.core.progress import Progress
from filestore_cli.context import CommandContext, Place, takes
from filestore_cli.findings import file_as_json, file_words, finding_as_json, finding_words, hold_lines, number_of
from filestore_cli.folders import maintained_place, opened_folder
from filestore_cli.parameters import Rate
from filestore_cli.progress import CHECK, TICK_SECONDS, show_progress
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, in_units

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.repository.maintenance.findings import AffectedFile, Finding
    from filestore.repository.maintenance.hold import Hold

_HOW_TO_REPAIR = (
    "`filestore check --repair` repairs what can be repaired, and lets the next push of such a file send what is lost"
)
SHOWN_LIMIT = 1000
"""The most findings and the most files that are printed. All are counted."""


def _fraction(ctx: click.Context, param: click.Parameter, value: str | None) -> Fraction | None:
    """Parse a share of the chunks: `10%`, `1/7`, `0.25` or `all`."""
    if value is None:
        return None
    text = value.strip()
    try:
        share = Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(1 if text == "all" else text)
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if not Fraction(1, 1_000_000) <= share <= 1:
        raise click.BadParameter(f"{value!r} is not a share of the data, such as 10%, 1/7 or all", ctx, param)
    return share.limit_denominator(1_000_000)


@click.command(short_help="Find damage in a folder.")
@click.option(
    "--read-data",
    "fraction",
    callback=_fraction,
    is_flag=False,
    flag_value="all",
    metavar="[FRACTION]",
    help="Also read the stored data, or a share of it such as 10% or 1/7. The next read goes on where this one stops.",
)
@click.option("--rate", type=Rate(), metavar="SIZE", help="Read at most so many bytes per second.  [default: no limit]")
@click.option("--repair", is_flag=True, help="Repair the damage: forget what is lost, so that the next push sends it.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="With --repair, take what is lost from a file, a directory, the folder of a repository or a URL; repeatable.",
)
@takes("url", "root", "token", "connections", "stall_seconds")
def check(
    context: CommandContext, fraction: Fraction | None, rate: int | None, *, repair: bool, sources: tuple[str, ...]
) -> None:
    """Find damage in the content and the index of a folder, and name the files that it affects.

    It may run while servers use the folder. Without --read-data, it checks that everything is there and has its size.
    If it finds damage, the exit status is 1. With --repair, it is 1 if something is still damaged afterwards.
    """
    if rate is not None and fraction is None:
        raise click.UsageError("--rate limits what --read-data reads; give both")
    if sources and not repair:
        raise click.UsageError("--from names good copies for --repair; give both")
    if repair:
        _repair(context, maintained_place(context, "check --repair"), sources, fraction, rate)
        return
    report = run_to_end(_check(context, maintained_place(context, "check"), fraction, rate))
    context.show(report.as_json(), *report.lines(), report.summary())
    if report.damage_count:
        raise click.ClickException(for_display(f"{report.failure()}; {_HOW_TO_REPAIR}"))


def _repair(context: CommandContext, place: Place, sources: tuple[str, ...], fraction: Fraction | None, rate: int | None) -> None:
    from filestore.repository.maintenance.check import ReadPlan  # heavy
    from filestore_cli.repairing import failure, repair_place, report_as_json, report_lines

    plan = None if fraction is None else ReadPlan(fraction=fraction, rate=rate)
    report = run_to_end(repair_place(context, place, sources, plan))
    context.show(report_as_json(place, report), *report_lines(place, report))
    remains = failure(report)
    if remains is not None:
        raise click.ClickException(for_display(remains))


async def _check(context: CommandContext, folder: Place, fraction: Fraction | None, rate: int | None) -> Report:
    from filestore.repository.maintenance.check import ReadPlan, keep_results  # heavy
    from filestore.repository.maintenance.check import check as find
    from filestore.repository.maintenance.hold import holds  # heavy

    report = Report(folder)
    # Only the place of a read and digests of frames are written, so it also works on a folder that cannot be written.
    writes = fraction is not None and _can_write(folder)
    async with opened_folder(context, folder, read_only=not writes) as (store, index):
        plan = None if fraction is None else ReadPlan(fraction=fraction, rate=rate)
        async with _progress(context, report, folder, fraction):
            async for each in find(store, index, read=plan, counts=report.counts, writes=writes):
                report.add(each)
        if not writes:
            # An index that was opened for reading can be written too, where this user may.
            await keep_results(index, report.counts.results)
        report.holds = [hold async for hold in holds(store, index)]
    return report


def _can_write(place: Place) -> bool:
    """Return whether something can be written. A person who can open an object store for a read of its data can also write."""
    return not isinstance(place, Path) or os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@asynccontextmanager
async def _progress(context: CommandContext, report: Report, folder: Place, fraction: Fraction | None) -> AsyncIterator[None]:
    """Show during the block how much of the data was read."""
    import asyncio  # heavy

    async def tell(show: Callable[[Progress], None], share: Fraction) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            done = report.counts.read_size
            show(Progress(max(done, int(report.counts.stored_size * share)), done, moved=0, shared=0, read=0))

    async with show_progress(CHECK, _label(folder), enabled=context.shows_progress and fraction is not None) as show:
        telling = None if show is None or fraction is None else asyncio.create_task(tell(show, fraction))
        try:
            yield
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.wait([telling])


def _label(place: Place) -> str:
    return place.name if isinstance(place, Path) else shown_url(place.store)


class Report:
    """What a check found, for a person or a program."""

    def __init__(self, folder: Place) -> None:
        from filestore.repository.maintenance.check import CheckCounts  # heavy

        self.counts = CheckCounts()
        self.damage_count = 0
        self.holds: list[Hold] = []
        self._folder = folder
        self._findings: list[Finding] = []
        self._files: list[AffectedFile] = []
        self._file_count = 0
        self._reclaimable_count = 0
        self._reclaimable_size = 0

    def add(self, found: Finding | AffectedFile) -> None:
        """Add what was found. Only the first 1000 of each kind are kept for the output."""
        from filestore.repository.maintenance.findings import Finding  # heavy

        if not isinstance(found, Finding):
            self._file_count += 1
            if len(self._files) < SHOWN_LIMIT:
                self._files.append(found)
            return
        if not found.is_damage:
            self._reclaimable_count += 1
            self._reclaimable_size += found.stored_size
            return
        self.damage_count += 1
        if len(self._findings) < SHOWN_LIMIT:
            self._findings.append(found)

    def as_json(self) -> dict[str, object]:
        """Return the report as a JSON object."""
        return {
            "repository": str(self._folder),
            "damage": [finding_as_json(finding) for finding in self._findings],
            "damage_count": self.damage_count,
            "files": [file_as_json(file) for file in self._files],
            "file_count": self._file_count,
            "reclaimable_count": self._reclaimable_count,
            "reclaimable_size": self._reclaimable_size,
            "held": [hold.as_json() for hold in self.holds],
            "record_count": self.counts.record_count,
            "chunk_count": self.counts.chunk_count,
            "stored_size": self.counts.stored_size,
            "read_count": self.counts.read_count,
            "read_size": self.counts.read_size,
            "continued": self.counts.continued,
        }

    def lines(self) -> list[str]:
        """Return a line for each damage and for each affected file."""
        lines = [f"damaged   {finding_words(finding)}" for finding in self._findings]
        if self.damage_count > len(self._findings):
            lines.append(f"damaged   {self.damage_count - len(self._findings)} more")
        lines += [f"affected  {file_words(file)}" for file in self._files]
        if self._file_count > len(self._files):
            lines.append(f"affected  {self._file_count - len(self._files)} more")
        if self._reclaimable_count:
            unused = f"{number_of(self._reclaimable_count, 'frame or manifest', 'frames and manifests')} that no file needs"
            lines.append(f"unused    {unused}, {in_units(self._reclaimable_size)}; this is not damage")
        return [*lines, *hold_lines(self.holds)]

    def summary(self) -> str:
        """Return the line about what was looked at."""
        counts = self.counts
        looked = (
            f"{number_of(counts.record_count, 'file')}, {number_of(counts.chunk_count, 'chunk')}, {in_units(counts.stored_size)}"
        )
        read = f"; read {number_of(counts.read_count, 'chunk')}, {in_units(counts.read_size)}" if counts.read_count else ""
        since = " (an interrupted read was continued)" if counts.continued else ""
        found = "no damage" if not self.damage_count else self.failure()
        return f"checked {looked}{read}{since} in {for_display(self._folder)}: {found}"

    def failure(self) -> str:
        """Return what is wrong, in one sentence."""
        verb = "is" if self._file_count == 1 else "are"
        places, files = number_of(self.damage_count, "place"), number_of(self._file_count, "file")
        return f"damage was found in {places}, and {files} {verb} affected"
