"""The command check."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.core.names import DEFAULT_NAMESPACE
from filestore.core.progress import Progress
from filestore.errors import NotARepository
from filestore_cli.context import CommandContext, takes
from filestore_cli.progress import CHECK, TICK_SECONDS, show_progress
from filestore_cli.settings import parse_size
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, in_units

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.repository.maintenance.findings import AffectedFile, Finding

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


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value, minimum=1)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


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
@click.option("--rate", callback=_rate, metavar="SIZE", help="Read at most so many bytes per second.  [default: no limit]")
@takes("url", "root")
def check(context: CommandContext, fraction: Fraction | None, rate: int | None) -> None:
    """Find damage in the content and the index of a folder, and name the files that it affects.

    It may run while servers use the folder. Without --read-data, it checks that everything is there and has its size.
    If it finds damage, the exit status is 1.
    """
    if rate is not None and fraction is None:
        raise click.UsageError("--rate limits what --read-data reads; give both")
    folder = _folder(context)
    report = run_to_end(_check(context, folder, fraction, rate))
    context.show(report.as_json(), *report.lines(), report.summary())
    if report.damage_count:
        raise click.ClickException(for_display(report.failure()))


def _folder(context: CommandContext) -> Path:
    from filestore.backends import repository_folder  # heavy

    url = context.settings.url or str(context.settings.root.absolute())
    folder = repository_folder(url)
    if folder is None:
        raise click.ClickException(
            f"check works on the folder of a repository, and {for_display(url)} is the URL of a server; "
            "run it on the machine of that server, with --root and the folder that it serves"
        )
    return folder.absolute()


async def _check(context: CommandContext, folder: Path, fraction: Fraction | None, rate: int | None) -> Report:
    from filestore.backends import open_backend  # heavy
    from filestore.repository.maintenance.check import ReadPlan  # heavy
    from filestore.repository.maintenance.check import check as find

    report = Report(folder)
    # Only the place of a read and digests of frames are written, so it also works on a folder that cannot be written.
    writes = fraction is not None and os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    try:
        store, index = await open_backend(folder, read_only=not writes)
    except NotARepository as error:
        raise context.advised(error) from None
    try:
        plan = None if fraction is None else ReadPlan(fraction=fraction, rate=rate)
        async with _progress(context, report, folder, fraction):
            async for each in find(store, index, read=plan, counts=report.counts, writes=writes):
                report.add(each)
    finally:
        await index.close()
        await store.close()
    return report


@asynccontextmanager
async def _progress(context: CommandContext, report: Report, folder: Path, fraction: Fraction | None) -> AsyncIterator[None]:
    """Show during the block how much of the data was read."""
    import asyncio  # heavy

    async def tell(show: Callable[[Progress], None], share: Fraction) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            done = report.counts.read_size
            show(Progress(max(done, int(report.counts.stored_size * share)), done, moved=0, shared=0, read=0))

    async with show_progress(CHECK, folder.name, enabled=context.shows_progress and fraction is not None) as show:
        telling = None if show is None or fraction is None else asyncio.create_task(tell(show, fraction))
        try:
            yield
        finally:
            if telling is not None:
                telling.cancel()
                await asyncio.wait([telling])


class Report:
    """What a check found, for a person or a program."""

    def __init__(self, folder: Path) -> None:
        from filestore.repository.maintenance.check import CheckCounts  # heavy

        self.counts = CheckCounts()
        self.damage_count = 0
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
            "damage": [_finding_as_json(finding) for finding in self._findings],
            "damage_count": self.damage_count,
            "files": [_file_as_json(file) for file in self._files],
            "file_count": self._file_count,
            "reclaimable_count": self._reclaimable_count,
            "reclaimable_size": self._reclaimable_size,
            "record_count": self.counts.record_count,
            "chunk_count": self.counts.chunk_count,
            "stored_size": self.counts.stored_size,
            "read_count": self.counts.read_count,
            "read_size": self.counts.read_size,
            "continued": self.counts.continued,
        }

    def lines(self) -> list[str]:
        """Return a line for each damage and for each affected file."""
        lines = [f"damaged   {_words(finding)}" for finding in self._findings]
        if self.damage_count > len(self._findings):
            lines.append(f"damaged   {self.damage_count - len(self._findings)} more")
        lines += [f"affected  {_file_words(file)}" for file in self._files]
        if self._file_count > len(self._files):
            lines.append(f"affected  {self._file_count - len(self._files)} more")
        if self._reclaimable_count:
            unused = f"{_count(self._reclaimable_count, 'frame or manifest', 'frames and manifests')} that no file needs"
            lines.append(f"unused    {unused}, {in_units(self._reclaimable_size)}; this is not damage")
        return lines

    def summary(self) -> str:
        """Return the line about what was looked at."""
        counts = self.counts
        looked = f"{_count(counts.record_count, 'file')}, {_count(counts.chunk_count, 'chunk')}, {in_units(counts.stored_size)}"
        read = f"; read {_count(counts.read_count, 'chunk')}, {in_units(counts.read_size)}" if counts.read_count else ""
        since = " (an interrupted read was continued)" if counts.continued else ""
        found = "no damage" if not self.damage_count else self.failure()
        return f"checked {looked}{read}{since} in {for_display(self._folder)}: {found}"

    def failure(self) -> str:
        """Return what is wrong, in one sentence."""
        verb = "is" if self._file_count == 1 else "are"
        return f"damage was found in {_count(self.damage_count, 'place')}, and {_count(self._file_count, 'file')} {verb} affected"


def _words(finding: Finding) -> str:
    what = finding.kind.value.partition("-")[0]
    digest = "" if finding.digest is None else f" {finding.digest}"
    # Almost every repository has one namespace.
    where = f"[{finding.namespace}] " if finding.namespace not in {None, DEFAULT_NAMESPACE} else ""
    return for_display(f"{where}{what}{digest}: {finding.detail} ({finding.kind})")


def _file_words(file: AffectedFile) -> str:
    parts = "its manifest" if not file.chunk_count else f"{file.damaged_count} of {_count(file.chunk_count, 'chunk')}"
    where = f"[{file.record.namespace}] " if file.record.namespace != DEFAULT_NAMESPACE else ""
    return for_display(f"{where}{file.record.id}  {file.record.name}  ({parts})")


def _finding_as_json(finding: Finding) -> dict[str, object]:
    return {
        "kind": finding.kind.value,
        "namespace": finding.namespace,
        "digest": None if finding.digest is None else str(finding.digest),
        "detail": finding.detail,
        "file_id": None if finding.record is None else finding.record.id,
    }


def _file_as_json(file: AffectedFile) -> dict[str, object]:
    return {**file.record.as_json(), "damaged_count": file.damaged_count, "chunk_count": file.chunk_count}


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or f'{one}s'}"
