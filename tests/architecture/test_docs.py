from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from filestore.cache.cache import CACHE_VERSION
from filestore.format.chunking import CHUNKING_VERSION
from filestore.http.wire import API
from filestore.repository.format_file import REPOSITORY_VERSION
from filestore.repository.index import sqlite
from filestore.runtime import database
from filestore.transfer.sources import push_cache
from filestore_cli.main import cli
from filestore_cli.settings import option_of, setting_definitions

REPOSITORY = Path(__file__).parents[2]
CLI = (REPOSITORY / "docs/cli.md").read_text()
SETTINGS = (REPOSITORY / "docs/settings.md").read_text()
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by what one types."""
    context = click.Context(group)
    for own_name in group.list_commands(context):
        command = group.get_command(context, own_name)
        assert command is not None
        typed = f"{name} {own_name}"
        if isinstance(command, click.Group):
            yield from commands(command, typed)
        else:
            yield typed, command


COMMANDS = dict(commands(cli, "filestore"))


def options(command: click.Command) -> set[str]:
    """The options of a command in all their spellings."""
    return {spelling for parameter in command.params if isinstance(parameter, click.Option) for spelling in parameter.opts}


def section(heading: str) -> str:
    """The text under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", CLI, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section {heading!r}"
    return found[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_described(name: str) -> None:
    """A command has a section in docs/cli.md, which names its options, but for those of many commands."""
    described = set(OPTION.findall(section(name))) | set(OPTION.findall(section("Options of many commands")))

    assert options(COMMANDS[name]) - described == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_usage_line_is_true(name: str) -> None:
    """The first line of a section is what one types: the command, its arguments, and options that it has."""
    usage = section(name).strip().splitlines()[0].strip("`")
    arguments = [
        parameter.make_metavar(click.Context(COMMANDS[name]))
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Argument)
    ]

    assert usage.startswith(" ".join([name, *arguments]))
    assert set(OPTION.findall(usage)) - options(COMMANDS[name]) == set()


def test_nothing_is_described_that_is_not_there() -> None:
    """Every section of a command, and every option named in it, is one that exists."""
    for heading in re.findall(r"^### (filestore .*)$", CLI, re.MULTILINE):
        assert heading in COMMANDS
        assert set(OPTION.findall(section(heading))) - options(COMMANDS[heading]) == set()


@pytest.mark.parametrize("name", setting_definitions())
def test_every_setting_is_described(name: str) -> None:
    """A setting has its row in docs/settings.md, word for word as the dataclass has it."""
    setting = setting_definitions()[name]
    environment = f"`{setting.environment}`" if setting.environment else "none: the option only"
    option = f"`{option_of(name)}`" if setting.has_option else "none"

    assert f"| `{name}` | {setting.meaning} | {setting.unit} | {setting.default} | {environment} | {option} |\n" in SETTINGS
    assert setting.has_option is any(option_of(name) in options(command) for command in COMMANDS.values())


def test_no_setting_is_described_that_is_not_there() -> None:
    """Every row is one of a setting."""
    assert list(setting_definitions()) == re.findall(r"^\| `(\w+)` \|", SETTINGS, re.MULTILINE)


@pytest.mark.parametrize("page", [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to a file of this repository names one that is there."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    """Each page of docs/, and each one at the top, is once in the lists of docs/site/index.md; nothing else is."""
    index = REPOSITORY / "docs/site/index.md"
    lists = re.findall(r"^```\{toctree\}\n(?::[^\n]*\n)+\n(.*?)^```$", index.read_text(), re.MULTILINE | re.DOTALL)
    listed = [(index.parent / f"{name}.md").resolve() for names in lists for name in names.split()]
    pages = {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("docs/site/*.md")}

    assert sorted({*pages, REPOSITORY / "bench/README.md"} - {index}) == sorted(listed)


@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("repository format", REPOSITORY_VERSION),
        ("cutting version", CHUNKING_VERSION),
        ("index schema", sqlite.SCHEMA_VERSION),
        ("runtime schema", len(database.MIGRATIONS)),
        ("cache format", CACHE_VERSION),
        ("push cache schema", push_cache._SCHEMA_VERSION),
        ("protocol", int(API.removeprefix("/native/v"))),
    ],
)
def test_docs_releasing_has_the_numbers_of_stored_data(what: str, number: int) -> None:
    """The table of which versions work together has the number that the code has."""
    assert f"\n| {what} | {number} |" in (REPOSITORY / "docs/releasing.md").read_text()
