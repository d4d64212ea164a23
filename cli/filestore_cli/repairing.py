"""What `filestore check --repair` does, and how it reports it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from filestore.errors import FilestoreError
from filestore_cli.context import CommandContext, Place
from filestore_cli.findings import file_as_json, file_words, finding_as_json, finding_words, hold_lines, number_of
from filestore_cli.folders import opened_folder
from filestore_cli.plain_http import check_plain_http
from filestore_cli.text import for_display, in_units

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.repository.maintenance.check import ReadPlan
    from filestore.repository.maintenance.findings import AffectedFile
    from filestore.repository.maintenance.repair import Donor, RepairReport

_SHOWN_LIMIT = 1000


async def repair_place(context: CommandContext, place: Place, sources: Sequence[str], plan: ReadPlan | None) -> RepairReport:
    """Repair the repository in a folder or an object store, with good copies from `sources`."""
    from filestore.repository.maintenance.repair import RepairReport, repair  # heavy

    report = RepairReport()
    async with AsyncExitStack() as stack:
        store, index = await stack.enter_async_context(opened_folder(context, place, accepts_index=True))
        donors = []
        for source in sources:
            try:
                donors.append(await _donor(context, source, stack))
            except FilestoreError as error:
                report.failed_donors[source] = str(error)
        return await repair(store, index, donors=donors, read=plan, report=report)


async def _donor(context: CommandContext, source: str, stack: AsyncExitStack) -> Donor:
    """Open a server, the folder of a repository, or a file or directory that is cut like in a push."""
    from filestore.backends import connect, repository_folder  # heavy
    from filestore.format.chunking import CHUNKING_VERSION
    from filestore.repository.maintenance.repair import RepositoryDonor
    from filestore.transfer.donor import PathDonor

    folder = repository_folder(source)
    if folder is None:
        settings = context.settings
        check_plain_http(source, settings)
        connecting = connect(
            source,
            token=settings.token,
            connections=settings.connections,
            stall_seconds=settings.stall_seconds,
            tls_client_cert=settings.tls_client_cert,
            tls_client_key=settings.tls_client_key,
        )
    elif (folder / "format").is_file() and (folder / "chunks").is_dir():
        connecting = connect(folder, read_only=True)
    elif folder.exists():
        return PathDonor(folder, chunking_version=CHUNKING_VERSION)
    else:
        raise click.UsageError(f"--from {for_display(source)} is not there; give a file, a directory, a repository or a URL")
    repository = await stack.enter_async_context(connecting)
    await repository.identity()
    return RepositoryDonor(repository)


def report_as_json(place: Place, report: RepairReport) -> dict[str, object]:
    """Return what a repair did as a JSON object."""
    return {
        "repository": str(place),
        "damage": [finding_as_json(finding) for finding in report.damage],
        "damage_count": report.damage_count,
        "rows_forgotten": report.rows_forgotten,
        "rows_written": report.rows_written,
        "set_aside": report.set_aside,
        "set_aside_count": report.set_aside_count,
        "chunks_restored": report.chunks_restored,
        "manifests_restored": report.manifests_restored,
        "failed_sources": report.failed_donors,
        "whole_again": [file_as_json(file) for file in report.whole_again[:_SHOWN_LIMIT]],
        "whole_again_count": len(report.whole_again),
        "lost": [file_as_json(file) for file in list(report.lost.values())[:_SHOWN_LIMIT]],
        "lost_count": len(report.lost),
        "remaining": [finding_as_json(finding) for finding in report.remaining],
        "remaining_count": report.remaining_count,
        "held": [hold.as_json() for hold in report.holds],
    }


def report_lines(place: Place, report: RepairReport) -> list[str]:
    """Return lines for a person: the damage, what became of it, and a summary."""
    lines = [f"damaged   {finding_words(finding)}" for finding in report.damage]
    lines += _more("damaged", report.damage_count, len(report.damage))
    lines += [f"aside     {for_display(where)}" for where in report.set_aside]
    lines += _more("aside", report.set_aside_count, len(report.set_aside))
    lines += [f"unusable  {for_display(name)}: {for_display(reason)}" for name, reason in report.failed_donors.items()]
    lines += _files("whole", report.whole_again)
    lines += _files("lost", list(report.lost.values()))
    lines += [f"remains   {finding_words(finding)}" for finding in report.remaining]
    lines += _more("remains", report.remaining_count, len(report.remaining))
    lines += hold_lines(report.holds)
    return [*lines, _summary(place, report)]


def failure(report: RepairReport) -> str | None:
    """Return what is still wrong, in one sentence. Return None if nothing is."""
    if not (report.lost or report.remaining_count):
        return None
    if not report.lost:
        return f"damage remains in {number_of(report.remaining_count, 'place')}, and every file is whole"
    verb = "is" if len(report.lost) == 1 else "are"
    return (
        f"{number_of(len(report.lost), 'file')} {verb} still damaged; push what you have of them again,"
        " or name a good copy by --from"
    )


def _summary(place: Place, report: RepairReport) -> str:
    counts = report.counts
    looked = f"{number_of(counts.chunk_count, 'chunk')}, {in_units(counts.stored_size)}"
    done = [
        f"forgot {number_of(report.rows_forgotten, 'chunk')}",
        f"set aside {number_of(report.set_aside_count, 'frame')}",
        f"wrote {number_of(report.rows_written, 'row')}",
        f"restored {number_of(report.chunks_restored, 'chunk')} and {number_of(report.manifests_restored, 'manifest')}",
    ]
    end = failure(report) or "everything is whole"
    return f"checked {looked} in {for_display(place)}: {', '.join(done)}; {end}"


def _files(what: str, files: Sequence[AffectedFile]) -> list[str]:
    return [f"{what:<9} {file_words(file)}" for file in files[:_SHOWN_LIMIT]] + _more(what, len(files), _SHOWN_LIMIT)


def _more(what: str, count: int, shown: int) -> list[str]:
    return [f"{what:<9} {count - shown} more"] if count > shown else []
