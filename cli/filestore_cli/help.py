"""The help of a command: its options in groups, and examples.

Each command and each group gets it from `with_help`, so the modules of the commands say nothing of it.
"""

from __future__ import annotations

import click

from filestore_cli.examples import examples_of

OPTIONS, REPOSITORY, TUNING = "Options", "Repository", "Tuning"
_REPOSITORY = frozenset({"url", "root", "store", "index", "token", "token_file", "insecure", "peers"})
"""The settings that say which repository a command works on, and who asks for it."""
_TUNED = frozenset({"codec", "presigned_reads", "push_cache"})
"""The settings without a number that change how fast a command is, or what it takes, and not what it does."""
_NUMBERS = ("bytes", "count", "days", "hours", "ratio", "seconds", "time")
"""What the unit of a setting begins with whose value is a number."""


class HelpContext(click.Context):
    """The context of a command whose help has its options in groups, and examples at its end."""

    def get_help(self) -> str:
        formatter = self.make_formatter()
        self.command.format_usage(self, formatter)
        self.command.format_help_text(self, formatter)
        for title, options in grouped_options(self).items():
            with formatter.section(title):
                formatter.write_dl(options)
        if isinstance(self.command, click.Group):
            self.command.format_commands(self, formatter)
        if examples := examples_of(typed_name(self)):
            with formatter.section("Examples"):
                # As they are: a line that was broken cannot be copied.
                formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in examples))
        return formatter.getvalue().rstrip("\n")


def with_help(command: click.Command) -> click.Command:
    """Return `command`, after it and all commands below it were given this help."""
    command.context_class = HelpContext
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        with_help(below)
    return command


def typed_name(context: click.Context) -> str:
    """Return the name of a command as one types it after the name of the program."""
    names = []
    while context.parent is not None:
        names.append(str(context.info_name))
        context = context.parent
    return " ".join(reversed(names))


def grouped_options(context: click.Context) -> dict[str, list[tuple[str, str]]]:
    """Return the options of a command as lines of its help, by the title of their group. No group is empty."""
    groups: dict[str, list[tuple[str, str]]] = {OPTIONS: [], REPOSITORY: [], TUNING: []}
    for parameter in context.command.get_params(context):
        line = parameter.get_help_record(context)
        # Newer versions of click have a line for an argument too, with nothing in it.
        if line is not None and isinstance(parameter, click.Option):
            groups[group_of(parameter)].append(line)
    return {title: lines for title, lines in groups.items() if lines}


def group_of(parameter: click.Parameter) -> str:
    """Return the title of the group of an option. Only options of settings are in another one than `OPTIONS`."""
    from filestore_cli.parameters import SettingOption  # heavy: the settings, which the help of all commands can do without

    if not isinstance(parameter, SettingOption):
        return OPTIONS
    name, unit = parameter.setting_name, parameter.setting.unit
    if name in _REPOSITORY:
        return REPOSITORY
    return TUNING if name in _TUNED or unit.startswith(_NUMBERS) else OPTIONS
