"""The version of the installed filestore."""

from __future__ import annotations

import click

DISTRIBUTION = "model-filestore"
"""The name of the installed distribution. Another project owns the name `filestore` on PyPI."""


def installed_version() -> str | None:
    """Return the version, or None if the metadata of the distribution are missing.

    They are missing in an editable install that was made before the distribution had this name.
    """
    from importlib.metadata import PackageNotFoundError, version  # 0.02 s, which no other command needs

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001  # click's interface
    """Print the version for the option --version, and exit."""
    if not value or ctx.resilient_parsing:
        return
    found = installed_version()
    if found is None:
        raise click.ClickException(
            f"the version is not known, because the metadata of the installed package {DISTRIBUTION} are missing; "
            "run `pip install .` in the folder of filestore again"
        )
    click.echo(f"filestore {found}")
    ctx.exit()
