"""What a word of a command line may become: paths, values of settings, and names and ids of stored files.

Only completion uses it. It only reads, and what it cannot find out in time it does not offer.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from filestore.errors import FilestoreError
from filestore_cli.context import CommandContext, command_context
from filestore_cli.parameters import SettingOption
from filestore_cli.settings import Setting
from filestore_cli.start import run_to_end

_NAMES_LIMIT = 1000
"""How many of the newest records are looked at."""
_STORED = re.compile(r"\bREF\b|\bREFERENCE\b|\bNAME\[@REV\]")
"""Arguments that name a stored file have such words in their form."""
_LOCAL = frozenset({"DIR", "FILE", "FOLDER", "[FOLDER]", "PATH", "SOURCE", "TARGET"})
"""The forms of arguments that are paths of this machine."""
_EITHER = frozenset({"old", "new", "source", "target"})
"""The arguments, if they are texts, that name a stored file or are paths of this machine."""
_PATH_MARKS = ("/", "./", "../", "~")
_ID_START = "file_"


def with_candidates(command: click.Command) -> click.Command:
    """Return `command`, after its parameters and those of all commands below it were given their candidates."""
    for parameter in command.params:
        find = _finder(parameter)
        if find is not None:
            parameter.type = _Completed(parameter.type, find)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_candidates(below)
    return command


Finder: TypeAlias = "Callable[[click.Context, str], Iterable[CompletionItem[Any]]]"


class _Completed(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no argument
    """The type of a parameter, with candidates."""

    def __init__(self, original: click.ParamType[Any], find: Finder) -> None:
        self.name = original.name
        self._original, self._find = original, find

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._original.convert(value, param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002  # click's interface
        incomplete: str,
    ) -> list[CompletionItem[Any]]:
        return list(self._find(ctx, incomplete))


def _finder(parameter: click.Parameter) -> Finder | None:
    """Return what finds the candidates for a parameter. None if click does it, or if there are none."""
    if isinstance(parameter, SettingOption):
        return _of_setting(parameter.setting)
    form = str(parameter.metavar)
    if isinstance(parameter, click.Argument) and _STORED.search(form):
        return _stored
    if isinstance(parameter, click.Argument) and parameter.name in _EITHER and parameter.type is click.STRING:
        return _stored_or_paths
    return _paths if form in _LOCAL else None


def _of_setting(setting: Setting) -> Finder | None:
    if setting.unit.startswith(("path", "URL or path")):
        return _paths
    return _one_of(setting.choices or ("yes", "no")) if setting.choices or setting.unit == "yes or no" else None


def _paths(_: click.Context, incomplete: str) -> Iterable[CompletionItem[Any]]:
    return [CompletionItem(incomplete, type="file")]


def _one_of(values: Iterable[str]) -> Finder:
    def find(_: click.Context, incomplete: str) -> Iterable[CompletionItem[Any]]:
        return [CompletionItem(value) for value in values if value.startswith(incomplete)]

    return find


def _stored_or_paths(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem[Any]]:
    found: list[CompletionItem[Any]] = []
    if not incomplete.startswith(_PATH_MARKS):
        with suppress(FilestoreError, click.ClickException):  # no repository can be asked, and paths are there all the same
            found += _stored(ctx, incomplete)
    return [*found, *_paths(ctx, incomplete)]


def _stored(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem[Any]]:
    names = [parameter.setting_name for parameter in ctx.command.params if isinstance(parameter, SettingOption)]
    with ctx.scope(cleanup=False):
        context = command_context({name: ctx.params.get(name) for name in names}, json=False, quiet=True)
        with _at_most(context.settings.completion_seconds):
            found = run_to_end(_ask(context, incomplete))
    return [CompletionItem(text) for text in found if text.startswith(incomplete)]


async def _ask(context: CommandContext, incomplete: str) -> Iterable[str]:
    """Return references that may begin with `incomplete`: names and ids, or revisions of a name, or entries of a directory."""
    async with context.repository(read_only=True, asks_peers=False) as repository:
        name, colon, _ = incomplete.partition(":")
        if colon:
            return [f"{name}:{path}" for path in await _entries(context, repository, name)]
        name, at, _ = incomplete.partition("@")
        if at:
            return [f"{name}@{label.name}" for label in await repository.labels(name)]
        records = await repository.records(limit=_NAMES_LIMIT)
        ids = [record.id for record in records] if incomplete and incomplete[: len(_ID_START)] in _ID_START else []
        return [*dict.fromkeys(record.full_name for record in records), *ids]


async def _entries(context: CommandContext, repository: Any, name: str) -> Iterable[str]:
    from filestore.core.references import Reference  # heavy
    from filestore.transfer.fetch_entry import find_entry  # heavy

    record = await repository.record(Reference.parse(name))
    directory = Reference.parse(f"{name}:")
    found = await find_entry(repository, record, directory, limits=context.settings.zip_limits)
    return [entry.path for entry in found.tree.entries(recursive=True)]


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End this process without a candidate when the time is over, whatever it waits for. It has changed nothing."""

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
