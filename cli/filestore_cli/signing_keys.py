"""The commands for the keys with which the servers of a folder sign URLs."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import click

from filestore.core.timestamps import format_timestamp
from filestore_cli.context import CommandContext, takes
from filestore_cli.folders import removed_from_index, with_index
from filestore_cli.start import run_to_end
from filestore_cli.text import for_display, minute

if TYPE_CHECKING:
    # Heavy: the commands import it when they run.
    from filestore.core.signing import SigningKeys
    from filestore.repository.index.protocol import Index

KEY_BYTES = 32


@click.group("signing-key", short_help="List and change the keys that sign URLs.")
def signing_key() -> None:
    """List and change the keys with which the servers of a folder sign URLs."""


@signing_key.command("ls", short_help="List the keys.")
@takes("root")
def list_keys(context: CommandContext) -> None:
    """List the key that signs URLs, and the previous one while its URLs are accepted. Only their ids are shown."""
    root = context.served
    keys = run_to_end(with_index(context, root, lambda index: index.signing_keys()))
    _show(context, keys)


@signing_key.command("rotate", short_help="Sign with a new key.")
@click.option("--revoke", is_flag=True, help="Refuse the URLs of the previous key at once.")
@takes("root", "signed_seconds", "upload_idle_seconds")
def rotate(context: CommandContext, *, revoke: bool) -> None:
    """Make a new key that signs URLs from now on, beside running servers too.

    The URLs that the previous key has signed are accepted until they expire, for at most the larger one of the settings
    signed_seconds and upload_idle_seconds. So give these as the servers have them. A second rotation ends them earlier.
    """
    root = context.served
    kept_seconds = 0 if revoke else int(max(context.settings.signed_seconds, context.settings.upload_idle_seconds)) + 1
    keys = run_to_end(removed_from_index(context, root, lambda index: _rotate(index, kept_seconds=kept_seconds)))
    _show(context, keys)
    context.note("Servers that are running sign with the new key within about a second.")


async def _rotate(index: Index, *, kept_seconds: int) -> SigningKeys:
    # A reader that finds no secret makes one, which a transaction would have to wait for.
    await index.signing_keys()
    now = int(time.time())
    async with index.transaction() as transaction:
        keys = (await transaction.signing_keys()).rotated(secrets.token_bytes(KEY_BYTES), now=now, until=now + kept_seconds)
        await transaction.set_signing_keys(keys)
    return keys


def _show(context: CommandContext, keys: SigningKeys) -> None:
    """Print the ids of the keys that are accepted now."""
    is_accepted = keys.previous is not None and time.time() < keys.previous_until
    previous = keys.previous if is_accepted else None
    until = format_timestamp(keys.previous_until * 1_000_000)
    results = [{"id": keys.current.id, "made_at": _made_at(keys.current.made_at), "signs": True, "accepted_until": None}]
    lines = [f"{keys.current.id}  signs"]
    if previous is not None:
        results.append({"id": previous.id, "made_at": _made_at(previous.made_at), "signs": False, "accepted_until": until})
        lines.append(f"{previous.id}  accepted until {minute(keys.previous_until * 1_000_000)}")
    root = context.served
    count = len(results)
    context.show({"keys": results, "root": str(root)}, *lines, f"{count} key{'' if count == 1 else 's'} in {for_display(root)}")


def _made_at(seconds: int) -> str | None:
    """Return when a key was made. None for the first one, which was made with the repository."""
    return format_timestamp(seconds * 1_000_000) if seconds else None
