"""The library names no command and no option; its errors have hints, for which the command line has sentences."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from filestore import errors
from filestore.errors import FilestoreError
from filestore_cli.hints import HINTS, explained
from filestore_cli.main import cli
from filestore_cli.settings import setting_definitions
from tests.support.errors import classes, example

REPOSITORY = Path(__file__).parents[2]
LIBRARY = sorted((REPOSITORY / "filestore").rglob("*.py"))
PROGRAM = [*LIBRARY, *sorted((REPOSITORY / "cli").rglob("*.py"))]
TYPED = re.compile(r"`filestore ([^`]*)`")
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
KINDS = {kind.__name__: kind for kind in classes()}


def groups(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command and group, by what one types after `filestore`."""
    context = click.Context(group)
    for own_name in group.list_commands(context):
        command = group.get_command(context, own_name)
        assert command is not None
        typed = f"{name} {own_name}".strip()
        yield typed, command
        if isinstance(command, click.Group):
            yield from groups(command, typed)


COMMANDS = dict(groups(cli, ""))
OPTIONS = {
    name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in COMMANDS.items()
}
VARIABLES = {setting.environment for setting in setting_definitions().values() if setting.environment}


def texts(tree: ast.Module) -> Iterator[ast.Constant]:
    """The strings of a module that are no docstrings: those are statements."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node


def command_line_words(text: str) -> list[str]:
    """What in a text only a user of the command line understands."""
    options = {option for own in OPTIONS.values() for option in own if option.startswith("-")}
    found = [option for option in OPTION.findall(text) if option in options]
    commands = "|".join(sorted({name.partition(" ")[0] for name in COMMANDS}))
    found += re.findall(rf"\bfilestore (?:{commands})\b", text)
    return found + [variable for variable in VARIABLES if variable in text]


@pytest.mark.parametrize(
    "text", ["run `filestore ls`", "give --force", "give it with -o", "set FILESTORE_TOKEN", "filestore cache rm x"]
)
def test_words_of_the_command_line_are_found(text: str) -> None:
    """A command, an option or a variable anywhere in a text."""
    assert command_line_words(text)


@pytest.mark.parametrize("text", ["`ulimit -f`", "a filestore server", "filestore-x", "x--force", "cut -- here", "url_proxy"])
def test_other_words_are_allowed(text: str) -> None:
    """What only looks like one."""
    assert [] == command_line_words(text)


@pytest.mark.slow
def test_the_library_names_neither_commands_nor_options() -> None:
    """Who uses it by Python or curl cannot type them. The pages of a server show people what they can type."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {words}"
        for path in LIBRARY
        if "routes/page" not in path.as_posix()
        for node in texts(ast.parse(path.read_text()))
        if (words := command_line_words(str(node.value)))
    ]
    assert [] == found


def hints_used() -> set[str]:
    """The hints of all classes, and those that are given where an error is made."""
    found = {kind.hint for kind in KINDS.values()} | {errors.LimitExceeded("x", 2, 1, "y").hint}
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                found |= {str(text.value) for text in ast.walk(node.value) if isinstance(text, ast.Constant)}
    return found - {""}


@pytest.mark.slow
def test_every_hint_has_its_sentence() -> None:
    """Every hint that a class or a constructor states; the others are computed, and are in the file that computes them."""
    computed = {"cache-min-free", "cache-size-limit", "cache-size-limit-too-small"}
    quota = (REPOSITORY / "filestore/cache/quota.py").read_text()
    assert [] == [hint for hint in computed if f'"{hint}"' not in quota]
    assert set(HINTS) == hints_used() | computed


@pytest.mark.parametrize("hint", HINTS)
def test_every_sentence_names_what_there_is(hint: str) -> None:
    """Its commands, their options, and its variables exist."""
    sentence = HINTS[hint]
    everywhere = {option for own in OPTIONS.values() for option in own}
    for typed in TYPED.findall(sentence):
        words = [word for word in typed.split() if not word.startswith(("-", "{"))]
        options = set(OPTION.findall(typed))
        assert " ".join(words) in COMMANDS, typed
        assert options <= OPTIONS[" ".join(words)]
    assert set(OPTION.findall(sentence)) <= everywhere
    assert set(re.findall(r"FILESTORE_\w+", sentence)) <= VARIABLES


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.slug)
def test_every_error_is_explained(kind: type[FilestoreError]) -> None:
    """The message, and for a hint its sentence, with the facts of the error."""
    error = example(kind)
    told = explained(error)
    assert told.startswith(str(error))
    assert bool(error.hint) == (told != str(error))
    assert "{" not in told


def test_the_variable_of_every_setting_is_named() -> None:
    """A limit that a setting raises is explained with the environment variable of that setting."""
    for name, setting in setting_definitions().items():
        if setting.environment is not None:
            assert explained(errors.LimitExceeded("x", 2, 1, name)).endswith(f"; {setting.environment} sets it")


@pytest.mark.slow
def test_every_error_is_made_with_as_many_facts_as_it_has() -> None:
    """The constructors have no signatures that a type checker could look at; a wrong number would be a TypeError at run time."""
    wrong = []
    for path in PROGRAM:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            kind = KINDS.get(_name(node.func))
            if kind is None or kind is errors.ChunksMissing or any(isinstance(given, ast.Starred) for given in node.args):
                continue
            left_out = kind.facts[len(node.args) :]
            is_wrong = len(node.args) > len(kind.facts) or not all(hasattr(kind, name) for name in left_out)
            if is_wrong or {keyword.arg for keyword in node.keywords} - {"hint"}:
                wrong.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")
    assert [] == wrong


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
