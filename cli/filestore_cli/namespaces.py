"""The commands for the namespaces of a folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from filestore.core.names import checked_namespace
from filestore.repository.index.protocol import Policy
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.folders import maintained_place, removed_from_index, with_index
from filestore_cli.parameters import Age
from filestore_cli.start import run_to_end
from filestore_cli.text import duration, for_display

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.index.protocol import Index
    from filestore.repository.maintenance.namespaces import RemovedNamespace


@click.group(short_help="List, limit and remove namespaces.")
def namespace() -> None:
    """List and remove the namespaces of a folder, and set how many versions of a name each of them keeps."""


@namespace.command("ls", short_help="List the namespaces.")
@takes("url", "root")
def list_namespaces(context: CommandContext) -> None:
    """List the namespaces of a folder, with the number of their records and tokens, and their policies."""
    folder = maintained_place(context, "namespace ls")
    rows = run_to_end(with_index(context, folder, _list, read_only=True))
    context.show(
        {"namespaces": [_row_result(*row) for row in rows], "root": str(folder)},
        *(
            f"{name}  {records} record{_s(records)}  {tokens} token{_s(tokens)}  {policy_words(policy)}"
            for name, records, tokens, policy in rows
        ),
        f"{len(rows)} namespace{_s(len(rows))} in {for_display(folder)}",
    )


@namespace.command("rm", short_help="Remove a namespace.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Remove it also if pipelines use its files. They then work only from a cache.")
@takes("url", "root")
def remove(context: CommandContext, name: str, *, yes: bool, force: bool) -> None:
    """Remove the records and the tokens of a namespace. The next collection removes its content.

    It asks before, on a terminal. Elsewhere --yes is needed.
    """
    checked_namespace(name)
    folder = maintained_place(context, "namespace rm")
    counts = {row[0]: row for row in run_to_end(with_index(context, folder, _list, read_only=True))}
    if name not in counts:
        raise click.ClickException(
            f"the namespace {name} does not exist in {for_display(folder)}; `filestore namespace ls` shows those that do"
        )
    _, records, tokens, _ = counts[name]
    what = f"{records} record{_s(records)} and {tokens} token{_s(tokens)} of the namespace {name} in {for_display(folder)}"
    if not yes:
        if context.json or not sys.stdin.isatty():
            raise click.ClickException(f"nothing was removed; to remove {what}, give --yes")
        click.confirm(f"Remove {what}?", abort=True, err=True)
    removed = run_to_end(removed_from_index(context, folder, lambda index: _remove(index, name, force=force)))
    counted = {"namespace": name, "records": removed.record_count, "tokens": removed.token_count}
    audit(context.settings, "namespace-rm", {**counted})
    context.show(
        {**counted, "root": str(folder)},
        f"removed {removed.record_count} record{_s(removed.record_count)} and {removed.token_count}"
        f" token{_s(removed.token_count)} of the namespace {name}",
    )
    context.note("Its content is removed by the next collection after the grace period, or by `filestore gc`.")


@namespace.command("policy", short_help="Show or set a policy.")
@click.argument("name")
@click.option("--keep-last", type=click.IntRange(min=1), metavar="COUNT", help="Keep so many of the newest versions of a name.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Remove only versions of at least this age, such as 30d.")
@click.option("--off", is_flag=True, help="Remove no versions any more.")
@takes("url", "root")
def set_policy(context: CommandContext, name: str, keep_last: int | None, older_than: float | None, *, off: bool) -> None:
    """Show or set which old versions of a name each collection removes.

    With both limits, a version must be outside both of them. The newest version of a name stays, and what a pipeline
    uses. Without limits, the policy is shown.
    """
    checked_namespace(name)
    given = Policy(keep_last, None if older_than is None else int(older_than))
    if off and given != Policy():
        raise click.UsageError("--off removes the limits, so give it alone")
    folder = maintained_place(context, "namespace policy")
    is_read = not off and given == Policy()
    policy = run_to_end(
        with_index(context, folder, lambda index: index.policy(name), read_only=True)
        if is_read
        else with_index(context, folder, lambda index: _set_policy(index, name, given))
    )
    result = {"namespace": name, "keep_last": policy.keep_last, "older_than_seconds": policy.older_than_seconds}
    context.show({**result, "root": str(folder)}, f"{name}  {policy_words(policy)}")


def policy_words(policy: Policy) -> str:
    """Return a policy in words."""
    if policy == Policy():
        return "all versions are kept"
    words = f"the last {policy.keep_last or 1} of each name {'is' if (policy.keep_last or 1) == 1 else 'are'} kept"
    return words + (f", and what is newer than {duration(policy.older_than_seconds)}" if policy.older_than_seconds else "")


async def _list(index: Index) -> list[tuple[str, int, int, Policy]]:
    from filestore.repository.links import without_links  # heavy

    tokens = [row.namespace for row in await without_links(index, await index.tokens())]
    return [
        (name, await index.record_count(name), tokens.count(name), await index.policy(name)) for name in await index.namespaces()
    ]


async def _remove(index: Index, name: str, *, force: bool) -> RemovedNamespace:
    from filestore.repository.maintenance.namespaces import remove_namespace  # heavy

    return await remove_namespace(index, name, force=force)


async def _set_policy(index: Index, name: str, policy: Policy) -> Policy:
    from filestore.repository.maintenance.policy import rule_of  # heavy

    rule_of(policy)  # refuses what is not valid
    async with index.transaction() as transaction:
        await transaction.set_policy(name, policy)
    return policy


def _row_result(name: str, records: int, tokens: int, policy: Policy) -> dict[str, object]:
    limits = {"keep_last": policy.keep_last, "older_than_seconds": policy.older_than_seconds}
    return {"namespace": name, "records": records, "tokens": tokens, "policy": limits}


def _s(count: int) -> str:
    return "" if count == 1 else "s"
