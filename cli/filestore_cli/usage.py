"""The command du: what a repository and a cache take on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.errors import InvalidInput
from filestore_cli.context import CommandContext, takes
from filestore_cli.findings import hold_lines
from filestore_cli.parameters import Count
from filestore_cli.quota import quota_lines
from filestore_cli.start import run_to_end
from filestore_cli.text import exactly, for_display, in_units, table

if TYPE_CHECKING:
    from filestore.backends import OtherFiles
    from filestore.repository.protocol import NameUsage, Usage

_SHOWN_NAMES = 20
_NAMES_LIMIT = 1000


@click.command(short_help="Show what takes disk space.")
@click.option(
    "--limit",
    type=Count(min=1, max=_NAMES_LIMIT),
    metavar="COUNT",
    default=_SHOWN_NAMES,
    show_default=True,
    help="The largest number of names to show, those that take the most.",
)
@takes("url", "token", "cache")
def du(context: CommandContext, limit: int) -> None:
    """Show what the repository and the cache take on disk, what sharing and encoding saved, and what can be freed."""
    run_to_end(_du(context, limit))


async def _du(context: CommandContext, limit: int) -> None:
    from filestore.backends import other_files  # heavy

    async with context.repository(read_only=True) as repository:
        folder = context.local_folder
        # A server has a setting of its own.
        grace_seconds = context.settings.gc_grace if context.is_local else None
        usage = await repository.usage(name_limit=limit, grace_seconds=grace_seconds)
        others = None if folder is None else await other_files(folder, usage.namespace)
        cached = _cached(context.settings.cache)
        result = usage.as_json() | {
            "other_files": None if others is None else others._asdict(),
            "cache": None if cached is None else {"path": str(context.settings.cache.absolute()), "stored_size": cached},
            "repository": repository.location,
        }
        lines = [_name_line(name) for name in usage.names]
        if usage.name_count > len(usage.names):
            lines.append(f"and {usage.name_count - len(usage.names)} more names; --limit sets how many are shown")
        lines += table(**_totals(usage, others), **({} if cached is None else {"cache": exactly(cached)}))
        if usage.quota is not None:
            lines += ["limits of the namespace:", *quota_lines(usage.quota.limits, usage.quota.used, indent="  ")]
        lines += hold_lines([] if usage.hold is None else [usage.hold])
        context.show(result, *lines, f"in {context.place(repository)}")
        if usage.damaged:
            names = ", ".join(map(for_display, usage.damaged[:_SHOWN_NAMES]))
            context.note(f"Warning: manifests are missing or damaged, so a collection frees nothing: {names}")


def _name_line(usage: NameUsage) -> str:
    versions = "1 version" if usage.version_count == 1 else f"{usage.version_count} versions"
    own, shared = in_units(usage.own_size), in_units(usage.shared_size)
    return f"{own:>8} own  {shared:>8} shared  {in_units(usage.logical_size):>8} in {versions}  {for_display(usage.name)}"


def _totals(usage: Usage, others: OtherFiles | None) -> dict[str, str]:
    frames_size = usage.needed_size + usage.free_size + usage.waiting_size + usage.manifests_size
    totals = {
        "files": f"{usage.record_count}, under {usage.name_count} name{'' if usage.name_count == 1 else 's'}",
        "content": exactly(usage.logical_size),
        "saved_by_sharing": in_units(usage.logical_size - usage.distinct_size),
        "saved_by_encoding": in_units(usage.distinct_size - usage.needed_size),
        "needed": f"{exactly(usage.needed_size)}, and {in_units(usage.manifests_size)} of manifests",
        "can_be_freed": exactly(usage.free_size) + ("" if usage.hold is None else ", after the end of the hold"),
        "freed_later": f"{exactly(usage.waiting_size)}, used within {usage.grace_seconds / 3600:g} hours",
    }
    if others is not None:
        totals["other_files"] = (
            f"{in_units(others.index_size)} index, {in_units(others.other_namespaces_size)} other namespaces,"
            f" {in_units(others.temporary_size)} temporary files, {in_units(others.rest_size)} rest"
        )
        frames_size += sum(others)
    return totals | {"on_disk": exactly(frames_size)}


def _cached(root: Path) -> int | None:
    """Return the bytes of disk that a cache takes. None if nobody has made it yet."""
    from filestore.cache.cache import check_cache  # heavy
    from filestore.cache.inventory import entries, staged  # heavy

    root = root.absolute()
    try:
        check_cache(root)
    except InvalidInput:
        return None
    return sum(entry.stored_size for entry in entries(root)) + sum(item.stored_size for item in staged(root))
