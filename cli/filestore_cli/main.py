"""`filestore`: the commands, and how their failures are told."""

from __future__ import annotations

import sys
from typing import Any

import click

from filestore.errors import FilestoreError
from filestore_cli.bench.command import bench
from filestore_cli.caching import cache, warm
from filestore_cli.records import info, ls, rm
from filestore_cli.runtime import runtime
from filestore_cli.serving import serve, token
from filestore_cli.text import printable
from filestore_cli.transfer import create_file, fetch, hash_path, push

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""


class Commands(click.Group):
    """Tells a failure in one sentence on standard error, with exit status 1; click itself does so for wrong usage, with 2."""

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


@cli.group()
def create() -> None:
    """Make something under the name that pipelines have for it."""


create.add_command(create_file)
for command in (serve, push, fetch, ls, info, rm, hash_path, warm, cache, token, runtime, bench):
    cli.add_command(command)


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
