"""`filestore`: the commands, and how their failures are told."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from filestore.errors import FilestoreError
from filestore_cli.text import printable

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

_COMMANDS = {
    "bench": "bench.command:bench",
    "cache": "caching:cache",
    "create": "transfer:create",
    "fetch": "transfer:fetch",
    "hash": "transfer:hash_path",
    "info": "records:info",
    "ls": "records:ls",
    "push": "transfer:push",
    "rm": "records:rm",
    "runtime": "runtime:runtime",
    "serve": "serving:serve",
    "token": "serving:token",
    "warm": "caching:warm",
}
"""Where each command is: only the one that runs is loaded, which saves a fifth of a start."""


class Commands(click.Group):
    """Tells a failure in one sentence on standard error, with exit status 1; click itself does so for wrong usage, with 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # the same
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, name = place.split(":")
        command: click.Command = getattr(import_module(f"filestore_cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FilestoreError as error:
            raise click.ClickException(printable(str(error))) from error
        except KeyboardInterrupt:
            click.echo("Interrupted; run the same command again, what is there already is not transferred again.", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            raise click.ClickException(printable(_explained(error))) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="filestore", message="filestore %(version)s")
def cli() -> None:
    """Keep model weights: push a file or a directory, fetch it back, every byte verified.

    A command works on the repository that --url, FILESTORE_URL or the configuration file names, in that order; without
    any, on the local folder that `filestore serve` would serve.
    """


def main() -> None:
    """The console script `filestore`."""
    run("filestore")


def run(program: str) -> None:
    """Run the command that the process's arguments name; exits."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding cannot show is shown escaped, and is no failure.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # they are, in a console script
    cli(prog_name=program)


def _explained(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    what_to_do = "; get the right to use it, or use another place" if isinstance(error, PermissionError) else ""
    return f"{where}{error.strerror or error}{what_to_do}"
