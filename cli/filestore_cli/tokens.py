"""The commands for the tokens of a folder."""

from __future__ import annotations

import re
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from filestore.core.digest import Digest, token_digest
from filestore.core.names import DEFAULT_NAMESPACE, UPSTREAM_NAMESPACE, checked_namespace, checked_new_full_name
from filestore.core.scopes import Scope
from filestore.core.timestamps import format_timestamp
from filestore.errors import InvalidName
from filestore_cli.auditing import audit
from filestore_cli.context import CommandContext, Place, creates, takes
from filestore_cli.folders import create_folder, removed_from_index, with_index
from filestore_cli.parameters import Age
from filestore_cli.settings import parse_setting
from filestore_cli.start import run_to_end
from filestore_cli.text import columns, for_display, minute

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.repository.given_tokens import GivenToken
    from filestore.repository.index.protocol import Index, TokenRow, Transaction

TOKEN_START = "hf_"  # noqa: S105  # the same for all
"""Clients of the Hugging Face Hub accept only tokens that begin so, and go on with at least 34 letters and digits."""
TOKEN_LENGTH = 40
"""Random letters and digits of a token: 238 bits."""
DEFAULT_SCOPE = Scope.DELETE
"""What people do: push, fetch, list, remove. `admin` is for those who operate the server."""

_LETTERS = string.ascii_letters + string.digits
_BEGINNING = re.compile(r"[0-9a-f]{8,64}\Z")
_GIVEN = "given to a server, and valid while that server runs"
_SECOND = 1_000_000
_SECONDS_LIMIT = 100 * 365 * 24 * 3600
_COLUMNS = ("id", "created", "expires", "last used", "scope", "namespace", "prefix", "label")


@click.group(short_help="Make, list, rotate and remove access tokens.")
def token() -> None:
    """Make, list, rotate and remove the tokens of a folder."""


@token.command("new", short_help="Make a token and print it.")
@click.option(
    "--namespace",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="The namespace that the token sees. Files and chunks are shared only inside it.",
)
@click.option(
    "--scope",
    type=click.Choice([str(scope) for scope in Scope]),
    default=str(DEFAULT_SCOPE),
    show_default=True,
    help="What the token permits. Each scope contains those before it; `write` adds files and removes none.",
)
@click.option("--expires", type=Age(), help="How long the token is valid, such as 90d. Without it, it does not expire.")
@click.option("--prefix", default="", help="The token sees and stores only names that begin with this.")
@click.option("--label", default="", help="What the token is for, in your own words.")
@creates
@takes("root")
def new_token(
    context: CommandContext, namespace: str, *, scope: str, expires: float | None, prefix: str, label: str, create: bool
) -> None:
    """Make a token and print it once."""
    if checked_namespace(namespace) == UPSTREAM_NAMESPACE:
        raise click.BadParameter("it has what the server fetched for others, so no token opens it", param_hint="--namespace")
    _check_prefix(prefix)
    if not label.isprintable():
        raise click.BadParameter("a label is one line of printable text", param_hint="--label")
    properties = TokenProperties(namespace, label, Scope.parse(scope), prefix, _expiry(expires, option="--expires"))
    root = context.served
    created = create and run_to_end(create_folder(root))
    made = run_to_end(with_index(context, root, lambda index: add_token(index, properties)))
    audit(context.settings, "token-new", _facts(token_digest(made), properties))
    _show_made(context, made, properties, root=root, more={"repository_created": created})
    if created:
        context.note_created(root)
    _note_made(context, properties, root=root)


@token.command("ls", short_help="List the tokens.")
@takes("root")
def list_tokens(context: CommandContext) -> None:
    """List the tokens, the oldest first, by the beginning of their digests.

    A token that has expired is listed until it is removed. The tokens that servers were given for their runs come last.
    """
    root = context.served
    rows = run_to_end(with_index(context, root, all_tokens, read_only=True))
    context.show(
        {"tokens": [_row_result(row) for row in rows], "root": str(root)},
        *_lines(rows),
        f"{len(rows)} token{'' if len(rows) == 1 else 's'} in {for_display(root)}",
    )


@token.command("rm", short_help="Remove a token.")
@click.argument("which", metavar="TOKEN|DIGEST")
@takes("root")
def remove_token(context: CommandContext, which: str) -> None:
    """Revoke a token. Give the token itself, its digest, or the first 8 or more digits of the digest.

    Servers notice it within about a second. They then cut its transfers, and refuse the signed URLs that it asked for.
    """
    root = context.served
    row = run_to_end(removed_from_index(context, root, lambda index: _remove_token(index, which, root=root)))
    audit(context.settings, "token-rm", _facts(row.digest, _properties_of(row)))
    context.show({**_row_result(row), "root": str(root)}, f"Token {row.digest} revoked")


