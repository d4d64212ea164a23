"""The commands for the owners of names in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from filestore.core.names import checked_namespace, checked_owner
from filestore.errors import InvalidName
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.folders import maintained_place, removed_from_index, with_index
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.index.protocol import Index


@click.group(short_help="List owners; give one to a namespace.")
def owner() -> None:
    """List the owners of names such as `team/my_model`, and say to which namespace each of them belongs."""


@owner.command("ls", short_help="List the owners.")
@takes("url", "root")
def list_owners(context: CommandContext) -> None:
    """List the owners in a folder, each with its namespace."""
    folder = maintained_place(context, "owner ls")
    found = run_to_end(with_index(context, folder, lambda index: index.owners(), read_only=True))
    context.show(
        {"owners": [{"owner": name, "namespace": namespace} for name, namespace in found], "root": str(folder)},
        *(f"{name}  {namespace}" for name, namespace in found),
        f"{len(found)} owner{'' if len(found) == 1 else 's'} in {for_display(folder)}",
    )


@owner.command("give", short_help="Give an owner to a namespace.")
@click.argument("name", metavar="OWNER")
@click.argument("namespace")
@takes("url", "root")
def give(context: CommandContext, name: str, namespace: str) -> None:
    """Give an owner that no namespace has to a namespace, before the first push of a name with this owner does so."""
    try:
        checked_owner(name)
    except InvalidName as error:
        raise click.BadParameter(f"{for_display(repr(name))}: {error.reason}", param_hint="OWNER") from None
    checked_namespace(namespace)
    folder = maintained_place(context, "owner give")
    run_to_end(with_index(context, folder, lambda index: _give(index, name, namespace)))
    named = {"owner": name, "namespace": namespace}
    audit(context.settings, "owner-give", {**named})
    context.show({**named, "root": str(folder)}, f"the owner {name} belongs to the namespace {namespace}")


@owner.command("rm", short_help="Take an owner from its namespace.")
@click.argument("name", metavar="OWNER")
@takes("url", "root")
def remove(context: CommandContext, name: str) -> None:
    """Take an owner from its namespace. Stored names stay where they are; the next push of one of them takes the owner again."""
    folder = maintained_place(context, "owner rm")
    namespace = run_to_end(removed_from_index(context, folder, lambda index: _remove(index, name)))
    if namespace is None:
        raise click.ClickException(
            f"no namespace has the owner {for_display(name)} in {for_display(folder)}; `filestore owner ls` shows the owners"
        )
    named = {"owner": name, "namespace": namespace}
    audit(context.settings, "owner-rm", {**named})
    context.show({**named, "root": str(folder)}, f"the owner {for_display(name)} belongs to no namespace")


async def _give(index: Index, name: str, namespace: str) -> None:
    async with index.transaction() as transaction:
        await transaction.claim_owner(namespace, name)


async def _remove(index: Index, name: str) -> str | None:
    """Return the namespace that had the owner, or None."""
    async with index.transaction() as transaction:
        namespaces = {each.lower(): namespace for each, namespace in await index.owners()}
        await transaction.remove_owner(name)
    return namespaces.get(name.lower())
