"""The command gc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from filestore.errors import CollectionHeld, DamagedRecord, FilestoreError
from filestore_cli.context import CommandContext, Place, takes
from filestore_cli.findings import hold_lines
from filestore_cli.folders import maintained_place, opened_folder
from filestore_cli.hints import explained
from filestore_cli.parameters import Age
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, in_units, table

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.repository.maintenance.collect import CollectionReport, Freed
    from filestore.repository.maintenance.hold import Hold
    from filestore.repository.stores.protocol import Removed


@click.command(short_help="Remove content that nothing needs.")
@click.option("--dry-run", is_flag=True, help="Remove nothing, and say what would be removed.")
@click.option(
    "--grace",
    type=Age(),
    metavar="AGE",
    help="Keep chunks that a push has used within this time, such as 24h or 0s.  [default: the setting gc_grace]",
)
@click.option(
    "--end-hold", is_flag=True, help="First end the hold of a repair or a restore: what has no name may then be removed."
)
@takes("url", "root")
def gc(context: CommandContext, grace: float | None, *, dry_run: bool, end_hold: bool) -> None:
    """Remove the content that no stored file needs any more, and say why each part of it goes.

    That is content of removed files, of pushes that were abandoned, and what crashes have left. The folder may be in use
    by servers and pushes meanwhile. A server does the same by itself.
    """
    if end_hold and dry_run:
        raise click.UsageError("--end-hold changes the folder, and --dry-run does not; give one of them")
    folder = maintained_place(context, "gc")
    grace_seconds = context.settings.gc_grace if grace is None else grace
    collected = run_to_end(_collect(context, folder, grace_seconds, dry_run=dry_run, end_hold=end_hold))
    reports, failures, staging, held = collected
    total = sum(report.freed.size for report in reports) + staging.size
    verb = "would be freed" if dry_run else "freed"
    lines = [line for report in reports for line in _report_lines(report)]
    if staging.count:
        lines += table(staging_of_ended_processes=_words(staging))
    context.show(
        {
            "root": str(folder),
            "dry_run": dry_run,
            "grace_seconds": grace_seconds,
            "namespaces": [report.as_json() for report in reports],
            "staging": {"count": staging.count, "size": staging.size},
            "freed_size": total,
            "held": [hold.as_json() for hold in held],
            "holds_ended": end_hold,
            "failures": [{"namespace": namespace, "reason": str(error)} for namespace, error in failures],
        },
        *lines,
        *(hold_lines(held, ended=end_hold) if dry_run or end_hold else ()),
        f"{in_units(total)} {verb} in {for_display(folder)}",
    )
    for namespace, error in failures:
        raise click.ClickException(for_display(f"nothing is removed from the namespace {namespace}: {explained(error)}"))


async def _collect(
    context: CommandContext, folder: Place, grace_seconds: float, *, dry_run: bool, end_hold: bool
) -> tuple[list[CollectionReport], list[tuple[str, FilestoreError]], Removed, list[Hold]]:
    from filestore.repository.full_disk import with_reserve  # heavy
    from filestore.repository.maintenance.collect import Collection  # heavy
    from filestore.repository.maintenance.hold import end_holds, holds  # heavy

    reports: list[CollectionReport] = []
    failures: list[tuple[str, FilestoreError]] = []
    async with opened_folder(context, folder, read_only=dry_run) as (store, index):
        if end_hold:
            held = await with_reserve(store, lambda: end_holds(store, index))
        else:
            held = [hold async for hold in holds(store, index)]
        staging = await store.remove_abandoned(dry_run=dry_run)
        for namespace in await index.namespaces():
            collection = Collection(store, index, namespace, grace_seconds=grace_seconds, dry_run=dry_run)
            try:
                reports.append(await with_reserve(store, collection.run))
            except (DamagedRecord, CollectionHeld) as error:
                failures.append((namespace, error))
    return reports, failures, staging, held


def _report_lines(report: CollectionReport) -> list[str]:
    parts: dict[str, Freed] = {
        "content of removed files": report.removed_files,
        "content of abandoned pushes": report.abandoned_pushes,
        "frames without a row": report.frames_without_rows,
        "manifests of removed files": report.manifests,
        "kept for the grace period": report.waiting,
    }
    rows = {name: _words(part) for name, part in parts.items() if part.count}
    if report.old_versions:
        rows = {"old versions": f"{report.old_versions} by the policy of the namespace"} | rows
    return [f"namespace {report.namespace}", *(f"  {line}" for line in table(**rows))] if rows else []


def _words(part: Freed | Removed) -> str:
    return f"{part.count}, {in_units(part.size)}"