@token.command("rotate", short_help="Replace a token by a new one.")
@click.argument("which", metavar="TOKEN|DIGEST")
@click.option("--expires", type=Age(), help="How long the new token is valid. By default, as long as the old one was.")
@click.option("--keep", type=Age(), default=0.0, help="How long the old token stays valid, such as 1h. Without it, it ends now.")
@takes("root")
def rotate_token(context: CommandContext, which: str, expires: float | None, keep: float) -> None:
    """Make a token like an old one, print it once, and end the old one.

    The new one has the namespace, scope, prefix, label and quota of the old one.

    Give the old token itself, its digest, or the first 8 or more digits of the digest. A token that has expired can be
    rotated too.
    """
    root = context.served
    expires_at, kept_until = _expiry(expires, option="--expires"), _expiry(keep or None, option="--keep")

    async def rotated(index: Index) -> tuple[str, TokenProperties, TokenRow]:
        old = await _find(index, which, command="rotate", root=root)
        return await _rotate(index, old, expires_at=expires_at, kept_until=kept_until)

    made, properties, old = run_to_end(removed_from_index(context, root, rotated))
    audit(context.settings, "token-rotate", {**_facts(token_digest(made), properties), "old_token": old.id})
    _show_made(context, made, properties, root=root, more={"old": _row_result(old)})
    _note_made(context, properties, root=root)
    context.note(f"The old token {old.id} {_end_words(old, is_kept=kept_until is not None)}.")


class TokenProperties(NamedTuple):
    """What a new token permits."""

    namespace: str
    label: str
    scope: Scope = DEFAULT_SCOPE
    prefix: str = ""
    expires_at: int | None = None
    """In microseconds since 1970. None means that it does not expire."""


async def add_token(index: Index, properties: TokenProperties) -> str:
    """Make a token, and return it."""
    made = _random_token()
    async with index.transaction() as transaction:
        await transaction.add_token(token_digest(made), **properties._asdict())
    return made


async def _rotate(
    index: Index, old: TokenRow, *, expires_at: int | None, kept_until: int | None
) -> tuple[str, TokenProperties, TokenRow]:
    """Make a token like an old one, and end that. Return the new one, its properties, and the old one as it is then."""
    from filestore.repository.given_tokens import remove_given  # heavy
    from filestore.repository.links import end_links_of  # heavy

    made = _random_token()
    async with index.transaction() as transaction:
        # Nobody changes it during the transaction.
        found = await index.token(old.digest)
        if found is None:
            raise click.ClickException("the token was removed a moment ago")
        old = found
        if expires_at is None and old.expires_at is not None:
            expires_at = _now() + old.expires_at - old.created_at
        properties = TokenProperties(old.namespace, old.label, old.scope, old.prefix, expires_at)
        await transaction.add_token(token_digest(made), **properties._asdict())
        await _copy_quota(index, transaction, old, token_digest(made))
        if kept_until is None:
            await transaction.remove_token(old.digest)
            # A server may have been given the same token.
            await remove_given(index, transaction, old.digest, namespace=old.namespace)
            await end_links_of(index, transaction, old)
        else:
            old = old._replace(expires_at=min(kept_until, old.expires_at or kept_until))
            kept = properties._replace(expires_at=old.expires_at)
            await transaction.add_token(old.digest, **kept._asdict())
            await end_links_of(index, transaction, old, at=old.expires_at)
    return made, properties, old


async def _copy_quota(index: Index, transaction: Transaction, old: TokenRow, new: Digest) -> None:
    """Give a new token the limits of an old one, so that nobody gets rid of limits by a rotation."""
    for row in await index.quotas():
        if row.token == old.digest:
            await transaction.set_quota(row.namespace, row.quota, token=new)


def _random_token() -> str:
    return TOKEN_START + "".join(secrets.choice(_LETTERS) for _ in range(TOKEN_LENGTH))


def _now() -> int:
    return time.time_ns() // 1000


def _expiry(seconds: float | None, *, option: str) -> int | None:
    """Return the time that is so many seconds from now. Raises BadParameter."""
    if seconds is None:
        return None
    if not 0 < seconds <= _SECONDS_LIMIT:
        raise click.BadParameter("give a time of more than 0 seconds and at most 100 years", param_hint=option)
    return _now() + round(seconds * _SECOND)


def _check_prefix(prefix: str) -> None:
    """Raise BadParameter if no name begins with `prefix`."""
    try:
        checked_new_full_name(f"{prefix}x")
    except InvalidName as error:
        reason = str(error.named_facts()["reason"]).partition(";")[0]
        raise click.BadParameter(f"no name begins with {for_display(prefix)!r}: {reason}", param_hint="--prefix") from None


def _show_made(
    context: CommandContext, made: str, properties: TokenProperties, *, root: Place, more: Mapping[str, object]
) -> None:
    digest = token_digest(made)
    described = {
        "token": made,
        "id": _id_of(digest),
        "digest": str(digest),
        **_properties_result(properties),
        "root": str(root),
    }
    context.show({**described, **more}, made)


