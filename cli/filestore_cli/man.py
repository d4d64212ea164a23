"""The command man: manual pages, made from the help of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from inspect import cleandoc
from pathlib import Path
from textwrap import wrap

import click

from filestore.system.files import home_path
from filestore_cli.context import CommandContext, takes
from filestore_cli.examples import examples_of
from filestore_cli.help import grouped_options, typed_name
from filestore_cli.parameters import NonemptyPath
from filestore_cli.version import installed_version

_STATUS = (
    ("0", "Success."),
    ("1", "A failure. A message on standard error says what happened, why, and what to do."),
    ("2", "Wrong usage."),
)


@click.command(short_help="Write the manual pages to a folder.")
@click.argument("folder", metavar="FOLDER", type=NonemptyPath())
@takes()
def man(context: CommandContext, folder: Path) -> None:
    """Write a manual page for each command to FOLDER, such as ~/.local/share/man/man1, which is made if it is absent.

    The pages have the text of --help, of the version that is installed.
    """
    root = click.get_current_context().find_root().command
    made = datetime.now(UTC).date()
    folder = home_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for page in _contexts(root.context_class(root, info_name="filestore", **root.context_settings)):
        (folder / f"{_title(page)}.1").write_text(page_of(page, made), encoding="utf-8")
        count += 1
    context.show({"folder": str(folder), "pages": count}, f"{count} pages in {folder}")


def page_of(context: click.Context, made: date) -> str:
    """Return the manual page of a command, in the macros of man(7). `made` is the day that it shows."""
    command = context.command
    summary = command.short_help or command.get_short_help_str()
    source = f"filestore {installed_version() or ''}".strip()
    lines = [
        f'.TH {_title(context).upper()} 1 {made} "{source}" "filestore"',
        ".SH NAME",
        # Programs that look for pages want a dash between the name and what it is.
        f"{_title(context)} \\- {_text(summary[:1].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(context.command_path)}",
        *_lines(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            lines += _item(name, "" if below is None else below.short_help or "")
    for title, options in grouped_options(context).items():
        lines.append(f".SH {title.upper()}")
        for form, meaning in options:
            lines += _item(form, meaning)
    if examples := examples_of(typed_name(context)):
        lines += [".SH EXAMPLES", ".nf", *map(_text, examples), ".fi"]
    lines.append(".SH EXIT STATUS")
    for status, meaning in _STATUS:
        lines += _item(status, meaning)
    lines += [".SH SEE ALSO", _see_also(context)]
    return "\n".join(lines) + "\n"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command, and those of all commands below it."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None:
                yield from _contexts(command.context_class(command, info_name=name, parent=context))


def _title(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _see_also(context: click.Context) -> str:
    """Return the pages that belong to this one: that of the group, and those of the commands below."""
    pages = [] if context.parent is None else [_title(context.parent)]
    if isinstance(context.command, click.Group):
        pages += [f"{_title(context)}-{name}" for name in context.command.list_commands(context)]
    return ",\n".join(f".BR {_text(page)} (1)" for page in pages).replace(" (1),\n", " (1),\n")


def _item(term: str, meaning: str) -> list[str]:
    return [".TP", f".B {_text(term)}", *(_lines(meaning) or ["\\&"])]


def _paragraphs(text: str) -> list[str]:
    return [line for paragraph in cleandoc(text).split("\n\n") for line in (".PP", *_lines(paragraph))][1:]


def _lines(text: str) -> list[str]:
    """Return a paragraph as lines that are not long. Programs that read the page fill them again."""
    return [_text(line) for line in wrap(" ".join(text.split()), 70, break_long_words=False, break_on_hyphens=False)]


def _text(text: str) -> str:
    """Return a text as roff shows it: a backslash or a point at the beginning of a line would be a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
