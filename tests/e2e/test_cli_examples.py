"""The examples of the commands, as their help shows them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from filestore_cli.examples import EXAMPLES
from filestore_cli.main import cli
from tests.support.commands import REPOSITORY, Home
from tests.support.models import safetensors_file, tensor

WIDTH = 78
"""The longest line that the help shows in 80 columns."""
ELSEWHERE = {
    "bench fetch": "takes minutes",
    "bench remote": "needs a server",
    "bench upload": "takes minutes",
    "cache serve": "runs until it is stopped",
    "link": "needs a server",
    "migrate": "needs an object store",
    "runtime serve": "runs until it is stopped",
    "serve": "runs until it is stopped",
    "token rm": "needs the digest of a token",
    "token rotate": "needs the digest of a token",
}
"""The commands whose examples are only parsed here, and why. Other tests run them with what they need."""
FIRST = ("push", "tag", "push", "create file", "cache warm", "owner give")
"""What the examples of other commands need, in this order."""
LAST = ("backup", "restore", "rm", "owner rm", "quota rm", "cache rm")
"""Commands that remove what other examples need, or need what these have stored."""


def parsed(line: str) -> click.Context:
    """The context of the command that a line calls, whose arguments are valid."""
    program, *arguments = shlex.split(line)
    assert program == "filestore"
    context = cli.make_context(program, arguments)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


def names(group: click.Group, context: click.Context) -> list[str]:
    """The names of all commands below a group that do something, as one types them."""
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += (
            [f"{name} {below}" for below in names(command, click.Context(command))]
            if isinstance(command, click.Group)
            else [name]
        )
    return found


def test_each_command_has_examples() -> None:
    """There are one to four for each command, and none for what does not exist."""
    assert set(names(cli, click.Context(cli))) == EXAMPLES.keys()
    assert all(1 <= len(lines) <= 4 for lines in EXAMPLES.values())
    assert [] == [line for lines in EXAMPLES.values() for line in lines if len(line) > WIDTH]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_is_a_call_of_its_command(name: str) -> None:
    """The line calls the command that it is an example of, with arguments that are valid."""
    for line in EXAMPLES[name]:
        assert f"filestore {name}" == parsed(line).command_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_help_and_the_page_show_the_examples(name: str) -> None:
    """They are the end of the help, as they are typed, and begin the section of the command in docs/cli.md."""
    lines = EXAMPLES[name]
    assert parsed(lines[0]).get_help().endswith("\n\nExamples:\n" + "\n".join(f"  {line}" for line in lines))
    section = (REPOSITORY / "docs/cli.md").read_text().split(f"\n### filestore {name}\n")[1]
    assert "```sh\n" + "\n".join(lines) + "\n```" == section.strip().split("\n\n")[1]


COMING_FROM = (REPOSITORY / "docs/coming-from.md").read_text()


@pytest.mark.parametrize("line", [each for each in re.findall(r"`([^`]+)`", COMING_FROM) if each.startswith("filestore ")])
def test_each_command_for_users_of_other_tools_is_valid(line: str) -> None:
    """A command of docs/coming-from.md names a command that exists, and options and values that it takes."""
    assert parsed(line).command_path.split()[0] == "filestore"


def test_each_row_for_users_of_other_tools_has_a_command() -> None:
    """What one types here is a command of filestore, or nothing."""
    rows = re.findall(r"^\| `.*` \| (.*) \|$", COMING_FROM, re.MULTILINE)

    assert [] == [row for row in rows if not re.fullmatch(r"`filestore \S+( [^`]+)?`|nothing: .*", row)]
    assert {"`filestore ls`", "`filestore du`", "nothing: every file may be large"} <= set(rows)


def test_the_alias_of_a_command_shows_its_examples(home: Home) -> None:
    """Another name of a command has the same help."""
    assert home.run("warm", "--help").stdout.endswith(f"\n  {EXAMPLES['cache warm'][-1]}\n")


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other work
def test_the_examples_work(home: Home, tmp_path: Path) -> None:
    """In a folder that has what they name, all of them succeed, beside each other."""
    (tmp_path / "my_model").mkdir()
    (tmp_path / "my_model/config.json").write_text("{}")
    (tmp_path / "my_model/train.log").write_text("epoch 1\n")
    (tmp_path / "my_model/model.safetensors").write_bytes(safetensors_file([tensor("weight", 3, 5, seed=1, dtype="F32")]))
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "models").mkdir()
    (tmp_path / "fetched").mkdir()
    home.create_repository()
    # A namespace that `namespace rm` can remove.
    assert 0 == home.run("token", "new", "--namespace", "old-team").returncode

    def run(name: str) -> None:
        if name in ELSEWHERE:
            return
        for line in EXAMPLES[name]:
            if name == "tag" and line.endswith("--delete"):
                continue
            done = home.run(*shlex.split(line)[1:], cwd=tmp_path / "fetched" if name == "fetch" else tmp_path)
            assert (line, 0) == (line, done.returncode), done.stderr

    for name in FIRST:
        run(name)
    (tmp_path / "my_model/config.json").write_text('{"layers": 2}')
    run("push")
    for name in EXAMPLES:
        if name not in {*FIRST, *LAST}:
            run(name)
    assert 0 == home.run(*shlex.split(EXAMPLES["tag"][-1])[1:], cwd=tmp_path).returncode
    for name in LAST:
        run(name)