def _note_made(context: CommandContext, properties: TokenProperties, *, root: Place) -> None:
    names = f"names that begin with {for_display(properties.prefix)!r} in " if properties.prefix else ""
    until = "" if properties.expires_at is None else f" until {minute(properties.expires_at)}"
    context.note(
        f"The token gives {properties.scope} access to {names}the namespace {properties.namespace} of {for_display(root)}"
        f"{until}. It is not shown again, because only its digest is stored."
    )


def _end_words(old: TokenRow, *, is_kept: bool) -> str:
    if not is_kept:
        return "is not valid any more"
    assert old.expires_at is not None  # noqa: S101  # a rotation that keeps a token sets it
    # --keep never makes a token last longer than it did.
    return f"{'expired on' if old.has_expired(_now()) else 'is valid until'} {minute(old.expires_at)}"


async def all_tokens(index: Index) -> list[TokenRow]:
    """Return the tokens of the folder, and after them those that servers were given for their runs. Links have no part in it."""
    from filestore.repository.given_tokens import given_tokens  # heavy
    from filestore.repository.links import without_links  # heavy

    kept = await without_links(index, await index.tokens())
    known = {row.digest for row in kept}
    given = [token for token in await given_tokens(index) if not token.is_removed and token.digest not in known]
    return [*kept, *map(_row_of, given)]


async def _remove_token(index: Index, which: str, *, root: Place) -> TokenRow:
    from filestore.repository.given_tokens import remove_given  # heavy
    from filestore.repository.links import end_links_of  # heavy

    found = await _find(index, which, command="rm", root=root)
    async with index.transaction() as transaction:
        await transaction.remove_token(found.digest)
        await end_links_of(index, transaction, found)
        # A server may have been given the same token.
        await remove_given(index, transaction, found.digest, namespace=found.namespace)
    return found


async def _find(index: Index, which: str, *, command: str, root: Place) -> TokenRow:
    """Return the token that a user names. Raises ClickException."""
    digest = token_digest(parse_setting("token", which, source="what was given"))
    is_beginning = _BEGINNING.match(which) is not None
    rows = await all_tokens(index)
    found = [row for row in rows if row.digest == digest or (is_beginning and str(row.digest).startswith(which))]
    if len(found) != 1:
        # The argument may be the token itself, so it is not repeated.
        raise click.ClickException(
            f"{len(found)} tokens match in {for_display(root)}; `filestore token ls` lists the tokens, "
            f"`filestore token {command}` needs exactly one, by itself or by 8 or more digits of its digest, and --root names "
            "another folder"
        )
    if command == "rotate" and found[0].label == _GIVEN:
        raise click.ClickException("this token was given to a server by its user; start the server with another one")
    return found[0]


def _row_of(given: GivenToken) -> TokenRow:
    from filestore.repository.index.protocol import TokenRow  # heavy

    return TokenRow(Digest(given.digest), given.namespace, _GIVEN, given.given_at)


def _lines(rows: Sequence[TokenRow]) -> list[str]:
    """Return a table of tokens, with the names of its columns if it has a row."""
    now = _now()
    return columns(_COLUMNS, [_cells(row, now) for row in rows])


def _cells(row: TokenRow, now: int) -> tuple[str, ...]:
    expires = "never" if row.expires_at is None else minute(row.expires_at)
    if row.has_expired(now):
        expires = f"expired {expires}"
    used = "never" if row.used_at is None else minute(row.used_at)
    if row.label == _GIVEN:
        used = "not known"
    return (row.id, minute(row.created_at), expires, used, str(row.scope), row.namespace, row.prefix, for_display(row.label))


def _row_result(row: TokenRow) -> dict[str, object]:
    return {
        "id": row.id,
        "digest": str(row.digest),
        **_properties_result(_properties_of(row)),
        "created_at": format_timestamp(row.created_at),
        "used_at": _timestamp(row.used_at),
    }


def _properties_of(row: TokenRow) -> TokenProperties:
    return TokenProperties(row.namespace, row.label, row.scope, row.prefix, row.expires_at)


def _properties_result(properties: TokenProperties) -> dict[str, object]:
    expires_at = _timestamp(properties.expires_at)
    return {**properties._asdict(), "scope": str(properties.scope), "expires_at": expires_at}


def _facts(digest: bytes, properties: TokenProperties) -> dict[str, object]:
    """Return what the audit log says of a token."""
    return {"token": _id_of(digest), **_properties_result(properties)}


def _id_of(digest: bytes) -> str:
    """Return the name that logs give a token."""
    from filestore.repository.index.protocol import TOKEN_ID_LENGTH  # heavy

    return digest.hex()[:TOKEN_ID_LENGTH]


def _timestamp(microseconds: int | None) -> str | None:
    return None if microseconds is None else format_timestamp(microseconds)
