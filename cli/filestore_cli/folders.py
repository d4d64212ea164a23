"""Find the folder that a maintenance command works on."""

from __future__ import annotations

from pathlib import Path

import click

from filestore_cli.context import CommandContext
from filestore_cli.text import for_display


def maintained_folder(context: CommandContext, command: str) -> Path:
    """Return the folder that --root or the URL of the settings names. Raises ClickException for the URL of a server."""
    from filestore.backends import repository_folder  # heavy

    root = context.settings.root.absolute()
    has_root = click.get_current_context().params.get("root") is not None
    url = context.settings.url
    if url is None or has_root:
        return root
    folder = repository_folder(url)
    if folder is None:
        raise click.ClickException(
            f"{command} works on the folder of a repository, and {for_display(url)} is the URL of a server; "
            "run it on the machine of that server, with --root and the folder that it serves"
        )
    return folder.absolute()
