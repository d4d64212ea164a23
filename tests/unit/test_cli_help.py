from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from filestore_cli.main import cli


def groups(command: click.Group, context: click.Context) -> Iterator[tuple[click.Group, click.Context]]:
    """A group of commands and all groups below it, each with its context."""
    yield command, context
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if isinstance(below, click.Group):
            yield from groups(below, click.Context(below, info_name=name, parent=context))


GROUPS = list(groups(cli, click.Context(cli, info_name="filestore")))


@pytest.mark.parametrize(("group", "context"), GROUPS, ids=[context.command_path for _, context in GROUPS])
def test_help_cuts_no_summary_off(group: click.Group, context: click.Context) -> None:
    """Each command has a summary that fits on its line of the help of its group."""
    lines = group.get_help(context).splitlines()
    assert [] == [line for line in lines if line.endswith("...") and not line.startswith("Usage:")]
    assert all((group.get_command(context, name) or cli).short_help for name in group.list_commands(context))


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


RESERVED = {"copy", "sync", "web"}
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
