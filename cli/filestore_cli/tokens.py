"""The commands for the tokens of a folder."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from filestore.core.digest import Digest, token_digest
from filestore.core.names import DEFAULT_NAMESPACE, checked_namespace
from filestore.core.timestamps import format_timestamp
from filestore_cli.context import CommandContext, creates, takes
from filestore_cli.folders import create_folder, removed_from_index, with_index
from filestore_cli.settings import parse_setting
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, minute

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.given_tokens import GivenToken
    from filestore.repository.index.protocol import Index, TokenRow

TOKEN_BYTES = 32

_BEGINNING = re.compile(r"[0-9a-f]{8,64}\Z")
_GIVEN = "given to a server, and valid while that server runs"


@click.group(short_help="Make, list and remove access tokens.")
def token() -> None:
    """Make, list and remove the tokens of a folder."""


@token.command("new", short_help="Make a token and print it.")
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="The namespace that the token sees. Files and chunks are shared only inside it.",
)
@click.option("--label", default="", help="What the token is for, in your own words.")
@creates
@takes("root")
def new_token(context: CommandContext, namespace: str, label: str, *, create: bool) -> None:
    """Make a token and print it once."""
    checked_namespace(namespace)
    if not label.isprintable():
        raise click.BadParameter("a label is one line of printable text", param_hint="--label")
    root = context.settings.root.absolute()
    created = create and run_to_end(create_folder(root))
    made = run_to_end(with_index(context, root, lambda index: add_token(index, namespace=namespace, label=label)))
    context.show(
        {
            "token": made,
            "digest": str(token_digest(made)),
            "namespace": namespace,
            "label": label,
            "root": str(root),
            "repository_created": created,
        },
        made,
    )
    if created:
        context.note_created(root)
    context.note(
        f"The token gives access to the namespace {namespace} of {for_display(root)}. "
        "It is not shown again, because only its digest is stored."
    )


@token.command("ls", short_help="List the tokens.")
@takes("root")
def list_tokens(context: CommandContext) -> None:
    """List the valid tokens, the oldest first, by the beginning of their digests.

    The tokens that servers were given for their runs come last.
    """
    root = context.settings.root.absolute()
    rows = run_to_end(with_index(context, root, _tokens, read_only=True))
    context.show(
        {"tokens": [_row_result(row) for row in rows], "root": str(root)},
        *map(_row_line, rows),
        f"{len(rows)} token{'' if len(rows) == 1 else 's'} in {for_display(root)}",
    )


@token.command("rm", short_help="Remove a token.")
@click.argument("which", metavar="TOKEN|DIGEST")
@takes("root")
def remove_token(context: CommandContext, which: str) -> None:
    """Revoke a token. Give the token itself, its digest, or the first 8 or more digits of the digest.

    Servers notice it within about a second. They then cut its transfers, and refuse the signed URLs that it asked for.
    """
    root = context.settings.root.absolute()
    row = run_to_end(removed_from_index(context, root, lambda index: _remove_token(index, which, root=root)))
    context.show({**_row_result(row), "root": str(root)}, f"Token {row.digest} revoked")


async def add_token(index: Index, *, namespace: str, label: str) -> str:
    """Make a token, and return it."""
    made = secrets.token_urlsafe(TOKEN_BYTES)
    while made.startswith("-"):
        # As an argument, this token would look like an option.
        made = secrets.token_urlsafe(TOKEN_BYTES)
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest(made), namespace=namespace, label=label)
    return made


async def _tokens(index: Index) -> list[TokenRow]:
    from filestore.repository.given_tokens import given_tokens  # heavy

    kept = await index.tokens()
    known = {row.digest for row in kept}
    given = [token for token in await given_tokens(index) if not token.is_removed and token.digest not in known]
    return [*kept, *map(_row_of, given)]


async def _remove_token(index: Index, which: str, *, root: Path) -> TokenRow:
    from filestore.repository.given_tokens import remove_given  # heavy

    digest = token_digest(parse_setting("token", which, source="what was given"))
    is_beginning = _BEGINNING.match(which) is not None
    rows = await _tokens(index)
    found = [row for row in rows if row.digest == digest or (is_beginning and str(row.digest).startswith(which))]
    if len(found) != 1:
        # The argument may be the token itself, so it is not repeated.
        raise click.ClickException(
            f"{len(found)} tokens match in {for_display(root)}; `filestore token ls` lists the tokens, "
            "`filestore token rm` needs exactly one, and --root names another folder"
        )
    async with index.transaction() as transaction:
        await transaction.remove_token(found[0].digest)
        # A server may have been given the same token.
        await remove_given(index, transaction, found[0].digest, namespace=found[0].namespace)
    return found[0]


def _row_of(given: GivenToken) -> TokenRow:
    from filestore.repository.index.protocol import TokenRow  # heavy

    return TokenRow(Digest(given.digest), given.namespace, _GIVEN, given.given_at)


def _row_line(row: TokenRow) -> str:
    return f"{str(row.digest)[:16]}  {minute(row.created_at)}  {row.namespace}  {for_display(row.label)}".rstrip()


def _row_result(row: TokenRow) -> dict[str, object]:
    return {
        "digest": str(row.digest),
        "namespace": row.namespace,
        "label": row.label,
        "created_at": format_timestamp(row.created_at),
    }
