"""The command link: URLs of stored files for people who have no token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from filestore.core.references import Reference
from filestore.errors import NotFound
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, takes
from filestore_cli.lookup import record_of
from filestore_cli.parameters import Age
from filestore_cli.start import run_to_end
from filestore_cli.text import columns, for_display, minute

if TYPE_CHECKING:
    # Heavy: the command imports it when it runs.
    from filestore.core.links import Link

_SECONDS = 7 * 24 * 3600.0
_COLUMNS = ("id", "expires", "made by", "name")


@click.command(short_help="Make, list and revoke links to stored files.")
@click.argument("reference", metavar="[ID|DIGEST|PATH|NAME[@REV]]", required=False)
@click.option("--for", "seconds", type=Age(), metavar="TIME", help="How long the link lasts, such as 12h.  [default: 7d]")
@click.option("--list", "lists", is_flag=True, help="List the links that are valid.")
@click.option("--revoke", metavar="ID", help="End the link with this id, which --list shows.")
@takes("url", "token")
def link(context: CommandContext, reference: str | None, seconds: float | None, *, lists: bool, revoke: str | None) -> None:
    """Print a URL from which any HTTP client can read a stored file for some time, without a token.

    It means the version that is the newest one now. A directory is read as its zip file. The link ends no later than the
    token that made it.
    """
    if (reference is not None) + lists + (revoke is not None) != 1:
        raise click.UsageError("give a stored file to link to, or --list, or --revoke ID")
    if seconds is not None and reference is None:
        raise click.UsageError("--for says how long a new link lasts; give the stored file too")
    if reference is not None:
        run_to_end(_make(context, reference, _SECONDS if seconds is None else seconds))
    elif revoke is not None:
        run_to_end(_revoke(context, revoke))
    else:
        run_to_end(_list(context))


async def _make(context: CommandContext, text: str, seconds: float) -> None:
    wanted = Reference.parse(text)
    if wanted.entry_path is not None:
        raise click.UsageError("a link is for a whole stored file; leave out the ':' and what follows it")
    if context.is_local:
        raise click.ClickException("only a server has URLs; give its URL by --url")
    async with context.repository() as repository:
        record = await record_of(repository, wanted)
        made = await repository.make_link(record.id, seconds=math.ceil(seconds))
        location = repository.location
    url = f"{location}/{made.path}"
    context.show({**_result(made), "url": url, "repository": location}, url)
    context.note(
        f"Everyone who has this URL can read {for_display(made.name)} until {minute(made.expires_at)}. "
        f"It is not shown again. `filestore link --revoke {made.id}` ends it."
    )


async def _list(context: CommandContext) -> None:
    async with context.repository(read_only=True) as repository:
        found, place, location = await repository.links(), context.place(repository), repository.location
    rows = [(each.id, minute(each.expires_at), for_display(each.made_by), for_display(each.name)) for each in found]
    context.show(
        {"links": [_result(each) for each in found], "repository": location},
        *columns(_COLUMNS, rows),
        f"{len(found)} link{'' if len(found) == 1 else 's'} in {place}",
    )


async def _revoke(context: CommandContext, link_id: str) -> None:
    async with context.repository() as repository:
        try:
            ended = await repository.revoke_link(link_id)
        except NotFound:
            raise click.ClickException(
                f"no valid link has the id {for_display(link_id)!r} in {context.place(repository)}; "
                "`filestore link --list` shows those that have one"
            ) from None
        location = repository.location
    if context.is_local:
        audit(context.settings, "link-revoke", {"link": ended.id, "name": ended.name})
    context.show({**_result(ended), "repository": location}, f"{ended.id} revoked: {for_display(ended.name)}")


def _result(link: Link) -> dict[str, str]:
    return link._replace(path=None).as_json()
