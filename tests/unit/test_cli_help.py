from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from filestore_cli.help import OPTIONS, REPOSITORY, TUNING, group_of
from filestore_cli.main import cli


def groups(command: click.Group, context: click.Context) -> Iterator[tuple[click.Group, click.Context]]:
    """A group of commands and all groups below it, each with its context."""
    yield command, context
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if isinstance(below, click.Group):
            yield from groups(below, click.Context(below, info_name=name, parent=context))


def leaves(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """The contexts of all commands that do something."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = command.context_class(command, info_name=name, parent=context)
        yield from leaves(command, below) if isinstance(command, click.Group) else [below]


GROUPS = list(groups(cli, click.Context(cli, info_name="filestore")))


@pytest.mark.parametrize(("group", "context"), GROUPS, ids=[context.command_path for _, context in GROUPS])
def test_help_cuts_no_summary_off(group: click.Group, context: click.Context) -> None:
    """Each command has a summary that fits on its line of the help of its group."""
    lines = group.get_help(context).splitlines()
    assert [] == [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]
    assert all((group.get_command(context, name) or cli).short_help for name in group.list_commands(context))


LEAVES = list(leaves(cli, cli.context_class(cli, info_name="filestore")))
SECTION = re.compile(r"^([A-Z][a-z]+):\n((?:  .*\n|\n)*)", re.MULTILINE)


@pytest.mark.parametrize("context", LEAVES, ids=[context.command_path for context in LEAVES])
def test_the_options_of_a_command_are_in_groups(context: click.Context) -> None:
    """Each option is in one group of the help: those of the command first, then the repository, then the tuning."""
    sections = dict(SECTION.findall(f"{context.get_help()}\n"))
    titles = [title for title in (OPTIONS, REPOSITORY, TUNING) if title in sections]

    assert titles == [title for title in sections if title in titles]
    assert "--" in sections[OPTIONS].splitlines()[0]
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            long = ", ".join(option for option in parameter.opts if option.startswith("--"))
            line = re.compile(rf"^  (?:-\w, )?{long}(?![\w-])", re.MULTILINE)
            assert [group_of(parameter)] == [title for title in titles if line.search(sections[title])]


def test_which_group_an_option_is_in() -> None:
    """The name of the setting and its unit decide; an option of the same name that is not of a setting stays with the command."""

    def found(path: str) -> dict[str, str]:
        context = next(context for context in LEAVES if context.command_path == f"filestore {path}")
        return {parameter.opts[-1]: group_of(parameter) for parameter in context.command.get_params(context)}

    fetch = found("fetch")
    assert {REPOSITORY} == {fetch[option] for option in ("--url", "--token", "--token-file", "--insecure", "--peers", "--store")}
    assert {TUNING} == {fetch[option] for option in ("--connections", "--max-memory", "--stall-seconds", "--presigned-reads")}
    assert {OPTIONS} == {fetch[option] for option in ("--output", "--zip", "--json", "--quiet", "--help")}
    assert (OPTIONS, OPTIONS, TUNING) == tuple(found("serve")[option] for option in ("--port", "--tls-cert", "--gc-hours"))
    assert OPTIONS == found("quota set")["--token"]


def test_messages_name_commands_that_exist() -> None:
    """Every command that a message names exists."""
    top = Path(__file__).parents[2]
    sources = [*(top / "filestore").rglob("*.py"), *(top / "cli").rglob("*.py")]
    named = {words for path in sources for words in re.findall(r"`filestore ([a-z]+(?: [a-z]+)?)", path.read_text())}
    assert {"cache verify", "ls", "serve"} <= named
    assert [] == [words for words in sorted(named) if not exists(words)]


def test_an_alias_is_the_same_command() -> None:
    """`filestore warm` is another name of `filestore cache warm`, which help does not list."""
    context = click.Context(cli)
    cache = cli.get_command(context, "cache")
    assert isinstance(cache, click.Group)
    assert cache.get_command(context, "warm") is cli.get_command(context, "warm")
    assert "warm" not in cli.list_commands(context)


RESERVED = {"web"}
"""Names of commands that later versions will have."""


def test_reserved_names_are_free() -> None:
    """No command or alias has a name that is meant for another command of a later version."""
    context = click.Context(cli)
    assert [] == [name for name in sorted(RESERVED) if cli.get_command(context, name) is not None]
    token = cli.get_command(context, "token")
    assert isinstance(token, click.Group)
    assert {"new", "ls", "rotate", "rm"} == set(token.list_commands(context))


def exists(words: str) -> bool:
    """Whether that is a command: of two words the second counts only where the first is a group."""
    first, _, second = words.partition(" ")
    commands = {context.command_path: group.list_commands(context) for group, context in GROUPS}
    below = commands.get(f"filestore {first}")
    return first in commands["filestore"] and (below is None or not second or second in below)
