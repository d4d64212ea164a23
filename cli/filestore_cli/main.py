"""The command `filestore`: find the subcommand, run it, and report its failure."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from filestore.errors import FilestoreError, HostUnknown, Interrupted, Stalled, Unreachable
from filestore_cli.help import HelpContext, with_help
from filestore_cli.hints import explained
from filestore_cli.start import (
    OUTPUT_LEFT,
    RESUMES,
    TOKEN_SOURCE,
    end_loading,
    how_interrupted,
    interrupted_status,
    output_failure,
    say,
    sentence,
)
from filestore_cli.suggestions import suggestion
from filestore_cli.text import for_display, lines_for_display
from filestore_cli.version import print_version

_COMMANDS = {
    "backup": "backup:backup",
    "bench": "bench.command:bench",
    "cache": "caching:cache",
    "check": "check:check",
    "completion": "completion:completion",
    "copy": "copying:copy",
    "create": "transfer:create",
    "diff": "diffing:diff",
    "du": "usage:du",
    "fetch": "fetching:fetch",
    "gc": "gc:gc",
    "hash": "transfer:hash_path",
    "info": "records:info",
    "leftovers": "leftovers:leftovers",
    "link": "links:link",
    "log": "history:log",
    "ls": "records:ls",
    "man": "man:man",
    "migrate": "migrating:migrate",
    "namespace": "namespaces:namespace",
    "owner": "owners:owner",
    "push": "transfer:push",
    "quota": "quota:quota",
    "restore": "backup:restore",
    "rm": "removal:rm",
    "runtime": "runtime:runtime",
    "serve": "serving:serve",
    "signing-key": "signing_keys:signing_key",
    "sync": "syncing:sync",
    "tag": "history:tag",
    "token": "tokens:token",
}
"""The module and the function of each command. Only the command that runs is loaded, which saves a fifth of its
start."""

_ALIASES = {"warm": "caching:warm"}
"""Other names of commands, which help does not list."""

COMPLETION_VARIABLE = "_FILESTORE_COMPLETE"
"""A shell asks by this variable how a line goes on. click reads it."""

_RESUMED = {"copy", "create", "fetch", "migrate", "push", "sync"}
"""Commands that continue where they were interrupted. What a command sets as `RESUMES` in the `meta` of its context comes
before this."""
_KEPT = "what was transferred already is not transferred again"
_HOW_TO_GO_ON = f"; run the same command again to continue: {_KEPT}"


class Commands(click.Group):
    """The group of all commands. It reports a failure by a message on standard error and exit status 1.

    For wrong usage, click prints a message and exits with status 2.
    """

    context_class = HelpContext

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name) or _ALIASES.get(cmd_name)
        if place is None:
            return None
        module, name = place.split(":")
        command: click.Command = getattr(import_module(f"filestore_cli.{module}"), name)
        end_loading()
        if ctx.resilient_parsing:
            from filestore_cli.candidates import with_candidates  # heavy, and only completion needs it

            with_candidates(command)
        return with_help(command)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except KeyboardInterrupt:
            say(f"{how_interrupted()}.")
            raise click.exceptions.Exit(interrupted_status()) from None
        except BrokenPipeError:
            # The output of --help or --version. Click itself would exit with 1.
            raise click.exceptions.Exit(OUTPUT_LEFT) from None
        except OSError as error:
            raise click.ClickException(f"standard output cannot be written: {output_failure(error)}") from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FilestoreError as error:
            how_to_go_on = _how_to_go_on(error) if _resumes(ctx) else ""
            raise click.ClickException(
                for_display(explained(error, token_source=ctx.meta.get(TOKEN_SOURCE))) + how_to_go_on
            ) from error
        except KeyboardInterrupt:
            say(f"{how_interrupted()}{_HOW_TO_GO_ON if _resumes(ctx) else ''}.")
            ctx.exit(interrupted_status())
        except BrokenPipeError:
            # The program that read the output has ended, so there is no message.
            ctx.exit(OUTPUT_LEFT)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise click.ClickException(for_display(sentence(error))) from error


def _how_to_go_on(error: FilestoreError) -> str:
    if isinstance(error, Interrupted | Stalled):
        # The sentences of these say to try again.
        return f"; {_KEPT}"
    return _HOW_TO_GO_ON if isinstance(error, Unreachable) and not isinstance(error, HostUnknown) else ""


def _resumes(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(RESUMES, ctx.invoked_subcommand in _RESUMED))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=print_version, help="Show the version and exit."
)
def cli() -> None:
    """Store model weights: push a file or a directory, and fetch it back with every byte verified.

    A command takes its repository from --url, FILESTORE_URL or the configuration file, in this order. Without any of
    them, it works on the local folder that `filestore serve` serves.
    """


def status_of(program: str) -> int:
    """Run the command that the process's arguments name. Return its exit status."""
    if COMPLETION_VARIABLE in os.environ:
        from filestore_cli.completion import register  # only a shell asks for it

        register()
    try:
        return int(cli.main(prog_name=program, standalone_mode=False) or 0)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        text = f"{shown.getvalue().rstrip()}{suggestion(error)}\n"
        with suppress(OSError):
            # Arguments and a server may have chosen a part of it.
            click.echo(lines_for_display(text), err=True, nl=False)
        return error.exit_code
    except click.Abort:
        say(f"{how_interrupted()}.")
        return interrupted_status()
